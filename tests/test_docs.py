"""Contract: the code on the pages about extending the package runs as it stands there.

Oracles: plain-torch formulas; the network counted as a whole.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from helpers import randomise

import repl_mm
from repl_mm.deployment import relative_difference
from repl_mm.layers import config as forms
from repl_mm.surgery import computing_layers

DOCS = Path(__file__).parents[1] / 'docs'


def blocks(page: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', (DOCS / page).read_text(), re.DOTALL)


def run(code: str) -> dict:
    names = {'__name__': 'page'}
    exec(code, names)
    return names


def test_a_network_of_a_library():
    names = run(blocks('adding_a_backbone.md')[0])
    assert [tuple(site) for site in names['selection'].sites] == [(2, 3)]
    assert computing_layers(names['static']) == []


def test_a_gpt_block():
    names = run(blocks('adding_a_backbone.md')[1])
    assert [tuple(site) for site in names['selection'].sites] == [(0, 3)]  # the 8th block is the last one
    gpt = randomise(names['gpt'].double()).eval()
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    prev, site, next = gpt[2], gpt[3], gpt[4]
    hidden = x + F.linear(
        x,
        site.alpha * prev.c_proj.weight + site.beta * next.c_proj.weight,
        site.alpha * prev.c_proj.bias + site.beta * next.c_proj.bias,
    )

    def mean(name: str) -> list[torch.Tensor]:
        p, n = getattr(prev, name), getattr(next, name)
        rows = [w / (w.square().sum(1, keepdim=True) + 1e-8).sqrt() for w in (p.weight, n.weight)]
        return [sum(rows) / 2, (p.bias + n.bias) / 2]

    expected = hidden + F.linear(F.gelu(F.linear(prev.ln_2(hidden), *mean('c_fc'))), *mean('c_out'))
    assert relative_difference(site(x), expected) < 1e-12
    assert relative_difference(repl_mm.deploy(gpt)(x), gpt(x)) < 1e-10
    later = x.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(gpt(later)[:, :3], gpt(x)[:, :3])  # still causal


def test_a_warm_start():
    names = run(blocks('fine_tuning.md')[0])
    assert list(names['report'].unexplained) == [
        name for name, module in names['network'].named_modules() if module in computing_layers(names['network'])
    ]


def test_a_registered_backbone():
    backbone = run(blocks('adding_a_backbone.md')[2])['backbone']
    assert [tuple(site) for site in backbone.selection.sites] == [(0, 3), (0, 7)]


def test_a_form(monkeypatch):
    layer = run(blocks('adding_a_form.md')[0])['LayerwiseBasicBlock']
    monkeypatch.setattr(forms, 'FORMS', (*forms.FORMS, layer))
    from torchvision.models import resnet34

    network = resnet34()
    repl_mm.replace(network, policy='interval', every=4, form='layerwise')
    randomise(network.double())
    prev, site, next = network.layer3[2:5]
    x = torch.randn(2, 256, 6, 6, dtype=torch.float64)
    site.eval()
    kernel = site.alpha * prev.conv2.weight + site.beta * next.conv1.weight
    expected = torch.relu(x + site.norm(F.conv2d(x, kernel, padding=1)))
    assert relative_difference(site(x), expected) < 1e-12
    network.eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert relative_difference(repl_mm.deploy(network, fuse_all=True)(images), network(images)) < 1e-10
    site.train()(x).sum().backward()
    assert prev.conv2.weight.grad is None
    assert site.alpha.grad is not None


def test_the_cost_of_that_form_is_what_is_counted(monkeypatch):
    from mmengine.config import Config

    from repl_mm.analysis.cost import count_cost, predict_cost, variants

    layer = run(blocks('adding_a_form.md')[0])['LayerwiseBasicBlock']
    monkeypatch.setattr(forms, 'FORMS', (*forms.FORMS, layer))
    config = Config.fromfile(DOCS.parent / 'configs/demo/resnet32-repl_digits.py')
    config.model.backbone.repl = dict(policy='budget', count=2, form='layerwise')
    configs = variants(config)
    counted = {name: count_cost(configs[name], (3, 32, 32)) for name in ('E2E', 'RepL')}
    assert predict_cost(config, counted['E2E'], (3, 32, 32))['RepL'] == counted['RepL']
