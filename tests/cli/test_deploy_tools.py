"""Contract: what is deployed, exported or quantised gives the same outputs and scores, and bad input leaves nothing.

Oracles: the dynamic model and its predictions; onnxruntime; tools/test.py before and after; INT8 grids by hand.
"""

import copy
import json
import pickle
import resource
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from cli_helpers import CLASSIFIER, run
from helpers import randomise
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

import repl_mm.export.quantization
from repl_mm.backbones import ReplResNet
from repl_mm.benchmark import timing
from repl_mm.deployment import RawOutputs, deploy, relative_difference
from repl_mm.engine.checkpoints import load_local
from repl_mm.export.graph import OPSET, as_onnx, as_torch, check, input_shape, trace
from repl_mm.export.quantization import quantize, quantize_onnx
from repl_mm.layers import ComputingBasicBlock

DEMOS = Path(__file__).parents[2] / 'configs' / 'demo'
TASKS = ['resnet32-repl', 'vit-tiny-repl', 'retinanet_r34-repl_fpn', 'deeplabv3plus_r34-d8-repl']
ONE_STAGE = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
# Three blocks, the middle one a site.
REPL = CLASSIFIER.replace(
    "type='ResNet_CIFAR', depth=18, base_channels=8",
    "type='repl_mm.ReplResNetCIFAR', depth=34, stem_channels=16, base_channels=16, "
    f"repl=dict(policy='interval', every=2), **{ONE_STAGE}",
).replace('in_channels=64', 'in_channels=16')


def build(config: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(config.default_scope):
        if 'data_preprocessor' in config:
            config.model.setdefault('data_preprocessor', config.data_preprocessor)
        return randomise(MODELS.build(config.model)).eval()


def demo(name: str) -> nn.Module:
    """The model of a demo; classifiers with five blocks, the fourth one a site."""
    config = Config.fromfile(DEMOS / f'{name}_digits.py')
    if 'vit' in name:
        config.model.backbone.arch = dict(embed_dims=192, num_layers=5, num_heads=3, feedforward_channels=768)
    elif 'resnet32' in name:
        config.model.backbone.update(ONE_STAGE)
        config.model.head.in_channels = 16
    return build(config)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with a config with sites and a checkpoint of random weights, as training leaves them."""
    folder = tmp_path_factory.mktemp('deploy')
    (folder / 'net.py').write_text(REPL)
    model = build(Config.fromfile(folder / 'net.py'))
    meta = {'dataset_meta': {'classes': ('0', '1'), 'palette': np.array([[1, 2]])}}
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, folder / 'net.pth')
    return folder


@pytest.mark.parametrize('name', TASKS[2:])
def test_boxes_and_masks_stay_the_same(name):
    """The host's own post-processing, on images of two sizes."""
    torch.manual_seed(1)
    model = demo(name)
    if 'retina' in name:
        # Saturated scores would have no order.
        model.bbox_head.retina_cls.weight.data.mul_(0.05)
        model.bbox_head.retina_reg.weight.data.mul_(0.05)
    else:
        # All pixels would be of one class.
        model.decode_head.conv_seg.weight.data.mul_(100)
    static = deploy(model, fuse_all=True)
    samples = []
    for height, width in ((96, 128), (128, 128)):
        with DefaultScope.overwrite_default_scope('mmdet' if 'retina' in name else 'mmseg'):
            from mmdet.structures import DetDataSample
            from mmseg.structures import SegDataSample

            sample = (DetDataSample if 'retina' in name else SegDataSample)()
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0), pad_shape=(128, 128))
        sample.set_metainfo(meta)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        samples.append(dict(inputs=image, data_samples=sample))
    with torch.no_grad():
        before, after = (
            [m.test_step(copy.deepcopy(pseudo_collate([sample])))[0] for sample in samples] for m in (model, static)
        )
    for one, other in zip(before, after, strict=True):
        if 'retina' in name:
            boxes: InstanceData = one.pred_instances
            others: InstanceData = other.pred_instances
            assert len(boxes) == len(others) > 3
            # Rounding may exchange boxes whose scores are next to each other: each has its one nearest of its label.
            distance = torch.cdist(boxes.bboxes, others.bboxes)
            nearest = distance.masked_fill(boxes.labels[:, None] != others.labels, torch.inf).argmin(1)
            assert nearest.sort().values.equal(torch.arange(len(boxes)))
            assert torch.equal(boxes.labels, others.labels[nearest])
            assert (boxes.bboxes - others.bboxes[nearest]).abs().max() <= 1e-3
            assert (boxes.scores - others.scores[nearest]).abs().max() <= 1e-5
        else:
            assert len(one.pred_sem_seg.data.unique()) > 1
            assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)


