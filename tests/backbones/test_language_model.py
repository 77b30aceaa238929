"""Contract: a causal language model, in which layers are replaced, and which deploys to what it was.

Oracles: torch's own layer with a mask; log-softmax by hand in float64; parameters counted by hand; the model itself on
sequences whose end is another.
"""

import math

import pytest
import torch
from helpers import randomise
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from repl_mm.analysis.cost import count_cost, input_shape_of, predict_cost, variants
from repl_mm.backbones.language_model import CausalLayer, sinusoids
from repl_mm.deployment import deploy, parity
from repl_mm.engine.perplexity import Perplexity
from repl_mm.layers import TransformerParts
from repl_mm.layers.config import forms_for
from repl_mm.surgery import computing_layers

D, F, L, V, T = 16, 24, 12, 11, 7
EVERY_4TH = dict(policy='interval', every=4)
FORMS = {
    **{form: EVERY_4TH | dict(form=form) for form in forms_for(TransformerParts)},
    'MLP': EVERY_4TH | dict(mlp_fusion=True),
}
WITH_E2E = FORMS | dict(E2E=None)


def config(repl=None, **options) -> dict:
    sizes = dict(num_tokens=V, embed_dims=D, depth=L, num_heads=4, feedforward_channels=F, context=T, dropout=0.1)
    backbone = dict(type='repl_mm.ReplTransformer', repl=repl, **sizes | options)
    return dict(type='repl_mm.TransformerLM', backbone=backbone)


def build(repl=None, **options) -> nn.Module:
    model = MODELS.build(config(repl, **options))
    model.init_weights()
    return randomise(model)


def test_a_layer_is_torchs_own_with_a_mask():
    layer = randomise(CausalLayer(D, 4, F, dropout=0.0).double())
    theirs = nn.TransformerEncoderLayer(D, 4, F, dropout=0.0, activation='gelu', batch_first=True, norm_first=True)
    theirs.double().load_state_dict(layer.state_dict())
    x = torch.randn(3, T, D, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=torch.float64)
    torch.testing.assert_close(layer(x), theirs(x, mask), rtol=1e-12, atol=1e-12)


def test_dropout_is_where_torch_has_it():
    """The same number of draws in training, none in evaluation: the mean of many passes is the pass without it."""
    layer = randomise(CausalLayer(D, 4, F, dropout=0.5).double())
    x = torch.randn(1, T, D, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    kinds = [name for name, module in layer.named_modules() if isinstance(module, nn.Dropout)]
    assert kinds == ['dropout', 'dropout1', 'dropout2']


def test_positions_by_hand():
    table = sinusoids(3, 4)
    expected = [[f(p / 10_000 ** (2 * i / 4)) for i in (0, 1) for f in (math.sin, math.cos)] for p in range(3)]
    torch.testing.assert_close(table, torch.tensor(expected))


@pytest.mark.parametrize('repl', WITH_E2E.values(), ids=WITH_E2E)
@pytest.mark.parametrize('training', [False, True])
def test_a_later_token_changes_nothing_before_it(repl, training):
    model = build(repl, dropout=0.0).double().train(training)
    tokens = torch.randint(V, (4, T))
    changed = tokens.clone()
    changed[:, 4:] = (tokens[:, 4:] + 1 + torch.randint(V - 1, (4, T - 4))) % V
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-13)
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=(0, 2)).min() > 1e-3  # each later one sees it


@pytest.mark.parametrize(('repl', 'sites', 'own'), [(None, 0, 0), (EVERY_4TH, 2, 2), (FORMS['headwise'], 2, 8)])
def test_parameters_by_hand(repl, sites, own):
    """Attention 4 D^2 + 4 D, MLP 2 D F + F + D, two norms 4 D; embedding, last norm, head. Eq. 50-51 at a site."""
    layer = 4 * D**2 + 4 * D + 2 * D * F + F + D + 4 * D
    expected = (L - sites) * layer + sites * own + V * D + 2 * D + V * D + V
    assert sum(p.numel() for p in build(repl).parameters()) == expected


