"""What training costs, predicted from the method's equations and counted on the network itself.

Counted: every operation and every saved tensor of a forward and a backward pass, on tensors without data.
Predicted: E2E's count, less the removed blocks, plus the computing layers (Eq. 42, 53, 58), each by its own formula.

Symbols of the formulas, per image:
    C, B, q, g   channels of a block, of a Bottleneck's middle convolution, kernel size, groups
    A            positions of a feature map, height times width
    T, D, F, H   tokens, width, hidden width of the MLP, heads
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from mmcv.cnn.bricks import DropPath
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from repl_mm.analysis.complexity import RealLinspace
from repl_mm.backbones.stochastic_depth import remove_stochastic_depth
from repl_mm.deployment import RawOutputs
from repl_mm.layers.memory import draw
from repl_mm.sites import choose
from repl_mm.surgery import computing_layers

BYTES = 4  # of a float32
# Counted together: more than one, as some heads normalise over a batch whose images have shrunk to a pixel, and so many
# that a part of the batch is a whole number of images.
IMAGES = 64


@dataclass(frozen=True)
class Cost:
    """What one image, or the network as such, costs.

    Attributes:
        parameters: Number of parameters.
        trainable: Number of those that an optimizer changes.
        forward: Floating-point operations of a forward pass of one image, two per multiply-add; convolutions, matrix
            products and attention, as torch counts them.
        backward: The same of a backward pass.
        activations: Bytes per image that the forward pass keeps for the backward pass.
    """

    parameters: int = 0
    trainable: int = 0
    forward: int = 0
    backward: int = 0
    activations: int = 0

    def __add__(self, other: Self) -> Self:
        return Cost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __rmul__(self, factor: int) -> Self:
        return Cost(*(factor * value for value in self.values()))

    def __sub__(self, other: Self) -> Self:
        return Cost(*(a - b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """All quantities, in the order of the attributes."""
        return self.parameters, self.trainable, self.forward, self.backward, self.activations


def _conv_backward(
    grad: Sequence[int], _input: Sequence[int], weight: Sequence[int], *options: Any, out_shape: Any
) -> int:
    """Operations of a convolution's backward pass: those of the forward pass for each gradient that is asked for.

    torch's own formula counts the weight gradient of a grouped convolution once for every group.
    """
    asked = options[-1]
    return 2 * grad[0] * math.prod(grad[2:]) * math.prod(weight) * sum(asked[:2])


def variants(config: Config) -> dict[str, Config]:
    """The config as E2E, with its blocks dropped, as RepL, and deployed.

    Raises:
        ValueError: It replaces nothing.
    """
    if not config.model.get('backbone', {}).get('repl'):
        raise ValueError(f"{config.filename} replaces nothing: give one with repl=dict(policy='interval', every=4)")
    found = {name: copy.deepcopy(config) for name in ('E2E', 'drop', 'RepL', 'deployed')}
    found['E2E'].model.backbone.repl = None
    found['drop'].model.backbone.repl.form = 'drop'
    found['drop'].model.backbone.repl.pop('mlp_fusion', None)
    found['deployed'].model.backbone.deploy = True
    return found


def build_empty(config: Config) -> nn.Module:
    """The model of a config in train mode, without memory for its tensors."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope')), torch.device('meta'), RealLinspace():
        model = MODELS.build(config.model)
        for layer in computing_layers(model):
            if hasattr(layer, 'norm'):
                layer.norm.warmed_up = True  # as most of a training has it; empty tensors cannot be asked
        if hasattr(model.backbone, 'stages'):
            # A step without skips; empty tensors cannot draw.
            remove_stochastic_depth(block for blocks in model.backbone.stages().values() for block in blocks)
        return model.train()


