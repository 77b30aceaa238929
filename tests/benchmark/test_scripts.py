"""Contract: the scripts behind the pages measure and write what they say.

Oracles: the pages' CSV; figures by hand; NumPy's correlation.
"""

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from scipy import stats

from repl_mm.analysis.studies import load_study
from repl_mm.benchmark.variants import build_variants
from repl_mm.layers import Drop

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f'benchmarks/{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_predicted_against_measured(tmp_path, monkeypatch):
    """Small: what is dropped is predicted to cost less, and the page has each row's figures."""
    script = load('predicted_vs_measured')
    monkeypatch.setattr(script, 'VARIANTS', ('drop, half', 'RepL, half'))
    device = script.measure_device(seconds=0)
    for value, low, high in (
        *((device.fp32, 1e-3, 100), (device.tf32, 1e-3, 100)),
        *((device.bandwidth, 0.1, 1e4), (device.launch_us, 0.1, 1e5)),
    ):
        assert low < value < high
    case = script.Case('R32', 'demo/resnet32-repl_digits.py', 1, (16, 16))
    pairs = script.compare(case, device, seconds=0)
    assert [pair.variant for pair in pairs] == ['drop, half', 'RepL, half']
    assert all(pair.low <= pair.measured <= pair.high for pair in pairs)
    assert pairs[0].predicted < min(pairs[1].predicted, 1)
    (tmp_path / 'pairs.csv').write_bytes(script.as_csv(pairs).encode())
    assert script.read(tmp_path / 'pairs.csv') == pairs
    some = [replace(pairs[0], variant=f'way {at}', predicted=0.5 + at / 20, measured=0.55 + at / 20) for at in range(9)]
    page = script.as_page(some)
    for pair in some:
        line = next(line for line in page.splitlines() if f'| {pair.variant} |' in line)
        assert f'| {pair.predicted:.3f} | {pair.measured:.3f} ({pair.low:.3f} to {pair.high:.3f})' in line
    assert 'over the 9 rows is 1.00 (bootstrap interval of 95 %: 1.00 to 1.00), the median distance 0.050' in page


def test_correlation_and_its_interval():
    script = load('predicted_vs_measured')
    x = np.linspace(0, 1, 20)
    y = x + np.tile([0.2, -0.2], 10)
    r, (low, high) = script.correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert low < r < high <= 1
    assert script.correlation(x, 2 * x + 1)[0] == pytest.approx(1)


def test_the_page_of_rivals_and_the_table_of_the_readme_are_what_their_script_writes():
    """From the CSV, cell by cell; names of shallower networks by counting the blocks that are left."""
    script = load('rivals')
    rows = script.read(ROOT / 'docs/results/rivals.csv')
    assert script.as_page(rows) == (ROOT / 'docs/rivals.md').read_text()
    readme = (ROOT / 'README.md').read_text()
    assert script.with_table(readme, script.readme_table(rows)) == readme
    assert len(script.readme_table(rows).splitlines()) == 2 + len(script.CASES)
    with (ROOT / 'docs/results/accuracy.csv').open() as file:
        scores = {(row['study'], row['row'], int(row['seed'])): float(row['score']) for row in csv.DictReader(file)}
    e2e = np.mean([scores['accuracy_over_cost', 'ResNet-32: E2E', seed] for seed in range(8)])
    assert f'| {e2e:.2f} -> ' in readme
    e2e, repl = (
        np.mean([scores['2026_table_8', f'RetinaNet, ResNet-50: {row}', seed] for seed in range(3)])
        for row in ('E2E', 'RepL')
    )
    assert f'| {e2e:.1f} -> {repl:.1f} AP on digit scenes, with R34, sites by budget; 3 seeds |' in readme
    assert not [row for row in rows if row.time is None]
    for network in {row.network for row in rows}:
        by = {row.way.partition(':')[0]: row for row in rows if row.network == network}
        assert by['E2E'].time == by['E2E'].memory == 1
        assert by['shallower'].time < by['RepL, interval'].time < 1
        assert by['frozen'].time < 1
        assert by['activation checkpointing (AC)'].time > 1


