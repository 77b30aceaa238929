"""Train what a table of a paper compares, several seeds of each row from the same weights, and write the table."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from repl_mm.cli.common import exit_on_user_error, launch

if TYPE_CHECKING:
    from mmengine.config import Config

    from repl_mm.analysis.runs import Run
    from repl_mm.analysis.studies import Row, Study

DIVERGED = 'diverged.txt'


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('study', type=Path, help='a file of configs/studies')
    parser.add_argument(
        '--profile', choices=['full', 'small'], default='full',
        help="the paper's recipe, or what the study names as small, for a machine without a GPU (default: full)",
    )  # fmt: skip
    parser.add_argument('--seeds', type=int, metavar='N', help="seeds of each row (default: the study's number)")
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='how many runs at once (default: 1)')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/studies'),
        help='where runs, which studies share, and reports go (default: work_dirs/studies)',
    )  # fmt: skip
    parser.add_argument('--estimate', action='store_true', help='say how long it would take, and train nothing')
    return parser


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed."""

    row: 'Row'
    seed: int
    folder: Path

    @property
    def start(self) -> Path:
        """The weights that it starts from, unless its config names others."""
        return self.folder.parent / f'start-{self.seed}.pth'

    @property
    def diverged(self) -> bool:
        return (self.folder / DIVERGED).exists()

    @property
    def finished(self) -> bool:
        from repl_mm.analysis.records import read_cost

        cost = self.folder / 'cost.json'
        return self.diverged or (cost.exists() and read_cost(cost)['complete'])


