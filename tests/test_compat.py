"""Contract: the stand-in for mmcv's compiled operators computes what they do, and only where they are absent.

Oracles: the formulas written out in NumPy, finite differences, bins by hand, torchvision under autograd.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mmcv
import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import nms, roi_align, roi_pool, sigmoid_focal_loss
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.hub import get_config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from torch import nn

import repl_mm
from repl_mm import compat

PACKAGE = Path(compat.__file__).parent
# The classic libraries, beside an older torch and without all extras.
IS_CLASSIC = not hasattr(mmengine.runner.checkpoint, '_safe_torch_load')
MMSEG = 'mmsegmentation' if IS_CLASSIC else 'onedl-mmsegmentation'


def reference_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    """Greedy suppression, one box at a time, with areas as mmcv counts them."""
    kept = []
    for i in np.argsort(-scores):
        for j in kept:
            width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + offset
            height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + offset
            common = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (boxes[i], boxes[j])]
            if common / (sum(areas) - common) > threshold:
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_through_mmcv(offset):
    corners = torch.rand(60, 2) * 20
    boxes = torch.cat([corners, corners + torch.rand(60, 2) * 12 + 1], dim=1)
    scores = torch.rand(60)
    kept_boxes, kept = nms(boxes, scores, iou_threshold=0.3, offset=offset)
    expected = reference_nms(boxes.numpy(), scores.numpy(), 0.3, offset)
    assert 1 < len(expected) < 60
    assert kept.tolist() == expected
    torch.testing.assert_close(kept_boxes, torch.cat([boxes, scores[:, None]], dim=1)[kept])


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_and_its_gradient(weighted):
    """Written out in NumPy; finite differences."""
    logits = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 4, 1, 0] if weighted else [0, 1, 2, 3, 4, 5, 5, 0])  # 5 is background
    weight = torch.rand(5, dtype=torch.float64) if weighted else None

    def loss(x: torch.Tensor) -> torch.Tensor:
        return sigmoid_focal_loss(x, target, 1.5, 0.25, weight, 'none')

    p, hit = 1 / (1 + np.exp(-logits.detach().numpy())), np.eye(6, 5, dtype=bool)[target]
    expected = np.where(hit, -0.25 * (1 - p) ** 1.5 * np.log(p), -0.75 * p**1.5 * np.log(1 - p))
    if weighted:
        expected *= weight.numpy()[target][:, None]
    np.testing.assert_allclose(loss(logits).detach(), expected, rtol=1e-12)
    assert torch.autograd.gradcheck(loss, logits)


RAMP = (10 * torch.arange(8.0)[:, None] + torch.arange(8.0)).double()  # 10 y + x at row y, column x
BOX = torch.tensor([[0, 1.5, 2.5, 5.5, 4.5]], dtype=torch.float64)  # 4 wide, 2 high


@pytest.mark.parametrize('scale', [1.0, 0.5])
@pytest.mark.parametrize(('aligned', 'expected'), [(True, [[27, 29], [37, 39]]), (False, [[32.5, 34.5], [42.5, 44.5]])])
def test_roi_align_of_a_ramp(aligned, expected, scale):
    """By hand: the mean of a ramp over a bin is its value in the bin's middle, half a pixel lower if aligned."""
    box = BOX * torch.tensor([1, *[1 / scale] * 4])
    out = roi_align(RAMP[None, None], box, (2, 2), scale, 0, 'avg', aligned)
    torch.testing.assert_close(out, torch.tensor([[expected]], dtype=torch.float64))


def test_gradient_of_roi_align():
    """By hand: with one sample a bin, the first one's middle lies between rows 2 and 3 of column 2; finite differences,
    and torchvision's, with boxes that leave the image."""
    x = RAMP[None, None].clone().requires_grad_()
    roi_align(x, BOX, (2, 2), 1.0, 1, 'avg', True)[0, 0, 0, 0].backward()
    expected = torch.zeros(8, 8, dtype=torch.float64)
    expected[2:4, 2] = 0.5
    torch.testing.assert_close(x.grad[0, 0], expected)

    images = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[1, 0.3, 0.6, 9.0, 8.0], [0, -2.0, 1.0, 7.5, 11.0], [1, 4.0, 4.0, 4.1, 9.0]]).double()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, (2, 3), 0.6, 0, 'avg', True), images)
    ours, theirs = (
        roi_align(images, boxes, (2, 3), 0.6, 0, 'avg', True),
        torchvision.ops.roi_align(images, boxes, (2, 3), 0.6, 0, aligned=True),
    )
    assert torch.equal(ours, theirs)
    upstream = torch.randn_like(ours)
    assert torch.equal(*(torch.autograd.grad(out, images, upstream)[0] for out in (ours, theirs)))


def test_the_other_pooling_of_roi_align_is_refused():
    with pytest.raises(NotImplementedError, match=r"pool_mode='max' .* take pool_mode='avg'"):
        roi_align(RAMP[None, None], BOX, (2, 2), 1.0, 0, 'max', True)


