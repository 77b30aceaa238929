"""Contract: a study that was killed goes on, and ends with the table of one that nothing happened to.

Oracle: that study.
"""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import CLASSIFIER

ROOT = Path(__file__).parents[2]
STUDY = """
title = 'A table'
metric = 'accuracy/top1'
seeds = 2
rows = [
    dict(name='E2E', config='net.py'),
    dict(name='RepL', config='net.py', versus='E2E', options={
        'model.backbone.repl': dict(policy='interval', every=4)}),
]
"""
KNOWN = ('name', 'seeds', 'score', 'deviation', 'difference', 'interval_low', 'interval_high', 'parameters', 'flops')


@pytest.fixture
def study(tmp_path):
    text = CLASSIFIER.replace(
        "type='ResNet_CIFAR', depth=18, base_channels=8", "type='repl_mm.ReplResNetCIFAR', depth=32"
    )
    (tmp_path / 'net.py').write_text(text)
    (tmp_path / 'study.py').write_text(STUDY)

    def start(work_dir: str) -> subprocess.Popen:
        # A path that no other study has, as its runs are killed by it.
        command = [
            sys.executable,
            ROOT / 'tools/study.py',
            'study.py',
            '--jobs',
            '2',
            '--work-dir',
            tmp_path / work_dir,
        ]
        env = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
        log = (tmp_path / f'{work_dir}.log').open('a')
        return subprocess.Popen(
            command, cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

    return start


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / 'study-full/report.csv').open() as file:
        return [{key: row[key] for key in KNOWN} for row in csv.DictReader(file)]


@pytest.mark.parametrize('what', ['the study and its runs', 'a run'])
def test_a_killed_study_goes_on(study, tmp_path, what, survived):
    whole = study('whole')
    assert whole.wait(600) == 0
    first = study('cut')
    while not (saved := list(tmp_path.glob('cut/runs/*/seed-*/epoch_1.pth'))):
        assert first.poll() is None, (tmp_path / 'cut.log').read_text()
        time.sleep(0.05)
    if what == 'a run':
        subprocess.run(['pkill', '-KILL', '-f', '--', f'--work-dir {saved[0].parent}'], check=True)
        assert first.wait(600) == 2
        assert 'ended with code -9' in (tmp_path / 'cut.log').read_text()
    else:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait(60)
    assert not (tmp_path / 'cut/study-full').exists()
    assert study('cut').wait(600) == 0
    assert table(tmp_path / 'cut') == table(tmp_path / 'whole')
    survived('study killed')
