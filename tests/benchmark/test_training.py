"""Contract: variants are what their names say, steps are the hosts' own, and what does not fit is a row that says so.

Oracles: sizes counted by hand and by the cost model; NumPy on given times; the backbones' attributes.
"""

import csv
import io
import itertools
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_helpers import run
from matplotlib.text import Text
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from repl_mm.analysis.cost import count_cost
from repl_mm.analysis.tables import as_csv
from repl_mm.benchmark import training
from repl_mm.benchmark.report import as_markdown, as_png, plot, spread_out
from repl_mm.benchmark.step import TrainingStep, check_training_backends
from repl_mm.benchmark.training import (
    MIB,
    MeasuredStep,
    limited_memory,
    measure_memory,
    measure_steps,
)
from repl_mm.benchmark.variants import PUBLISHED, VARIANTS, build_variants, name_of, variants_for
from repl_mm.cli.benchmark import SUITE
from repl_mm.layers import Drop
from repl_mm.surgery import computing_layers

CONFIGS = Path(__file__).parents[2] / 'configs'
RESNET = CONFIGS / 'demo/resnet32-repl_digits.py'
VIT = CONFIGS / 'demo/vit-tiny-repl_digits.py'
LANGUAGE = CONFIGS / 'demo/transformer-lm-repl_topics.py'
MEASURED = dict(model='resnet32', backend='fp32', batch=4, size=(32, 32), device=torch.device('cpu'), seconds=0)
STEP = dict(batch=4, size=(32, 32), backend='fp32', device=torch.device('cpu'))


