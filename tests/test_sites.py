"""Contract: which blocks a policy replaces, and that nothing impossible is ever replaced.

Oracles: tables written by hand from the rule r = mK, 1 <= r < L with 1-based r; properties that hold for any network.
"""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_mm.sites import Layout, Site, choose, most, spread

BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 32: (5, 5, 5), 110: (18, 18, 18)}
BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
VIT = {12: (12,), 24: (24,)}


def layout(kind: str, depth: int) -> Layout:
    blocks = {'basic': BASIC, 'bottleneck': BOTTLENECK, 'vit': VIT}[kind][depth]
    return Layout(f'{kind}-{depth}', blocks, seconds_of(blocks) if kind == 'bottleneck' else {})


def seconds_of(blocks: tuple[int, ...]) -> dict[Site, str]:
    """A Bottleneck next to its stage's first block, which reduces another number of channels."""
    return {Site(stage, 1): 'another channel count' for stage, count in enumerate(blocks) if count > 2}


# Indices per stage, counted from 0: a block r = mK of the paper has index r - 1.
INTERVAL = {
    # K = 2: r = 2, 4, ... below L.
    ('basic', 34, 2): [[1], [1], [1, 3], [1]],
    ('basic', 32, 2): [[1, 3], [1, 3], [1, 3]],
    ('basic', 110, 2): [[1, 3, 5, 7, 9, 11, 13, 15]] * 3,
    # A Bottleneck at r = 2 has the stage's first block on its left and is refused.
    ('bottleneck', 50, 2): [[], [], [3], []],
    ('bottleneck', 101, 2): [[], [], [3, 5, 7, 9, 11, 13, 15, 17, 19, 21], []],
    ('bottleneck', 152, 2): [[], [3, 5], [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33], []],
    ('vit', 12, 2): [[1, 3, 5, 7, 9]],
    ('vit', 24, 2): [[1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21]],
    # K = 3: r = 3, 6, ...
    ('basic', 34, 3): [[], [2], [2], []],
    ('basic', 32, 3): [[2], [2], [2]],
    ('basic', 110, 3): [[2, 5, 8, 11, 14]] * 3,
    ('bottleneck', 50, 3): [[], [2], [2], []],
    ('bottleneck', 101, 3): [[], [2], [2, 5, 8, 11, 14, 17, 20], []],
    ('bottleneck', 152, 3): [[], [2, 5], [2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32], []],
    ('vit', 12, 3): [[2, 5, 8]],
    ('vit', 24, 3): [[2, 5, 8, 11, 14, 17, 20]],
    # K = 4: r = 4, 8, ...
    ('basic', 34, 4): [[], [], [3], []],
    ('basic', 32, 4): [[3], [3], [3]],
    ('basic', 110, 4): [[3, 7, 11, 15]] * 3,
    ('bottleneck', 50, 4): [[], [], [3], []],
    ('bottleneck', 101, 4): [[], [], [3, 7, 11, 15, 19], []],
    ('bottleneck', 152, 4): [[], [3], [3, 7, 11, 15, 19, 23, 27, 31], []],
    ('vit', 12, 4): [[3, 7]],
    ('vit', 24, 4): [[3, 7, 11, 15, 19]],
    # K = 6: r = 6, 12, ...
    ('basic', 110, 6): [[5, 11]] * 3,
    ('bottleneck', 101, 6): [[], [], [5, 11, 17], []],
    ('bottleneck', 152, 6): [[], [5], [5, 11, 17, 23, 29], []],
    ('vit', 12, 6): [[5]],
    ('vit', 24, 6): [[5, 11, 17]],
}

BUDGET = {
    # Middles of n equal parts of the network, in blocks from the front, e.g. 16 / 4: 1.5, 5.5, 9.5, 13.5.
    ('basic', 34, 4): [[1], [2], [3], [1]],
    # 15 / 4 rounds to 4: 1.375, 5.125, 8.875, 12.625; stages begin at 0, 5, 10, and 9 is a last block.
    ('basic', 32, 4): [[1], [1, 3], [3]],
    ('bottleneck', 50, 4): [[], [2], [2, 4], []],
    # 33 / 8: 1.6, 5.7, 9.8, 13.9, 18.1, 22.2, 26.3, 30.4 in front; layer3 begins at 7, its room is 9 to 28.
    ('bottleneck', 101, 4): [[], [2], [2, 4, 7, 11, 15, 19, 21], []],
    ('vit', 12, 4): [[2, 6, 10]],
    ('vit', 12, 6): [[3, 9]],
}


def by_stage(selection, stages: int) -> list[list[int]]:
    return [[site.index for site in selection.sites if site.stage == stage] for stage in range(stages)]


@pytest.mark.parametrize(('case', 'expected'), INTERVAL.items(), ids=str)
def test_interval_follows_the_table(case, expected):
    kind, depth, every = case
    network = layout(kind, depth)
    assert by_stage(choose(network, policy='interval', every=every), len(network.blocks)) == expected