@pytest.mark.parametrize('name', TASKS)
def test_exports_equal_the_dynamic_model(name):
    """Other shapes than it was traced with; for ONNX by another library's kernels."""
    model = demo(name)
    static = deploy(model)
    # At its own size a ViT's position embeddings are constants; the number of images stays free.
    size = (32, 32) if 'vit' in name else (128, 192)
    program = trace(static, size)
    axes = ['batch', 3, *(size if 'vit' in name else ('height', 'width'))]
    assert list(input_shape(program)) == axes
    files = {'onnx': as_onnx(program, model=static), 'torch': as_torch(program)}
    for format, content in files.items():
        # The reference is the model before deployment.
        assert check(model, program, content, format=format) <= 1e-5
    graph = onnx.load_from_string(files['onnx'])
    assert [(opset.domain, opset.version) for opset in graph.opset_import if opset.domain == ''] == [('', OPSET)]
    assert [node.name for node in graph.graph.input] == ['images']
    names = [node.name for node in graph.graph.output]
    levels = range(len(names) // 2)
    expected = [f'class_logits_{i}' for i in levels] + [f'box_deltas_{i}' for i in levels]
    assert names == (expected if 'retina' in name else ['logits'])
    assert [axis.dim_param or axis.dim_value for axis in graph.graph.input[0].type.tensor_type.shape.dim] == axes
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == 'batch'


@pytest.mark.parametrize('prepare', [deploy, copy.deepcopy], ids=['deployed', 'as trained'])
def test_a_backbone_is_exported_alone(prepare):
    """Feature maps of two stages, with a site in either."""
    options = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    backbone = prepare(randomise(ReplResNet(34, repl=dict(policy='interval', every=2), **options)).eval())
    program = trace(backbone, (128, 160))
    assert check(backbone, program, as_onnx(program, model=backbone), format='onnx') <= 1e-5


PYRAMID = """
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
default_scope = 'mmdet'
model = dict(
    backbone=dict(
        _delete_=True, type='repl_mm.ReplResNet', depth=34, base_channels=8, stem_channels=8,
        repl=dict(policy='interval', every=4),
    ),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
    bbox_head=dict(num_classes=1, in_channels=8, feat_channels=8, stacked_convs=1),
)
test_dataloader = dict(dataset=dict(type='CocoDataset', ann_file='nowhere.json', pipeline=[]))
"""


def test_a_graph_with_a_coarse_level_takes_other_sizes(tmp_path):
    """RetinaNet's coarsest level has stride 128; traced where it is one pixel high, the whole graph is fixed."""
    (tmp_path / 'pyramid.py').write_text(PYRAMID)
    model = build(Config.fromfile(tmp_path / 'pyramid.py'))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'pyramid.pth')
    arguments = ('deploy', tmp_path / 'pyramid.py', tmp_path / 'pyramid.pth')
    done = run(*arguments, tmp_path / 'free', '--format', 'onnx')
    assert done.code == 0, done.err
    assert 'onnx: images batch x 3 x height x width' in done.out
    assert 'FIXED' not in done.out
    session = onnxruntime.InferenceSession(tmp_path / 'free' / 'pyramid_deployed.onnx')
    images = torch.randn(3, 3, 320, 416)
    given = [torch.from_numpy(output) for output in session.run(None, {'images': images.numpy()})]
    with torch.no_grad():
        assert relative_difference(given, RawOutputs(model).eval()(images)) <= 1e-5

    done = run(*arguments, tmp_path / 'fixed', '--format', 'torch', '--size', 128, 192)
    assert done.code == 0, done.err
    fixed = [line for line in done.out.splitlines() if line.startswith('FIXED')]
    assert [line.split(';')[0] for line in fixed] == [
        'FIXED: the exports take images of height 128 alone',
        'FIXED: the exports take images of width 192 alone',
    ]
    assert run(*arguments, tmp_path / 'bad', '--size', 128, 192).err.startswith(
        'error: --size is the size of an export'
    )
    assert run(*arguments, tmp_path / 'bad', '--format', 'onnx', '--size', 0, 192).code == 2


