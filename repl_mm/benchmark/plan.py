"""Which sites reach a saving that is asked for, predicted block by block and measured on this machine.

For a device that is not there, whole networks are predicted where they would be measured. The sites are the fewest, or,
given what each block costs of the score, those that cost least in sum.

A prediction takes one block of each stage and the computing layer in its place by themselves: how long a forward and a
backward pass of either takes, and what either keeps for the backward pass. What is said to be reached is measured
on the whole network, against the network that replaces nothing, in interleaved rounds.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain, groupby, product
from typing import Any

import torch
from mmengine.config import Config

from repl_mm.analysis.recoverability import Losses
from repl_mm.backbones.configs import backbone_class, replaceable, with_repl
from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.fake import fake_tensors
from repl_mm.benchmark.predict import check_predictable, predict_step
from repl_mm.benchmark.site_profile import SiteProfile, measure_site_profile
from repl_mm.benchmark.training import measure_steps
from repl_mm.layers.config import structural_options, variants_of
from repl_mm.sites import Site, most, spread

TRIALS = 6  # measurements of whole networks at most


@dataclass(frozen=True)
class Saving:
    """Shares that are saved of a step's time and of its peak memory; what is not asked for is None."""

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
        price: What is to be little: the number of sites, or the sum of what they cost of the score one by one.
        measured: On the whole network, for a :class:`repl_mm.benchmark.devices.Device` predicted, or None.
    """

    repl: dict[str, Any]
    predicted: Saving
    price: float
    measured: Saving | None = None


@dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
        backbone: Type of the backbone to set in the config.
        chosen: The trial of the least price that reaches the target, or else the one that comes nearest.
        reached: Whether it reaches the target.
        trials: All that were measured.
        positions: How many blocks can be replaced, and how many at once.
        bound: What leaving out as many blocks as can be replaced saves, where the target is not reached.
        frozen: Positions that were left out, as nothing is trained there.
        seconds: Time of a step of the network that replaces nothing.
        mib: Its peak memory in MiB.
    """

    backbone: str
    chosen: Trial
    reached: bool
    trials: tuple[Trial, ...]
    positions: tuple[int, int]
    bound: Saving | None = None
    frozen: tuple[Site, ...] = ()
    seconds: float = 0
    mib: float = 0


def make_plan(
    config: Config,
    target: Saving,
    *,
    batch: int,
    size: tuple[int, int],
    backend: str,
    device: torch.device | Device,
    seconds: float,
    losses: Losses | None = None,
    report: Callable[[str], None] = print,
) -> Plan:
    """Find the fewest or the cheapest sites, and the form, that reach a saving.

    Args:
        config: Config of a classifier, detector or segmenter; what it replaces already is not looked at.
        target: The saving to reach.
        batch: Images in a batch.
        size: Height and width of the images.
        backend: As for :class:`repl_mm.benchmark.step.TrainingStep`.
        device: Where to train, or what to predict for.
        seconds: Time for each measurement; predictions need none.
        losses: What each block costs of the score; the sites are then those that cost least in sum, of the same form.
        report: Is told what goes on.

    Raises:
        ValueError: A backbone without positions to replace, or a network of which nothing can be predicted.
    """
    config = replaceable(config)
    forms = _forms(backbone_class(config).forms()[0], losses)
    options: dict[str, Any] = dict(batch=batch, size=size, backend=backend, device=device)
    predicting = isinstance(device, Device)
    if predicting:
        check_predictable(backend, device)
    what = 'Predicting' if predicting else 'Timing'
    report(f'{what} the network, and one block of each stage with what can stand in its place')
    with fake_tensors() if predicting else nullcontext():
        parts = measure_site_profile(config, forms, seconds=seconds, **options)
    candidates = _fewest(parts, forms, target) if losses is None else _cheapest(parts, forms, losses)

    def saving(repl: Mapping[str, Any]) -> Saving:
        variants = dict(E2E=config, RepL=with_repl(config, **repl))
        if predicting:
            step = predict_step(variants['RepL'], device, batch=batch, size=size, backend=backend)
            return Saving(1 - step.seconds / parts.seconds, 1 - step.memory['total'] / parts.mib)
        cost = measure_steps(variants, model='', seconds=seconds, **options)[1]
        if cost.time is None:
            raise ValueError(f'a batch of {batch} does not fit into memory twice, for E2E and RepL: take a smaller one')
        return Saving(1 - cost.time, 1 - cost.memory)

    trials = list(_search(candidates, target, saving, report))
    reached = [trial for trial in trials if trial.measured.reaches(target)]
    if reached:
        chosen = min(reached, key=lambda trial: trial.price)
    else:
        chosen = max(trials, key=lambda trial: trial.measured.share_of(target))
    bound = None
    if not reached:
        report('Leaving the same blocks out altogether, which is the most that any form can save')
        longest = max(reversed(candidates), key=lambda trial: len(trial.repl['sites']))
        bound = saving(dict(policy='explicit', sites=longest.repl['sites'], form='drop'))
    positions = (len(parts.eligible), most(parts.eligible))
    return Plan(
        config.model.backbone.type, chosen, bool(reached), tuple(trials), positions, bound, tuple(parts.frozen),
        parts.seconds, parts.mib,
    )  # fmt: skip


