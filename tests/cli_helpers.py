"""The tools, run in the process of the tests, and an experiment for them that takes a second."""

import contextlib
import io
import os
from importlib import import_module
from typing import NamedTuple
from unittest import mock

from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer

CLASSIFIER = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, base_channels=8),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type='repl_mm.Digits', split='train', indices=96, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=0,
    dataset=dict(type='repl_mm.Digits', split='val', indices=25, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
param_scheduler = dict(type='ExponentialLR', gamma=0.5, by_epoch=True)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
randomness = dict(seed=0)
"""


class Done(NamedTuple):
    """How a tool ended: its exit code, and what it wrote to stdout and stderr."""

    code: int
    out: str
    err: str


def run(tool: str, *args: object) -> Done:
    """Run a tool such as ``'train'`` in this process."""
    # mmengine knows a run by its config's name and the second it began in: another of that second would share these.
    for kind in (MessageHub, Visualizer, *Visualizer.__subclasses__()):
        kind._instance_dict.clear()
    # As a terminal takes it: a text that is not UTF-8 is an error on stdout.
    out, err, code = io.TextIOWrapper(io.BytesIO(), encoding='utf-8'), io.StringIO(), 0
    with (
        mock.patch.dict(os.environ),
        DefaultScope.overwrite_default_scope('mmengine'),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            import_module(f'repl_mm.cli.{tool}').main([str(arg) for arg in args])
        except SystemExit as end:
            code = end.code
    out.flush()
    return Done(code, out.buffer.getvalue().decode(), err.getvalue())
