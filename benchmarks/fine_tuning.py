"""Whether a warm start trains on to a better score than a cold one, on the demos: CSV and Markdown.

    python benchmarks/fine_tuning.py WORK_DIR OUT.csv [NETWORK ...] [--seeds 5]

Each seed trains its own E2E network by the demo's recipe. From there, networks with sites train for two epochs (or
a number of iterations): from weights that were never trained, by the demo's learning rate; from the E2E checkpoint as
it loads, and from the same after ``tools/warm_start.py``, by a tenth of it. What is in WORK_DIR is not trained again.
"""

import csv
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from rich.progress import track

from repl_mm.analysis.runs import load_runs
from repl_mm.analysis.study_report import confidence
from repl_mm.analysis.tables import Table
from repl_mm.cli.study import launch

CONFIGS = Path(__file__).parents[1] / 'configs/demo'
POLICIES = ('interval', 'budget')
STARTS = ('never trained', 'as loaded', 'warm start')


@dataclass(frozen=True)
class Demo:
    """A demo and how it is trained on; ``length`` is in epochs, or in iterations where it is trained by those."""

    e2e: str
    repl: str
    lr: float
    metric: str
    length: int = 2
    unit: str = 'epochs'
    factor: int = 1

    def options(self, *, share: float, policy: str | None = None) -> list[str]:
        lr = share * self.lr
        found = [
            f'train_cfg.max_{"iters" if self.unit == "iterations" else "epochs"}={self.length}',
            f'param_scheduler.total_steps={self.length}',
            f'param_scheduler.eta_max={lr}',
            f'optim_wrapper.optimizer.lr={lr}',
        ]
        if self.unit == 'iterations':
            found.append(f'train_cfg.val_interval={self.length}')
        return found + ([f'model.backbone.repl.policy={policy}'] if policy else [])


DEMOS: Mapping[str, Demo] = {
    'ResNet-32': Demo('resnet32_digits', 'resnet32-repl_digits', 0.1, 'accuracy/top1'),
    'ViT-Tiny/8': Demo('vit-tiny_digits', 'vit-tiny-repl_digits', 5e-4, 'accuracy/top1'),
    'RetinaNet-R34': Demo(
        'retinanet_r34_fpn_digits', 'retinanet_r34-repl_fpn_digits', 2e-3, 'coco/bbox_mAP', 1, factor=100
    ),
    'DeepLabV3+-R34': Demo(
        'deeplabv3plus_r34-d8_digits', 'deeplabv3plus_r34-d8-repl_digits', 0.2, 'mIoU', 180, 'iterations'
    ),
}


def train(config: str, folder: Path, *options: str, load_from: Path) -> Path:
    """Train unless that is done already; the newest checkpoint."""
    last = folder / 'last_checkpoint'
    if not (folder / 'done').exists():
        folder.mkdir(parents=True, exist_ok=True)
        given = ['--cfg-options', f'load_from={load_from}', *options]
        call('train', CONFIGS / f'{config}.py', '--work-dir', folder, *given, log=folder.with_suffix('.log'))
        (folder / 'done').touch()
    return Path(last.read_text())


def call(tool: str, *args: object, log: Path) -> None:
    """Run a tool; SystemExit names the file with what it printed."""
    if launch(tool, *map(str, args), log=log):
        raise SystemExit(f'error: tools/{tool}.py failed, see {log}')


def scores_of(demo: Demo, work_dir: Path, seed: int) -> dict[tuple[str, str], float]:
    """The last score from each start with each policy, in points."""
    folder = work_dir / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    random = f'randomness.seed={seed}'
    start = folder / 'start.pth'
    if not start.exists():
        call(
            'seed_checkpoint', CONFIGS / f'{demo.e2e}.py', start, '--cfg-options', random, log=folder / 'start.log'
        )  # fmt: skip
    e2e = train(demo.e2e, folder / 'e2e', random, load_from=start)
    found = {}
    for policy in POLICIES:
        warm = folder / f'{policy}.pth'
        if not warm.exists():
            options = ('--cfg-options', f'model.backbone.repl.policy={policy}')
            call('warm_start', CONFIGS / f'{demo.repl}.py', e2e, warm, *options, log=folder / f'{policy}.log')
        for name, weights, share in zip(STARTS, (start, e2e, warm), (1, 0.1, 0.1), strict=True):
            out = folder / f'{policy}, {name}'.replace(', ', '-').replace(' ', '-')
            train(demo.repl, out, random, *demo.options(share=share, policy=policy), load_from=weights)
            (run,) = load_runs([out])
            found[policy, name] = demo.factor * run.metrics[demo.metric][-1][1]
    return found


def rows_of(name: str, scores: Sequence[Mapping[tuple[str, str], float]]) -> list[list[str]]:
    """A row for each policy: mean and deviation from each start, and what the warm start has over the other two."""
    rows = []
    for policy in POLICIES:
        by = {start: [seed[policy, start] for seed in scores] for start in STARTS}
        cells = [f'{mean(values):.2f} ({stdev(values):.2f})' for values in by.values()]
        for other in STARTS[:2]:
            differences = [warm - cold for warm, cold in zip(by['warm start'], by[other], strict=True)]
            low, high = confidence(differences)
            cells.append(f'{mean(differences):+.2f} ({low:+.2f} to {high:+.2f})')
        demo = DEMOS[name]
        length = f'{demo.length} {demo.unit if demo.length > 1 else demo.unit.removesuffix("s")}'
        rows.append([f'{name}, {policy}', length, str(len(scores)), *cells])
    return rows


def as_page(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The page, from the table alone."""
    return (
        '# Trained on from a warm start, and from a cold one\n\n'
        'By `benchmarks/fine_tuning.py`, on the demos (`make demo`). Mean score of the last validation over seeds '
        "(standard deviation), and the mean of the paired differences with its 95 % interval by Student's t. "
        'Each seed has its own E2E network; from its checkpoint a network with sites, `every=4`, trains on at a tenth '
        "of the demo's learning rate, as it loads or after `tools/warm_start.py`. *Never trained* starts from the "
        "weights that the E2E network started from, at the demo's full learning rate. "
        'All take the same number of steps.\n\n' + Table(header, 'lll' + 'r' * (len(header) - 3), rows).markdown()
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('networks', nargs='*', metavar='NETWORK', help=f'of {", ".join(DEMOS)}; all by default')
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    if unknown := set(args.networks) - set(DEMOS):
        parser.error(f'there is no {min(unknown)}: choose of {", ".join(DEMOS)}')
    header = ['network, sites', 'trained on for', 'seeds', *STARTS]
    header += [f'warm start over {start}' for start in STARTS[:2]]
    rows = []
    for name in args.networks or DEMOS:
        folder = args.work_dir.resolve() / name.replace('/', '-')
        scores = [scores_of(DEMOS[name], folder, seed) for seed in track(range(args.seeds), name)]
        rows += rows_of(name, scores)
        with args.out.open('w', newline='') as file:
            csv.writer(file, lineterminator='\n').writerows([header, *rows])
        args.out.with_suffix('.md').write_text(as_page(header, rows))


if __name__ == '__main__':
    main()
