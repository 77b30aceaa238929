"""Contract: ``CostHook`` books every second of a training run on one category, and ``cost.json`` says what it cost.

The toy runner below is mmengine's own. Its clock is ours: data set, model, metric and hooks move it forward by planned
amounts, so every expected figure is exact and comes from the plan, by hand or by NumPy.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import Dataset

from repl_mm.engine import meters
from repl_mm.engine.hooks import CostHook
from repl_mm.engine.hooks import cost as cost_module
from repl_mm.engine.meters import CudaMeter, HostMeter, Stopwatch

IMAGES, BATCH = 24, 4  # six steps an epoch
STEP, DATA, VALIDATION, LOG, CHECKPOINT, HOOK = 0.5, 0.125, 64.0, 16.0, 32.0, 8.0  # seconds; sums are exact


class Clock:
    """Time that passes only when somebody ticks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += seconds

    def __deepcopy__(self, memo: dict) -> 'Clock':
        return self  # mmengine copies data sets; time is the same everywhere


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(Stopwatch, 'clock', clock)
    return clock


class ToyData(Dataset):
    """Images of 3 x 2 x 2; each batch takes ``DATA`` seconds to load."""

    metainfo = {}

    def __init__(self, clock: Clock | None) -> None:
        self.clock = clock

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> dict:
        if self.clock is not None:
            self.clock.tick(DATA / BATCH)
        return {'inputs': torch.full((3, 2, 2), float(index)), 'data_samples': 0}


class ToyModel(BaseModel):
    """One linear layer; training step i takes ``plan(i)`` seconds, i from 1."""

    def __init__(self, clock: Clock | None, plan=lambda step: STEP) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 1)
        self.clock, self.plan, self.trained = clock, plan, 0

    def forward(self, inputs, data_samples=None, mode='loss'):
        if mode == 'predict':
            return [0]
        self.trained += 1
        if self.clock is not None:
            self.clock.tick(self.plan(self.trained))
        return {'loss': self.linear(torch.stack(list(inputs)).flatten(1)).mean()}


class SlowMetric(BaseMetric):
    """Validation as a whole takes ``VALIDATION`` seconds."""

    def __init__(self, clock: Clock | None) -> None:
        super().__init__()
        self.clock = clock

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        if self.clock is not None:
            self.clock.tick(VALIDATION)
        return {'accuracy': 1.0}


class SlowLogger(LoggerHook):
    """A log line takes ``LOG`` seconds."""

    def __init__(self, clock: Clock, **kwargs) -> None:
        super().__init__(**kwargs)
        self.clock, self.lines = clock, 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        if self.every_n_inner_iters(batch_idx, self.interval):
            self.clock.tick(LOG)
            self.lines += 1


class SlowCheckpoint(CheckpointHook):
    """A checkpoint takes ``CHECKPOINT`` seconds."""

    def __init__(self, clock: Clock, **kwargs) -> None:
        super().__init__(**kwargs)
        self.clock, self.saved = clock, 0

    def _save_checkpoint(self, runner) -> None:
        super()._save_checkpoint(runner)
        self.clock.tick(CHECKPOINT)
        self.saved += 1


class SlowHook(Hook):
    """Takes ``HOOK`` seconds around every step, and as long when a validation begins and when it ends."""

    def __init__(self, clock: Clock, priority: int) -> None:
        self.clock, self.priority = clock, priority

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.clock.tick(HOOK)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.clock.tick(HOOK)

    def before_val(self, runner) -> None:
        self.clock.tick(HOOK)

    def after_val(self, runner) -> None:
        self.clock.tick(HOOK)


