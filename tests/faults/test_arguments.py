"""Contract: whatever an argument of a tool holds, the tool does its work, or ends with exit code 2 and one line.

Every argument of every tool's parser in turn is given each of the values below, beside a command line that is sound.
"""

import os
import re
import shutil
import signal
from argparse import SUPPRESS, Action
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import CLASSIFIER, run
from PIL import Image
from share import PART

SECONDS = 120  # a tool that is not through by then waits for something that never comes
NETWORK = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=32, repl=dict(policy='interval', every=4)",
)
E2E = ('--cfg-options', 'model.backbone.repl=None')
INTERVALS = ('--intervals', '4', '--batches', '1', '--images', '1')
# What each tool does within seconds; {x} stands for a file of the folder below.
SOUND = {
    'train': ['{net}', '--work-dir', '{new}'],
    'test': ['{net}', '{checkpoint}', '--work-dir', '{new}'],
    'eval_metric': ['{net}', '{predictions}'],
    'confusion_matrix': ['{net}', '{predictions}', '{new}.png'],
    'try': ['{e2e_net}', '--predict', '{no_device}', '--work-dir', '{new}'],  # which is no use, so nothing is trained
    'sites': ['{net}'],
    'print_config': ['{net}'],
    'cost': ['{net}', '--size', '8', '8'],
    'plan': ['{net}', '--save-time', '1%', '--size', '8', '8', '--seconds', '0.1'],
    'deploy': ['{net}', '{checkpoint}', '{new}'],
    'image_demo': ['{net}', '{checkpoint}', '{image}', '--out-dir', '{new}'],
    'browse_dataset': ['{net}', '--out-dir', '{new}', '--number', '1'],
    'seed_checkpoint': ['{net}', '{new}.pth'],
    'warm_start': ['{net}', '{e2e}', '{new}.pth', '--batches', '1'],
    'recoverability': ['{net}', '{e2e}', '--out', '{new}', '--batches', '1', *E2E],
    'study': ['{study}', '--estimate', '--seeds', '1', '--work-dir', '{new}'],
    'compare': ['{run}', '{other}', '--out', '{new}'],
    'doctor': ['--device', 'cpu', '--out', '{new}.json'],
    'analyze cka': ['{run}', '{other}', '--out', '{new}', '--batches', '1'],
    'analyze tsne': ['{run}', '--out', '{new}'],
    'analyze probes': ['{run}', '--out', '{new}', '--batches', '1'],
    'analyze cam': ['{run}', '--out', '{new}', '--number', '1'],
    'analyze features': ['{run}', '--out', '{new}', '--number', '1'],
    'analyze bound': ['{plain}', '{run}', *INTERVALS, '--out', '{new}'],
    'analyze bias': ['{plain}', '{run}', *INTERVALS, '--out', '{new}'],
    'analyze tradeoff': ['{plain}', '{run}', *INTERVALS, '--out', '{new}'],
    'quantize': ['{run}', '--out', '{new}', '--calibration', '8'],
    'show_predictions': ['{run}', '--out', '{new}.png', '--number', '1'],
    'prepare_data': ['cifar10', '{folder}'],
    'make_digit_scenes': ['coco', '{new}', '--train', '2', '--val', '1'],
    'benchmark latency': ['{net}', '--out', '{new}', '--batch-size', '1', '--size', '8', '8', '--seconds', '0.1'],
    'benchmark train': ['{net}', '--out', '{new}', '--batch-size', '1', '--size', '8', '8', '--seconds', '0.1'],
}
# What is no run of a detector, no data set, and too few samples are refused however sound the rest is.
ENDS = {'show_predictions': 2, 'prepare_data': 1, 'analyze tsne': 2}
# Those that run for seconds with a sound value: each argument is given a third of the values, all of them in turn.
SLOW = (
    *(tool for tool in SOUND if tool.startswith('analyze')),
    'deploy',
    'make_digit_scenes',
    'test',
    'image_demo',
    'plan',
    'try',
    'study',
    'warm_start',
    'recoverability',
)
# Those that take a minute: a ninth.
SLOWEST = ('benchmark train', 'quantize')
CODES = dict.fromkeys(('prepare_data', 'image_demo'), (0, 1, 2))  # 1: some files are bad, and each is named
VALUES = [
    '', ' ', '-1', '0', '1.5', 'nan', 'inf', '1e400', '9' * 30, '٣', 'x', '%', '%s{0}', '..', '~nobody/x',
    'a\nb\x1b[2J', 'a\udcffb', 'n' * 5000, '{nothing}', '{folder}', '{pipe}', '{null}', '{zero}', '{loop}', '{empty}',
    '{junk}', '{binary}', '{image}', '{checkpoint}', '{net}', '{run}', '-', '--', '=', 'x=', 'model=None', 'x=(1,',
    'x.y=1',
]  # fmt: skip


