"""Contract: the tool scores a network in which one block is replaced as the other tools do, and the planner reads it.

Oracle: tools/warm_start.py and tools/test.py on configs with that one site.
"""

import json
import re

import pytest
from cli_helpers import CLASSIFIER, run

NETWORK = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=8, base_channels=16, repl=None",
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('recoverability')
    (root / 'e2e.py').write_text(NETWORK)
    (root / 'sites.py').write_text(NETWORK.replace('repl=None', "repl=dict(policy='explicit', sites=[(1, 2)])"))
    (root / 'shallow.py').write_text(CLASSIFIER)
    (root / 'unscored.py').write_text(NETWORK.replace('val_evaluator = test', 'test'))
    assert (
        run('train', root / 'e2e.py', '--work-dir', root / 'run', '--cfg-options', 'train_cfg.max_epochs=6').code == 0
    )
    assert run('train', root / 'shallow.py', '--work-dir', root / 'other').code == 0
    done = run('recoverability', root / 'e2e.py', root / 'run/epoch_6.pth', '--out', root / 'out', '--batches', 3)
    assert done.code == 0, done.err
    (root / 'printed').write_text(done.out)
    return root


def top1(folder, config, checkpoint):
    assert run('test', folder / config, checkpoint, '--work-dir', folder / 'test', '--verbose').code == 0
    (record,) = sorted(folder.glob('test/*/*.json'))[-1:]
    return json.loads(record.read_text())['accuracy/top1']


def test_its_scores_are_those_of_the_other_tools(folder):
    found = json.loads((folder / 'out/recoverability.json').read_text())
    names = [f'layer{stage}.{index}' for stage in (1, 2, 3) for index in (1, 2, 3)]
    assert [block['name'] for block in found['blocks']] == names
    assert found['score'] == top1(folder, 'e2e.py', folder / 'run/epoch_6.pth')
    by_hand = run('warm_start', folder / 'sites.py', folder / 'run/epoch_6.pth', folder / 'warm.pth', '--batches', 3)
    assert by_hand.code == 0, by_hand.err
    block = found['blocks'][names.index('layer2.2')]
    assert block['score'] == top1(folder, 'sites.py', folder / 'warm.pth')
    assert all(b['loss'] == pytest.approx(found['score'] - b['score']) for b in found['blocks'])
    # The network is one of few images; that the blocks differ shows that each has its own score.
    assert len({b['score'] for b in found['blocks']}) > 1


def test_its_table_picture_and_verdict(folder):
    found = json.loads((folder / 'out/recoverability.json').read_text())
    text, printed = (folder / 'out/recoverability.md').read_text(), (folder / 'printed').read_text()
    for block in found['blocks']:
        (line,) = [line for line in text.splitlines() if line.startswith(f'| {block["name"]} |')]
        assert line.startswith(f'| {block["name"]} | {block["fit"]["distances"]["conv1"]:.4f} |')
        assert line.endswith(f'| {block["score"]:.2f} | {block["loss"]:+.2f} |')
    verdict = re.search('The weight-space distance (does not predict|predicts) what is lost.*', text)[0]
    assert verdict in printed
    known = [rank for rank in found['correlations'] if rank['quantity'].startswith('distance') and rank['interval']]
    assert ('does not' not in verdict) == any(rank['interval'][0] > 0 for rank in known)
    assert (folder / 'out/recoverability.png').read_bytes().startswith(b'\x89PNG')


PLAN = ('--save-memory', '1%', '--size', '8', '8', '--seconds', '0')


def test_the_planner_takes_what_costs_least(folder):
    done = run('plan', folder / 'e2e.py', *PLAN, '--by', folder / 'out/recoverability.json')
    assert done.code == 0, done.err
    assert 'Top-1 accuracy (%) lost, sum of blocks' in done.out
    found = {
        tuple(b['site']): b['loss'] for b in json.loads((folder / 'out/recoverability.json').read_text())['blocks']
    }
    sites = eval(re.search(r'sites=(\[.*?\])', done.out)[1])
    assert f'{sum(found[site] for site in sites):+.4g}' in done.out


BAD = [
    (['{e2e}', '{new}', '--out', '{new}'], 'there is no checkpoint'),
    (['{e2e}', '{other}', '--out', '{new}'], 'the checkpoint .*belongs to another'),
    (['{sites}', '{run}', '--out', '{new}'], 'has sites already: give the config of the training without sites'),
    (['{shallow}', '{other}', '--out', '{new}'], r'no block that can be replaced, its stages have \(2, 2, 2, 2\)'),
    (['{unscored}', '{run}', '--out', '{new}'], 'lacks val_evaluator: give a config of a whole experiment'),
    (['{e2e}', '{run}', '--out', '{new}', '--cfg-options', 'val_dataloader.dataset.indices=0'], 'val_dataloader'),
    (['{e2e}', '{run}', '--out', '{run}'], 'is a file: give a folder'),
    (['{e2e}', '{run}', '--out', '{new}', '--batches', '0'], '--batches is at least 1, got 0'),
]


@pytest.mark.parametrize(('args', 'expected'), BAD)
def test_bad_input_is_one_line(args, expected, folder, tmp_path):
    place = {name: folder / f'{name}.py' for name in ('e2e', 'sites', 'shallow', 'unscored')}
    place |= dict(run=folder / 'run/epoch_6.pth', other=folder / 'other/epoch_2.pth', new=tmp_path / 'new')
    done = run('recoverability', *(arg.format(**place) for arg in args))
    assert done.code == 2
    assert re.search(f'error: .*{expected}', done.err.splitlines()[-1]), done.err
    assert not (tmp_path / 'new/recoverability.json').exists()


def test_the_planner_refuses_another_networks_file(folder):
    options = ('--cfg-options', 'model.backbone.depth=44')
    done = run('plan', folder / 'e2e.py', *PLAN, '--by', folder / 'out/recoverability.json', *options)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert 'is of another network, its blocks are [5, 5, 5] and those of the config [7, 7, 7]' in done.err