def make_runner(work_dir: Path, clock: Clock | None = None, *, plan=lambda step: STEP, cost=None, **kwargs) -> Runner:
    """A runner that trains two epochs, or what ``kwargs`` say, and does nothing slow beside steps and data."""
    hooks = dict.fromkeys(('logger', 'checkpoint', 'timer')) | kwargs.pop('default_hooks', {})
    loader = dict(batch_size=BATCH, num_workers=0, dataset=ToyData(clock))
    settings = dict(
        model=ToyModel(clock, plan),
        work_dir=str(work_dir),
        experiment_name=f'toy_{time.time_ns()}',
        train_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[cost or dict(type='repl_mm.CostHook', warmup=2)],
        log_level='ERROR',
    )
    settings['custom_hooks'] += kwargs.pop('more_hooks', [])
    return Runner(default_hooks=hooks, **(settings | kwargs))


def validating(clock: Clock | None) -> dict:
    loader = dict(batch_size=BATCH, num_workers=0, dataset=ToyData(None))
    return dict(
        val_dataloader=loader | dict(sampler=dict(type='DefaultSampler', shuffle=False)),
        val_evaluator=[SlowMetric(clock)],
        val_cfg=dict(type='ValLoop'),
    )


BY_EPOCH = dict(by_epoch=True, max_epochs=2, val_interval=1)
BY_ITER = dict(by_epoch=False, max_iters=12, val_interval=6)


def iter_loader(clock: Clock | None) -> dict:
    """The sampler that iteration-based loops use: it never ends."""
    return dict(
        batch_size=BATCH, num_workers=0, dataset=ToyData(clock), sampler=dict(type='InfiniteSampler', shuffle=False)
    )


def cost_of(work_dir: Path) -> dict:
    return json.loads((work_dir / 'cost.json').read_text())


def test_every_field_by_hand(tmp_path: Path, clock: Clock) -> None:
    """Oracle: the plan. 12 steps of 0.5 s and 0.125 s data, 4 images each, 2 of them warm-up."""
    make_runner(tmp_path, clock).train()
    cost = cost_of(tmp_path)
    assert list(cost) == [
        'complete', 'device', 'world_size', 'versions', 'date', 'input_shape', 'images_per_step', 'first_step',
        'resumed_at', 'steps', 'warmup', 'step_time_s', 'data_time_s', 'images_per_s', 's_per_epoch', 'time_s',
        'memory_bytes',
    ]  # fmt: skip
    assert cost['complete'] is True
    assert cost['device'] == f'CPU, {torch.get_num_threads()} threads'
    assert set(cost['versions']) == {'python', 'torch', 'mmengine', 'repl_mm'}
    assert (cost['world_size'], cost['images_per_step'], cost['input_shape']) == (1, 4, [3, 2, 2])
    assert (cost['first_step'], cost['steps'], cost['warmup']) == (1, 12, 2)
    assert cost['step_time_s'] == dict.fromkeys(('mean', 'p50', 'p90', 'p99'), 0.5)
    assert cost['data_time_s'] == dict.fromkeys(('mean', 'p50', 'p90', 'p99'), 0.125)
    assert cost['images_per_s'] == 40 / 6.25
    assert cost['s_per_epoch'] == 24 / 6.4
    assert cost['time_s'] == dict(step=6.0, data=1.5, validation=0, logging=0, checkpoint=0, hooks=0, other=0)
    assert not list(tmp_path.glob('*.tmp'))


def test_quantiles_are_numpys_and_leave_out_the_warmup(tmp_path: Path, clock: Clock) -> None:
    durations = np.random.default_rng(0).integers(1, 1000, 12) / 64
    durations[:3] = 10_000  # warm-up
    cost = dict(type='repl_mm.CostHook', warmup=3)
    make_runner(tmp_path, clock, plan=lambda step: durations[step - 1], cost=cost).train()
    found, kept = cost_of(tmp_path)['step_time_s'], durations[3:]
    assert found['mean'] == pytest.approx(kept.mean())
    assert [found['p50'], found['p90'], found['p99']] == pytest.approx(np.percentile(kept, [50, 90, 99]))


