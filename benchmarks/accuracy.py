"""What the studies' small profiles score, beside what a step costs: docs/accuracy.md and its CSVs.

    python benchmarks/accuracy.py scores WORK_DIR SCORES.csv    # of what tools/study.py has trained in WORK_DIR
    python benchmarks/accuracy.py costs COSTS.csv               # predicted, a minute on one core
    python benchmarks/accuracy.py page SCORES.csv COSTS.csv PAGE.md

Scores are added to what SCORES.csv has, so that a table can be trained in parts; a row whose recipe has changed loses
its old ones.
"""

import csv
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from mmengine.logging import MMLogger
from rich.progress import track
from scipy import stats

from repl_mm.analysis.compare import METRICS
from repl_mm.analysis.studies import Row, Study, load_study
from repl_mm.analysis.study_report import CONFIDENCE, confidence, last_score
from repl_mm.analysis.tables import Table, as_csv
from repl_mm.benchmark.devices import find_device
from repl_mm.benchmark.predict import predict_step
from repl_mm.benchmark.timing import format_ratio
from repl_mm.cli.study import Job, read_run
from repl_mm.engine.files import write_atomic

STUDIES = Path(__file__).parents[1] / 'configs/studies'
PARETO, HELPS = 'accuracy_over_cost', 'what_helps'
DEVICE = 'a100'
CONFIRMED = 5  # seeds from which a row is no longer called exploratory
FEW = 3  # seeds of an exploratory row
NETWORKS = ('ResNet-32', 'ViT-T/8')  # those of PARETO
# What a network with sites is compared with beside E2E: the row that drops the same blocks.
OPPONENTS = {
    PARETO: {
        f'{network}: RepL, K = {every}': f'{network}: dropped, K = {every}' for network in NETWORKS for every in (4, 2)
    },
    HELPS: {
        'RepL': 'dropped',
        'no weight decay on the coefficients': 'dropped',
        'gradients into the neighbours': 'dropped',
        'blend': 'dropped',
        'three times the training: RepL': 'three times the training: dropped',
        'zero_init_residual: RepL': 'zero_init_residual: dropped',
    },
}


@dataclass(frozen=True)
class Score:
    """A line of the CSV: the last validation of a run; ``run`` is the name of what it trained."""

    study: str
    row: str
    run: str
    seed: int
    score: float


@dataclass(frozen=True)
class Cost:
    """A line of the CSV: what a step of a row of ``PARETO`` takes at its published batch, predicted."""

    row: str
    batch: int
    size: str
    step_ms: float
    memory_mib: float


By = Mapping[str, Mapping[int, float]]  # scores by row and seed


@cache
def small_studies() -> dict[str, Study]:
    """The studies that have a small profile, by their names: those of a paper in the order of its tables."""

    def order(path: Path) -> tuple[str, int]:
        words, _, number = path.stem.rpartition('_')
        return (words, int(number)) if number.isdecimal() else (path.stem, 0)

    paths = [path for path in STUDIES.glob('*.py') if 'small=' in path.read_text()]
    return {path.stem: load_study(path, 'small') for path in sorted(paths, key=order)}


def collect(work_dir: Path, known: Sequence[Score]) -> list[Score]:
    """The scores of all finished runs, in the order of the studies, and those that are known of the same recipes."""
    found = {}
    for name, study in small_studies().items():
        for row in study.rows:
            recipe = (name, row.name, row.key)
            old = {score.seed: score for score in known if (score.study, score.row, score.run) == recipe}
            folders = [path for path in (work_dir / 'runs' / row.key).glob('seed-*') if path.is_dir()]
            jobs = [Job(row, int(folder.name.removeprefix('seed-')), folder) for folder in folders]
            new = {
                job.seed: Score(name, row.name, row.key, job.seed, last_score(read_run(job), study.metric))
                for job in jobs
                if job.finished and not job.diverged
            }
            both = old | new
            found |= {(name, row.name, seed): both[seed] for seed in sorted(both)}
    return list(found.values())


def predict() -> Iterable[Cost]:
    """The cost of each row of the picture, at the published batch and size."""
    rows = load_study(STUDIES / f'{PARETO}.py', 'full').rows
    for row in track(rows, 'Predicting: '):
        batch, size = row.config.train_dataloader.batch_size, (32, 32)
        step = predict_step(row.config, find_device(DEVICE), batch=batch, size=size)
        yield Cost(row.name, batch, f'{size[0]} x {size[1]}', 1e3 * step.seconds, step.memory['total'])


