"""Fit a network with computing layers to a trained one, without training: a checkpoint to test, or to train on from."""

from __future__ import annotations

import copy
import io
import json
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_mm.analysis.tables import Table
from repl_mm.cli.common import add_cfg_options, add_trust, exit_on_user_error
from repl_mm.engine.errors import explain, printable

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.model import BaseModel
    from mmengine.runner import Runner


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config with sites')
    parser.add_argument('checkpoint', help='checkpoint of the same network, trained without sites')
    parser.add_argument(
        'out', type=Path, help='the checkpoint to write, .pth; a table, a .json and a folder for logs go beside it'
    )
    parser.add_argument(
        '--batches', type=int, default=20, help='batches of the training data to fit to (default: %(default)s)'
    )
    add_cfg_options(parser)
    add_trust(parser)
    return parser


def load_batches(config: Config, *, number: int, loop: str = 'train') -> list[Any]:
    """The first batches of a loop's data, as its pipeline gives them under a fixed seed.

    Raises:
        ValueError: The data cannot be loaded, or give no batch.
    """
    from mmengine.runner import Runner, set_random_seed

    loader = copy.deepcopy(config[f'{loop}_dataloader'])
    loader.update(num_workers=0, persistent_workers=False)
    set_random_seed(0)
    with explain(f'cannot load the {loop} data, check {loop}_dataloader in the config'):
        batches = list(islice(Runner.build_dataloader(loader, seed=0), number))
    if not batches:
        raise ValueError(f'{loop}_dataloader gives no batch: check its paths and its batch_size')
    return batches


def forward(model: BaseModel, batch: Any) -> Any:
    """A batch of a loader through a model up to its raw outputs."""
    return model(model.data_preprocessor(copy.copy(batch), False)['inputs'], mode='tensor')


def score(runner: Runner, model: BaseModel) -> dict[str, float]:
    """The test's metrics of a model."""
    runner.model = model
    # COCO's -1 says that there is no object of a size.
    return {key: float(value) for key, value in runner.test().items() if value != -1}


def fit(network: BaseModel, reference: BaseModel, batches: Sequence[Any], runner: Runner) -> dict[str, Any]:
    """Take the steps one by one, and score the network after each."""
    from repl_mm.fitting import WarmStart, adopt_weights, check_pair, estimate_norms, fit_features, fit_weights

    sites, report = check_pair(network, reference), WarmStart()
    scores = {'the trained network': score(runner, reference)}

    def settle(model: BaseModel) -> dict[str, float]:
        estimate_norms(model, batches, forward, report)
        return score(runner, model)

    adopt_weights(network, reference)
    scores['with sites, as loaded'] = score(runner, network)
    scores['as loaded, statistics of norms'] = settle(copy.deepcopy(network))
    fit_weights(sites, reference, report)
    scores['fitted in weight space, statistics of norms'] = settle(copy.deepcopy(network))
    fit_features(network, sites, reference, batches, forward, report)
    scores['fitted in activation space, statistics of norms'] = settle(network)
    return dict(
        scores=scores,
        sites={
            name: dict(distance=report.distances.get(name), unexplained=report.unexplained.get(name)) for name in sites
        },
        norms=report.norms,
        norms_kept=len(report.kept),
    )


def tables(found: dict[str, Any]) -> list[Table]:
    """The scores of the steps, and what the fit leaves at each site."""
    from repl_mm.analysis.compare import METRICS

    scores: dict[str, dict[str, float]] = found['scores']
    keys = [key for key in METRICS if any(key in row for row in scores.values())] or list(next(iter(scores.values())))
    rows = [
        [step, *(f'{row[key]:.{3 if "coco" in key else 2}f}' if key in row else '' for key in keys)]
        for step, row in scores.items()
    ]
    left = [
        [name, *('' if value is None else f'{value:.3f}' for value in (site['distance'], site['unexplained']))]
        for name, site in found['sites'].items()
    ]
    return [
        Table(['step', *(METRICS.get(key, key) for key in keys)], 'l' + 'r' * len(keys), rows),
        Table(['site', 'left in weight space', 'left in activation space'], 'lrr', left),
    ]


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.out.suffix != '.pth':
        raise ValueError(f'the checkpoint to write ends in .pth, got {args.out}')
    if args.batches < 1:
        raise ValueError(f'--batches is at least 1, got {args.batches}')

    import torch

    from repl_mm.backbones.configs import e2e_twin, require_sites
    from repl_mm.cli._deploy import plain_meta
    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_model, build_runner
    from repl_mm.engine.files import write_atomic
    from repl_mm.engine.weights import load_strict, read_checkpoint

    args.work_dir = str(args.out.with_suffix(''))
    config = load_config(args, sections=('model', 'train_dataloader', 'test_dataloader', 'test_cfg', 'test_evaluator'))
    require_sites(config)
    config.update(load_from=None, resume=False, log_level='WARNING')
    checkpoint = read_checkpoint(args.checkpoint)
    runner = build_runner(config, loops=['test'])
    network = runner.model
    reference = build_model(e2e_twin(config)).to(next(network.parameters()).device)
    load_strict(reference, checkpoint, source=args.checkpoint)
    found = fit(network, reference, load_batches(config, number=args.batches), runner)
    for table in (shown := tables(found)):
        table.print()
    if found['norms_kept']:
        print(
            f'{found["norms_kept"]} batch norms keep the statistics of {printable(args.checkpoint)}: the config holds '
            'them fixed (norm_eval, frozen_stages), and they cannot follow what the sites change'
        )
    buffer = io.BytesIO()
    torch.save({'state_dict': network.state_dict(), 'meta': plain_meta(checkpoint)}, buffer)
    write_atomic(args.out, buffer.getvalue())
    write_atomic(args.out.with_suffix('.md'), '\n'.join(table.markdown() for table in shown).encode())
    write_atomic(args.out.with_suffix('.json'), (json.dumps(found, indent=2) + '\n').encode())
    print(printable(f'Wrote {args.out}. To train on from it: --cfg-options {shlex.quote(f"load_from={args.out}")}'))