def test_one_slow_step_is_in_p99_and_not_in_p50(tmp_path: Path, clock: Clock) -> None:
    make_runner(tmp_path, clock, plan=lambda step: 100.0 if step == 9 else STEP).train()
    found = cost_of(tmp_path)['step_time_s']
    assert found['p50'] == STEP
    assert found['p99'] > 50


@pytest.mark.parametrize('steps', [1, 10])
def test_no_figures_when_only_the_warmup_ran(tmp_path: Path, clock: Clock, steps: int) -> None:
    runner = make_runner(
        tmp_path,
        clock,
        cost=dict(type='repl_mm.CostHook'),
        train_cfg=dict(by_epoch=False, max_iters=steps),
        train_dataloader=iter_loader(clock),
    )
    said = []
    runner.logger.warning = said.append
    runner.train()
    cost = cost_of(tmp_path)
    assert (cost['steps'], cost['complete']) == (steps, True)
    assert [cost[name] for name in ('step_time_s', 'data_time_s', 'images_per_s', 's_per_epoch')] == [None] * 4
    assert [line for line in said if f'{steps} steps ran, and the first 10 are warm-up' in line]


@pytest.mark.parametrize('train_cfg', [BY_EPOCH, BY_ITER], ids=['by_epoch', 'by_iter'])
@pytest.mark.parametrize('priorities', [(50, 60, 90, 70), (0, 100, 0, 100), (100, 0, 5, 0)])
def test_slow_work_is_booked_on_its_own_line(tmp_path: Path, clock: Clock, train_cfg: dict, priorities: tuple) -> None:
    """Steps and data stay as planned whatever is slow around them, in either loop, with any priorities.

    Oracle: counts of what ran, times the planned seconds.
    """
    own, logger, checkpoint, other = priorities
    by_epoch = train_cfg['by_epoch']
    log = SlowLogger(clock, interval=3, log_metric_by_epoch=by_epoch)
    save = SlowCheckpoint(clock, interval=1 if by_epoch else 4, by_epoch=by_epoch)
    log.priority, save.priority = logger, checkpoint
    runner = make_runner(
        tmp_path,
        clock,
        cost=dict(type='repl_mm.CostHook', warmup=2, priority=own),
        train_cfg=train_cfg,
        default_hooks=dict(logger=log, checkpoint=save, timer=dict(type='IterTimerHook')),
        more_hooks=[SlowHook(clock, other)],
        **({} if by_epoch else {'train_dataloader': iter_loader(clock)}),
        **validating(clock),
    )
    start = clock.now
    runner.train()
    cost = cost_of(tmp_path)
    assert (log.lines, save.saved) == (4, 2 if by_epoch else 3)
    assert cost['time_s'] == {
        'step': 12 * STEP,
        'data': 12 * DATA,
        'validation': 2 * (VALIDATION + 2 * HOOK),
        'logging': log.lines * LOG,
        'checkpoint': save.saved * CHECKPOINT,
        'hooks': 12 * 2 * HOOK,
        'other': 0,
    }
    assert sum(cost['time_s'].values()) == clock.now - start
    assert cost['step_time_s'] == dict.fromkeys(('mean', 'p50', 'p90', 'p99'), STEP)
    assert cost['data_time_s'] == dict.fromkeys(('mean', 'p50', 'p90', 'p99'), DATA)


def test_checkpoint_and_log_inside_a_validation_keep_their_lines(tmp_path: Path, clock: Clock) -> None:
    """Oracle: the plan; the best checkpoint is saved by a hook of the validation."""

    class SlowBest(CheckpointHook):
        def _save_best_checkpoint(self, runner, metrics) -> None:
            clock.tick(CHECKPOINT)

    class SlowValidationLog(LoggerHook):
        def after_val_epoch(self, runner, metrics=None) -> None:
            clock.tick(LOG)

    default_hooks = dict(checkpoint=SlowBest(interval=100), logger=SlowValidationLog())
    make_runner(tmp_path, clock, default_hooks=default_hooks, **validating(clock)).train()
    times = cost_of(tmp_path)['time_s']
    assert (times['validation'], times['checkpoint'], times['logging']) == (2 * VALIDATION, 2 * CHECKPOINT, 2 * LOG)


