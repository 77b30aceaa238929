"""Which blocks are replaced: block counts and a policy in, sites out. Integers only.

A network is a row of stages of blocks. A site is a block that a computing layer stands in for. It needs a
retained block of fitting shape on either side, so the first and the last block of a stage are never sites,
and no two sites are adjacent.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple


class Site(NamedTuple):
    """A block position, both numbers counted from 0: ``Site(2, 3)`` is ``layer3.3`` of a ResNet."""

    stage: int
    index: int  # type: ignore[assignment]  # the field goes before tuple's method


class Refusal(NamedTuple):
    """A position that the policy asked for and that cannot be a site, and why."""

    site: Site
    reason: str


@dataclass(frozen=True)
class Layout:
    """What the choice of sites must know of a network.

    Attributes:
        name: What messages call the network, such as ``ResNet-34``.
        blocks: Number of blocks per stage.
        refused: Positions between two others that cannot be replaced all the same, and why.
    """

    name: str
    blocks: tuple[int, ...]
    refused: Mapping[Site, str] = field(default_factory=dict)

    def refusal(self, site: Site) -> str | None:
        """The reason why ``site`` cannot be replaced on its own, or None where it can."""
        stage, index = site
        if not 0 <= stage < len(self.blocks):
            return f'there is no such stage, the network has stages 0 to {len(self.blocks) - 1}'
        last = self.blocks[stage] - 1
        if not 0 <= index <= last:
            return f'there is no such block, stage {stage} has blocks 0 to {last}'
        if index == 0:
            return 'it is the first block of its stage and has no left neighbour'
        if index == last:
            return 'it is the last block of its stage and has no right neighbour'
        return self.refused.get(site)

    def eligible(self) -> list[Site]:
        """All positions that can be replaced, in network order."""
        every = (Site(s, i) for s, count in enumerate(self.blocks) for i in range(count))
        return [site for site in every if self.refusal(site) is None]

    def depth(self, site: Site) -> int:
        """Number of blocks in front of ``site``, over all stages."""
        return sum(self.blocks[: site.stage]) + site.index


@dataclass(frozen=True)
class Selection:
    """What a policy chose for a layout.

    Attributes:
        layout: What it chose in.
        sites: The positions that are replaced; where that changes in training, those of the first epoch.
        refusals: What it asked for and was refused.
        note: What else must be said.
        candidates: The positions among which training chooses anew; none where the sites stay.
    """

    layout: Layout
    sites: tuple[Site, ...]
    refusals: tuple[Refusal, ...] = ()
    note: str = ''
    candidates: tuple[Site, ...] = ()


def choose(layout: Layout, *, policy: str, **options: Any) -> Selection:
    """Choose the sites of a network.

    Args:
        layout: Block counts of the network.
        policy: One of ``POLICIES``: :func:`interval`, :func:`budget`, :func:`explicit`, :func:`adaptive`.
        **options: The options of that policy.

    Raises:
        ValueError: A value that is not allowed, or no site left.
    """
    selection = POLICIES[policy](layout, **options)
    if not selection.sites:
        raise ValueError(f'{_request(policy, options)} leaves no site in {layout.name}: {_alternatives(layout)}')
    return selection


def policy_options(policy: str) -> list[str]:
    """Names of the options that a policy takes."""
    parameters = inspect.signature(POLICIES[policy]).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):  # those of the policy it stands on
        names += [name for other in POLICIES if other != policy for name in policy_options(other)]
    return list(dict.fromkeys(names))


def interval(layout: Layout, *, every: int | None = None) -> Selection:
    """Every K-th block of each stage, its first and last one kept (Eq. 2 and 16).

    Positions that the rule names and that cannot be replaced are skipped and listed as refusals.
    """
    _check_interval('interval', every)
    named = [Site(s, r - 1) for s, count in enumerate(layout.blocks) for r in range(every, count + 1, every)]
    refusals = tuple(Refusal(site, reason) for site in named if (reason := layout.refusal(site)))
    return Selection(layout, tuple(site for site in named if layout.refusal(site) is None), refusals)


def budget(
    layout: Layout, *, every: int | None = None, count: int | None = None, fraction: float | None = None
) -> Selection:
    """A given number of sites, spread as evenly as eligibility and non-adjacency allow.

    The number is ``count``, or ``fraction`` of the N blocks, or N / ``every``, rounded (half to even). Site j of n
    is drawn to the middle of the j-th of n equal parts of the network; the sum of the squared distances
    is minimised exactly, and between equal choices the deeper one wins. Where fewer sites fit than were asked
    for, as many as fit are taken, and the selection's note says so.
    """
    if [every, count, fraction].count(None) != 2:
        raise ValueError(
            "policy 'budget' takes exactly one of 'every' (a block in K), 'count' (of sites) and 'fraction' "
            f'(of blocks), got every={every!r}, count={count!r}, fraction={fraction!r}'
        )
    wanted = _wanted(sum(layout.blocks), every=every, count=count, fraction=fraction)
    eligible = layout.eligible()
    room = most(eligible)
    sites = spread(layout, eligible, number=min(wanted, room))
    note = f'{wanted} sites were asked for, but no more than {room} fit into {layout.name}' if room < wanted else ''
    return Selection(layout, sites, note=note)


def explicit(layout: Layout, *, sites: Iterable[Sequence[int]] = ()) -> Selection:
    """The listed ``(stage, index)`` pairs, each of which must be possible."""
    if isinstance(sites, str) or not isinstance(sites, Iterable):
        raise ValueError(f"policy 'explicit' takes 'sites', a list of (stage, index) pairs, got {sites!r}")
    chosen = tuple(sorted(_as_site(site) for site in sites))
    refused = [f'{tuple(site)}: {reason}' for site in chosen if (reason := layout.refusal(site))]
    for left, right in pairwise(chosen):
        if left.stage == right.stage and right.index - left.index < 2:
            word = 'is listed twice' if left == right else 'are adjacent, and one would have no weights to offer'
            refused.append(f'{tuple(left)}{"" if left == right else f" and {tuple(right)}"} {word}')
    if refused:
        raise ValueError(
            f'these sites of {layout.name} cannot be replaced: {"; ".join(refused)}. {_alternatives(layout)}'
        )
    return Selection(layout, chosen)


def adaptive(layout: Layout, *, start: str | None = None, **options: Any) -> Selection:
    """At first the sites of the fixed policy ``start``, then as many that training chooses at every epoch (Eq. 34).

    The options are those of that policy. See :func:`repl_mm.adapt`.
    """
    fixed = [name for name, policy in POLICIES.items() if policy is not adaptive]
    if start not in fixed:
        raise ValueError(
            "policy 'adaptive' needs 'start', the policy that gives the number of sites and those of the first epoch: "
            f'one of {", ".join(map(repr, fixed))}, got start={start!r}'
        )
    if unknown := sorted(set(options) - set(policy_options(start))):
        given, allowed = (', '.join(map(repr, names)) for names in (unknown, policy_options(start)))
        raise ValueError(f"policy 'adaptive' with start={start!r} has no option {given}: it takes {allowed}")
    return replace(choose(layout, policy=start, **options), candidates=tuple(layout.eligible()))


POLICIES: dict[str, Callable[..., Selection]] = {
    'interval': interval,
    'budget': budget,
    'explicit': explicit,
    'adaptive': adaptive,
}


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_interval(policy: str, every: Any) -> None:
    if not _is_integer(every) or every < 2:
        raise ValueError(f"policy {policy!r} needs 'every', a whole number of at least 2, got every={every!r}")


def _wanted(blocks: int, *, every: int | None, count: int | None, fraction: float | None) -> int:
    if every is not None:
        _check_interval('budget', every)
        return round(blocks / every)
    if count is not None:
        if not _is_integer(count) or count < 1:
            raise ValueError(f"policy 'budget': 'count' is a whole number of at least 1, got {count!r}")
        return count
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(f"policy 'budget': 'fraction' lies between 0 and 1, got {fraction!r}")
    return round(fraction * blocks)


def _as_site(value: object) -> Site:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_integer(v) for v in value):
        raise ValueError(
            f"policy 'explicit': a site is a pair of whole numbers (stage, index), counted from 0, got {value!r}"
        )
    return Site(*value)


def _adjacent(left: Site, right: Site) -> bool:
    return left.stage == right.stage and abs(left.index - right.index) == 1


def most(eligible: Sequence[Site]) -> int:
    """Size of the largest set of non-adjacent sites: taking each one that is free, from the left."""
    taken: list[Site] = []
    for site in eligible:
        if not taken or not _adjacent(taken[-1], site):
            taken.append(site)
    return len(taken)


def spread(
    layout: Layout, eligible: Sequence[Site], *, number: int, worth: Callable[[Site], int | Fraction] = lambda site: 0
) -> tuple[Site, ...]:
    """The non-adjacent sites of the greatest worth; among equals, those nearest to the middles of equal parts.

    Args:
        layout: Block counts of the network.
        eligible: Sites to choose from, in network order.
        number: How many to choose, at most :func:`most`.
        worth: What a site is worth, exactly; all the same by default, which leaves the even spread.
    """
    blocks = sum(layout.blocks)

    def distance(site: Site, part: int) -> int:
        # In units of 1 / (2 number) block, so that the comparison is exact.
        return (2 * number * layout.depth(site) - ((2 * part + 1) * blocks - number)) ** 2

    @cache
    def best(start: int, part: int) -> tuple[tuple[int | Fraction, int], tuple[Site, ...]] | None:
        """Least cost and sites for parts ``part`` onwards, taken from ``eligible[start:]``."""
        if part == number:
            return (0, 0), ()
        choices = []
        for at in range(start, len(eligible)):
            site = eligible[at]
            after = at + 1 + (at + 1 < len(eligible) and _adjacent(site, eligible[at + 1]))
            if (rest := best(after, part + 1)) is not None:
                cost = (rest[0][0] - worth(site), rest[0][1] + distance(site, part))
                choices.append((cost, (site, *rest[1])))
        least = min((cost for cost, _ in choices), default=None)
        return None if least is None else (least, max(sites for cost, sites in choices if cost == least))

    return best(0, 0)[1] if number else ()


def _request(policy: str, options: dict[str, Any]) -> str:
    return f'policy {policy!r} with ' + (', '.join(f'{k}={v!r}' for k, v in options.items()) or 'no option')


def _alternatives(layout: Layout) -> str:
    eligible = ', '.join(str(tuple(site)) for site in layout.eligible())
    if not eligible:
        why = f': {next(iter(layout.refused.values()))}' if layout.refused else ', choose a deeper network'
        return f'none of its blocks {layout.blocks} can be replaced{why}'
    return f'positions (stage, index) that can be replaced are {eligible}'