def test_the_page_of_measured_rivals_is_what_its_script_writes():
    """With the ways of the other page; tracked memory is what was predicted of it, but for what a compiler keeps."""
    load('predicted_vs_measured')
    rivals, script = load('rivals'), load('rivals_measured')
    path = ROOT / 'docs/results/rivals_measured_cpu_2026-12-01.csv'
    rows = script.read(path)
    assert script.as_page(rows) == path.with_suffix('.md').read_text()
    predicted = [(row.network, row.way) for row in rivals.read(ROOT / 'docs/results/rivals.csv')]
    assert [(row.network, row.way) for row in rows] == [each for each in predicted if each[0] in script.NETWORKS]
    assert all(row.low <= row.time <= row.high for row in rows)
    tracked = [row for row in rows if 'budget 0.5' not in row.way]
    assert len(tracked) == len(rows) - 4
    assert [row.memory for row in tracked] == pytest.approx([row.predicted_memory for row in tracked], abs=1e-6)


@pytest.mark.parametrize(
    ('config', 'name'),
    [
        ('small_images/resnet32-repl_1xb1024-250e_cifar10.py', 'ResNet-26'),
        ('classification/resnet101-repl_4xb128-90e_in1k.py', 'ResNet-86'),
        ('small_images/vit-tiny-p8-repl_1xb512-250e_cifar10.py', 'ViT of 10 blocks'),
        ('detection/retinanet_r50-repl_fpn_4xb2-100e_coco.py', 'RetinaNet of a ResNet-47'),
    ],
)
def test_what_a_shallower_network_is_called(config, name):
    """Layers with weights, without shortcuts: the stem, those of each block that stays, the classifier."""
    (case,) = (case for case in load('rivals').CASES if case.config == config)
    config = build_variants(Config.fromfile(ROOT / 'configs' / config), ['drop, interval'])['drop, interval']
    with DefaultScope.overwrite_default_scope(config.default_scope):
        backbone = MODELS.build(config.model).backbone
    left = [block for block in chain(*backbone.repl_stages().values()) if not isinstance(block, Drop)]
    layers = {'BasicBlock': 2, 'Bottleneck': 3}
    kind = next((kind for kind in layers if kind in type(left[0]).__name__), '')
    found = f'ResNet-{2 + layers[kind] * len(left)}' if kind else f'ViT of {len(left)} blocks'
    assert found in name
    assert case.shallower == name


def test_the_picture_of_the_evidence_has_each_row_once_and_no_label_on_another():
    script = load('evidence_picture')
    with (ROOT / 'docs/results/evidence.csv').open() as file:
        rows = list(csv.DictReader(file))
    figure = script.plot(rows)
    for axes, what in zip(figure.axes, ('time', 'memory'), strict=True):
        drawn = {line.get_label(): line for line in axes.lines}
        for column, _, _, label in script.SERIES:
            key = column.format(what)
            expected = [(float(row[key]), at) for at, row in enumerate(rows) if row[key]]
            assert np.array_equal(drawn[label].get_xydata(), expected)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == len(rows)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert min(box.x0 for box in boxes) >= 0


def test_the_table_of_fine_tuning_has_the_mean_and_the_paired_interval_of_its_seeds():
    """Three seeds, by hand: differences 1, 2 and 3 have the mean 2, and 4.303 x 1 / sqrt(3) to either side."""
    script = load('fine_tuning')
    cold, warm = (90.0, 91.0, 92.0), (91.0, 93.0, 95.0)
    scores = [
        {(policy, start): {'never trained': 50.0 + at, 'as loaded': cold[at], 'warm start': warm[at]}[start]
         for policy in script.POLICIES for start in script.STARTS}
        for at in range(3)
    ]  # fmt: skip
    row, _ = script.rows_of('ResNet-32', scores)
    assert row[3:6] == ['51.00 (1.00)', '91.00 (1.00)', '93.00 (2.00)']
    assert row[7] == '+2.00 (-0.48 to +4.48)'
    assert row[1] == '2 epochs'
    assert script.rows_of('RetinaNet-R34', scores)[0][1] == '1 epoch'
    page = script.as_page([str(at) for at in range(len(row))], [row])
    assert f'| {" | ".join(row)} |' in page


