"""What training costs, predicted from the method's equations and counted on the network itself.

Counted: every operation and every saved tensor of a forward and a backward pass, on tensors without data.
Predicted: E2E's count, less that of the removed blocks, plus the computing layers (Eq. 42, 53, 58), each by the
formula of its form.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, OPTIMIZERS, DefaultScope
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from repl_mm.backbones.configs import BASELINES, e2e_twin, require_sites, with_repl
from repl_mm.backbones.stochastic_depth import remove_stochastic_depth
from repl_mm.deployment import RawOutputs, example_inputs, takes_images
from repl_mm.layers import AdaptiveBlock, Cost
from repl_mm.surgery import computing_layers

# Counted together: more than one, as some heads normalise over a batch whose images have shrunk to a pixel, and so many
# that a part of the batch is a whole number of images.
IMAGES = 64


def convolution_backward_flops(
    grad: Sequence[int], x: Sequence[int], weight: Sequence[int], *options: Any, out_shape: Any
) -> int:
    """Operations of a convolution's backward pass: those of the forward pass for each gradient that is asked for.

    torch's own formula counts the weight gradient of a grouped convolution once for every group.
    """
    transposed, *_, asked = options[-4:]
    positions = x if transposed else grad  # a kernel is laid at each
    return 2 * grad[0] * math.prod(positions[2:]) * math.prod(weight) * sum(asked[:2])


@dataclass(frozen=True)
class Complexity:
    """Size of a model.

    Attributes:
        parameters: Number of parameters.
        trainable: Number of those that an optimizer changes.
        flops: Floating-point operations of one forward pass of one image in evaluation mode, two per multiply-add as in
            Eq. 57 and in torch's counter: convolutions, matrix products and attention. Twice what other tools call
            MACs.
    """

    parameters: int
    trainable: int
    flops: int | None


class RealLinspace(TorchFunctionMode):
    """Keeps ``torch.linspace`` on the CPU: the host libraries read stochastic depth's rates off it as numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs['device'] = 'cpu'
        return func(*args, **kwargs)


def count(config: Config, *, input_shape: Sequence[int] | None) -> Complexity:
    """Size of the model of a config, for one input of ``input_shape``, such as (C, H, W) of an image.

    Where that is unknown there are no operations. Nothing is loaded or initialised, and no memory is taken: parameters
    and inputs are tensors without data.
    """
    with DefaultScope.overwrite_default_scope(config.get('default_scope')), torch.device('meta'), RealLinspace():
        model = MODELS.build(config.model)
    parameters = list(model.parameters())
    sizes = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    if input_shape is None:
        return Complexity(*sizes, None)
    model.eval()
    # The meta device also keeps attention in one piece, which the counter knows; a CPU's kernel it would miss.
    with torch.no_grad(), torch.device('meta'), FlopCounterMode(display=False) as counter:
        model(example_inputs(model, 1, input_shape), mode='tensor')
    return Complexity(*sizes, counter.get_total_flops())


def variants(config: Config) -> dict[str, Config]:
    """The config as E2E, with its blocks dropped, as RepL, and deployed; one of Skip-Attention beside its E2E alone.

    Raises:
        ValueError: It replaces nothing.
    """
    kind = (config.model.get('backbone') or {}).get('type')
    if kind in BASELINES:
        return {'E2E': e2e_twin(config), BASELINES[kind][0]: copy.deepcopy(config)}
    require_sites(config)
    deployed = copy.deepcopy(config)
    deployed.model.backbone.deploy = True
    drop = with_repl(config, **config.model.backbone.repl | dict(form='drop'))
    return {'E2E': e2e_twin(config), 'drop': drop, 'RepL': copy.deepcopy(config), 'deployed': deployed}


def build_empty(config: Config) -> nn.Module:
    """The model of a config in train mode, without memory for its tensors."""
    with DefaultScope.overwrite_default_scope(config.get('default_scope')), torch.device('meta'), RealLinspace():
        model = MODELS.build(config.model)
        for layer in computing_layers(model):
            for norm in layer.norms:
                norm.warmed_up = True  # as most of a training has it; empty tensors cannot be asked
        # A step without skips; empty tensors cannot draw.
        remove_stochastic_depth(model)
        return model.train()