def test_training_leaves_the_runner_as_it_was(tmp_path: Path, clock: Clock) -> None:
    """Otherwise a second training with the same runner would book everything twice."""
    runner = make_runner(tmp_path, clock)
    runner.train()
    first = cost_of(tmp_path)
    runner.train_loop._epoch = runner.train_loop._iter = 0
    runner.train()
    second = cost_of(tmp_path)
    assert second['time_s'] == first['time_s']
    assert second['steps'] == 12


def test_a_resumed_run_measures_all_its_steps(tmp_path: Path, clock: Clock) -> None:
    """Oracle: the plan, of a run that is not interrupted; two steps of warm-up at each of the two beginnings."""
    checkpoint = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    train_cfg = dict(by_epoch=True, max_epochs=1)
    make_runner(tmp_path, clock, plan=lambda step: 2 * STEP, default_hooks=checkpoint, train_cfg=train_cfg).train()
    make_runner(tmp_path, clock, default_hooks=checkpoint, resume=True).train()
    cost = cost_of(tmp_path)
    assert (cost['first_step'], cost['resumed_at'], cost['steps'], cost['complete']) == (1, [7], 12, True)
    assert cost['time_s'] == dict(
        step=6 * 2 * STEP + 6 * STEP, data=12 * DATA, validation=0, logging=0, checkpoint=0, hooks=0, other=0
    )
    assert cost['step_time_s']['mean'] == (4 * 2 * STEP + 4 * STEP) / 8
    assert cost['images_per_s'] == 8 * BATCH / (4 * 2 * STEP + 4 * STEP + 8 * DATA)


def test_a_resumed_run_keeps_the_larger_peak(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: planned bytes; the larger peak lies before the interruption, the larger start after it."""
    checkpoint = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    for epochs, memory in (
        (1, {'peak_resident': 900, 'resident_at_start': 60}),
        (2, {'peak_resident': 500, 'resident_at_start': 70}),
    ):
        monkeypatch.setattr(HostMeter, 'sample', lambda self, memory=memory: setattr(self, 'memory', memory))
        train_cfg = dict(by_epoch=True, max_epochs=epochs)
        make_runner(tmp_path, clock, default_hooks=checkpoint, train_cfg=train_cfg, resume=epochs > 1).train()
    assert cost_of(tmp_path)['memory_bytes'] == {'peak_resident': 900, 'resident_at_start': 70}


def test_an_exception_leaves_an_incomplete_record_and_asks_no_other_rank(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(step: int) -> float:
        if step == 9:
            raise RuntimeError('planned')
        return STEP

    asked = []
    monkeypatch.setattr(cost_module, 'all_reduce', lambda *args, **kwargs: asked.append(args))
    runner = make_runner(tmp_path, clock, plan=plan)
    with pytest.raises(RuntimeError, match='planned'):
        runner.train()
    cost = cost_of(tmp_path)
    assert (cost['complete'], cost['steps'], cost['step_time_s']['p50']) == (False, 8, STEP)
    assert cost['time_s']['data'] == 9 * DATA
    assert not asked


@pytest.mark.parametrize('stage', ['after_train_epoch', 'after_val'])
def test_a_killed_run_leaves_the_record_of_its_last_epoch_or_validation(
    tmp_path: Path, clock: Clock, stage: str
) -> None:
    """A process that is killed writes nothing, so the file must lie there before."""
    seen = []

    class Look(Hook):
        def before_train_epoch(self, runner) -> None:
            if runner.epoch:
                seen.append(cost_of(tmp_path))

        def before_val(self, runner) -> None:
            seen.append(cost_of(tmp_path))

    make_runner(tmp_path, clock, more_hooks=[Look()], **validating(clock)).train()
    expected = {'after_train_epoch': (0, 0.0), 'after_val': (1, VALIDATION)}
    index, validation = expected[stage]
    assert (seen[index]['complete'], seen[index]['steps']) == (False, 6)
    assert seen[index]['time_s']['validation'] == validation
    assert cost_of(tmp_path)['complete'] is True


class Started(Hook):
    """Leaves a file in the work directory after 20 steps."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx == 19:
            Path(runner.work_dir, 'started').touch()


def endless_training(work_dir: Path) -> None:
    """What the process that gets the Ctrl-C runs: without epochs and validations, so nothing else writes the file."""
    # A suite that runs in the background hands down an ignored SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    endless = dict(train_cfg=dict(by_epoch=False, max_iters=10**9), train_dataloader=iter_loader(None))
    make_runner(work_dir, plan=None, more_hooks=[Started()], **endless).train()


def test_ctrl_c_leaves_an_incomplete_record(tmp_path: Path) -> None:
    """A real SIGINT to a real process."""
    code = f'from pathlib import Path; import test_hooks; test_hooks.endless_training(Path({str(tmp_path)!r}))'
    process = subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).parent, stderr=subprocess.PIPE)
    try:
        while not (tmp_path / 'started').exists() and process.poll() is None:
            time.sleep(0.05)
        assert not (tmp_path / 'cost.json').exists()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert b'KeyboardInterrupt' in said
    cost = cost_of(tmp_path)
    assert cost['complete'] is False
    assert cost['steps'] >= 19
    assert cost['step_time_s']['p50'] > 0