def count_cost(config: Config, input_shape: Sequence[int]) -> Cost:
    """Count on the model of a config, up to its raw outputs; ``input_shape`` is (C, H, W)."""
    model = build_empty(config)
    parameters = list(model.parameters())
    mapping = {torch.ops.aten.convolution_backward: _conv_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        outputs = RawOutputs(model)(torch.empty(IMAGES, *input_shape, device='meta'))
        forward = counter.get_total_flops()
        sum(output.sum() for output in outputs if output.requires_grad).backward()
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        forward=forward // IMAGES,
        backward=(counter.get_total_flops() - forward) // IMAGES,
        activations=_count_activations(config, input_shape),
    )


def _count_activations(config: Config, input_shape: Sequence[int]) -> int:
    """Bytes that one more image in a batch adds to what is saved for the backward pass.

    What does not grow with the batch, such as synthesised weights, is no activation. Shared memory counts once.
    """
    # Fake tensors have the CPU's kernels; the meta device would take attention apart.
    model = build_empty(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device='cpu')
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        more, fewer = (_saved_bytes(model, own, (images, *input_shape)) for images in (IMAGES + 1, IMAGES))
        return more - fewer


def _saved_bytes(model: nn.Module, own: set[int], shape: Sequence[int]) -> int:
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage  # kept, so that no other one gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = RawOutputs(model)(torch.empty(*shape))
        assert outputs  # alive until here, and with them all that they save
    return sum(storage.nbytes() for storage in saved.values())


def predict_cost(e2e: nn.Module, counted: Cost, config: Config, input_shape: Sequence[int]) -> dict[str, Cost]:
    """What dropping, replacing and deploying make of E2E's cost.

    Args:
        e2e: The E2E model, see :func:`build_empty`.
        counted: Its cost.
        config: The config with sites.
        input_shape: (C, H, W).

    Raises:
        ValueError: A site lies in a frozen stage, where no backward pass goes.
    """
    stages, repl = list(e2e.backbone.stages().values()), dict(config.model.backbone.repl)
    form, fusion, recompute = repl.pop('form', None), repl.pop('mlp_fusion', False), repl.pop('recompute', False)
    drawn = draw(IMAGES, repl.pop('grad_fraction', 1)) / IMAGES
    sites = choose(e2e.backbone.layout(), **repl).sites
    blocks = {site: stages[site.stage][site.index] for site in sites}
    shapes = _input_shapes(e2e, blocks, input_shape)
    removed, placed, static = Cost(), Cost(), Cost()
    for site, block in blocks.items():
        if not all(p.requires_grad for p in block.parameters()):
            raise ValueError(f'the site {tuple(site)} lies in a frozen stage: choose others, or freeze fewer stages')
        if hasattr(block, 'attn'):
            costs = _transformer(block, shapes[site], form=form, fusion=fusion, recompute=recompute)
        else:
            costs = _residual(block, shapes[site], recompute=recompute, drawn=drawn)
        removed, placed, static = removed + costs[0], placed + costs[1], static + costs[2]
    kept = counted - removed
    if form == 'drop':
        placed = static = Cost()
    return {'E2E': counted, 'drop': kept, 'RepL': kept + placed, 'deployed': kept + static}


def _input_shapes(e2e: nn.Module, blocks: Mapping[Any, nn.Module], input_shape: Sequence[int]) -> dict[Any, torch.Size]:
    """What each block gets for one image."""
    shapes = {}
    handles = [
        block.register_forward_hook(lambda _, args, __, site=site: shapes.update({site: args[0].shape}))
        for site, block in blocks.items()
    ]
    with torch.no_grad():
        RawOutputs(e2e)(torch.empty(2, *input_shape, device='meta'))
    for handle in handles:
        handle.remove()
    return shapes


def _block(parameters: int, forward: int, frozen: float, kept: int) -> Cost:
    """A block: ``frozen`` of its ``forward`` operations have weights without gradients; it keeps ``kept`` floats."""
    return Cost(parameters, parameters, forward, round(2 * forward - frozen), BYTES * kept)


def _recomputed(operations: int, kept: int) -> Cost:
    """What computing again in the backward pass adds, and what need not be kept for it."""
    return Cost(backward=operations, activations=-BYTES * kept)


