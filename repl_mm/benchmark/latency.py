"""How long one forward pass takes: end to end, with computing layers, deployed, and with batch norms folded.

All forms of a model are timed in turns, and each ratio is the median of the ratios within a turn: what disturbs the
machine for a while disturbs both sides.
"""

import copy
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from rich.table import Table
from torch import Tensor, nn

from repl_mm.analysis.complexity import count
from repl_mm.benchmark.timing import as_markdown_table, check_backends, format_ratio, time_interleaved
from repl_mm.deployment import RawOutputs, deploy
from repl_mm.surgery import computing_layers

# What each form is measured against: (as trained, what is left of RepL's own overhead).
FORMS = {
    'E2E': (None, None),
    'E2E, folded': (None, None),
    'RepL, dynamic': ('E2E', None),
    'RepL, deployed': ('E2E', 'RepL, dynamic'),
    'RepL, deployed and folded': ('E2E, folded', 'RepL, dynamic'),
}
# Published on one A100 by arXiv 2605.19533: (model, backend, batch) -> Table XI, dynamic over deployed.
TABLE_XI = {
    ('resnet34', 'fp32', 64): 1.000,
    ('vit-small', 'fp32', 64): 1.006,
    ('vit-small', 'fp32', 1): 1.139,
    ('vit-small', 'amp', 64): 1.020,
    ('resnet101', 'fp32', 32): 1.013,
    ('resnet101', 'fp32', 1): 1.104,
}
# (model, backend) -> Table XII, E2E over deployed; the batch is that of Table XI.
TABLE_XII = {
    ('resnet34', 'fp32'): 1.264,
    ('resnet34', 'channels-last'): 1.273,
    ('resnet34', 'channels-last+compile'): 1.290,
    ('vit-small', 'fp32'): 1.176,
    ('vit-small', 'amp'): 1.157,
    ('resnet101', 'fp32'): 1.120,
}


@dataclass(frozen=True)
class Latency:
    """One form of a model under one backend.

    Attributes:
        config: Name of the config.
        sites: How its sites were chosen.
        backend: What it ran with.
        batch: Images in a batch.
        size: Height and width of the images.
        form: One of ``FORMS``.
        median_ms: Median time of a forward pass.
        p90_ms: 90th percentile.
        images_per_s: By the median.
        over_e2e: How many times faster than E2E, folded or not as this form is; the median of the turns' ratios.
        over_e2e_quartiles: Lower and upper quartile of these ratios.
        over_dynamic: How many times faster than with computing layers; None before deployment.
        over_dynamic_quartiles: As above.
        flop_bound: E2E's operations over this form's, which is all that a machine bound by arithmetic can gain.
        published_over_e2e: Table XII, where it has the row.
        published_over_dynamic: Table XI, where it has the row.
        turns: How often each form was timed.
    """

    config: str
    sites: str
    backend: str
    batch: int
    size: str
    form: str
    median_ms: float
    p90_ms: float
    images_per_s: float
    over_e2e: float | None
    over_e2e_quartiles: tuple[float, float] | None
    over_dynamic: float | None
    over_dynamic_quartiles: tuple[float, float] | None
    flop_bound: float | None
    published_over_e2e: float | None
    published_over_dynamic: float | None
    turns: int


def build_forms(config: Config) -> dict[str, nn.Module]:
    """All forms of a config's model, with random weights, in eval mode."""
    plain = copy.deepcopy(config)
    plain.model.backbone.repl = None
    with DefaultScope.overwrite_default_scope(config.default_scope):
        e2e, repl = (MODELS.build(c.model).eval() for c in (plain, config))
    models = (e2e, deploy(e2e, fuse_all=True), repl, deploy(repl), deploy(repl, fuse_all=True))
    return dict(zip(FORMS, models, strict=True))


def prepare(model: nn.Module, images: Tensor, *, backend: str) -> Callable[[], object]:
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
    layers = computing_layers(raw)
    if 'compile' in names:
        raw = torch.compile(raw)
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16

    def call() -> object:
        # In use, a weight is synthesised once and reused; published is what synthesising at each pass takes.
        for layer in layers:
            layer.forget()
        with torch.no_grad(), torch.autocast(device.type, half, enabled='amp' in names):
            outputs = raw(images)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        return outputs

    return call