def test_scalars_reach_tensorboard(tmp_path: Path, clock: Clock) -> None:
    """Oracle: the plan, read back from the event file. Six steps, then six of twice the time."""
    runner = make_runner(
        tmp_path,
        clock,
        plan=lambda step: STEP if step <= 6 else 2 * STEP,
        cost=dict(type='repl_mm.CostHook', interval=6),
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='TensorboardVisBackend')]),
        default_hooks=dict(logger=dict(type='LoggerHook')),
    )
    runner.train()
    (file,) = tmp_path.rglob('events.out.tfevents.*')
    events = EventAccumulator(str(file)).Reload()

    def curve(name: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(f'cost/{name}')]

    assert curve('step_time_s') == [(6, 0.5), (12, 1.0)]
    assert curve('data_time_s') == [(6, 0.125), (12, 0.125)]
    assert curve('images_per_s') == [(6, pytest.approx(24 / 3.75)), (12, pytest.approx(24 / 6.75))]
    assert [value > 2**20 for _, value in curve('peak_memory_bytes')] == [True, True]


class Hold(Hook):
    """Holds 64 MiB for a moment in every step."""

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        np.ones(64 << 17)


def hold_in_training(rank: int, folder: Path) -> None:
    np.ones(256 << 17)  # freed at once: no part of the peak
    make_runner(folder, more_hooks=[Hold()], cost=dict(type='repl_mm.CostHook', interval=1)).train()


def test_resident_memory_is_the_peak_since_training_began(tmp_path: Path) -> None:
    """Oracle: a block of 64 MiB held in a step, after one of 256 MiB that was freed before training."""
    # In a process of its own: what other tests have freed would hold the block without growing.
    torch.multiprocessing.spawn(hold_in_training, (tmp_path,), nprocs=1)
    memory = cost_of(tmp_path)['memory_bytes']
    assert set(memory) == {'peak_resident', 'resident_at_start'}
    assert 48 << 20 < memory['peak_resident'] - memory['resident_at_start'] < 160 << 20


class HungryData(ToyData):
    """Every process that loads data holds 64 MiB."""

    def __getitem__(self, index: int) -> dict:
        self.block = np.ones(64 << 17)
        return super().__getitem__(index)


