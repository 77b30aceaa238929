"""What ``CostHook`` itself costs per training step, on the CPU it runs on.

    python benchmarks/hook_overhead.py

First its own calls, with a runner that does nothing else; this decides: the exit status is 1 above 0.5 % of a step of
20 ms. Then, for information, a small real training with and without it, in interleaved rounds.
"""

import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import LocalVisBackend, Visualizer
from torch import nn

from repl_mm.engine.hooks import CostHook

STEP_US = 20_000
LIMIT = 0.005
CALLS = 20_000
PAIRS, AB_STEPS = 10, 100


class QuietLogger(LoggerHook):
    """Asks for a log line every ten steps, mmengine's default, and drops it."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_inner_iters(batch_idx, self.interval):
            runner.log_processor.get_log_after_iter(runner, batch_idx, 'train')


class QuietCheckpoint(CheckpointHook):
    """Called at every step, and saves nothing."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        pass


class EmptyLoop(BaseLoop):
    """Calls the hooks of ``CALLS`` steps that do nothing.

    Attributes:
        microseconds: What the two calls around each step took.
    """

    def __init__(self, runner: SimpleNamespace) -> None:
        self._runner = runner
        self.microseconds = np.zeros(CALLS)

    def run(self) -> None:
        batch = dict(inputs=torch.zeros(64, 3, 32, 32))
        runner = self._runner
        for step in range(CALLS):
            start = time.perf_counter_ns()
            runner.call_hook('before_train_iter', batch_idx=step, data_batch=batch)
            runner.call_hook('after_train_iter', batch_idx=step, data_batch=batch, outputs=None)
            self.microseconds[step] = (time.perf_counter_ns() - start) / 1000
            runner.iter += 1


def own_calls(folder: Path) -> np.ndarray:
    """Microseconds per step of the hook's calls, its curves and its looks at the memory among them."""
    runner = SimpleNamespace(
        hooks=[QuietLogger(), QuietCheckpoint()],
        iter=0,
        work_dir=str(folder),
        log_processor=SimpleNamespace(get_log_after_iter=lambda runner, batch_idx, mode: None),
        visualizer=Visualizer('overhead', vis_backends=[LocalVisBackend(str(folder))]),
        train_dataloader=SimpleNamespace(dataset=range(1000)),
    )

    def call_hook(fn_name: str, **kwargs) -> None:
        for hook in runner.hooks:
            getattr(hook, fn_name)(runner, **kwargs)

    runner.call_hook = call_hook
    runner._train_loop = loop = EmptyLoop(runner)
    CostHook().before_run(runner)
    loop.run()
    return loop.microseconds


class Toy(BaseModel):
    """A few linear layers: a step takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))

    def forward(self, inputs, data_samples=None, mode='loss') -> dict:
        return dict(loss=self.layers(torch.stack(list(inputs))).square().mean())


def seconds_per_step(folder: Path, *, hook: bool) -> float:
    """One real training of ``AB_STEPS`` steps."""
    runner = Runner(
        model=Toy(),
        work_dir=str(folder),
        experiment_name=f'overhead_{time.time_ns()}',
        train_dataloader=dict(
            batch_size=64,
            num_workers=0,
            dataset=[dict(inputs=torch.zeros(512), data_samples=0)] * 640,
            sampler=dict(type='InfiniteSampler'),
        ),
        train_cfg=dict(by_epoch=False, max_iters=AB_STEPS),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=None),
        custom_hooks=[dict(type='repl_mm.CostHook')] if hook else [],
        log_level='ERROR',
    )
    start = time.perf_counter()
    runner.train()
    return (time.perf_counter() - start) / AB_STEPS


def real_pairs(folder: Path) -> np.ndarray:
    """Seconds per step without and with the hook, shape (PAIRS, 2); who goes first changes from pair to pair."""
    torch.set_num_threads(1)  # steadier beside other work on the machine
    seconds_per_step(folder, hook=True)  # warm-up
    pairs = np.zeros((PAIRS, 2))
    for i in range(PAIRS):
        for hook in (i % 2 == 0, i % 2 == 1):
            pairs[i, int(hook)] = seconds_per_step(folder, hook=hook)
    return pairs


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        microseconds = own_calls(folder)
        pairs = real_pairs(folder)
    share = microseconds.mean() / STEP_US
    print(f'own calls, {CALLS} steps: median {np.median(microseconds):.1f} us, mean {microseconds.mean():.1f} us')
    print(f'mean / step of 20 ms:    {share:.3%} (limit {LIMIT:.1%}): {"ok" if share <= LIMIT else "TOO SLOW"}')
    without, with_hook = np.median(pairs, axis=0) * 1000
    differences = (pairs[:, 1] - pairs[:, 0]) * 1e6
    low, middle, high = np.quantile(differences, (0.25, 0.5, 0.75))
    print(
        f'real training, {PAIRS} pairs of {AB_STEPS} steps: {without:.3f} ms without, {with_hook:.3f} ms with; '
        f'difference within a pair {middle:+.0f} us (quartiles {low:+.0f}, {high:+.0f})'
    )
    return int(share > LIMIT)


if __name__ == '__main__':
    sys.exit(main())
