"""Other ways to save a training step's time and memory, predicted beside RepL: docs/rivals.md and its CSV.

python benchmarks/rivals.py predict OUT.csv          # about ten minutes on one core; rows that OUT.csv has stay
python benchmarks/rivals.py page OUT.csv PAGE.md
"""

import csv
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.progress import track

from repl_mm.analysis.tables import Table, as_csv
from repl_mm.backbones.configs import backbone_class, e2e_twin, with_repl
from repl_mm.benchmark.devices import find_device
from repl_mm.benchmark.partition import predict_budget
from repl_mm.benchmark.predict import PredictedStep, conditions, predict_step
from repl_mm.benchmark.timing import format_ratio
from repl_mm.benchmark.variants import PUBLISHED as PUBLISHED_SAVINGS
from repl_mm.benchmark.variants import build_variants
from repl_mm.cli.config import load_scoped_config
from repl_mm.engine.errors import HOST_ERRORS, summarise
from repl_mm.engine.files import write_atomic

CONFIGS = Path(__file__).parents[1] / 'configs'
DEVICE = 'a100'
BUDGET = 0.5
INTERVAL = 'RepL, interval'


@dataclass(frozen=True)
class Case:
    """A network at its published size.

    Attributes:
        shallower: What is left of it without the blocks that ``interval`` replaces.
        frozen: Option of the backbone that freezes about a quarter of it.
        frozen_name: What that freezes.
        published: Its key among the published savings.
    """

    network: str
    config: str
    batch: int
    size: tuple[int, int]
    shallower: str
    frozen: int
    frozen_name: str
    published: str


