"""Contract: a run that is killed, as often and wherever it may be, and resumed ends as if nothing had happened.

Oracle: the run that was never interrupted. Weights, their moving average, the optimizer and the schedulers are compared
bit for bit.
"""

import random
import re
import subprocess
import sys

import pytest
import torch
from helpers import same
from runs import EVERY, ROOT, STEPS, TASKS, die_after, die_in, die_while_saving, output, start, write_config
from share import PART

KILLS = 18 // PART  # for each task


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """Scenes for detection and segmentation."""
    folder = tmp_path_factory.mktemp('data')
    for kind in ('coco', 'cityscapes'):
        tool = [sys.executable, ROOT / 'tools/make_digit_scenes.py', kind, folder / kind, '--train', '22', '--val', '2']
        subprocess.run(tool, check=True, stdout=subprocess.DEVNULL)
    return folder


def fault(chance: random.Random):
    """A moment to die at, within the next few steps."""
    kind = chance.random()
    if kind < 0.2:
        return 'at a random moment', die_in(chance.uniform(0, 3))
    if kind < 0.45:
        return 'while it saves a checkpoint', die_while_saving(
            chance.randint(1, 2), fraction=chance.choice([0, 0.01, chance.random(), 0.9999, 1])
        )
    return 'at a random step', die_after(chance.randint(1, 2 * EVERY + 2), inside=chance.random() < 0.5)


@pytest.mark.parametrize('task', TASKS)
def test_killed_runs_end_as_if_nothing_had_happened(task, data, tmp_path, survived):
    config = write_config(task, folder=tmp_path, data=data)
    whole = start(config, tmp_path / 'whole')
    whole.join()
    assert whole.exitcode == 0, output(tmp_path / 'whole')
    expected = torch.load(tmp_path / f'whole/iter_{STEPS}.pth', weights_only=False)

    chance, kills, round_ = random.Random(task), 0, 0
    while kills < KILLS:
        work_dir = tmp_path / f'killed{round_}'
        code = -9
        while code == -9:
            kind, before = fault(chance)
            run = start(config, work_dir, '--resume', before=before)
            run.join()
            code = run.exitcode
            if code == -9:
                kills += 1
                survived(f'{task}: killed {kind}')
        assert code == 0, output(work_dir)
        found = torch.load(work_dir / f'iter_{STEPS}.pth', weights_only=False)
        for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
            assert same(found[part], expected[part]), f'{part} of {work_dir}'
        assert found['cost']['steps'] == expected['cost']['steps'] == STEPS
        assert list(work_dir.glob('.*.part')) == []
        assert re.findall(r'^error.*|Traceback', output(work_dir), re.MULTILINE) == []
        round_ += 1
