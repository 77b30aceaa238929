"""Contract: what is predicted of a step equals what the tracker counts of a real one, and bad input is one sentence.

Oracles: torch's memory tracker on real CPU tensors; counts by hand.
"""

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_helpers import run
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from repl_mm.backbones.configs import backbone_class, with_repl
from repl_mm.benchmark.devices import Device, find_device
from repl_mm.benchmark.fake import FakeStep, OperatorCosts, autocast_of_gpu, fake_tensors
from repl_mm.benchmark.operators import OperatorCounter
from repl_mm.benchmark.predict import predict_step
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.training import MIB, measure_memory
from repl_mm.benchmark.variants import build_variants

CONFIGS = Path(__file__).parents[2] / 'configs'
DEMO = CONFIGS / 'demo'
A100 = find_device('a100')


NETWORKS = {  # size of the images or sequences
    'demo/resnet32-repl_digits.py': (32, 32),
    'demo/vit-tiny-repl_digits.py': (32, 32),
    'demo/deeplabv3plus_r34-d8-repl_digits.py': (64, 64),
    'demo/retinanet_r34-repl_fpn_digits.py': (64, 64),
    'demo/transformer-lm-repl_topics.py': (64,),
    'classification/resnet50-repl_4xb128-90e_in1k.py': (32, 32),
    'classification/swin-tiny-repl_8xb128-300e_in1k.py': (64, 64),
}


def load(name: str) -> Config:
    config = Config.fromfile(CONFIGS / name)
    if 'swin' in name:  # narrower, with all that a user's config may have: clipping, smoothed labels
        config.model.backbone.arch = dict(embed_dims=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8])
        config.model.backbone.update(img_size=64, pad_small_map=True)
        config.model.head.in_channels = 192
        assert config.optim_wrapper.clip_grad
    if 'deeplab' in name:
        config.model.decode_head.loss_decode.class_weight = None  # it indexes by labels
    return build_variants(config, ['RepL'])['RepL']


def real_step(config: Config, size: tuple[int, ...], backend: str = 'fp32') -> TrainingStep:
    """With the optimizer as it is on a GPU by default."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        step = TrainingStep(config, batch=2, size=size, backend=backend, device=torch.device('cpu'))
    for group in step.wrapper.optimizer.param_groups:
        group['foreach'] = True
    step()
    return step


@pytest.mark.parametrize('name', NETWORKS)
def test_predicted_memory_is_that_of_real_tensors(name):
    """With the library's own loss, but for a detector's: what is left out of it is at most 1 % here."""
    config, size = load(name), NETWORKS[name]
    predicted = predict_step(config, A100, batch=2, size=size)
    measured = measure_memory(real_step(config, size))
    if 'retinanet' in name:
        assert predicted.left_out == 'losses'
        assert 0 <= measured.pop('activations') - predicted.memory['activations'] < 0.01 * measured['total']
        assert 0 <= measured['total'] - predicted.memory['total'] < 0.01 * measured.pop('total')
    for part, value in measured.items():
        # A site's constant of 4 bytes is made anew where tensors hold no data; real ones share it.
        assert predicted.memory[part] == pytest.approx(value, rel=0, abs=4.001 / MIB)
    # What a step takes is at least what its launches alone take.
    assert predicted.seconds > 0.999 * predicted.operators * A100.launch_us / 1e6 > 0


@pytest.mark.parametrize('name', ['demo/vit-tiny-repl_digits.py', 'demo/deeplabv3plus_r34-d8-repl_digits.py'])
def test_operators_are_those_of_the_profiler(name):
    """All that compute, by name, in a step of the library on real tensors."""
    config, size = load(name), NETWORKS[name]
    step = real_step(config, size)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    found = {event.key: event.count for event in profile.key_averages()}
    with fake_tensors():
        fake = FakeStep(config, batch=2, size=size, backend='fp32', device=torch.device('cpu'))
        fake()
        with OperatorCounter() as counter:
            fake()
    kinds = ('convolution', 'convolution_backward', 'native_batch_norm', 'addmm', 'gelu', 'native_layer_norm', 'relu')
    kinds += ('native_batch_norm_backward', 'native_layer_norm_backward', 'gelu_backward', 'threshold_backward')
    counted = {kind: counter.counts[kind] for kind in kinds if counter.counts[kind]}
    assert len(counted) >= 5
    assert counted == {kind: found[f'aten::{kind}'] for kind in counted}


def test_mixed_precision_is_autocast_of_a_gpu():
    """Where both agree, on a residual network, as torch's own for a CPU; norms of tokens are in FP32 on a GPU."""
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    step = real_step(config, (32, 32))
    step.precision = lambda: torch.autocast('cpu', torch.bfloat16)
    predicted = predict_step(config, A100, batch=2, size=(32, 32), backend='amp')
    assert predicted.memory == pytest.approx(measure_memory(step), rel=1e-3)
    x = torch.ones(2, 8, 16)
    attention = nn.MultiheadAttention(16, 2)
    with autocast_of_gpu():
        product = attention.out_proj(x)
        assert product.dtype == (product + product).dtype == nn.GELU()(product).dtype == torch.bfloat16
        for out in (nn.LayerNorm(16)(product), product.softmax(-1), product.sum(), product**2):
            assert out.dtype == torch.float32
        assert nn.functional.cross_entropy(product[:, 0], torch.zeros(2).long()).dtype == torch.float32
    with OperatorCosts(A100) as costs, torch.no_grad(), autocast_of_gpu():
        big = torch.ones(512, 512)
        big @ big
    assert costs.flops == 2 * 512**3
    casts = 2 * 512**2 * (4 + 2)
    assert costs.bytes_moved == 4 * 512**2 + 2 * casts / 2 + 3 * 2 * 512**2


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