@pytest.mark.parametrize(
    ('kind', 'depth', 'every', 'eligible'),
    [
        # Two blocks a stage: a first and a last one.
        *[('basic', 18, every, 'none of its blocks') for every in (2, 3, 4, 6)],
        ('basic', 34, 6, r'\(0, 1\), \(1, 1\), \(1, 2\), \(2, 1\), \(2, 2\), \(2, 3\), \(2, 4\), \(3, 1\)'),
        ('basic', 32, 6, r'\(0, 1\), \(0, 2\), \(0, 3\)'),
        ('bottleneck', 50, 6, r'\(1, 2\), \(2, 2\), \(2, 3\), \(2, 4\)$'),
    ],
)
def test_an_interval_without_any_site_names_depth_interval_and_alternatives(kind, depth, every, eligible):
    with pytest.raises(ValueError, match=f'every={every} leaves no site in {kind}-{depth}: .*{eligible}'):
        choose(layout(kind, depth), policy='interval', every=every)


@pytest.mark.parametrize(('case', 'expected'), BUDGET.items(), ids=str)
def test_budget_follows_the_table(case, expected):
    kind, depth, every = case
    network = layout(kind, depth)
    assert by_stage(choose(network, policy='budget', every=every), len(network.blocks)) == expected


def test_interval_says_which_positions_it_skipped_and_why():
    refusals = choose(layout('bottleneck', 50), policy='interval', every=2).refusals
    assert [tuple(refusal.site) for refusal in refusals] == [(0, 1), (1, 1), (1, 3), (2, 1), (2, 5), (3, 1)]
    reasons = {tuple(refusal.site): refusal.reason for refusal in refusals}
    assert 'another channel count' in reasons[1, 1]
    assert 'last block' in reasons[2, 5]


def test_a_budget_that_does_not_fit_takes_what_fits_and_says_so():
    selection = choose(layout('bottleneck', 50), policy='budget', count=9)
    assert selection.sites == (Site(1, 2), Site(2, 2), Site(2, 4))
    assert selection.note == '9 sites were asked for, but no more than 3 fit into bottleneck-50'


def test_budget_counts_a_fraction_of_all_blocks():
    assert len(choose(layout('basic', 110), policy='budget', fraction=0.1).sites) == 5  # round(5.4)
    assert len(choose(layout('bottleneck', 152), policy='budget', every=4).sites) == 12  # round(12.5), half to even


def test_explicit_takes_the_listed_sites_in_network_order():
    assert choose(layout('basic', 34), policy='explicit', sites=[[2, 4], (0, 1), (2, 2)]).sites == (
        Site(0, 1),
        Site(2, 2),
        Site(2, 4),
    )


