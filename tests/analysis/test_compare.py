"""Contract: a comparison shows what the runs' own records say, and refuses what is no finished run.

Oracle: records written by hand with changes worked out by hand.
"""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from cli_helpers import run
from markdown_it import MarkdownIt
from mmengine.logging import MMLogger
from PIL import Image

from repl_mm.analysis import plot
from repl_mm.analysis.compare import Comparison, Row, as_json, as_markdown, compare

TOOL = Path(__file__).parents[2] / 'tools' / 'compare.py'
CONFIG = """
default_scope = 'mmpretrain'
train_cfg = dict(by_epoch=True)
model = dict(type='ImageClassifier', backbone=dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl={repl}))
"""
COST = {
    'complete': True,
    'device': 'CPU, 2 threads',
    'world_size': 1,
    'versions': {'torch': '2.11.0', 'repl_mm': '0.1.0'},
    'date': '2026-11-21',
    'input_shape': [3, 32, 32],
    'images_per_step': 64,
    'warmup': 10,
    'step_time_s': {'mean': 0.11, 'p50': 0.1, 'p90': 0.15, 'p99': 0.2},
    'data_time_s': {'mean': 0.01, 'p50': 0.01, 'p90': 0.01, 'p99': 0.01},
    'images_per_s': 500.0,
    's_per_epoch': 4.0,
    'memory_bytes': {'peak_resident': 1000 * 2**20, 'resident_at_start': 600 * 2**20},
}


def train_line(step: int, loss: float) -> dict:
    return {'lr': 0.1, 'loss': loss, 'epoch': 1, 'iter': step, 'step': step}


def write_log(folder: Path, *lines: dict, start: str = '20261121_000000') -> None:
    """What mmengine's visualizer leaves."""
    curves = folder / start / 'vis_data'
    curves.mkdir(parents=True)
    (curves / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))


def write_run(folder: Path, *, repl: str = 'None', accuracy: float = 90.0, **changes) -> Path:
    lines = [train_line(step, 2.0 / step) for step in (10, 20)]
    lines += [{'accuracy/top1': value, 'time': 0.1, 'step': at} for at, value in ((1, 50.0), (2, accuracy))]
    write_log(folder, *lines)
    (folder / 'config.py').write_text(CONFIG.format(repl=repl))
    (folder / 'cost.json').write_text(json.dumps(COST | changes))
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    faster = dict(
        step_time_s={'mean': 0.1, 'p50': 0.08, 'p90': 0.18, 'p99': 0.2},
        memory_bytes={'peak_resident': 900 * 2**20, 'resident_at_start': 600 * 2**20},
        s_per_epoch=None,
    )
    replaced = "dict(policy='interval', every=4)"
    return [write_run(tmp_path / 'E2E'), write_run(tmp_path / 'RepL', repl=replaced, accuracy=91.25, **faster)]


@pytest.fixture
def run_tool(monkeypatch):
    # The tool silences the logger for good.
    monkeypatch.setattr(MMLogger, 'setLevel', lambda *args: None)
    return partial(run, 'compare')


def test_values_and_changes_by_hand(pair):
    markdown = as_markdown(compare(pair))
    # ResNet-32 has 466,256 parameters; a site saves 2 x 9 C^2 for C = 16, 32, 64: 96,768.
    for line in (
        '|  | E2E | RepL |',
        '| Top-1 accuracy (%) | 90.00 | 91.25 (+1.25) |',
        '| Parameters | 466,256 | 369,488 (-20.8 %) |',
        '| Peak memory of all processes (MiB) | 1,000 | 900 (-10.0 %) |',
        '| of which since training began (MiB) | 400 | 300 (-25.0 %) |',
        '| Step time, p50 (ms) | 100.0 | 80.0 (-20.0 %) |',
        '| Step time, p90 (ms) | 150.0 | 180.0 (+20.0 %) |',
        '| Time per epoch (s) | 4.00 | – |',
    ):
        assert line in markdown.splitlines()
    assert 'GPU' not in markdown
    assert 'CPU, 2 threads, torch 2.11.0' in markdown