def read(path: Path, kind: type[Any]) -> list[Any]:
    """The lines of a CSV."""
    with path.open(newline='') as file:
        return [kind(*(f.type(record[f.name]) for f in fields(kind))) for record in csv.DictReader(file)]


def scores_of(scores: Sequence[Score], study: str) -> By:
    """By row and seed."""
    found: dict[str, dict[int, float]] = {}
    for score in scores:
        if score.study == study:
            found.setdefault(score.row, {})[score.seed] = score.score
    return found


def gains(of: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """The differences by seed, of the seeds that both have."""
    return {seed: of[seed] - other[seed] for seed in sorted(of) if seed in other}


def differences(of: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """Over the seeds that both have."""
    return list(gains(of, other).values())


def format_mean(values: Iterable[float]) -> str:
    """Mean and standard deviation."""
    values = list(values)
    return f'{mean(values):.2f}' + (f' ± {stdev(values):.2f}' if len(values) > 1 else '')


def format_difference(values: Sequence[float]) -> str:
    """Mean and 95 % interval."""
    if not values:
        return '–'
    interval = confidence(values)
    return f'{round(mean(values), 2) + 0.0:+.2f}' + (f' ({interval[0]:+.2f} to {interval[1]:+.2f})' if interval else '')


def verdict(values: Sequence[float]) -> str:
    """What the interval of paired differences decides."""
    interval = confidence(values)
    if interval is None or interval[0] <= 0 <= interval[1]:
        return 'open'
    return 'RepL scores more' if interval[0] > 0 else 'RepL scores less'


def decisive_table(by: By, costs: Mapping[str, Cost]) -> Table:
    """RepL against the network that dropping the same blocks leaves, over the seeds that both and E2E have."""
    rows = []
    for repl, dropped in OPPONENTS[PARETO].items():
        found = [by.get(name, {}) for name in (f'{repl.partition(":")[0]}: E2E', dropped, repl)]
        seeds = sorted(set.intersection(*map(set, found)))
        if not seeds:
            continue
        e2e, shallower, own = ({seed: scores[seed] for seed in seeds} for scores in found)
        gain = differences(own, shallower)
        rows.append([
            repl, str(len(seeds)), *(format_mean(scores.values()) for scores in (e2e, shallower, own)),
            format_difference(differences(shallower, e2e)), format_difference(differences(own, e2e)),
            format_difference(gain), verdict(gain),
            *(', '.join(over_e2e(costs, name)) for name in (dropped, repl)),
        ])  # fmt: skip
    head = ['', 'seeds', 'E2E', 'dropped', 'RepL', 'dropped - E2E', 'RepL - E2E', 'RepL - dropped']
    head += ['RepL against dropped', 'time, memory of dropped', 'of RepL']
    return Table(head, 'lrrrrrrrlrr', rows)


def in_words(by: By, costs: Mapping[str, Cost]) -> str:
    """What the table of :func:`decisive_table` says, a line for each row."""
    lines = []
    for repl, dropped in OPPONENTS[PARETO].items():
        gain = differences(by.get(repl, {}), by.get(dropped, {}))
        if len(gain) < 2:
            continue
        low, high = confidence(gain)
        more = f'{abs(mean(gain)):.2f} points {"more" if mean(gain) > 0 else "less"}'
        interval = f'the interval, {low:+.2f} to {high:+.2f}'
        decided = {
            'open': f'{interval}, holds zero, so a site is not shown to be worth more than nothing in its place',
            'RepL scores more': f'{interval}, is above zero: the sites are worth something',
            'RepL scores less': f'{interval}, is below zero: **RepL loses**',
        }[verdict(gain)]
        extra = 100 * (costs[repl].step_ms / costs[dropped].step_ms - 1)
        lines.append(
            f'- {repl} scores {more} than the network without those blocks over {len(gain)} seeds, for {extra:.0f} % '
            f'more time; {decided}.'
        )
    return '\n'.join(lines)


def half_widths(by: By) -> dict[str, float]:
    """How far an interval of ``FEW`` seeds goes to either side, by network, in points.

    By how the difference to E2E deviates from seed to seed in the row that has many.
    """
    t = stats.t.ppf((1 + CONFIDENCE) / 2, FEW - 1)
    return {network: t * deviation(by, network) / FEW**0.5 for network in NETWORKS}


def deviation(by: By, network: str) -> float:
    """Of RepL's difference to E2E, from seed to seed."""
    return stdev(differences(by[f'{network}: RepL, K = 4'], by[f'{network}: E2E']))


def reach(by: By) -> str:
    """What few seeds can tell, a line for each network."""
    lines = []
    for network, half in half_widths(by).items():
        gaps = published_gaps(network)
        lines.append(
            f'- {network}: RepL, K = 4, deviates by {deviation(by, network):.2f} points over E2E from seed to seed, so '
            f'an interval of {FEW} seeds goes about {half:.2f} points to either side. Below, {network} stands for '
            f'{len(gaps)} different published differences, of which {sum(gap < half for gap in gaps)} are smaller.'
        )
    return '\n'.join(lines)


def trains(row: Row, network: str) -> bool:
    """Whether a row's small profile trains this network."""
    return row.key.startswith(network.partition('-')[0].lower())  # a run's name begins with that of its network


def published_gaps(network: str) -> set[float]:
    """The sizes of the published differences of the rows whose small profile trains this network, each once."""
    rows = [(study, row) for study in small_studies().values() for row in study.rows]
    gaps = [published_gap(study, row) for study, row in rows if trains(row, network)]
    return {round(abs(gap), 2) for gap in gaps if gap is not None}  # as printed: one row stands in many tables


def over_e2e(costs: Mapping[str, Cost], row: str) -> tuple[str, str]:
    """Predicted time and memory over those of E2E."""
    mine, e2e = costs[row], costs[f'{row.partition(":")[0]}: E2E']
    return format_ratio(mine.step_ms / e2e.step_ms), format_ratio(mine.memory_mib / e2e.memory_mib)


def helps(by: By) -> tuple[Table, str]:
    """Each factor's difference to the network without the blocks, and what it adds to that of RepL as it is."""
    plain = gains(by.get('RepL', {}), by.get('dropped', {}))
    rows, told = [], []
    for repl, dropped in OPPONENTS[HELPS].items():
        if gain := gains(by.get(repl, {}), by.get(dropped, {})):
            own, added = list(gain.values()), differences(gain, plain)
            rows.append([
                repl, str(len(gain)), *(format_mean(by[name][seed] for seed in gain) for name in (dropped, repl)),
                format_difference(own), verdict(own), '' if repl == 'RepL' else format_difference(added),
            ])  # fmt: skip
            if verdict(added) != 'open':
                told.append(repl)
    head = ['', 'seeds', 'dropped', 'with sites', 'difference', 'against dropped', 'added to that of RepL']
    return Table(head, 'lrrrrlr', rows), f'Additions whose interval does not hold zero: {", ".join(told) or "none"}.'


def study_table(study: Study, by: By, half: Mapping[str, float]) -> Table | None:
    """A study's rows, measured and published; None where nothing is measured but E2E."""
    rows = []
    for row in study.rows:
        gap = published_gap(study, row)
        published = '' if gap is None else f'{gap:+.2f}'
        if not (own := by.get(row.name)):
            rows.append([row.name, '0', absence(row, gap, half), '', published])
            continue
        gain = differences(own, by.get(row.versus or '', {}))
        interval = confidence(gain)
        if gap is not None and interval and not interval[0] <= gap <= interval[1]:
            published += ', outside'
        rows.append([
            row.name, str(len(own)), format_mean(own.values()), format_difference(gain) if row.versus else '', published
        ])  # fmt: skip
    if not any(row.versus and by.get(row.name) for row in study.rows):
        return None
    return Table(['', 'seeds', METRICS[study.metric], 'difference to E2E', 'published difference'], 'lrrrr', rows)


def absence(row: Row, gap: float | None, half: Mapping[str, float]) -> str:
    """Why nothing was run: the run would end with the weights of another, or few seeds would not tell its difference.

    Args:
        row: The row, which has no score.
        gap: Its published difference, if it has one.
        half: How far an interval of few seeds goes, by network.
    """
    hooks = [hook['type'] for hook in row.config.get('custom_hooks') or ()]
    if 'repl_mm.ActivationCheckpointingHook' in hooks:
        return 'as without it, to the bit'
    for network, width in half.items():
        if gap is not None and trains(row, network) and abs(gap) < width:
            return f'not run: {FEW} seeds tell ± {width:.2f}'
    return 'not run'


def published_gap(study: Study, row: Row) -> float | None:
    """The published score minus that of the row that it is compared with."""
    published = {row.name: row.published.get('score') for row in study.rows}
    own, other = published[row.name], published.get(row.versus or '')
    return None if own is None or other is None else own - other


INTRODUCTION = f"""# What it scores

Written by `benchmarks/accuracy.py` from the [scores](results/accuracy.csv) of runs of `tools/study.py STUDY --profile
small` and the [costs](results/accuracy_costs.csv) predicted for an A100. Mean over seeds and standard deviation; a
difference is paired, the same start and the same batches, over the seeds that both rows have, with its 95 % interval by
Student's t. Rows of fewer than {CONFIRMED} seeds are exploratory. **The networks are small and see few images**:
classifiers 120,000, which are 10,000 of Fashion-MNIST's 60,000 for 12 epochs, and are scored on its 10,000 test images.
What the papers' recipes score is not known here. More is better, but for perplexity.

## Is a site worth more than nothing in its place?

The opponent is the network without the replaced blocks (`form='drop'`), which costs less. "Open" is where the interval
holds zero. Where dropping the blocks loses nothing against E2E either, the data ask for no more depth, and cannot tell
what a site is worth. Costs are over E2E's, at the published batch.

"""

HELPS_WORDS = """ResNet-32 with K = 4, exploratory: `configs/studies/what_helps.py` changes one thing of RepL's
recipe, or of both networks', such as the length of the training. What a factor adds is the difference of two
differences: its own over the network without the blocks, and that of RepL as it is. A warm start from a trained
network [has a page of its own](fine_tuning.md#what-to-expect)."""


FEW_WORDS = """What few seeds can tell. A row that was not run says so where its published difference is smaller: the
interval would hold zero as a rule. "Outside" is a published difference that the measured interval does not hold."""


def as_page(scores: Sequence[Score], costs: Sequence[Cost], picture: str) -> str:
    """The page, from the CSVs and the studies' published figures."""
    by_row = {cost.row: cost for cost in costs}
    pareto = scores_of(scores, PARETO)
    text = f'{INTRODUCTION}{decisive_table(pareto, by_row).markdown()}\n{in_words(pareto, by_row)}\n'
    text += f'\n![Score over predicted time and memory, of each way to save]({picture})\n\n'
    text += f'Hollow points are of fewer than {CONFIRMED} seeds; bars are standard errors.\n\n'
    factors, found = helps(scores_of(scores, HELPS))
    if len(factors.rows) > 1:  # more than RepL as it is
        text += f'## What helps, one factor at a time\n\n{HELPS_WORDS} {found}\n\n{factors.markdown()}\n'
    text += f'## Table by table\n\n{FEW_WORDS}\n\n{reach(pareto)}\n\n'
    half = half_widths(pareto)
    for name, study in small_studies().items():
        table = None if name == HELPS else study_table(study, scores_of(scores, name), half)
        if table:
            command = f'`tools/study.py configs/studies/{name}.py --profile small`'
            text += f'### {study.title}\n\n{command}. Smaller: {study.smaller}.\n\n{table.markdown()}\n'
    return text.rstrip() + '\n'


def main(what: str, *paths: str) -> None:
    """Collect scores, predict costs, or write the page with its picture."""
    MMLogger.get_instance('mmengine', log_level='ERROR')
    if what == 'scores':
        work_dir, out = map(Path, paths)
        write_atomic(out, as_csv(collect(work_dir, read(out, Score) if out.exists() else [])).encode())
    elif what == 'costs':
        write_atomic(Path(paths[0]), as_csv(list(predict())).encode())
    else:
        from accuracy_picture import plot

        from repl_mm.analysis.plot import to_png

        scores, costs = read(Path(paths[0]), Score), read(Path(paths[1]), Cost)
        page, picture = Path(paths[2]), Path(paths[0]).with_suffix('.png')
        write_atomic(picture, to_png(plot(scores_of(scores, PARETO), costs, confirmed=CONFIRMED), dpi=110))
        write_atomic(page, as_page(scores, costs, f'results/{picture.name}').encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