@pytest.mark.parametrize(
    ('sites', 'reason'),
    [
        ([(2, 0)], 'first block of its stage'),
        ([(2, 5)], 'last block of its stage'),
        ([(2, 6)], 'stage 2 has blocks 0 to 5'),
        ([(2, -1)], 'stage 2 has blocks 0 to 5'),
        ([(4, 1)], 'stages 0 to 3'),
        ([(2, 1)], 'another channel count'),
        ([(2, 2), (2, 3)], r'\(2, 2\) and \(2, 3\) are adjacent'),
        ([(2, 2), (2, 2)], 'listed twice'),
        ([], 'leaves no site'),
        (['layer3.3'], 'pair of whole numbers'),
        ([3], 'pair of whole numbers'),
        (3, 'a list of .* pairs, got 3'),
        ('layer3.3', 'a list of .* pairs'),
        ([(2, 3.0)], 'pair of whole numbers'),
    ],
)
def test_explicit_refuses_with_a_reason(sites, reason):
    with pytest.raises(ValueError, match=reason):
        choose(layout('bottleneck', 50), policy='explicit', sites=sites)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'policy': 'interval'}, "needs 'every'.*every=None"),
        ({'policy': 'interval', 'every': 1}, 'at least 2, got every=1'),
        ({'policy': 'interval', 'every': 4.0}, 'whole number .* got every=4.0'),
        ({'policy': 'interval', 'every': '4'}, "whole number .* got every='4'"),
        ({'policy': 'interval', 'every': True}, 'whole number .* got every=True'),
        ({'policy': 'budget'}, "exactly one of 'every'"),
        ({'policy': 'budget', 'every': 4, 'count': 2}, "exactly one of 'every'"),
        ({'policy': 'budget', 'count': 0}, "'count' is a whole number of at least 1, got 0"),
        ({'policy': 'budget', 'fraction': 1.5}, "'fraction' lies between 0 and 1, got 1.5"),
        ({'policy': 'budget', 'fraction': 0.01}, 'leaves no site'),
        ({'policy': 'budget', 'every': 0}, 'at least 2, got every=0'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        choose(layout('basic', 34), **options)


@st.composite
def layouts(draw: st.DrawFn, blocks: st.SearchStrategy[tuple[int, ...]]) -> Layout:
    """Networks in which any of the inner positions may be refused."""
    counts = draw(blocks)
    inner = [Site(stage, index) for stage, count in enumerate(counts) for index in range(1, count - 1)]
    refused = draw(st.sets(st.sampled_from(inner))) if inner else ()
    return Layout('network', counts, dict.fromkeys(refused, 'it does not fit'))


networks = layouts(st.lists(st.integers(1, 30), min_size=1, max_size=5).map(tuple))


def open_positions(network: Layout) -> list[Site]:
    """Between two others and not refused, written out."""
    return [
        Site(stage, index)
        for stage, count in enumerate(network.blocks)
        for index in range(count)
        if 0 < index < count - 1 and (stage, index) not in network.refused
    ]


def room(network: Layout) -> int:
    """How many sites fit: a run of m positions in a row holds (m + 1) // 2 that are not adjacent."""
    eligible = set(open_positions(network))
    rest = 0
    for stage, count in enumerate(network.blocks):
        row = ''.join('x' if Site(stage, index) in eligible else ' ' for index in range(count))
        rest += sum((len(run) + 1) // 2 for run in row.split())
    return rest


@st.composite
def small_networks(draw: st.DrawFn) -> tuple[Layout, int]:
    """A network with at least one position and few enough for brute force, and a number of sites that fits into it."""
    few = st.lists(st.integers(1, 10), max_size=2)
    network = draw(
        layouts(st.tuples(few, st.integers(3, 12), few).map(lambda of: (*of[0], of[1], *of[2][:1]))).filter(room)
    )
    return network, draw(st.integers(1, min(3, room(network))))


def sets_of(network: Layout, number: int) -> list[tuple[Site, ...]]:
    """All sets of so many sites that are not adjacent, none of them at an edge."""
    return [c for c in combinations(open_positions(network), number) if not any(Site(s, i + 1) in c for s, i in c)]


def assert_sound(network: Layout, sites: tuple[Site, ...]) -> None:
    assert list(sites) == sorted(set(sites))
    for stage, index in sites:
        assert 1 <= index <= network.blocks[stage] - 2
        assert (stage, index) not in network.refused
        assert Site(stage, index + 1) not in sites


@given(networks, st.integers(2, 12))
def test_interval_is_never_at_an_edge_nor_adjacent(network, every):
    """Oracle: r = every, 2 every, ... below the number of blocks, without those that have no neighbour to read."""
    expected = [
        Site(stage, r - 1)
        for stage, blocks in enumerate(network.blocks)
        for r in range(every, blocks, every)
        if r > 1 and (stage, r - 1) not in network.refused
    ]
    if not expected:
        with pytest.raises(ValueError, match='leaves no site'):
            choose(network, policy='interval', every=every)
        return
    selection = choose(network, policy='interval', every=every)
    assert list(selection.sites) == expected
    assert_sound(network, selection.sites)


@given(networks, st.integers(1, 20))
def test_budget_is_met_or_explained(network, count):
    if not room(network):
        with pytest.raises(ValueError, match='leaves no site'):
            choose(network, policy='budget', count=count)
        return
    selection = choose(network, policy='budget', count=count)
    assert_sound(network, selection.sites)
    assert len(selection.sites) == min(count, room(network))
    assert bool(selection.note) == (count > room(network))


@given(small_networks())
def test_budget_is_spread_as_evenly_as_possible(drawn):
    """Oracle: brute force over all sets of that size."""
    network, count = drawn
    starts = [sum(network.blocks[:s]) for s in range(len(network.blocks))]
    blocks = sum(network.blocks)

    def cost(sites):
        middles = [(j + 0.5) * blocks / count - 0.5 for j in range(count)]
        return round(sum((starts[s] + i - m) ** 2 for (s, i), m in zip(sites, middles, strict=True)), 9)

    sets = sets_of(network, count)
    least = min(map(cost, sets))
    deepest = max(c for c in sets if cost(c) == least)
    assert choose(network, policy='budget', count=count).sites == deepest


@given(small_networks(), st.lists(st.integers(-3, 3), min_size=30, max_size=30))
def test_the_most_worth_comes_before_the_even_spread(drawn, worths):
    """Oracle: brute force over all sets of that size."""
    network, count = drawn
    eligible = network.eligible()
    value = dict(zip(eligible, worths, strict=False))
    chosen = spread(network, eligible, number=count, worth=value.__getitem__)
    assert_sound(network, chosen)
    assert sum(map(value.get, chosen)) == max(sum(map(value.get, c)) for c in sets_of(network, count))
    assert spread(network, eligible, number=count) == choose(network, policy='budget', count=count).sites


@given(networks)
def test_the_most_sites_are_counted(network):
    assert most(network.eligible()) == room(network)
