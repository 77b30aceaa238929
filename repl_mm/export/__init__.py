"""What a deployed network is exported to."""

# Formats, and the endings of their files.
EXPORTS = {'onnx': '.onnx', 'torch': '.pt2'}
