"""Contract: predictions that a test has saved are scored again without the network, and nothing in them is run.

Oracles: the scores of the test that saved them; scikit-learn's count over its own digits.
"""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import CLASSIFIER, run
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import train_test_split
from test_tools import DETECTOR, SEGMENTER, scenes  # noqa: F401 (a fixture)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A config, and what its network says of 25 digits."""
    root = tmp_path_factory.mktemp('saved')
    (root / 'net.py').write_text(CLASSIFIER)
    assert run('train', root / 'net.py', '--work-dir', root, '--cfg-options', 'train_cfg.max_epochs=1').code == 0
    assert run('test', root / 'net.py', root / 'epoch_1.pth', '--work-dir', root, '--out', root / 'found.pkl').code == 0
    return root


def last_scores(folder: Path) -> dict:
    return json.loads(sorted(folder.glob('2*/2*.json'))[-1].read_text())


def row(out: str, name: str) -> float:
    [line] = [line for line in out.splitlines() if name in line]
    return float(line.replace('│', ' ').split()[-1])


def test_a_classifier_is_scored_and_counted(saved, tmp_path):
    done = run('eval_metric', saved / 'net.py', saved / 'found.pkl')
    assert done.code == 0, done.err
    assert row(done.out, 'Top-1') == pytest.approx(last_scores(saved)['accuracy/top1'], abs=0.005)

    done = run('confusion_matrix', saved / 'net.py', saved / 'found.pkl', tmp_path / 'new' / 'matrix.png')
    assert done.code == 0, done.err
    labels = load_digits().target
    _, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    found = [int(p['pred_score'].argmax()) for p in pickle.loads((saved / 'found.pkl').read_bytes())]
    head, *rows = csv.reader((tmp_path / 'new' / 'matrix.csv').read_text().splitlines())
    assert head[1:] == [r[0] for r in rows] == list('0123456789')
    expected = confusion_matrix(labels[held_out[:25]], found, labels=range(10))
    assert np.array_equal(np.array([r[1:] for r in rows], dtype=int), expected)
    with Image.open(tmp_path / 'new' / 'matrix.png') as picture:
        assert min(picture.size) > 500


@pytest.mark.parametrize('text', [DETECTOR, SEGMENTER])
def test_detectors_and_segmenters(text, scenes, tmp_path):  # noqa: F811
    config = tmp_path / 'net.py'
    config.write_text(text.replace('{data}', str(scenes)))
    parsed = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(parsed.default_scope) as registry:
        torch.save(registry.build(parsed.model).state_dict(), tmp_path / 'weights.pth')
    out = tmp_path / 'found.pkl'
    assert run('test', config, tmp_path / 'weights.pth', '--work-dir', tmp_path, '--out', out).code == 0
    if text is DETECTOR:  # a network that was never trained finds nothing: let it find the object of every image
        predictions = pickle.loads(out.read_bytes())
        for sample in predictions:
            found = dict(bboxes=torch.tensor([[8.0, 8, 40, 40]]), labels=torch.tensor([0]), scores=torch.tensor([0.9]))
            sample['pred_instances'] = found
        out.write_bytes(pickle.dumps(predictions))
        expected = {'AP50': 1.0}
    else:
        expected = {'mIoU': last_scores(tmp_path)['mIoU']}
    done = run('eval_metric', config, out)
    assert done.code == 0, done.err
    for name, value in expected.items():
        assert row(done.out, f' {name} ') == pytest.approx(value, abs=0.005)

    done = run('confusion_matrix', config, out, tmp_path / 'matrix.png')
    assert done.code == 0, done.err
    counts = np.array(
        [line[1:] for line in list(csv.reader((tmp_path / 'matrix.csv').read_text().splitlines()))[1:]], dtype=int
    )
    if text is DETECTOR:
        assert counts.tolist() == [[3, 0], [0, 0]]
    else:  # the labels are all of the first class
        assert (counts.sum(), counts[0].sum()) == (3 * 64 * 64, 3 * 64 * 64)


class Runs:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused(saved, tmp_path):
    touched = tmp_path / 'touched'
    assert b'_load_from_bytes' in pickle.dumps(torch.tensor([1.0]))  # what it hands to torch may be a pickle, too
    for number, content in enumerate(([dict(pred_score=Runs(touched))], Runs(touched))):
        path = tmp_path / f'{number}.pkl'
        path.write_bytes(pickle.dumps(content))
        done = run('eval_metric', saved / 'net.py', path)
        assert (done.code, 'could run code' in done.err) == (2, True), done.err
    hidden = pickle.dumps(Hidden(pickle.dumps(Runs(touched))))
    (tmp_path / 'hidden.pkl').write_bytes(hidden)
    done = run('eval_metric', saved / 'net.py', tmp_path / 'hidden.pkl')
    assert done.code == 2
    assert not touched.exists()
    pickle.loads(pickle.dumps(Runs(touched)))
    assert touched.exists()  # it would have


class Hidden:
    """A tensor's storage as plain pickle has it, with any pickle in its place."""

    def __init__(self, content: bytes):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        pytest.param(b'', 'cannot read the predictions', id='empty'),
        pytest.param(b'text', 'cannot read the predictions', id='no pickle'),
        pytest.param(pickle.dumps([]), 'holds no predictions', id='none'),
        pytest.param(pickle.dumps({'a': 1}), 'holds no predictions', id='no list'),
        pytest.param(pickle.dumps([{'a': 1}]), 'holds 1 predictions, and the test data of', id='too few'),
        pytest.param(pickle.dumps([{'a': 1}] * 25), 'does not fit', id='of something else'),
    ],
)
def test_other_files_are_refused(content, said, saved, tmp_path):
    (tmp_path / 'found.pkl').write_bytes(content)
    for tool, *rest in (('eval_metric',), ('confusion_matrix', tmp_path / 'matrix.png')):
        done = run(tool, saved / 'net.py', tmp_path / 'found.pkl', *rest)
        one_label = tool == 'confusion_matrix' and said == 'does not fit'
        assert (done.code, ('one label each' if one_label else said) in done.err) == (2, True), done.err
    assert not (tmp_path / 'matrix.png').exists()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (['matrix.jpg'], 'ends in .png'),
        (['matrix.png', '--score-thr', 'nan'], '--score-thr is from 0 to 1'),
        (['matrix.png', '--iou-thr', '2'], '--iou-thr is from 0 to 1'),
    ],
)
def test_bad_arguments_of_the_matrix(options, said, saved):
    done = run('confusion_matrix', saved / 'net.py', saved / 'found.pkl', *options)
    assert (done.code, said in done.err) == (2, True), done.err