def test_json_holds_the_same_numbers(pair):
    rows = {row['label']: row for row in json.loads(as_json(compare(pair)))['rows']}
    assert rows['Top-1 accuracy (%)']['change'] == [0, 1.25]
    assert rows['Step time, p50 (ms)']['values'] == [100.0, 80.0]
    assert rows['Step time, p50 (ms)']['change'][1] == pytest.approx(-20)
    assert rows['Time per epoch (s)']['change'][1] is None


def test_a_change_from_nothing_is_unknown():
    assert Row('cost', (0.0, 1.0)).cell(1) == '1'
    assert Row('score', (0.0, 1.0), is_score=True).cell(1) == '1 (+1)'


def test_gpu_memory_and_other_kinds_of_runs(pair, tmp_path):
    gpu = write_run(
        tmp_path / 'GPU', device='NVIDIA A100', memory_bytes={'peak_allocated': 2**30, 'peak_reserved': 2**31}
    )
    comparison = compare([pair[0], gpu])
    assert comparison.warnings == ('Not the same kind of run: hardware CPU, 2 threads / NVIDIA A100',)
    markdown = as_markdown(comparison)
    assert '| Peak GPU memory, allocated (MiB) | – | 1,024 |' in markdown
    assert '| Peak memory of all processes (MiB) | 1,000 | – |' in markdown


def test_interrupted_and_resumed_runs(pair):
    folder = pair[1]
    (folder / 'cost.json').write_text(json.dumps(COST | {'complete': False}))
    write_log(folder, {'accuracy/top1': 93.0, 'step': 2}, start='20261122_000000')
    run = compare(pair).runs[1]
    assert run.name == 'RepL (interrupted)'
    assert run.metrics['accuracy/top1'] == [(1, 50.0), (2, 93.0)]


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / kind / 'resnet32') for kind in ('plain', 'replaced')]
    assert [run.name for run in compare(runs).runs] == ['plain/resnet32', 'replaced/resnet32']


def test_a_shorter_training_replaces_a_longer_one_from_its_first_step(pair):
    folder = pair[1]
    longer = [train_line(30, 0.3), {'accuracy/top1': 97.0, 'step': 3}, train_line(40, 0.2)]
    write_log(folder, *longer, {'accuracy/top1': 98.0, 'step': 4}, start='20261122_000000')
    # Resumed at step 40 and killed: the validation after the former step 40 is of weights that are no more.
    write_log(folder, train_line(40, 0.8), start='20261122_120000')
    run = compare(pair).runs[1]
    assert run.loss == [(10, 0.2), (20, 0.1), (30, 0.3), (40, 0.8)]
    assert run.metrics['accuracy/top1'][-1] == (3, 97.0)

    resumed = [train_line(40, 0.9), {'accuracy/top1': 60.0, 'step': 4}]
    write_log(folder, *resumed, start='20261123_000000')
    run = compare(pair).runs[1]
    assert run.loss == [(10, 0.2), (20, 0.1), (30, 0.3), (40, 0.9)]
    assert run.metrics['accuracy/top1'][-2:] == [(3, 97.0), (4, 60.0)]

    started_over = [train_line(10, 2.5), train_line(20, 2.4), {'accuracy/top1': 30.0, 'step': 1}]
    write_log(folder, *started_over, start='20261124_000000')
    run = compare(pair).runs[1]
    assert run.loss == [(10, 2.5), (20, 2.4)]
    assert run.metrics['accuracy/top1'] == [(1, 30.0)]


