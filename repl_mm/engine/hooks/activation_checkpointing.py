"""Activation checkpointing that leaves the statistics of batch norms as they would be without it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial, wraps
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.checkpoint import checkpoint

from repl_mm.layers import AdaptiveBlock, ComputingLayer
from repl_mm.registry import HOOKS


def checkpoint_activations(backbone: nn.Module) -> list[nn.Module]:
    """Let every retained block of a backbone keep its inputs alone, and run again in the backward pass.

    Args:
        backbone: One of the registered backbones.

    Returns:
        These blocks.
    """
    standing = [block for blocks in backbone.repl_stages().values() for block in blocks]
    blocks = [block.block if isinstance(block, AdaptiveBlock) else block for block in standing]
    blocks = [block for block in blocks if not isinstance(block, ComputingLayer)]
    for block in blocks:
        block.forward = _checkpointed(block)
    return blocks


def _checkpointed(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward

    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # a graph writes statistics once, and takes no contexts
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=partial(_contexts, block), **kwargs)

    return run


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the forward pass runs in, and its repetition."""
    return nullcontext(), _keep_statistics(block)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Normalise by the batch as before, without counting it again."""
    norms = [module for module in block.modules() if getattr(module, 'num_batches_tracked', None) is not None]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None  # with 0, the running statistics stay what they are
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


@HOOKS.register_module()
class ActivationCheckpointingHook(Hook):
    """Checkpoints every retained block of the backbone while a run trains (Table IX of the 2026 paper).

    Unlike with the hosts' ``with_cp`` and mmengine's ``activation_checkpointing``, batch norms see each batch once. So
    a run ends with the weights and statistics that it would have without the hook.

    Raises:
        ValueError: A backbone that is none of this package's, or sharded training.
    """

    def before_train(self, runner: Runner) -> None:
        """Begin."""
        if not isinstance(runner, Runner):
            raise ValueError('ActivationCheckpointingHook does not go with sharded training: leave one of the two out')
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'repl_stages'):
            raise ValueError(
                f'ActivationCheckpointingHook needs a backbone of repl_mm, got {type(backbone).__name__}: give '
                "'repl_mm.ReplResNet' or another of its backbones"
            )
        self._blocks = checkpoint_activations(backbone)

    def after_train(self, runner: Runner) -> None:
        """End."""
        for block in self._blocks:
            del block.forward  # the class's own again
