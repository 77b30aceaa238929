"""Contract: when one of several processes dies, stalls or diverges, all end within a stated time, and say which it was.

Oracle: the clock, what is printed, and the run of two processes that nothing happened to. These are real launches:
``dist_train.sh``, torchrun, gloo.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import CLASSIFICATION, COMMON, ROOT

STEPS = 12
TIMEOUT = 25  # of the watchdog, in seconds: more than the imports take on a busy machine
GRACE = 30  # what torchrun gives a process that is asked to end
START = 60  # imports, on a busy machine
FAULTS = """
import os, signal, time
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Fault(Hook):
    priority = 'LOWEST'

    def __init__(self):
        if os.environ.get('FAULT') == 'stuck in set-up' and os.environ['RANK'] == '1':
            time.sleep(1000)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        kind = os.environ.get('FAULT')
        if kind == 'slow' and runner.rank == 1:
            time.sleep(1)
        if runner.iter != 7:
            return
        if kind == 'preempted' and runner.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == 'all preempted':
            os.killpg(0, signal.SIGTERM) if runner.rank == 0 else time.sleep(1)
        if runner.rank == 0:
            return
        if kind in ('killed', 'stopped'):
            os.kill(os.getpid(), dict(killed=signal.SIGKILL, stopped=signal.SIGSTOP)[kind])
        if kind == 'nan gradient':
            weight = runner.model.module.head.fc.weight
            handle = weight.register_hook(lambda gradient: (handle.remove(), gradient * float('nan'))[1])
        if kind == 'nan':
            data_batch['inputs'] = data_batch['inputs'] * float('nan')
        if kind == 'stuck in data':
            import repl_mm.datasets.checked
            repl_mm.datasets.checked.Digits.__getitem__ = lambda *_: time.sleep(1000)
        if kind == 'stuck in a step':
            time.sleep(1000)

    def before_run(self, runner):
        if os.environ.get('FAULT') == 'stuck before the run' and runner.rank == 1:
            time.sleep(1000)

    def after_train(self, runner):
        from mmengine.dist import all_gather

        for name, value in runner.model.named_parameters():
            if not all(other.equal(value) for other in all_gather(value.data)):
                print('ranks differ:', name)
"""


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    (folder / 'faults.py').write_text(FAULTS)
    text = CLASSIFICATION.format(root=ROOT).replace('indices=44', 'indices=64').replace('workers=2', 'workers=0')
    text += COMMON.format(val_interval=9).replace('train_cfg = dict(', 'train_cfg.update(', 1)
    text += f"""
