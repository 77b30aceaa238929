"""What the analyses of theory write: the E2E run's weights, computing layers fitted to it, by replacement interval."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from rich.progress import track

from repl_mm.analysis.cost import count_cost
from repl_mm.analysis.error_bound import ErrorBound, bound_error
from repl_mm.analysis.figures import curves_figure
from repl_mm.analysis.tables import Table
from repl_mm.analysis.theory import GradientBias, chain_inputs, chains, fit_sites, gradient_bias
from repl_mm.analysis.tradeoff import count_early, count_saving
from repl_mm.backbones.configs import e2e_twin, require_sites, with_repl
from repl_mm.cli._analyses import Files, csv
from repl_mm.cli._trained import Trained
from repl_mm.cli.runner import build_model
from repl_mm.engine.errors import printable

UNMEASURED = 'The rates of convergence (Eq. 65-69) hold by assumption and are not measured.'


@dataclass(frozen=True)
class Interval:
    """A network with sites at one interval, with the E2E run's weights."""

    every: int
    config: Config
    network: BaseModel

    @property
    def sites(self) -> int:
        """How many blocks are replaced."""
        return len(self.network.backbone.selection.sites)


def _pair(runs: Sequence[Trained]) -> tuple[Trained, Trained]:
    if len(runs) != 2:
        raise ValueError(
            f'takes two runs, got {len(runs)}: the E2E run, whose weights are taken, and a run with sites, whose '
            'config says what is put in the place of a block'
        )
    if runs[0].sites():
        raise ValueError(f'{runs[0].name} has computing layers: give the E2E run first')
    require_sites(runs[1].config)
    return runs[0], runs[1]


def _intervals(runs: Sequence[Trained], args: Namespace, *, fit: bool = True) -> Iterator[Interval]:
    """A network for each interval that leaves a site; the others are named."""
    e2e, repl = _pair(runs)
    found = 0
    for every in track(args.intervals, 'Intervals: ', transient=True):
        config = with_repl(repl.config, policy=args.policy, every=every)
        try:
            network = build_model(config).eval()
        except ValueError as error:
            if 'leaves no site' not in str(error):
                raise
            print(printable(f'K = {every} is left out: {args.policy} finds no site for it'))
            continue
        found += 1
        if fit:
            fit_sites(network, e2e.model, e2e.batches('train', args.batches))
        yield Interval(every, config, network)
    if not found:
        raise ValueError('no interval leaves a site: give others, or --policy budget')


def _show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    Table(head, 'r' * len(head), rows, title=title).print()


def _bounds(item: Interval, reference: Trained, args: Namespace) -> tuple[ErrorBound, list[str]]:
    batch = next(iter(reference.batches('val', 1)))
    original, replaced = chains(item.network, reference.model, batch)
    images = [x[: args.images] for x in chain_inputs(reference.model, [batch])]
    return bound_error(original, replaced, images), [*_names(reference)]


def _names(run: Trained) -> list[str]:
    from repl_mm.analysis.features import blocks_of

    return list(blocks_of(run.model))


def analyse_bound(runs: Sequence[Trained], args: Namespace) -> Files:
    """The error of the features behind the last block, beside its bound (Eq. 59-60)."""
    rows, parts = [], []
    for item in _intervals(runs, args):
        found, names = _bounds(item, runs[0], args)
        mean, most = torch.tensor(found.measured).mean(), max(found.measured)
        rows.append(
            [
                item.every,
                item.sites,
                float(torch.tensor(found.scale).mean()),
                float(mean),
                most,
                found.bound,
                found.bound / most,
                found.bound_if_contracting,
                max(s.suffix for s in found.sites.values()),
            ]
        )
        parts += [
            [item.every, names[at], s.error, s.mean_error, s.height, s.suffix, s.term] for at, s in found.sites.items()
        ]
    head = ['K', 'sites', '|F|, mean', 'error, mean', 'error, max', 'bound', 'bound / error', 'Eq. 60', 'largest Pi']
    texts = [[str(row[0]), str(row[1]), *(f'{value:.4g}' for value in row[2:])] for row in rows]
    _show('error behind the last block (Eq. 59)', head, texts)
    print(UNMEASURED)
    curves = {
        'bound (Eq. 59)': [row[5] for row in rows],
        'if no block enlarges (Eq. 60)': [row[7] for row in rows],
        'error, largest': [row[4] for row in rows],
        'error, mean': [row[3] for row in rows],
    }
    picture = curves_figure(
        f'{runs[0].name}: how far replaced blocks move the features',
        ('replacement interval K', [row[0] for row in rows]),
        {'norm, behind the last block': curves},
        log=True,
    )
    columns = ['K', 'block', 'eps', 'eps, mean', 'H', 'Pi', 'term of the bound']
    return {'bound.png': picture, 'bound.csv': csv(head, rows), 'bound_sites.csv': csv(columns, parts)}


