"""Contract: whatever ``repl=dict(...)`` holds, the network is the one that it describes, or a message says why not.

Oracle: the rules of docs/method.md, written once more below without the code under test.
"""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from share import PART
from torch import nn

from repl_mm.backbones import ReplResNetCIFAR, ReplViT
from repl_mm.layers import ComputingLayer, Drop, ReplConfig
from repl_mm.sites import Layout, choose

EXAMPLES = 300 // PART
VIT = dict(embed_dims=16, num_layers=7, num_heads=2, feedforward_channels=32)
# Where a network may be replaced: every block but the first and the last one of its stage.
BLOCKS = {ReplResNetCIFAR: (5, 5, 5), ReplViT: (7,)}

numbers = st.one_of(
    st.integers(-2, 12),
    st.sampled_from([10**30, -(10**30)]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
)
values = st.one_of(numbers, st.lists(numbers, max_size=3), st.dictionaries(st.text(max_size=2), numbers, max_size=2))
pairs = st.tuples(st.integers(-1, 3), st.integers(-1, 7))
sites = st.one_of(
    st.lists(pairs, max_size=5),
    st.lists(st.sampled_from([(s, i) for s in range(3) for i in range(5)]), max_size=4, unique=True),
    st.lists(st.one_of(pairs, values), max_size=3),
    values,
)
options = st.fixed_dictionaries(
    {},
    optional=dict(
        policy=st.one_of(st.sampled_from(['interval', 'budget', 'explicit']), values),
        every=st.one_of(st.integers(1, 6), values),
        count=st.one_of(st.integers(1, 8), values),
        fraction=st.one_of(st.floats(0, 1), values),
        sites=sites,
        form=st.one_of(st.sampled_from(['channelwise', 'scalar', 'headwise', 'blend', 'drop']), values),
        recompute=st.one_of(st.booleans(), values),
        grad_fraction=st.one_of(st.floats(0, 1), values),
        mlp_fusion=st.one_of(st.booleans(), values),
    ),
)
# Three quarters of what is drawn freely has more than one fault; these have one at most.
likely = st.one_of(
    st.builds(dict, policy=st.just('interval'), every=st.one_of(st.integers(2, 6), values)),
    st.builds(dict, policy=st.just('budget'), every=st.one_of(st.integers(2, 6), values)),
    st.builds(dict, policy=st.just('budget'), count=st.one_of(st.integers(1, 8), values)),
    st.builds(dict, policy=st.just('budget'), fraction=st.one_of(st.floats(0, 1), values)),
    st.builds(dict, policy=st.just('explicit'), sites=sites),
)
anything = st.one_of(
    likely,
    st.builds(lambda policy, rest: {**rest, **policy}, likely, options),
    options,
    st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), values, max_size=3),
)


def is_integer(value) -> bool:
    return type(value) is int


def is_number(value) -> bool:
    return type(value) in (int, float)


def are_apart(sites) -> bool:
    return all(a[0] != b[0] or b[1] - a[1] > 1 for a, b in pairwise(sites))


def may_be_replaced(blocks, stage, index) -> bool:
    return 0 <= stage < len(blocks) and 0 < index < blocks[stage] - 1


