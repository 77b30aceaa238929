"""What a study found: scores over seeds, paired differences with intervals, and costs beside the published ones."""

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

from repl_mm.analysis.compare import METRICS, MIB
from repl_mm.analysis.plot import to_png
from repl_mm.analysis.runs import Run
from repl_mm.analysis.studies import Row, Study
from repl_mm.analysis.tables import Table, escape
from repl_mm.engine.errors import printable

CONFIDENCE = 0.95
INK, FAINT = '#33608f', '#c2571a'


@dataclass(frozen=True)
class Finding:
    """A row of the report; what is not known is None.

    Attributes:
        name: The row's name.
        versus: The row that it is compared with.
        seeds: How many runs of it ended.
        diverged: How many runs ended by a loss or a gradient that was not finite.
        score: Mean of the last validation over seeds.
        deviation: Standard deviation over seeds; needs two.
        difference: Mean over the seeds that both have of the score minus that of ``versus``.
        interval: Of the difference, 95 %, by Student's t on the paired seeds; needs two.
        parameters: All that it trains and keeps.
        flops: Forward pass, per image.
        memory_mib: Peak memory of all processes, median over seeds; on a GPU, what its allocator gave out.
        step_ms: Median step time, median over seeds.
        epoch_s: Time per epoch, median over seeds.
        published_score: As printed in the paper.
        published_difference: To the published score of ``versus``.
        published_memory_gb: As printed.
        published_epoch_s: As printed.
        note: What has to be said beside it.
    """

    name: str
    versus: str | None
    seeds: int
    diverged: int
    score: float | None = None
    deviation: float | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    parameters: int | None = None
    flops: float | None = None
    memory_mib: float | None = None
    step_ms: float | None = None
    epoch_s: float | None = None
    published_score: float | None = None
    published_difference: float | None = None
    published_memory_gb: float | None = None
    published_epoch_s: float | None = None
    note: str = ''


def find(study: Study, runs: Mapping[str, Mapping[int, Run]], diverged: Mapping[str, int]) -> list[Finding]:
    """What the finished runs of a study say.

    Args:
        study: The study.
        runs: For each row's name, the finished runs by their seeds.
        diverged: For each row's name, how many runs ended because something was not finite.

    Raises:
        ValueError: A run was not validated with the study's metric.
    """
    scores = {
        row.name: {seed: last_score(run, study.metric) for seed, run in runs.get(row.name, {}).items()}
        for row in study.rows
    }
    published = {row.name: row.published.get('score') for row in study.rows}
    return [
        _find(row, runs.get(row.name, {}), scores, published, diverged=diverged.get(row.name, 0)) for row in study.rows
    ]


def _find(
    row: Row,
    runs: Mapping[int, Run],
    scores: Mapping[str, Mapping[int, float]],
    published: Mapping[str, float | None],
    *,
    diverged: int,
) -> Finding:
    own, others = scores[row.name], scores.get(row.versus or '', {})
    differences = [own[seed] - others[seed] for seed in sorted(own) if seed in others]
    printed, printed_other = published[row.name], published.get(row.versus or '')
    first = next(iter(runs.values()), None)
    return Finding(
        name=row.name,
        versus=row.versus,
        seeds=len(own),
        diverged=diverged,
        score=statistics.mean(own.values()) if own else None,
        deviation=statistics.stdev(own.values()) if len(own) > 1 else None,
        difference=statistics.mean(differences) if differences else None,
        interval=confidence(differences),
        parameters=first.complexity.parameters if first else None,
        flops=first.complexity.flops if first else None,
        memory_mib=_median(runs, lambda cost: _memory(cost['memory_bytes']) / MIB),
        step_ms=_median(runs, lambda cost: 1e3 * cost['step_time_s']['p50']),
        epoch_s=_median(runs, lambda cost: cost['s_per_epoch']),
        published_score=printed,
        published_difference=None if printed is None or printed_other is None else printed - printed_other,
        published_memory_gb=row.published.get('memory_gb'),
        published_epoch_s=row.published.get('epoch_s'),
        note=row.note,
    )


