"""Contract: the stand-in for mmcv's compiled operators computes what they do, and only where they are absent.

Oracles: torchvision's focal loss, autograd, non-maximum suppression written out in NumPy.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
import torchvision
from mmcv.ops import nms
from mmengine.hub import get_config

import repl_mm
from repl_mm import compat

PACKAGE = Path(compat.__file__).parent


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
    logits = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0])  # 5 is background
    weight = torch.rand(6, dtype=torch.float64) if weighted else logits.new_empty(0)
    one_hot = torch.nn.functional.one_hot(target, 6)[:, :5].double()
    expected = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=1.5)
    if weighted:
        expected = expected * weight[target][:, None]
    loss, grad = torch.empty_like(logits), torch.empty_like(logits)
    compat._sigmoid_focal_loss_forward(logits.detach(), target, weight, loss, gamma=1.5, alpha=0.25)
    compat._sigmoid_focal_loss_backward(logits.detach(), target, weight, grad, gamma=1.5, alpha=0.25)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), logits)[0])


def test_another_compiled_operator_is_refused_on_call():
    from mmcv.ops import RoIAlign

    with pytest.raises(NotImplementedError, match=r"compiled operator 'roi_align_forward'.*MMCV_WITH_OPS=1"):
        RoIAlign(2)(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))


@pytest.fixture(scope='module')
def fresh() -> list[str]:
    """What a fresh interpreter says: of mmcv's operators before and after mmdet takes them; of the host libraries with
    all our modules imported, with our checkpoint hook built, and with all installed.
    """
    modules = [
        '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')
        for path in sorted(PACKAGE.rglob('*.py'))
    ]
    code = f"""
import repl_mm
from mmcv.utils.ext_loader import check_ops_exist
print(check_ops_exist())
import mmdet.models
print(check_ops_exist())

import importlib, tarfile
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import get_file_backend
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import CheckpointLoader, checkpoint

def seams():
    loaders = (checkpoint._safe_torch_load, checkpoint.load_url, CheckpointLoader._schemes[''])
    wrapper = OPTIM_WRAPPERS.get('AmpOptimWrapper')
    ours = [x.__module__.startswith('repl_mm.') for x in (*loaders, type(get_file_backend('x')), wrapper)]
    return [*ours, MODULE2PACKAGE['mmseg'], tarfile.TarFile.extraction_filter is not None]

states = []
for name in {modules}:
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
    installed = [*[True] * 4, not torch.cuda.is_available(), 'onedl-mmsegmentation', True]
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
