"""Score finished runs in FP32 and in INT8 (torchao, onnxruntime): Table XVII for your own models."""

from repl_mm.cli.quantize import main

if __name__ == '__main__':
    main()
