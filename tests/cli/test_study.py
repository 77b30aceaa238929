"""Contract: a study trains each row with each seed once, from the same weights, and goes on after whatever ends a run.

Oracle: the same trainings by the tools, one after another.
"""

import json
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_helpers import CLASSIFIER, run

from repl_mm.cli import study as module

STUDY = """
title = 'A table'
metric = 'accuracy/top1'
seeds = 2
rows = [
    dict(name='E2E', config='net.py', small='net.py'),
    dict(name='RepL', config='net.py', small='net.py', versus='E2E', options={
        'model.backbone.repl': dict(policy='interval', every=4)}),
    dict(name='wild', config='net.py', versus='E2E', options={'optim_wrapper.optimizer.lr': 1e30}),
]
"""


class AtOnce(Executor):
    """Runs what it gets in this thread, where signals can be handled."""

    def __init__(self, number):
        pass

    def submit(self, run, *args):
        future = Future()
        future.set_result(run(*args))
        return future


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A study of a network that trains for a second, in the process of the test."""
    text = CLASSIFIER.replace(
        "type='ResNet_CIFAR', depth=18, base_channels=8", "type='repl_mm.ReplResNetCIFAR', depth=32"
    )
    (tmp_path / 'net.py').write_text(text)
    (tmp_path / 'study.py').write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def called(monkeypatch):
    """The tools that the study calls: in this process, as a process of its own takes ten seconds."""
    calls = []

    def in_process(tool, *args, log):
        calls.append((tool, *args))
        done = run(tool, *args)
        with log.open('a') as file:
            file.write(done.out + done.err)
        return done.code

    monkeypatch.setattr(module, 'launch', in_process)
    monkeypatch.setattr(module, 'ThreadPoolExecutor', AtOnce)
    return calls


def rows(folder: Path, profile: str = 'full') -> dict[str, dict]:
    report = json.loads((folder / f'work_dirs/studies/study-{profile}/report.json').read_text())
    return {row['name']: row for row in report['rows']}


def test_rows_start_from_the_same_weights_and_see_the_same_batches(folder, called):
    done = run('study', 'study.py', '--seeds', '2')
    assert done.code == 0, done.err
    found = rows(folder)
    assert {name: (row['seeds'], row['diverged']) for name, row in found.items()} == {
        'E2E': (2, 0), 'RepL': (2, 0), 'wild': (0, 2),
    }  # fmt: skip
    for seed in (0, 1):
        start = f'start-{seed}.pth'
        options = ['--cfg-options', f'randomness.seed={seed}']
        assert run('seed_checkpoint', 'net.py', start, *options).code == 0
        [ours, theirs] = [
            [
                torch.load(path, weights_only=False)['state_dict']
                for path in sorted(Path().glob(f'work_dirs/studies/runs/*/{start}'))
            ],
            torch.load(start)['state_dict'],
        ]
        assert len(ours) == 3
        assert all(torch.equal(other[key], value) for other in ours for key, value in theirs.items())
        for name, more in {
            'E2E': [],
            'RepL': ['model.backbone.repl.policy=interval', 'model.backbone.repl.every=4'],
        }.items():
            work_dir = Path(name, str(seed))
            assert run('train', 'net.py', '--work-dir', work_dir, *options, f'load_from={start}', *more).code == 0
            accuracy = [json.loads(line) for path in work_dir.glob('*/vis_data/scalars.json') for line in path.open()]
            [*_, last] = [line['accuracy/top1'] for line in accuracy if 'accuracy/top1' in line]
            found[name].setdefault('expected', []).append(last)
    for name in ('E2E', 'RepL'):
        assert found[name]['score'] == pytest.approx(sum(found[name]['expected']) / 2)
    page = (folder / 'work_dirs/studies/study-full/report.md').read_text()
    assert '| wild | –, 2 diverged | 0 | – |' in page
    # What is there is not trained again, nor by another profile that trains the same.
    number = len(called)
    assert run('study', 'study.py').code == 0
    assert run('study', 'study.py', '--profile', 'small').code == 0
    assert len(called) == number
    assert set(rows(folder, 'small')) == {'E2E', 'RepL'}


def test_a_run_that_was_stopped_goes_on(folder, called, monkeypatch):
    """Oracle: the study that nothing happened to."""
    assert run('study', 'study.py', '--seeds', '1', '--profile', 'small', '--work-dir', 'whole').code == 0
    launch = module.launch

    def stop(tool, *args, log):
        if (tool, len(called)) != ('train', 7):  # those of before, this study's first row, and this row's start
            return launch(tool, *args, log=log)
        launch(tool, *args, log=log)
        Path(args[2], 'epoch_2.pth').unlink()  # so this is what was there after the first epoch
        cost = Path(args[2], 'cost.json')
        cost.write_text(cost.read_text().replace('"complete": true', '"complete": false'))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, 'launch', stop)
        done = run('study', 'study.py', '--seeds', '1', '--profile', 'small')
        assert (done.code, done.err) == (130, 'interrupted: the same command goes on\n')
    assert run('study', 'study.py', '--seeds', '1', '--profile', 'small').code == 0
    assert called[-1][-1] == '--resume'
    whole = json.loads(Path('whole/study-small/report.json').read_text())['rows']
    for row, expected in zip(rows(folder, 'small').values(), whole, strict=True):
        assert (row['score'], row['difference']) == (expected['score'], expected['difference'])


def test_data_that_are_missing_end_it(folder, called):
    text = Path('net.py').read_text().replace("type='repl_mm.Digits', split='train', indices=96",
                                              "type='repl_mm.CIFAR10', data_root='nix', split='train'")  # fmt: skip
    Path('net.py').write_text(text)
    done = run('study', 'study.py', '--seeds', '1')
    assert done.code == 2
    assert done.err.startswith('error: E2E, seed 0, ended with code 2: cannot load the train data')
    assert 'get CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html' in done.err


def test_after_an_error_no_further_run_begins_and_it_is_told_at_once(monkeypatch, capsys):
    jobs = [SimpleNamespace(row=SimpleNamespace(name=name), seed=0, folder=Path(), finished=False) for name in 'abcd']
    began, said = [], []

    def train(job):
        began.append(job.row.name)
        if job.row.name == 'b':
            raise ValueError('b, seed 0, has no data')
        time.sleep(1)
        if job.row.name == 'a':
            said.append(capsys.readouterr().out)

    monkeypatch.setattr(module, 'train', train)
    with pytest.raises(ValueError, match='b, seed 0, has no data'):
        module.run_jobs(jobs, at_once=2)
    assert 'No further run begins: b, seed 0, has no data' in said[0]
    assert set(began) == {'a', 'b'}


def test_how_long_it_would_take(folder, called, monkeypatch):
    """The rows within one second by the clock, as on a fast machine."""
    monkeypatch.setattr(time, 'localtime', lambda *_: time.gmtime(1000))
    done = run('study', 'study.py', '--estimate', '--profile', 'small')
    assert done.code == 0, done.err
    assert 'in all, training alone, with 1 at once.' in done.out
    assert called == []


@pytest.mark.parametrize('flag', ['--seeds', '--jobs'])
def test_numbers_that_are_none(folder, flag):
    done = run('study', 'study.py', flag, '0')
    assert (done.code, done.err) == (2, f'error: {flag} is a number from 1, got 0\n')