def test_the_page_of_fine_tuning_is_what_its_script_writes():
    path = ROOT / 'docs/results/fine_tuning_digits_cpu_2026-11-28.csv'
    with path.open() as file:
        header, *rows = csv.reader(file)
    script, words = load('fine_tuning'), (ROOT / 'docs/fine_tuning.md').read_text()
    assert script.as_page(header, rows) == path.with_suffix('.md').read_text()
    over_cold, over_loaded = ({row[0]: float(row[at].split()[0]) for row in rows} for at in (-2, -1))
    for name in script.DEMOS:
        assert '{} {:+.2f} and {:+.2f}'.format(name, *(over_loaded[f'{name}, {p}'] for p in script.POLICIES)) in words
    intervals = [row[-1].split('(')[1].rstrip(')').split(' to ') for row in rows]
    assert len(intervals) == 8
    assert 'all eight intervals hold zero' in words
    assert all(float(low) < 0 < float(high) for low, high in intervals)
    assert f'{min(over_cold.values()):.0f} to {max(over_cold.values()):.0f} points behind' in words


def test_the_page_of_predicted_and_measured_ratios_is_what_its_script_writes():
    script, path = load('predicted_vs_measured'), ROOT / 'docs/results/predicted_vs_measured_cpu_2026-11-27.csv'
    pairs = script.read(path)
    assert script.as_page(pairs) == path.with_suffix('.md').read_text()
    r, _ = script.correlation([pair.predicted for pair in pairs], [pair.measured for pair in pairs])
    assert f'a correlation of {r:.2f}, [row by row]' in (ROOT / 'docs/saving.md').read_text()


def test_scores_are_collected_from_finished_runs_and_added_to_those_of_the_same_recipe(tmp_path, monkeypatch):
    script = load('accuracy')
    rows = [SimpleNamespace(name=name, key=f'{name}-new') for name in ('E2E', 'RepL')]
    monkeypatch.setattr(script, 'small_studies', lambda: {'table': SimpleNamespace(rows=rows, metric='mIoU')})
    monkeypatch.setattr(script, 'read_run', lambda job: job.seed)
    monkeypatch.setattr(script, 'last_score', lambda run, metric: 10 + run)
    monkeypatch.setattr('repl_mm.analysis.records.read_cost', lambda path: json.loads(path.read_text()))
    for seed, complete in ((0, True), (1, False), (2, True)):
        folder = tmp_path / f'runs/E2E-new/seed-{seed}'
        folder.mkdir(parents=True)
        (folder / 'cost.json').write_text(json.dumps(dict(complete=complete)))
        (tmp_path / f'runs/E2E-new/seed-{seed}.log').touch()
    (tmp_path / 'runs/E2E-new/seed-2/diverged.txt').touch()
    known = [
        script.Score('table', 'E2E', 'E2E-new', 0, 1.0),  # run again since
        script.Score('table', 'E2E', 'E2E-new', 7, 2.0),
        script.Score('table', 'RepL', 'RepL-old', 0, 3.0),  # of a recipe that is no more
        script.Score('gone', 'E2E', 'E2E-new', 0, 4.0),
    ]
    found = script.collect(tmp_path, known)
    assert [(score.row, score.seed, score.score) for score in found] == [('E2E', 0, 10), ('E2E', 7, 2)]
    (tmp_path / 'scores.csv').write_text(script.as_csv(found))
    assert script.read(tmp_path / 'scores.csv', script.Score) == found