def _forms(default: str, losses: Losses | None) -> list[Mapping[str, Any]]:
    """The options to try; those that compute what the losses hold for, if some are given."""
    forms = list(variants_of(default))
    if losses is not None:
        same = structural_options(default, losses.form)
        forms = [form for form in forms if structural_options(default, form) == same]
        if not forms:
            raise ValueError(f'what blocks cost is known for {same}, and there is no plan for sites of this form')
    return forms


def _search(
    candidates: Sequence[Trial],
    target: Saving,
    measure: Callable[[Mapping[str, Any]], Saving],
    report: Callable[[str], None],
) -> Iterator[Trial]:
    """Measure candidates, the cheapest first, beginning where the prediction says that the target is reached.

    Each measurement corrects the predictions after it.
    """
    left, correction, enough, hopeless = list(candidates), 1.0, None, 0
    for _ in range(TRIALS):
        # Only what is cheaper than what is known to do is of interest.
        left = [c for c in left if enough is None or c.price < enough]
        hopeful = [c for c in left if correction * c.predicted.share_of(target) >= 1]
        if hopeful:
            candidate = hopeful[0]
        elif left and enough is None and hopeless < 2:
            hopeless += 1
            candidate = max(left, key=lambda c: c.predicted.share_of(target))
        else:
            return
        left.remove(candidate)
        report(f'Trying {describe(candidate.repl)}')
        measured = measure(candidate.repl)
        if (expected := candidate.predicted.share_of(target)) > 0:
            correction = min(max(measured.share_of(target) / expected, 0.25), 4.0)
        if measured.reaches(target):
            enough = candidate.price
        yield replace(candidate, measured=measured)


def _fewest(parts: SiteProfile, forms: Sequence[Mapping[str, Any]], target: Saving) -> list[Trial]:
    """For each number of sites, and each form, the sites that save most of what is asked for."""

    def worth(site: Site, index: int) -> int:
        # In hundredths of what is asked for: what differs by less is noise, and then the even spread decides.
        one = _saving(parts, [site], index)
        shares = [own / asked for own, asked in ((one.time, target.time), (one.memory, target.memory)) if asked]
        return round(100 * sum(shares))

    trials = []
    for number in range(1, most(parts.eligible) + 1):
        for index, form in enumerate(forms):
            sites = spread(parts.layout, parts.eligible, number=number, worth=partial(worth, index=index))
            trials.append(_trial(parts, sites, form, index, price=number))
    return trials


def _cheapest(parts: SiteProfile, forms: Sequence[Mapping[str, Any]], losses: Losses) -> list[Trial]:
    """For each number of sites in each stage, the sites that cost least of the score; the cheapest of these first.

    All sites of a stage save the same, so that among these are, for any target, the sites that cost least of all that
    reach it.
    """
    stages = [list(group) for _, group in groupby(parts.eligible, key=lambda site: site.stage)]
    choices = [
        [
            spread(parts.layout, stage, number=number, worth=lambda site: -Fraction(losses.of[site]))
            for number in range(most(stage) + 1)
        ]
        for stage in stages
    ]
    trials = []
    for sites in map(tuple, map(chain.from_iterable, product(*choices))):
        price = float(sum(Fraction(losses.of[site]) for site in sites))
        trials += [_trial(parts, sites, form, index, price=price) for index, form in enumerate(forms) if sites]
    return sorted(trials, key=lambda trial: (trial.price, len(trial.repl['sites'])))


def _trial(parts: SiteProfile, sites: Sequence[Site], form: Mapping[str, Any], index: int, *, price: float) -> Trial:
    repl = dict(policy='explicit', sites=[tuple(site) for site in sites], **form)
    return Trial(repl, _saving(parts, sites, index), price)


def _saving(parts: SiteProfile, sites: Sequence[Site], index: int) -> Saving:
    """What sites save of a step by the sum of their parts, for the form of this index."""
    seconds, mib = parts.site_seconds[index], parts.site_mib[index]
    return Saving(
        sum(seconds[site.stage] for site in sites) / parts.seconds, sum(mib[site.stage] for site in sites) / parts.mib
    )


def describe(repl: Mapping[str, Any]) -> str:
    """The option as it is written in a config."""
    return f'repl=dict({", ".join(f"{key}={value!r}" for key, value in repl.items())})'
