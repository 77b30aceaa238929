"""Demo runs, small enough to be started a hundred times; each in a process that is forked with all imports done."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import mmseg.models  # noqa: F401
import torch

import repl_mm.backbones
import repl_mm.backbones.neck
import repl_mm.cli.config
import repl_mm.cli.runner
import repl_mm.cli.train
import repl_mm.datasets.checked
import repl_mm.engine.files
import repl_mm.engine.hooks
from repl_mm.engine.loops import ExactResumeMixin

ROOT = Path(__file__).parents[2]
STEPS = 18
EVERY = 2  # steps between checkpoints
COMMON = """
train_cfg = dict(val_interval={val_interval})
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=2))
custom_hooks = [
    dict(type='repl_mm.CostHook', warmup=0),
    dict(type='mmengine.EMAHook', ema_type='ExponentialMovingAverage', momentum=0.1, update_buffers=True),
]
"""
# Augmentation in two workers that read ahead, random numbers in the computing layers, batches of two sizes.
CLASSIFICATION = """
_base_ = '{root}/configs/demo/resnet32-repl_digits.py'
train_dataloader = dict(batch_size=8, num_workers=2, dataset=dict(indices=44))
val_dataloader = dict(dataset=dict(indices=8))
model = dict(backbone=dict(repl=dict(grad_fraction=0.5)))
train_cfg = dict(max_epochs=3)
param_scheduler = dict(total_steps=3)
"""
# Batches by aspect ratio, gradients accumulated over three of them, which neither checkpoints nor epochs respect.
DETECTION = """
_base_ = '{root}/configs/demo/retinanet_r34-repl_fpn_digits.py'
data_root = '{data}/coco/'
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
optim_wrapper = dict(accumulative_counts=3)
train_cfg = dict(max_epochs=3)
param_scheduler = dict(total_steps=3)
"""
# Counts iterations, not epochs.
SEGMENTATION = """
_base_ = '{root}/configs/demo/deeplabv3plus_r34-d8-repl_digits.py'
data_root = '{data}/cityscapes/'
model = dict(decode_head=dict(dropout_ratio=0.1))
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
train_cfg = dict(max_iters=18)
param_scheduler = dict(total_steps=18)
"""
TASKS = dict(classification=(CLASSIFICATION, 2), detection=(DETECTION, 3), segmentation=(SEGMENTATION, 9))


def write_config(task: str, *, folder: Path, data: Path) -> Path:
    """Write the config of a task's run of ``STEPS`` steps, which finds its scenes in the folder ``data``."""
    text, val_interval = TASKS[task]
    path = folder / f'{task}.py'
    # mmengine takes one assignment of a name: the common train_cfg is merged into the task's.
    common = COMMON.format(val_interval=val_interval).replace('train_cfg = dict(', 'train_cfg.update(', 1)
    path.write_text(text.format(root=ROOT, data=data) + common)
    return path


def start(config: Path, work_dir: Path, *args: str, before: Callable[[], None] = lambda: None) -> BaseProcess:
    """Start ``tools/train.py`` in a fork of this process; ``before`` prepares its fault there."""
    process = get_context('fork').Process(target=_train, args=(config, work_dir, args, before))
    process.start()
    return process


def _train(config: Path, work_dir: Path, args: tuple[str, ...], before: Callable[[], None]) -> None:
    work_dir.mkdir(parents=True, exist_ok=True)
    log = os.open(work_dir / 'output.txt', os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not those of the tests
    torch.set_num_threads(1)  # a fork has lost the threads of its parent
    before()
    repl_mm.cli.train.main([str(config), '--work-dir', str(work_dir), *args])


def output(work_dir: Path) -> str:
    """What the runs of a work dir have printed."""
    return (work_dir / 'output.txt').read_text()


def die() -> None:
    """What neither the process nor Python can answer."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in(seconds: float) -> Callable[[], None]:
    """Die wherever the process is then."""

    def prepare() -> None:
        timer = threading.Timer(seconds, die)
        timer.daemon = True
        timer.start()

    return prepare


def die_after(steps: int, *, inside: bool) -> Callable[[], None]:
    """Die in or after the step of this number, counted from the start of the process."""

    def prepare() -> None:
        run_iter, left = ExactResumeMixin.run_iter, [steps]

        def last_steps(loop: ExactResumeMixin, *args) -> None:
            left[0] -= 1
            if left[0] == 0 and inside:
                loop.runner.optim_wrapper.step = die
            run_iter(loop, *args)
            if left[0] <= 0:
                die()

        ExactResumeMixin.run_iter = last_steps

    return prepare


def terminate_in(step: int) -> Callable[[], None]:
    """Be asked to end in the step of this number, counted from the start of the process."""

    def prepare() -> None:
        run_iter, left = ExactResumeMixin.run_iter, [step]

        def ask(loop: ExactResumeMixin, *args) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            run_iter(loop, *args)

        ExactResumeMixin.run_iter = ask

    return prepare


def die_while_saving(checkpoint: int, *, fraction: float) -> Callable[[], None]:
    """Die when so much of a checkpoint is written, the first or second or so one; at 1 when it is in its place."""

    def prepare() -> None:
        write, left = repl_mm.engine.files.write_atomic, [checkpoint]

        def write_some(path: Path, content: bytes) -> None:
            left[0] -= path.suffix == '.pth'
            if left[0] > 0 or path.suffix != '.pth':
                write(path, content)
                return
            if fraction < 1:
                path.with_name(f'.{path.name}.1.part').write_bytes(content[: int(len(content) * fraction)])
            else:
                write(path, content)
            die()

        repl_mm.engine.files.write_atomic = write_some

    return prepare
