"""Contract: what is predicted of a step equals what the tracker counts of a real one, and bad input is one sentence.

Oracles: torch's memory tracker on real CPU tensors; counts by hand.
"""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from cli_helpers import run
from mmengine.config import Config
from torch import nn

from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.predict import OperatorCosts, PredictedRow, as_table, predict_step
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.training import MIB, measure_memory
from repl_mm.benchmark.variants import build_variants

DEMO = Path(__file__).parents[2] / 'configs/demo'
A100 = find_device('a100')


@pytest.mark.parametrize('name', ['resnet32-repl_digits.py', 'vit-tiny-repl_digits.py'])
def test_predicted_memory_is_that_of_real_tensors(name):
    config = build_variants(Config.fromfile(DEMO / name), ['RepL'])['RepL']
    step = TrainingStep(config, batch=2, size=(32, 32), backend='fp32', device=torch.device('cpu'))
    step()
    predicted = predict_step(config, A100, batch=2, size=(32, 32))
    # A site's constant of 4 bytes is made anew where tensors hold no data; real ones share it.
    assert predicted.memory == pytest.approx(measure_memory(step), rel=0, abs=4.001 / MIB)
    # What a step takes is at least what its launches alone take.
    assert predicted.seconds > 0.999 * predicted.operators * A100.launch_us / 1e6 > 0


def test_an_operator_takes_the_largest_of_computing_moving_and_launching():
    device = Device(fp32=1, tf32=10, bandwidth=100, compute_efficiency=0.5, bandwidth_efficiency=0.5, launch_us=1)
    x, weight = torch.ones(4, 8), torch.ones(8, 16)
    with OperatorCosts(device) as costs:
        x @ weight
    assert (costs.flops, costs.operators) == (2 * 4 * 8 * 16, 1)
    assert costs.bytes_moved == 4 * (4 * 8 + 8 * 16 + 4 * 16)
    assert costs.seconds == pytest.approx(max(1024 / 0.5e12, 896 / 50e9, 1e-6))
    big, layer = torch.ones(1, 64, 32, 32), nn.Conv2d(64, 64, 3, padding=1, bias=False)
    with OperatorCosts(device) as costs, torch.no_grad():
        layer(big)
    assert costs.flops == 2 * 64 * 64 * 9 * 32 * 32
    assert costs.seconds == pytest.approx(costs.flops / 5e12)  # convolutions in TF32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown device 'v100': choose out of a100, h100"):
        find_device('v100')
    for value in (0, -1, float('nan'), 1e9, 'fast', None):
        with pytest.raises(ValueError, match='bandwidth of a device is a number above 0'):
            Device(fp32=1, tf32=1, bandwidth=value)
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    with pytest.raises(ValueError, match='at least 1 image, got 0'):
        predict_step(config, A100, batch=0, size=(32, 32))
    with pytest.raises(ValueError, match='only steps of classifiers can be predicted'):
        predict_step(Config.fromfile(DEMO / 'retinanet_r34_fpn_digits.py'), A100, batch=1, size=(64, 64))


def test_the_tool_writes_the_figures_beside_the_published(tmp_path):
    """The figures of the library's own function, and the published ratios of R32: 2.69 / 3.38 and 8.20 / 10.44."""
    variants = ['--variant', 'drop, interval', 'RepL, interval']
    done = run(
        *('benchmark', 'train', DEMO / 'resnet32-repl_digits.py', '--predict', 'a100', '--batch-size', 1024),
        *('--size', 32, 32, *variants, '--out', tmp_path),
    )
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / 'train.csv').open()))
    assert [row['variant'] for row in rows] == ['E2E', *variants[1:]]
    config = build_variants(Config.fromfile(DEMO / 'resnet32-repl_digits.py'), ['RepL'])['RepL']
    step = predict_step(config, A100, batch=1024, size=(32, 32))
    assert float(rows[2]['step_ms']) == pytest.approx(1e3 * step.seconds)
    assert float(rows[2]['memory_mib']) == pytest.approx(step.memory['total'])
    assert float(rows[2]['published_memory']) == pytest.approx(2.69 / 3.38, abs=1e-3)
    assert float(rows[2]['published_time']) == pytest.approx(8.20 / 10.44, abs=1e-3)
    # Removing blocks bounds what a computing layer in their place can save.
    assert float(rows[1]['time']) < float(rows[2]['time']) < 1
    assert 'Predicted for a100: 156 TFLOPS' in (tmp_path / 'train.md').read_text()