def confidence(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences by Student's t; None for fewer than two."""
    if len(differences) < 2:
        return None
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * stats.sem(differences)
    middle = statistics.mean(differences)
    return float(middle - half), float(middle + half)


def last_score(run: Run, metric: str) -> float:
    """Of the last validation, as people print it: shares of one, such as COCO's, in per cent.

    Raises:
        ValueError: It was not validated with that metric.
    """
    if metric not in run.metrics:
        raise ValueError(f'the run {run.name} was not validated with {metric}, but with {", ".join(run.metrics)}: '
                         "set the study's metric to one of those")  # fmt: skip
    return run.metrics[metric][-1][1] * (100 if metric.startswith('coco/') else 1)


def _memory(memory: Mapping[str, float]) -> float:
    return memory.get('peak_allocated') or memory['peak_resident']


def _median(runs: Mapping[int, Run], value: Callable[[Mapping], float]) -> float | None:
    found = []
    for run in runs.values():
        try:
            found.append(value(run.cost or {}))
        except (KeyError, TypeError):  # not measured there
            continue
    return statistics.median(found) if found else None


def as_table(study: Study, findings: Sequence[Finding]) -> Table:
    """A line for each row: scores and costs, measured and published."""
    head = ['', f'{METRICS.get(study.metric, study.metric)}', 'seeds', 'difference, 95 % interval', 'published',
            'published difference', 'parameters', 'FLOPs (M)', 'peak memory (MiB)', 'step p50 (ms)',
            'published memory (GB)', 'published epoch (s)']  # fmt: skip
    found = {finding.name: finding for finding in findings}
    return Table(head, 'l' + 'r' * 11, [_cells(f, found.get(f.versus or '')) for f in findings])


def _cells(finding: Finding, other: Finding | None) -> list[str]:
    def relative(key: str, places: int = 0, scale: float = 1) -> str:
        value, base = getattr(finding, key), other and getattr(other, key)
        if value is None:
            return '–'
        change = f' ({100 * (value / base - 1):+.1f} %)' if base else ''
        return f'{value * scale:,.{places}f}{change}'

    score = '–' if finding.score is None else f'{finding.score:.2f}'
    if finding.deviation is not None:
        score += f' ± {finding.deviation:.2f}'
    difference = '' if finding.versus is None else '–' if finding.difference is None else f'{finding.difference:+.2f}'
    if finding.interval:
        difference += ' ({:+.2f} to {:+.2f})'.format(*finding.interval)
    if finding.diverged:
        score += f', {finding.diverged} diverged'
    return [
        finding.name,
        score,
        str(finding.seeds),
        difference,
        '–' if finding.published_score is None else f'{finding.published_score:.2f}',
        '' if finding.published_difference is None else f'{finding.published_difference:+.2f}',
        relative('parameters'),
        relative('flops', 1, 1e-6),
        relative('memory_mib'),
        relative('step_ms', 1),
        relative('published_memory_gb', 2),
        relative('published_epoch_s', 2),
    ]


def as_markdown(study: Study, findings: Sequence[Finding], *, made_by: str, conditions: str) -> str:
    """The page of a study."""
    paragraphs = [
        f'# {escape(study.title)}',
        f'    {made_by}',
        f'Smaller than in the paper: {escape(study.smaller)}' if study.smaller else '',
        'Mean and standard deviation of the last validation over seeds. A difference is the mean over seeds of the '
        'score minus that of the row that it is compared with, which starts from the same weights and sees the same '
        "batches; its 95 % interval is Student's t on these pairs. Changes in brackets are relative to that row.",
        as_table(study, findings).markdown().rstrip(),
        '\n'.join(f'- {escape(f.name)}: {escape(f.note)}' for f in findings if f.note),
        escape(conditions),
    ]
    return '\n\n'.join(filter(None, paragraphs)) + '\n'


def as_json(study: Study, findings: Sequence[Finding]) -> str:
    """The findings as numbers."""
    record = dict(title=study.title, metric=study.metric, smaller=study.smaller, rows=list(map(asdict, findings)))
    return json.dumps(record, indent=2) + '\n'


def as_csv(findings: Sequence[Finding]) -> str:
    """The findings, one line each."""
    rows = [asdict(finding) for finding in findings]
    for row in rows:
        row['interval_low'], row['interval_high'] = row.pop('interval') or (None, None)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@rc_context({'text.parse_math': False})  # names may hold dollar signs
def as_png(study: Study, findings: Sequence[Finding]) -> bytes:
    """Measured differences with their intervals beside the published ones; a PNG file."""
    rows = [finding for finding in findings if finding.versus is not None][::-1]
    figure = Figure(figsize=(9, 1.8 + 0.42 * max(len(rows), 2)), layout='constrained')
    axes = figure.subplots()
    axes.axvline(0, color='#999999', linewidth=1)
    for at, row in enumerate(rows):
        if row.interval:
            axes.plot(row.interval, [at, at], color=INK, linewidth=3, solid_capstyle='butt', alpha=0.45)
        if row.difference is not None:
            axes.plot(row.difference, at, 'o', color=INK, markersize=7)
        if row.published_difference is not None:
            axes.plot(row.published_difference, at, 'D', color=FAINT, markersize=7, fillstyle='none')
    axes.plot([], [], 'o', color=INK, label='measured, with its 95 % interval')
    axes.plot([], [], 'D', color=FAINT, fillstyle='none', label='published')
    names = [re.sub('^_', ' _', printable(row.name)) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f'{METRICS.get(study.metric, study.metric)}: difference to the row that it is compared with')
    axes.grid(axis='x', alpha=0.3)
    axes.spines[['top', 'right', 'left']].set_visible(False)
    axes.tick_params(axis='y', length=0)
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    figure.suptitle(printable(study.title), weight='bold')
    return to_png(figure, dpi=120)
