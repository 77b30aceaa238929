"""Contract: the tools that show sites and write seed checkpoints.

Oracles: the sites of the paper's rule; the same model built under the same seed.
"""

from pathlib import Path

import pytest
import torch
from cli_helpers import run
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