def test_what_is_compared_stands_in_its_study():
    script = load('accuracy')
    for name, opponents in script.OPPONENTS.items():
        rows = {row.name: row for row in load_study(script.STUDIES / f'{name}.py', 'small').rows}
        for repl, dropped in opponents.items():
            assert rows[dropped].config.model.backbone.repl.form == 'drop'
            assert rows[repl].config.train_cfg == rows[dropped].config.train_cfg
            assert rows[repl].config.model.backbone.repl.every == rows[dropped].config.model.backbone.repl.every
            assert rows[repl].start == rows[dropped].start  # so that seeds are paired


def test_rows_with_activation_checkpointing_need_no_run():
    """That such a run ends as without it is in ``tests/engine/test_activation_checkpointing.py``."""
    script = load('accuracy')
    study = load_study(script.STUDIES / '2026_table_9.py', 'small')
    absences = {row.name: script.absence(row, None, {}) for row in study.rows}
    assert [name for name, absence in absences.items() if absence != 'not run'] == [
        'ResNet-32, CIFAR-10: checkpointing',
        'ResNet-32, CIFAR-10: RepL and checkpointing',
    ]


@pytest.mark.parametrize(
    ('key', 'gap', 'said'),
    [
        ('resnet32-repl_1xb64', -0.4, 'not run: 3 seeds tell ± 0.50'),
        ('resnet32-repl_1xb64', 0.6, 'not run'),  # three seeds would show it
        ('vit-tiny-p8-repl_1xb64', 0.6, 'not run: 3 seeds tell ± 1.00'),
        ('vit-tiny-p8-repl_1xb64', -1.1, 'not run'),
        ('retinanet_r34-repl_1xb4', 0.1, 'not run'),  # of a network whose deviation is not known
        ('resnet32-repl_1xb64', None, 'not run'),
    ],
)
def test_a_row_that_was_not_run_says_what_few_seeds_would_tell(key, gap, said):
    row = SimpleNamespace(key=key, config={})
    assert load('accuracy').absence(row, gap, {'ResNet-32': 0.5, 'ViT-T/8': 1.0}) == said


def test_a_verdict_is_what_the_paired_test_decides():
    script, random = load('accuracy'), np.random.default_rng(0)
    found = set()
    for shift in np.repeat([-0.5, 0, 0.5], 20):
        of, other = random.normal(90 + shift, 0.3, 5), random.normal(90, 0.3, 5)
        gain = script.differences(dict(enumerate(of)), dict(enumerate(other)) | {9: 50.0})
        t, p = stats.ttest_rel(of, other)
        expected = 'open' if p > 0.05 else 'RepL scores more' if t > 0 else 'RepL scores less'
        assert script.verdict(gain) == expected
        found.add(expected)
    assert len(found) == 3
    assert script.verdict([1.0]) == 'open'


def test_what_a_factor_adds_is_its_own_difference_over_that_of_repl():
    script, random = load('accuracy'), np.random.default_rng(0)
    names = ['dropped', 'RepL', 'blend', 'zero_init_residual: dropped', 'zero_init_residual: RepL']
    by = {name: dict(enumerate(random.normal(90, 0.3, 4))) for name in names}
    by['RepL'] |= {4: 50.0}  # a seed that nothing else has
    found, words = script.helps(by)
    table = {row[0]: row for row in found.rows}
    dropped, repl, blend, zero_dropped, zero_repl = (np.array([by[name][seed] for seed in range(4)]) for name in names)
    assert list(table) == ['RepL', 'blend', 'zero_init_residual: RepL']
    assert table['RepL'][-1] == ''
    for name, own in [('blend', blend - dropped), ('zero_init_residual: RepL', zero_repl - zero_dropped)]:
        difference, _, added = table[name][-3:]
        for written, values in [(difference, own), (added, own - (repl - dropped))]:
            low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
            assert written == f'{values.mean():+.2f} ({low:+.2f} to {high:+.2f})'
    assert words == 'Additions whose interval does not hold zero: none.'
    beaten = {'RepL': by['RepL'], 'blend': by['blend'], 'dropped': {seed: by['dropped'][seed] - 5 for seed in range(4)}}
    found, words = script.helps(beaten)
    assert [row[5] for row in found.rows] == ['RepL scores more'] * 2
    assert words == 'Additions whose interval does not hold zero: none.'
    by['blend'] = {seed: 5 + score + 0.1 * seed for seed, score in by['RepL'].items()}
    assert script.helps(by)[1] == 'Additions whose interval does not hold zero: blend.'