def input_shape_of(config: Config, size: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of one input of the model of a config: (3, *size) of an image, or what another model takes by itself.

    Raises:
        ValueError: A size for a model that takes no images.
    """
    model = build_empty(config)
    if takes_images(model):
        return 3, *(size or (224, 224))
    if size:
        raise ValueError(f'{config.filename} takes no images: leave the size out')
    with torch.device('meta'):
        return tuple(model.example_inputs(1).shape[1:])


def _counter() -> FlopCounterMode:
    formulas = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=formulas)


def count_cost(config: Config, input_shape: Sequence[int]) -> Cost:
    """Count on the model of a config, up to its raw outputs; ``input_shape`` is that of one input."""
    model = build_empty(config)
    parameters = list(model.parameters())
    with torch.device('meta'):
        inputs = example_inputs(model, IMAGES, input_shape)
    with _counter() as counter:
        outputs = RawOutputs(model)(inputs)
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

        def call(images: int) -> Any:
            return RawOutputs(model)(example_inputs(model, images, input_shape)), [], 0

        return _growth(call, model)


def _growth(call: Callable[[int], tuple[Any, Sequence[Tensor], int]], model: nn.Module) -> int:
    """Bytes that one more image adds to what a call saves for the backward pass.

    Args:
        call: Given the number of images it returns the outputs, tensors that do not count, and bytes to add for them.
        model: The module that is called; its parameters and buffers do not count.
    """
    own = [*model.parameters(), *model.buffers()]
    sizes = []
    for images in (IMAGES + 1, IMAGES):
        saved: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor, saved: dict[int, torch.UntypedStorage] = saved) -> Tensor:
            # Kept, so that no other one gets its address.
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs, others, added = call(images)
        left_out = {tensor.untyped_storage()._cdata for tensor in (*own, *others)}
        sizes.append(added + sum(storage.nbytes() for key, storage in saved.items() if key not in left_out))
        assert outputs is not None  # alive until here, and with it all that it saves
    return sizes[0] - sizes[1]


def predict_cost(config: Config, counted: Cost, input_shape: Sequence[int]) -> dict[str, Cost]:
    """What dropping, replacing and deploying make of E2E's cost.

    Args:
        config: A config with sites.
        counted: The cost of its E2E twin.
        input_shape: Shape of one input, such as (C, H, W).

    Raises:
        ValueError: A site lies in a frozen stage, where no backward pass goes.
    """
    e2e, repl = (build_empty(c).backbone for c in (e2e_twin(config), config))
    sites = repl.selection.candidates or repl.selection.sites
    stages, layers = ([*network.repl_stages().values()] for network in (e2e, repl))
    blocks = {site: stages[site.stage][site.index] for site in sites}
    inputs = _inputs(e2e, blocks, input_shape)
    removed, nothing, placed, static = Cost(), Cost(), Cost(), Cost()
    for site, block in blocks.items():
        if not all(p.requires_grad for p in block.parameters()):
            raise ValueError(f'the site {tuple(site)} lies in a frozen stage: choose others, or freeze fewer stages')
        layer, shape = layers[site.stage][site.index], inputs[site][0].shape
        own = count_block(block, inputs[site])
        in_training, deployed = layer.costs(shape, own)
        removed, placed, static = removed + own, placed + in_training, static + deployed
        if isinstance(layer, AdaptiveBlock):
            nothing += layer.beside(own, Cost())
    kept = counted - removed
    return {'E2E': counted, 'drop': kept + nothing, 'RepL': kept + placed, 'deployed': kept + static}


def _inputs(e2e: nn.Module, blocks: Mapping[Any, nn.Module], input_shape: Sequence[int]) -> dict[Any, tuple[Any, ...]]:
    """What each block is called with for a batch of ``IMAGES`` inputs, on tensors without data."""
    inputs: dict[Any, tuple[Any, ...]] = {}
    handles = [
        block.register_forward_pre_hook(lambda _, args, site=site: inputs.update({site: args}))
        for site, block in blocks.items()
    ]
    with torch.no_grad(), torch.device('meta'):
        e2e(example_inputs(e2e, IMAGES, input_shape))
    for handle in handles:
        handle.remove()
    return inputs


def count_block(block: nn.Module, inputs: tuple[Any, ...]) -> Cost:
    """Count on one block, called with ``inputs``; their first is its batch of ``IMAGES`` images."""
    x, *rest = inputs
    parameters = [p.numel() for p in block.parameters()]
    with _counter() as counter:
        out = block(x.requires_grad_(), *rest)
        forward = counter.get_total_flops()
        out.sum().backward()
    fake = copy.deepcopy(block)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake.to_empty(device='cpu')

        def call(images: int) -> Any:
            batch = torch.empty(images, *x.shape[1:], requires_grad=True)
            out = fake(batch, *rest)
            # What it gives is kept, by itself or by the block that follows; and that one gave what it gets.
            return out, [batch, out], out.nbytes

        activations = _growth(call, fake)
    return Cost(
        parameters=sum(parameters),
        trainable=sum(parameters),
        forward=forward // IMAGES,
        backward=(counter.get_total_flops() - forward) // IMAGES,
        activations=activations,
    )


def optimizer_bytes(model: nn.Module, optimizer: Mapping[str, Any]) -> int:
    """Bytes of state that an optimizer of a config keeps for a model, after one step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    built = OPTIMIZERS.build(dict(optimizer, params=parameters, foreach=False))
    built.step()
    states = [value for state in built.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in states if value.dim())
