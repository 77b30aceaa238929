"""Training where there is no GPU: several processes, synchronised batch norm, mixed precision.

mmengine's launchers and its ``AmpOptimWrapper``, and torch's ``SyncBatchNorm``, insist on a GPU. Each of the three
seams below can go when its host accepts a CPU.
"""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import MODEL_WRAPPERS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class GlooRunner(Runner):
    """mmengine's runner for several processes on CPUs, started by ``torchrun``."""

    def setup_env(self, env_cfg: dict) -> None:
        """Start the process group before mmengine asks for a GPU to do so."""
        dist.init_process_group('gloo')
        atexit.register(leave_group)
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Synchronise the batch norms that ask for it, and wrap the model for a CPU."""
        self.logger.info(f'No GPU found: {self.world_size} processes train on the CPU and exchange gradients by gloo.')
        synchronise_batch_norms(model, every=self.cfg.get('sync_bn') is not None)
        wrapper = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )
        return MODEL_WRAPPERS.build(wrapper | dict(model_wrapper_cfg or {}), default_args=dict(module=model))


def leave_group() -> None:
    """A process that ends while gloo's threads still hold tensors of Python's is aborted by them."""
    dist.destroy_process_group()
    time.sleep(0.5)


def synchronise_batch_norms(model: nn.Module, *, every: bool) -> None:
    """Let torch's ``SyncBatchNorm`` in the model, or every batch norm, run on CPUs; in place."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm) or (every and isinstance(module, _BatchNorm)):
            # torch's own conversion builds new modules, which loses hooks and who shares whose norm.
            module.__class__ = GlooBatchNorm


class GlooBatchNorm(_BatchNorm):
    """Batch norm over the joint batch of all processes; what ``nn.SyncBatchNorm`` is on GPUs.

    Takes (N, C, ...), where N may differ between the processes. Statistics are at least float32.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f'expected (N, C, ...), got {input.dim()} dimensions')

    def forward(self, input: Tensor) -> Tensor:
        return self._normalise_jointly(input) if self.training else super().forward(input)

    # The compiler of torch 2.11 loses the gradients of the reductions, which write in place (pytorch issue 180642).
    @torch.compiler.disable
    def _normalise_jointly(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = (0, *range(2, x.dim()))
        shape = (1, -1) + (1,) * (x.dim() - 2)
        count = x.new_tensor(x[:, 0].numel())
        dist.all_reduce(count)
        # Both reductions are differentiable. The mean comes first: E[x^2] - E[x]^2 would cancel.
        mean = all_reduce(x.sum(axes)) / count
        centred = x - mean.view(shape)
        var = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * count / (count - 1))
        out = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased_var.to(self.running_var.dtype), momentum)


class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on a CPU: bfloat16 where autocast chooses it, which needs no loss scale.

    Args:
        **kwargs: Passed on to ``OptimWrapper``; the options of ``AmpOptimWrapper`` for GPUs are dropped.
    """

    def __init__(self, *, loss_scale: Any = None, dtype: Any = None, use_fsdp: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward pass."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def use_cpu_amp() -> None:
    """Put :class:`CpuAmpOptimWrapper` in the place of ``AmpOptimWrapper`` where there is no accelerator."""
    if get_device() == 'cpu':
        # Under mmengine's name, so that a config says the same with and without a GPU.
        OPTIM_WRAPPERS.register_module(name='AmpOptimWrapper', module=CpuAmpOptimWrapper, force=True)
