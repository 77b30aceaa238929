"""Linear probes and t-SNE: what a linear classifier reads off each block, and how the last features lie."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from repl_mm.analysis.features import Reduce, blocks_of, last_linear, run_blocks
from repl_mm.analysis.samples import find_samples

PERPLEXITY = 30  # of the papers


def collect(
    model: BaseModel, batches: Iterable[Any], modules: Mapping[str, nn.Module], *, inputs: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Features of all labelled samples, (samples, C) by module, and their classes, (samples,).

    Raises:
        ValueError: There is no batch, no labelled sample, or a feature that is not finite.
    """
    labels = []

    def reduce(data_samples: Any, images: torch.Tensor) -> Reduce:
        samples = find_samples(data_samples, images)
        labels.append(samples.labels)
        return lambda out: samples.pool(out, tuple(images.shape[2:]))

    found: dict[str, list[np.ndarray]] = {name: [] for name in modules}
    for features in run_blocks(model, batches, modules, reduce, inputs=inputs):
        for name, value in features.items():
            found[name].append(value.cpu().numpy())
    classes = torch.cat(labels).numpy()
    if not len(classes):
        raise ValueError('the images have no labelled sample: check the annotations of the data set')
    return {name: np.concatenate(values) for name, values in found.items() if values}, classes


def probe(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]
) -> float:  # fmt: skip
    """Accuracy on the second samples, in per cent, of a logistic regression that is fitted to the first.

    Args:
        train: Features (samples, C), which are standardised, and classes (samples,).
        val: The same of other samples.

    Raises:
        ValueError: Fewer than two classes.
    """
    if len(set(train[1])) < 2:
        raise ValueError(f'a probe needs samples of two classes, got those of {sorted(set(map(int, train[1])))}')
    return 100 * float(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(*train).score(*val))


def probe_blocks(model: BaseModel, train: Iterable[Any], val: Iterable[Any]) -> dict[str, float]:
    """Accuracy of a probe after each block of a frozen network (Fig. 5 of the 2024 paper).

    Args:
        model: In eval mode.
        train: Batches to fit to.
        val: Batches to score on.
    """
    blocks = blocks_of(model)
    (features, labels), (others, classes) = (collect(model, batches, blocks) for batches in (train, val))
    return {name: probe((features[name], labels), (others[name], classes)) for name in features}


def embed(model: BaseModel, batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of the features in front of the classifier; of a detector, of its backbone's last block (Fig. 4).

    Returns:
        Places (samples, 2), and classes (samples,).

    Raises:
        ValueError: Fewer samples than the perplexity asks for.
    """
    classifier = last_linear(model)
    modules = {'last': classifier or list(blocks_of(model).values())[-1]}
    features, labels = collect(model, batches, modules, inputs=classifier is not None)
    if len(labels) <= PERPLEXITY:
        raise ValueError(f't-SNE at perplexity {PERPLEXITY} needs more than {PERPLEXITY} samples, got {len(labels)}')
    tsne = TSNE(perplexity=PERPLEXITY, init='pca', random_state=0)
    return tsne.fit_transform(features['last'].astype(np.float64)), labels
