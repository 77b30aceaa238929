"""What the analyses of representations write: each takes runs and gives files by name."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.progress import track
from torch import Tensor

from repl_mm.analysis import figures
from repl_mm.analysis.features import blocks_of, mean_over_positions, run_blocks
from repl_mm.analysis.maps import feature_maps, grad_cam, pick_classes, spread
from repl_mm.analysis.probes import embed, probe_blocks
from repl_mm.analysis.samples import find_samples
from repl_mm.analysis.similarity import cka
from repl_mm.analysis.tables import Table, render
from repl_mm.cli._trained import Trained

Files = dict[str, bytes]


def csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A CSV file of some cells."""
    table = Table(head, 'l' * len(head), [[str(cell) for cell in row] for row in rows])
    return render([table], form='.csv').encode()


def _classes(run: Trained) -> Sequence[str]:
    loader = run.batches('val', 1).loader
    return loader.dataset.metainfo.get('classes') or [str(label) for label in range(1000)]


def analyse_cka(runs: Sequence[Trained], args: Namespace) -> Files:
    """CKA of all pairs of blocks, within each run and of the first against each other one."""
    batches = runs[0].batches('val', args.batches)

    def features(run: Trained) -> Iterator[dict[str, Tensor]]:
        return run_blocks(run.model, batches, blocks_of(run.model), lambda *_: mean_over_positions)

    sizes = {run.name: {name: value.size(1) for name, value in next(features(run)).items()} for run in runs}
    pairs = [(run, run) for run in runs] + [(runs[0], run) for run in runs[1:]]
    matrices, rows = [], []
    for one, other in track(pairs, 'CKA: ', transient=True):

        def pairs_of_features(one: Trained = one, other: Trained = other) -> Iterator[tuple[Any, Any]]:
            if one is other:
                return ((found, found) for found in features(one))
            return zip(features(one), features(other), strict=True)

        values = cka(pairs_of_features, sizes[one.name], sizes[other.name])
        left, right = list(sizes[one.name]), list(sizes[other.name])
        matrices.append((one.name, other.name, left, right, values))
        rows += [
            [one.name, a, other.name, b, f'{values[i, j]:.6f}'] for i, a in enumerate(left) for j, b in enumerate(right)
        ]
    picture = figures.cka_figure(matrices, {run.name: run.sites() for run in runs})
    return {'cka.png': picture, 'cka.csv': csv(['run', 'block', 'of run', 'of block', 'cka'], rows)}


def analyse_tsne(runs: Sequence[Trained], args: Namespace) -> Files:
    """t-SNE of the features in front of the classifier."""
    classes = _classes(runs[0])
    places = {
        run.name: embed(run.model, run.batches('val', args.batches)) for run in track(runs, 't-SNE: ', transient=True)
    }
    rows = [
        [name, classes[label], f'{x:.4f}', f'{y:.4f}']
        for name, (points, labels) in places.items()
        for (x, y), label in zip(points, labels, strict=True)
    ]
    return {'tsne.png': figures.tsne_figure(places, classes), 'tsne.csv': csv(['run', 'class', 'x', 'y'], rows)}


def analyse_probes(runs: Sequence[Trained], args: Namespace) -> Files:
    """Linear probes after each block."""
    found = {
        run.name: probe_blocks(run.model, run.batches('train', args.batches), run.batches('val', args.batches))
        for run in track(runs, 'Probes: ', transient=True)
    }
    sites = {run.name: run.sites() for run in runs}
    rows = [
        [name, block, depth, block in sites[name], f'{accuracy:.4f}']
        for name, blocks in found.items()
        for depth, (block, accuracy) in enumerate(blocks.items(), 1)
    ]
    head = ['run', 'block', 'depth', 'replaced', 'accuracy (%)']
    return {'probes.png': figures.probe_figure(found, sites), 'probes.csv': csv(head, rows)}


def _images(run: Trained, number: int) -> tuple[list[Tensor], list[int]]:
    """The first images of the validation as the run's model gets them, (1, 3, H, W) each, and a class for each."""
    images, classes = [], []
    for batch in run.batches('val', number):
        data = run.model.data_preprocessor(batch, False)
        rank = 1 if hasattr(run.model, 'decode_head') else 0
        count = len(data['inputs'])
        classes += pick_classes(find_samples(data['data_samples'], data['inputs']), count, rank=rank)
        images += list(data['inputs'].split(1))
        if len(images) >= number:
            break
    return images[:number], classes[:number]


def _pictures(images: Sequence[Tensor]) -> list[np.ndarray]:
    """Images as (H, W, 3) from 0 to 1."""
    pictures = []
    for image in images:
        low, high = image.amin(), image.amax()
        pictures.append(((image[0] - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0).numpy())
    return pictures


def analyse_cam(runs: Sequence[Trained], args: Namespace) -> Files:
    """Grad-CAM of some images by each run."""
    images, classes = _images(runs[0], args.number)
    names = _classes(runs[0])
    maps: list[list[np.ndarray]] = [[] for _ in images]
    records = []
    for run in track(runs, 'Grad-CAM: ', transient=True):
        for at, (image, label) in enumerate(zip(_images(run, args.number)[0], classes, strict=True)):
            (found,) = grad_cam(run.model, image, [label])
            maps[at].append(found)
            area = float(spread(found[None])[0])
            records.append(dict(run=run.name, image=at, of_class=str(names[label]), spread=area))
    picture = figures.map_figure(_pictures(images), [run.name for run in runs], maps, overlay=True)
    return {'cam.png': picture, 'cam.json': _json(records)}


def analyse_features(runs: Sequence[Trained], args: Namespace) -> Files:
    """Feature maps of some images at several depths; under one another what the runs make of an image."""
    images = {run.name: _images(run, args.number)[0] for run in runs}
    pictures, maps, labels, records = [], [], [], []
    titles: list[str] = []
    for at in track(range(len(images[runs[0].name])), 'Feature maps: ', transient=True):
        for run in runs:
            found = feature_maps(run.model, images[run.name][at])
            pictures += _pictures([images[run.name][at]])
            maps.append([value[0] for value in found.values()])
            labels.append(run.name)
            titles = titles or list(found)
            records += [
                dict(run=run.name, image=at, block=name, spread=float(spread(value)[0]))
                for name, value in found.items()
            ]
    picture = figures.map_figure(pictures, titles, maps, overlay=False, labels=labels)
    return {'features.png': picture, 'features.json': _json(records)}


def _json(records: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(records, indent=2) + '\n').encode()