def test_only_scores_are_metrics(pair):
    score = {
        'coco/bbox_mAP': 0.4,
        'coco/bbox_mAP_l': -1.0,
        'coco/7_precision': 0.3,
        'data_time': 0.1,
        'time': 0.2,
        'step': 3,
    }
    write_log(pair[1], score, {'cost/step_time_s': 0.1, 'step': 50}, start='20261122_000000')
    comparison = compare(pair)
    assert list(comparison.runs[1].metrics) == ['accuracy/top1', 'coco/bbox_mAP']
    assert '| AP | – | 0.400 |' in as_markdown(comparison).splitlines()


def test_the_model_is_that_of_the_training_not_of_a_later_test(pair):
    folder = pair[1]
    trained = (folder / 'config.py').read_text()
    (folder / '20261121_000000' / 'vis_data' / 'config.py').write_text(trained)
    tested = folder / '20261122_000000' / 'vis_data' / 'config.py'
    tested.parent.mkdir(parents=True)
    for path in (tested, folder / 'config.py'):
        path.write_text(CONFIG.format(repl='None'))
    assert compare(pair).runs[1].complexity.parameters == 369_488


def test_the_model_is_that_of_the_latest_training(pair):
    folder = pair[1]
    write_log(folder, train_line(30, 0.1), start='20261122_000000')
    for start, repl in (('20261121_000000', 'None'), ('20261122_000000', "dict(policy='interval', every=4)")):
        (folder / start / 'vis_data' / 'config.py').write_text(CONFIG.format(repl=repl))
    (folder / 'config.py').write_text(CONFIG.format(repl='None'))
    assert compare(pair).runs[1].complexity.parameters == 369_488


def test_of_configs_at_the_top_the_last_written_counts(pair):
    """Where the visualizer left none beside its log."""
    folder = pair[1]
    (folder / 'aa.py').write_text(CONFIG.format(repl='None'))
    (folder / 'zz.py').write_text(CONFIG.format(repl='None'))
    for age, name in enumerate(('config.py', 'aa.py', 'zz.py')):
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    assert compare(pair).runs[1].complexity.parameters == 369_488


def test_validations_are_counted_as_the_logger_does(pair):
    """In epochs unless the logger is told otherwise, as in mmseg's schedules by iteration."""
    config = pair[1] / 'config.py'
    config.write_text(config.read_text() + 'default_hooks = dict(logger=dict(log_metric_by_epoch=False))\n')
    assert [run.by_epoch for run in compare(pair).runs] == [True, False]


UNKNOWN = dict(
    step_time_s=None, data_time_s=None, images_per_s=None, s_per_epoch=None, images_per_step=None, memory_bytes=None
)


def png_size(comparison: Comparison, path: Path) -> tuple[int, int]:
    path.write_bytes(plot.as_png(comparison))
    with Image.open(path) as picture:
        picture.verify()
        return picture.size


def test_what_is_unknown_is_a_dash(pair, tmp_path):
    short = write_run(tmp_path / 'short', accuracy=float('nan'), **UNKNOWN)
    comparison = compare([*pair, short])
    markdown = as_markdown(comparison)
    for line in (
        '| Top-1 accuracy (%) | 90.00 | 91.25 (+1.25) | – |',
        '| Peak memory of all processes (MiB) | 1,000 | 900 (-10.0 %) | – |',
        '| of which since training began (MiB) | 400 | 300 (-25.0 %) | – |',
        '| Step time, p50 (ms) | 100.0 | 80.0 (-20.0 %) | – |',
    ):
        assert line in markdown.splitlines()
    assert 'NaN' not in as_json(comparison)
    assert png_size(comparison, tmp_path / 'last.png') > (1500, 500)
    assert png_size(compare([short, *pair]), tmp_path / 'first.png') > (1500, 500)


def test_runs_that_know_nothing(tmp_path):
    runs = [write_run(tmp_path / name, **UNKNOWN) for name in 'ab']
    for folder in runs:
        next(folder.glob('*/vis_data/scalars.json')).unlink()
    comparison = compare(runs)
    assert [row.label for row in comparison.rows] == [
        'Parameters',
        'Trainable parameters',
        'FLOPs, forward, per image (M)',
    ]
    assert png_size(comparison, tmp_path / 'none.png') > (1500, 500)


