"""Contract: states are timed in interleaved rounds, ratios are taken within a round, published figures stand in place.

Oracles: calls that take a set time on a false clock; NumPy; the backbones' own FLOPs.
"""

import csv
import io
import itertools
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import run
from mmengine.config import Config

from repl_mm.analysis.cost import count
from repl_mm.analysis.tables import as_csv
from repl_mm.benchmark import latency, timing
from repl_mm.benchmark.latency import STATES, as_markdown, as_png, build_states, measure, prepare
from repl_mm.benchmark.timing import time_interleaved
from repl_mm.layers import StaticLayer
from repl_mm.surgery import computing_layers

CONFIG = Path(__file__).parents[2] / 'configs' / 'demo' / 'resnet32-repl_digits.py'
MEASURED = dict(backend='fp32', batch=2, size=(32, 32), device=torch.device('cpu'), seconds=0)


def test_rounds_go_back_and_forth_and_last_long_enough(monkeypatch):
    order, clock = [], itertools.count()
    monkeypatch.setattr(timing.time, 'perf_counter', lambda: next(clock))
    times = time_interleaved({name: lambda name=name: order.append(name) for name in 'abc'}, seconds=200)
    assert ''.join(order[:9]) == 'aaabbbccc'
    assert ''.join(order[9:21]) == 'abccbaabccba'
    # 10 rounds read the clock 6 times each, the others once more to see whether it is enough: 60 + 20 x 7 = 200.
    assert {len(values) for values in times.values()} == {30}
    assert set(times['a']) == {1}


def test_ratios_are_medians_within_rounds(monkeypatch):
    rng = np.random.default_rng(0)
    times = {state: list(rng.uniform(0.01, 0.03, 11)) for state in STATES}
    monkeypatch.setattr(latency, 'time_interleaved', lambda calls, **_: times)
    rows = {row.state: row for row in measure(Config.fromfile(CONFIG), **MEASURED)}
    deployed = rows['RepL, deployed']
    for found, reference in ((deployed.over_e2e, 'E2E'), (deployed.over_dynamic, 'RepL, dynamic')):
        assert found == pytest.approx(np.median(np.divide(times[reference], times['RepL, deployed'])))
    pairs = np.divide(times['E2E'], times['RepL, deployed'])
    medians = np.median(np.random.default_rng(1).choice(pairs, (20000, len(pairs))), axis=1)
    assert deployed.over_e2e_interval == pytest.approx(tuple(np.quantile(medians, (0.025, 0.975))), rel=0.02)
    folded = rows['RepL, deployed and folded']
    assert folded.over_e2e == pytest.approx(
        np.median(np.divide(times['E2E, folded'], times['RepL, deployed and folded']))
    )
    assert deployed.median_ms == pytest.approx(1000 * np.median(times['RepL, deployed']))
    assert deployed.images_per_s == pytest.approx(2 / np.median(times['RepL, deployed']))
    assert rows['E2E'].over_e2e is None
    e2e, repl = (count(Config.fromfile(CONFIG.with_name(f'resnet32{name}_digits.py')), input_shape=(3, 32, 32)).flops
                 for name in ('', '-repl'))  # fmt: skip
    assert deployed.flop_bound == pytest.approx(e2e / repl)


def test_states_are_what_they_are_called():
    states = build_states(Config.fromfile(CONFIG))
    layers = {name: (len(computing_layers(model)), sum(isinstance(m, StaticLayer) for m in model.modules()))
              for name, model in states.items()}  # fmt: skip
    assert layers == dict(zip(STATES, [(0, 0), (0, 0), (3, 0), (0, 3), (0, 3)], strict=True))
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.backbone.modules()) for model in states.values()]
    assert norms[0] > norms[2] > norms[3] > 0
    assert norms[1] == norms[4] == 0