def test_check_sees_another_network():
    static, other = deploy(demo('resnet32-repl')), deploy(demo('resnet32-repl'))
    program = trace(static, (64, 64))
    assert check(other, program, as_torch(program), format='torch') > 1e-2


def test_tool_writes_what_scores_the_same(trained, tmp_path):
    out = tmp_path / 'out'
    code, _, stderr = run(
        'deploy', trained / 'net.py', trained / 'net.pth', out, '--fuse-all', '--format', 'onnx', 'torch'
    )
    assert (code, stderr) == (0, '')
    names = {path.name for path in out.iterdir()}
    assert names == {f'net_deployed{suffix}' for suffix in ('.py', '.pth', '.safetensors', '.onnx', '.pt2')}
    predictions = []
    for config, weights in (
        (trained / 'net.py', trained / 'net.pth'),
        (out / 'net_deployed.py', out / 'net_deployed.pth'),
        (out / 'net_deployed.py', out / 'net_deployed.safetensors'),
    ):
        pkl = tmp_path / f'{len(predictions)}.pkl'
        assert run('test', config, weights, '--work-dir', tmp_path / 'work', '--out', pkl)[0] == 0
        predictions.append(pickle.loads(pkl.read_bytes()))
    for written in predictions[1:]:
        for one, other in zip(predictions[0], written, strict=True):
            assert torch.equal(one['pred_label'], other['pred_label'])
            torch.testing.assert_close(one['pred_score'], other['pred_score'], rtol=1e-4, atol=1e-6)
    content = torch.load(out / 'net_deployed.pth', weights_only=True)
    assert content['meta']['dataset_meta'] == {'classes': ['0', '1'], 'palette': [[1, 2]]}
    model = build(Config.fromfile(trained / 'net.py'))
    model.load_state_dict(load_local(str(trained / 'net.pth'))['state_dict'])
    expected = deploy(model, fuse_all=True).state_dict()
    assert all(torch.equal(content['state_dict'][key], value) for key, value in expected.items())
    # What is deployed is not deployed again, by config or by checkpoint.
    code, _, stderr = run('deploy', out / 'net_deployed.py', out / 'net_deployed.pth', tmp_path / 'again')
    assert (code, 'net_deployed.py is deployed already' in stderr) == (2, True)
    code, _, stderr = run('deploy', trained / 'net.py', out / 'net_deployed.pth', tmp_path / 'again')
    assert (code, 'the checkpoint has a block with folded norms at layer1.0' in stderr) == (2, True), stderr
    assert not (tmp_path / 'again').exists()


@pytest.mark.parametrize('flag', [[], ['--no-ema']])
def test_tool_takes_the_average_unless_told_otherwise(flag, trained, tmp_path):
    """mmengine's own hook exchanges the two when it saves."""
    model = build(Config.fromfile(trained / 'net.py'))
    average = ExponentialMovingAverage(model, momentum=0.5)
    raw = copy.deepcopy(model)
    average.update_parameters(model)
    randomise(model)
    average.update_parameters(model)
    averaged = copy.deepcopy(average.module)
    raw.load_state_dict(model.state_dict())
    checkpoint = {'state_dict': model.state_dict(), 'ema_state_dict': average.state_dict()}
    EMAHook()._swap_ema_state_dict(checkpoint)
    torch.save(checkpoint, tmp_path / 'ema.pth')
    assert run('deploy', trained / 'net.py', tmp_path / 'ema.pth', tmp_path / 'out', *flag)[0] == 0
    written = torch.load(tmp_path / 'out' / 'net_deployed.pth', weights_only=True)['state_dict']
    expected, other = (deploy(m).state_dict() for m in ((raw, averaged) if flag else (averaged, raw)))
    assert all(torch.equal(written[key], value) for key, value in expected.items())
    assert not torch.equal(other['backbone.bn1.weight'], written['backbone.bn1.weight'])


