"""Contract: the ``repl`` option is checked as far as it can be without a network, and says what is allowed."""

import pytest

from repl_mm.layers import FORMS, ReplConfig, ResidualParts, TransformerParts
from repl_mm.layers.config import foreign_options, forms_for, options_of, structural_options

RESIDUAL, TRANSFORMER = ('channelwise', 'blend', 'drop'), ('scalar', 'headwise', 'blend', 'drop')
EVERY = dict(policy='interval', every=4)


def test_a_config_by_hand():
    config = ReplConfig.parse(EVERY | dict(recompute=True), forms=RESIDUAL)
    assert config == ReplConfig('interval', dict(every=4), 'channelwise', dict(recompute=True))
    config = ReplConfig.parse(dict(policy='explicit', sites=[(0, 1)], form='headwise'), forms=TRANSFORMER)
    assert config == ReplConfig('explicit', dict(sites=[(0, 1)]), 'headwise', {})


def test_what_is_given_stays_as_it_is():
    given = EVERY | dict(form='scalar', mlp_fusion=True)
    before = dict(given)
    ReplConfig.parse(given, forms=TRANSFORMER)
    assert given == before


@pytest.mark.parametrize(
    ('repl', 'forms', 'message'),
    [
        (4, RESIDUAL, r"'repl' is a dict such as dict\(policy='interval', every=4\), or None, got 4"),
        ([], RESIDUAL, r"'repl' is a dict such as .* got \[\]"),
        ({1: 2}, RESIDUAL, "'repl' is a dict such as"),
        (dict(policy='every'), RESIDUAL, "unknown policy 'every': choose one of 'interval', 'budget', 'explicit'"),
        (dict(every=4), RESIDUAL, 'unknown policy None: choose one of'),
        (dict(policy=['interval']), RESIDUAL, 'unknown policy .*: choose one of'),
        (EVERY | dict(form='scalar'), RESIDUAL, "unknown form 'scalar': choose one of 'channelwise', 'blend', 'drop'"),
        (EVERY | dict(form=['drop']), RESIDUAL, 'unknown form .*: choose one of'),
        (EVERY | dict(K=4), RESIDUAL, "have no option 'K': they take 'every', 'recompute', 'grad_fraction'"),
        # Those of another form, and of another policy.
        (EVERY | dict(mlp_fusion=True), RESIDUAL, "'channelwise' have no option 'mlp_fusion': they take"),
        (EVERY | dict(grad_fraction=0.5), TRANSFORMER, "'scalar' have no option 'grad_fraction': they take"),
        (EVERY | dict(form='drop', recompute=True), RESIDUAL, "'drop' have no option 'recompute': they take 'every'"),
        (EVERY | dict(count=4), RESIDUAL, "policy 'interval' and form 'channelwise' have no option 'count'"),
        (EVERY | dict(mlp_fusion=1), TRANSFORMER, "'mlp_fusion' is True or False, got 1"),
        (EVERY | dict(recompute='yes'), TRANSFORMER, "'recompute' is True or False, got 'yes'"),
        (EVERY | dict(neighbours='left'), RESIDUAL, "'neighbours' is one of 'both', 'prev', 'next', got 'left'"),
        (EVERY | dict(coefficients=1), TRANSFORMER, "'coefficients' is one of 'two', 'one', got 1"),
        (EVERY | dict(stop_gradient=0), RESIDUAL, "'stop_gradient' is True or False, got 0"),
        (EVERY | dict(neighbours='prev', coefficients='one'), RESIDUAL, "leave coefficients='one' out"),
        (EVERY | dict(sources='mlp', form='headwise'), TRANSFORMER, "'sources' is one of 'attention', 'both', got"),
        (EVERY | dict(sources='none', neighbours='next'), TRANSFORMER, 'has no neighbours to choose: leave that out'),
        (EVERY | dict(sources='mlp', coefficients='one'), TRANSFORMER, 'has no coefficients to choose'),
        (EVERY | dict(sources='mlp', mlp_fusion=True), TRANSFORMER, "disagree: give 'sources' alone"),
        (EVERY | dict(sources='both', mlp_fusion=False), TRANSFORMER, "disagree: give 'sources' alone"),
        (EVERY | dict(sources='both'), RESIDUAL, "have no option 'sources'"),
        *[
            (EVERY | dict(grad_fraction=value), RESIDUAL, "'grad_fraction' is above 0 and at most 1, got")
            for value in (0, 1.5, True, '0.5', float('nan'))
        ],
    ],
)
def test_bad_options_are_named(repl, forms, message):
    with pytest.raises(ValueError, match=message) as caught:
        ReplConfig.parse(repl, forms=forms)
    assert '\n' not in str(caught.value)


def test_options_of_the_forms():
    mixing = {'neighbours', 'coefficients', 'stop_gradient'}
    assert forms_for(ResidualParts) == ['channelwise', 'blend', 'drop']
    assert forms_for(TransformerParts) == ['scalar', 'headwise', 'blend', 'drop']
    assert {layer.form: set(options_of(layer.form)) for layer in FORMS} == {
        'channelwise': {'recompute', 'grad_fraction'} | mixing,
        'scalar': {'mlp_fusion', 'recompute', 'sources'} | mixing,
        'headwise': {'mlp_fusion', 'recompute', 'sources'} | mixing,
        'blend': set(),
        'drop': set(),
    }
    assert foreign_options('channelwise') == {'mlp_fusion', 'sources'}
    assert foreign_options('scalar') == {'grad_fraction'}


def test_only_what_changes_the_function_is_structural():
    given = dict(policy='interval', every=4, mlp_fusion=True, recompute=True)
    assert structural_options('scalar', given) == dict(mlp_fusion=True)
    given = dict(neighbours='prev', coefficients='two', sources='both', stop_gradient=False)
    assert set(structural_options('scalar', given)) == {'neighbours', 'coefficients', 'sources'}
    assert structural_options('channelwise', dict(grad_fraction=0.5, recompute=True)) == {}
