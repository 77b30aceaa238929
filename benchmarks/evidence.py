"""Every published saving beside what is predicted for it at its published size: docs/evidence.md and its CSV.

    python benchmarks/evidence.py predict OUT.csv          # about half an hour on one core; rows that OUT.csv has stay
    python benchmarks/evidence.py page OUT.csv PAGE.md

For each row: E2E, RepL as the row has it, the same blocks dropped, and other choices of sites until one reaches both
published ratios.
"""

import csv
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.progress import track

from repl_mm.analysis.tables import Table, as_csv
from repl_mm.backbones.configs import backbone_class, e2e_twin, with_repl
from repl_mm.benchmark.devices import find_device
from repl_mm.benchmark.predict import PredictedStep, conditions, predict_step
from repl_mm.benchmark.timing import format_ratio
from repl_mm.benchmark.variants import RECIPES, STOCHASTIC_DEPTH
from repl_mm.cli.config import SCOPES, load_scoped_config
from repl_mm.engine.errors import HOST_ERRORS, summarise
from repl_mm.engine.files import write_atomic

CONFIGS = Path(__file__).parents[1] / 'configs'
DEVICE = 'a100'
ROUNDING = 0.005  # published ratios have about two digits
LESS = dict(mlp_fusion=False)  # of a ViT's site
# Other choices of sites, in the order in which they are tried.
CHOICES = {
    'budget': RECIPES['budget'],
    'budget, no MLP': RECIPES['budget'] | LESS,
    'half': RECIPES['half'],
    'half, no MLP': RECIPES['half'] | LESS,
    'half, lean': RECIPES['half, lean'],
}


