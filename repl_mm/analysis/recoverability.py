"""Which blocks of a trained network can be replaced, each by itself: in weight space, in its features, in the score.

The paper's Section V-E controls the error of a replaced block by how far its weights are from the span of its
neighbours' (Eq. 72-75). Whether that says anything about the score is measured here.
"""

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from scipy.stats import bootstrap, rankdata
from torch import Tensor, nn

from repl_mm.analysis.compare import METRICS
from repl_mm.analysis.features import forward
from repl_mm.backbones import ReplMixin
from repl_mm.backbones.configs import backbone_class
from repl_mm.engine.files import require_regular
from repl_mm.fitting import WarmStart, adopt_weights, check_pair, estimate_norms, fit_features, fit_weights
from repl_mm.layers import read
from repl_mm.layers.config import variants_of
from repl_mm.sites import Site

LESS_IS_BETTER = ('perplexity',)
RESAMPLES = 9999  # of the blocks, for an interval
CONFIDENCE = 0.95


def papers_form(config: Config) -> Mapping[str, Any]:
    """The options of the computing layers that the papers' own results have for a config's backbone."""
    return variants_of(backbone_class(config).forms()[0])[0]


def eligible_blocks(backbone: ReplMixin) -> dict[str, Site]:
    """The blocks that can be replaced, by name in the backbone, in network order.

    Raises:
        ValueError: There are none.
    """
    layout, stages = backbone.layout(), list(backbone.repl_stages())
    found = {f'{stages[site.stage]}.{site.index}': site for site in layout.eligible()}
    if not found:
        raise ValueError(
            f'{layout.name} has no block that can be replaced, its stages have {layout.blocks} blocks: a block needs '
            'a neighbour on either side that fits it, choose a deeper network'
        )
    return found


@dataclass(frozen=True)
class LocalError:
    """||g(h) - f(h)|| / max(||h||, 1) over samples h, for a block f and what stands in for it (Eq. 41)."""

    mean: float
    max: float


@dataclass(frozen=True)
class Fitted:
    """How near a computing layer comes to the block whose place it takes.

    Attributes:
        distances: By weight that the layer stands for, the distance of the removed weight from what the neighbours
            span over its norm, from 0 to 1: of a convolution the mean over output channels (Eq. 72), of a projection as
            a whole (Eq. 74).
        start: The local error with the coefficients that a layer starts with.
        fitted: The local error with fitted ones.
    """

    distances: dict[str, float]
    start: LocalError
    fitted: LocalError


@dataclass(frozen=True)
class Block:
    """A block, and what it costs to replace it alone.

    Attributes:
        name: Its name in the backbone.
        site: Its place.
        fit: Of the computing layer to it.
        score: Of the network with the fitted layer, the statistics of its batch norms estimated anew.
        loss: What is lost of the trained network's score; above 0 is worse, whichever way the score counts.
    """

    name: str
    site: Site
    fit: Fitted
    score: float
    loss: float


def fit_block(network: BaseModel, reference: BaseModel, batches: Iterable[Any], unseen: Iterable[Any]) -> Fitted:
    """Fit the one computing layer of a network to the block of a trained one whose place it has.

    Args:
        network: With one site, changed in place: it gets the trained weights and the fitted layer, and the statistics
            of its batch norms are estimated anew.
        reference: The trained network.
        batches: Of the training data, as a loader gives them, to fit to.
        unseen: Batches for the local errors.

    Raises:
        ValueError: The networks do not belong together, or features are NaN or infinite.
    """
    sites, report = check_pair(network, reference), WarmStart()
    ((name, layer),) = sites.items()
    adopt_weights(network, reference)
    distances = layer.fit().distances(read(reference.get_submodule(name)))
    start = copy.deepcopy(network)
    estimate_norms(start, batches, forward, report)
    fit_weights(sites, reference, report)
    fit_features(network, sites, reference, batches, forward, report)
    estimate_norms(network, batches, forward, report)
    errors = local_errors([start, network], reference, name, unseen)
    return Fitted({key: float(value.mean()) for key, value in distances.items()}, *errors)


@torch.no_grad()
def local_errors(
    networks: Sequence[BaseModel], reference: BaseModel, name: str, batches: Iterable[Any]
) -> list[LocalError]:
    """The local error of the module of a name in each of some networks, on the features that the reference has there.

    Raises:
        ValueError: There is no batch, or a feature is not finite.
    """
    modules = [network.eval().get_submodule(name) for network in networks]
    errors: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        height = args[0].flatten(1).norm(dim=1).clamp_min(1)
        apart = [_first(module(*args)) - _first(out) for module in modules]
        errors.append(torch.stack([difference.flatten(1).norm(dim=1) / height for difference in apart]))

    handle = reference.eval().get_submodule(name).register_forward_hook(look)
    try:
        for batch in batches:
            forward(reference, batch)
    finally:
        handle.remove()
    if not errors:
        raise ValueError('there is no batch to look at: check the data set and --batches')
    found = torch.cat(errors, dim=1)
    if not torch.isfinite(found).all():
        raise ValueError(f'the features of {name} hold NaN or infinite values: look at the weights and images')
    return [LocalError(float(row.mean()), float(row.max())) for row in found]


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def main_metric(scores: Mapping[str, float]) -> str:
    """The score that counts out of those that a network is validated with."""
    return next((key for key in METRICS if key in scores), next(iter(scores)))


