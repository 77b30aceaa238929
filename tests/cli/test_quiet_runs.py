"""Contract: a run tells in the terminal what is its own; its log file and --verbose tell the rest.

Oracles: the lines counted; mmengine's own message of keys that differ, and which blocks the sites stand for.
"""

import gc
import io
import logging
import subprocess
import sys
from unittest import mock

import pytest
import torch
from cli_helpers import CLASSIFIER, run
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import load_state_dict

from repl_mm.engine.logs import describe_mismatch

# Sites in three stages of five blocks.
REPL = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=16, base_channels=16, "
    "repl=dict(policy='interval', every=4)",
)
PLAIN = REPL.replace("repl=dict(policy='interval', every=4)", 'repl=None')


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'net.py').write_text(REPL)
    (tmp_path / 'plain.py').write_text(PLAIN)
    assert run('seed_checkpoint', tmp_path / 'plain.py', tmp_path / 'seed.pth').code == 0
    return tmp_path


def train(folder, *args):
    """What the terminal gets: loggers keep the stream that they found first."""
    with mock.patch.object(sys, '__stderr__', io.StringIO()):
        done = run('train', folder / 'net.py', '--work-dir', folder / 'run', *args)
    assert done.code == 0, done.err
    return (done.out + done.err).splitlines()


def test_a_process_begins_without_what_the_hosts_print():
    """The others here run in a process that has imported them already."""
    program = 'import repl_mm.cli._deploy; from repl_mm.engine.install import install; install()'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ''), done.stderr


def test_a_run_is_short_and_costed_and_its_file_is_whole(folder):
    options = ('--cfg-options', 'train_cfg.max_epochs=1', f'load_from={folder / "seed.pth"}')
    lines = train(folder, *options)
    text = '\n'.join(lines)
    steps = sum('Epoch(' in line for line in lines)
    assert steps == 12  # 6 of training, 5 of validation, and its end
    assert len(lines) <= steps + 6, text
    assert sum('3 sites start fresh, all other keys matched' in line for line in lines) == 1
    for noise in ('Hooks will be', 'OneDL', 'deprecated', 'System environment', 'unexpected key', 'Config:'):
        assert noise not in text
    # The cost of every training is measured, as its config asks for none.
    assert (folder / 'run' / 'cost.json').is_file()
    [log] = (folder / 'run').glob('*/*.log')
    assert 'Hooks will be executed' in log.read_text()
    assert 'Hooks will be executed' in '\n'.join(train(folder, '--verbose', *options))


def test_a_log_does_not_keep_its_runner(folder):
    """Nor the model and the workers of its loaders."""
    train(folder, '--cfg-options', 'train_cfg.max_epochs=1')
    gc.collect()
    assert [thing for thing in gc.get_objects() if isinstance(thing, Runner) and str(folder) in thing.work_dir] == []


def build(text):
    scope = {}
    exec(text, scope)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(scope['model'])


def mismatch(model, state_dict):
    """What mmengine says of a checkpoint that is loaded."""
    logger, stream = logging.Logger('test'), io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    load_state_dict(model, state_dict, logger=logger)
    return stream.getvalue()


def test_only_what_is_no_site_is_listed():
    plain, replaced = build(PLAIN), build(REPL)
    weights = plain.state_dict()
    assert describe_mismatch(replaced, mismatch(replaced, weights)) == ('3 sites start fresh, all other keys matched')
    head = {key: weights.pop(key) for key in ('head.fc.weight', 'head.fc.bias')}
    others = weights | {'extra': torch.zeros(1)}
    assert describe_mismatch(replaced, mismatch(replaced, others)) == (
        '3 sites start fresh, 2 keys missing (head.fc.weight, head.fc.bias), 1 keys left over (extra)'
    )
    other_shape = weights | head | {'head.fc.bias': torch.zeros(3)}
    text = describe_mismatch(replaced, mismatch(replaced, other_shape))
    assert 'size mismatch for head.fc.bias' in text
    assert 'all other keys matched' not in text
