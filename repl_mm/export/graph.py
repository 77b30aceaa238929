"""Exports of a deployed model: a torch program or an ONNX graph, from its inputs to the heads' raw outputs.

Inputs are normalised images, or the tokens of a language model.
"""

import re
from collections.abc import Sequence
from io import BytesIO

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from repl_mm.compat import torch_too_old
from repl_mm.deployment import Deployable, RawOutputs, example_inputs, relative_difference, takes_images

# What the dynamo exporter writes without conversion.
OPSET = 18
# What inputs are called, and their axes, by the number of these.
INPUTS = {4: 'images', 2: 'tokens'}
AXES = {4: ('batch', 'channels', 'height', 'width'), 2: ('batch', 'length')}
# Kernels of other libraries sum in another order.
TOLERANCE = 1e-4


@torch.no_grad()
def trace(model: nn.Module, size: Sequence[int]) -> ExportedProgram:
    """The program of a static model, for any number of inputs.

    Height and width, or the length, are free where the model allows it; position embeddings, for one, fix them.

    Args:
        model: As it comes from :func:`repl_mm.deployment.deploy`.
        size: Height and width of the images that it is traced with, or the length of the sequences.

    Raises:
        ValueError: This torch cannot leave sizes free.
    """
    if not hasattr(Dim, 'AUTO'):
        raise torch_too_old('an export', needs='2.6')
    raw, inputs = RawOutputs(model).eval(), example_inputs(model, 2, (3, *size) if takes_images(model) else size)
    if all(part.has_free_size for part in model.modules() if isinstance(part, Deployable)):
        free = {at: Dim.AUTO for at, name in enumerate(AXES[inputs.dim()]) if name != 'channels'}
        program = torch.export.export(raw, (inputs,), dynamic_shapes=(free,))
        other = example_inputs(model, 3, another_shape(inputs.shape)[1:])
        try:
            if relative_difference(program.module()(other), raw(other)) <= TOLERANCE:
                return program
        except (AssertionError, RuntimeError, ValueError):
            pass  # the program does not take this size
    return torch.export.export(raw, (inputs,), dynamic_shapes=({0: Dim.AUTO},))


def another_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that inputs can have as well: larger images, or shorter sequences, as a model has a longest one."""
    if len(shape) == 4:
        return *shape[:2], shape[2] + 64, shape[3] + 128
    return shape[0], (shape[1] + 1) // 2


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
    """Shape (N, C, H, W) of a program's images, or (N, T) of its tokens, free axes by name."""
    [name] = program.graph_signature.user_inputs
    [inputs] = [node for node in program.graph.nodes if node.op == 'placeholder' and node.name == name]
    shape = inputs.meta['val'].shape
    return tuple(size if isinstance(size, int) else name for size, name in zip(shape, AXES[len(shape)], strict=True))


def as_torch(program: ExportedProgram) -> bytes:
    """A ``.pt2`` file, for ``torch.export.load``."""
    buffer = BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def as_onnx(program: ExportedProgram, *, model: nn.Module) -> bytes:
    """An ``.onnx`` file of opset ``OPSET``: the input is ``images`` or ``tokens``, outputs are named as the model's."""
    number = len(program.graph_signature.user_outputs)
    graph = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=[INPUTS[len(input_shape(program))]],
        output_names=RawOutputs(model).names(number),
        verbose=False,
    ).model_proto
    _name_axes(graph.graph)
    return graph.SerializeToString()


def _name_axes(graph: onnx.GraphProto) -> None:
    """Call the free axes by names instead of torch's symbols."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {axis.dim_param: name for axis, name in zip(axes, AXES[len(axes)], strict=True)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r'\bs\d+\b', lambda symbol: names.get(symbol[0], symbol[0]), axis.dim_param)


def run_torch(content: bytes, inputs: Tensor) -> list[Tensor]:
    """Outputs of a ``.pt2`` file's content."""
    return list(torch.export.load(BytesIO(content)).module()(inputs))


def run_onnx(content: bytes, inputs: Tensor) -> list[Tensor]:
    """Outputs of an ``.onnx`` file's content by onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(output) for output in session.run(None, {INPUTS[inputs.dim()]: inputs.numpy()})]


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
    other = [
        size if isinstance(axis, int) else another
        for size, another, axis in zip(traced.shape, another_shape(traced.shape), input_shape(program), strict=True)
    ]
    raw, run = RawOutputs(model).eval(), {'torch': run_torch, 'onnx': run_onnx}[format]
    batches = [example_inputs(model, 1, traced.shape[1:]), example_inputs(model, 3, other[1:])]
    return max(relative_difference(run(content, inputs), raw(inputs)) for inputs in batches)