def measure(
    config: Config, *, backend: str, batch: int, size: tuple[int, int], device: torch.device, seconds: float
) -> list[Latency]:
    """Time all forms of a config's model; options as in :func:`prepare` and :func:`time_interleaved`.

    Raises:
        ValueError: The config has no sites.
    """
    repl = config.model.backbone.get('repl')
    if not repl:
        raise ValueError(f"{config.filename} replaces nothing: give one with repl=dict(policy='interval', every=4)")
    name = Path(config.filename).stem
    models = build_forms(config)
    images = torch.randn(batch, 3, *size, device=device)
    calls = {form: prepare(model, images, backend=backend) for form, model in models.items()}
    times = time_interleaved(calls, seconds=seconds)
    plain = copy.deepcopy(config)
    plain.model.backbone.repl = None
    flops = [count(c, input_shape=(3, *size)).flops for c in (plain, config)]
    model = name.split('_')[0].removesuffix('-repl').removesuffix('-p16')

    def ratio(form: str, reference: str | None) -> tuple[float | None, tuple[float, float] | None]:
        if reference is None:
            return None, None
        low, middle, high = np.quantile(np.divide(times[reference], times[form]), (0.25, 0.5, 0.75)).tolist()
        return middle, (low, high)

    rows = []
    for form, (e2e, dynamic) in FORMS.items():
        median = statistics.median(times[form])
        deployed = form == 'RepL, deployed'
        (over_e2e, e2e_quartiles), (over_dynamic, dynamic_quartiles) = ratio(form, e2e), ratio(form, dynamic)
        rows.append(
            Latency(
                config=name,
                sites=' '.join(f'{key}={value}' for key, value in repl.items()),
                backend=backend,
                batch=batch,
                size=f'{size[0]} x {size[1]}',
                form=form,
                median_ms=1000 * median,
                p90_ms=1000 * float(np.quantile(times[form], 0.9)),
                images_per_s=batch / median,
                over_e2e=over_e2e,
                over_e2e_quartiles=e2e_quartiles,
                over_dynamic=over_dynamic,
                over_dynamic_quartiles=dynamic_quartiles,
                flop_bound=flops[0] / flops[1] if e2e else None,
                published_over_e2e=TABLE_XII.get((model, backend)) if deployed and batch > 1 else None,
                published_over_dynamic=TABLE_XI.get((model, backend, batch)) if deployed else None,
                turns=len(times[form]),
            )
        )
    return rows


def as_markdown(rows: Sequence[Latency], *, conditions: str) -> str:
    """The figures as a table with the published ones beside them."""
    head = ['model', 'sites', 'backend', 'batch', 'size', 'form', 'median (ms)', 'p90 (ms)', 'images/s', 'turns']
    head += ['over E2E', 'FLOPs allow', 'published over E2E', 'over dynamic', 'published over dynamic']
    lines = [head, ['---'] * 3 + ['---:'] * 2 + ['---'] + ['---:'] * 9]
    for row in rows:
        cells = [row.config, row.sites, row.backend, str(row.batch), row.size, row.form]
        cells += [f'{row.median_ms:.2f}', f'{row.p90_ms:.2f}', f'{row.images_per_s:.1f}', str(row.turns)]
        cells += [
            format_ratio(row.over_e2e, row.over_e2e_quartiles),
            format_ratio(row.flop_bound),
            format_ratio(row.published_over_e2e),
        ]
        cells += [format_ratio(row.over_dynamic, row.over_dynamic_quartiles), format_ratio(row.published_over_dynamic)]
        lines.append(cells)
    return f'{as_markdown_table(lines)}\n{conditions}\n'


def as_table(rows: Sequence[Latency]) -> Table:
    """The short form for a terminal."""
    table = Table('model', 'sites', 'backend', 'batch', 'form', 'median (ms)', 'over E2E', 'over dynamic')
    for row in rows:
        name, policy = row.config.split('_')[0], row.sites.split()[0].removeprefix('policy=')
        ratios = (
            format_ratio(row.over_e2e, row.over_e2e_quartiles),
            format_ratio(row.over_dynamic, row.over_dynamic_quartiles),
        )
        table.add_row(name, policy, row.backend, str(row.batch), row.form, f'{row.median_ms:.2f}', *ratios)
    return table


def as_png(rows: Sequence[Latency], *, conditions: str) -> bytes:
    """Speed-ups of the deployed forms as bars, the bound by operations and the published figures as marks."""
    shown = [row for row in rows if row.form.startswith('RepL, deployed')]
    figure = Figure(figsize=(11, 1.6 + 0.32 * len(shown)), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(shown))
    for axes, ours, published, title in (
        (left, 'over_e2e', 'published_over_e2e', 'times faster than E2E'),
        (right, 'over_dynamic', 'published_over_dynamic', 'times faster than with computing layers'),
    ):
        ratios = np.array([getattr(row, ours) for row in shown])
        spread = np.array([getattr(row, f'{ours}_quartiles') for row in shown])
        axes.barh(places, ratios - 1, 0.7, left=1, color='#c2571a', alpha=0.85)
        axes.hlines(places, *spread.T, color='#5b2508', linewidth=1.5, label='quartiles of the turns')
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
             f'{row.form.removeprefix("RepL, ")}' for row in shown]  # fmt: skip
    left.set_yticks(places, names, fontsize=8)
    left.invert_yaxis()
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=3, frameon=False)
    figure.suptitle(conditions, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    return buffer.getvalue()
