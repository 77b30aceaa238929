"""Contract: each analysis of finished runs writes its picture and its numbers; bad input is one line.

Oracles: what CKA, probes and costs must be by definition; tools/test.py's score.
"""

import csv
import json
import re
import shutil

import pytest
import torch
from cli_helpers import CLASSIFIER, run

NETWORK = (
    CLASSIFIER.replace(
        "type='ResNet_CIFAR', depth=18, base_channels=8",
        "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=4, base_channels=16, "
        "repl=dict(policy='interval', every=4)",
    )
    .replace('indices=25', 'indices=40')
    .replace('batch_size=5', 'batch_size=20')
)
NETWORK = NETWORK.replace('max_epochs=2', 'max_epochs=1').replace('batch_size=16', 'batch_size=48')
E2E = NETWORK.replace("dict(policy='interval', every=4)", 'None')
BLOCKS = [f'layer{stage}.{index}' for stage in (1, 2, 3) for index in range(5)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('analyze')
    for name, text in (('e2e', E2E), ('repl', NETWORK)):
        (root / f'{name}.py').write_text(text)
        assert run('train', root / f'{name}.py', '--work-dir', root / name).code == 0
    return root


def analyse(folder, kind, *args):
    out = folder / 'out' / kind
    done = run('analyze', kind, folder / 'e2e', folder / 'repl', '--out', out, *args)
    assert done.code == 0, done.err
    assert (out / f'{kind}.png').read_bytes().startswith(b'\x89PNG')
    text = next(path for path in (out / f'{kind}.csv', out / f'{kind}.json') if path.exists()).read_text()
    return json.loads(text) if text.startswith('[') else list(csv.DictReader(text.splitlines()))


def test_cka(folder):
    rows = analyse(folder, 'cka', '--batches', '2')
    values = {(r['run'], r['block'], r['of run'], r['of block']): float(r['cka']) for r in rows}
    assert len(values) == 3 * 15 * 15
    for name in ('e2e', 'repl'):
        for i, one in enumerate(BLOCKS):
            assert values[name, one, name, one] == pytest.approx(1, abs=1e-6)
            for other in BLOCKS[:i]:
                assert values[name, one, name, other] == pytest.approx(values[name, other, name, one], abs=2e-6)
    assert values['e2e', BLOCKS[-1], 'repl', BLOCKS[-1]] < 0.9999


def test_tsne(folder):
    rows = analyse(folder, 'tsne')
    assert [(r['run'], r['class']) for r in rows[:40]] == [('e2e', r['class']) for r in rows[40:]]


def test_probes(folder):
    rows = analyse(folder, 'probes', '--batches', '8')
    assert [r['block'] for r in rows] == 2 * BLOCKS
    assert [r['block'] for r in rows if r['replaced'] == 'True'] == ['layer1.3', 'layer2.3', 'layer3.3']
    assert all(float(r['accuracy (%)']) % 2.5 == 0 for r in rows)  # of 40 images


@pytest.mark.parametrize('kind', ['cam', 'features'])
def test_pictures(folder, kind):
    rows = analyse(folder, kind, '--number', '3')
    assert len(rows) == {'cam': 6, 'features': 24}[kind]
    assert all(0 <= row['spread'] <= 1 for row in rows)  # an untrained network may find no evidence


def test_theory(folder):
    args = ('--intervals', '4', '9999', '--batches', '1', '--images', '1')
    (row,) = analyse(folder, 'bias', *args)  # and, in it, the bound
    assert float(row['bound']) >= float(row['bias']) > 0
    (row,) = analyse(folder, 'tradeoff', *args, '--policy', 'interval')
    assert (row['K'], row['sites'], row['eta']) == ('4', '3', '0.5')
    assert float(row['C(K), Eq. 76']) == 0.875
    # A BasicBlock of the three that go costs as much as any of the fifteen, but for the first of two stages.
    assert float(row['forward']) == pytest.approx(1 - 3 * 0.5 / 15, rel=0.02)


BAD = [
    (['cka', '{nothing}'], 'there is no run'),
    (['cka', '{empty}'], 'holds no checkpoint'),
    (['probes', '{nan}'], 'holds NaN or infinite values'),
    (['cam', '{e2e}', '{e2e}'], 'a run is given twice'),
    (['features', '{e2e}', '--number', '0'], '--number is at least 1, got 0'),
    (['tsne', '{e2e}', '--batches', '0'], '--batches is at least 1, got 0'),
    (['bound', '{e2e}'], 'takes two runs, got 1'),
    (['bound', '{repl}', '{e2e}'], 'give the E2E run first'),
    (['bias', '{e2e}', '{repl}', '--intervals', '1'], '--intervals are at least 2, got 1'),
    (['tradeoff', '{e2e}', '{repl}', '--intervals', '9', '--policy', 'interval'], 'no interval leaves a site'),
]


@pytest.mark.parametrize(('args', 'expected'), BAD)
def test_bad_input_is_one_line(folder, tmp_path, args, expected):
    place = dict(nothing=tmp_path / 'nothing', empty=tmp_path, nan=folder / 'nan')
    if args[1] == '{nan}':
        shutil.copytree(folder / 'e2e', folder / 'nan')
        checkpoint = torch.load(folder / 'nan/epoch_1.pth', weights_only=False)
        checkpoint['state_dict']['head.fc.weight'][0] = float('nan')
        torch.save(checkpoint, folder / 'nan/epoch_1.pth')
        (folder / 'nan/last_checkpoint').write_text(str(folder / 'nan/epoch_1.pth'))
    args = [arg.format(e2e=folder / 'e2e', repl=folder / 'repl', **place) for arg in args]
    done = run('analyze', *args, '--out', tmp_path / 'out')
    assert done.code == 2
    assert re.search(f'error: .*{expected}', done.err.splitlines()[-1])
    assert not (tmp_path / 'out').exists()
