"""Each block of a trained network replaced by itself: how it is measured, and the tables of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from repl_mm.analysis.compare import METRICS
from repl_mm.analysis.features import forward
from repl_mm.analysis.recoverability import (
    Block,
    Correlation,
    eligible_blocks,
    fit_block,
    identify,
    lost,
    main_metric,
    papers_form,
)
from repl_mm.analysis.tables import Table
from repl_mm.backbones.configs import with_repl
from repl_mm.cli.runner import build_model
from repl_mm.cli.warm_start import load_batches
from repl_mm.fitting import WarmStart, estimate_norms


def validate(runner: Runner, model: BaseModel) -> dict[str, float]:
    """The scores of a model on the validation data."""
    runner.model = model
    # COCO's -1 says that there is no object of a size.
    return {key: float(value) for key, value in runner.val().items() if value != -1}


def measure(
    config: Config, runner: Runner, reference: BaseModel, *, batches: int
) -> tuple[dict[str, Any], list[Block]]:
    """Replace the blocks one by one, fit the layer in each one's place, and score the network.

    Args:
        config: Replaces nothing.
        runner: With the validation data.
        reference: The trained network.
        batches: How many to fit to, and to look at.

    Returns:
        What holds for all of them, and each.

    Raises:
        ValueError: No block can be replaced, or there is no data or no score.
    """
    sites, form = eligible_blocks(reference.backbone), papers_form(config)
    seen, unseen = (load_batches(config, number=batches, loop=loop) for loop in ('train', 'val'))
    blocks = []
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task('The trained network', total=len(sites) + 1)
        scores = validate(runner, reference)
        if not scores:
            raise ValueError(f'the validation of {config.filename} gives no score: check val_evaluator in the config')
        metric = main_metric(scores)
        settled = copy.deepcopy(reference)
        estimate_norms(settled, seen, forward, WarmStart())
        anew = validate(runner, settled).get(metric, 0.0)
        for name, site in sites.items():
            progress.update(task, advance=1, description=f'Replacing {name}')
            network = build_model(with_repl(config, policy='explicit', sites=[tuple(site)], **form))
            network.to(next(reference.parameters()).device)
            fit = fit_block(network, reference, seen, unseen)
            score = validate(runner, network).get(metric, 0.0)  # COCO gives none to a detector that finds nothing
            blocks.append(Block(name, site, fit, score, lost(metric, trained=scores[metric], replaced=score)))
    found = dict(
        network=identify(reference.backbone), form=dict(form), metric=metric, score=scores[metric], norms_anew=anew,
        samples=len(runner.val_dataloader.dataset), batches=batches,
    )  # fmt: skip
    return found, blocks


def tables(found: Mapping[str, Any], blocks: Sequence[Block], ranks: Sequence[Correlation]) -> list[Table]:
    """The blocks, and what predicts what is lost."""
    metric, places = found['metric'], 4 if 'coco' in found['metric'] else 2
    names = list(dict.fromkeys(name for block in blocks for name in block.fit.distances))
    head = ['block', *(f'distance of {name}' for name in names), 'local error at the start, mean', 'max']
    head += ['after the fit, mean', 'max', METRICS.get(metric, metric), 'lost']
    rows = [
        [
            block.name,
            *(f'{block.fit.distances[name]:.4f}' if name in block.fit.distances else '' for name in names),
            *(f'{value:.3f}' for error in (block.fit.start, block.fit.fitted) for value in (error.mean, error.max)),
            f'{block.score:.{places}f}',
            f'{block.loss:+.{places}f}',
        ]
        for block in blocks
    ]
    ranked = [
        [
            rank.quantity,
            '' if rank.rho is None else f'{rank.rho:+.2f}',
            '' if rank.interval is None else '{:+.2f} to {:+.2f}'.format(*rank.interval),
            rank.verdict,
        ]
        for rank in ranks
    ]
    return [
        Table(head, 'l' + 'r' * (len(head) - 1), rows, title='each block replaced by itself'),
        Table(
            ['quantity', "Spearman's rho", '95 % interval', 'does more of it go with more loss?'], 'lrrl', ranked,
            title='rank correlation with what is lost',
        ),
    ]  # fmt: skip


def conclusion(found: Mapping[str, Any], blocks: Sequence[Block], ranks: Sequence[Correlation]) -> list[str]:
    """What was done, and whether the distance says what a block costs."""
    metric, places = found['metric'], 4 if 'coco' in found['metric'] else 2
    distances = [rank for rank in ranks if rank.quantity.startswith('distance')]
    told = [rank.quantity for rank in distances if rank.verdict == 'yes']
    score, anew = (f'{found[key]:.{places}f}' for key in ('score', 'norms_anew'))
    lines = [
        f'{metric} of the trained network: {score}, with the statistics of its batch norms estimated anew {anew}.',
        f'{found["samples"]} validation samples; fitted to {found["batches"]} batches of the training data.',
    ]
    if distances:
        lines.append(
            f'The weight-space distance predicts what is lost: {" and ".join(told)}.'
            if told
            else f'The weight-space distance does not predict what is lost among these {len(blocks)} blocks.'
        )
    return lines
