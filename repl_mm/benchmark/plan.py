"""Which sites reach a saving that is asked for, predicted block by block and measured on this machine.

A prediction takes one block of each stage and the computing layer in its place by themselves: how long a forward and a
backward pass of either takes, and what either keeps for the backward pass. What is said to be reached is measured
on the whole network, against the network that replaces nothing, in interleaved rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config

from repl_mm.backbones.configs import backbone_class, replaceable, with_repl
from repl_mm.benchmark.site_profile import SiteProfile, measure_site_profile
from repl_mm.benchmark.training import measure_steps
from repl_mm.layers.config import variants_of
from repl_mm.sites import Site, most, spread

TRIALS = 6  # measurements of whole networks at most


@dataclass(frozen=True)
class Saving:
    """SiteProfile of a step's time and of its peak memory; what is not asked for is None."""

    time: float | None
    memory: float | None

    def reaches(self, target: 'Saving') -> bool:
        """Whether this is at least what ``target`` asks for."""
        return self.share_of(target) >= 1

    def share_of(self, target: 'Saving') -> float:
        """How much of the target is reached, by the part that is reached least."""
        pairs = ((self.time, target.time), (self.memory, target.memory))
        return min(own / asked for own, asked in pairs if asked is not None)


@dataclass(frozen=True)
class Trial:
    """A choice of sites, with the predicted and the measured saving.

    Attributes:
        repl: The option of the backbone.
        predicted: From single blocks.
        measured: On the whole network, or None.
    """

    repl: dict[str, Any]
    predicted: Saving
    measured: Saving | None = None


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        backbone: Type of the backbone to set in the config.
        chosen: The trial with the fewest sites that reaches the target, or else the one that comes nearest.
        reached: Whether it reaches the target.
        trials: All that were measured.
        positions: How many blocks can be replaced, and how many at once.
        bound: What leaving out as many blocks as can be replaced saves, where the target is not reached.
        frozen: Positions that were left out, as nothing is trained there.
    """

    backbone: str
    chosen: Trial
    reached: bool
    trials: tuple[Trial, ...]
    positions: tuple[int, int]
    bound: Saving | None = None
    frozen: tuple[Site, ...] = ()


def make_plan(
    config: Config,
    target: Saving,
    *,
    batch: int,
    size: tuple[int, int],
    backend: str,
    device: torch.device,
    seconds: float,
    report: Callable[[str], None] = print,
) -> Plan:
    """Find the fewest sites, and the form, that reach a saving.

    Args:
        config: Config of a classifier, detector or segmenter; what it replaces already is not looked at.
        target: The saving to reach.
        batch: Images in a batch.
        size: Height and width of the images.
        backend: As for :class:`repl_mm.benchmark.step.TrainingStep`.
        device: Where to train.
        seconds: Time for each measurement.
        report: Is told what goes on.

    Raises:
        ValueError: A backbone without positions to replace.
    """
    config = replaceable(config)
    forms = variants_of(backbone_class(config).forms()[0])
    options = dict(batch=batch, size=size, backend=backend, device=device)
    report('Timing the network, and one block of each stage with what can stand in its place')
    parts = measure_site_profile(config, forms, seconds=seconds, **options)
    at_once = most(parts.eligible)
    candidates = [
        _predict(parts, number, form, index, target)
        for number in range(1, at_once + 1)
        for index, form in enumerate(forms)
    ]

    def saving(repl: Mapping[str, Any]) -> Saving:
        variants = dict(E2E=config, RepL=with_repl(config, **repl))
        cost = measure_steps(variants, model='', seconds=seconds, **options)[1]
        if cost.time is None:
            raise ValueError(f'a batch of {batch} does not fit into memory twice, for E2E and RepL: take a smaller one')
        return Saving(1 - cost.time, 1 - cost.memory)

    trials = list(_search(candidates, target, saving, report))
    reached = [trial for trial in trials if trial.measured.reaches(target)]
    if reached:
        chosen = min(reached, key=lambda trial: len(trial.repl['sites']))
    else:
        chosen = max(trials, key=lambda trial: trial.measured.share_of(target))
    bound = None
    if not reached:
        report('Leaving the same blocks out altogether, which is the most that any form can save')
        bound = saving(dict(policy='explicit', sites=candidates[-1].repl['sites'], form='drop'))
    positions = (len(parts.eligible), at_once)
    return Plan(config.model.backbone.type, chosen, bool(reached), tuple(trials), positions, bound, tuple(parts.frozen))


def _search(
    candidates: Sequence[Trial],
    target: Saving,
    measure: Callable[[Mapping[str, Any]], Saving],
    report: Callable[[str], None],
) -> Iterator[Trial]:
    """Measure candidates, the fewest sites first, beginning where the prediction says that the target is reached.

    Each measurement corrects the predictions after it.
    """
    left, correction, enough, hopeless = list(candidates), 1.0, None, 0
    for _ in range(TRIALS):
        # Only fewer sites than those that are known to do are of interest.
        left = [c for c in left if enough is None or len(c.repl['sites']) < enough]
        hopeful = [c for c in left if correction * c.predicted.share_of(target) >= 1]
        if hopeful:
            candidate = hopeful[0]
        elif left and enough is None and hopeless < 2:
            hopeless += 1
            candidate = max(left, key=lambda c: c.predicted.share_of(target))
        else:
            return
        left.remove(candidate)
        report(f'Measuring {describe(candidate.repl)}')
        measured = measure(candidate.repl)
        if (expected := candidate.predicted.share_of(target)) > 0:
            correction = min(max(measured.share_of(target) / expected, 0.25), 4.0)
        if measured.reaches(target):
            enough = len(candidate.repl['sites'])
        yield Trial(candidate.repl, candidate.predicted, measured)


def _predict(parts: SiteProfile, number: int, form: Mapping[str, Any], index: int, target: Saving) -> Trial:
    """The best ``number`` sites for the target, and what they save by the sum of their parts."""
    seconds, mib = parts.site_seconds[index], parts.site_mib[index]

    def worth(site: Site) -> int:
        # In hundredths of what is asked for: what differs by less is noise, and then the even spread decides.
        one = Saving(seconds[site.stage] / parts.seconds, mib[site.stage] / parts.mib)
        shares = [own / asked for own, asked in ((one.time, target.time), (one.memory, target.memory)) if asked]
        return round(100 * sum(shares))

    sites = spread(parts.layout, parts.eligible, number=number, worth=worth)
    predicted = Saving(
        sum(seconds[site.stage] for site in sites) / parts.seconds, sum(mib[site.stage] for site in sites) / parts.mib
    )
    return Trial(dict(policy='explicit', sites=[tuple(site) for site in sites], **form), predicted)


def describe(repl: Mapping[str, Any]) -> str:
    """The option as it is written in a config."""
    return f'repl=dict({", ".join(f"{key}={value!r}" for key, value in repl.items())})'