@pytest.mark.parametrize(
    ('backend', 'dtype'),
    [('fp32', torch.float32), ('bf16', torch.bfloat16), ('amp', torch.bfloat16), ('channels-last', torch.float32)],
)
def test_backends_compute_the_same_thing(backend, dtype):
    model = build_states(Config.fromfile(CONFIG))['RepL, dynamic']
    images = torch.randn(2, 3, 32, 32)
    [logits] = prepare(model, images, backend=backend)()
    assert logits.dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), model(images, mode='tensor'), rtol=0.1, atol=0.05)


def test_compile_is_asked_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda module: compiled.append(module) or module)
    prepare(build_states(Config.fromfile(CONFIG))['E2E'], torch.randn(1, 3, 32, 32), backend='channels-last+compile')()
    assert len(compiled) == 1


def test_all_states_of_all_cases_are_compiled(monkeypatch):
    """By themselves compilers do 8 networks of the same code, and run the others as they are written."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    for policy in ('interval', 'budget'):
        config = Config.fromfile(CONFIG)
        config.model.backbone.repl = dict(policy=policy, every=4)
        measure(config, **MEASURED | dict(backend='compile', batch=1))
    assert len(graphs) == 2 * len(STATES)


def test_published_figures_stand_beside_their_rows(monkeypatch):
    """Table XI has batches, Table XII has not."""
    monkeypatch.setattr(latency, 'time_interleaved', lambda calls, **_: {state: [1.0, 1.0] for state in calls})
    monkeypatch.setattr(latency, 'build_states', lambda config: dict.fromkeys(STATES))
    monkeypatch.setattr(latency, 'prepare', lambda *_, **__: None)
    folder = CONFIG.parents[1] / 'classification'
    found = {}
    for name, batch in (('resnet101-repl_4xb128-90e_in1k', 1), ('resnet101-repl_4xb128-90e_in1k', 32),
                        ('vit-small-p16-repl_4xb256-90e_in1k', 1), ('resnet152-repl_4xb128-90e_in1k', 1)):  # fmt: skip
        rows = measure(Config.fromfile(folder / f'{name}.py'), **MEASURED | dict(batch=batch))
        published = [(row.published_over_e2e, row.published_over_dynamic) for row in rows]
        assert published[:3] + published[4:] == [(None, None)] * 4
        found[name.split('_')[0], batch] = published[3]
    assert found == {
        ('resnet101-repl', 1): (None, 1.104),
        ('resnet101-repl', 32): (1.120, 1.013),
        ('vit-small-p16-repl', 1): (None, 1.139),
        ('resnet152-repl', 1): (None, None),
    }


def test_tables_and_picture_hold_every_row():
    rows = measure(Config.fromfile(CONFIG), **MEASURED)
    table = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [line['state'] for line in table] == list(STATES)
    assert float(table[3]['over_e2e']) == rows[3].over_e2e
    lines = as_markdown(rows, conditions='Here and now.').splitlines()
    assert len(lines) == 2 + len(rows) + 2
    assert {line.count('|') for line in lines[: 2 + len(rows)]} == {16}
    assert as_png(rows, conditions='Here and now.').startswith(b'\x89PNG')


def test_tool_measures_and_refuses(tmp_path):
    args = ['latency', CONFIG, '--size', '32', '32', '--batch-size', '1', '--seconds', '0', '--device', 'cpu']
    assert run('benchmark', *args, '--policy', 'interval', 'budget', '--out', tmp_path / 'out')[0] == 0
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'latency.csv', 'latency.md', 'latency.png'}
    lines = list(csv.DictReader((tmp_path / 'out' / 'latency.csv').open()))
    assert [line['sites'] for line in lines[::5]] == ['policy=interval every=4', 'policy=budget every=4']
    for change, expected in (
        (['--backend', 'fp8'], 'unknown backend fp8: choose out of fp32'),
        (['--batch-size', '0'], '--batch-size and --size are at least 1'),
        (['--cfg-options', 'model.backbone.repl=None'], 'replaces nothing: give its backbone'),
        (['--device', 'nix'], 'cannot use --device nix'),
    ):
        code, _, stderr = run('benchmark', *args, *change, '--out', tmp_path / 'no')
        assert (code, expected in stderr) == (2, True), stderr
        assert not (tmp_path / 'no').exists()