@dataclass(frozen=True)
class Claim:
    """A published row: RepL, or what the row has in its place, over E2E."""

    table: str
    data: str
    network: str
    what: str
    config: str
    batch: int
    size: tuple[int, ...]
    time: float
    memory: float
    repl: Mapping[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    stochastic_depth: bool = False
    backend: str = 'fp32'


@dataclass(frozen=True)
class Evidence:
    """A row of the CSV; ratios over E2E, as published and as predicted."""

    table: str
    data: str
    network: str
    what: str
    batch: int
    size: str
    published_time: float
    published_memory: float
    e2e_ms: float | None = None
    e2e_mib: float | None = None
    time: float | None = None
    memory: float | None = None
    drop_time: float | None = None
    drop_memory: float | None = None
    choice: str = ''
    choice_time: float | None = None
    choice_memory: float | None = None
    left_out: str = ''
    note: str = ''


SMALL = {'R32': 'resnet32{}_1xb1024-250e', 'R110': 'resnet110{}_1xb1024-250e', 'ViT-T/8': 'vit-tiny-p8{}_1xb512-250e'}
IMAGENET = {
    **{f'R{depth}': f'classification/resnet{depth}{{}}_4xb128-90e_in1k.py' for depth in (34, 101, 152)},
    **{
        f'ViT-{n[0].upper()}/16': f'classification/vit-{n}-p16{{}}_4xb256-90e_in1k.py'
        for n in ('tiny', 'small', 'base')
    },
}
DENSE = {
    **{f'RetinaNet R{d}': f'detection/retinanet_r{d}{{}}_fpn_4xb2-100e_coco.py' for d in (50, 101)},
    **{
        f'{name} R{d}': f'segmentation/{kind}_r{d}-d8{{}}_1xb16-30k_cityscapes-768x768.py'
        for d in (50, 101)
        for name, kind in (('DeepLabV3', 'deeplabv3'), ('DeepLabV3+', 'deeplabv3plus'))
    },
}
DROP = dict(form='drop')


def small(table: str, network: str, what: str, time: float | None, memory: float | None, **more: Any) -> Claim:
    """A row on images of 32 or 96 pixels."""
    data = more.pop('data', 'CIFAR-10')
    config = f'small_images/{SMALL[network]}_{data.lower().replace("-", "")}.py'
    batch, side = (512 if 'ViT' in network else 1024), (96 if data == 'STL-10' else 32)
    return Claim(table, data, network, what, config, batch, (side, side), time, memory, **more)


def imagenet(table: str, network: str, what: str, time: float | None, memory: float | None, **more: Any) -> Claim:
    """A row on images of 224 pixels, at the batch of one GPU."""
    batch = more.pop('batch', 256 if 'ViT' in network else 128)
    data = more.pop('data', 'ImageNet')
    return Claim(table, data, network, what, IMAGENET[network], batch, (224, 224), time, memory, **more)


def dense(table: str, network: str, time: float, memory: float) -> Claim:
    """A detector at mmdet's largest size, two images a GPU, or a segmenter at the published crop."""
    batch, size = (2, (800, 1344)) if 'Retina' in network else (16, (768, 768))
    data = 'COCO' if 'Retina' in network else 'CityScapes'
    return Claim(table, data, network, 'RepL', DENSE[network], batch, size, time, memory)


def of_2024(table: str, data: str, network: str, time: float, memory: float) -> Claim:
    """A row of the 2024 paper, with its form and its recipe."""
    repl = dict(policy='interval', every=4, form='blend')
    if table == '2024, 2':
        batch, side = (32 if network in ('R101', 'R152') else 128), 224
        name = {'R34': 'resnet34', 'R101': 'resnet101', 'R152': 'resnet152', 'ViT-B/16': 'vit-base-p16'}[network]
        config = f'classification/{name}_adamw_1xb{batch}-100e_in1k.py'
    else:
        batch, side = 1024, (96 if data == 'STL-10' else 32)
        name = {'R32': 'resnet32', 'R110': 'resnet110', 'ViT-B/8': 'vit-base-p8', 'ViT-L/8': 'vit-large-p8'}[network]
        config = f'small_images/{name}_adamw_1xb1024-250e_{data.lower().replace("-", "")}.py'
    return Claim(table, data, network, 'RepL', config, batch, (side, side), time, memory, repl)


ADAPTIVE = dict(policy='adaptive', start='interval', every=4)
AC, SD = dict(checkpointing=True), dict(stochastic_depth=True)
NOTHING = dict(policy=None)  # is replaced
LANGUAGE = 'language/transformer-lm-12l{}_1xb64-20e_wikitext2.py'
# By arXiv 2605.19533, and 2410.01239 for 2024: time and memory of the row over those of E2E.
CLAIMS = [
    small('I', 'R32', 'RepL', 8.20 / 10.44, 2.69 / 3.38),
    small('I', 'R110', 'RepL', 20.93 / 26.19, 7.62 / 9.31),
    small('I', 'ViT-T/8', 'RepL', 5.65 / 6.81, 2.08 / 2.81),
    small('I', 'R32', 'RepL', 0.860, 2.69 / 3.38, data='SVHN'),
    small('I', 'R110', 'RepL', 0.805, 7.62 / 9.31, data='SVHN'),
    small('I', 'ViT-T/8', 'RepL', 0.802, 2.08 / 2.81, data='SVHN'),
    small('I', 'R32', 'RepL', 0.808, 2.69 / 3.38, data='STL-10'),
    small('I', 'R110', 'RepL', 0.762, 7.62 / 9.31, data='STL-10'),
    small('I', 'ViT-T/8', 'RepL', 0.822, 2.08 / 2.81, data='STL-10'),
    imagenet('II', 'R34', 'RepL', 0.886, 0.875),
    imagenet('II', 'R101', 'RepL', 0.856, 0.862),
    imagenet('II', 'R152', 'RepL', 0.858, 0.877),
    imagenet('II', 'ViT-T/16', 'RepL', 0.811, 0.788),
    imagenet('II', 'ViT-S/16', 'RepL', 0.773, 0.771),
    imagenet('II', 'ViT-B/16', 'RepL', 0.749, 0.713),
    small('III', 'R110', 'drop', 19.54 / 26.19, 7.07 / 9.31, repl=DROP),
    small('III', 'ViT-T/8', 'drop', 5.44 / 6.81, 2.04 / 2.81, repl=DROP),
    imagenet('IV', 'R34', 'drop', 0.886 * 392 / 411, 0.875 * 7.75 / 8.06, repl=DROP),
    imagenet('IV', 'ViT-T/16', 'drop', 0.811 * 288 / 290, 0.788 * 9.49 / 9.59, repl=DROP),
    small('V', 'R110', 'K = 2', 18.05 / 26.19, 6.25 / 9.31, repl=dict(every=2)),
    small('V', 'R110', 'K = 6', 23.94 / 26.19, 8.63 / 9.31, repl=dict(every=6)),
    small('V', 'ViT-T/8', 'K = 2', 5.19 / 6.81, 1.70 / 2.81, repl=dict(every=2)),
    small('V', 'ViT-T/8', 'K = 6', 6.39 / 6.81, 2.39 / 2.81, repl=dict(every=6)),
    small('VI', 'ViT-T/8', 'attention', 5.59 / 6.81, 2.05 / 2.81, repl=dict(sources='attention')),
    small('VI', 'ViT-T/8', 'MLP', 5.53 / 6.81, 2.07 / 2.81, repl=dict(sources='mlp')),
    small('VI', 'ViT-T/8', 'no weights', 5.20 / 6.81, 2.02 / 2.81, repl=dict(sources='none')),
    dense('VIII', 'RetinaNet R50', 0.841, 0.850),
    dense('VIII', 'RetinaNet R101', 0.842, 0.812),
    small('IX', 'R32', 'RepL', 8.20 / 10.44, 2.69 / 3.38),
    small('IX', 'R32', 'SD', 10.05 / 10.44, 3.31 / 3.38, repl=NOTHING, **SD),
    small('IX', 'R32', 'RepL + SD', 9.36 / 10.44, 2.67 / 3.38, **SD),
    small('IX', 'R32', 'AC', 16.44 / 10.44, 1.77 / 3.38, repl=NOTHING, **AC),
    small('IX', 'R32', 'RepL + AC', 14.54 / 10.44, 1.64 / 3.38, **AC),
    imagenet('IX', 'R101', 'RepL', 616 / 720, 18.01 / 20.95),
    imagenet('IX', 'R101', 'SD', 652 / 720, 19.39 / 20.95, repl=NOTHING, **SD),
    imagenet('IX', 'R101', 'RepL + SD', 551 / 720, 17.12 / 20.95, **SD),
    imagenet('IX', 'R101', 'AC', 1012 / 720, 14.47 / 20.95, repl=NOTHING, **AC),
    imagenet('IX', 'R101', 'RepL + AC', 819 / 720, 12.93 / 20.95, **AC),
    Claim(
        *('X', 'WikiText-2', 'Transformer, 12 layers', 'RepL', LANGUAGE, 64, (128,)),
        *(17.7 / 20.8, 9.61 / 10.92),
        backend='amp',
    ),
    imagenet('XIII', 'ViT-S/16', 'RepL', 0.776, 20.14 / 25.56, data='CIFAR-10', batch=512),
    imagenet('XIII', 'ViT-S/16', 'RepL', 0.785, 20.14 / 25.56, data='SVHN', batch=512),
    imagenet('XIII', 'ViT-S/16', 'RepL', 0.788, 20.14 / 25.56, data='STL-10', batch=512),
    dense('XIV', 'DeepLabV3 R50', 0.850, 0.849),
    dense('XIV', 'DeepLabV3+ R50', 0.841, 0.846),
    dense('XIV', 'DeepLabV3 R101', 0.863, 0.838),
    dense('XIV', 'DeepLabV3+ R101', 0.851, 0.840),
    small('XV', 'R32', 'adaptive', 9.12 / 10.44, 3.17 / 3.38, repl=ADAPTIVE),
    small('XV', 'ViT-T/8', 'adaptive', 6.17 / 6.81, 2.35 / 2.81, repl=ADAPTIVE),
    of_2024('2024, 1', 'CIFAR-10', 'ViT-B/8', 7.36 / 7.37, 9.94 / 10.03),
    of_2024('2024, 1', 'CIFAR-10', 'ViT-L/8', 16.58 / 16.68, 20.29 / 20.46),
    of_2024('2024, 1', 'CIFAR-10', 'R32', 3.46 / 3.63, 5.21 / 5.29),
    of_2024('2024, 1', 'CIFAR-10', 'R110', 9.62 / 10.68, 11.01 / 11.05),
    of_2024('2024, 1', 'SVHN', 'ViT-B/8', 10.96 / 11.02, 9.94 / 10.03),
    of_2024('2024, 1', 'SVHN', 'ViT-L/8', 25.19 / 25.41, 20.29 / 20.46),
    of_2024('2024, 1', 'SVHN', 'R32', 5.56 / 5.63, 5.21 / 5.29),
    of_2024('2024, 1', 'SVHN', 'R110', 14.80 / 15.96, 11.01 / 11.05),
    of_2024('2024, 1', 'STL-10', 'ViT-B/8', 1.49 / 1.50, 9.94 / 10.03),
    of_2024('2024, 1', 'STL-10', 'ViT-L/8', 2.90 / 2.94, 20.29 / 20.46),
    of_2024('2024, 1', 'STL-10', 'R32', 1.06 / 1.09, 5.21 / 5.29),
    of_2024('2024, 1', 'STL-10', 'R110', 1.81 / 2.24, 11.01 / 11.05),
    of_2024('2024, 2', 'ImageNet', 'ViT-B/16', 4578 / 4673, 18.63 / 19.03),
    of_2024('2024, 2', 'ImageNet', 'R34', 3391 / 3493, 17.03 / 17.46),
    of_2024('2024, 2', 'ImageNet', 'R101', 10029 / 10268, 16.38 / 17.03),
    of_2024('2024, 2', 'ImageNet', 'R152', 14159 / 14478, 22.90 / 23.17),
]
# Milliseconds of an E2E step by the published epochs of Table II.
PUBLISHED_STEPS = {'R34': 185, 'R101': 288, 'R152': 295, 'ViT-T/16': 286, 'ViT-S/16': 638, 'ViT-B/16': 2052}


class Predictor:
    """Predicts each step once."""

    def __init__(self) -> None:
        self.known: dict[str, PredictedStep] = {}

    def __call__(self, config: Config, claim: Claim) -> PredictedStep:
        settings = dict(model=config.model, optim=config.optim_wrapper, ac=config.get('activation_checkpointing'))
        step = dict(batch=claim.batch, size=claim.size, backend=claim.backend)
        key = repr(sorted((settings | step).items()))
        if key not in self.known:
            self.known[key] = predict_step(config, find_device(DEVICE), **step)
        return self.known[key]


def predict_claim(claim: Claim, predict: Predictor) -> Evidence:
    """What is predicted of a published row, or why it is not."""
    row = Evidence(
        claim.table, claim.data, claim.network, claim.what, claim.batch, ' x '.join(map(str, claim.size)),
        claim.time, claim.memory,
    )  # fmt: skip
    try:
        return replace(row, **_figures(claim, predict))
    except (*HOST_ERRORS, AttributeError) as error:
        return replace(row, note=summarise(error))


def _figures(claim: Claim, predict: Predictor) -> dict[str, Any]:
    path = CONFIGS / claim.config.format('-repl')
    args = Namespace(config=str(path), cfg_options=None, launcher='none', local_rank=0, work_dir=None)
    config = load_scoped_config(args, sections=('model', 'optim_wrapper'), scopes=SCOPES)
    e2e = predict(e2e_twin(config), claim)

    def ratios(variant: Config) -> tuple[float, float]:
        variant.activation_checkpointing = claim.checkpointing
        if claim.stochastic_depth:
            variant.model.backbone[backbone_class(variant).depth_option] = STOCHASTIC_DEPTH
        step = predict(variant, claim)
        return step.seconds / e2e.seconds, step.memory['total'] / e2e.memory['total']

    found = dict(e2e_ms=1e3 * e2e.seconds, e2e_mib=e2e.memory['total'], left_out=e2e.left_out)
    if claim.repl == NOTHING:
        time, memory = ratios(e2e_twin(config))
        return found | dict(time=time, memory=memory)
    if 'sources' in claim.repl:  # which say what ``mlp_fusion`` said
        del config.model.backbone.repl['mlp_fusion']
    own = (config.model.backbone.get('repl') or {}) | claim.repl
    time, memory = ratios(with_repl(config, **own))
    # What is adaptive has the sites of its first epoch.
    sites = dict(policy=own.get('start', own['policy']), every=own['every'])
    dropped = ratios(with_repl(config, **sites, form='drop'))
    found |= dict(time=time, memory=memory, drop_time=dropped[0], drop_memory=dropped[1])
    if _reaches((time, memory), claim.time, claim.memory) or claim.what != 'RepL':
        return found
    return found | _other_choice(claim, own, lambda choice: ratios(with_repl(with_repl(config, **own), **choice)))


def _other_choice(
    claim: Claim, own: Mapping[str, Any], ratios: Callable[[Mapping[str, Any]], tuple[float, float]]
) -> dict[str, Any]:
    """The first choice of sites that reaches both published ratios, or the nearest."""
    tried = {}
    for name, choice in CHOICES.items():
        if ('mlp_fusion' in choice and not own.get('mlp_fusion')) or ('lean' in name and own.get('form') == 'blend'):
            continue
        tried[name] = ratios(choice)
        if _reaches(tried[name], claim.time, claim.memory):
            break
    else:
        name = min(tried, key=lambda name: max(tried[name][0] / claim.time, tried[name][1] / claim.memory))
    return dict(choice=name, choice_time=tried[name][0], choice_memory=tried[name][1])


def _reaches(ratios: tuple[float, float], time: float, memory: float) -> bool:
    return ratios[0] <= time + ROUNDING and ratios[1] <= memory + ROUNDING


def verdict(row: Evidence) -> str:
    """One sentence: whether the published saving can be reached, and how."""
    if row.time is None:
        return f'Not predicted: {row.note}.'
    published = row.published_time, row.published_memory
    if _reaches((row.time, row.memory), *published):
        return 'Reached as it is written.'
    missed = [
        what for what, own, theirs in zip(('time', 'memory'), (row.time, row.memory), published, strict=True)
        if own > theirs + ROUNDING
    ]  # fmt: skip
    missed = ' and '.join(missed)
    if row.what == 'drop' or row.drop_time is None:
        return f'Not reached in {missed}.'
    bound = _reaches((row.drop_time, row.drop_memory), *published)
    why = 'only dropping its blocks would' if bound else 'even dropping its blocks would not'
    if not row.choice:
        return f'Not reached in {missed}: {why}.'
    chosen = _reaches((row.choice_time, row.choice_memory), *published)
    by = (
        f'another choice of sites does: {row.choice}'
        if chosen
        else f'no choice that was tried does; nearest {row.choice}'
    )
    return f'Not by the rule ({missed}): {why}; {by}.'


def summary(rows: list[Evidence]) -> str:
    """How many rows are reached, and how."""
    words = [verdict(row) for row in rows]
    reached = sum(word.startswith('Reached') for word in words)
    chosen = sum('another choice of sites does' in word for word in words)
    bound = sum('only dropping' in word and 'another choice' not in word for word in words)
    return (
        f'Of the {len(rows)} rows, {reached} are reached as they are written and {chosen} by another choice of sites; '
        f'for {bound} more, dropping the same blocks would do; for {len(rows) - reached - chosen - bound}, nothing '
        'that was tried.'
    )


def read(path: Path) -> list[Evidence]:
    """The rows of the CSV."""
    kinds = {f.name: f.type for f in fields(Evidence)}
    return [
        Evidence(**{
            key: value if kinds[key] is str else int(value) if kinds[key] is int else float(value) if value else None
            for key, value in record.items()
        })
        for record in csv.DictReader(path.open())
    ]  # fmt: skip


def as_page(rows: list[Evidence]) -> str:
    """The page of the rows."""
    head = ['data', 'network', 'row', 'batch', 'published time, memory', 'predicted', 'same blocks dropped']
    head += ['other choice', 'verdict']
    text = f'{INTRODUCTION}{summary(rows)}\n\n'
    for table in dict.fromkeys(row.table for row in rows):
        cells = [
            [
                *(row.data, row.network, row.what, f'{row.batch} of {row.size}'),
                *(_pair(row.published_time, row.published_memory), _pair(row.time, row.memory)),
                _pair(row.drop_time, row.drop_memory),
                f'{row.choice}: {_pair(row.choice_time, row.choice_memory)}' if row.choice else '',
                verdict(row),
            ]
            for row in rows if row.table == table
        ]  # fmt: skip
        year, _, number = table.rpartition(', ')
        name = f'Table {number} of the {year} paper' if year else f'Table {table}'
        text += f'## {name}\n\n{Table(head, "llllrrrll", cells).markdown()}\n'
    text += _steps(rows)
    left_out = ' '.join(row.left_out for row in rows)
    return f'{text}{conditions(DEVICE, ["fp32", "amp"], left_out)}\n'


def _pair(time: float | None, memory: float | None) -> str:
    return '' if time is None else f'{format_ratio(time)}, {format_ratio(memory)}'


def _steps(rows: list[Evidence]) -> str:
    """E2E's predicted step beside that of the published epochs."""
    cells = [
        [row.network, f'{row.e2e_ms:,.0f}', f'{PUBLISHED_STEPS[row.network]:,}', f'{row.e2e_mib:,.0f}']
        for row in rows if row.table == 'II' and row.e2e_ms is not None
    ]  # fmt: skip
    head = ['network', 'predicted step (ms)', 'by the published epoch (ms)', 'predicted memory (MiB)']
    return (
        '## Steps of E2E\n\n'
        'What is published is the time of an epoch, loading and all: that of R34 is probably bound by it.\n\n'
        f'{Table(head, "lrrr", cells).markdown()}\n'
    )


INTRODUCTION = """# Every published saving, and what is predicted for it

Written by `benchmarks/evidence.py` from [evidence.csv](results/evidence.csv). All figures are ratios over E2E, time
first, then memory. *Predicted* is the row as it is written, a whole training step at the published batch of one GPU and
the published size, [predicted for an A100](saving.md#on-a-gpu-that-you-do-not-have); *same blocks dropped* bounds what
any form can save at these sites. Where RepL misses the published ratios, other choices of sites are tried in this order
until one reaches both: `budget` (a quarter of the blocks), `half` (every second), each without the MLP where a site has
one, and `half, lean` ([the variants](saving.md#the-variants)). A ratio within 0.005 of the published one counts as
reached. Nothing here was measured on a GPU.

Table X is in mixed precision: float16 in the paper, BF16 here. Stochastic depth (SD) takes the mean time over its
draws, and the memory of a step that skips nothing. Adaptive sites are those of the first epoch, with the scores that
every block pays for. The 2024 paper's rows have its form, `blend`, and its recipe; its Table 3 publishes accuracy
alone, as Table VII of 2026 does. [Other ways to save](rivals.md) have a page of their own.

![published and predicted ratios of every row](results/evidence.png)

"""


def main(what: str, out: str, page: str = '') -> None:
    """Predict the rows, or write the page."""
    path = Path(out)
    if what == 'page':
        write_atomic(Path(page), as_page(read(path)).encode())
        return
    MMLogger.get_instance('mmengine', log_level='ERROR')

    def name(row: Claim | Evidence) -> tuple[str, ...]:
        return row.table, row.data, row.network, row.what

    done = {name(row): row for row in (read(path) if path.exists() else [])}
    predict = Predictor()
    for claim in track(CLAIMS, 'Predicting: '):
        if name(claim) not in done:
            done[name(claim)] = predict_claim(claim, predict)
            rows = [done[name(each)] for each in CLAIMS if name(each) in done]
            write_atomic(path, as_csv(rows).encode())


if __name__ == '__main__':
    main(*sys.argv[1:])
