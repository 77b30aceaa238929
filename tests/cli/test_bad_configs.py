"""Contract: a section or value of a config that cannot be is refused before anything is written, in one line.

Each of these ended in a traceback of a host library, or was silently taken.
"""

import json
import re

import pytest
import torch
from cli_helpers import CLASSIFIER, run

RESNET = (
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=8, base_channels=16, repl=dict({})",
)
INTERVAL = "policy='interval', every=4"
OPTIONS = [
    ('load_from=3', 'load_from of the config takes a text, got 3'),
    ('train_cfg.val_interval=0', 'train_cfg.val_interval of the config takes a whole number above 0, got 0'),
    ('train_cfg.max_epochs=None', 'train_cfg.max_epochs of the config takes a whole number above 0, got None'),
    ('compile.backend=bogus', "compile.backend of the config takes one of .*inductor.*, got 'bogus'"),
    ('=1', "got ''"),
    ('model.init_cfg=x', "model.init_cfg of the config takes a dict or a list of dicts, got 'x'"),
    ('model.head.init_cfg=3', 'model.head.init_cfg of the config takes a dict or a list of dicts, got 3'),
    ('model.backbone=[]', r'model.backbone of the config takes a dict, got \[\]'),
    ('default_hooks=[1]', r'default_hooks of the config takes a dict of dicts, got \[1\]'),
    ('custom_hooks=x', "custom_hooks of the config takes a list of dicts, got 'x'"),
    ('train_dataloader=3', 'train_dataloader of the config takes a dict, got 3'),
    ('train_dataloader.num_workers=x', "train_dataloader.num_workers of the config takes a whole number, got 'x'"),
    ('env_cfg=None', 'env_cfg of the config takes a dict, got None'),
    ('train_dataloader.dataset.pipeline.0=x', 'is an item of a list.*give all of train_dataloader.dataset.pipeline$'),
    ('data_preprocessor.mean.0=1', 'give all of data_preprocessor.mean$'),
]


@pytest.fixture
def refused(tmp_path):
    """Train with this text as a config, and give the line that it ends with."""

    def train(text: str, *options: str) -> str:
        (tmp_path / 'net.py').write_text(text)
        args = ['--cfg-options', *options] if options else []
        done = run('train', tmp_path / 'net.py', '--work-dir', tmp_path / 'work', *args)
        assert done.code == 2
        assert 'Traceback' not in done.err
        assert not list(tmp_path.glob('work/*.pth'))
        return done.err.splitlines()[-1]

    return train


@pytest.mark.parametrize(('option', 'expected'), OPTIONS)
def test_options(option, expected, refused):
    assert re.search(expected, refused(CLASSIFIER, option))


def test_a_mapping_still_merges_into_an_item_of_a_list(tmp_path):
    """By hand: mmengine's spelling for one key of a hook."""
    (tmp_path / 'net.py').write_text(
        f"{CLASSIFIER}custom_hooks = [dict(type='EMAHook', momentum=0.1)]\ntrain_cfg['max_epochs'] = 1\n"
    )
    args = ['--cfg-options', 'custom_hooks.0.momentum=0.5']
    assert run('train', tmp_path / 'net.py', '--work-dir', tmp_path / 'work', *args).code == 0
    assert 'momentum=0.5' in (tmp_path / 'work' / 'net.py').read_text()


@pytest.mark.parametrize(
    ('repl', 'more', 'expected'),
    [
        (f'{INTERVAL}, layout=3', '', 'layout'),
        (INTERVAL, ', out_indices={3: 1}', "'out_indices' is the number of a stage or block, or a list of them"),
        (INTERVAL, ', out_indices={3}', "'out_indices' is the number of a stage or block, or a list of them"),
        (INTERVAL, ', out_indices=(True,)', "'out_indices' is the number of a stage or block, or a list of them"),
    ],
)
def test_backbones(repl, more, expected, refused):
    old, new = RESNET
    assert expected in refused(CLASSIFIER.replace(old, new.format(repl) + more))


@pytest.mark.parametrize('name', ['patch_size', 'img_size'])
@pytest.mark.parametrize('value', ['0', '-8', '(8, 0)', '1.5', "'8'"])
def test_sizes_of_a_vit(name, value, refused):
    sizes = dict(img_size='8', patch_size='4') | {name: value}
    vit = (
        "type='repl_mm.ReplViT', arch='deit-tiny', img_size={img_size}, patch_size={patch_size}, "
        "repl=dict(policy='interval', every=4)"
    )
    assert f"'{name}' is a number of pixels above 0" in refused(CLASSIFIER.replace(RESNET[0], vit.format(**sizes)))


@pytest.mark.parametrize('digits', [400, 5000])
def test_an_area_that_no_float_holds(digits, refused, tmp_path):
    annotation = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 5, 5], area=0, iscrowd=0)
    images, categories = [dict(id=1, file_name='a.png', width=8, height=8)], [dict(id=1, name='person')]
    text = json.dumps(dict(images=images, annotations=[annotation], categories=categories))
    (tmp_path / 'boxes.json').write_text(text.replace('"area": 0', f'"area": {"9" * digits}'))
    (tmp_path / 'a.png').touch()
    data = f"dict(type='repl_mm.CocoDataset', data_root='{tmp_path}', ann_file='boxes.json', data_prefix=dict(img=''), "
    data += "pipeline=[], metainfo=dict(classes=('person',)))"
    line = refused(f"{CLASSIFIER}train_dataloader['dataset'] = {data}\n")
    assert 'boxes.json' in line


@pytest.mark.parametrize('is_able', [True, False])
def test_what_a_torch_cannot_compile_is_refused(is_able, tmp_path, monkeypatch):
    monkeypatch.setattr('repl_mm.cli._config_checks.can_compile', lambda: is_able)
    (tmp_path / 'net.py').write_text(CLASSIFIER + 'compile = True\n')
    done = run('print_config', tmp_path / 'net.py')
    said = f'compile of the config needs torch 2.6 or newer, and this is torch {torch.__version__}'
    assert (done.code, said in done.err) == ((0, False) if is_able else (2, True)), done.err
