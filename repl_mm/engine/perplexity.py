"""Perplexity of a language model."""

import math
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric

from repl_mm.registry import METRICS


@METRICS.register_module()
class Perplexity(BaseMetric):
    """The exponential of the mean negative log-likelihood of all words that a model predicts.

    The mean is over words, not over sequences or batches, so neither the batch size nor the number of processes
    matters. Predictions hold a ``log_likelihood`` each, that of every word of a sequence.
    """

    default_prefix = ''  # its name says what it is

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep the sum and the number of a batch's log-likelihoods, sequence by sequence."""
        found = [sample['log_likelihood'].double() for sample in data_samples]
        self.results += [(values.sum().item(), values.numel()) for values in found]

    def compute_metrics(self, results: Sequence[tuple[float, int]]) -> dict[str, float]:
        """The ``perplexity`` of all sequences."""
        sums, numbers = zip(*results, strict=True)
        mean = -math.fsum(sums) / sum(numbers)
        return {'perplexity': math.exp(mean) if mean < 700 else math.inf}  # beyond is no float any more