def run_jobs(jobs: Sequence[Job], *, at_once: int) -> None:
    """Train what is not finished yet; what an earlier call has begun goes on.

    Raises:
        ValueError: That of the first run that fails; what runs beside it ends before.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    todo, failed = [job for job in jobs if not job.finished], Event()
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor(at_once) as pool:
        task = progress.add_task('runs', total=len(jobs), completed=len(jobs) - len(todo))

        def run(job: Job) -> None:
            if failed.is_set():
                return
            progress.console.print(f'{job.row.name}, seed {job.seed}: {job.folder}', markup=False, highlight=False)
            try:
                train(job)
            except ValueError as error:
                failed.set()
                if at_once > 1:  # what runs beside it may take hours
                    progress.console.print(f'No further run begins: {error}', markup=False, highlight=False)
                raise
            progress.advance(task)

        futures = [pool.submit(run, job) for job in todo]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train(job: Job) -> None:
    """Train one run in a process of its own, from its start or from where it was stopped.

    Raises:
        ValueError: It ended with an error that is not a divergence, such as data that are missing.
    """
    from repl_mm.engine.files import write_atomic

    config = job.row.config.copy()
    config.randomness = dict(config.get('randomness') or {}, seed=job.seed)
    if not config.get('load_from'):
        if not job.start.exists():
            start = job.folder.parent / f'start-{job.seed}.py'
            write_atomic(start, job.row.start.pretty_text.encode())
            call(job, 'seed_checkpoint', start, job.start, '--cfg-options', f'randomness.seed={job.seed}')
        config.load_from = str(job.start)
    path = job.folder.parent / f'seed-{job.seed}.py'
    write_atomic(path, config.pretty_text.encode())
    call(job, 'train', path, '--work-dir', job.folder, *['--resume'] * any(job.folder.glob('*.pth')))


def call(job: Job, tool: str, *args: object) -> None:
    """Run a tool, with its output in a file beside the run."""
    from repl_mm.engine.errors import printable
    from repl_mm.engine.files import write_atomic

    log = job.folder.with_suffix('.log')
    code = launch(tool, *map(str, args), log=log)
    if code == 0:
        return
    lines = log.read_text(errors='replace').splitlines() or ['']
    said = next((line for line in reversed(lines) if line.startswith('error: ')), lines[-1])
    if code == 1 and ' not finite' in said:  # FiniteLossHook
        write_atomic(job.folder / DIVERGED, said.encode())
        return
    said = printable(said.removeprefix('error: '))
    raise ValueError(f'{job.row.name}, seed {job.seed}, ended with code {code}: {said} (all of it: {log})')


def estimate(jobs: Sequence[Job]) -> Iterator[tuple[str, int, float]]:
    """For each row that has runs to train: its name, how many, and the seconds of one, by a few of its steps."""
    todo: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.finished:
            todo.setdefault(job.row.key, []).append(job)
    for same in todo.values():
        yield same[0].row.name, len(same), time_run(same[0].row.config.copy())


def time_run(config: 'Config', *, warmup: int = 2, timed: int = 4) -> float:
    """Seconds of a training by the median of some of its steps; validations are not in it."""
    import statistics
    import tempfile
    import time

    from repl_mm.cli.config import load_config
    from repl_mm.cli.runner import build_runner

    with tempfile.TemporaryDirectory() as folder:
        # mmengine knows a run by this name and the second it begins in: those of one second would share a log.
        path = Path(folder, f'{Path(folder).name}.py')
        path.write_text(config.pretty_text)
        args = Namespace(config=str(path), cfg_options=None, launcher='none', local_rank=0, work_dir=folder)
        runner = build_runner(load_config(args, sections=('model', 'train_dataloader', 'train_cfg')), loops=['train'])
        runner.model.train()
        batches, times = iter(runner.train_dataloader), []
        for _ in range(warmup + timed):
            start = time.perf_counter()
            runner.model.train_step(next(batches), runner.optim_wrapper)
            times.append(time.perf_counter() - start)
        return statistics.median(times[warmup:]) * runner.max_iters


@exit_on_user_error(on_interrupt='the same command goes on')
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.logging import MMLogger

    from repl_mm.analysis.studies import load_study

    for name in ('seeds', 'jobs'):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f'--{name} is a number from 1, got {value}')
    study = load_study(args.study, args.profile)
    seeds = range(args.seeds or study.seeds)
    runs = args.work_dir / 'runs'
    jobs = [Job(row, seed, runs / row.key / f'seed-{seed}') for seed in seeds for row in study.rows]
    MMLogger.get_current_instance().setLevel('ERROR')
    if args.estimate:
        show_estimate(jobs, at_once=args.jobs)
        return
    run_jobs(jobs, at_once=args.jobs)
    made_by = f'tools/study.py {args.study} --profile {args.profile} --seeds {len(seeds)}'
    report(study, jobs, args.work_dir / f'{args.study.stem}-{args.profile}', made_by=made_by, at_once=args.jobs)


def show_estimate(jobs: Sequence[Job], *, at_once: int) -> None:
    """Print how long the study would take."""
    from datetime import timedelta

    from repl_mm.analysis.tables import Table

    rows, total = [], 0.0
    for name, number, seconds in estimate(jobs):
        rows.append([name, str(number), str(timedelta(seconds=round(seconds)))])
        total += number * seconds
    Table(['row', 'runs to train', 'time of one'], 'lrr', rows).print()
    print(f'{timedelta(seconds=round(total / at_once))} in all, training alone, with {at_once} at once.')


def report(study: 'Study', jobs: Sequence[Job], out: Path, *, made_by: str, at_once: int) -> None:
    """Write what the runs found, as a page, records and a picture."""
    from repl_mm.analysis.study_report import as_csv, as_json, as_markdown, as_png, as_table, find
    from repl_mm.engine.errors import printable
    from repl_mm.engine.files import write_atomic

    runs: dict[str, dict[int, Run]] = {row.name: {} for row in study.rows}
    diverged = dict.fromkeys(runs, 0)
    for job in jobs:
        if job.diverged:
            diverged[job.row.name] += 1
        else:
            runs[job.row.name][job.seed] = read_run(job)
    findings = find(study, runs, diverged)
    text = as_markdown(study, findings, made_by=made_by, conditions=conditions(runs, at_once))
    files = {'report.md': text, 'report.csv': as_csv(findings), 'report.json': as_json(study, findings)}
    for name, content in files.items():
        write_atomic(out / name, content.encode(errors='backslashreplace'))
    write_atomic(out / 'report.png', as_png(study, findings))
    as_table(study, findings).print()
    print(printable(f'Wrote {", ".join(files)}, report.png to {out}'))


def read_run(job: Job) -> 'Run':
    from repl_mm.analysis.runs import load_runs

    [run] = load_runs([job.folder])
    return run


def conditions(runs: 'dict[str, dict[int, Run]]', at_once: int) -> str:
    """Hardware, versions and date of the first run, in one line."""
    from repl_mm.analysis.compare import Comparison
    from repl_mm.analysis.compare import conditions as describe

    found = tuple(run for seeds in runs.values() for run in seeds.values())
    note = f'; {at_once} runs at once, so times say little' if at_once > 1 else ''
    return f'Measured on {describe(Comparison(found, (), ()))}{note}.' if found else ''
