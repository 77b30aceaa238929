"""The checks of ``doctor``: what a machine computes, beside what a CPU computes in float64, or what is counted by hand.

Each check gets the device, and returns what it has seen in a few words. It raises AssertionError where that is wrong,
and NotRunError where it cannot be looked at.
"""

import json
import mmap
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from rich.progress import track

from repl_mm import __version__
from repl_mm.benchmark.devices import DEVICES
from repl_mm.benchmark.step import TrainingStep
from repl_mm.cli._doctor_tensors import (
    EVERY,
    NotRunError,
    backend_agrees,
    computing_layers_agree,
    deployed_networks_agree,
    limit,
    several_processes,
)
from repl_mm.deployment import relative_difference
from repl_mm.engine.errors import summarise
from repl_mm.engine.meters import CudaMeter, HostMeter

MIB = 2**20
PACKAGES = (
    'torch', 'torchvision', 'numpy', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'onedl-mmdetection',
    'onedl-mmsegmentation', 'mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain', 'mmdet', 'mmsegmentation', 'onnxruntime',
    'torchao', 'scipy', 'scikit-learn',
)  # fmt: skip
# A run of seconds on the digits of scikit-learn.
RUN = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl=dict(policy='interval', every=4)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(type='repl_mm.Digits', split='train', indices=192, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
train_cfg = dict(by_epoch=True, max_epochs=2)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))
randomness = dict(seed=0)
"""


@dataclass(frozen=True)
class Check:
    """What one check has found.

    Attributes:
        name: What was looked at.
        result: ``'passed'``, ``'failed'`` or ``'not run'``.
        detail: What was seen, or why it failed or was not run.
        seconds: How long it took.
    """

    name: str
    result: str
    detail: str
    seconds: float


def describe_versions(device: torch.device) -> dict[str, str]:
    """What is installed, and the hardware."""
    found = {'repl_mm': __version__, 'Python': platform.python_version(), 'system': platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == 'cuda':
        gpu = torch.cuda.get_device_properties(0)
        found['GPU'] = f'{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, capability {gpu.major}.{gpu.minor}'
        found['CUDA, cuDNN'] = f'{torch.version.cuda}, {torch.backends.cudnn.version()}'
        found['GPUs'] = str(torch.cuda.device_count())
    found['CPU'] = f'{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads'
    return found


def examine(device: torch.device, *, ranks: int) -> Iterator[Check]:
    """Make all checks, one after another.

    Args:
        device: What to look at.
        ranks: How many processes train together in the last one.
    """
    checks = dict(CHECKS, **{f'{ranks} processes': partial(several_processes, ranks=ranks)} if ranks > 1 else {})
    for name, check in track(checks.items(), 'Looking: '):
        torch.manual_seed(0)
        start = time.perf_counter()
        try:
            result, detail = 'passed', check(device)
        except NotRunError as reason:
            result, detail = 'not run', str(reason)
        except Exception as error:  # whatever a machine does wrong is what is looked for
            result, detail = 'failed', f'{type(error).__name__}: {summarise(error)}'
        yield Check(name, result, detail, time.perf_counter() - start)


def as_json(versions: Mapping[str, str], device: str, found: Sequence[Check]) -> str:
    """Everything that was found."""
    return f'{json.dumps(dict(versions=versions, device=device, checks=[asdict(c) for c in found]), indent=2)}\n'


def operators_of_detectors(device: torch.device) -> str:
    """NMS of three boxes, and focal loss, by hand."""
    try:
        from mmcv.ops import nms, sigmoid_focal_loss
    except ImportError as error:
        raise NotRunError(f'no detector runs here: {summarise(error)}') from None
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], device=device)
    _, kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
    if kept.tolist() != [0, 2]:
        raise AssertionError(f'NMS keeps the boxes {kept.tolist()}, by hand they are [0, 2]')
    logits = torch.zeros(1, 1, device=device)
    loss = sigmoid_focal_loss(logits, torch.zeros(1, dtype=torch.long, device=device), 2.0, 0.25, None, 'sum').item()
    by_hand = 0.25 * 0.5**2 * 0.6931471805599453
    limit(abs(loss - by_hand) / by_hand, 1e-5, 'the focal loss')
    compiled = getattr(sys.modules.get('mmcv._ext'), '__file__', None)
    return 'compiled ones of mmcv' if compiled else "mmcv has none compiled: torchvision's stand in"


def times_and_memory(device: torch.device) -> str:
    """What the cost hook measures with, beside events and an allocation by hand."""
    if device.type != 'cuda':
        before = HostMeter()
        # Straight from the system: the C library may serve a tensor from what earlier checks have freed, which is
        # resident already.
        held = mmap.mmap(-1, 256 * MIB)
        torch.frombuffer(held, dtype=torch.uint8).fill_(1)
        before.sample()
        seen = before.memory['peak_resident'] - before.memory['resident_at_start']
        held.close()
        if not 250 * MIB <= seen <= 300 * MIB:
            raise AssertionError(f'256 MiB were taken, the meter has seen {seen / MIB:.0f} MiB')
        return f'256 MiB taken, {seen / MIB:.0f} MiB seen; times on a CPU are those of its clock'
    meter, x = CudaMeter(), torch.randn(2048, 2048, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(20):
        meter.begin_step()
        x = (x @ x).tanh()
        meter.end_step()
        meter.collect()
    end.record()
    meter.finish()
    by_hand, ours = start.elapsed_time(end) / 1000, sum(meter.seconds)
    if not 0.8 * by_hand <= ours <= 1.05 * by_hand or len(meter.seconds) != 20:
        raise AssertionError(f'20 steps took {by_hand:.4f} s by two events, {ours:.4f} s by the hook')
    torch.cuda.reset_peak_memory_stats()
    rest = torch.cuda.memory_allocated()
    held = torch.empty(256 * MIB, dtype=torch.uint8, device=device)
    meter.memory = dict.fromkeys(meter.memory, 0)
    meter.sample()
    del held
    if (seen := meter.memory['peak_allocated'] - rest) != 256 * MIB:
        raise AssertionError(f'256 MiB were allocated, the hook has seen {seen / MIB:.1f} MiB')
    return f'20 steps: {by_hand:.4f} s by two events, {ours:.4f} s by the hook; 256 MiB of memory to the byte'


def resumed_run(device: torch.device) -> str:
    """Two epochs at once, beside one epoch and its continuation, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, 'run.py')
        config.write_text(RUN)
        _train(device, config, '--work-dir', f'{folder}/whole')
        one_epoch = ('--cfg-options', 'train_cfg.max_epochs=1')
        _train(device, config, '--work-dir', f'{folder}/cut', *one_epoch)
        _train(device, config, '--work-dir', f'{folder}/cut', '--resume')
        whole, cut = (
            torch.load(f'{folder}/{name}/epoch_2.pth', map_location='cpu', weights_only=False)['state_dict']
            for name in ('whole', 'cut')
        )
    if whole.keys() != cut.keys():
        raise AssertionError('a resumed run ends with other parameters')
    if all(map(torch.equal, whole.values(), cut.values())):
        return 'bit for bit as the run that was not interrupted'
    largest = relative_difference([t.double() for t in cut.values()], [t.double() for t in whole.values()])
    if device.type == 'cpu':
        raise AssertionError(f'a resumed run ends with weights that differ by {largest:.1e}')
    # cuDNN's and atomic sums have no fixed order.
    return f'the weights differ by {limit(largest, 1e-2, "a resumed run")}, as sums on a GPU have no fixed order'