def _residual(block: nn.Module, shape: torch.Size, *, recompute: bool, drawn: float) -> tuple[Cost, Cost, Cost]:
    """Removed block, computing layer and deployed layer (Eq. 43-44 and 46-47, and their operations)."""
    channels, positions = shape[1], shape[2] * shape[3]
    order = Cost(activations=8 * (drawn < 1))  # in which images are drawn
    if not hasattr(block, 'conv3'):
        kernel = block.conv1.weight.numel()  # C^2 q^2
        conv, map_ = 2 * positions * kernel, channels * positions
        # Each norm keeps its input, each ReLU its output.
        return (
            _block(2 * kernel + 4 * channels, 2 * conv, 0, 4 * map_),
            _block(4 * channels, conv, (1 - drawn) * conv, 2 * map_) + recompute * _recomputed(conv, map_) + order,
            _block(kernel + channels, conv, 0, map_),
        )
    middle, kernel = block.conv1.out_channels, block.conv2.weight.numel()  # B, B^2 q^2 / g
    thin, spatial = 2 * positions * channels * middle, 2 * positions * kernel
    weights, forward = 2 * channels * middle + kernel, 2 * thin + spatial
    # The borrowed 1x1 convolutions are read through a stop-gradient.
    frozen = 2 * thin + (1 - drawn) * spatial
    return (
        _block(weights + 4 * middle + 2 * channels, forward, 0, (4 * middle + 2 * channels) * positions),
        _block(2 * middle + 2 * channels, forward, frozen, (2 * middle + 2 * channels) * positions)
        + recompute * _recomputed(thin, channels * positions)
        + order,
        _block(weights + channels, forward, 0, (2 * middle + channels) * positions),
    )


def _transformer(
    block: nn.Module, shape: torch.Size, *, form: str | None, fusion: bool, recompute: bool
) -> tuple[Cost, Cost, Cost]:
    """Removed block, computing layer and deployed layer (Eq. 49-51 and 57)."""
    tokens, width = shape[1:]
    heads, hidden = block.attn.num_heads, block.ffn.feedforward_channels
    headwise = form == 'headwise'
    projection, mlp, attention = 2 * tokens * width**2, 4 * tokens * width * hidden, 4 * tokens**2 * width
    mlp_parameters = 2 * width * hidden + hidden + width
    norms = 2 * width  # parameters of one layer norm
    removed = _block(
        4 * width**2 + 4 * width + mlp_parameters + 2 * norms,
        4 * projection + mlp + attention,
        0,
        # Inputs and statistics of both norms, inputs of the linear layers and of GELU, q, k, v, and softmax's sums; and
        # one number for each branch that stochastic depth may switch off.
        tokens * (8 * width + 2 * hidden + 4 + heads)
        + sum(isinstance(module, DropPath) and module.drop_prob > 0 for module in block.modules()),
    )
    # A projection after a norm keeps the norm's output as well.
    placed = _block(2 * heads if headwise else 2, projection, 0, tokens * width + headwise * tokens * (width + 2))
    static = _block(
        width**2 + width + headwise * norms, projection, 0, tokens * width + headwise * tokens * (width + 2)
    )
    if fusion:
        # All weights are borrowed: no gradients, and no inputs kept but those of the norm and of GELU.
        placed += _block(0, mlp, mlp, tokens * (width + hidden + 2))
        placed += recompute * _recomputed(mlp // 2, tokens * hidden)
        static += _block(mlp_parameters + norms, mlp, 0, tokens * (2 * width + 2 * hidden + 2))
    return removed, placed, static


def optimizer_bytes(model: nn.Module, optimizer: Mapping[str, Any]) -> int:
    """Bytes of state that an optimizer of a config keeps for a model, after one step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    built = OPTIMIZERS.build(dict(optimizer, params=parameters, foreach=False))
    built.step()
    states = [value for state in built.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in states if value.dim())