def test_one_site_by_hand():
    model = build(EVERY_4TH).double().eval()
    assert [tuple(site) for site in model.backbone.selection.sites] == [(0, 3), (0, 7)]
    prev, site, next = model.backbone.layers[2:5]
    x = torch.randn(2, T, D, dtype=torch.float64)
    weight, bias = (
        site.alpha * getattr(prev.self_attn.out_proj, name) + site.beta * getattr(next.self_attn.out_proj, name)
        for name in ('weight', 'bias')
    )
    torch.testing.assert_close(site(x), x + x @ weight.T + bias, rtol=1e-12, atol=1e-12)


def test_loss_and_perplexity_by_hand():
    """exp of the summed log-likelihood over the words that count, whatever batches they came in."""
    model = build(EVERY_4TH).double().eval()
    tokens, targets = torch.randint(V, (2, 5, T))
    targets[1, 3:] = targets[4, 1:] = -1
    logits = model(tokens)
    total, number = 0.0, 0
    for row, row_targets in zip(logits, targets, strict=True):
        for scores, target in zip(row, row_targets, strict=True):
            if target >= 0:
                total += (scores[target].exp() / scores.exp().sum()).log().item()
                number += 1
    assert number == 35 - 4 - 6
    metric = Perplexity()
    for start in (0, 2, 4):
        part = slice(start, start + 2)
        metric.process(None, model(tokens[part], targets[part], mode='predict'))
    assert metric.evaluate(5)['perplexity'] == pytest.approx(math.exp(-total / number), rel=1e-10)
    assert model(tokens, targets, mode='loss')['loss'].item() == pytest.approx(-total / number, rel=1e-10)


def test_every_parameter_learns():
    model = build(FORMS['MLP']).train()
    tokens, targets = torch.randint(V, (2, 8, T))
    model(tokens, targets, mode='loss')['loss'].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize('form', FORMS)
def test_deployed_it_is_the_same(form):
    model = build(FORMS[form]).double().eval()
    static = deploy(model)
    assert computing_layers(static) == []
    for shape in ((T,), (3,)):
        assert parity(static, model, model.example_inputs(3, shape), dtype=torch.float64) < 1e-12


@pytest.mark.parametrize('form', [form for form in FORMS if form != 'drop'])
def test_its_cost_is_predicted_to_the_unit(form):
    experiment = Config(dict(model=config(FORMS[form], depth=5)))
    shape = input_shape_of(experiment, None)
    assert shape == (T,)
    counted = {name: count_cost(variant, shape) for name, variant in variants(experiment).items()}
    assert predict_cost(experiment, counted['E2E'], shape) == counted


def test_example_inputs():
    model = build()
    assert model.example_inputs(2).shape == (2, T)
    assert model.example_inputs(3, (2,)).shape == (3, 2)
    assert 0 <= model.example_inputs(100).min() <= model.example_inputs(100).max() == V - 1


BAD = {
    'heads': (dict(num_heads=3), "'embed_dims' is even and a multiple of 'num_heads' 3, got 16"),
    'odd': (dict(embed_dims=15, num_heads=3), "'embed_dims' is even"),
    'depth': (dict(depth=0), "'depth' is a whole number above 0, got 0"),
    'tokens': (dict(num_tokens=1.5), "'num_tokens' is a whole number above 0, got 1.5"),
    'dropout': (dict(dropout=1), "'dropout' is at least 0 and below 1, got 1"),
    'site': (dict(repl=EVERY_4TH | dict(every=12)), 'ReplTransformer with 12 blocks'),
}


@pytest.mark.parametrize('case', BAD)
def test_numbers_that_are_not_possible(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_sequence_that_is_too_long():
    with pytest.raises(ValueError, match='a sequence has at most 7 tokens, got 8'):
        build()(torch.zeros(1, T + 1, dtype=torch.int64))