def test_operators_are_those_that_are_dispatched():
    """A whole step on real tensors; without data, each of the three sites makes its constant anew, of one number."""
    config = build_variants(Config.fromfile(DEMO / 'resnet32-repl_digits.py'), ['RepL'])['RepL']
    step = TrainingStep(config, batch=2, size=(32, 32), backend='fp32', device=torch.device('cpu'))
    step()
    with OperatorCosts(A100) as costs:
        step()
    predicted = predict_step(config, A100, batch=2, size=(32, 32))
    kernels = [(9 * width**2 + 1) * 4 for width in (16, 32, 64)]
    assert predicted.operators == costs.operators + len(kernels)
    assert predicted.bytes_moved == costs.bytes_moved + sum(kernels)
    assert predicted.flops == costs.flops


DEVICE = dict(fp32=10, tf32=80, bandwidth=900)
BAD_DEVICES = [
    ('{"fp32": 1, "tf32": 2}', "missing 1 required positional argument: 'bandwidth'"),
    ('{"fp32": 1, "tf32": 2, "bandwidth": 3, "price": 4}', "unexpected keyword argument 'price'"),
    ('{"fp32": 1, "tf32": 2, "bandwidth": 1e30}', 'bandwidth of a device is a number above 0'),
    ('[1, 2]', 'figures than fp32'),
    ('{', 'does not describe a device'),
]


def test_a_device_of_ones_own(tmp_path):
    (tmp_path / 'mine.json').write_text(json.dumps(DEVICE))
    assert find_device(str(tmp_path / 'mine.json')) == Device(**DEVICE)


@pytest.mark.parametrize(('text', 'expected'), BAD_DEVICES)
def test_a_bad_device_is_one_line(text, expected, tmp_path):
    (tmp_path / 'mine.json').write_text(text)
    args = ['--predict', tmp_path / 'mine.json', '--batch-size', 2, '--size', 32, 32, '--out', tmp_path / 'out']
    done = run('benchmark', 'train', DEMO / 'resnet32-repl_digits.py', *args)
    assert done.code == 2
    assert expected in done.err.splitlines()[-1]
    assert not (tmp_path / 'out').exists()


def test_what_cannot_be_predicted_says_why_and_the_table_goes_on(tmp_path):
    configs = [DEMO / 'retinanet_r34-repl_fpn_digits.py', DEMO / 'resnet32-repl_digits.py']
    args = ['--predict', 'h100', '--batch-size', 2, '--size', 64, 64, '--variant', 'RepL', '--out', tmp_path]
    done = run('benchmark', 'train', *configs, *args)
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / 'train.csv').open()))
    assert [bool(row['note']) for row in rows] == [True, False, False]
    assert 'losses of detectors and segmenters need data' in rows[0]['note']


def test_the_page_has_the_figures_of_its_file():
    """What the tool writes from the records: the page's table, cell by cell."""
    results = Path(__file__).parents[2] / 'docs/results'
    (path,) = results.glob('predicted_a100_*.csv')
    kinds = {field.name: field.type for field in fields(PredictedRow)}
    rows = [
        PredictedRow(**{
            key: value if kinds[key] is str else int(value) if kinds[key] is int else float(value) if value else None
            for key, value in record.items()
        })
        for record in csv.DictReader(path.open())
    ]  # fmt: skip
    assert len(rows) > 80
    assert as_table(rows).markdown() in path.with_suffix('.md').read_text()