def lost(metric: str, *, trained: float, replaced: float) -> float:
    """By how much a score is worse than the trained network's."""
    return replaced - trained if metric in LESS_IS_BETTER else trained - replaced


@dataclass(frozen=True)
class Correlation:
    """How a quantity ranks blocks, beside the loss of the score: Spearman's coefficient and its bootstrap interval.

    Attributes:
        quantity: What ranks them.
        rho: From -1 to 1, or None where either is the same for all blocks.
        interval: Of 95 %, by resampling the blocks; percentiles.
    """

    quantity: str
    rho: float | None
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether more of the quantity goes with more loss."""
        if self.interval is None:
            return 'unknown: it is the same for all blocks, or the loss is'
        low, high = self.interval
        return 'yes' if low > 0 else 'no, the reverse' if high < 0 else 'not shown: the interval holds 0'


def correlate(quantity: str, values: Sequence[float], losses: Sequence[float]) -> Correlation:
    """Rank blocks by a quantity and by their loss."""
    if len(set(values)) == 1 or len(set(losses)) == 1:
        return Correlation(quantity, None, None)
    found = bootstrap(
        (values, losses), _spearman, paired=True, vectorized=True, n_resamples=RESAMPLES, confidence_level=CONFIDENCE,
        method='percentile', rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Correlation(quantity, float(_spearman(values, losses)), (float(found.low), float(found.high)))


def _spearman(x: Any, y: Any, axis: int = -1) -> np.ndarray:
    """Along an axis; 0 where all of a resample's values are the same, as nothing can be said there."""
    ranks = [rankdata(values, axis=axis) for values in (x, y)]
    x, y = (rank - rank.mean(axis=axis, keepdims=True) for rank in ranks)
    scale = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    return (x * y).sum(axis=axis) / np.where(scale > 0, scale, 1)


def correlations(blocks: Sequence[Block]) -> list[Correlation]:
    """The loss beside each distance that all blocks have, and the local errors."""
    fits = [block.fit for block in blocks]
    names = [name for name in fits[0].distances if all(name in fit.distances for fit in fits)]
    quantities = {f'distance of {name}': [fit.distances[name] for fit in fits] for name in names}
    for which in ('mean', 'max'):
        quantities[f'local error at the start, {which}'] = [getattr(fit.start, which) for fit in fits]
        quantities[f'local error after the fit, {which}'] = [getattr(fit.fitted, which) for fit in fits]
    losses = [block.loss for block in blocks]
    return [correlate(quantity, values, losses) for quantity, values in quantities.items()]


def identify(backbone: ReplMixin) -> dict[str, Any]:
    """What tells one network from another."""
    numbers = sum(parameter.numel() for parameter in backbone.parameters())
    return dict(backbone=type(backbone).__name__, blocks=list(backbone.layout().blocks), parameters=numbers)


def as_json(found: Mapping[str, Any], blocks: Sequence[Block], ranks: Sequence[Correlation]) -> bytes:
    """The file that :func:`read_losses` reads."""
    content = dict(found, blocks=[asdict(block) for block in blocks], correlations=[asdict(rank) for rank in ranks])
    return (json.dumps(content, indent=2) + '\n').encode()


@dataclass(frozen=True)
class Losses:
    """What ``tools/recoverability.py`` has found, as the planner needs it.

    Attributes:
        metric: The score, as people call it.
        form: The options of the computing layers that it holds for.
        of: What is lost where one site alone is replaced.
    """

    metric: str
    form: Mapping[str, Any]
    of: Mapping[Site, float]


def read_losses(path: Path, backbone: ReplMixin) -> Losses:
    """Read the file of :func:`as_json`.

    Args:
        path: The file.
        backbone: That of the network to plan for, which replaces nothing.

    Raises:
        ValueError: It is no such file, or one of another network.
    """
    require_regular(path)
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        theirs = dict(found['network'])
        of = {Site(*map(int, block['site'])): float(block['loss']) for block in found['blocks']}
        losses = Losses(METRICS.get(found['metric'], str(found['metric'])), dict(found['form']), of)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ValueError(
            f'{path} is no recoverability.json: give the file that tools/recoverability.py has written'
        ) from None
    own = identify(backbone)
    strange = next((key for key in own if own[key] != theirs.get(key)), None)
    if strange or set(of) != set(backbone.layout().eligible()) or not np.isfinite(list(of.values())).all():
        strange = strange or 'sites'
        raise ValueError(
            f'{path} is of another network, its {strange} are {theirs.get(strange)!r} and those of the config '
            f'{own.get(strange)!r}: run tools/recoverability.py with this config'
        )
    return losses
