"""Saved predictions, with the config and the data that they belong to."""

from argparse import Namespace
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from repl_mm.cli.config import SCOPES, load_scoped_config
from repl_mm.engine.errors import explain
from repl_mm.engine.predictions import read_predictions


def load_saved(args: Namespace) -> tuple[Config, Dataset, list[dict[str, Any]]]:
    """The config, its test set and the predictions that a tool's arguments name.

    Raises:
        ValueError: One of them cannot be read, or they are not of as many samples.
    """
    config = load_scoped_config(args, sections=('test_dataloader', 'test_evaluator'), scopes=SCOPES)
    predictions = read_predictions(args.predictions)
    with explain('cannot load the test data, check test_dataloader in the config'):
        dataset = DATASETS.build(config.test_dataloader.dataset)
    if len(dataset) != len(predictions):
        raise ValueError(
            f'{args.predictions} holds {len(predictions)} predictions, and the test data of {args.config} have '
            f'{len(dataset)} samples: give the config that they were made with'
        )
    return config, dataset, predictions
