"""Contract: a run that is interrupted and resumed ends as one that was not; what goes wrong ends it with a word.

Oracles: the uninterrupted run, bit for bit; planted faults. ``tests/faults`` has what takes longer: kills, damaged
files, several processes.
"""

import copy
import errno
import itertools
import multiprocessing
import os
import platform
import random
import re
import shutil
import signal
import socket
import sys
import tarfile
import time
from datetime import datetime
from pathlib import Path

import mmengine.hooks
import numpy as np
import pytest
import torch
from cli_helpers import run
from helpers import same
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.structures import BaseDataElement
from mmpretrain.datasets.utils import extract_archive
from torch import nn
from torch.utils.data import DataLoader, Dataset

from repl_mm.benchmark.operators import OperatorCounter
from repl_mm.engine import files, loops
from repl_mm.engine.checkpoints import as_safetensors
from repl_mm.engine.files import AtomicBackend, write_atomic
from repl_mm.engine.finite import first_gradient_not_finite
from repl_mm.engine.hooks import CheckpointHook, FiniteLossHook, WatchdogHook
from repl_mm.engine.hooks.watchdog import Watchdog
from repl_mm.engine.resume import find_newest
from repl_mm.engine.weights import read_checkpoint

STEPS = 6  # an epoch
NUMBERS = itertools.count()


@MODELS.register_module()
class Noisy(BaseModel):
    """A network whose loss takes random numbers of all three generators, from the model and from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if mode == 'predict':
            return [{}]
        noise = torch.rand(()) + random.random() + np.random.rand()
        out = self.norm(self.linear(torch.stack(inputs) + noise))
        terms = [sample.factor for sample in data_samples]
        if 0.0 in terms:
            out.register_hook(lambda gradient: gradient * float('nan'))
        return dict(loss_a=out.square().mean(), loss_b=(out[:, 0] * torch.tensor(terms)).mean(), acc=torch.tensor(1.0))


@DATASETS.register_module()
class Samples(Dataset):
    """24 samples with random numbers of all three generators."""

    metainfo = {}

    def __len__(self) -> int:
        return 4 * STEPS

    def __getitem__(self, index):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return dict(
            inputs=torch.tensor([index / 24, 1.0, -1.0]) + noise,
            data_samples=BaseDataElement(metainfo=dict(sample_idx=index, factor=POISON.get(index, 1.0))),
        )


POISON: dict[int, float] = {}


@pytest.fixture
def poison():
    yield POISON
    POISON.clear()


@HOOKS.register_module()
class Interrupt(Hook):
    """Ctrl-C or a signal after a step."""

    priority = 'LOWEST'

    def __init__(self, step, number=None) -> None:
        self.step, self.number = step, number

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if runner.iter == self.step and self.number:
            os.kill(os.getpid(), self.number)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step and not self.number:
            raise KeyboardInterrupt


CONFIG = """
custom_imports = dict(imports=['test_long_runs'])
default_scope = 'mmengine'
model = dict(type='Noisy')
train_dataloader = dict(
    batch_size=4, num_workers=0, dataset=dict(type='Samples'), sampler=dict(type='DefaultSampler', shuffle=True))
optim_wrapper = dict(optimizer=dict(type='Adam', lr=0.01))
param_scheduler = dict(type='CosineAnnealingLR', T_max=12, by_epoch=False)
train_cfg = dict(by_epoch=True, max_epochs=3)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='EMAHook'), dict(type='repl_mm.CostHook', warmup=0)]
randomness = dict(seed=0)
"""
ITERATIONS = """
train_cfg = dict(by_epoch=False, max_iters=18)
train_dataloader['sampler'] = dict(type='InfiniteSampler', shuffle=True)
"""


@pytest.fixture
def train(tmp_path):
    """Train in this process: exit code, what was said at the end, work dir."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # an interrupted run of another test does not reset them
        signal.signal(number, signal.SIG_DFL)

    def _train(name: str, *args, change: str = '') -> tuple[int, str, Path]:
        config = tmp_path / f'long{next(NUMBERS)}.py'
        config.write_text(CONFIG + change)
        code, _, stderr = run('train', config, '--work-dir', tmp_path / name, *args)
        return code, stderr.splitlines()[-1] if stderr else '', tmp_path / name

    return _train


