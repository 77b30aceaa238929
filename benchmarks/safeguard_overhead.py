"""What exact resume, the check of the loss and the watchdog cost per training step, on the CPU they run on.

    python benchmarks/safeguard_overhead.py

The same training with mmengine's loop and hooks and with ours, in interleaved rounds; the ratio is the median over
pairs of runs.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from repl_mm.engine.hooks import FiniteLossHook, WatchdogHook

ROOT = Path(__file__).parents[1]
TURNS, STEPS = 40, 30


class Clock(Hook):
    """Keeps how long the training takes from the start of each step to that of the next."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def before_train_iter(self, *args, **kwargs) -> None:
        self.times.append(perf_counter())


def seconds_per_step(folder: str, *, ours: bool) -> float:
    config = Config.fromfile(ROOT / 'configs/demo/resnet32-repl_digits.py')
    init_default_scope(config.default_scope)
    clock = Clock()
    prefix = 'repl_mm.' if ours else ''
    config.train_dataloader.update(collate_fn=dict(type='default_collate'), batch_size=16)
    runner = Runner(
        model=config.model,
        data_preprocessor=config.data_preprocessor,
        work_dir=folder,
        train_dataloader=config.train_dataloader,
        optim_wrapper=config.optim_wrapper,
        train_cfg=dict(type=f'{prefix}IterBasedTrainLoop', max_iters=STEPS),
        custom_hooks=[clock, *([FiniteLossHook(), WatchdogHook()] if ours else [])],
        default_scope=config.default_scope,
        default_hooks=dict(checkpoint=dict(type=f'{prefix}CheckpointHook', by_epoch=False, save_last=False)),
        randomness=dict(seed=0),
        experiment_name=Path(folder).name,
        log_level='ERROR',
    )
    runner.train()
    return median(end - start for start, end in zip(clock.times[5:], clock.times[6:], strict=False))


def main() -> int:
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(TURNS):
        for ours in times:
            with tempfile.TemporaryDirectory() as folder:
                times[ours].append(seconds_per_step(folder, ours=ours))
    ratios = sorted(a / b for a, b in zip(times[True], times[False], strict=True))
    print(
        f"ResNet-32, batch 16, {torch.get_num_threads()} threads: {1000 * median(times[False]):.1f} ms with mmengine's "
        f'loop and hooks, {1000 * median(times[True]):.1f} ms with ours; pair by pair {median(ratios):.4f} '
        f'({ratios[1]:.3f} to {ratios[-2]:.3f})'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