def _bias(item: Interval, runs: Sequence[Trained], args: Namespace) -> GradientBias:
    return gradient_bias(item.network, runs[0].model, runs[0].training_batches(args.batches))


def analyse_bias(runs: Sequence[Trained], args: Namespace) -> Files:
    """The bias of the gradients of the retained parameters, beside its bound (Eq. 61-64)."""
    rows = []
    for item in _intervals(runs, args):
        found, (bound, _) = _bias(item, runs, args), _bounds(item, runs[0], args)
        rows.append(
            [
                item.every,
                item.sites,
                found.gradient,
                found.bias,
                found.bias / found.gradient,
                found.cosine,
                found.constant,
                found.constant * bound.bound,
            ]
        )
    head = ['K', 'sites', '|gradient|', 'bias', 'bias / gradient', 'cosine', 'G, measured', 'bound']
    texts = [[str(row[0]), str(row[1]), *(f'{value:.4g}' for value in row[2:])] for row in rows]
    _show('gradient of the retained parameters (Eq. 63)', head, texts)
    print(UNMEASURED)
    picture = curves_figure(
        f'{runs[0].name}: bias of the gradients',
        ('replacement interval K', [row[0] for row in rows]),
        {
            'norm': {
                'bound (Eq. 64)': [row[7] for row in rows],
                'bias': [row[3] for row in rows],
                'gradient': [row[2] for row in rows],
            }
        },
        log=True,
    )
    return {'bias.png': picture, 'bias.csv': csv(head, rows)}


def analyse_tradeoff(runs: Sequence[Trained], args: Namespace) -> Files:
    """Cost by interval, by formula and counted, beside the bias of the gradients."""
    e2e, repl = _pair(runs)
    batch = next(iter(e2e.batches('val', 1)))
    shape = tuple(e2e.model.data_preprocessor(batch, False)['inputs'].shape[1:])
    counted = count_cost(e2e_twin(repl.config), shape)
    rows, early = [], []
    for item in _intervals(runs, args):
        saving = count_saving(item.config, counted, shape, item.every)
        bias = _bias(item, runs, args)
        rows.append(
            [
                item.every,
                saving.sites,
                saving.blocks / item.every,
                saving.eta,
                saving.formula,
                saving.forward,
                saving.training,
                saving.activations,
                saving.parameters,
                bias.bias / bias.gradient,
            ]
        )
        old = count_early(item.config, counted, shape, item.every)
        early.append([item.every, old.sites, old.fewest, old.most, old.gone, old.cost, old.counted])
    head = ['K', 'sites', 'N / K', 'eta', 'C(K), Eq. 76', 'forward', 'forward + backward', 'activations']
    head += ['trained parameters', 'bias / gradient']
    _show('cost over E2E: formula and counted', head, [[f'{value:.4g}' for value in row] for row in rows])
    columns = [
        'k',
        'sites',
        'parameters gone, least (17)',
        'most (16)',
        'counted',
        'cost over E2E, text',
        'cost, counted',
    ]
    _show('the 2024 form (blend)', columns, [[f'{value:.6g}' for value in row] for row in early])
    print(UNMEASURED)
    picture = curves_figure(
        f'{e2e.name}: cost and bias by interval',
        ('replacement interval K', [row[0] for row in rows]),
        {
            'cost over E2E': {
                'C(K) (Eq. 76)': [row[4] for row in rows],
                'forward + backward, counted': [row[6] for row in rows],
                'activations, counted': [row[7] for row in rows],
            },
            'bias of the gradient': {'bias / gradient, measured': [row[9] for row in rows]},
        },
    )
    return {'tradeoff.png': picture, 'tradeoff.csv': csv(head, rows), 'tradeoff_2024.csv': csv(columns, early)}