def end_of(work_dir: Path, name: str = f'iter_{3 * STEPS}.pth') -> dict:
    checkpoint = torch.load(work_dir / name, weights_only=False)
    return {key: checkpoint[key] for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')}


@pytest.mark.parametrize('kind', ['', ITERATIONS, "optim_wrapper['accumulative_counts'] = 4\n"])
@pytest.mark.parametrize(('steps', 'workers'), [((1,), 0), ((5, 6), 0), ((7, 15), 0), ((8,), 2)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(train, kind, workers, steps):
    """In and between epochs, while workers have read ahead, and while gradients are accumulated."""
    kind += f'train_dataloader["num_workers"] = {workers}\n'
    assert train('whole', change=kind)[0] == 0
    for step in steps:
        again = ['--resume'] if step != steps[0] else []
        interrupt = kind + f'custom_hooks.append(dict(type="Interrupt", step={step}))\n'
        code, _, _ = train('broken', *again, change=interrupt)
        assert code == 130
    code, _, work_dir = train('broken', '--resume', change=kind)
    assert code == 0
    assert same(end_of(work_dir), end_of(work_dir.with_name('whole')))


class Scaled(AmpOptimWrapper):
    def __init__(self, **kwargs) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0, growth_interval=3)
        self._scale_update_param = None

    optim_context = OptimWrapper.optim_context


def test_the_loss_scale_of_mixed_precision_goes_on(train):
    """mmengine's wrapper for GPUs with torch's scaler for CPUs; the scale doubles after every third step."""

    OPTIM_WRAPPERS.register_module(name='Scaled', module=Scaled, force=True)
    scaled = 'optim_wrapper["type"] = "Scaled"\n'
    assert train('whole', change=scaled)[0] == 0
    assert train('broken', change=scaled + 'custom_hooks.append(dict(type="Interrupt", step=8))\n')[0] == 130
    code, _, work_dir = train('broken', '--resume', change=scaled)
    assert code == 0
    ends = [end_of(folder) for folder in (work_dir.with_name('whole'), work_dir)]
    assert same(*ends)
    assert ends[1]['optimizer']['loss_scaler']['scale'] == 2.0 * 2**6


def test_the_number_of_workers_does_not_matter(train):
    """Random numbers belong to the place in the run, not to the process that draws them."""
    folders = [train(f'w{n}', change=f'train_dataloader["num_workers"] = {n}\n')[2] for n in (0, 1, 3)]
    ends = [end_of(folder)['state_dict'] for folder in folders]
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_without_a_seed_the_order_of_the_samples_is_kept(train):
    """mmengine draws a seed then, which the checkpoint knows."""
    seen = []

    class Kept(loops.SeededFetch):
        def __call__(self, batch):
            seen.append((batch.place, tuple(batch.indices)))
            return super().__call__(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, 'SeededFetch', Kept)
        train('run', change='del randomness\ncustom_hooks.append(dict(type="Interrupt", step=8))\n')
        train('run', '--resume', change='del randomness\n')
    order = dict(seen)
    assert list(order) == list(range(3 * STEPS))
    for epoch in range(3):
        indices = [index for place in range(epoch * STEPS, (epoch + 1) * STEPS) for index in order[place]]
        assert sorted(indices) == list(range(24))


def test_a_due_validation_is_made_up_for(train, monkeypatch):
    """The checkpoint is older than the validation that is interrupted, and a schedule may wait for its score."""
    validating = """
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
val_cfg = dict()
val_evaluator = dict(type='Score')
param_scheduler = dict(type='ReduceOnPlateauLR', monitor='score', rule='greater', patience=0, factor=0.5)
"""
    validated = []

    @METRICS.register_module(force=True)
    class Score(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            validated.append(None)
            if len(validated) == 5:
                raise KeyboardInterrupt
            return dict(score=0.0)

    assert train('whole', change=validating)[0] == 0
    assert len(validated) == 3
    assert train('broken', change=validating)[0] == 130  # in its second validation
    code, _, work_dir = train('broken', '--resume', change=validating)
    assert code == 0
    assert len(validated) == 3 + 2 + 2
    assert same(end_of(work_dir), end_of(work_dir.with_name('whole')))
    assert end_of(work_dir)['optimizer']['param_groups'][0]['lr'] == 0.01 * 0.5**1  # the last score comes after it


@pytest.mark.parametrize(
    ('number', 'kind', 'by_epoch'),
    [(signal.SIGTERM, '', True), (signal.SIGTERM, '', False), (signal.SIGTERM, ITERATIONS, False),
     (signal.SIGUSR1, '', True)],
)  # fmt: skip
def test_a_signal_saves_and_ends(train, number, kind, by_epoch):
    """Oracle: the conventional exit code, and the run that got no signal. The file of the moment goes in the end."""
    kind += f'default_hooks["checkpoint"].update(by_epoch={by_epoch}, interval=6, max_keep_ckpts=1)\n'
    assert train('whole', change=kind)[0] == 0
    sent = kind + f'custom_hooks.append(dict(type="Interrupt", step=8, number={int(number)}))\n'
    code, _, work_dir = train('broken', change=sent)
    assert code == 128 + number
    assert (work_dir / 'iter_9.pth').is_file()
    assert signal.getsignal(number) == signal.SIG_DFL
    assert train('broken', '--resume', change=kind)[0] == 0
    names = sorted(path.name for path in work_dir.glob('*.pth'))
    assert names == sorted(path.name for path in work_dir.with_name('whole').glob('*.pth'))
    assert same(end_of(work_dir, names[0]), end_of(work_dir.with_name('whole'), names[0]))


def test_a_checkpoint_of_another_batch_size(train):
    """Within an epoch nothing says where to go on; between epochs the run goes on, with a warning."""
    train('run', change='custom_hooks.append(dict(type="Interrupt", step=8))\n')
    smaller = 'train_dataloader["batch_size"] = 2\n'
    code, last, work_dir = train('run', '--resume', change=smaller)
    assert code == 2
    assert 'the checkpoint is of a run of 6 batches an epoch on 1 process(es), and this one is of 12 batches' in last
    (work_dir / 'iter_8.pth').unlink()
    train('edge', change='custom_hooks.append(dict(type="Interrupt", step=6))\n')
    code, last, work_dir = train('edge', '--resume', change=smaller)
    assert code == 2  # written by the step, before the epoch's end


@pytest.mark.parametrize(('value', 'said'), [(float('nan'), 'nan'), (float('inf'), '-?inf')])
def test_a_loss_that_is_not_finite_ends_the_run(train, poison, value, said):
    poison[13] = value
    code, last, work_dir = train('run')
    saved = torch.load(sorted(work_dir.glob('*.pth'), key=os.path.getmtime)[-1], weights_only=False)
    step = saved['meta']['iter'] + 1
    assert code == 1
    told = f'error: the loss is not finite at step {step}: loss_b = {said} on rank 0 for the samples '
    assert re.match(told, last)
    assert '13' in last.partition('samples ')[2].partition('.')[0].split(', ')
    assert all(value.isfinite().all() for value in saved['state_dict'].values())


@pytest.mark.parametrize('accumulate', [1, 2])
def test_steps_without_a_finite_loss_are_left_out(train, poison, accumulate):
    """Oracle: weights and statistics stay finite, Adam has counted the other steps, and the number is kept."""
    poison[13] = float('nan')
    skip = "custom_hooks.append(dict(type='repl_mm.FiniteLossHook', action='skip'))\n"
    skip += f'optim_wrapper["accumulative_counts"] = {accumulate}\n'
    skip += 'custom_hooks.append(dict(type="Interrupt", step=11))\n'
    assert train('run', change=skip)[0] == 130
    code, _, work_dir = train('run', '--resume', change=skip.replace('step=11', 'step=99'))
    checkpoint = torch.load(work_dir / f'iter_{3 * STEPS}.pth', weights_only=False)
    assert code == 0
    assert checkpoint['message_hub']['runtime_info']['skipped_steps'] == 3  # once in each epoch
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())
    counted = checkpoint['optimizer']['state'][0]['step']
    assert counted == (3 * STEPS - 3 if accumulate == 1 else 9)
    assert checkpoint['ema_state_dict']['module.norm.num_batches_tracked'] == 3 * STEPS - 3


@pytest.mark.parametrize('accumulate', [1, 3])
def test_a_gradient_that_is_not_finite_ends_the_run_before_it_reaches_the_weights(train, poison, accumulate):
    """The loss is finite; in the last epoch, so that files of good weights are there, the last step among them."""
    save = f'optim_wrapper["accumulative_counts"] = {accumulate}\n'
    save += 'default_hooks["checkpoint"]["max_keep_ckpts"] = 1\n'
    assert train('run', change=save + 'custom_hooks.append(dict(type="Interrupt", step=12))\n')[0] == 130
    poison[13] = 0.0
    code, last, work_dir = train('run', '--resume', change=save)
    (path,) = work_dir.glob('*.pth')
    saved = torch.load(path, weights_only=False)
    step = saved['meta']['iter'] + 1
    told = f'error: the loss is finite and the gradient of linear.weight is not at step {step}, for the samples '
    assert (code, last[: len(told)]) == (1, told)
    samples = last.removeprefix(told).partition(' on rank 0. No checkpoint was written since then')[0].split(', ')
    assert (len(set(samples)), '13' in samples) == (4, True)
    assert all(value.isfinite().all() for value in saved['state_dict'].values())


@pytest.mark.parametrize('accumulate', [1, 3])
def test_a_step_left_out_for_its_gradients_changes_nothing(train, poison, accumulate):
    """Oracle: weights, Adam's state and the buffers before and after that step, bit for bit."""
    kept = {}

    class Keep(Hook):
        priority = 'LOWEST'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            state = {**runner.model.state_dict(), 'adam': runner.optim_wrapper.optimizer.state_dict()['state']}
            kept[runner.iter + 1] = copy.deepcopy(state), runner.message_hub.get_info('skipped_steps', 0)

    HOOKS.register_module(name='Keep', module=Keep, force=True)
    poison[13] = 0.0
    skip = "custom_hooks.append(dict(type='repl_mm.FiniteLossHook', action='skip'))\n"
    skip += f'optim_wrapper["accumulative_counts"] = {accumulate}\ncustom_hooks.append(dict(type="Keep"))\n'
    assert train('run', change=skip)[0] == 0
    updates = range(accumulate, 3 * STEPS + 1, accumulate)
    left_out = [step for step in updates if step > accumulate and kept[step][1] > kept[step - accumulate][1]]
    assert kept[3 * STEPS][1] == 3  # once in each epoch
    for step in updates[1:]:
        assert same(kept[step][0], kept[step - accumulate][0]) == (step in left_out)


def test_what_a_loss_scaler_leaves_out_is_no_fault(train, poison):
    """Oracle: torch's scaler, which halves its scale for each such step."""
    OPTIM_WRAPPERS.register_module(name='Scaled', module=Scaled, force=True)
    poison[13] = 0.0
    code, _, work_dir = train('run', change='optim_wrapper["type"] = "Scaled"\n')
    assert code == 0
    checkpoint = torch.load(work_dir / f'iter_{3 * STEPS}.pth', weights_only=False)
    assert checkpoint['optimizer']['state'][0]['step'] == 3 * STEPS - 3
    assert all(value.isfinite().all() for value in checkpoint['state_dict'].values())


def test_gradients_are_looked_at_by_four_operators():
    network = nn.Sequential(*(nn.Linear(3, 3) for _ in range(50)))
    network(torch.ones(3)).sum().backward()
    parameters = dict(network.named_parameters())
    with OperatorCounter() as counter:
        assert first_gradient_not_finite(parameters) is None
    assert counter.counts == dict.fromkeys(['_foreach_norm', 'stack', 'linalg_vector_norm', '_local_scalar_dense'], 1)
    network[7].bias.grad[1] = float('inf')
    assert first_gradient_not_finite(parameters) == '7.bias'
    network[7].bias.grad[1] = 1e38  # whose square is not
    assert first_gradient_not_finite(parameters) is None


@pytest.mark.parametrize('where', ['weight', 'statistics', 'average', 'optimizer'])
@pytest.mark.parametrize('step', [8, 3 * STEPS])
def test_what_is_not_finite_never_replaces_a_checkpoint(train, where, step):
    """Whatever has broken it, and in the last step too."""

    class Break(Hook):
        priority = 'NORMAL'

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == step:
                places = dict(
                    weight=runner.model.linear.weight,
                    statistics=runner.model.norm.running_var,
                    optimizer=runner.optim_wrapper.optimizer.state[runner.model.linear.bias]['exp_avg_sq'],
                    average=next(
                        hook for hook in runner.hooks if isinstance(hook, EMAHook)
                    ).ema_model.module.norm.weight,
                )
                places[where].data.view(-1)[0] = float('inf')

    HOOKS.register_module(name='Break', module=Break, force=True)
    change = 'default_hooks["checkpoint"]["max_keep_ckpts"] = 1\ncustom_hooks.append(dict(type="Break"))\n'
    code, last, work_dir = train('run', change=change)
    assert code == 1
    assert re.match(r'error: the checkpoint would hold NaN or infinite values in .*: it is not written', last)
    assert [path.name for path in work_dir.glob('*.pth')] == [f'iter_{step - 1}.pth']
    code, _, _ = train('run', '--resume', change='default_hooks["checkpoint"]["max_keep_ckpts"] = 1\n')
    assert code == 0


def test_the_best_checkpoint_is_not_removed_for_one_that_is_not_finite(train):
    change = """
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
val_cfg = dict()
val_evaluator = dict(type='Rising')
default_hooks['checkpoint'].update(interval=100, save_best='score', rule='greater')
custom_hooks.append(dict(type='BreakLate'))
"""
    scores = iter(range(9))

    @METRICS.register_module(force=True)
    class Rising(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return dict(score=float(next(scores)))

    @HOOKS.register_module(force=True)
    class BreakLate(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == 2 * STEPS:
                runner.model.norm.running_mean.fill_(float('nan'))

    code, last, work_dir = train('run', change=change)
    assert (code, 'state_dict.norm.running_mean' in last) == (1, True)
    assert [path.name for path in work_dir.glob('*.pth')] == [f'best_score_iter_{STEPS}.pth']


def test_resuming_removes_no_best_file_of_another_folder(train, tmp_path):
    """What a checkpoint names as its best file may be anything."""
    scores = iter(range(9))

    @METRICS.register_module(force=True)
    class Better(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return dict(score=float(next(scores)))

    change = """
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
val_cfg = dict()
val_evaluator = dict(type='Better')
default_hooks['checkpoint'].update(save_best='score', rule='greater')
"""
    assert train('run', change=change + 'custom_hooks.append(dict(type="Interrupt", step=8))\n')[0] == 130
    victim = tmp_path / 'victim'
    victim.touch()
    checkpoint = torch.load(tmp_path / 'run/iter_8.pth', weights_only=False)
    checkpoint['message_hub']['runtime_info']['best_ckpt'] = str(victim)
    torch.save(checkpoint, tmp_path / 'other.pth')
    code, _, work_dir = train('other', '--resume', tmp_path / 'other.pth', change=change)
    assert code == 0
    assert victim.is_file()
    assert [path.name for path in work_dir.glob('best*')] == [f'best_score_iter_{3 * STEPS}.pth']


def test_a_run_that_diverges_for_good_ends_though_steps_may_be_left_out(train, poison):
    poison.update(dict.fromkeys(range(24), float('nan')))
    code, last, _ = train('run', change="custom_hooks.append(dict(type='repl_mm.FiniteLossHook', action='skip'))\n")
    assert code == 1
    assert 'at step 10: loss_b = nan' in last
    assert last.endswith('It is the 10th step in a row, the run has diverged')


@pytest.mark.parametrize(
    ('hook', 'message'),
    [
        (lambda: CheckpointHook(interval='a'), "takes a whole number as interval, got 'a'"),
        (lambda: FiniteLossHook(action='ignore'), "takes action='stop' or 'skip', got 'ignore'"),
        (lambda: WatchdogHook(timeout=0), 'takes a timeout above 0 seconds, got 0'),
        (lambda: WatchdogHook(timeout=-1), 'takes a timeout above 0 seconds, got -1'),
        (lambda: WatchdogHook(timeout=float('nan')), 'takes a timeout above 0 seconds, got nan'),
        (lambda: WatchdogHook(timeout=float('inf')), 'takes a timeout above 0 seconds, got inf'),
        (lambda: WatchdogHook(timeout='540'), "takes a timeout above 0 seconds, got '540'"),
    ],
)
def test_impossible_options(hook, message):
    with pytest.raises(ValueError, match=message):
        hook()


def stand_still():
    time.sleep(100)


def test_a_process_that_is_stuck_while_it_sets_up_ends_and_says_where(tmp_path):
    """Oracle: this file's own function, which never returns."""

    def get_stuck():
        os.dup2(os.open(tmp_path / 'stderr', os.O_CREAT | os.O_WRONLY), sys.__stderr__.fileno())
        Watchdog(0.2, rank=3).start()
        stand_still()

    process = multiprocessing.get_context('fork').Process(target=get_stuck)
    process.start()
    process.join(20)
    said = (tmp_path / 'stderr').read_text()
    assert process.exitcode == 1
    assert said.endswith('rank 3: error: no progress for 0.2 s, the run ends: rank 3 is setting up\n')
    assert re.search(r'test_long_runs.py", line \d+ in stand_still', said)


@pytest.mark.parametrize('timeout', ['float("nan")', '0', '-3', '"long"'])
def test_a_timeout_that_is_none(train, timeout):
    code, last, _ = train('run', change=f'custom_hooks.append(dict(type="repl_mm.WatchdogHook", timeout={timeout}))\n')
    assert (code, last.startswith('error: WatchdogHook takes a timeout above 0 seconds, got ')) == (2, True)


def test_a_worker_that_dies_ends_the_run_with_a_word(train, monkeypatch):
    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(Samples, '__getitem__', die)
    code, last, _ = train('run', change='train_dataloader["num_workers"] = 1\n')
    assert code == 1
    assert last.startswith('error: DataLoader worker (pid')
    assert last.endswith('it may have run out of memory')


def test_a_worker_outlives_a_signal_to_the_whole_job(train):
    """SLURM signals all processes of a job; a worker that obeyed would end the run before it has saved."""

    class SignalAll(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
            if runner.iter == 8:
                workers = ' '.join(str(worker.pid) for worker in multiprocessing.active_children())
                # From another process, as a worker obeys its own; a moment later, so that a dead worker is noticed.
                os.system(f'kill -TERM {workers}; sleep 0.5; kill -TERM {os.getpid()}')

    HOOKS.register_module(name='SignalAll', module=SignalAll, force=True)
    change = 'train_dataloader["num_workers"] = 2\ncustom_hooks.append(dict(type="SignalAll"))\n'
    code, _, work_dir = train('run', change=change)
    assert code == 128 + signal.SIGTERM
    assert (work_dir / 'iter_9.pth').is_file()


def test_training_opens_no_port(train, monkeypatch):
    def refuse(self, address):
        raise AssertionError(f'a port is opened: {address}')

    monkeypatch.setattr(socket.socket, 'bind', refuse, raising=False)
    assert train('run')[0] == 0


@pytest.mark.parametrize(
    'option',
    [
        'model.type=os.system',
        'model.type=evil',
        'model._scope_=evil',
        'default_scope=evil',
        'train_dataloader.collate_fn.type=os.system',
        'custom_imports.imports=[evil]',
        'optim_wrapper.constructor=subprocess.run',
    ],
)
def test_options_of_the_command_line_import_nothing(train, option, tmp_path, monkeypatch):
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "victim")!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    code, last, _ = train('run', '--cfg-options', option)
    assert code == 2
    assert any(text in last for text in ('is not one of the libraries', 'unknown type', 'stands in the config file'))
    assert not (tmp_path / 'victim').exists()


@pytest.mark.parametrize('kind', ['', 'train_cfg = dict(by_epoch=False, max_iters=18)\n', ITERATIONS])
def test_a_hook_may_read_the_data_for_itself(train, kind):
    """As precise batch norm does; the places of training stay what they were."""

    class Reader(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            if runner.iter % 5 == 4:
                list(itertools.islice(runner.train_dataloader, 2))

    HOOKS.register_module(name='Reader', module=Reader, force=True)
    reading = kind + 'custom_hooks.append(dict(type="Reader"))\n'
    code, last, _ = train('whole', change=reading)
    if kind == ITERATIONS:  # mmengine's endless sampler can be read only once
        assert (code, last) == (2, 'error: train_dataloader gives no batch any more: its sampler can be read only once')
        return
    assert train('broken', change=reading + 'custom_hooks.append(dict(type="Interrupt", step=8))\n')[0] == 130
    code, _, work_dir = train('broken', '--resume', change=reading)
    assert code == 0
    assert same(end_of(work_dir), end_of(work_dir.with_name('whole')))


def test_a_run_goes_on_from_a_checkpoint_of_mmengines_own_hook(train):
    """It does not say where in the epoch it was written; the counts do."""
    assert train('whole')[0] == 0
    plain = 'default_hooks["checkpoint"]["type"] = "Plain"\n'
    HOOKS.register_module(name='Plain', module=type('Plain', (mmengine.hooks.CheckpointHook,), {}), force=True)
    assert train('broken', change=plain + 'custom_hooks.append(dict(type="Interrupt", step=8))\n')[0] == 130
    code, _, work_dir = train('broken', '--resume', change=plain)
    assert code == 0
    assert same(end_of(work_dir), end_of(work_dir.with_name('whole')))


@pytest.mark.parametrize('validations', [0, 1])
def test_early_stopping_goes_on_counting(train, validations):
    """Oracle: the run that is not interrupted ends when the score has not risen for two validations.

    The validation in which the other one is interrupted is done again, those before it are not.
    """
    stopping = """
val_dataloader = dict(train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
val_cfg = dict()
val_evaluator = dict(type='Constant')
custom_hooks.append(dict(type='EarlyStoppingHook', monitor='score', rule='greater', patience=2))
train_cfg = dict(by_epoch=True, max_epochs=6)
"""

    class Constant(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            if signals and (number := signals.pop(0)):
                os.kill(os.getpid(), number)
            return dict(score=0.5)

    METRICS.register_module(name='Constant', module=Constant, force=True)
    signals: list[int] = []
    _, _, whole = train('whole', change=stopping)
    signals += [0] * validations + [signal.SIGTERM]
    assert train('broken', change=stopping)[0] == 143
    _, _, work_dir = train('broken', '--resume', change=stopping)
    names = [sorted(path.name for path in folder.glob('*.pth')) for folder in (whole, work_dir)]
    assert names[0] == names[1] == ['iter_17.pth', 'iter_18.pth']


def test_a_signal_at_a_save_step_costs_no_checkpoint(train):
    change = 'default_hooks["checkpoint"]["interval"] = 2\n'
    sent = f'custom_hooks.append(dict(type="Interrupt", step=3, number={int(signal.SIGTERM)}))\n'
    code, _, work_dir = train('run', change=change + sent)
    assert (code, sorted(path.name for path in work_dir.glob('*.pth'))) == (143, ['iter_2.pth', 'iter_4.pth'])
    assert train('run', '--resume', change=change + 'custom_hooks.append(dict(type="Interrupt", step=7))\n')[0] == 130
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['iter_4.pth', 'iter_6.pth']


def test_resuming_looks_past_what_is_no_checkpoint(train):
    """A folder, links that lead nowhere, files of others; but it does not begin anew beside bare weights."""
    _, _, work_dir = train('run', change='custom_hooks.append(dict(type="Interrupt", step=8))\n')
    (work_dir / 'iter_99.pth').mkdir()
    (work_dir / 'dangling.pth').symlink_to(work_dir / 'nothing')
    (work_dir / 'loop.pth').symlink_to(work_dir / 'loop.pth')
    torch.save(dict(optimizer={}, model={}), work_dir / 'foreign.pth')
    assert find_newest(work_dir) == work_dir / 'iter_8.pth'
    for path in work_dir.glob('iter_?.pth'):
        state = torch.load(path, weights_only=False)
        torch.save(dict(state_dict=state['state_dict'], meta=state['meta']), path)
    code, last, _ = train('run', '--resume')
    assert code == 2
    assert 'can be resumed from, to begin anew remove them' in last
    assert 'iter_8.pth holds weights alone' in last


def test_the_newest_run_of_a_folder_goes_on(train):
    """Oracle: that run in a folder of its own; the earlier one is longer."""
    assert train('whole')[0] == 0
    train('run', change='randomness["seed"] = 7\ncustom_hooks.append(dict(type="Interrupt", step=8))\n')
    _, said, work_dir = train('run', change='custom_hooks.append(dict(type="Interrupt", step=4))\n')
    assert sorted(path.name for path in work_dir.glob('*.pth')) == [f'iter_{step}.pth' for step in (3, 4, 7, 8)]
    begun = {step: torch.load(work_dir / f'iter_{step}.pth', weights_only=False)['meta']['run'] for step in (3, 4, 8)}
    assert begun[8] < begun[3] == begun[4]
    code, said, _ = train('run', '--resume')
    assert code == 0
    date = datetime.fromtimestamp(begun[4]).isoformat(' ', 'seconds')
    assert said == f'resuming the run of {date} at iteration 4 from {work_dir / "iter_4.pth"}'
    assert same(end_of(work_dir), end_of(work_dir.with_name('whole')))
    assert torch.load(work_dir / f'iter_{3 * STEPS}.pth', weights_only=False)['meta']['run'] == begun[4]  # as it began
    assert sorted(path.name for path in work_dir.glob('*.pth')) == [
        f'iter_{3 * STEPS - 1}.pth',
        f'iter_{3 * STEPS}.pth',
    ]


def test_a_new_run_in_a_used_folder_says_so(train):
    train('run', change='custom_hooks.append(dict(type="Interrupt", step=2))\n')
    code, said, work_dir = train('run')
    assert code == 0
    assert said == (
        f'{work_dir} holds checkpoints of an earlier run: this one begins anew, and writes over those of the same '
        'name; --resume would go on'
    )


def test_two_runs_in_one_folder(train, tmp_path):
    """Oracle: another process that holds the lock; killed, it holds nothing."""
    ready = multiprocessing.Event()

    def hold():
        with files.lock_folder(tmp_path / 'run'):
            ready.set()
            time.sleep(100)

    other = multiprocessing.get_context('fork').Process(target=hold)
    other.start()
    assert ready.wait(20)
    code, last, work_dir = train('run')
    held = (
        rf'error: {work_dir} is in use by process {other.pid} on {platform.node()} since \d{{4}}-\d\d-\d\d [\d:]+: wait'
    )
    assert code == 2
    assert re.match(held, last)
    assert [path.name for path in work_dir.iterdir()] == ['.lock']
    other.kill()
    other.join()
    assert train('run')[0] == 0


def test_a_folder_that_cannot_be_locked_is_a_warning(tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(files.fcntl, 'lockf', fail)
    with files.lock_folder(tmp_path):
        assert 'cannot be locked (No locks available): see to it that no other run uses it' in capsys.readouterr().err


def change_at(place: str, value: object):
    """Put a value into a checkpoint."""

    def change(checkpoint):
        *way, last = place.split('.')
        for key in way:
            checkpoint = checkpoint[key]
        checkpoint[last] = value

    return change


ODD = [
    ('meta', None, 'meta.iter is missing'),
    ('meta', [], 'are no dict'),
    ('meta.iter', 'four', "meta.iter is a number of steps, got 'four'"),
    ('meta.iter', float('nan'), 'meta.iter is a number of steps, got nan'),
    ('meta.iter', 10**30, 'meta.iter is a number of steps, got 1000'),
    ('meta.epoch', -1, 'meta.epoch is a number of epochs, got -1'),
    ('meta.seed', 'a\nb', "meta.seed is a whole number below 2\\*\\*32, got 'a.+nb'"),
    ('meta.run', float('nan'), 'meta.run is seconds, got nan'),
    ('meta.place', 3, 'meta.place is a dict, got 3'),
    ('meta.place', {}, 'meta.place.done is missing, meta.place.batches is missing'),
    ('message_hub', None, 'message_hub is a dict, got None'),
    ('message_hub', {}, 'message_hub.log_scalars is missing'),
    ('message_hub.runtime_info', {3: 3}, 'message_hub.runtime_info is a dict'),
    ('message_hub.runtime_info.keep_ckpt_ids', ['a'], 'keep_ckpt_ids is numbers of steps, got a list'),
    ('message_hub.runtime_info.preemption_ckpt', '../../victim', "preemption_ckpt is a name of a file, got '../"),
    ('optimizer', None, "optimizer is an optimizer's state, got None"),
    ('optimizer', {}, "optimizer is an optimizer's state, got a dict"),
    ('optimizer.param_groups', [], "optimizer is an optimizer's state, got a dict"),
    ('param_schedulers', 'text', "param_schedulers is states of schedulers, got 'text'"),
    ('param_schedulers', [3], 'param_schedulers is states of schedulers, got a list'),
    ('param_schedulers', [], 'has 0 schedulers, and the config 1'),
    ('gradients', [{'linear.weight': torch.ones(5)}], r'gradient of linear.weight has the shape \(5,\)'),
    ('gradients', 3, 'gradients is gradients by name, of each process, got 3'),
    ('early_stopping', [3], 'early_stopping is dicts, got a list'),
    ('cost', 3, "cost is CostHook's figures, got 3"),
    ('cost', {'steps': 3}, "cost is CostHook's figures, got a dict"),
    ('ema_state_dict', [], 'ema_state_dict is averages by name, got a list'),
    ('state_dict', {3: torch.ones(1)}, 'is not a checkpoint'),
]


@pytest.fixture(scope='module')
def stopped(tmp_path_factory):
    """A run that was stopped after its fourth step: its config, and what its checkpoint holds."""
    folder = tmp_path_factory.mktemp('stopped')
    config = folder / 'odd.py'
    config.write_text(CONFIG + 'custom_hooks.append(dict(type="Interrupt", step=4))\n')
    assert run('train', config, '--work-dir', folder / 'run').code == 130
    config.write_text(CONFIG.replace('max_epochs=3', 'max_epochs=1'))
    return config, folder / 'run'


@pytest.mark.parametrize(('place', 'value', 'said'), ODD)
def test_a_checkpoint_with_odd_content_is_named(stopped, place, value, said, tmp_path):
    config, work_dir = stopped
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
    change_at(place, value)(checkpoint)
    torch.save(checkpoint, tmp_path / 'odd.pth')
    code, _, err = run('train', config, '--work-dir', tmp_path / 'work', '--resume', tmp_path / 'odd.pth')
    assert code == 2
    assert re.search(f'error: .*odd.pth.*{said}', err.splitlines()[-1])
    assert 'Traceback' not in err


@pytest.mark.parametrize(('place', 'value', 'said'), [odd for odd in ODD if ' is ' in odd[2]])
def test_a_good_file_beside_an_odd_one_wins(stopped, place, value, said, tmp_path):
    _, work_dir = stopped
    shutil.copy(work_dir / 'iter_3.pth', tmp_path / 'iter_3.pth')
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
    change_at(place, value)(checkpoint)
    torch.save(checkpoint, tmp_path / 'iter_4.pth')
    assert find_newest(tmp_path) == tmp_path / 'iter_3.pth'


def test_a_good_file_beside_one_that_is_not_finite_wins(stopped, tmp_path):
    config, work_dir = stopped
    shutil.copytree(work_dir, tmp_path / 'work')
    checkpoint = torch.load(work_dir / 'iter_4.pth', weights_only=False)
    checkpoint['state_dict']['linear.weight'][0, 0] = float('nan')
    torch.save(checkpoint, tmp_path / 'work/iter_4.pth')
    code, _, err = run('train', config, '--work-dir', tmp_path / 'work', '--resume')
    assert (code, 'at iteration 3 from' in err) == (0, True)


def test_a_safetensors_file_without_meta_data_of_its_kind(tmp_path):
    path = tmp_path / 'null.safetensors'
    path.write_bytes(as_safetensors(dict(w=torch.ones(1)), meta=None))
    assert read_checkpoint(str(path))['meta'] == {}
    path.write_bytes(as_safetensors(dict(w=torch.ones(1)), meta=[3]))
    with pytest.raises(ValueError, match=r'the meta data of .*null.safetensors are no dict'):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ('missing', 'said'),
    [('message_hub', 'message_hub is missing'), ('meta', 'meta is missing'), ('optimizer', 'alone')],
)
def test_resuming_from_what_lacks_something(train, missing, said, tmp_path):
    _, _, work_dir = train('run', change='custom_hooks.append(dict(type="Interrupt", step=2))\n')
    checkpoint = torch.load(work_dir / 'iter_2.pth', weights_only=False)
    del checkpoint[missing]
    torch.save(checkpoint, tmp_path / 'less.pth')
    code, last, _ = train('other', '--resume', tmp_path / 'less.pth')
    assert (code, said in last) == (2, True)


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
    (tmp_path / 'evil').write_text('evil')
    with tarfile.open(tmp_path / 'data.tar.gz', 'w:gz') as archive:
        archive.add(tmp_path / 'evil', arcname='../outside')
    (tmp_path / 'data').mkdir()
    with pytest.raises(tarfile.FilterError):
        extract_archive(str(tmp_path / 'data.tar.gz'), str(tmp_path / 'data'))
    assert not (tmp_path / 'outside').exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'folder/file'
    write_atomic(path, b'old')
    AtomicBackend().put_text('new', path)
    assert path.read_bytes() == b'new'

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files.os, 'fsync', full)
    with pytest.raises(
        OSError, match=r'cannot write .*folder/file: no space left on device\. What was there'
    ) as caught:
        write_atomic(path, b'newer')
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == b'new'
    assert list(path.parent.iterdir()) == [path]


def test_batches_are_numbered_and_skipped_without_loading():
    """Oracle: the sampler's own order; over the end of a pass too."""
    data = [0] * 10
    loader = DataLoader(list(data), batch_size=4, sampler=InfiniteSampler(data, shuffle=False))
    placed = loops.PlacedBatches(loader.batch_sampler)
    placed.place, placed.skip = 3, 3
    batches = list(itertools.islice(placed, 3))
    assert [batch.place for batch in batches] == [3, 4, 5]
    assert [batch.indices for batch in batches] == [[2, 3, 4, 5], [6, 7, 8, 9], [0, 1, 2, 3]]
    finite = loops.PlacedBatches(DataLoader(data, batch_size=4).batch_sampler)
    finite.skip = 5
    passes = [[batch.indices for batch in finite] for _ in range(2)]
    assert passes == [[], [[8, 9]]]


def test_keys_seed_all_generators_differently():
    def draw(*key):
        loops.seed_generators(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()

    keys = list(itertools.product((0, 1), repeat=4))
    drawn = [draw(*key) for key in keys]
    assert drawn == [draw(*key) for key in keys]
    for generator in range(3):
        assert len({numbers[generator] for numbers in drawn}) == len(keys)