def test_names_with_marks_of_rich_and_markdown(tmp_path, run_tool):
    runs = [write_run(tmp_path / name) for name in ('a|b', 'lr[bold]')]
    assert '|  | a\\|b | lr\\[bold] |' in as_markdown(compare(runs)).splitlines()
    assert 'lr[bold]' in run_tool(*runs).out


def test_files_go_to_the_folder_that_all_runs_are_in(tmp_path, run_tool):
    runs = [write_run(tmp_path / parent / name) for parent, name in (('x', 'E2E'), ('y', 'RepL'))]
    assert run_tool(*runs).code == 0
    assert [path.parent for path in tmp_path.rglob('comparison.*')] == [tmp_path] * 3


def test_tool_writes_table_numbers_and_picture(pair, tmp_path):
    """In a process of its own, as users run it."""
    command = [sys.executable, TOOL, *pair, '--out', tmp_path / 'out']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '91.25 (+1.25)' in done.stdout
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'bubbles.png',
        'comparison.json',
        'comparison.md',
        'comparison.png',
    ]
    with Image.open(tmp_path / 'out' / 'comparison.png') as picture:
        assert picture.width > 1500
        assert len(picture.convert('RGB').getcolors(maxcolors=10**6)) > 100


BAD = {
    'one run': (lambda a, b: [a], 'at least two runs, got 1'),
    'twice': (lambda a, b: [a, a], 'given twice'),
    'no folder': (lambda a, b: [a, b / 'nowhere'], 'there is no folder'),
    'no config': (lambda a, b: (b / 'config.py').unlink() or [a, b], 'holds no config'),
    'no Python': (lambda a, b: (b / 'config.py').write_text('model = (') and [a, b], 'never closed'),
    'no model': (
        lambda a, b: (b / 'config.py').write_text("model = dict(type='Nowhere')") and [a, b],
        r"cannot build .*config.py and apply it to images of \[3, 32, 32\]: unknown type 'Nowhere'",
    ),
    'torn cost': (lambda a, b: (b / 'cost.json').write_text('{"complete":') and [a, b], 'cost.json cannot be read'),
    'empty cost': (
        lambda a, b: (b / 'cost.json').write_text('{}') and [a, b],
        'is not what training writes, complete, device is not there',
    ),
    'list of costs': (lambda a, b: (b / 'cost.json').write_text('[1]') and [a, b], 'cost.json cannot be read'),
    'curve without steps': (
        lambda a, b: next(b.glob('*/vis_data/scalars.json')).write_text('{"loss": 1}') and [a, b],
        "line 1: 'step' is a whole number, got null",
    ),
    'torn curve': (
        lambda a, b: next(b.glob('*/vis_data/scalars.json')).write_text('{"step"') and [a, b],
        'line 1 cannot be read',
    ),
}