@pytest.mark.parametrize('groups', [1, 4, 64])
@pytest.mark.parametrize('kind', [nn.Conv2d, nn.ConvTranspose2d])
def test_the_backward_pass_of_a_convolution_has_two_of_its_size(kind, groups):
    """Torch's own count of it is ``groups`` times too high for the weights' gradients."""
    layer = kind(64, 64, 3, stride=2, padding=1, bias=False, groups=groups)
    out = layer(torch.ones(2, 64, 8, 8, requires_grad=True)).sum()
    positions = 4 * 4 if kind is nn.Conv2d else 8 * 8  # at which a kernel is laid
    with OperatorCosts(A100) as costs:
        out.backward()
    assert costs.flops == 2 * 2 * 2 * 64 * (64 // groups) * 9 * positions


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unknown device 'v100': choose out of a100, h100"):
        find_device('v100')
    for value in (0, -1, float('nan'), 1e9, 'fast', None):
        with pytest.raises(ValueError, match='bandwidth of a device is a number above 0'):
            Device(fp32=1, tf32=1, bandwidth=value)
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    with pytest.raises(ValueError, match='at least 1 image, got 0'):
        predict_step(config, A100, batch=0, size=(32, 32))
    with pytest.raises(ValueError, match="for fp32 or amp, got the backend 'compile'"):
        predict_step(config, A100, batch=1, size=(32, 32), backend='compile')
    with pytest.raises(ValueError, match="of which the device has no figure: give it 'bf16' in TFLOPS"):
        predict_step(config, Device(fp32=1, tf32=1, bandwidth=1), batch=1, size=(32, 32), backend='amp')


@pytest.mark.parametrize('ask', [lambda x: float(x.sum()), lambda x: x[x > 0], lambda x: x.detach().numpy()])
def test_a_forward_pass_that_needs_data_is_one_sentence(ask, monkeypatch):
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    forward = backbone_class(config).forward
    monkeypatch.setattr(backbone_class(config), 'forward', lambda self, x: (ask(x), forward(self, x))[1])
    with pytest.raises(ValueError, match='a step that needs data cannot be predicted'):
        predict_step(config, A100, batch=1, size=(32, 32))


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
    assert 'Predicted for a100. fp32: 156 TFLOPS' in (tmp_path / 'train.md').read_text()


def test_operators_are_those_that_are_dispatched():
    """A whole step on real tensors; without data, each of the three sites makes its constant anew, of one number."""
    config = build_variants(Config.fromfile(DEMO / 'resnet32-repl_digits.py'), ['RepL'])['RepL']
    step = real_step(config, (32, 32))
    with OperatorCosts(A100) as costs:
        step()
    predicted = predict_step(config, A100, batch=2, size=(32, 32))
    kernels = [(9 * width**2 + 1) * 4 for width in (16, 32, 64)]
    assert predicted.operators == costs.operators + len(kernels)
    assert predicted.bytes_moved == costs.bytes_moved + sum(kernels)
    assert predicted.flops == costs.flops


def test_stochastic_depth_is_the_mean_over_its_draws():
    """Block n of 15 is skipped with probability 0.2 n / 15, unless it changes the shape, as 6 and 11 do.

    Each has two convolutions of 9 C^2 H W multiplications, as many in all three stages, and three times in a step.
    """
    variants = build_variants(Config.fromfile(DEMO / 'resnet32-repl_digits.py'), ['E2E', 'SD'])
    plain, skipping = (predict_step(config, A100, batch=2, size=(32, 32)) for config in variants.values())
    rate = 0.2 / 15 * (sum(range(1, 16)) - 6 - 11)
    assert plain.flops - skipping.flops == pytest.approx(rate * 3 * 2 * (2 * 9 * 16**2 * 32**2 * 2), abs=1)
    assert skipping.seconds < plain.seconds
    assert skipping.memory == plain.memory  # the peak of a run is that of a step that skips nothing


def test_memory_of_blocks_with_blended_weights():
    """The 2024 paper's form, which computes a block's weights: as of real tensors."""
    config = Config.fromfile(DEMO / 'resnet32_digits.py')
    config.model.backbone.type = 'repl_mm.ReplResNetCIFAR'
    config = with_repl(config, policy='interval', every=4, form='blend')
    predicted = predict_step(config, A100, batch=2, size=(32, 32))
    assert predicted.memory == pytest.approx(measure_memory(real_step(config, (32, 32))))


DEVICE = dict(fp32=10, tf32=80, bandwidth=900)
BAD_DEVICES = [
    ('{"fp32": 1, "tf32": 2}', 'does not describe a device: bandwidth is missing'),
    ('{"fp32": 1, "tf32": 2, "bandwidth": 3, "price": 4}', 'unknown price: choose out of fp32, tf32, bandwidth'),
    ('{"fp32": 1, "tf32": 2, "bandwidth": 1e30}', 'bandwidth of a device is a number above 0'),
    ('[1, 2]', 'a table of figures by name, got list'),
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


@pytest.mark.parametrize(
    ('config', 'change', 'expected'),
    [
        ('resnet32-repl_digits.py', ['--predict', 'v100'], "unknown device 'v100': choose out of a100, h100"),
        ('resnet32-repl_digits.py', ['--batch-size', 0], '--batch-size and --size are at least 1'),
        ('resnet32-repl_digits.py', ['--backend', 'compile'], "for fp32 or amp, got the backend 'compile'"),
        ('resnet32_digits.py', [], 'replaces nothing: give its backbone'),
        ("_base_ = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'", [], 'replaces nothing: give its backbone'),
        ("_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'", [], "in a backbone of type 'MobileNetV2'"),
    ],
)
def test_bad_input_of_the_tool_is_one_line(config, change, expected, tmp_path):
    if not config.endswith('.py'):
        (tmp_path / 'mine.py').write_text(config)
        config = tmp_path / 'mine.py'
    args = ['--predict', 'a100', '--batch-size', 2, '--size', 32, 32, '--out', tmp_path / 'out']
    done = run('benchmark', 'train', DEMO / config, *args, *change)
    assert done.code == 2
    assert expected in done.err.splitlines()[-1]


def test_what_cannot_be_predicted_says_why_and_the_table_goes_on(tmp_path):
    """A loss that asks for values; the rows after it stand."""
    path = tmp_path / 'asking.py'
    path.write_text(
        f"_base_ = '{DEMO / 'deeplabv3plus_r34-d8-repl_digits.py'}'\n"
        'model = dict(decode_head=dict(loss_decode=dict(avg_non_ignore=True)))\n'
    )
    configs = [path, DEMO / 'resnet32-repl_digits.py']
    args = ['--predict', 'h100', '--batch-size', 2, '--size', 64, 64, '--variant', 'RepL', '--out', tmp_path]
    done = run('benchmark', 'train', *configs, *args)
    assert done.code == 0, done.err
    rows = list(csv.DictReader((tmp_path / 'train.csv').open()))
    assert [bool(row['note']) for row in rows] == [True, False, False]
    assert 'needs data cannot be predicted' in rows[0]['note']


def test_the_page_of_evidence_is_what_its_script_writes():
    """From the CSV, cell by cell; and by hand, what a verdict says."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location('evidence', root / 'benchmarks/evidence.py')
    evidence = importlib.util.module_from_spec(spec)
    sys.modules['evidence'] = evidence
    spec.loader.exec_module(evidence)
    rows = evidence.read(root / 'docs/results/evidence.csv')
    assert len(rows) == len(evidence.CLAIMS) == 64
    assert evidence.as_page(rows) == (root / 'docs/evidence.md').read_text()
    row = evidence.Evidence(
        'I', '', '', 'RepL', 1, '', 0.8, 0.8, time=0.79, memory=0.804, drop_time=0.7, drop_memory=0.7
    )
    assert evidence.verdict(row) == 'Reached as it is written.'
    row = replace(row, time=0.82, choice='half', choice_time=0.8, choice_memory=0.8)
    assert evidence.verdict(row) == (
        'Not by the rule (time): only dropping its blocks would; another choice of sites does: half.'
    )
    row = replace(row, drop_memory=0.9, choice_time=0.81)
    assert evidence.verdict(row) == (
        'Not by the rule (time): even dropping its blocks would not; no choice that was tried does; nearest half.'
    )