CASES = [
    Case(
        'R32, CIFAR-10', 'small_images/resnet32-repl_1xb1024-250e_cifar10.py', 1024, (32, 32),
        'ResNet-26', 1, 'stem and stage 1 of 3',
        'resnet32',
    ),
    Case(
        'ViT-T/8, CIFAR-10', 'small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py', 512, (32, 32),
        'ViT of 10 blocks', 3, 'patches and blocks 1 to 3 of 12',
        'vit-tiny-p8',
    ),
    Case(
        'R101, ImageNet', 'classification/resnet101-repl_4xb128-90e_in1k.py', 128, (224, 224),
        'ResNet-86', 1, 'stem and stage 1 of 4',
        'resnet101',
    ),
    Case(
        'ViT-S/16, ImageNet', 'classification/vit-small-p16-repl_4xb256-90e_in1k.py', 256, (224, 224),
        'ViT of 10 blocks', 3, 'patches and blocks 1 to 3 of 12',
        'vit-small-p16',
    ),
    Case(
        'RetinaNet R50, COCO', 'detection/retinanet_r50-repl_fpn_4xb2-100e_coco.py', 2, (800, 1344),
        'RetinaNet of a ResNet-47', 2, 'stem and stages 1 and 2 of 4, one more than E2E',
        'retinanet_r50',
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Rival:
    """A row of the CSV: a way to train a network, over E2E; the first row of a network is E2E."""

    network: str
    way: str
    batch: int
    size: str
    step_ms: float | None = None
    memory_mib: float | None = None
    time: float | None = None
    memory: float | None = None
    left_out: str = ''
    note: str = ''


@dataclass(frozen=True)
class Published:
    """What others publish of their own method, against their own baseline."""

    method: str
    what: str
    source: str


PUBLISHED = [
    Published('InfoPro', 'less than 40 % of the memory of E2E', 'arXiv 2101.10832'),
    Published(
        'PatchDropout', 'at least 50 % less memory and operations on ImageNet',
        'arXiv 2208.07220',
    ),
    Published(
        'Rev-ViT', 'up to 15.5 times less memory; up to 2.3 times the throughput for deeper models',
        'arXiv 2302.04869',
    ),
    Published(
        'InPlace-ABN', 'up to 50 % less memory, for 0.8 to 2 % more time',
        'arXiv 1712.02616',
    ),
    Published(
        'EfficientTrain++', '1.5 to 3.0 times less training time on ImageNet',
        'arXiv 2405.08768',
    ),
    Published(
        'ShaResNet', '39 % fewer parameters of a ResNet-152, for less than 0.2 % accuracy on ImageNet',
        'arXiv 1702.08782',
    ),
    Published(
        'MiniViT', 'Swin-B of 48 % less size; DeiT-B of 9.7 times fewer parameters',
        'arXiv 2204.07154',
    ),
    Published(
        'Learn&Drop',
        'training time more than halved; 17.83 % (VGG-11) to 83.74 % (ResNet-152) fewer operations forward',
        'arXiv 2604.23403',
    ),
]  # fmt: skip


@dataclass(frozen=True)
class Way:
    """A way to train a network.

    Attributes:
        budget: Share of the activations that its compiled backbone may keep; without one nothing is compiled.
    """

    name: str
    config: Config
    budget: float | None = None

    def predict(self, **options: Any) -> PredictedStep:
        """Its step; options as of :func:`repl_mm.benchmark.predict.predict_step`."""
        if self.budget is None:
            return predict_step(self.config, **options)
        return predict_budget(self.config, budget=self.budget, **options)


def ways(case: Case) -> Iterator[Way]:
    """The ways to train a network, E2E first."""
    args = Namespace(config=str(CONFIGS / case.config), cfg_options=None, launcher='none', local_rank=0, work_dir=None)
    config = load_scoped_config(args, sections=('model', 'optim_wrapper'))
    skips = bool(backbone_class(config).depth_option)
    names = ['E2E', INTERVAL, 'RepL, budget', 'drop, interval', 'AC', f'{INTERVAL} + AC']
    variants = build_variants(config, names + (['SD', f'{INTERVAL} + SD'] if skips else []))
    titles = {'drop, interval': f'shallower: {case.shallower}', 'AC': 'activation checkpointing (AC)'}
    titles |= {'SD': 'stochastic depth (SD), 0.2'}
    for name, variant in variants.items():
        yield Way(titles.get(name, name), variant)
    for name in ('E2E', INTERVAL):
        title = f'frozen: {case.frozen_name}' if name == 'E2E' else f'{name} + frozen'
        yield Way(title, with_options(variants[name], frozen_stages=case.frozen))
    for name in ('E2E', INTERVAL):
        title = f'compile, memory budget {BUDGET:g}' if name == 'E2E' else f'{name} + memory budget {BUDGET:g}'
        yield Way(title, variants[name], budget=BUDGET)
    if 'ViT' in case.network:
        yield Way('Skip-Attention', with_options(variants['E2E'], type='repl_mm.SkipAttentionViT'))


def with_options(config: Config, **options: Any) -> Config:
    """A copy of a config with other options of its backbone."""
    config = with_repl(config, **config.model.backbone.repl) if config.model.backbone.get('repl') else e2e_twin(config)
    config.model.backbone.update(options)
    if config.model.backbone.repl is None:
        del config.model.backbone['repl']  # which not every network knows
    return config


def predict_case(case: Case, known: dict[tuple[str, str], Rival]) -> Iterator[Rival]:
    """The rows of a network; those that are known stay."""
    reference = None
    for way in ways(case):
        row = known.get((case.network, way.name))
        if row is None:
            head = (case.network, way.name, case.batch, f'{case.size[0]} x {case.size[1]}')
            try:
                found = way.predict(device=find_device(DEVICE), batch=case.batch, size=case.size)
            except HOST_ERRORS as error:
                row = Rival(*head, note=summarise(error))
            else:
                figures = 1e3 * found.seconds, found.memory['total']
                own = reference or figures
                ratios = (mine / its for mine, its in zip(figures, own, strict=True))
                row = Rival(*head, *figures, *ratios, left_out=found.left_out)
        reference = reference or (row.step_ms, row.memory_mib)
        yield row


def read(path: Path) -> list[Rival]:
    """The rows of the CSV."""
    kinds = {f.name: f.type for f in fields(Rival)}
    return [
        Rival(**{
            key: value if kinds[key] is str else int(value) if kinds[key] is int else float(value) if value else None
            for key, value in record.items()
        })
        for record in csv.DictReader(path.open())
    ]  # fmt: skip


INTRODUCTION = f"""# Other ways to save, beside RepL

Written by `benchmarks/rivals.py` from [rivals.csv](results/rivals.csv): a whole training step of each at the published
batch of one GPU and the published size, [predicted for an A100](saving.md#on-a-gpu-that-you-do-not-have), over
end-to-end training (E2E). Nothing here was measured on a GPU, and no accuracy is in it;
[measured on a CPU, ResNet-32 and ViT-T/8](results/rivals_measured_cpu_2026-12-01.md) have a page beside it.
[Every published row of RepL](evidence.md) has a page of its own.

- **The opponent to beat is the shallower network**: E2E training of what is left without the blocks that `interval`
  replaces. It costs less than RepL in every row, so RepL is worth its cost only where it scores more.
- Stochastic depth (SD) skips more with depth, 0.2 at the last block. Time is the mean over its draws, memory that of a
  step that skips nothing, as the peak of a run is. In ViTs it is the host's drop path, which computes what it drops.
- `torch.compile` with `activation_memory_budget = {BUDGET:g}`: torch's partitioner says what of the backbone is kept
  for the backward pass and what is computed again. Its time is that of operators one by one: fused ones take less.
- Frozen parts train no more, and still run forward. Skip-Attention's network has no sites, so it is not combined; its
  depthwise convolutions reach less of a device than is predicted
  ([measured](results/rivals_measured_cpu_2026-12-01.md)).

"""


def as_page(rows: list[Rival]) -> str:
    """The page of the rows."""
    text = INTRODUCTION
    for network in dict.fromkeys(row.network for row in rows):
        mine = [row for row in rows if row.network == network]
        cells = [
            [
                row.way,
                *(map(format_ratio, (row.time, row.memory)) if row.time else (row.note, '')),
                *('' if value is None else f'{value:,.0f}' for value in (row.step_ms, row.memory_mib)),
            ]
            for row in mine
        ]
        head = ['way', 'time / E2E', 'memory / E2E', 'step (ms)', 'memory (MiB)']
        table = Table(head, 'lrrrr', cells).markdown()
        text += f'## {network}, {mine[0].batch} of {mine[0].size}\n\n{table}\n{opponent(mine)}\n\n'
    published = Table(
        ['method', 'published', 'source'], 'lll', [[each.method, each.what, each.source] for each in PUBLISHED]
    )
    text += (
        '## What others publish of theirs\n\n'
        'Each against its own baseline, on its own networks and machines, as the abstracts state it; not predicted and '
        f'not measured here.\n\n{published.markdown()}\n'
    )
    return f'{text}{conditions(DEVICE, ["fp32"], " ".join(row.left_out for row in rows))}\n'


def opponent(rows: list[Rival]) -> str:
    """In a sentence, what RepL costs above the shallower network."""
    by = {row.way: row for row in rows}
    shallower = next(row for row in rows if row.way.startswith('shallower: '))
    repl = by[INTERVAL]
    name = shallower.way.removeprefix('shallower: ')
    return (
        f'Against {name}, RepL (`interval`) takes {100 * (repl.time / shallower.time - 1):.1f} % more time and '
        f'{100 * (repl.memory / shallower.memory - 1):.1f} % more memory.'
    )


@dataclass(frozen=True)
class Score:
    """Rows of a study in docs/results/accuracy.csv, and what is said of their means and number of seeds."""

    study: str
    rows: tuple[str, ...]
    text: str


RESULTS = CONFIGS.parent / 'docs/results'
CLASSIFIED = '{:.2f} -> {:.2f} % top-1 on Fashion-MNIST, sites by interval; shallower {:.2f}; {} seeds'
SCORES = {
    network: Score(
        'accuracy_over_cost', tuple(f'{name}: {row}' for row in ('E2E', 'RepL, K = 4', 'dropped, K = 4')), CLASSIFIED
    )
    for network, name in {'R32, CIFAR-10': 'ResNet-32', 'ViT-T/8, CIFAR-10': 'ViT-T/8'}.items()
}
SCORES['RetinaNet R50, COCO'] = Score(
    '2026_table_8',
    ('RetinaNet, ResNet-50: E2E', 'RetinaNet, ResNet-50: RepL'),
    '{:.1f} -> {:.1f} AP on digit scenes, with R34, sites by budget; {} seeds',
)
BEGIN, END = '<!-- written by benchmarks/rivals.py -->', '<!-- to here -->'


def readme_table(rows: list[Rival]) -> str:
    """A few ways for each network, with the published saving and the score beside them."""
    shown = {
        INTERVAL: 'RepL, interval',
        'RepL, budget': 'RepL, budget',
        'shallower': 'shallower: the same blocks dropped',
    }
    shown |= {
        'activation checkpointing (AC)': 'activation checkpointing',
        'compile': f'compile, memory budget {BUDGET:g}',
    }
    cells = []
    for case in CASES:
        mine = [row for row in rows if row.network == case.network]
        found = [next(row for row in mine if row.way.startswith(way)) for way in shown]
        memory, time = PUBLISHED_SAVINGS[case.published]
        cells.append([
            f'{case.network}, {case.batch}', *(f'{row.time:.2f}, {row.memory:.2f}' for row in found),
            f'{time:.2f}, {memory:.2f}', score(case.network),
        ])  # fmt: skip
    head = ['network, batch', *shown.values(), 'published RepL', 'accuracy measured, E2E -> RepL']
    return Table(head, 'l' + (len(shown) + 1) * 'r' + 'l', cells).markdown()


def score(network: str) -> str:
    """What was measured of a network's E2E, RepL and, of classifiers, shallower network, and on what."""
    if network not in SCORES:
        return 'not measured'
    each, found = SCORES[network], {}
    with (RESULTS / 'accuracy.csv').open(newline='') as file:
        for line in csv.DictReader(file):
            if line['study'] == each.study:
                found.setdefault(line['row'], []).append(float(line['score']))
    scores = [found[row] for row in each.rows]
    return each.text.format(*map(mean, scores), min(map(len, scores)))


def with_table(text: str, table: str) -> str:
    """A page with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}\n\n{table}\n{END}{rest.split(END)[1]}'


def main(what: str, out: str, page: str = '') -> None:
    """Predict the rows, or write the page."""
    path = Path(out)
    if what == 'page':
        write_atomic(Path(page), as_page(read(path)).encode())
        return
    if what == 'readme':
        text = Path(page).read_text(encoding='utf-8')
        write_atomic(Path(page), with_table(text, readme_table(read(path))).encode())
        return
    MMLogger.get_instance('mmengine', log_level='ERROR')
    known = {(row.network, row.way): row for row in (read(path) if path.exists() else []) if row.time}
    rows = []
    for case in track(CASES, 'Predicting: '):
        for row in predict_case(case, known):
            rows.append(row)
            write_atomic(path, as_csv(rows).encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
