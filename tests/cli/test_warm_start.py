"""Contract: the tool scores what test.py scores, and writes a checkpoint that test.py and train.py take.

Oracle: tools/test.py on the same checkpoints.
"""

import json
import re

import pytest
import torch
from cli_helpers import CLASSIFIER, run

NETWORK = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=8, base_channels=16, "
    "repl=dict(policy='interval', every=4)",
)
E2E = NETWORK.replace("dict(policy='interval', every=4)", 'None')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('warm')
    (root / 'repl.py').write_text(NETWORK)
    (root / 'e2e.py').write_text(E2E)
    assert run('train', root / 'e2e.py', '--work-dir', root / 'run').code == 0
    done = run('warm_start', root / 'repl.py', root / 'run/epoch_2.pth', root / 'out.pth')
    assert done.code == 0, done.err
    (root / 'printed').write_text(done.out)
    return root


def top1(folder, config, checkpoint):
    done = run('test', folder / config, checkpoint, '--work-dir', folder / 'test', '--verbose')
    assert done.code == 0
    (record,) = sorted(folder.glob('test/*/*.json'))[-1:]
    return json.loads(record.read_text())['accuracy/top1']


def test_its_scores_are_those_of_the_test(folder):
    scores = {
        name: row['accuracy/top1'] for name, row in json.loads((folder / 'out.json').read_text())['scores'].items()
    }
    assert len(scores) == 5
    assert scores['the trained network'] == top1(folder, 'e2e.py', folder / 'run/epoch_2.pth')
    last = list(scores)[-1]
    assert scores[last] == top1(folder, 'repl.py', folder / 'out.pth')
    assert f'{scores[last]:.2f}' in (folder / 'printed').read_text()
    assert f'| {last} | {scores[last]:.2f} |' in (folder / 'out.md').read_text()


def test_what_is_retained_is_the_trained_networks(folder):
    own, theirs = (
        torch.load(folder / name, weights_only=False)['state_dict'] for name in ('out.pth', 'run/epoch_2.pth')
    )
    kept = [key for key in own if key in theirs and 'running' not in key and 'tracked' not in key]
    assert len(kept) > 30
    assert all(torch.equal(own[key], theirs[key]) for key in kept)
    norm = [f'norm.{name}' for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')]
    assert set(own) - set(theirs) == {
        f'backbone.layer{stage}.3.{name}' for stage in (1, 2, 3) for name in ('alpha', 'beta', *norm)
    }


def test_training_goes_on_from_it(folder):
    args = ['--work-dir', folder / 'on', '--cfg-options', f'load_from={folder / "out.pth"}']
    assert run('train', folder / 'repl.py', *args).code == 0


BAD = [
    (['{e2e}', '{run}', '{new}.pth'], 'replaces nothing'),
    (['{repl}', '{new}', '{new}.pth'], 'there is no checkpoint'),
    (['{repl}', '{out}', '{new}.pth'], 'the checkpoint has a computing layer at layer1.3'),
    (['{repl}', '{run}', '{new}'], r'ends in \.pth'),
    (['{repl}', '{run}', '{new}.pth', '--batches', '0'], '--batches is at least 1, got 0'),
]


@pytest.mark.parametrize(('args', 'expected'), BAD)
def test_bad_input_is_one_line(args, expected, folder, tmp_path):
    place = dict(e2e=folder / 'e2e.py', repl=folder / 'repl.py', run=folder / 'run/epoch_2.pth', out=folder / 'out.pth')
    done = run('warm_start', *(arg.format(new=tmp_path / 'new', **place) for arg in args))
    assert done.code == 2
    assert re.search(f'error: .*{expected}', done.err.splitlines()[-1])
    assert not (tmp_path / 'new.pth').exists()