def test_resident_memory_counts_the_workers(tmp_path: Path) -> None:
    """Oracle: two workers hold 128 MiB between them, one process that loads for itself holds 64 MiB."""
    loader = dict(batch_size=BATCH, dataset=HungryData(None), sampler=dict(type='DefaultSampler', shuffle=False))
    grown = {}
    for workers in (0, 2):
        path = tmp_path / str(workers)
        make_runner(path, plan=None, train_dataloader=loader | dict(num_workers=workers)).train()
        memory = cost_of(path)['memory_bytes']
        grown[workers] = memory['peak_resident'] - memory['resident_at_start']
    assert grown[2] > grown[0] + (64 << 20)


def test_without_a_high_water_mark_the_samples_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: planned resident sizes; the second of three is the largest."""
    sizes = iter([100, 100, 700, 300])
    monkeypatch.setattr(meters, '_reset_peak_resident', lambda: False)
    monkeypatch.setattr(meters, '_resident', lambda pid: next(sizes))
    meter = HostMeter()
    for _ in range(3):
        meter.sample()
    assert meter.memory == {'peak_resident': 700, 'resident_at_start': 100}


def two_ranks(rank: int, folder: Path) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    plans = {0: {'peak_resident': 500, 'resident_at_start': 70}, 1: {'peak_resident': 900, 'resident_at_start': 60}}

    class PlannedMeter(HostMeter):
        def sample(self) -> None:
            self.memory = plans[rank]

    cost_module.HostMeter = PlannedMeter
    Stopwatch.clock = clock = Clock()
    make_runner(folder / f'rank{rank}', clock).train()
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_take_the_larger_memory_and_all_images(tmp_path: Path) -> None:
    """Oracle: the planned bytes of the ranks, and one process' figures by hand. Two real processes, gloo."""
    mp.spawn(two_ranks, (tmp_path,), nprocs=2)
    cost = cost_of(tmp_path / 'rank0')
    assert cost['memory_bytes'] == {'peak_resident': 900, 'resident_at_start': 70}
    assert (cost['world_size'], cost['images_per_step'], cost['steps']) == (2, 8, 6)
    assert cost['images_per_s'] == 8 / 0.625
    assert not (tmp_path / 'rank1/cost.json').exists()


class FakeGpu:
    """A GPU that works on after the host's call returned; ``clock`` is the host's."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.busy_until, self.waits = clock, 0.0, 0
        self.allocated = self.reserved = self.peak = 0

    def launch(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, self.clock.now) + seconds

    def synchronize(self) -> None:
        self.waits += 1
        self.clock.now = max(self.clock.now, self.busy_until)

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace()

        def record() -> None:
            event.at = max(self.busy_until, self.clock.now)

        event.record = record
        event.query = lambda: event.at <= self.clock.now
        event.elapsed_time = lambda end: 1000 * (end.at - event.at)  # milliseconds
        return event

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated


@pytest.fixture
def gpu(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu(clock)
    for name, fake in {
        'Event': gpu.event,
        'synchronize': gpu.synchronize,
        'reset_peak_memory_stats': gpu.reset_peak_memory_stats,
        'max_memory_allocated': lambda: gpu.peak,
        'max_memory_reserved': lambda: 2 * gpu.peak,
        'get_device_name': lambda: 'Toy GPU',
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(cost_module, 'is_cuda_available', lambda: True)
    return gpu


class GpuModel(ToyModel):
    """A step takes the host 0.125 s to launch and the GPU ``STEP`` to do; step 3 needs the most memory."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__(gpu.clock, self.launch)
        self.gpu = gpu

    def launch(self, step: int) -> float:
        self.gpu.launch(STEP)
        self.gpu.peak = max(self.gpu.peak, 900 if step == 3 else 100)
        return 0.125


class ReadLoss(Hook):
    """Waits for the GPU, as mmengine's RuntimeInfoHook does when it reads the losses."""

    priority = 'VERY_HIGH'

    def __init__(self, gpu: FakeGpu) -> None:
        self.gpu = gpu

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.gpu.synchronize()
        self.gpu.clock.tick(HOOK)