custom_imports = dict(imports=['faults'])
custom_hooks.extend([dict(type='mmengine.Fault'), dict(type='repl_mm.WatchdogHook', timeout={TIMEOUT})])
"""
    (folder / 'config.py').write_text(text)
    return folder / 'config.py'


def environment(config: Path, fault: str) -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return os.environ | dict(
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        PYTHONPATH=f'{config.parent}:{ROOT}',
        PORT=str(port),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='-1',
        FAULT=fault,
    )


def launch(config: Path, work_dir: Path, *args: str, fault: str = '', seconds: float) -> tuple[int, str]:
    """Two processes with a fault: exit code and what they print. They have so many seconds after their start."""
    command = [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *args]
    run = subprocess.run(
        list(map(str, command)), env=environment(config, fault), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=START + seconds, start_new_session=True,
    )  # fmt: skip
    return run.returncode, run.stdout


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
    """The weights after a run of two processes that nothing happened to."""
    work_dir = tmp_path_factory.mktemp('whole')
    code, text = launch(config, work_dir, seconds=60)
    assert code == 0, text
    return torch.load(work_dir / f'iter_{STEPS}.pth', weights_only=False)['state_dict']


def resume(config, work_dir, whole):
    """Go on, and end as if nothing had happened."""
    code, text = launch(config, work_dir, '--resume', seconds=60)
    assert code == 0, text
    found = torch.load(work_dir / f'iter_{STEPS}.pth', weights_only=False)['state_dict']
    assert all(torch.equal(found[key], value) for key, value in whole.items())


def test_a_killed_rank_ends_the_others(config, whole, tmp_path, survived):
    code, text = launch(config, tmp_path, fault='killed', seconds=10 + GRACE)
    assert code != 0
    assert re.search(r'rank\s*: 1 \(local_rank: 1\)\s+exitcode\s*: -9', text)
    resume(config, tmp_path, whole)
    survived('rank killed')


def launch_nodes(config: Path, work_dir: Path, *args: str, fault: str = '', seconds: float) -> list[tuple[int, str]]:
    """One process on each of two "machines", which are launched as two real ones would be; see :func:`launch`."""
    env = environment(config, fault) | dict(NNODES='2', MASTER_ADDR='127.0.0.1')
    command = [str(ROOT / 'tools/dist_train.sh'), str(config), '1', '--work-dir', str(work_dir), *args]
    nodes = [
        subprocess.Popen(
            command, env=env | dict(NODE_RANK=str(rank)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    texts = [node.communicate(timeout=START + seconds)[0] for node in nodes]
    return [(node.returncode, text) for node, text in zip(nodes, texts, strict=True)]


def test_two_machines_train_and_end_as_one(config, whole, tmp_path, survived):
    (code0, text0), (code1, text1) = launch_nodes(config, tmp_path, fault='killed', seconds=30 + GRACE)
    assert 0 not in (code0, code1), text0 + text1
    assert re.search(r'rank\s*: 1 \(local_rank: 0\)\s+exitcode\s*: -9', text1), text1
    for code, text in launch_nodes(config, tmp_path, '--resume', seconds=60):
        assert code == 0, text
    found = torch.load(tmp_path / f'iter_{STEPS}.pth', weights_only=False)['state_dict']
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    survived('machine lost its rank')


@pytest.mark.parametrize(
    ('fault', 'says'),
    [
        ('stopped', r'rank 0 is in step 8, rank 1 does not answer'),
        ('stuck in a step', r'rank 0 is in step 8, rank 1 is in step 8'),
        ('stuck in set-up', r'rank 0 is .*, rank 1 is setting up'),
        ('stuck before the run', r'rank 0 is .*, rank 1 is beginning the run'),
        ('stuck in data', r'rank 0 is in step 9, rank 1 is after step 8, in a hook or waiting for a batch'),
    ],
)
def test_a_stalled_rank_ends_the_others(config, whole, fault, says, tmp_path, survived):
    start = time.monotonic()
    code, text = launch(config, tmp_path, fault=fault, seconds=TIMEOUT + 10 + GRACE)
    assert code != 0
    assert re.search(rf'rank \d: error: no progress for {TIMEOUT} s, the run ends: {says}', text), text
    assert time.monotonic() - start > TIMEOUT
    assert fault == 'stopped' or re.search(r'faults.py", line \d+ in ', text)
    if fault == 'stopped':
        resume(config, tmp_path, whole)
    survived('rank stalled')


def test_a_slow_rank_is_no_fault(config, whole, tmp_path, survived):
    code, text = launch(config, tmp_path, fault='slow', seconds=60)
    assert code == 0, text
    found = torch.load(tmp_path / f'iter_{STEPS}.pth', weights_only=False)['state_dict']
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    survived('rank slowed')


def test_a_loss_that_is_not_finite_on_one_rank_ends_both(config, tmp_path, survived):
    code, text = launch(config, tmp_path, fault='nan', seconds=30)
    assert code != 0
    said = re.findall(r'error: the loss is not finite at step 8: loss = nan on rank 1 for the samples .*', text)
    assert len(said) >= 1, text
    assert 'on rank 0' not in said[0]
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_4.pth', 'iter_6.pth']
    survived('loss not finite on one rank')


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_to_the_launcher_ends_all_with_its_code(config, tmp_path, number, code, survived):
    """As a scheduler, or a person, sends it; Ctrl-C saves nothing."""
    log = tmp_path / 'output.txt'
    process = subprocess.Popen(
        [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path / 'work'], env=environment(config, 'slow'),
        stdout=log.open('w'), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while 'Saving checkpoint at 2 iterations' not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(timeout=20 + GRACE) == code
    saved = 'Asked to end by SIGTERM: saved iter_' in log.read_text()
    assert saved == (number != signal.SIGINT)
    survived('launcher signalled')


@pytest.mark.parametrize('fault', ['preempted', 'all preempted'])
def test_a_signal_to_any_rank_saves_and_ends_all(config, whole, fault, tmp_path, survived):
    code, text = launch(config, tmp_path, fault=fault, seconds=10 + GRACE)
    assert code != 0
    assert 'Asked to end by SIGTERM: saved iter_8.pth. The same command with --resume goes on' in text
    if fault == 'preempted':
        assert re.search(rf'exitcode\s*: {128 + signal.SIGTERM}', text)
    resume(config, tmp_path, whole)
    survived('rank preempted')


def test_a_gradient_that_is_not_finite_on_one_rank_ends_both(config, tmp_path, survived):
    """Its loss is finite; the sum over the ranks carries it to the other one."""
    code, text = launch(config, tmp_path, fault='nan gradient', seconds=30)
    assert code != 0
    said = re.search(
        r'error: the loss is finite and the gradient of (\S+) is not at step 8, for the samples (.*)', text
    )
    assert said, text
    assert re.search(r' on rank 0; .* on rank 1\. No checkpoint was written since then', said[2])
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == ['iter_4.pth', 'iter_6.pth']
    survived('gradient not finite on one rank')


def test_both_ranks_leave_a_step_out(config, tmp_path, survived):
    """Oracle: the two hold the same weights afterwards, which the hook above compares."""
    skip = config.with_name('skip.py')
    text = config.read_text() + "custom_hooks.append(dict(type='repl_mm.FiniteLossHook', action='skip'))\n"
    skip.write_text(text)
    code, text = launch(skip, tmp_path, fault='nan gradient', seconds=60)
    assert code == 0, text
    assert 'The step is left out, of 1 in all' in text
    found = torch.load(tmp_path / f'iter_{STEPS}.pth', weights_only=False)
    assert all(value.isfinite().all() for value in found['state_dict'].values())
    assert 'ranks differ' not in text
    survived('gradient not finite on one rank, left out')


def test_a_bad_config_is_one_line_from_two_processes(config, tmp_path, survived):
    """Not torchrun's traceback and table, nor the line of each process; with no port given, as one starts at first."""
    env = environment(config, '')
    del env['PORT']
    command = [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path, '--cfg-options', 'model.type=Nix']
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=START)
    errors = [line for line in done.stderr.splitlines() if 'rror' in line]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert errors[0].startswith('error: cannot build ')
    assert 'Traceback' not in done.stderr
    survived('bad config for two processes')


def test_a_second_run_in_the_same_folder_is_refused(config, tmp_path, survived):
    log = tmp_path / 'output.txt'
    longer = ('--cfg-options', 'train_cfg.max_epochs=99', 'param_scheduler.total_steps=99')  # than the second's imports
    first = subprocess.Popen(
        [ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', tmp_path / 'work', *longer],
        env=environment(config, 'slow'), stdout=log.open('w'), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    while 'Saving checkpoint at 2 iterations' not in log.read_text():
        assert first.poll() is None, log.read_text()
        time.sleep(0.2)
    code, text = launch(config, tmp_path / 'work', seconds=30)
    assert code == 2, text
    assert re.search(r'^error: .*work is in use by process \d+ on \S+ since .*: wait until it ends', text, re.MULTILINE)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=20 + GRACE) == 143
    survived('second run in a folder')
