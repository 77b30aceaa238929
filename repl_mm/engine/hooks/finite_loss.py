"""What happens when a loss, or a gradient, is not a number."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from repl_mm.engine.finite import first_gradient_not_finite
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


class Buffers:
    """Copies of a model's buffers, which its forward pass changes or exchanges; small next to the weights."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def restore(self) -> None:
        """Put them back."""
        for module, name, buffer, copy in self._kept:
            setattr(module, name, buffer.copy_(copy))


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Ends a run whose loss or gradients are NaN or infinite, before the weights are stepped, or leaves that step out.

    All ranks decide together, so that none is left waiting for another. The message names step, rank, samples, and the
    terms of the loss or, where the loss is finite, the first parameter whose gradient is not. What a loss scaler
    (``AmpOptimWrapper``) finds infinite is no fault: it leaves such steps out by itself, and lowers its scale.

    Args:
        action: ``'stop'``, or ``'skip'``: weights, the optimizer's state and all buffers, such as running statistics,
            stay what they were before such a step. Where gradients are accumulated, a step is several batches: of these
            one with such a loss is left out, or all if it is the gradients. How many there were is logged, goes into
            checkpoints and to the visualizer. It costs some time on a GPU, as each backward pass waits for the loss.

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
        self._parameter: str | None = None  # whose gradient kept the optimizer from stepping
        self._in_a_row = 0
        self._parameters: dict[str, nn.Parameter] = {}
        # Of the batches since the last step of the optimizer:
        self._samples: list[list[str]] = []
        self._buffers: list[Buffers] = []  # before each of them

    def before_train(self, runner: Runner) -> None:
        """Stand in front of the optimizer.

        Raises:
            ValueError: To skip steps of several optimizers: their models have training steps of their own.
        """
        self._parameters = dict(runner.model.named_parameters())
        wrapper = runner.optim_wrapper
        if self.action == 'skip':
            if not isinstance(wrapper, OptimWrapper):
                raise ValueError("FiniteLossHook cannot skip steps of several optimizers: take action='stop'")
            wrapper.update_params = partial(self._update_params, wrapper)
        for each in _wrappers(wrapper):
            if not _is_scaled(each):
                each.step = partial(self._step, each.step)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep what the step may have to put back."""
        self._is_finite, self._parameter = True, None
        if self.action == 'stop' or not self._is_accumulating(runner):
            self._samples, self._buffers = [], []
        self._samples.append(sample_names(data_batch))
        if self.action == 'skip':
            self._buffers.append(Buffers(runner.model))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Any] | None = None
    ) -> None:
        """Report a loss or gradients that were not finite."""
        losses = {name: torch.as_tensor(value) for name, value in (outputs or {}).items() if 'loss' in name}
        if self.action == 'stop':
            if self._parameter is None and self._is_accumulating(runner):
                self._parameter = first_gradient_not_finite(self._parameters)  # before a checkpoint holds it
            loss = losses['loss'] if 'loss' in losses else sum(losses.values(), torch.zeros(()))
            self._is_finite = self._agree(loss.detach().isfinite().all() & (self._parameter is None))
        if self._is_finite:
            return
        self._in_a_row += 1
        message = self._describe(runner, losses)
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
        for wrapper in _wrappers(runner.optim_wrapper):
            vars(wrapper).pop('update_params', None)
            vars(wrapper).pop('step', None)
        if skipped := runner.message_hub.get_info('skipped_steps', 0):
            runner.logger.warning(f'{skipped} steps were left out, since their loss or gradients were not finite')

    @staticmethod
    def _is_accumulating(runner: Runner) -> bool:
        """Whether there are gradients that wait for those of further batches."""
        wrappers = _wrappers(runner.optim_wrapper)
        return any(w.inner_count % w._accumulative_counts and not _is_scaled(w) for w in wrappers)

    @staticmethod
    def _agree(finite: Tensor) -> bool:
        """Whether all ranks say so."""
        finite = finite.to(torch.uint8)
        all_reduce(finite, op='min')
        return bool(finite)

    @torch.compiler.disable
    def _step(self, step: Callable, **kwargs: Any) -> None:
        """Stands in for ``step`` of the optimizer's wrapper."""
        self._parameter = first_gradient_not_finite(self._parameters)
        finite = self._parameter is None
        if self.action == 'skip':  # else the ranks agree when the step is over, and none goes on
            finite = self._agree(torch.tensor(finite))
        if finite:
            step(**kwargs)
            self._in_a_row = 0
        elif self.action == 'skip':
            self._is_finite = False
            self._buffers[0].restore()

    def _update_params(self, wrapper: OptimWrapper, loss: Tensor, **kwargs: Any) -> None:
        """Stands in for the wrapper's own."""
        self._is_finite = self._agree(loss.detach().isfinite().all())
        if self._is_finite:
            type(wrapper).update_params(wrapper, loss, **kwargs)
            return
        self._buffers[-1].restore()
        # A part of an accumulated batch: the step is that of the other parts.
        wrapper._inner_count += 1
        if wrapper.should_update() and wrapper._accumulative_counts > 1:
            wrapper.step()
            wrapper.zero_grad()

    def _describe(self, runner: Runner, losses: Mapping[str, Tensor]) -> str:
        bad = {name: float(value.sum()) for name, value in losses.items() if not torch.isfinite(value).all()}
        if len(bad) > 1:
            bad.pop('loss', None)  # the sum of the others
        reports = [(get_rank(), bad, self._parameter, self._samples)]
        if get_world_size() > 1:
            reports = all_gather_object(reports[0])
        parts = [
            f'{", ".join(f"{name} = {value}" for name, value in bad.items())} on rank {rank} for the samples '
            f'{", ".join(samples[-1])}'
            for rank, bad, _, samples in reports
            if bad
        ]
        if parts:
            return f'the loss is not finite at step {runner.iter + 1}: {"; ".join(parts)}'
        name = next((parameter for _, _, parameter, _ in reports if parameter), '?').removeprefix('module.')
        parts = [f'{", ".join(chain(*samples))} on rank {rank}' for rank, _, _, samples in reports]
        return (
            f'the loss is finite and the gradient of {name} is not at step {runner.iter + 1}, '
            f'for the samples {"; ".join(parts)}'
        )


def _wrappers(wrapper: OptimWrapper | OptimWrapperDict) -> list[OptimWrapper]:
    return list(wrapper.optim_wrappers.values()) if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def _is_scaled(wrapper: OptimWrapper) -> bool:
    scaler = getattr(wrapper, 'loss_scaler', None)
    return scaler is not None and scaler.is_enabled()
