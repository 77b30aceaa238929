"""Training loops that go on exactly where a checkpoint was written, also in the middle of an epoch.

Random numbers are a function of the place in the run (seed, rank, step), not of what was drawn before. So there is no
state of generators and of data-loader workers to save, and a resumed run draws what the uninterrupted one would have
drawn, whatever the number of workers and however far they had read ahead.
"""

import logging
import random
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from repl_mm.registry import LOOPS

_MODEL, _DATA = 0, 1  # what draws


def seed_generators(*key: int) -> None:
    """Seed Python's, NumPy's and torch's generators with a key of non-negative integers; other keys, other numbers."""
    words = np.random.SeedSequence(key).generate_state(6)
    random.seed(int(words[0]))
    np.random.seed(words[1:5])
    # torch.manual_seed also asks after devices that are not in use, which takes longer than all the rest.
    torch.default_generator.manual_seed(int(words[5]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(words[5]))


class Batch(NamedTuple):
    """What a data loader's workers are asked for.

    Attributes:
        place: Number of the batch, from the beginning of training.
        indices: Its samples in the data set.
    """

    place: int
    indices: Sequence[int]


class PlacedBatches(Sampler[Batch]):
    """A batch sampler that numbers its batches and can leave out the first ones without loading them.

    Args:
        batches: The batch sampler of a data loader.

    Attributes:
        place: Number of the first batch of the next pass.
        skip: How many batches the next pass leaves out before it; afterwards, how many it had too few.
    """

    def __init__(self, batches: Sampler[Sequence[int]]) -> None:
        self.batches = batches
        # What mmengine's hooks and schedulers look for.
        self.sampler = batches.sampler
        self.batch_size = getattr(batches, 'batch_size', None)
        self.place = self.skip = 0

    def __iter__(self) -> Iterator[Batch]:
        # A hook may read the loader for itself: its pass must not move that of training.
        place, skip, self.skip = self.place, self.skip, 0
        for indices in self.batches:
            if skip > 0:
                skip -= 1
                continue
            yield Batch(place, indices)
            place += 1
        self.skip = skip

    def __len__(self) -> int:
        return len(self.batches)


class SeededFetch:
    """Loads a batch with generators that are seeded for its place; what torch calls as ``dataset.__getitems__``."""

    def __init__(self, dataset: Dataset, *, seed: int) -> None:
        self.dataset = dataset
        self.key = seed, get_rank()  # workers have no rank

    def __call__(self, batch: Batch) -> list[Any]:
        seed_generators(*self.key, batch.place, _DATA)
        if hasattr(type(self.dataset), '__getitems__'):
            return type(self.dataset).__getitems__(self.dataset, batch.indices)
        return [self.dataset[index] for index in batch.indices]


def place_batches(loader: DataLoader, *, seed: int) -> PlacedBatches | None:
    """Let a data loader number its batches and seed their loading, in place.

    Returns:
        Its new batch sampler; None for a stream of samples, which has no places.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    placed = PlacedBatches(loader.batch_sampler)
    # torch lets nobody exchange it, since a running iterator would not notice. None runs yet.
    object.__setattr__(loader, 'batch_sampler', placed)
    loader.dataset.__getitems__ = SeededFetch(loader.dataset, seed=seed)
    return placed


class ExactResumeMixin:
    """What the two loops below have in common.

    Besides mmengine's stages they call ``between_steps`` of hooks that have it: after each step and each validation,
    when all other hooks are through and the counts are those that the next step begins with.

    Attributes:
        first_iter: The step at which the current epoch began; None in a run that counts no epochs.
        done: Batches of the current epoch that were trained on before the run was resumed; None to tell it from the
            counts of steps and epochs.
    """

    # Of the host's loop, which goes behind it among the bases.
    runner: Runner
    dataloader: DataLoader
    epoch: int
    _iter: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first_iter: int | None = None
        self.done: int | None = None
        self._batches = place_batches(self.dataloader, seed=self.runner.seed)

    def run_iter(self, *args: Any) -> None:
        """One step, with generators that are seeded for it."""
        seed_generators(self.runner.seed, get_rank(), self._iter, _MODEL)
        super().run_iter(*args)  # type: ignore[misc]
        self.runner.call_hook('between_steps')

    def _go_to(self, *, skip: int) -> None:
        """Let the data loader begin with the batch of the current step, and leave out ``skip`` batches before it."""
        if self._batches is not None:
            self._batches.place, self._batches.skip = self._iter, skip
        elif skip:
            print_log('A stream of samples starts anew: it has no places to go on from', 'current', logging.WARNING)

    def _validate(self, *, due: bool) -> None:
        """Validate if it is due and was not done when the checkpoint was written: schedulers may wait for a score."""
        hub = self.runner.message_hub
        if self.runner.val_loop is not None and due and hub.get_info('last_validation') != self._iter:
            hub.update_info('last_validation', self._iter)  # checkpoints of best scores are written within
            self.runner.val_loop.run()
            self.runner.call_hook('between_steps')


@LOOPS.register_module(name='EpochBasedTrainLoop')
class ExactEpochBasedTrainLoop(ExactResumeMixin, EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``, exactly resumable."""

    def run(self) -> torch.nn.Module:
        """Train, and validate where the config says so."""
        if self.done is None:  # a new run, or one from a checkpoint that does not say where in its epoch it is
            done = self._iter - self._epoch * len(self.dataloader)
            self.done = done if 0 <= done <= len(self.dataloader) else 0
        self.runner.call_hook('before_train')
        self._validate(due=self._validation_is_due() and self.done == 0)
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate(due=self._validation_is_due())
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train on what is left of an epoch."""
        self.first_iter = self._iter - self.done
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        self._go_to(skip=self.done)
        for index, batch in enumerate(self.dataloader, start=self.done):
            self.run_iter(index, batch)
        self.done = 0
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self.first_iter = self._iter

    def _validation_is_due(self) -> bool:
        self._decide_current_val_interval()
        at_interval = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        return self._epoch > 0 and self.val_begin <= self._epoch and at_interval


@LOOPS.register_module(name='IterBasedTrainLoop')
class ExactIterBasedTrainLoop(ExactResumeMixin, IterBasedTrainLoop):
    """mmengine's ``IterBasedTrainLoop``, exactly resumable."""

    def run(self) -> torch.nn.Module:
        """Train, and validate where the config says so."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self._validate(due=self._validation_is_due())
        # An open stream would leave its workers to the garbage collector, which waits 5 seconds for each.
        with closing(self._stream()) as self.dataloader_iterator:
            while self._iter < self._max_iters and not self.stop_training:
                self.runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
                self._validate(due=self._validation_is_due())
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _stream(self) -> Generator[Any]:
        """The batches of one pass over the data after the other; the pass of an ``InfiniteSampler`` never ends."""
        loader = self.dataloader
        sampler = self._batches.sampler if self._batches is not None else loader.sampler
        skip = 0 if getattr(self, 'fast_forward_on_resume', False) else self._iter
        for epoch in count():
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(epoch)
            self._go_to(skip=skip)
            number, before = self._iter, skip
            yield from loader
            skip = self._batches.skip if self._batches is not None else 0
            if (self._iter, skip) == (number, before):
                raise ValueError('train_dataloader gives no batch any more: its sampler can be read only once')

    def _validation_is_due(self) -> bool:
        self._decide_current_val_interval()
        at_interval = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        return self._iter > 0 and self.val_begin <= self._iter and at_interval
