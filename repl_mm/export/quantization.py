"""INT8 after training, as in Table XVII: dynamic for the linear layers of a ViT, static for a convolutional backbone.

Two backends: torchao on the torch model, onnxruntime on its ONNX graph. What is not in the backbone stays in float32,
but for a ViT's own linear head.
"""

import copy
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import Tensor, nn
from torch.export import Dim
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from repl_mm.export.graph import as_onnx, trace


class GraphBackbone(nn.Module):
    """A backbone that is a finished graph: it has no mode and no parameters of its own."""

    def __init__(self, run: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        # In a tuple, or it would be registered: torch's exported graphs refuse eval().
        self.graph = (run,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.graph[0](images))


def _is_mostly_linear(backbone: nn.Module) -> bool:
    """Whether linear layers hold more weights than convolutions do; they need no ranges that are fixed beforehand."""
    linear, convolution = (
        sum(module.weight.numel() for module in backbone.modules() if isinstance(module, kind))
        for kind in (nn.Linear, nn.Conv2d)
    )
    return linear > convolution


@torch.no_grad()
def quantize(model: nn.Module, calibration: Sequence[Tensor]) -> nn.Module:
    """An INT8 copy of a deployed model by torchao.

    Args:
        model: A whole model as it comes from :func:`repl_mm.deployment.deploy` with ``fuse_all=True``.
        calibration: Batches of normalised images, shape (N, 3, H, W) with N > 1.
    """
    model = copy.deepcopy(model)
    if _is_mostly_linear(model.backbone):
        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    else:
        model.backbone = GraphBackbone(_static_graph(model.backbone, calibration))
    return model


def _static_graph(backbone: nn.Module, calibration: Sequence[Tensor]) -> nn.Module:
    shapes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)
    # Without strict, nothing would be recognised and quantised.
    graph = torch.export.export(backbone, (calibration[0],), dynamic_shapes=shapes, strict=True).module()
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(graph, quantizer)
    for images in calibration:
        prepared(images)
    converted = convert_pt2e(prepared)
    operators = Counter(str(node.target) for node in converted.graph.nodes)
    _require(operators['quantized_decomposed.quantize_per_tensor.default'], backend='torchao')
    return converted


@torch.no_grad()
def quantize_onnx(model: nn.Module, calibration: Sequence[Tensor]) -> nn.Module:
    """A copy of a deployed model whose backbone runs in INT8 by onnxruntime; arguments as in :func:`quantize`."""
    dynamic = _is_mostly_linear(model.backbone)
    backbone = copy.deepcopy(model.backbone).cpu()
    content = as_onnx(trace(backbone, calibration[0].shape[2:]), model=backbone)
    with tempfile.TemporaryDirectory() as folder:
        plain, quantized = Path(folder, 'plain.onnx'), Path(folder, 'int8.onnx')
        plain.write_bytes(content)
        if dynamic:
            quantize_dynamic(plain, quantized, op_types_to_quantize=['MatMul'], weight_type=QuantType.QInt8)
        else:
            quantize_static(plain, quantized, _Calibration(calibration), per_channel=True)
        content = quantized.read_bytes()
    operators = Counter(node.op_type for node in onnx.load_from_string(content).graph.node)
    _require(operators['DynamicQuantizeLinear' if dynamic else 'QuantizeLinear'], backend='onnxruntime')
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])

    def run(images: Tensor) -> list[Tensor]:
        outputs = session.run(None, {'images': images.cpu().numpy()})
        return [torch.from_numpy(output).to(images.device) for output in outputs]

    # Copying it would copy the session.
    quantized_model = copy.copy(model)
    quantized_model._modules = dict(model._modules) | {'backbone': GraphBackbone(run)}
    return quantized_model


class _Calibration(CalibrationDataReader):
    """Batches in the form that onnxruntime asks for."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = iter([{'images': batch.cpu().numpy()} for batch in batches])

    def get_next(self) -> dict | None:
        return next(self.batches, None)


def _require(found: int, *, backend: str) -> None:
    """Raise RuntimeError where a backend left everything in float32, which it does silently."""
    if not found:
        raise RuntimeError(f'{backend} quantised nothing in this backbone')
