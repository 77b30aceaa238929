"""Replaced networks that keep a trained network's weights, as the paper's Section V compares them."""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repl_mm.analysis.features import blocks_of, forward
from repl_mm.analysis.lipschitz import Block
from repl_mm.deployment import deploy
from repl_mm.fitting import warm_start
from repl_mm.layers import ComputingLayer
from repl_mm.surgery import computing_layers


def fit_sites(network: BaseModel, reference: BaseModel, batches: Iterable[Any]) -> None:
    """Fit the computing layers of a network to a trained one, and leave all that is retained exactly as it was.

    Args:
        network: With sites, changed in place.
        reference: The trained network.
        batches: As a loader gives them.
    """
    with _held_norms(network):
        warm_start(network, reference, batches, forward=forward)
    network.eval()


@contextmanager
def _held_norms(network: nn.Module) -> Iterator[None]:
    """Keep the retained norms in eval mode whatever mode the network is set to; theory lets the sites alone differ."""
    own = {norm for layer in computing_layers(network) for norm in layer.modules()}
    held = [module for module in network.modules() if isinstance(module, _BatchNorm) and module not in own]
    for norm in held:
        norm.eval()
        norm.train = lambda mode=True, norm=norm: norm
    try:
        yield
    finally:
        for norm in held:
            del norm.train


def chains(network: BaseModel, reference: BaseModel, batch: Any) -> tuple[list[Block], list[Block]]:
    """The blocks of a network without and with sites as functions of features; retained ones are the same objects.

    Args:
        network: With sites, and the retained weights of
        reference: the trained network.
        batch: One that shows what else blocks are given, such as the size of the token grid.

    Raises:
        ValueError: What a block gives is not what the next one is given.
    """
    records = [_record(model, batch) for model in (reference, network)]
    for name, (given, _, out), (after, _, _) in zip(
        list(records[0])[1:], list(records[0].values()), list(records[0].values())[1:], strict=False
    ):
        if out.shape != after.shape or not torch.equal(out, after):
            raise ValueError(
                f'{name} is not given what the block before it gives {tuple(given.shape[1:])}: the bound is for '
                'backbones whose blocks follow one another, such as ResNets and ViTs'
            )
    original: list[Callable[[Tensor], Tensor]] = []
    replaced: list[Callable[[Tensor], Tensor]] = []
    # The deployed network computes the same, without synthesising weights at each call.
    theirs, ours, static = (blocks_of(model) for model in (reference, network, deploy(network)))
    for name, (_, others, _) in records[0].items():
        original.append(partial(_call, theirs[name], others))
        is_site = isinstance(ours[name], ComputingLayer)
        replaced.append(partial(_call, static[name], others) if is_site else original[-1])
    return original, replaced


def _call(block: nn.Module, others: tuple[Any, ...], x: Tensor) -> Tensor:
    out = block(x, *others)
    return out[0] if isinstance(out, tuple) else out


@torch.no_grad()
def _record(model: BaseModel, batch: Any) -> dict[str, tuple[Tensor, tuple[Any, ...], Tensor]]:
    """Features in, other inputs and features out of each block."""
    found: dict[str, tuple[Tensor, tuple[Any, ...], Tensor]] = {}

    def keep(name: str, args: tuple[Any, ...], out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out
        found[name] = args[0].clone(), args[1:], out.clone()

    handles = [
        block.register_forward_hook(lambda _, args, out, name=name: keep(name, args, out))
        for name, block in blocks_of(model).items()
    ]
    try:
        forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def chain_inputs(reference: BaseModel, batches: Iterable[Any]) -> Iterator[Tensor]:
    """What the first block is given, batch by batch."""
    for batch in batches:
        yield next(iter(_record(reference, batch).values()))[0]


@dataclass(frozen=True)
class GradientBias:
    """Gradients of the loss for the retained parameters, with and without sites (Eq. 61-63).

    Attributes:
        bias: ||grad J - grad l||, of the gradients averaged over the batches.
        gradient: ||grad l||.
        cosine: Between the two.
        constant: G of Eq. 62 as it is measured: the largest ratio, over the batches, of the difference of the gradients
            to the mean distance of the features behind the last block.
    """

    bias: float
    gradient: float
    cosine: float
    constant: float


def gradient_bias(network: BaseModel, reference: BaseModel, batches: Iterable[Any]) -> GradientBias:
    """Compare what the two networks would change in the parameters that they share; norms in eval mode.

    Args:
        network: With sites, and the retained weights of
        reference: the trained network.
        batches: Of training, as a loader gives them.

    Raises:
        ValueError: There is no batch, or a gradient is not finite.
    """
    shared = _shared(network, reference)
    sums: list[Any] = [0.0, 0.0]  # then tensors
    number, constant = 0, 0.0
    for batch in batches:
        ours, theirs = ([*_gradient(model, shared, batch)] for model in (network, reference))
        apart = float((ours[1] - theirs[1]).flatten(1).norm(dim=1).mean())
        if apart > 0:
            constant = max(constant, float((ours[0] - theirs[0]).norm()) / apart)
        sums, number = [sums[0] + ours[0], sums[1] + theirs[0]], number + 1
    if not number:
        raise ValueError('there is no batch to look at: check the data set and --batches')
    own, other = (total / number for total in sums)
    if not (torch.isfinite(own).all() and torch.isfinite(other).all()):
        raise ValueError('the gradients hold NaN or infinite values: look at the weights and images')
    cosine = float(torch.nn.functional.cosine_similarity(own, other, dim=0))
    return GradientBias(float((own - other).norm()), float(other.norm()), cosine, constant)


def _shared(network: nn.Module, reference: nn.Module) -> list[str]:
    theirs = dict(reference.named_parameters())
    at_sites = tuple(f'{name}.' for name, module in network.named_modules() if module in computing_layers(network))
    return [
        name
        for name, value in network.named_parameters()
        if value.requires_grad and name in theirs and not name.startswith(at_sites)
    ]


def _gradient(model: BaseModel, names: list[str], batch: Any) -> tuple[Tensor, Tensor]:
    """The loss's gradient for some parameters as one float64 vector, and what the last block gives."""
    out: list[Tensor] = []
    last: Callable[..., Any] = lambda _, args, value: out.append(  # noqa: E731
        (value[0] if isinstance(value, tuple) else value).detach().clone()
    )
    handle = list(blocks_of(model).values())[-1].register_forward_hook(last)
    try:
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
    finally:
        handle.remove()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    flat = [
        (torch.zeros_like(parameters[name]) if value is None else value).flatten().double()
        for name, value in zip(names, gradients, strict=True)
    ]
    return torch.cat(flat), out[0]