@pytest.fixture
def files(tmp_path_factory) -> dict[str, Path]:
    """A run and what is no run, by name; each tool has its own, as it may write over them."""
    root = tmp_path_factory.mktemp('arguments')
    place = {name: root / name for name in ('run', 'folder', 'pipe', 'null', 'zero', 'loop', 'empty', 'junk', 'binary')}
    place.update(net=root / 'net.py', image=root / 'image.png', nothing=root / 'nothing')
    place['e2e_net'] = root / 'e2e.py'
    place['e2e_net'].write_text(NETWORK.replace(", repl=dict(policy='interval', every=4)", ''))
    place['no_device'] = root / 'device.json'
    place['no_device'].write_text('{"fp32": 1, "tf32": 1, "bandwidth": 1, "launch_us": 1e6}')
    place['study'] = root / 'study.py'
    place['study'].write_text("title, metric, rows = 'A', 'accuracy/top1', [dict(name='E2E', config='net.py')]\n")
    place['net'].write_text(NETWORK + 'train_cfg.update(max_epochs=1)\n')
    assert run('train', place['net'], '--work-dir', place['run']).code == 0
    options = ['--cfg-options', 'model.backbone.repl=None']
    assert run('train', place['net'], '--work-dir', root / 'plain', *options).code == 0
    place['e2e'] = root / 'plain' / 'epoch_1.pth'
    place['plain'] = root / 'plain'
    place['other'] = root / 'other'
    shutil.copytree(place['run'], place['other'])
    place['checkpoint'] = place['run'] / 'epoch_1.pth'
    place['predictions'] = root / 'predictions.pkl'
    scored = run('test', place['net'], place['checkpoint'], '--work-dir', root, '--out', place['predictions'])
    assert scored.code == 0, scored.err
    place['folder'].mkdir()
    os.mkfifo(place['pipe'])
    place['null'].symlink_to('/dev/null')
    place['zero'].symlink_to('/dev/zero')
    place['loop'].symlink_to(place['loop'])
    place['empty'].touch()
    place['junk'].write_text('text\n' * 100)
    place['binary'].write_bytes(np.random.default_rng(0).bytes(5000))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place['image'])
    return place


@contextmanager
def time_limit(what: str):
    def give_up(*_):
        raise TimeoutError(f'{what} is not through after {SECONDS} seconds')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def actions(tool: str) -> list[Action]:
    module, _, kind = tool.partition(' ')
    parser = import_module(f'repl_mm.cli.{module}').build_parser()
    if kind:
        parser = next(a for a in parser._actions if isinstance(a.choices, dict)).choices[kind]
    return [a for a in parser._actions if a.default is not SUPPRESS and a.nargs != 0]


def command(tool: str, action: Action, value: str) -> list[str]:
    """The sound command line with this value for this argument, as often as it is taken."""
    times = action.nargs if isinstance(action.nargs, int) else 1
    given, sound = [value] * times, list(SOUND[tool])
    if not action.option_strings:
        at = [a.dest for a in actions(tool) if not a.option_strings].index(action.dest)
        sound[at : at + 1] = given
        return sound
    return [*sound, action.option_strings[0], *given]


@pytest.mark.parametrize('tool', SOUND)
def test_any_value_of_any_argument(tool, files, tmp_path, monkeypatch, survived):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('repl_mm.cli._doctor.CHECKS', {})  # which take a minute, and have tests of their own
    module, _, kind = tool.partition(' ')
    sound = [arg.format(new=tmp_path / 'sound', **files) for arg in SOUND[tool]]
    assert run(module, *([kind] if kind else []), *sound).code == ENDS.get(tool, 0)
    bad, tried = [], 0
    part = PART * (9 if tool in SLOWEST else 3 if tool in SLOW else 1)
    for place, action in enumerate(actions(tool)):
        for number, value in enumerate(VALUES[place % part :: part]):
            new = tmp_path / f'{action.dest}-{number}'
            args = [
                arg.format(new=new, **files) if '{' in arg and '{0}' not in arg else arg
                for arg in command(tool, action, value)
            ]
            tried += 1
            try:
                with time_limit(f'{tool} {args}'):
                    done = run(module, *([kind] if kind else []), *args)
            except BaseException as error:  # whatever a tool lets through
                bad.append((action.dest, value[:40], f'{type(error).__name__}: {str(error)[:200]}'))
                continue
            lines = done.err.strip().splitlines()
            if done.code not in CODES.get(tool, (0, 2)):
                bad.append((action.dest, value[:40], f'exit code {done.code}: {lines[-1:]}'))
            elif done.code == 2 and not re.search('error: .', lines[-1] if lines else ''):
                bad.append((action.dest, value[:40], f'last line {lines[-1:]}'))
            elif 'Traceback' in done.err or '\x1b[2J' in done.err + done.out:
                bad.append((action.dest, value[:40], f'shows {done.err[-300:]!r}'))
    assert not bad, '\n'.join(map(str, bad))
    survived(f'a bad argument of tools/{module}.py', tried)