def test_what_few_seeds_can_tell_is_the_interval_that_they_would_have(monkeypatch):
    script, by, expected = load('accuracy'), {}, []
    table = load_study(ROOT / 'configs/studies/2026_table_7.py', 'small')
    monkeypatch.setattr(script, 'small_studies', lambda: {'once': table, 'again': table})
    for network, spread, below in [('ResNet-32', 0.4, (0.30, 0.52, 1.74)), ('ViT-T/8', 1.2, (0.59, 0.94, 3.40))]:
        assert script.published_gaps(network) == set(below)
        values = spread * np.array([1.0, -1.0, 0.5, -0.5])
        by[f'{network}: RepL, K = 4'] = dict(enumerate(90 + values))
        by[f'{network}: E2E'] = dict.fromkeys(range(4), 90.0)
        _, half = stats.t.interval(0.95, df=2, scale=values.std(ddof=1) / np.sqrt(3))
        assert below[1] < half
        smaller = f'for 3 different published differences, of which {sum(gap < half for gap in below)} are smaller'
        expected.append((f'by {values.std(ddof=1):.2f} points', f'about {half:.2f} points', smaller))
    lines = script.reach(by).splitlines()
    assert len(lines) == 2
    assert all(word in line for line, words in zip(lines, expected, strict=True) for word in words)


def test_what_decides_is_read_over_the_seeds_that_all_three_have():
    script, random = load('accuracy'), np.random.default_rng(0)
    names = ['ResNet-32: E2E', 'ResNet-32: dropped, K = 2', 'ResNet-32: RepL, K = 2']
    by = {name: dict(enumerate(random.normal(90, 0.3, 3))) for name in names}
    e2e, dropped, repl = (np.array([by[name][seed] for seed in range(3)]) for name in names)
    by[names[0]] |= {3: 10.0, 4: 20.0}
    by[names[2]] |= {4: 30.0}
    costs = {name: script.Cost(name, 1024, '32 x 32', 10.0, 100.0) for name in names}
    [row] = script.decisive_table(by, costs).rows
    assert row[1:5] == ['3', *(f'{scores.mean():.2f} ± {scores.std(ddof=1):.2f}' for scores in (e2e, dropped, repl))]
    for written, one, other in zip(row[5:8], (dropped, repl, repl), (e2e, e2e, dropped), strict=True):
        low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
        assert written == f'{(one - other).mean():+.2f} ({low:+.2f} to {high:+.2f})'


def test_the_page_of_the_scores_is_what_its_script_writes():
    script, results = load('accuracy'), ROOT / 'docs/results'
    scores = script.read(results / 'accuracy.csv', script.Score)
    costs = script.read(results / 'accuracy_costs.csv', script.Cost)
    assert script.as_page(scores, costs, 'results/accuracy.png') == (ROOT / 'docs/accuracy.md').read_text()
    by = script.scores_of(scores, script.PARETO)
    figure = load('accuracy_picture').plot(by, costs, confirmed=script.CONFIRMED)
    figure.draw_without_rendering()
    for axes in figure.axes:
        names = [text.get_text() for text in axes.texts]
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # an annotation's own holds its line too
        assert len(set(names)) == len(names) > 1
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert sum(len(axes.texts) for axes in figure.axes) == 2 * len(by)
    points = [line for axes in figure.axes for line in axes.lines if line.get_marker() == 'o']
    hollow = sum(to_hex(point.get_markerfacecolor()) == '#ffffff' for point in points)
    assert hollow == 2 * sum(len(seeds) < script.CONFIRMED for seeds in by.values())
    assert 0 < hollow < len(points) == 2 * len(by)


