"""Contract: the tools that show sites and write seed checkpoints.

Oracles: the sites of the paper's rule; the same model built under the same seed.
"""

import csv
import json
from pathlib import Path

import pytest
import torch
from cli_helpers import CLASSIFIER, run
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import set_random_seed

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / 'configs' / 'demo' / 'resnet32_digits.py'


def test_sites_are_shown_with_their_neighbours():
    done = run('sites', ROOT / 'configs' / 'demo' / 'resnet32-repl_digits.py')
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if 'ComputingBasicBlock' in line]
    # Block 4 of 5 in every stage; 4 C parameters for C = 16, 32, 64 (Eq. 44).
    for line, stage, parameters in zip(lines, (1, 2, 3), (64, 128, 256), strict=True):
        assert line.replace('│', ' ').split() == [
            f'layer{stage}.3', f'({stage - 1},', '3)', 'ComputingBasicBlock', str(parameters),
            f'layer{stage}.2', f'layer{stage}.4',
        ]  # fmt: skip
    assert done.out.count('■ ■ ■ □ ■') == 3


def test_a_config_without_sites_is_refused():
    done = run('sites', DIGITS)
    assert done.code == 2
    assert 'replaces nothing' in done.err
    assert 'Traceback' not in done.err


@pytest.mark.parametrize(
    ('config', 'kind'),
    [
        ('mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', 'ReplSwin'),
        ('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py', 'ReplSwin'),
        ('mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py', 'ReplViT'),
    ],
)
def test_advice_names_the_backbone_that_stands_for_the_given_one(config, kind, tmp_path):
    (tmp_path / 'plain.py').write_text(f"_base_ = '{config}'")
    done = run('sites', tmp_path / 'plain.py')
    assert done.code == 2
    assert f"give its backbone type='repl_mm.{kind}' and repl=dict(policy='interval', every=4)" in done.err


def test_advice_for_a_backbone_without_sites_says_so(tmp_path):
    (tmp_path / 'plain.py').write_text("_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'")
    done = run('sites', tmp_path / 'plain.py')
    assert (done.code, "no sites in a backbone of type 'MobileNetV2'" in done.err) == (2, True), done.err


SITE_1 = ['layer1.3  (0, 3)', 'ComputingBasicBlock', '64', 'layer1.2', 'layer1.4']


def test_tables_are_written_as_the_name_says(tmp_path):
    config = ROOT / 'configs' / 'demo' / 'resnet32-repl_digits.py'
    for form in ('json', 'csv', 'md'):
        done = run('sites', config, '--out', tmp_path / 'new' / f'sites.{form}')
        assert (done.code, done.out.splitlines()[-1]) == (0, f'Wrote {tmp_path}/new/sites.{form}'), done.err
    stages, sites = json.loads((tmp_path / 'new' / 'sites.json').read_text())
    assert (stages['title'], stages['rows'][0][:2]) == ('ReplResNetCIFAR-32', ['layer1', '5'])
    assert sites['rows'][0] == SITE_1
    stages, sites = (tmp_path / 'new' / 'sites.csv').read_text().split('\n\n')
    assert list(csv.reader(sites.splitlines()))[1] == SITE_1
    assert f'| {" | ".join(["layer1.3 (0, 3)", *SITE_1[1:]])} |' in (tmp_path / 'new' / 'sites.md').read_text()
    done = run('cost', config, '--size', '32', '32', '--out', tmp_path / 'cost.json')
    assert done.code == 0, done.err
    [table] = json.loads((tmp_path / 'cost.json').read_text())
    assert table['rows'][0][:3] == ['E2E', 'counted', '466,906']
    for tool in ('sites', 'cost', 'plan'):
        assert "a file that ends in .md, .csv, .json, got 'x.txt'" in run(tool, config, '--out', 'x.txt').err


def test_a_seed_checkpoint_is_the_model_as_it_starts(tmp_path):
    done = run('seed_checkpoint', DIGITS, tmp_path / 'new' / 'seed.pth')
    assert done.code == 0, done.err
    written = torch.load(tmp_path / 'new' / 'seed.pth', weights_only=True)['state_dict']
    set_random_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(DIGITS).model)
    model.init_weights()
    expected = model.state_dict()
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['seed.pth']


@pytest.mark.parametrize('out', ['.', '/proc/seed.pth'])
def test_a_seed_checkpoint_that_cannot_be_written_is_refused(out, tmp_path):
    done = run('seed_checkpoint', DIGITS, tmp_path / out)
    assert done.code == 2
    assert done.err.strip().splitlines()[-1].startswith('error: ')
    assert 'Traceback' not in done.err
    assert list(tmp_path.iterdir()) == []


def test_print_config_shows_what_inheritance_and_options_make(tmp_path):
    """Oracle: mmengine's own reading of the two files, and of what is printed."""
    (tmp_path / 'base.py').write_text(CLASSIFIER)
    (tmp_path / 'net.py').write_text("_base_ = './base.py'\nmodel = dict(backbone=dict(base_channels=16))\n")
    options = ('--cfg-options', 'train_cfg.max_epochs=7')
    printed = Config.fromstring(run('print_config', tmp_path / 'net.py', *options).out, '.py')
    expected = Config.fromfile(tmp_path / 'net.py')
    assert printed.model == expected.model
    assert printed.train_cfg == dict(expected.train_cfg, max_epochs=7)
    lines = run('print_config', tmp_path / 'net.py', '--keys', *options).out.splitlines()
    assert 'model.backbone.base_channels=16' in lines
    assert 'train_cfg.max_epochs=7' in lines
    assert "train_dataloader.dataset.pipeline.0.type='PackInputs'" in lines