def mask_rcnn(*, use_torchvision: bool) -> nn.Module:
    model = get_config('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.update(init_cfg=None, norm_eval=False, frozen_stages=-1)
    for name in ('bbox_roi_extractor', 'mask_roi_extractor'):
        model.roi_head[name].roi_layer.use_torchvision = use_torchvision
    model.roi_head.bbox_head.fc_out_channels = 64
    model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(model)


def test_mask_rcnn_trains_and_predicts():
    """The same losses, gradients and predictions as with RoIAlign by torchvision and autograd."""
    ours, theirs = mask_rcnn(use_torchvision=False), mask_rcnn(use_torchvision=True)
    theirs.load_state_dict(ours.state_dict())
    boxes = torch.tensor([[4.0, 6, 40, 50], [20, 10, 60, 44]])
    masks = np.zeros((2, 64, 64), dtype=np.uint8)
    masks[0, 6:50, 4:40] = masks[1, 10:44, 20:60] = 1
    truth = InstanceData(bboxes=boxes, labels=torch.tensor([3, 7]), masks=BitmapMasks(masks, 64, 64))
    meta = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), scale_factor=(1.0, 1.0))
    images = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    results = []
    for model in (ours, theirs):
        torch.manual_seed(0)  # proposals are sampled
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
        sample = DetDataSample(gt_instances=truth, metainfo=meta)
        losses = model.train().train_step(dict(inputs=[images], data_samples=[sample]), wrapper)
        with torch.no_grad():
            predicted = model.eval().test_step(dict(inputs=[images], data_samples=[sample]))[0].pred_instances
        results.append((losses, model.state_dict(), predicted))
    (losses, weights, found), (their_losses, their_weights, their_found) = results
    assert {'loss_bbox', 'loss_mask'} <= set(losses)
    assert 0 < losses['loss_mask'] < torch.inf
    assert losses == their_losses
    assert all(torch.equal(weights[key], value) for key, value in their_weights.items())
    assert found.masks.shape == (5, 64, 64)
    assert torch.equal(found.bboxes, their_found.bboxes)
    assert torch.equal(found.masks, their_found.masks)


def test_another_compiled_operator_is_refused_on_call():
    with pytest.raises(NotImplementedError, match=r"compiled operator 'roi_pool_forward'.*MMCV_WITH_OPS=1"):
        roi_pool(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), 2)


@pytest.fixture(scope='module')
def fresh() -> list[str]:
    """What a fresh interpreter says: of mmcv's operators before and after mmdet takes them; of the host libraries with
    all our modules imported, with our checkpoint hook built, and with all installed.
    """
    modules = [
        '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')
        for path in sorted(PACKAGE.rglob('*.py'))
    ]
    absent = 'ModuleNotFoundError, ValueError' if IS_CLASSIC else ''
    code = f"""
import repl_mm
from mmcv.utils.ext_loader import check_ops_exist
print(check_ops_exist())
import mmdet.models
print(check_ops_exist())

import contextlib, importlib, tarfile
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import get_file_backend
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import CheckpointLoader, checkpoint

def seams():
    load = getattr(checkpoint, '_safe_torch_load', checkpoint.torch.load)  # as the classic mmengine has it
    loaders = (load, checkpoint.load_url, CheckpointLoader._schemes[''])
    wrapper = OPTIM_WRAPPERS.get('AmpOptimWrapper')
    ours = [x.__module__.startswith('repl_mm.') for x in (*loaders, type(get_file_backend('x')), wrapper)]
    return [*ours, MODULE2PACKAGE['mmseg'], tarfile.TarFile.extraction_filter is not None]

states = []
for name in {modules}:
    with contextlib.suppress({absent}):
        importlib.import_module(name)
states.append(seams())
HOOKS.build(dict(type='repl_mm.CheckpointHook'))
states.append(seams())
importlib.import_module('repl_mm.engine.install').install()
print(*states, seams(), sep='\\n')
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if 'OneDL' not in line]  # mmpretrain's


def test_mmcv_still_reports_that_it_has_no_compiled_operators(fresh):
    assert fresh[:2] == ['False', 'False']


def test_only_install_changes_the_host_libraries(fresh):
    """Under a host's own tools, which do not install, our checkpoint hook sees to its files alone."""
    imported = [*[False] * 5, 'mmsegmentation', False]
    hooked = [*[False] * 3, True, False, 'mmsegmentation', False]
    installed = [*[True] * 4, not torch.cuda.is_available(), MMSEG, True]
    assert fresh[2:] == [str(imported), str(hooked), str(installed)]


def test_real_operators_are_found_before_ours(tmp_path, monkeypatch):
    """Stood in for by a file on mmcv's search path."""
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    assert isinstance(find_spec('mmcv._ext').loader, repl_mm._OperatorFinder)
    (tmp_path / '_ext.py').touch()
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, str(tmp_path)])
    assert find_spec('mmcv._ext').origin == f'{tmp_path}/_ext.py'


@pytest.mark.parametrize(
    'name',
    [
        'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        'mmpretrain::resnet/resnet34_8xb32_in1k.py',
    ],
)
def test_upstream_configs_are_found(name):
    assert get_config(name).model.backbone.type.startswith('ResNet')
