"""How long one forward pass takes: end to end, with computing layers, deployed, and with batch norms folded.

All states of a model are timed in interleaved rounds, and each ratio is the median of the ratios within a round: what
disturbs the machine for a while disturbs both sides.
"""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from repl_mm.analysis.cost import count
from repl_mm.analysis.plot import to_png
from repl_mm.analysis.tables import Table
from repl_mm.backbones.configs import e2e_twin, require_sites
from repl_mm.benchmark.timing import check_backends, compiled_each, format_ratio, round_ratio, time_interleaved
from repl_mm.benchmark.variants import name_of
from repl_mm.deployment import RawOutputs, deploy

# What each state of a network is measured against: (as trained, what is left of RepL's own overhead).
STATES = {
    'E2E': (None, None),
    'E2E, folded': (None, None),
    'RepL, dynamic': ('E2E', None),
    'RepL, deployed': ('E2E', 'RepL, dynamic'),
    'RepL, deployed and folded': ('E2E, folded', 'RepL, dynamic'),
}
# Published on one A100 by arXiv 2605.19533: (model, backend, batch) -> Table XI, dynamic over deployed.
TABLE_XI = {
    ('resnet34', 'fp32', 64): 1.000,
    ('vit-small-p16', 'fp32', 64): 1.006,
    ('vit-small-p16', 'fp32', 1): 1.139,
    ('vit-small-p16', 'amp', 64): 1.020,
    ('resnet101', 'fp32', 32): 1.013,
    ('resnet101', 'fp32', 1): 1.104,
}
# (model, backend) -> Table XII, E2E over deployed; the batch is that of Table XI.
TABLE_XII = {
    ('resnet34', 'fp32'): 1.264,
    ('resnet34', 'channels-last'): 1.273,
    ('resnet34', 'channels-last+compile'): 1.290,
    ('vit-small-p16', 'fp32'): 1.176,
    ('vit-small-p16', 'amp'): 1.157,
    ('resnet101', 'fp32'): 1.120,
}


@dataclass(frozen=True)
class Latency:
    """One state of a model under one backend.

    Attributes:
        config: Name of the config.
        sites: How its sites were chosen.
        backend: What it ran with.
        batch: Images in a batch.
        size: Height and width of the images.
        state: One of ``STATES``.
        median_ms: Median time of a forward pass.
        p90_ms: 90th percentile.
        images_per_s: By the median.
        over_e2e: How many times faster than E2E, folded or not as this state is; the median of the rounds' ratios.
        over_e2e_interval: 95 % interval of it; see :func:`repl_mm.benchmark.timing.round_ratio`.
        over_dynamic: How many times faster than with computing layers; None before deployment.
        over_dynamic_interval: As above.
        flop_bound: E2E's operations over this state's, which is all that a machine bound by arithmetic can gain.
        published_over_e2e: Table XII, where it has the row.
        published_over_dynamic: Table XI, where it has the row.
        rounds: How often each state was timed.
    """

    config: str
    sites: str
    backend: str
    batch: int
    size: str
    state: str
    median_ms: float
    p90_ms: float
    images_per_s: float
    over_e2e: float | None
    over_e2e_interval: tuple[float, float] | None
    over_dynamic: float | None
    over_dynamic_interval: tuple[float, float] | None
    flop_bound: float | None
    published_over_e2e: float | None
    published_over_dynamic: float | None
    rounds: int