DEEP = '[' * 100_000 + ']' * 100_000
CORRUPT_COSTS = {
    'binary': (b'\x80\x04\x95\xff', 'cannot be read: one JSON object'),
    'deep': (b'{"a": ' + DEEP.encode() + b'}', 'cannot be read: one JSON object'),
    'nothing': (b'', 'cannot be read: one JSON object'),
    'half an emoji': (b'{"device": "\xf0\x9f"}', 'cannot be read: one JSON object'),
    'shape': (dict(input_shape='3x32x32'), "'input_shape' is channels, height and width"),
    'shape of two': (dict(input_shape=[32, 32]), "'input_shape' is channels, height and width"),
    'side too large': (dict(input_shape=[3, 10**12, 32]), "'input_shape' is channels, height and width"),
    'infinite side': (dict(input_shape=[3, float('inf'), 32]), "'input_shape' is channels, height and width"),
    'complete': (dict(complete='yes'), '\'complete\' is true or false, got "yes"'),
    'device': (dict(device=['CPU']), "'device' is text"),
    'versions': (dict(versions=['2.11.0']), "'versions' is texts by name"),
    'times': (dict(step_time_s=[0.1]), "'step_time_s' is numbers of at least 0 by name, or null, got"),
    'NaN': (dict(step_time_s=dict(p50=float('nan'))), "'step_time_s' is numbers of at least 0"),
    'text': (dict(images_per_s='500'), '\'images_per_s\' is a number of at least 0, or null, got "500"'),
    'negative': (dict(s_per_epoch=-1), "'s_per_epoch' is a number of at least 0, or null, got -1"),
    'large': (dict(images_per_s=10**400), "'images_per_s' is a number of at least 0, or null, got a number too large"),
    'memory': (dict(memory_bytes=dict(peak_resident=True)), "'memory_bytes' is numbers of at least 0"),
    'processes': (dict(world_size=1.5), "'world_size' is a whole number, got 1.5"),
}


@pytest.mark.parametrize('case', CORRUPT_COSTS)
def test_a_corrupt_cost_is_one_line_that_says_what_was_expected(pair, case):
    content, message = CORRUPT_COSTS[case]
    path = pair[1] / 'cost.json'
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(COST | content).encode())
    with pytest.raises(ValueError, match='^' + re.escape(str(path))) as error:
        compare(pair)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


CORRUPT_LINES = {
    '{"loss": 1, "step": null}': "'step' is a whole number, got null",
    '{"loss": 1, "step": Infinity}': "'step' is a whole number, got Infinity",
    '{"loss": 1, "step": NaN}': "'step' is a whole number, got NaN",
    '{"loss": 1, "step": "1"}': '\'step\' is a whole number, got "1"',
    '{"loss": 1, "step": [1]}': "'step' is a whole number, got [1]",
    f'{{"loss": 1, "step": {10**400}}}': "'step' is a whole number, got a number too large",
    f'{{"loss": {10**400}, "step": 1}}': "'loss' is a number, got a number too large",
    '{"loss": ' + '9' * 5000 + ', "step": 1}': 'cannot be read: one JSON object',
    '{"loss": null, "step": 1}': "'loss' is a number, got null",
    '{"loss": [1], "step": 1}': "'loss' is a number, got [1]",
    '{"accuracy/top1": {"a": 1}, "step": 1}': "'accuracy/top1' is a number",
    '{"loss": true, "step": 1}': "'loss' is a number, got true",
    DEEP: 'cannot be read: one JSON object',
    '\x00\x01': 'cannot be read: one JSON object',
    'null': 'cannot be read: one JSON object',
}


@pytest.mark.parametrize('line', CORRUPT_LINES, ids=range(len(CORRUPT_LINES)))
def test_a_corrupt_curve_is_one_line_that_names_its_own(pair, line):
    path = next(pair[1].glob('*/vis_data/scalars.json'))
    path.write_text(json.dumps(train_line(10, 1.0)) + '\n' + line)
    with pytest.raises(ValueError, match='^' + re.escape(f'{path}, line 2')) as error:
        compare(pair)
    assert CORRUPT_LINES[line] in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_records_that_are_no_files_and_configs_of_another_shape(pair):
    (pair[1] / 'cost.json').unlink()
    os.mkfifo(pair[1] / 'cost.json')
    with pytest.raises(ValueError, match=r'cost\.json is no file'):
        compare(pair)
    (pair[1] / 'cost.json').unlink()
    config = pair[1] / 'config.py'
    config.write_text(config.read_text() + 'default_hooks = [dict(type=1)]\n')
    with pytest.raises(ValueError, match=r'cannot build .*config\.py'):
        compare(pair)


