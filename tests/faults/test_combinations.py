"""Contract: what users combine with two processes trains what one process would, and can be interrupted.

Oracles: one process on the joint batch, batch norms synchronised; and, bit for bit, the run that was not interrupted.
These runs are forks of this process that meet over gloo, started as torchrun would.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import ROOT, die_after, output, start, terminate_in
from share import PART

BASE = """
_base_ = '{root}/configs/demo/resnet32-repl_digits.py'
train_dataloader = dict(batch_size={batch}, dataset=dict(indices=128, pipeline=[
    dict(type='Resize', scale=16, interpolation='bicubic'), dict(type='PackInputs')]))
val_dataloader = val_evaluator = val_cfg = None
model = dict(backbone=dict(zero_init_residual=True))  # else rounding grows a hundredfold in each step
optim_wrapper = dict(optimizer=dict(lr=0.003))
train_cfg = dict(max_epochs=2)
param_scheduler = None
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts=-1))
sync_bn = 'torch'
"""
FSDP = """
runner_type = 'FlexibleRunner'
strategy = dict(type='repl_mm.FSDPStrategy', sync_bn='torch')
sync_bn = None
"""
COMPILED = 'compile = dict(backend="aot_eager")\n'  # the graphs of torch.compile, forward and backward, run as they are
COMBINATIONS = {
    'DDP': '',
    'DDP, recompute': 'model = dict(backbone=dict(repl=dict(recompute=True)))\n',
    'DDP, sites beside each other': 'model = dict(backbone=dict(repl=dict(policy="budget", every=2)))\n',
    'DDP, activation checkpointing of stages': 'activation_checkpointing = ["backbone.layer2", "backbone.layer3"]\n',
    'DDP, activation checkpointing of blocks': 'model = dict(backbone=dict(with_cp=True))\n',
    'DDP, activation checkpointing of blocks, recompute': (
        'model = dict(backbone=dict(with_cp=True, repl=dict(recompute=True)))\n'
    ),
    'DDP, gradient accumulation': 'optim_wrapper = dict(accumulative_counts=3)\n',
    'DDP, EMA': 'custom_hooks = [dict(type="EMAHook")]\n',
    'DDP, mixed precision': 'optim_wrapper = dict(type="AmpOptimWrapper")\n',
    'FSDP': FSDP,
    'FSDP, sites beside each other': FSDP + 'model = dict(backbone=dict(repl=dict(policy="budget", every=2)))\n',
    'FSDP, recompute': FSDP + 'model = dict(backbone=dict(repl=dict(recompute=True)))\n',
    'FSDP, gradient clipping': FSDP + 'optim_wrapper = dict(clip_grad=dict(max_norm=0.1))\n',
    'DDP, unused parameters': 'find_unused_parameters = True\n',
    'DDP, compiled': COMPILED,
}


def as_rank(rank: int, port: int, before: Callable[[], None]) -> Callable[[], None]:
    """What torchrun tells a process."""

    def prepare() -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
            MASTER_PORT=str(port),
        )  # fmt: skip
        before()

    return prepare


def train_two(config: Path, work_dir: Path, *args: str, before: Callable[[], None] = lambda: None) -> list[int]:
    """The exit codes of two ranks."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    args = (*args, '--launcher', 'pytorch')
    ranks = [start(config, work_dir, *args, before=as_rank(rank, port, before)) for rank in range(2)]
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def weights(work_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(work_dir / f'iter_{step}.pth', weights_only=False)['state_dict']


@pytest.mark.parametrize('name', [*COMBINATIONS][::PART])
def test_two_processes_equal_one_and_can_be_interrupted(name, tmp_path, survived):
    for batch in (16, 32):
        (tmp_path / f'base{batch}.py').write_text(BASE.format(root=ROOT, batch=batch))
        change = COMBINATIONS[name] if batch == 16 else COMBINATIONS[name].removeprefix(FSDP).removeprefix(COMPILED)
        (tmp_path / f'b{batch}.py').write_text(f'_base_ = "base{batch}.py"\n{change}')
    one = start(tmp_path / 'b32.py', tmp_path / 'one')
    one.join()
    assert one.exitcode == 0, output(tmp_path / 'one')
    assert train_two(tmp_path / 'b16.py', tmp_path / 'two') == [0, 0], output(tmp_path / 'two')
    # From step to step rounding grows.
    expected, found = weights(tmp_path / 'one', 4), weights(tmp_path / 'two', 4)
    loose = 'mixed' in name  # bfloat16 has 8 bits
    for key, value in expected.items():
        tolerance = dict(rtol=2e-2, atol=2e-2) if loose else dict(rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(found[key], value, **tolerance, msg=lambda m, key=key: f'{key}: {m}')

    assert -9 in train_two(tmp_path / 'b16.py', tmp_path / 'again', before=die_after(3, inside=False))
    rare = ['--cfg-options', 'default_hooks.checkpoint.interval=100']  # so that the signal saves
    codes = train_two(tmp_path / 'b16.py', tmp_path / 'again', '--resume', *rare, before=terminate_in(3))
    assert codes == [143, 143], output(tmp_path / 'again')
    assert train_two(tmp_path / 'b16.py', tmp_path / 'again', '--resume') == [0, 0], output(tmp_path / 'again')
    again = weights(tmp_path / 'again', 8)
    assert all(torch.equal(again[key], value) for key, value in weights(tmp_path / 'two', 8).items())
    survived(f'{name}: killed, then preempted', 2)


@pytest.mark.parametrize(('first', 'then'), [('', FSDP), (FSDP, '')], ids=['DDP, FSDP', 'FSDP, DDP'])
def test_a_run_may_be_sharded_from_a_checkpoint_on(first, then, tmp_path, survived):
    """Oracle: the run that goes on as it began; up to rounding, as gradients are summed in another order."""
    (tmp_path / 'base16.py').write_text(BASE.format(root=ROOT, batch=16))
    configs = []
    for number, change in enumerate((first, then)):
        configs.append(tmp_path / f'config{number}.py')
        configs[-1].write_text(f'_base_ = "base16.py"\n{change}')
    assert train_two(configs[0], tmp_path / 'whole') == [0, 0], output(tmp_path / 'whole')
    assert train_two(configs[0], tmp_path / 'broken', before=terminate_in(4)) == [143, 143]
    assert train_two(configs[1], tmp_path / 'broken', '--resume') == [0, 0], output(tmp_path / 'broken')
    expected, found = weights(tmp_path / 'whole', 6), weights(tmp_path / 'broken', 6)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-5, msg=lambda m, key=key: f'{key}: {m}')
    survived('sharded from a checkpoint on, or no longer')