@pytest.mark.parametrize(('network', 'short', 'seeds'), [('ResNet-32', 'R32', 8), ('ViT-T/8', 'ViT-T/8', 5)])
def test_the_scores_and_costs_that_decide_are_those_of_the_other_pages(network, short, seeds):
    script, results = load('accuracy'), ROOT / 'docs/results'
    by = script.scores_of(script.read(results / 'accuracy.csv', script.Score), script.PARETO)
    names = [f'{network}: {what}' for what in ('E2E', 'RepL, K = 4', 'dropped, K = 4')]
    e2e, repl, dropped = (np.array([by[name][seed] for seed in range(seeds)]) for name in names)
    low, high = stats.ttest_rel(repl, dropped).confidence_interval(0.95)
    words = f'Score of {network}, 10,000 images of Fashion-MNIST, {seeds} seeds | '
    words += f'E2E {e2e.mean():.2f}, RepL {repl.mean():.2f}, the same blocks dropped {dropped.mean():.2f}; '
    words += f'RepL over dropped {(repl - dropped).mean():+.2f} ({low:+.2f} to {high:+.2f})'
    assert words in (ROOT / 'docs/when.md').read_text()
    rivals = [row for row in load('rivals').read(results / 'rivals.csv') if row.network == f'{short}, CIFAR-10']
    costs = {cost.row: cost for cost in script.read(results / 'accuracy_costs.csv', script.Cost)}
    [interval] = (row for row in rivals if row.way == 'RepL, interval')
    [shallower] = (row for row in rivals if row.way.startswith('shallower'))
    assert costs[names[1]].step_ms == pytest.approx(interval.step_ms)
    assert costs[names[2]].memory_mib == pytest.approx(shallower.memory_mib)


@pytest.mark.parametrize(
    ('study', 'network', 'words'),
    [
        ('2026_table_8', 'RetinaNet, ResNet-50: ', 'RetinaNet-R34 on digit scenes, sites by `budget`, 3 seeds | AP'),
        (
            '2026_table_14',
            'DeepLabV3+, ResNet-50: ',
            'DeepLabV3+-R34 on digit scenes, sites by `budget`, 3 seeds | mIoU',
        ),
        ('2026_table_10', '', "a language model on Python's reference pages, 3 seeds | Perplexity, less is better,"),
    ],
)
def test_the_scores_of_detector_segmenter_and_language_model_are_those_of_the_words(study, network, words):
    script = load('accuracy')
    by = script.scores_of(script.read(ROOT / 'docs/results/accuracy.csv', script.Score), study)
    rows = (by[f'{network}{row}'] for row in ('E2E', 'RepL'))
    e2e, repl = (np.array([row[seed] for seed in range(3)]) for row in rows)
    low, high = stats.ttest_rel(repl, e2e).confidence_interval(0.95)
    words += f' {e2e.mean():.1f} E2E, {repl.mean():.1f} RepL; '
    words += f'RepL over E2E {(repl - e2e).mean():+.2f} ({low:+.2f} to {high:+.2f})'
    assert words in (ROOT / 'docs/when.md').read_text()


@pytest.mark.parametrize(
    ('study', 'network', 'without'),
    [('2026_table_6', 'RepL: ', "no neighbour's weights"), ('2026_table_7', 'ViT-T/8: ', 'the preceding block alone')],
)
def test_the_scores_of_sites_that_read_less_are_those_of_the_words(study, network, without):
    script = load('accuracy')
    table = {row.name: row for row in load_study(ROOT / f'configs/studies/{study}.py', 'small').rows}
    by = script.scores_of(script.read(ROOT / 'docs/results/accuracy.csv', script.Score), study)
    row = table[f'{network}{without}']
    own, e2e = (np.array([by[name][seed] for seed in range(3)]) for name in (row.name, row.versus))
    low, high = stats.ttest_rel(own, e2e).confidence_interval(0.95)
    published = row.published['score'] - table[row.versus].published['score']
    words = f'{without} over E2E {(own - e2e).mean():+.2f} ({low:+.2f} to {high:+.2f}), published {published:+.2f}'
    assert words in (ROOT / 'docs/when.md').read_text()