def build_states(config: Config) -> dict[str, nn.Module]:
    """All states of a config's model, with random weights, in eval mode."""
    plain = e2e_twin(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        e2e, repl = (MODELS.build(c.model).eval() for c in (plain, config))
    models = (e2e, deploy(e2e, fuse_all=True), repl, deploy(repl), deploy(repl, fuse_all=True))
    return dict(zip(STATES, models, strict=True))


def prepare(model: nn.Module, images: Tensor, *, backend: str) -> Callable[[], Any]:
    """A call that runs one forward pass to its end.

    Args:
        model: A whole model.
        images: Normalised images on the device that it shall run on.
        backend: Names out of :data:`repl_mm.benchmark.BACKENDS`, joined by ``+``: ``fp32`` is nothing, ``amp``
            autocast (float16 on a GPU, bfloat16 on a CPU), ``bf16`` weights and images in bfloat16.

    Raises:
        ValueError: A backend that does not exist.
    """
    check_backends([backend])
    names = backend.split('+')
    device = images.device
    raw = RawOutputs(copy.deepcopy(model)).eval().to(device)
    if 'bf16' in names:
        raw, images = raw.bfloat16(), images.bfloat16()
    if 'channels-last' in names:
        raw, images = raw.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    if 'compile' in names:
        raw = torch.compile(raw)
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16

    def call() -> object:
        with torch.no_grad(), torch.autocast(device.type, half, enabled='amp' in names):
            outputs = raw(images)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return outputs

    return call


def measure(
    config: Config, *, backend: str, batch: int, size: tuple[int, int], device: torch.device, seconds: float
) -> list[Latency]:
    """Time all states of a config's model; options as in :func:`prepare` and :func:`time_interleaved`.

    Raises:
        ValueError: The config has no sites.
    """
    require_sites(config)
    models = build_states(config)
    images = torch.randn(batch, 3, *size, device=device)
    calls = {state: prepare(model, images, backend=backend) for state, model in models.items()}
    with compiled_each(len(calls), backend):
        times = time_interleaved(calls, seconds=seconds, device=device)
    flops = [count(c, input_shape=(3, *size)).flops for c in (e2e_twin(config), config)]
    model = name_of(config)
    rows = []
    for state, references in STATES.items():
        median = statistics.median(times[state])
        deployed = state == 'RepL, deployed'
        (over_e2e, e2e_interval), (over_dynamic, dynamic_interval) = (
            round_ratio(times[reference], times[state]) if reference else (None, None) for reference in references
        )
        rows.append(
            Latency(
                config=Path(config.filename).stem,
                sites=' '.join(f'{key}={value}' for key, value in config.model.backbone.repl.items()),
                backend=backend,
                batch=batch,
                size=f'{size[0]} x {size[1]}',
                state=state,
                median_ms=1000 * median,
                p90_ms=1000 * float(np.quantile(times[state], 0.9)),
                images_per_s=batch / median,
                over_e2e=over_e2e,
                over_e2e_interval=e2e_interval,
                over_dynamic=over_dynamic,
                over_dynamic_interval=dynamic_interval,
                flop_bound=flops[0] / flops[1] if over_e2e else None,
                published_over_e2e=TABLE_XII.get((model, backend)) if deployed and batch > 1 else None,
                published_over_dynamic=TABLE_XI.get((model, backend, batch)) if deployed else None,
                rounds=len(times[state]),
            )
        )
    return rows


def as_markdown(rows: Sequence[Latency], *, conditions: str) -> str:
    """The figures as a table with the published ones beside them."""
    head = ['model', 'sites', 'backend', 'batch', 'size', 'state', 'median (ms)', 'p90 (ms)', 'images/s', 'rounds']
    head += ['over E2E', 'FLOPs allow', 'published over E2E', 'over dynamic', 'published over dynamic']
    cells = [
        [
            *(row.config, row.sites, row.backend, str(row.batch), row.size, row.state),
            *(f'{row.median_ms:.2f}', f'{row.p90_ms:.2f}', f'{row.images_per_s:.1f}', str(row.rounds)),
            format_ratio(row.over_e2e, row.over_e2e_interval),
            *map(format_ratio, (row.flop_bound, row.published_over_e2e)),
            format_ratio(row.over_dynamic, row.over_dynamic_interval),
            format_ratio(row.published_over_dynamic),
        ]
        for row in rows
    ]
    return f'{Table(head, "lllrrl" + 9 * "r", cells).markdown()}\n{conditions}\n'


def as_table(rows: Sequence[Latency]) -> Table:
    """What matters most, for a terminal."""
    head = ['model', 'sites', 'backend', 'batch', 'state', 'median (ms)', 'over E2E', 'over dynamic']
    cells = [
        [
            *(row.config.split('_')[0], row.sites.split()[0].removeprefix('policy='), row.backend, str(row.batch)),
            *(row.state, f'{row.median_ms:.2f}'),
            format_ratio(row.over_e2e, row.over_e2e_interval),
            format_ratio(row.over_dynamic, row.over_dynamic_interval),
        ]
        for row in rows
    ]
    return Table(head, 'lllrlrrr', cells)


def as_png(rows: Sequence[Latency], *, conditions: str) -> bytes:
    """Speed-ups of the deployed states as bars, the bound by operations and the published figures as marks."""
    shown = [row for row in rows if row.state.startswith('RepL, deployed')]
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(shown)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(shown))
    for axes, ours, published, title in (
        (left, 'over_e2e', 'published_over_e2e', 'times faster than E2E'),
        (right, 'over_dynamic', 'published_over_dynamic', 'times faster than with computing layers'),
    ):
        ratios = np.array([getattr(row, ours) for row in shown])
        spread = np.array([getattr(row, f'{ours}_interval') for row in shown])
        axes.barh(places, ratios - 1, 0.7, left=1, color='#c2571a', alpha=0.85)
        axes.hlines(places, *spread.T, color='#5b2508', linewidth=1.5, label='95 % interval')
        for at, value in enumerate(ratios):
            axes.text(1.01, at, f'{value:.3f}', transform=axes.get_yaxis_transform(), va='center', fontsize=8)
        marks = [(at, getattr(row, published)) for at, row in enumerate(shown) if getattr(row, published)]
        if marks:
            axes.scatter(*zip(*((x, y) for y, x in marks), strict=True), marker='D', color='#33608f', zorder=3,
                         label='published, A100')  # fmt: skip
        axes.axvline(1, color='#555', linewidth=0.8)
        axes.set(title=title)
        axes.spines[['top', 'right']].set_visible(False)
        axes.margins(x=0.15)
    left.scatter([row.flop_bound for row in shown], places, marker='|', s=120, color='#222', label='FLOPs allow')
    names = [f'{row.config.split("_")[0]}, {row.sites.split()[0].split("=")[1]}, {row.backend}, batch {row.batch}: '
             f'{row.state.removeprefix("RepL, ")}' for row in shown]  # fmt: skip
    left.set_yticks(places, names, fontsize=8)
    left.invert_yaxis()
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=3, frameon=False)
    figure.suptitle(conditions, fontsize=9)
    return to_png(figure, dpi=120)
