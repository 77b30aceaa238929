"""Exports of a deployed model: a torch program or an ONNX graph, from normalised images to the heads' raw outputs."""

import re
from collections.abc import Sequence
from io import BytesIO

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from repl_mm.deployment import Deployable, RawOutputs, relative_difference

# What the dynamo exporter writes without conversion.
OPSET = 18
AXES = ('batch', 'channels', 'height', 'width')
# Kernels of other libraries sum in another order.
TOLERANCE = 1e-4


@torch.no_grad()
def trace(model: nn.Module, image_size: Sequence[int]) -> ExportedProgram:
    """The program of a static model, for any number of images.

    Height and width are free where the model allows it; position embeddings, for one, fix them.

    Args:
        model: As it comes from :func:`repl_mm.deployment.deploy`.
        image_size: Height and width of the images that it is traced with.
    """
    raw, images = RawOutputs(model).eval(), torch.randn(2, 3, *image_size)
    if all(part.has_free_size for part in model.modules() if isinstance(part, Deployable)):
        program = torch.export.export(raw, (images,), dynamic_shapes=({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},))
        other = torch.randn(3, 3, image_size[0] + 64, image_size[1] + 128)
        try:
            if relative_difference(program.module()(other), raw(other)) <= TOLERANCE:
                return program
        except (AssertionError, RuntimeError, ValueError):
            pass  # the program does not take this size
    return torch.export.export(raw, (images,), dynamic_shapes=({0: Dim.AUTO},))


@torch.no_grad()
def tracing_size(model: nn.Module, image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width to trace a static model with: doubled until no map that it puts out is one pixel high or wide.

    A graph takes a size of one for a constant, and all sizes that it follows from.

    Args:
        model: As it comes from :func:`repl_mm.deployment.deploy`.
        image_size: Height and width to begin with.
    """
    raw, (height, width) = RawOutputs(model).eval(), image_size
    for _ in range(3):
        maps = [output for output in raw(torch.zeros(1, 3, height, width)) if output.dim() == 4]
        if all(min(output.shape[2:]) > 1 for output in maps):
            break
        height, width = 2 * height, 2 * width
    return height, width


def input_shape(program: ExportedProgram) -> tuple[int | str, ...]:
    """Shape (N, C, H, W) of a program's images, free axes by name."""
    [name] = program.graph_signature.user_inputs
    [images] = [node for node in program.graph.nodes if node.op == 'placeholder' and node.name == name]
    shape = zip(images.meta['val'].shape, AXES, strict=True)
    return tuple(size if isinstance(size, int) else name for size, name in shape)


def as_torch(program: ExportedProgram) -> bytes:
    """A ``.pt2`` file, for ``torch.export.load``."""
    buffer = BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def as_onnx(program: ExportedProgram, *, model: nn.Module) -> bytes:
    """An ``.onnx`` file of opset ``OPSET``; its input is ``images``, its outputs are called as the model's."""
    number = len(program.graph_signature.user_outputs)
    graph = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=['images'],
        output_names=RawOutputs(model).names(number),
        verbose=False,
    ).model_proto
    _name_axes(graph.graph)
    return graph.SerializeToString()


def _name_axes(graph: onnx.GraphProto) -> None:
    """Call the free axes by names instead of torch's symbols."""
    [images] = graph.input
    names = {axis.dim_param: name for axis, name in zip(images.type.tensor_type.shape.dim, AXES, strict=True)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r'\bs\d+\b', lambda symbol: names.get(symbol[0], symbol[0]), axis.dim_param)


def run_torch(content: bytes, images: Tensor) -> list[Tensor]:
    """Outputs of a ``.pt2`` file's content."""
    return list(torch.export.load(BytesIO(content)).module()(images))


def run_onnx(content: bytes, images: Tensor) -> list[Tensor]:
    """Outputs of an ``.onnx`` file's content by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]


@torch.no_grad()
def check(model: nn.Module, program: ExportedProgram, content: bytes, *, format: str) -> float:
    """Largest relative difference of an exported file from the model, for two batches of sizes that are possible.

    Args:
        model: The model that was traced.
        program: Its program, which says what shapes are possible.
        content: The file's content.
        format: ``'torch'`` or ``'onnx'``.
    """
    [[traced], _] = program.example_inputs
    _, _, height, width = traced.shape
    larger = [
        size if isinstance(axis, int) else size + 64
        for size, axis in zip((height, width), input_shape(program)[2:], strict=True)
    ]
    raw, run = RawOutputs(model).eval(), {'torch': run_torch, 'onnx': run_onnx}[format]
    batches = [torch.randn(1, 3, height, width), torch.randn(3, 3, *larger)]
    return max(relative_difference(run(content, images), raw(images)) for images in batches)
