"""Contract: what is predicted of a step equals what the tracker counts of a real one, and bad input is one sentence.

Oracles: torch's memory tracker on real CPU tensors; counts by hand.
"""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.predict import OperatorCosts, predict_step
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
    # They differ by one float32 scalar, 4 bytes of 8 MiB; a tensor of the network missed would be far more.
    assert predicted.memory == pytest.approx(measure_memory(step), rel=0, abs=8 / MIB)
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
