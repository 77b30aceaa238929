"""What single sites save: one block of each stage and the computing layer in its place, each by itself.

How long a forward and a backward pass of either takes, and what either keeps for the backward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from repl_mm.backbones.configs import with_repl
from repl_mm.backbones.stochastic_depth import disabled_stochastic_depth
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.fake import FakeStep, OperatorCosts
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.timing import time_interleaved
from repl_mm.benchmark.training import MIB, as_written, measure_memory
from repl_mm.sites import Layout, Site


@dataclass
class SiteProfile:
    """What a step of the network costs, and what one site of each stage saves of it.

    Attributes:
        layout: The blocks of the network.
        eligible: Positions that can be replaced, and where something is trained.
        frozen: Positions that can be replaced, and where nothing is.
        mib: Peak memory of a step in MiB.
        seconds: Time of a step.
        site_seconds: For each form, in the order in which they were given, what one site of a stage saves of it.
        site_mib: The same of the memory.
    """

    layout: Layout
    eligible: list[Site]
    frozen: list[Site]
    mib: float
    seconds: float = 0
    site_seconds: list[dict[int, float]] = field(default_factory=list)
    site_mib: list[dict[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class _Measured:
    """Times on this machine."""

    seconds: float
    device: torch.device
    build = staticmethod(TrainingStep)

    def times(self, calls: Mapping[str, Callable[[], None]], *, share: float = 1) -> dict[str, list[float]]:
        return time_interleaved(calls, seconds=self.seconds * share, least=5, device=self.device)

    def optimizer(self, step: TrainingStep) -> float:
        return median(phase[2] for phase in step.phases)


@dataclass(frozen=True)
class _Predicted:
    """Times on a device that is not there."""

    device: Device

    def build(self, config: Config, **options: Any) -> FakeStep:
        return FakeStep(config, **options | dict(device=torch.device('cpu')))

    def times(self, calls: Mapping[str, Callable[[], None]], *, share: float = 1) -> dict[str, list[float]]:
        found = {}
        for name, call in calls.items():
            with OperatorCosts(self.device) as costs:
                call()
            found[name] = [costs.seconds]
        return found

    def optimizer(self, step: TrainingStep) -> float:
        step.backward()
        return self.times({'step': step.update})['step'][0]


def measure_site_profile(
    config: Config, forms: Sequence[Mapping[str, Any]], *, seconds: float, **options: Any
) -> SiteProfile:
    """Time and weigh one block of each stage beside each computing layer that can take its place.

    Args:
        config: Config whose backbone is ours and replaces nothing.
        forms: Options of a site.
        seconds: Time for each measurement.
        **options: As for :class:`repl_mm.benchmark.step.TrainingStep`; with a :class:`repl_mm.benchmark.devices.Device`
            as ``device``, and within :func:`repl_mm.benchmark.fake.fake_tensors`, all is predicted for it.

    Returns:
        What was measured; where stochastic depth skips blocks, memory and single blocks without it, as in the steps of
        a run that need most.

    Raises:
        ValueError: No position can be replaced.
    """
    device = options['device']
    how = _Predicted(device) if isinstance(device, Device) else _Measured(seconds, device)
    step = how.build(config, **options)
    backbone = step.model.backbone
    stages, layout = list(backbone.repl_stages().values()), backbone.layout()
    inputs: dict[int, tuple[Any, ...]] = {}
    eligible: list[Site] = []
    frozen: list[Site] = []
    for site in layout.eligible():
        trained = any(p.requires_grad for p in stages[site.stage][site.index].parameters())
        (eligible if trained else frozen).append(site)
    if not eligible:
        why = 'all positions lie in frozen stages' if frozen else f'none of its blocks {layout.blocks} can be replaced'
        raise ValueError(f'{layout.name} has no position to replace: {why}')
    representatives = list({site.stage: site for site in eligible}.values())
    handles = [
        stages[site.stage][site.index].register_forward_pre_hook(
            lambda _, args, stage=site.stage: inputs.update({stage: (args[0].detach(), *args[1:])})
        )
        for site in representatives
    ]
    with disabled_stochastic_depth(step.model), as_written(options['backend']):
        step()
        for handle in handles:
            handle.remove()
        parts = SiteProfile(layout, eligible, frozen, mib=measure_memory(step)['total'])
    parts.seconds = median(how.times({'E2E': step})['E2E'])
    # What a parameter costs beside the passes of its block.
    weights = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
    optimizer_seconds = how.optimizer(step) / weights
    states = [value for state in step.wrapper.optimizer.state.values() for value in state.values()]
    optimizer_mib = (4 + sum(value.nbytes for value in states if isinstance(value, Tensor)) / weights) / MIB
    blocks = {site.stage: stages[site.stage][site.index] for site in representatives}
    for form in forms:
        sites = [tuple(site) for site in representatives]
        # One block of each stage is replaced.
        replaced = how.build(with_repl(config, policy='explicit', sites=sites, **form), **options)
        theirs = [*replaced.model.backbone.repl_stages().values()]
        layers = {site.stage: theirs[site.stage][site.index] for site in representatives}
        gained_seconds, gained_mib = {}, {}
        for stage, block in blocks.items():
            pair = (block, layers[stage])
            calls = {name: _pass(m, inputs[stage], step) for name, m in zip(('block', 'layer'), pair, strict=True)}
            with disabled_stochastic_depth(block):
                times = how.times(calls, share=1 / 8)
                kept = _kept_mib(block, inputs[stage], step) - _kept_mib(layers[stage], inputs[stage], step)
            parameters = _numbers(block) - _numbers(layers[stage])
            in_passes = median(np.subtract(times['block'], times['layer']).tolist())
            gained_seconds[stage] = in_passes + parameters * optimizer_seconds
            gained_mib[stage] = kept + parameters * optimizer_mib
        parts.site_seconds.append(gained_seconds)
        parts.site_mib.append(gained_mib)
    return parts


def _pass(module: nn.Module, inputs: tuple[Any, ...], step: TrainingStep) -> Callable[[], None]:
    """A call of a forward and a backward pass of one block, on what the network calls it with."""
    x, *rest = inputs
    x = x.clone().requires_grad_()
    wanted = [x, *(p for p in module.parameters() if p.requires_grad)]

    def call() -> None:
        with step.precision():
            out = module(x, *rest)
        torch.autograd.grad(out, wanted, torch.ones_like(out))
        if step.device.type == 'cuda':
            torch.cuda.synchronize()

    return call


def _numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kept_mib(module: nn.Module, inputs: tuple[Any, ...], step: TrainingStep) -> float:
    """What a block keeps of a batch for its backward pass; weights, which are kept once for any batch, are left out."""

    first, *rest = inputs

    def kept(x: Tensor) -> int:
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # which tensors without data have too
            return tensor

        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saved, step.precision():
            out = module(x.clone().requires_grad_(), *rest)
        assert out.requires_grad  # alive until here, and with it all that it keeps
        return sum(storage.nbytes() for storage in found.values())

    return (kept(torch.cat([first] * 2)) - kept(first)) / MIB
