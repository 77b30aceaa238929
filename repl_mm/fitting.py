"""A warm start: the computing layers of a network fitted to the blocks of a trained one, without training.

Three steps: coefficients in weight space, coefficients and norms in activation space, the statistics of batch norms.
``docs/fine_tuning.md`` says what they bring.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from repl_mm.adaptation import adaptive_blocks
from repl_mm.layers import ComputingLayer, read
from repl_mm.layers.least_squares import LeastSquares
from repl_mm.surgery import check_checkpoint, computing_layers, stages_with_sites

Forward = Callable[[nn.Module, Any], Any]


@dataclass
class WarmStart:
    """What a warm start did.

    Attributes:
        distances: Of each site by name, the distance that is left in weight space over the removed weight's norm, both
            squared; None where the form borrows no weights.
        unexplained: The squared error that is left of each site over the square of what its block adds to its input.
        norms: How many batch norms got new statistics where the forward pass runs them.
        kept: Names of the others, which the network holds in eval mode.
    """

    distances: dict[str, float | None] = field(default_factory=dict)
    unexplained: dict[str, float] = field(default_factory=dict)
    norms: int = 0
    kept: list[str] = field(default_factory=list)


def warm_start(
    network: nn.Module, reference: nn.Module, batches: Iterable[Any], *, forward: Forward | None = None
) -> WarmStart:
    """Give a network with computing layers the weights of a trained one, and fit the layers in closed form.

    No gradient is computed, and of the features the first two moments are kept alone. Repeated with the same batches it
    gives the same bits on a CPU.

    Args:
        network: The network with sites, changed in place. Its mode is kept.
        reference: The trained network without sites, of the same architecture.
        batches: Inputs, to be gone through twice for each site and once more; a list, or a loader without shuffling.
        forward: How a batch is given to a network; ``network(batch)`` by default.

    Returns:
        What was found, by site.

    Raises:
        ValueError: The reference is another network or has sites itself; there is no batch, or no site to fit; a
            feature is not finite. The network is then as it was.
    """
    forward = forward or (lambda model, batch: model(batch))
    sites = check_pair(network, reference)
    if iter(batches) is batches:
        raise ValueError('the batches are gone through many times: give a list or a loader, not an iterator')
    if next(iter(batches), None) is None:
        raise ValueError('there is no batch to fit to: give some')
    before, report = copy.deepcopy(network.state_dict()), WarmStart()
    try:
        adopt_weights(network, reference)
        fit_weights(sites, reference, report)
        fit_features(network, sites, reference, batches, forward, report)
        estimate_norms(network, batches, forward, report)
    except BaseException:
        network.load_state_dict(before)
        raise
    return report


def check_pair(network: nn.Module, reference: nn.Module) -> dict[str, ComputingLayer]:
    """The computing layers of a network by name, if another is what it was before blocks were replaced.

    Raises:
        ValueError: It is not, or there are none.
    """
    if adaptive_blocks(network):
        raise ValueError(
            "the sites of policy 'adaptive' change in training: warm-start a network with a fixed policy, such as "
            'the one of its start'
        )
    sites = {name: module for name, module in network.named_modules() if isinstance(module, ComputingLayer)}
    if all(layer.fit() is None for layer in sites.values()):
        raise ValueError('the network has no computing layers to fit: give one with sites, not dropped or deployed')
    if computing_layers(reference):
        raise ValueError('the reference has computing layers itself: give the network as it was trained end to end')
    own, theirs = network.state_dict(), reference.state_dict()
    at_sites = tuple(f'{name}.' for name in sites)
    check_checkpoint(stages_with_sites(network), theirs)
    strange = [
        key
        for key in own
        if not key.startswith(at_sites) and (key not in theirs or own[key].shape != theirs[key].shape)
    ]
    strange += [key for key in theirs if key not in own and not key.startswith(at_sites)]
    if strange:
        raise ValueError(
            f'the reference is another network, {strange[0]} is not the same in both: give the one that the sites '
            'were chosen in'
        )
    return sites


def adopt_weights(network: nn.Module, reference: nn.Module) -> None:
    """Load what is not replaced."""
    network.load_state_dict(reference.state_dict(), strict=False)


@torch.no_grad()
def fit_weights(sites: Mapping[str, ComputingLayer], reference: nn.Module, report: WarmStart) -> None:
    """Set the coefficients so that the synthesised weights come nearest to the removed ones (Eq. 72-75)."""
    for name, layer in sites.items():
        if (fit := layer.fit()) is not None:
            report.distances[name] = fit.nearest(read(reference.get_submodule(name)))


@torch.no_grad()
def fit_features(
    network: nn.Module,
    sites: Mapping[str, ComputingLayer],
    reference: nn.Module,
    batches: Iterable[Any],
    forward: Forward,
    report: WarmStart,
) -> None:
    """Set each layer's own parameters by least squares, one after the other from the front.

    A layer is fitted on the features that the network has there as changed so far, its norms' statistics included,
    towards what the reference's block gives in front of its last activation.

    Raises:
        ValueError: A feature is not finite.
    """
    fits = {name: fit for name, layer in sites.items() if (fit := layer.fit()) is not None}
    with _eval_mode(network, reference):
        for name, fit in track(fits.items(), 'Fitting sites: ', transient=True):
            estimate_norms(network, batches, forward, report)
            block, squares = reference.get_submodule(name), LeastSquares()
            for batch in batches:
                x = _capture(network, batch, forward, inputs_of=sites[name])[0]
                goal = _goal(reference, batch, forward, block=block, aim=fit.aim(block))
                squares.add(fit.rows(x, goal - x))
            try:
                solution = squares.solve(intercept=fit.intercept)
            except ValueError as error:
                raise ValueError(f'at {name} {error}') from None
            fit.adopt(solution)
            report.unexplained[name] = solution.unexplained


@torch.no_grad()
def estimate_norms(network: nn.Module, batches: Iterable[Any], forward: Forward, report: WarmStart) -> None:
    """Estimate the statistics of batch norms anew, as averages over the batches.

    Of those that the network keeps in eval mode while it trains (``norm_eval``, frozen stages), only the computing
    layers' own are: the others are not the network's to change.
    """
    with _eval_mode(network):
        network.train()
        norms = {name: m for name, m in network.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
        own = {norm for layer in computing_layers(network) for norm in layer.modules()}
        chosen = [norm for norm in norms.values() if norm.training or norm in own]
        network.eval()
        before = [(norm.momentum, {key: value.clone() for key, value in norm.named_buffers()}) for norm in chosen]
        for norm in chosen:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # a cumulative average
        try:
            for batch in batches if chosen else ():
                forward(network, batch)
        finally:
            for norm, (momentum, buffers) in zip(chosen, before, strict=True):
                norm.momentum = momentum
                if int(norm.num_batches_tracked) == 0:  # it has no part in this forward pass, as an auxiliary head's
                    for key, value in buffers.items():
                        getattr(norm, key).copy_(value)
    report.norms, report.kept = len(chosen), [name for name, norm in norms.items() if norm not in chosen]


class _Reached(Exception):  # noqa: N818 (it is none)
    """What was looked for has been seen; the rest of the forward pass is not needed."""


def _capture(network: nn.Module, batch: Any, forward: Forward, *, inputs_of: nn.Module) -> tuple[Tensor, ...]:
    """The positional inputs of a module inside a network."""
    found: list[tuple[Tensor, ...]] = []

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args)
        raise _Reached

    _run(network, batch, forward, inputs_of.register_forward_pre_hook(look))
    return found[0]


def _goal(network: nn.Module, batch: Any, forward: Forward, *, block: nn.Module, aim: nn.Module) -> Tensor:
    """A block's output; in front of its last activation where ``aim`` ends its residual branch."""
    if aim is block:
        found: list[Tensor] = []

        def look(_: nn.Module, args: Any, out: Any) -> None:
            found.append(out[0] if isinstance(out, tuple) else out)
            raise _Reached

        _run(network, batch, forward, block.register_forward_hook(look))
        return found[0]
    x = _capture(network, batch, forward, inputs_of=block)[0]
    branch: list[Tensor] = []
    handle = aim.register_forward_hook(lambda _, args, out: branch.append(out.clone()))  # ReLU may write into it
    try:
        block(x)
    finally:
        handle.remove()
    return branch[0] + x


def _run(network: nn.Module, batch: Any, forward: Forward, handle: Any) -> None:
    try:
        forward(network, batch)
    except _Reached:
        return
    finally:
        handle.remove()
    raise ValueError('the forward pass does not come to a block that is replaced: give a `forward` that does')


@contextmanager
def _eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks in eval mode, and each of their modules back into its own."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
