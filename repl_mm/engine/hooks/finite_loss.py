"""What happens when a loss is not a number."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from repl_mm.registry import HOOKS


def sample_names(batch: Any) -> list[str]:
    """What the samples of a batch are called: the paths of their images, else their numbers in the data set."""
    samples: Iterable[Any] = batch.get('data_samples', ()) if isinstance(batch, Mapping) else ()
    names = []
    for sample in samples:
        get = getattr(sample, 'get', lambda key: None)  # a batch may hold anything
        known = [get(key) for key in ('img_path', 'img_id', 'sample_idx') if get(key) is not None]
        names.append(str(known[0]) if known else '?')
    return names


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a run whose loss is NaN or infinite, before a checkpoint is written, or leaves that step out.

    All ranks decide together, so that none is left waiting for another. The message names step, rank, terms of the loss
    and samples.

    Args:
        action: ``'stop'``, or ``'skip'``: no update of weights and of running statistics in such a step. How many there
            were is logged, goes into checkpoints and to the visualizer. It costs some time on a GPU, as each backward
            pass waits for the loss.

    Raises:
        ValueError: Another action.
        FloatingPointError: When training, with ``'stop'``; or with ``'skip'`` after ``MOST_IN_A_ROW`` such steps in a
            row, since the weights are diverged then.
    """

    MOST_IN_A_ROW = 10

    priority = 'VERY_HIGH'  # ends the run before a hook saves or logs

    def __init__(self, *, action: Literal['stop', 'skip'] = 'stop') -> None:
        if action not in ('stop', 'skip'):
            raise ValueError(f"FiniteLossHook takes action='stop' or 'skip', got {action!r}")
        self.action = action
        self._is_finite = True
        self._in_a_row = 0
        self._statistics: list[tuple[Tensor, Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Stand in front of the optimizer.

        Raises:
            ValueError: To skip steps of several optimizers: their models have training steps of their own.
        """
        wrapper = runner.optim_wrapper
        if self.action == 'skip':
            if not isinstance(wrapper, OptimWrapper):
                raise ValueError("FiniteLossHook cannot skip steps of several optimizers: take action='stop'")
            wrapper.update_params = partial(self._update_params, wrapper)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the running statistics, small next to the weights: the forward pass changes them."""
        if self.action == 'skip':
            self._statistics = [(buffer, buffer.clone()) for buffer in runner.model.buffers()]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Report a loss that was not finite."""
        losses = {name: torch.as_tensor(value) for name, value in (outputs or {}).items() if 'loss' in name}
        if self.action == 'stop' and losses:
            self._agree(losses['loss'] if 'loss' in losses else sum(losses.values()))
        if self._is_finite:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        message = self._describe(runner, data_batch, losses)
        if self.action == 'stop':
            raise FloatingPointError(f'{message}. No checkpoint was written since then')
        skipped = runner.message_hub.get_info('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', skipped)
        runner.visualizer.add_scalar('skipped_steps', skipped, step=runner.iter + 1)
        if self._in_a_row == self.MOST_IN_A_ROW:
            raise FloatingPointError(f'{message}. It is the {self._in_a_row}th step in a row, the run has diverged')
        runner.logger.warning(f'{message}. The step is left out, of {skipped} in all')

    def after_train(self, runner: Runner) -> None:
        """Say how many steps were left out."""
        vars(runner.optim_wrapper).pop('update_params', None)
        if skipped := runner.message_hub.get_info('skipped_steps', 0):
            runner.logger.warning(f'{skipped} steps were left out, since their loss was not finite')

    def _agree(self, loss: Tensor) -> None:
        """Note whether the losses of all ranks are finite."""
        finite = torch.isfinite(loss.detach()).all().to(torch.uint8)
        all_reduce(finite, op='min')
        self._is_finite = bool(finite)

    def _update_params(self, wrapper: OptimWrapper, loss: Tensor, **kwargs: Any) -> None:
        """Stands in for the wrapper's own."""
        self._agree(loss)
        if self._is_finite:
            type(wrapper).update_params(wrapper, loss, **kwargs)
            return
        for buffer, before in self._statistics:
            buffer.copy_(before)
        # A part of an accumulated batch: the step is that of the other parts.
        wrapper._inner_count += 1
        if wrapper.should_update() and wrapper._accumulative_counts > 1:
            wrapper.step()
            wrapper.zero_grad()

    def _describe(self, runner: Runner, batch: Any, losses: Mapping[str, Tensor]) -> str:
        bad = {name: float(value.sum()) for name, value in losses.items() if not torch.isfinite(value).all()}
        if len(bad) > 1:
            bad.pop('loss', None)  # the sum of the others
        reports = [(get_rank(), bad, sample_names(batch))]
        if get_world_size() > 1:
            reports = all_gather_object(reports[0])
        parts = [
            f'{", ".join(f"{name} = {value}" for name, value in bad.items())} on rank {rank} for the samples '
            f'{", ".join(samples)}'
            for rank, bad, samples in reports
            if bad
        ]
        return f'the loss is not finite at step {runner.iter + 1}: {"; ".join(parts)}'