def _train(device: torch.device, *args: Any) -> None:
    hidden = {'CUDA_VISIBLE_DEVICES': ''} if device.type == 'cpu' else {}
    code = 'import sys; from repl_mm.cli.train import main; main(sys.argv[1:])'
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, args)], env=os.environ | hidden, capture_output=True, text=True
    )
    if done.returncode:
        raise AssertionError(f'training ended with code {done.returncode}: {(done.stderr.splitlines() or [""])[-1]}')


def predicted_step(device: torch.device) -> str:
    """Memory and, of a known GPU, time of a training step, predicted and measured."""
    try:
        from repl_mm.benchmark.predict import predict_step
        from repl_mm.benchmark.training import measure_memory
    except ValueError as error:  # before torch 2.5
        raise NotRunError(str(error)) from None
    config = Config(dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            backbone=dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl=EVERY),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
        ),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
    ))  # fmt: skip
    gpu = torch.cuda.get_device_name(0).lower() if device.type == 'cuda' else ''
    known = next((name for name in DEVICES if name in gpu), None)
    batch = 1024 if device.type == 'cuda' else 32
    expected = predict_step(config, DEVICES[known or 'a100'], batch=batch, size=(32, 32))
    step = TrainingStep(config, batch=batch, size=(32, 32), backend='fp32', device=device)
    step()
    memory = measure_memory(step)['total'] / expected.memory['total']
    tolerance = 0.01 if device.type == 'cpu' else 0.35  # kernels on a GPU save other tensors and need some inside
    if not abs(memory - 1) <= tolerance:
        raise AssertionError(f'the measured memory is {memory:.3f} of the predicted one')
    if known is None:
        return f'measured over predicted memory: {memory:.3f}; no figures of this device to predict a time with'
    seconds = []
    for _ in range(20):
        start = step._now()
        step()
        seconds.append(step._now() - start)
    ratio = sorted(seconds)[10] / expected.seconds
    return f'measured over predicted: memory {memory:.3f}, time {ratio:.2f} (as {known})'


CHECKS: dict[str, Callable[[torch.device], str]] = {
    'operators of detectors': operators_of_detectors,
    'computing layers': computing_layers_agree,
    'deployed networks': deployed_networks_agree,
    'mixed precision': partial(backend_agrees, backend='amp', most=0.15),
    'channels-last': partial(backend_agrees, backend='channels-last', most=2e-2),
    'torch.compile': partial(backend_agrees, backend='compile', most=2e-2),
    'times and memory': times_and_memory,
    'a resumed run': resumed_run,
    'a predicted step': predicted_step,
}