def described_sites(blocks, given):
    """The sites of each policy: all of them, or their number; None where the description is at fault."""
    policy = given.pop('policy', None)
    allowed = dict(interval={'every'}, budget={'every', 'count', 'fraction'}, explicit={'sites'})
    if not isinstance(policy, str) or policy not in allowed or set(given) - allowed[policy]:
        return None
    if policy == 'explicit':
        chosen = given.get('sites', ())
        if not isinstance(chosen, list) or not all(
            isinstance(site, list | tuple) and len(site) == 2 and all(map(is_integer, site)) for site in chosen
        ):
            return None
        chosen = sorted(map(tuple, chosen))
        possible = are_apart(chosen) and all(may_be_replaced(blocks, *site) for site in chosen)
        return chosen if chosen and possible else None
    if 'every' in given and given['every'] is not None and (not is_integer(given['every']) or given['every'] < 2):
        return None
    if policy == 'interval':
        every = given.get('every')
        named = [(s, r - 1) for s, n in enumerate(blocks) for r in range(1, n + 1) if every and r % every == 0]
        return [site for site in named if may_be_replaced(blocks, *site)] or None
    set_ones = {key: value for key, value in given.items() if value is not None}
    if len(set_ones) != 1:
        return None
    (key, value), total = *set_ones.items(), sum(blocks)
    if key == 'count' and not (is_integer(value) and value >= 1):
        return None
    if key == 'fraction' and not (is_number(value) and 0 < value < 1):
        return None
    wanted = dict(every=lambda: round(total / value), count=lambda: value, fraction=lambda: round(value * total))[key]()
    room = sum(max(0, (n - 1) // 2) for n in blocks)
    return min(wanted, room) or None


def described(backbone, given):
    """(sites or their number, what stands there); None where the description is at fault."""
    if not all(isinstance(key, str) for key in given):
        return None
    given = dict(given)
    forms = ['channelwise'] if backbone is ReplResNetCIFAR else ['scalar', 'headwise']
    form = given.pop('form', None)
    form = forms[0] if form is None else form
    if not isinstance(form, str) or form not in [*forms, 'drop']:
        return None
    if form != 'drop':  # which has no options
        share = given.pop('grad_fraction', 1) if backbone is ReplResNetCIFAR else 1
        flags = [given.pop('recompute', False)]
        flags += [] if backbone is ReplResNetCIFAR else [given.pop('mlp_fusion', False)]
        if any(type(flag) is not bool for flag in flags) or not is_number(share) or not 0 < share <= 1:
            return None
    found = described_sites(BLOCKS[backbone], given)
    return None if found is None else (found, Drop if form == 'drop' else ComputingLayer)


def build(backbone, repl):
    if backbone is ReplViT:
        return ReplViT(arch=VIT, img_size=16, patch_size=8, repl=repl)
    return ReplResNetCIFAR(depth=32, repl=repl)


@pytest.mark.parametrize('backbone', BLOCKS)
def test_the_network_is_the_described_one_or_is_refused(backbone, survived):
    tried = []

    @settings(max_examples=EXAMPLES, database=None)
    @given(repl=anything)
    def fuzz(repl):
        tried.append(repl)
        expected = described(backbone, repl)
        if expected is None:
            with pytest.raises(ValueError, match=r'\w') as caught:
                build(backbone, repl)
            assert '\n' not in str(caught.value)
            return
        found, kind = expected
        network = build(backbone, repl)
        replaced = {
            (stage, index): block
            for stage, blocks in enumerate(network.repl_stages().values())
            for index, block in enumerate(blocks)
            if isinstance(block, ComputingLayer | nn.Identity)
        }
        assert all(isinstance(block, kind) for block in replaced.values())
        if isinstance(found, int):
            assert len(replaced) == found
            assert all(may_be_replaced(BLOCKS[backbone], *site) for site in replaced)
            assert are_apart(replaced)
        else:
            assert list(replaced) == found

    fuzz()
    survived(f'repl=dict(...) of {backbone.__name__}', len(tried))


def test_sites_of_any_layout(survived):
    tried = []

    @settings(max_examples=EXAMPLES, database=None)
    @given(blocks=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), request=anything)
    def fuzz(blocks, request):
        tried.append(request)
        named = {key: value for key, value in request.items() if isinstance(key, str) and key != 'form'}
        named.setdefault('policy', None)

        def choose_sites():
            config = ReplConfig.parse(named, forms=['drop'])
            return choose(Layout('net', blocks), policy=config.policy, **config.policy_options).sites

        expected = described_sites(blocks, dict(named))
        if expected is None:
            with pytest.raises(ValueError, match=r'\w') as caught:
                choose_sites()
            assert re.match(r'[^\n]+$', str(caught.value))
            return
        found = [tuple(site) for site in choose_sites()]
        assert len(found) == expected if isinstance(expected, int) else found == expected

    fuzz()
    survived('sites of any layout', len(tried))


@given(value=values.filter(lambda value: value is not None and not isinstance(value, dict)))
@settings(max_examples=EXAMPLES, database=None)
def test_repl_itself_is_a_dict_or_none(value):
    with pytest.raises(ValueError, match="'repl' is a dict such as"):
        build(ReplViT, value)


def test_the_oracle_refuses_what_is_not_a_number():
    assert described(ReplViT, dict(policy='budget', fraction=math.nan)) is None
    assert described(ReplViT, dict(policy='interval', every=True)) is None
