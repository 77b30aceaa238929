"""Predictions of a test run, in a file that is there whole or not at all."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import DumpResults
from mmengine.fileio import dump

from repl_mm.engine.errors import explain
from repl_mm.engine.files import require_regular
from repl_mm.engine.lookup import DataUnpickler


class DumpPredictions(DumpResults):
    """Predictions without mmseg's logits, which take over 100 MB for one CityScapes image."""

    def process(self, data_batch: object, data_samples: list[dict]) -> None:
        super().process(data_batch, [{k: v for k, v in s.items() if k != 'seg_logits'} for s in data_samples])

    def compute_metrics(self, results: list[dict]) -> dict:
        part = f'{self.out_file_path}.part'
        dump(results, part, file_format='pkl')
        os.replace(part, self.out_file_path)
        return {}


class _Unpickler(DataUnpickler):
    """Reads tensors too."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ('torch.storage', '_load_from_bytes'):  # which would unpickle anything
            return lambda content: torch.load(io.BytesIO(content), weights_only=True)
        if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
            return torch._utils._rebuild_tensor_v2
        return super().find_class(module, name)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """What :class:`DumpPredictions` has written, without running any of it.

    Raises:
        ValueError: There is no such file, or it is another, or holds more than tensors and plain data.
    """
    require_regular(path)
    hint = 'give the .pkl file that test.py --out has written'
    with explain(f'cannot read the predictions {path}, {hint}', errors=Exception), path.open('rb') as file:
        predictions = _Unpickler(file).load()
    if not isinstance(predictions, list) or not predictions or not all(isinstance(p, dict) for p in predictions):
        raise ValueError(f'{path} holds no predictions: {hint}')
    return predictions
