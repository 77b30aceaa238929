"""Training whose weights, gradients and optimizer state are sharded over the processes.

A computing layer reads its neighbours' weights. Were these in other shards, they would be empty while it runs; so a
computing layer, its two neighbours and whatever else reads those are sharded as one unit: gathered together before
the first of them runs, let go after the last, in both passes.
"""

import atexit
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh

from repl_mm.compat import torch_too_old
from repl_mm.engine.cpu import leave_group, synchronise_batch_norms
from repl_mm.layers import AdaptiveBlock, ComputingLayer
from repl_mm.registry import STRATEGIES

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:
    raise torch_too_old('repl_mm.FSDPStrategy', needs='2.6') from None

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard_groups(model: nn.Module) -> list[list[nn.Module]]:
    """The blocks of a backbone that belong together: each for itself, but for computing layers and what they read.

    Args:
        model: A network with a ``backbone`` of :mod:`repl_mm.backbones`, or such a backbone.

    Raises:
        ValueError: Training chooses the sites.
    """
    if any(isinstance(module, AdaptiveBlock) for module in model.modules()):
        raise ValueError(
            "policy 'adaptive' does not go with sharded training, where every block has to run: choose a fixed policy, "
            'or train without FSDPStrategy'
        )
    backbone = getattr(model, 'backbone', model)
    groups: list[list[nn.Module]] = []
    for blocks in backbone.repl_stages().values():
        read = False  # by the block before
        for block in blocks:
            is_site = isinstance(block, ComputingLayer)
            if is_site or read:
                groups[-1].append(block)
            else:
                groups.append([block])
            read = is_site
    return groups


@STRATEGIES.register_module()
class FSDPStrategy(DDPStrategy):
    """mmengine's strategy for sharded training, by torch's ``fully_shard``; on GPUs, or on CPUs over gloo.

    Use it with ``runner_type='FlexibleRunner'`` and ``strategy=dict(type='repl_mm.FSDPStrategy')``. Checkpoints are
    those of any other run: whole weights and a whole optimizer state, written by the first process.

    Args:
        **kwargs: Passed on to mmengine's ``DDPStrategy``.
    """

    def _setup_distributed(self, *args: Any, **kwargs: Any) -> None:
        if get_device() != 'cpu':
            super()._setup_distributed(*args, **kwargs)
        elif not dist.is_initialized():
            dist.init_process_group('gloo')
            atexit.register(leave_group)

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if get_device() == 'cpu':
            synchronise_batch_norms(model, every=self.sync_bn is not None)
        else:
            model = self.convert_model(model.to(get_device()))
        mesh = init_device_mesh(get_device().partition(':')[0], (dist.get_world_size(),))
        for group in shard_groups(model):
            fully_shard(group, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    def save_checkpoint(self, filename: str, *, save_optimizer: bool = True, **kwargs: Any) -> None:
        """Gather everything from all processes, and write it from the first one."""
        self._full_model = get_model_state_dict(self.model, options=_FULL)
        optimizer = self.optim_wrapper.optimizer
        self._full_optimizer = get_optimizer_state_dict(self.model, optimizer, options=_FULL) if save_optimizer else {}
        super().save_checkpoint(filename, save_optimizer=save_optimizer, **kwargs)
        del self._full_model, self._full_optimizer

    def model_state_dict(self) -> dict[str, Any]:
        """The whole weights, in the first process while it saves."""
        return self._full_model

    def optim_state_dict(self) -> dict[str, Any]:
        """The whole state of the optimizer by names of parameters, in the first process while it saves."""
        return self._full_optimizer

    def load_model_state_dict(self, state_dict: Mapping[str, Any], *, strict: bool = False, **kwargs: Any) -> None:
        """Take the own shard of whole weights."""
        set_model_state_dict(
            self.model, dict(state_dict), options=StateDictOptions(full_state_dict=True, strict=strict)
        )

    def load_optim_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the own shard of a whole optimizer state, also of one from a run that was not sharded."""
        optimizer = self.optim_wrapper.optimizer
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        ordered = [names[id(parameter)] for group in optimizer.param_groups for parameter in group['params']]

        def name_of(key: int | str) -> str:
            return ordered[key] if isinstance(key, int) else key  # torch's optimizers count their parameters

        by_name = dict(
            state={name_of(key): state for key, state in state_dict['state'].items()},
            param_groups=[
                {**group, 'params': list(map(name_of, group['params']))} for group in state_dict['param_groups']
            ],
        )
        set_optimizer_state_dict(self.model, optimizer, by_name, options=StateDictOptions(full_state_dict=True))