def test_cuda_steps_are_timed_on_the_gpu(tmp_path: Path, clock: Clock, gpu: FakeGpu) -> None:
    """Oracle: the plan. The host's calls return after 0.125 s and its wait comes in a hook."""
    make_runner(tmp_path, clock, model=GpuModel(gpu), more_hooks=[ReadLoss(gpu)]).train()
    cost = cost_of(tmp_path)
    assert cost['device'] == 'Toy GPU'
    assert cost['step_time_s'] == dict.fromkeys(('mean', 'p50', 'p90', 'p99'), STEP)
    assert cost['data_time_s']['p99'] == DATA
    assert cost['images_per_s'] == 4 / (STEP + DATA)
    assert (cost['time_s']['step'], cost['time_s']['hooks']) == (12 * STEP, 12 * HOOK)


def test_cuda_needs_one_wait_for_the_whole_run(tmp_path: Path, clock: Clock, gpu: FakeGpu) -> None:
    """Without a hook that waits, the steps are still in the queue when their calls return."""
    make_runner(tmp_path, clock, model=GpuModel(gpu)).train()
    assert gpu.waits == 1
    assert cost_of(tmp_path)['steps'] == 12
    assert cost_of(tmp_path)['step_time_s']['p50'] == STEP


def test_an_interrupted_cuda_run_waits_for_nothing(tmp_path: Path, clock: Clock, gpu: FakeGpu) -> None:
    """After an error on the GPU any wait would raise again and lose the record."""
    model = GpuModel(gpu)
    model.plan = lambda step: model.launch(step) if step < 9 else 1 / 0
    runner = make_runner(tmp_path, clock, model=model)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    cost = cost_of(tmp_path)
    assert (cost['complete'], cost['steps'], gpu.waits) == (False, 8, 0)


def test_the_cuda_peak_survives_mmengines_log_lines(tmp_path: Path, clock: Clock, gpu: FakeGpu) -> None:
    """mmengine resets torch's peak at every log line; step 3 has the peak, a line follows each step."""

    class ResettingLogger(LoggerHook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            gpu.reset_peak_memory_stats()

    gpu.allocated, gpu.peak = 10, 5000  # a peak before training
    make_runner(tmp_path, clock, model=GpuModel(gpu), default_hooks=dict(logger=ResettingLogger(interval=1))).train()
    assert gpu.peak < 900
    assert cost_of(tmp_path)['memory_bytes'] == {'peak_allocated': 900, 'peak_reserved': 1800}


def test_cuda_events_are_taken_in_order_and_only_when_finished(clock: Clock, gpu: FakeGpu) -> None:
    meter = CudaMeter()
    for seconds in (1.0, 2.0):
        meter.begin_step()
        gpu.launch(seconds)
        meter.end_step()
    meter.collect()
    assert meter.seconds == []
    clock.tick(1.5)
    meter.collect()
    assert meter.seconds == [1.0]
    meter.finish()
    assert meter.seconds == [1.0, 2.0]


@pytest.mark.parametrize('options', [dict(interval=0), dict(warmup=-1)])
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r'interval=.*warmup=.*at least'):
        CostHook(**options)


def test_batches_of_every_kind_are_counted_or_left_alone() -> None:
    """Oracle: images by hand."""
    images = torch.zeros(3, 1, 8, 8)
    assert len(cost_module._images((images, [0, 1, 2]))) == 3
    assert len(cost_module._images(dict(inputs=dict(labelled=[images[0]], teacher=list(images), student=[])))) == 4
    assert cost_module._images({'pictures': images}) is None


@pytest.mark.parametrize('scope', ['mmengine', 'mmpretrain', 'mmdet', 'mmseg'])
def test_the_config_line_works_in_every_scope(tmp_path: Path, scope: str) -> None:
    runner = make_runner(tmp_path, cost=dict(type='repl_mm.CostHook'), default_scope=scope)
    assert any(isinstance(hook, CostHook) for hook in runner.hooks)