def build(config: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(config.model).backbone


@pytest.mark.parametrize(('path', 'blocks', 'half'), [(RESNET, 15, 6), (VIT, 12, 5)])
def test_variants_are_what_their_names_say(path, blocks, half):
    backbones = {name: build(c) for name, c in build_variants(Config.fromfile(path), ('RepL', *VARIANTS)).items()}
    sites = {name: len(b.selection.sites) if b.selection else 0 for name, b in backbones.items()}
    assert sites['E2E'] == sites['SD'] == sites['AC'] == 0
    assert sites['RepL'] == sites['RepL, interval'] == (3 if path is RESNET else 2)
    assert sites['RepL, budget'] == sites['drop, budget'] == sites['RepL, lean'] == round(blocks / 4)
    assert sites['RepL, half'] == sites['drop, half'] == half
    kinds = {name: {isinstance(layer, Drop) for layer in computing_layers(b)} for name, b in backbones.items()}
    assert [name for name, dropped in kinds.items() if dropped == {True}] == [
        'drop, interval', 'drop, budget', 'drop, half',
    ]  # fmt: skip
    lean, half = (computing_layers(backbones[name])[0].options for name in ('RepL, half, lean', 'RepL, half'))
    assert (lean['recompute'], half['recompute']) == (True, False)
    assert lean['grad_fraction'] == 0.25 if path is RESNET else lean['mlp_fusion']


def test_stochastic_depth_and_checkpointing_go_on_top():
    variants = build_variants(Config.fromfile(RESNET), ('SD', 'RepL, budget + SD', 'AC', 'RepL, budget + AC'))
    assert build(variants['SD']).layer1[-1].skip_rate == pytest.approx(0.2 * 5 / 15)
    assert build(variants['RepL, budget + SD']).layer3[-1].skip_rate == 0.2
    assert [config.activation_checkpointing for config in variants.values()] == [False, False, True, True]
    vit = build_variants(Config.fromfile(VIT), ('SD',))['SD']
    assert build(vit).layers[-1].ffn.dropout_layer.drop_prob == pytest.approx(0.2)


def test_a_language_model_is_measured_by_its_sequences():
    config = Config.fromfile(LANGUAGE)
    names = variants_for(config)
    assert [name for name in VARIANTS if name not in names] == ['SD', 'RepL, budget + SD', 'RepL, half, lean + SD']
    variants = build_variants(config, ('E2E', 'RepL', 'AC'))
    e2e, repl, checkpointed = measure_steps(variants, **MEASURED | dict(model='language', batch=1, size=(64,)))
    assert [(row.size, row.note) for row in (e2e, repl, checkpointed)] == [('64', '')] * 3
    embedded, head, layer = 3000 * 128, 3000 * 129, 4 * 128 * 129 + 2 * 128 * 512 + 512 + 128 + 4 * 128
    positions = 64 * 128
    numbers = [embedded + head + positions + 2 * 128 + layers * layer for layers in (12, 10)]
    assert [row.weights_mib * 2**20 / 4 for row in (e2e, repl)] == pytest.approx(numbers, rel=1e-5)
    assert repl.memory < 1 < checkpointed.operators / e2e.operators
    with pytest.raises(ValueError, match="'SD': ReplTransformer has no stochastic depth, leave it out"):
        build_variants(config, ['SD'])


def test_compiled_steps_are_compiled_each(monkeypatch):
    """Though under a memory tracker nothing is, nor what comes after; memory is tracked of them as they are written."""
    graphs, calls = [], []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return lambda *args: calls.append(graph) or graph(*args)

    monkeypatch.setattr(nn.Module, 'compile', partialmethod(nn.Module.compile, backend=backend))
    variants = build_variants(Config.fromfile(RESNET), ('E2E', 'RepL'))
    rows = measure_steps(variants, **MEASURED | dict(backend='compile', batch=1))
    assert len(graphs) == 2
    assert [calls.count(graph) for graph in graphs] == [3 + row.rounds for row in rows]  # three to warm up
    eager = measure_steps(variants, **MEASURED | dict(batch=1))
    assert [row.memory_mib for row in rows] == [row.memory_mib for row in eager]


def test_an_older_torch_does_not_compile(monkeypatch):
    monkeypatch.setattr('repl_mm.benchmark.timing.can_compile', lambda: False)
    check_training_backends(['fp32', 'amp+channels-last'])
    with pytest.raises(ValueError, match=r'the backend compile needs torch 2\.6 or newer'):
        check_training_backends(['fp32', 'amp+compile'])


def test_blocks_that_are_skipped_are_not_compiled():
    """Of residual networks; a ViT's drop path computes what it drops, in one graph."""
    config = Config.fromfile(RESNET)
    assert [name for name in VARIANTS if name not in variants_for(config, 'amp+compile')] == [
        'SD', 'RepL, budget + SD', 'RepL, half, lean + SD',
    ]  # fmt: skip
    assert variants_for(Config.fromfile(VIT), 'compile') == list(VARIANTS)
    with pytest.raises(ValueError, match='stochastic depth does not go with compile'):
        TrainingStep(build_variants(config, ['SD'])['SD'], **STEP | dict(backend='compile'))


def test_bad_variants_are_named():
    config = Config.fromfile(RESNET)
    for name in ('RepL, quarter', 'nothing', 'RepL + XY', 'SD, half'):
        with pytest.raises(ValueError, match=f"unknown variant '{re.escape(name)}': choose out of"):
            build_variants(config, [name])
    with pytest.raises(ValueError, match='replaces nothing'):
        build_variants(Config.fromfile(CONFIGS / 'demo/resnet32_digits.py'))


@pytest.mark.parametrize(
    ('path', 'size'),
    [
        (RESNET, (32, 32)),
        (VIT, (32, 32)),
        (CONFIGS / 'demo/retinanet_r34-repl_fpn_digits.py', (64, 96)),
        (CONFIGS / 'demo/deeplabv3plus_r34-d8-repl_digits.py', (64, 96)),
    ],
)
@pytest.mark.parametrize('backend', ['fp32', 'amp+channels-last'])
def test_a_step_trains_every_kind_of_model(path, size, backend):
    step = TrainingStep(Config.fromfile(path), **STEP | dict(size=size, backend=backend))
    step.wrapper.optimizer.param_groups[0]['lr'] = 1e-3
    before = {name: p.detach().clone() for name, p in step.model.named_parameters() if p.requires_grad}
    step()
    after = dict(step.model.named_parameters())
    unchanged = [name for name, value in before.items() if value.equal(after[name])]
    # A class token's blocks have biases that no loss feels at first; everything else moves.
    assert len(unchanged) < 0.1 * len(before)
    assert all(p.grad is None for p in after.values())
    assert len(step.phases) == 1
    assert all(seconds > 0 for seconds in step.phases[0])


def test_stochastic_depth_has_the_memory_of_a_step_that_skips_nothing():
    config = Config.fromfile(RESNET)
    sure = build_variants(config, ('SD',))['SD']
    sure.model.backbone.stochastic_depth = 0.99
    e2e, often = measure_steps(dict(E2E=build_variants(config, ('E2E',))['E2E'], SD=sure), **MEASURED)
    sizes = ('memory_mib', 'weights_mib', 'gradients_mib', 'optimizer_mib', 'activations_mib')
    assert [getattr(often, size) for size in sizes] == [getattr(e2e, size) for size in sizes]


def test_memory_by_hand():
    config = Config.fromfile(RESNET)
    step = TrainingStep(config, **STEP | dict(batch=16))
    step()
    memory = measure_memory(step)
    weights = sum(t.numel() * t.element_size() for t in (*step.model.parameters(), *step.model.buffers()))
    assert memory['weights'] == pytest.approx(weights / MIB)
    momentum = sum(p.numel() * 4 for p in step.model.parameters())
    assert memory['optimizer'] == pytest.approx(momentum / MIB)
    saved = 16 * count_cost(config, (3, 32, 32)).activations / MIB
    # At the peak there are passing tensors beside what is saved, a few maps of the first stage each.
    assert saved < memory['activations'] < 1.5 * saved
    parts = [memory[name] for name in ('weights', 'gradients', 'optimizer', 'activations')]
    assert memory['total'] == pytest.approx(sum(parts))


def test_ratios_are_medians_within_rounds(monkeypatch):
    rng = np.random.default_rng(0)
    times = {name: list(rng.uniform(0.1, 0.3, 7)) for name in ('E2E', 'RepL')}
    memory = iter([dict(total=8.0, weights=1.0), dict(total=6.0, weights=0.5)])
    monkeypatch.setattr(training, 'time_interleaved', lambda steps, **_: times)
    monkeypatch.setattr(training, 'measure_memory', lambda step: next(memory))
    e2e, repl = measure_steps(build_variants(Config.fromfile(RESNET), ('E2E', 'RepL')), **MEASURED)
    ratios = np.divide(times['RepL'], times['E2E'])
    assert repl.time == pytest.approx(np.median(ratios))
    medians = np.median(np.random.default_rng(1).choice(ratios, (20000, len(ratios))), axis=1)
    assert repl.time_interval == pytest.approx(tuple(np.quantile(medians, (0.025, 0.975))), rel=0.02)
    assert (e2e.memory, repl.memory, repl.weights_mib, repl.rounds) == (1, 0.75, 0.5, 7)
    assert (repl.published_memory, repl.published_time) == PUBLISHED['resnet32']
    assert repl.step_ms == pytest.approx(1000 * np.median(times['RepL']))


@pytest.mark.parametrize('fails', ['E2E', 'RepL'])
def test_what_does_not_fit_is_a_row_that_says_so(monkeypatch, fails):
    config = build_variants(Config.fromfile(RESNET), ('E2E', 'drop', 'RepL'))
    whole = TrainingStep.__call__

    def call(step: TrainingStep) -> None:
        layers = [layer for layer in computing_layers(step.model) if not isinstance(layer, Drop)]
        if len(layers) == (3 if fails == 'RepL' else 0):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        whole(step)

    monkeypatch.setattr(TrainingStep, '__call__', call)
    config.pop('drop' if fails == 'E2E' else 'nothing', None)
    rows = {row.variant: row for row in measure_steps(config, **MEASURED)}
    assert rows[fails].note == 'out of memory'
    assert rows[fails].step_ms is None
    measured = rows['RepL' if fails == 'E2E' else 'drop']
    assert measured.step_ms > 0
    assert (measured.time is None) == (fails == 'E2E')
    assert '| out of memory |' in as_markdown(list(rows.values()), conditions='here')
    assert as_png(list(rows.values()), conditions='here').startswith(b'\x89PNG')


def test_another_error_is_no_shortage(monkeypatch):
    def call(step: TrainingStep) -> None:
        raise RuntimeError('something else')

    monkeypatch.setattr(TrainingStep, '__call__', call)
    with pytest.raises(RuntimeError, match='something else'):
        measure_steps(build_variants(Config.fromfile(RESNET), ('E2E',)), **MEASURED)


def test_allocations_fail_where_memory_ends():
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with limited_memory():
        most = resource.getrlimit(resource.RLIMIT_DATA)[0]
        assert 0 < most < 2**50
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            torch.empty(most + 2**30, dtype=torch.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_every_published_row_has_its_config():
    names = []
    for path, overrides, *_ in SUITE:
        config = Config.fromfile(CONFIGS / path)
        config.merge_from_dict(overrides)
        names.append(name_of(config))
    assert sorted(names) == sorted(PUBLISHED)


def test_tool_writes_tables_and_a_picture(tmp_path):
    code, _, stderr = run(
        'benchmark', 'train', RESNET, '--variant', 'RepL, half', 'RepL + AC', '--size', '32', '32',
        '--batch-size', '2', '4', '--seconds', '0', '--out', tmp_path,
    )  # fmt: skip
    assert (code, stderr) == (0, '')
    rows = list(csv.DictReader(io.StringIO((tmp_path / 'train.csv').read_text())))
    assert [(row['variant'], row['batch']) for row in rows] == [
        (variant, batch) for batch in '24' for variant in ('E2E', 'RepL, half', 'RepL + AC')
    ]
    assert all(float(row['memory']) < 1 for row in rows[1:3])
    lines = (tmp_path / 'train.md').read_text().splitlines()
    assert len(lines) == 2 + len(rows) + 1 + 6 + 2
    assert '| 0.785 |' in lines[3]
    assert (tmp_path / 'train.png').read_bytes().startswith(b'\x89PNG')


def test_tool_refuses_what_is_unclear(tmp_path):
    code, _, stderr = run('benchmark', 'train', '--out', tmp_path)
    assert (code, 'give either configs, or one of --quick and --full' in stderr) == (2, True)
    code, _, stderr = run('benchmark', 'train', RESNET, '--quick', '--out', tmp_path)
    assert (code, 'give either configs, or one of --quick and --full' in stderr) == (2, True)
    code, _, stderr = run('benchmark', 'train', RESNET, '--variant', 'E2E', 'nothing', '--out', tmp_path)
    assert (code, "unknown variant 'nothing': choose out of 'E2E', 'drop, interval'" in stderr) == (2, True)
    code, _, stderr = run('benchmark', 'train', RESNET, '--backend', 'bf16', '--out', tmp_path)
    assert (code, "is not for training: take 'amp'" in stderr) == (2, True)
    (tmp_path / 'file').touch()
    code, _, stderr = run('benchmark', 'train', RESNET, '--out', tmp_path / 'file')
    assert (code, f'--out is a folder, and {tmp_path / "file"} is a file' in stderr) == (2, True)


@pytest.mark.parametrize(
    ('figures', 'expected'),
    [
        # (time, memory) of two variants, whose times' intervals are 0.01 wide; published are 0.785 and 0.796.
        (((0.9, 0.7), (0.78, 0.79)), 'RepL, half reaches both | 0.780 (0.775 to 0.785), 0.790 | 0.600, 0.700'),
        (((0.7, 0.7), (0.6, 0.6)), 'RepL, interval reaches both | 0.700 (0.695 to 0.705), 0.700 | 0.600, 0.700'),
        (
            ((0.9, 0.7), (0.789, 0.7)),
            'open, by the interval of RepL, half | 0.789 (0.784 to 0.794), 0.700 | 0.600, 0.700',
        ),
        (
            ((0.9, 0.7), (0.782, 0.7)),
            'open, by the interval of RepL, half | 0.782 (0.777 to 0.787), 0.700 | 0.600, 0.700',
        ),
        (
            ((0.95, 0.7), (0.791, 0.81)),
            'none reaches both; nearest RepL, half | 0.791 (0.786 to 0.796), 0.810 | 0.600, 0.700',
        ),
    ],
)
def test_published_savings_name_a_recipe_or_the_bound(figures, expected):
    own = dict(model='resnet32', backend='fp32', batch=4, size='32 x 32', published_time=0.785, published_memory=0.796)
    rows = [
        MeasuredStep(variant='E2E', time=1, memory=1, **own),
        MeasuredStep(variant='drop, half', time=0.6, memory=0.7, **own),
    ]
    for variant, (time, memory) in zip(('RepL, interval', 'RepL, half'), figures, strict=True):
        interval = (time - 0.005, time + 0.005)
        rows.append(MeasuredStep(variant=variant, time=time, time_interval=interval, memory=memory, **own))
    assert f'| resnet32 | fp32 | 4 | 0.785, 0.796 | {expected} |' in as_markdown(rows, conditions='here')
    assert 'Published' not in as_markdown([replace(row, published_time=None) for row in rows], conditions='here')


def test_no_label_of_a_picture_lies_over_another():
    """Thirteen variants and the published one at nearly one place; two panels beside one another."""
    own = dict(backend='fp32', batch=4, size='32 x 32', published_time=0.9, published_memory=0.9)
    rows = [
        MeasuredStep(model=model, variant=f'RepL, variant {at}', time=0.9 + at / 1e3, memory=0.9, **own)
        for model in ('resnet32', 'resnet34') for at in range(13)
    ]  # fmt: skip
    figure = plot([replace(row, time_interval=(0.8, 1.1)) for row in rows], conditions='here')
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for axes in figure.axes for text in axes.texts]
    assert len(boxes) == 2 * 14
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_heights_are_spread_as_little_as_needed():
    assert spread_out([0.1, 0.5, 0.9], gap=0.1) == [0.1, 0.5, 0.9]
    assert spread_out([0.5, 0.5, 0.95], gap=0.1) == pytest.approx([0.5, 0.6, 0.95])
    assert spread_out([1, 1, 1], gap=0.1) == pytest.approx([0.8, 0.9, 1])
    assert spread_out([0.5] * 5, gap=0.5) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_csv_has_all_figures():
    (row,) = measure_steps(build_variants(Config.fromfile(RESNET), ('E2E',)), **MEASURED)
    (read,) = csv.DictReader(io.StringIO(as_csv([row])))
    for figure in ('step_ms', 'forward_ms', 'backward_ms', 'optimizer_ms', 'memory_mib', 'activations_mib'):
        assert float(read[figure]) == getattr(row, figure) > 0


def test_phases_of_a_step_are_told_apart(monkeypatch):
    step = TrainingStep(Config.fromfile(RESNET), **STEP)
    monkeypatch.setattr(step, '_now', iter((0.0, 1.0, 3.0, 6.0)).__next__)
    step()
    assert step.phases == [(1.0, 2.0, 3.0)]
