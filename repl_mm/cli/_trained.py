"""A finished run as a model in eval mode, with its data."""

from __future__ import annotations

import copy
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner, find_latest_checkpoint, set_random_seed
from torch.utils.data import DataLoader

from repl_mm.analysis.features import blocks_of
from repl_mm.analysis.runs import find_config
from repl_mm.cli.config import load_scoped_config
from repl_mm.cli.runner import build_model
from repl_mm.engine.errors import explain
from repl_mm.engine.weights import load_strict, read_checkpoint
from repl_mm.layers import ComputingLayer


@dataclass(frozen=True)
class Batches:
    """The first batches of a loader, in the same order at each pass."""

    loader: DataLoader
    number: int

    def __len__(self) -> int:
        return min(self.number, len(self.loader))

    def __iter__(self) -> Iterator[Any]:
        set_random_seed(0)  # of the training data's augmentation
        return islice(iter(self.loader), self.number)


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        name: What it is called in tables.
        config: Of its training.
        model: With its last checkpoint, in eval mode, on the CPU.
    """

    name: str
    config: Config
    model: BaseModel

    def sites(self) -> set[str]:
        """Names of the replaced blocks."""
        return {name for name, block in blocks_of(self.model).items() if isinstance(block, ComputingLayer)}

    def batches(self, split: str, number: int) -> Batches:
        """The first batches of ``'val'`` or ``'train'``, both as the validation's pipeline gives them.

        Raises:
            ValueError: The data cannot be loaded, or give no batch.
        """
        loader = copy.deepcopy(self.config.val_dataloader)
        if split == 'train':
            pipeline = loader.dataset.get('pipeline')
            loader.dataset = copy.deepcopy(self.config.train_dataloader.dataset)
            if pipeline is not None and 'pipeline' in loader.dataset:
                loader.dataset.pipeline = pipeline
        return _load(loader, split, number)

    def training_batches(self, number: int) -> Batches:
        """The first batches as training gets them, shuffled and augmented under a fixed seed."""
        return _load(copy.deepcopy(self.config.train_dataloader), 'train', number)


def _load(loader: Config, split: str, number: int) -> Batches:
    loader.update(num_workers=0, persistent_workers=False)
    with explain(f'cannot load the {split} data, check {split}_dataloader in the config'):
        built = Runner.build_dataloader(loader, seed=0)
    if len(built) == 0:
        raise ValueError(f'{split}_dataloader gives no batch: check its paths and its batch_size')
    return Batches(built, number)


def load_trained(folder: Path, *, name: str) -> Trained:
    """Read the work directory of a finished run.

    Raises:
        ValueError: There is none, or it holds no config or no checkpoint, or one that does not fit.
    """
    if not folder.is_dir():
        raise ValueError(f'there is no run {folder}: give the work directory of a finished run')
    path = find_latest_checkpoint(str(folder))
    if path is None:
        raise ValueError(f'{folder} holds no checkpoint: give the work directory of a finished run')
    if not Path(path).exists():  # the folder has been moved
        path = str(folder / Path(path).name)
    args = Namespace(
        config=str(find_config(folder)), cfg_options=None, launcher='none', local_rank=0, work_dir=str(folder)
    )
    config = load_scoped_config(args, sections=('model', 'train_dataloader', 'val_dataloader'))
    config.model.backbone.pop('init_cfg', None)  # the checkpoint has the weights
    model = build_model(config)
    load_strict(model, read_checkpoint(path), source=path)
    return Trained(name, config, model.eval())