def test_a_diverged_run_has_no_score(pair):
    path = next(pair[1].glob('*/vis_data/scalars.json'))
    path.write_text('{"loss": Infinity, "step": 1}\n{"accuracy/top1": -Infinity, "step": 1}')
    assert '| Top-1 accuracy (%) | 90.00 | – |' in as_markdown(compare(pair)).splitlines()


def test_what_a_run_without_costs_tells_is_compared(pair, tmp_path, run_tool):
    (pair[1] / 'cost.json').unlink()
    comparison = compare(pair)
    lines = as_markdown(comparison).splitlines()
    # Its model is counted at the other run's size; 124.1 of 138.2 M by the README.
    assert '| Top-1 accuracy (%) | 90.00 | 91.25 (+1.25) |' in lines
    assert '| Parameters | 466,256 | 369,488 (-20.8 %) |' in lines
    assert next(line for line in lines if line.startswith('| FLOPs')).endswith('(-10.2 %) |')
    assert '| Step time, p50 (ms) | 100.0 | – |' in lines
    assert comparison.warnings == ('RepL has no cost.json, its time and memory are unknown',)
    # One that was killed before its first step.
    (pair[1] / 'cost.json').write_text(json.dumps(COST | dict(input_shape=None, images_per_step=None, complete=False)))
    assert '| Parameters | 466,256 | 369,488 (-20.8 %) |' in as_markdown(compare(pair)).splitlines()
    (pair[1] / 'cost.json').unlink()
    (pair[0] / 'cost.json').unlink()
    labels = [row.label for row in compare(pair).rows]
    assert labels == ['Top-1 accuracy (%)', 'Parameters', 'Trainable parameters']
    assert run_tool(*pair, '--out', tmp_path / 'out').code == 0


def test_names_and_records_act_on_no_terminal_and_no_page(tmp_path, run_tool):
    names = ('a\n# b|c<script>', '_x\x1b[2J$y_$\udcff')
    runs = [write_run(tmp_path / name, device='# A\n<b>[red]\x1b]0;t\x07') for name in names]
    done = run_tool(*runs, '--out', tmp_path / 'out')
    assert done.code == 0, done.err
    assert 'a # b|c<script>' in done.out
    assert '_x\\x1b[2J$y_$\\udcff' in done.out
    assert '# A <b>[red]\\x1b]0;t\\x07, torch' in done.out
    assert not {'\x1b', '\x07'} & set(done.out)
    markdown = (tmp_path / 'out' / 'comparison.md').read_text()
    assert markdown.splitlines()[0] == '|  | a # b\\|c\\<script> | \\_x\\\\x1b\\[2J$y\\_$\\\\udcff |'
    tokens = MarkdownIt('commonmark').enable('table').parse(markdown)
    assert {token.type for token in tokens} & {'heading_open', 'html_block'} == set()
    inline = [child.type for token in tokens for child in token.children or ()]
    assert 'html_inline' not in inline


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_sentence(pair, case):
    spoil, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        compare(spoil(*pair))


def test_tool_ends_with_a_one_line_message_and_writes_nothing(pair, tmp_path, run_tool):
    (pair[1] / 'config.py').unlink()
    code, _, stderr = run_tool(*pair, '--out', tmp_path / 'out')
    assert code == 2
    assert stderr.strip().startswith('error: ')
    assert len(stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_a_file_is_no_place_for_files(pair, tmp_path, run_tool):
    (tmp_path / 'out').write_text('')
    code, _, stderr = run_tool(*pair, '--out', tmp_path / 'out')
    assert (code, stderr) == (2, f'error: --out {tmp_path / "out"} is a file: give a folder\n')


def test_nothing_is_written_when_something_cannot_be_made(pair, tmp_path, monkeypatch, run_tool):
    def fail(comparison: Comparison) -> bytes:
        raise ValueError('no picture today')

    monkeypatch.setattr(plot, 'as_png', fail)
    assert run_tool(*pair, '--out', tmp_path / 'out').code == 2
    assert not (tmp_path / 'out').exists()