def test_a_published_difference_outside_the_interval_is_said_to_be():
    script, random = load('accuracy'), np.random.default_rng(0)
    study = load_study(ROOT / 'configs/studies/2026_table_7.py', 'small')
    rows = {row.name: row for row in study.rows if row.name.startswith('ViT')}
    by = {name: dict(enumerate(random.normal(81, 0.5, 3))) for name in rows}
    by['ViT-T/8: the succeeding block alone'] = {seed: s - 0.5 * seed for seed, s in by['ViT-T/8: E2E'].items()}
    by['ViT-T/8: both'] = {0: 81.0}  # one seed has no interval
    table = {row[0]: row for row in script.study_table(study, by, {}).rows}
    outside = {}
    for name, row in rows.items():
        if row.versus and len(by[name]) == 3:
            own, e2e = (np.array(list(by[of].values())) for of in (name, row.versus))
            low, high = stats.ttest_rel(own, e2e).confidence_interval(0.95)
            gap = row.published['score'] - rows[row.versus].published['score']
            outside[name] = not low <= gap <= high
            assert table[name][-1] == f'{gap:+.2f}' + ', outside' * outside[name]
    assert outside == {'ViT-T/8: the succeeding block alone': False, 'ViT-T/8: the preceding block alone': True}
    assert table['ViT-T/8: both'][-1] == '+0.94'


@pytest.mark.parametrize('table', sorted((ROOT / 'docs/results').glob('warm_start_*.csv')), ids=lambda path: path.stem)
def test_the_pages_of_warm_starts_hold_their_tables(table):
    with table.open() as file:
        header, *rows = csv.reader(file)
    lines = [line for line in table.with_suffix('.md').read_text().splitlines() if line.startswith('| ')]
    assert lines[0] == f'| {" | ".join(header)} |'
    assert lines[2:] == [f'| {" | ".join(row)} |' for row in rows]


def test_what_a_warm_start_loses_is_that_of_the_words():
    words, summary = (ROOT / 'docs/fine_tuning.md').read_text(), (ROOT / 'docs/when.md').read_text()

    def read(name: str) -> tuple[list[np.ndarray], float]:
        """What each seed loses, row by row, and the most that coefficients explain at a site, in per cent."""
        with (ROOT / f'docs/results/warm_start_{name}.csv').open() as file:
            rows = list(csv.DictReader(file))
        lost = [np.array(row['lost, by seed'].split(','), dtype=float) for row in rows]
        return lost, 100 * (1 - min(float(row['unexplained, by site'].split(' to ')[0]) for row in rows))

    (interval, budget), explained = read('fashion-mnist_cpu_2026-11-28')
    ranges = (interval.min(), interval.max(), budget.min(), budget.max())
    assert '{:.1f} to {:.1f} points with `interval` and {:.1f} to {:.1f} with `budget`'.format(*ranges) in words
    assert f'no coefficients explain more than {explained:.0f} % of what' in words
    assert f'{interval.mean():.1f} or {budget.mean():.1f} on Fashion-MNIST' in summary
    lost, explained = read('digit-scenes_cpu_2026-11-28')
    ranges = [f(loss) for loss in lost for f in (np.min, np.max)]
    detector = '{:.1f} to {:.1f} points of AP with `interval` and {:.1f} to {:.1f} with `budget`'
    segmenter = '{:.1f} to {:.1f} and {:.1f} to {:.1f} points of mIoU'
    assert f'{detector}, DeepLabV3+ {segmenter}'.format(*ranges) in words
    assert f'no coefficients explain more than {explained:.0f} % of what a block' in words
    means = 'RetinaNet-R34 {:.1f} or {:.1f} points of AP, DeepLabV3+-R34 {:.1f} or {:.1f} of mIoU'
    assert means.format(*(loss.mean() for loss in lost)) in summary