def bad(change) -> callable:
    def make(trained: Path, folder: Path) -> list[object]:
        checkpoint = load_local(str(trained / 'net.pth'))
        change(checkpoint['state_dict'])
        torch.save(checkpoint, folder / 'bad.pth')
        return [trained / 'net.py', folder / 'bad.pth', folder / 'out']

    return make


def bad_file(content: object) -> callable:
    def make(trained: Path, folder: Path) -> list[object]:
        torch.save(content, folder / 'bad.pth')
        return [trained / 'net.py', folder / 'bad.pth', folder / 'out']

    return make


def pickled(trained: Path, folder: Path) -> list[object]:
    (folder / 'bad.pth').write_bytes(pickle.dumps(Path('x')))
    return [trained / 'net.py', folder / 'bad.pth', folder / 'out']


def without_sites(trained: Path, folder: Path) -> list[object]:
    (folder / 'plain.py').write_text(CLASSIFIER)
    model = build(Config.fromfile(folder / 'plain.py'))
    torch.save(model.state_dict(), folder / 'plain.pth')
    return [folder / 'plain.py', folder / 'plain.pth', folder / 'out']


def taken(trained: Path, folder: Path) -> list[object]:
    (folder / 'out').mkdir()
    (folder / 'out' / 'file').touch()
    return [trained / 'net.py', trained / 'net.pth', folder / 'out']


def under_a_file(trained: Path, folder: Path) -> list[object]:
    (folder / 'file').touch()
    return [trained / 'net.py', trained / 'net.pth', folder / 'file' / 'out']


BAD = [
    (bad(lambda w: w['head.fc.weight'].fill_(torch.nan)), 'holds NaN or infinite values in head.fc.weight'),
    (bad(lambda w: w.pop('backbone.layer1.0.conv1.weight')), 'where this network has a BasicBlock'),
    (bad(lambda w: w.pop('head.fc.weight')), r'1 missing (head.fc.weight)'),
    (pickled, 'is not a checkpoint or is damaged'),
    (bad_file({'state_dict': [1]}), 'is not a checkpoint'),
    (bad_file([1]), 'is not a checkpoint'),
    (
        bad_file({'state_dict': {'head.fc.weight': 'text'}, 'meta': None}),
        'no numbers of the right kind (head.fc.weight)',
    ),
    (bad_file({3: torch.ones(1)}), 'is not a checkpoint'),
    (bad(lambda w: w.update({'head.fc.bias': torch.ones(10).int()})), 'no numbers of the right kind (head.fc.bias)'),
    (bad(lambda w: w.update({'head.fc.bias': torch.ones(10) * 1j})), 'no numbers of the right kind (head.fc.bias)'),
    (bad(lambda w: w.update({'module.head.fc.bias': torch.ones(10)})), '1 given twice (module.head.fc.bias)'),
    (bad(lambda w: w['backbone.bn1.running_var'].fill_(-1)), 'the trained model itself gives NaN'),
    (without_sites, 'has no computing layers, there is nothing to deploy'),
    (taken, 'out is there already: give a new folder'),
    (under_a_file, 'File exists'),
]


@pytest.mark.parametrize(('make', 'expected'), BAD)
def test_bad_input_leaves_nothing(make, expected, trained, tmp_path):
    args = make(trained, tmp_path)
    before = sorted(tmp_path.rglob('*'))
    code, _, stderr = run('deploy', *args)
    assert code == 2
    assert expected in stderr.splitlines()[-1]
    assert 'Traceback' not in stderr
    assert sorted(tmp_path.rglob('*')) == before


def test_a_model_that_differs_is_not_written(trained, tmp_path):
    right = ComputingBasicBlock.fuse

    def wrong(layer):
        static = right(layer)
        static[0].branch.bias.data += 1e-3
        return static

    with mock.patch.object(ComputingBasicBlock, 'fuse', wrong):
        code, _, stderr = run('deploy', trained / 'net.py', trained / 'net.pth', tmp_path / 'out')
    assert code == 2
    assert 'the static model does not equal the trained one' in stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(trained, tmp_path):
    """The limit of a file's size stands in for a full disk; both are an OSError while writing."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, _, stderr = run('deploy', trained / 'net.py', trained / 'net.pth', tmp_path / 'out')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, 'file too large' in stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def calibration(n: int = 3) -> list[torch.Tensor]:
    return [torch.randn(8, 3, 64, 64) for _ in range(n)]


@pytest.mark.parametrize('name', ['resnet32-repl', 'vit-tiny-repl', 'retinanet_r34-repl_fpn'])
@pytest.mark.parametrize('method', [quantize, quantize_onnx])
def test_int8_is_close_and_not_equal(name, method):
    static = deploy(demo(name), fuse_all=True)
    before = copy.deepcopy(static.state_dict())
    batches = calibration()
    int8 = method(static, batches)
    raw = RawOutputs(static.backbone), RawOutputs(int8.backbone)
    with torch.no_grad():
        reference, ours = (net(batches[0]) for net in raw)
        assert 1e-4 < relative_difference(ours, reference) < 0.2
        # Another size and another number of images.
        other = torch.randn(3, 3, 96, 128)
        if 'vit' not in name or method is quantize:
            assert 1e-4 < relative_difference(raw[1](other), raw[0](other)) < 0.3
    assert all(torch.equal(before[key], value) for key, value in static.state_dict().items())
    assert int8.eval() is int8


def test_linear_weights_lie_on_their_grid():
    """By hand: 255 steps between minus and plus the largest, one scale for each output."""
    static = deploy(demo('vit-tiny-repl'))
    int8 = quantize(static, calibration(1))
    weight = static.backbone.layers[0].ffn.layers[0][0].weight.detach().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127.5
    found = int8.backbone.layers[0].ffn.layers[0][0].weight.dequantize().detach().numpy()
    assert np.abs(np.rint(found / scale) - found / scale).max() < 0.02
    assert np.abs(found - weight).max() <= 0.51 * scale.max()


def test_a_backend_that_does_nothing_is_an_error(monkeypatch):
    static = deploy(demo('resnet32-repl'), fuse_all=True)
    monkeypatch.setattr(repl_mm.export.quantization, 'convert_pt2e', lambda graph: graph)
    with pytest.raises(RuntimeError, match='torchao quantised nothing'):
        quantize(static, calibration(1))


@pytest.mark.parametrize('text', [REPL, CLASSIFIER])
def test_quantize_tool_scores_a_run(text, tmp_path, monkeypatch):
    """FP32 is what tools/test.py says; all forms are scored, of RepL and of the host's own backbone."""
    monkeypatch.setattr(timing, 'time_interleaved', lambda calls, seconds: {form: [1.0] * 3 for form in calls})
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'net.py').write_text(text)
    torch.save(build(Config.fromfile(folder / 'net.py')).state_dict(), folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    code, _, stderr = run('quantize', folder, '--out', tmp_path / 'out', '--calibration', '40')
    assert code == 0, stderr
    results = json.loads((tmp_path / 'out' / 'quantization.json').read_text())['run']
    assert list(results) == ['FP32', 'INT8, torchao', 'INT8, onnxruntime']
    assert run('test', folder / 'net.py', folder / 'epoch_1.pth', '--work-dir', tmp_path / 'work')[0] == 0
    [log] = (tmp_path / 'work').glob('*/*.json')
    assert results['FP32']['accuracy/top1'] == json.loads(log.read_text())['accuracy/top1']
    assert [scores['images/s'] for scores in results.values()] == [16.0] * 3
    table = (tmp_path / 'out' / 'quantization.md').read_text()
    assert f'| run | Top-1 accuracy (%) | {results["FP32"]["accuracy/top1"]:.2f} |' in table
    code, _, stderr = run('quantize', tmp_path, '--out', tmp_path / 'out')
    assert (code, 'holds no checkpoint' in stderr) == (2, True)
