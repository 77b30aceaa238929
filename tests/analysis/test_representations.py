"""Contract: probes, pooling and maps are what their formulas say.

Oracles: planted features; plain indexing; Grad-CAM of a linear classifier over pooled features by its closed form.
"""

import copy
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from helpers import randomise
from mmengine.structures import InstanceData, PixelData
from mmpretrain.models import build_classifier

from repl_mm.analysis.features import as_map, blocks_of, run_blocks
from repl_mm.analysis.maps import feature_maps, grad_cam, pick_classes, spread
from repl_mm.analysis.probes import collect, embed, probe
from repl_mm.analysis.samples import find_samples
from repl_mm.engine.install import install


@pytest.fixture(scope='module')
def model():
    install()
    torch.manual_seed(0)
    backbone = dict(type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=4, base_channels=4)
    backbone['repl'] = dict(policy='interval', every=4)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=16)
    built = build_classifier(
        dict(type='ImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'), head=head)
    )
    return randomise(built).eval()


def batch(images: torch.Tensor, labels: list[int]) -> dict:
    from mmpretrain.structures import DataSample

    return dict(inputs=list(images), data_samples=[DataSample().set_gt_label(label) for label in labels])


def test_a_probe_finds_what_is_planted_and_no_more():
    rng = np.random.default_rng(0)

    def split(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, y = rng.normal(size=(number, 5)), rng.integers(0, 2, number)
        planted = x.copy()
        planted[:, 3] = 1000 + 0.01 * (2 * y - 1)  # tells the class, on a small scale far from zero
        corners = np.sign(rng.normal(size=(number, 2))) * rng.uniform(1, 2, (number, 2))
        return planted, y, corners

    (train, labels, corners), (val, classes, others) = split(300), split(200)
    assert probe((train, labels), (val, classes)) == 100
    wrong = classes.copy()
    wrong[:50] = 1 - wrong[:50]
    assert probe((train, labels), (val, wrong)) == 75
    exclusive = [(c.prod(1) > 0).astype(int) for c in (corners, others)]
    assert probe((corners, exclusive[0]), (others, exclusive[1])) < 85  # a line has at most three corners right
    with pytest.raises(ValueError, match=r'two classes, got those of \[1\]'):
        probe((train, np.ones(300, int)), (val, classes))


def test_blocks_in_order_and_pooled(model):
    names = list(blocks_of(model))
    assert names == [f'layer{stage}.{index}' for stage in (1, 2, 3) for index in range(5)]
    images = torch.randn(4, 3, 16, 16)
    found, labels = collect(model, [batch(images[:3], [0, 1, 2]), batch(images[3:], [1])], blocks_of(model))
    assert labels.tolist() == [0, 1, 2, 1]
    with torch.no_grad():
        x = model.backbone.relu(model.backbone.norm1(model.backbone.conv1(images)))
        for stage in model.backbone.repl_stages().values():
            for block in stage:
                x = block(x)
                np.testing.assert_allclose(found[names.pop(0)], x.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_tokens_go_back_to_their_places():
    tokens = torch.arange(7.0).reshape(1, 7, 1)  # a class token, then 2 rows of 3
    torch.testing.assert_close(as_map(tokens, (32, 48))[0, 0], torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    assert as_map(torch.zeros(2, 197, 8), (224, 224)).shape == (2, 8, 14, 14)


def test_objects_are_pooled_where_they_lie():
    """Boxes that a pipeline loads behind its resizing are in the pixels of the file, twice as large here."""
    maps = torch.randn(1, 5, 8, 8)
    for scale in (1, 2):
        boxes = torch.tensor([[0.0, 0, 4, 8], [2, 4, 8, 8]])
        sample = SimpleNamespace(
            gt_instances=InstanceData(bboxes=scale * boxes, labels=torch.tensor([7, 1])),
            img_shape=(8, 8),
            get=lambda name, default: (0.5, 0.5),
        )
        sample = type('Sample', (SimpleNamespace,), {'__contains__': lambda self, name: hasattr(self, name)})(
            **vars(sample)
        )
        samples = find_samples([sample], torch.zeros(1, 3, 8, 8))
        pooled = samples.pool(maps, (8, 8))
        assert samples.labels.tolist() == [7, 1]
        torch.testing.assert_close(pooled[0], maps[0, :, :, :4].mean((1, 2)))
        torch.testing.assert_close(pooled[1], maps[0, :, 4:, 2:].mean((1, 2)))
        assert pick_classes(samples, 2) == [7, 0]


def test_regions_are_pooled_where_they_lie():
    from mmseg.structures import SegDataSample

    labels = torch.full((4, 6), 3)
    labels[:2, :2], labels[3, 5] = 1, 255
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels[None]), metainfo=dict(img_shape=(4, 6)))
    samples = find_samples([sample], torch.zeros(1, 3, 6, 6))  # padded by two rows
    maps = torch.randn(1, 2, 6, 6)
    pooled = samples.pool(maps, (6, 6))
    assert samples.labels.tolist() == [1, 3]
    torch.testing.assert_close(pooled[0], maps[0, :, :2, :2].mean((1, 2)))
    torch.testing.assert_close(pooled[1], maps[0, :, :4][:, labels == 3].mean(1))
    assert pick_classes(samples, 1, rank=1) == [1]


def test_grad_cam_of_a_linear_classifier(model):
    images = torch.randn(2, 3, 32, 32)
    found = grad_cam(model, images, [2, 0])
    with torch.no_grad():
        (last,) = model.backbone(images)
    for image, label, values in zip(last, (2, 0), found, strict=True):
        cam = torch.einsum('c,chw->hw', model.head.fc.weight[label].detach(), image).clamp_min(0).numpy()
        expected = cv2.resize((cam - cam.min()) / (cam.max() - cam.min()), (32, 32))
        expected = (expected - expected.min()) / (expected.max() - expected.min())
        np.testing.assert_allclose(values, expected, atol=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_feature_maps_and_their_spread(model):
    images = torch.randn(2, 3, 16, 16)
    maps = feature_maps(model, images)
    with torch.no_grad():
        (last,) = model.backbone(images)
    assert len(maps) == 4
    np.testing.assert_allclose(maps['layer3.4'], last.square().mean(1).sqrt(), rtol=1e-5)
    one, even, half = np.zeros((3, 2, 4))
    one[1, 2], even[:], half[0] = 5, 0.1, 2
    np.testing.assert_allclose(spread(np.stack([one, even, half, 0 * one])), [1 / 8, 1, 1 / 2, 0])


def test_bad_input_is_refused(model):
    images, blocks = torch.randn(2, 3, 16, 16), blocks_of(model)
    with pytest.raises(ValueError, match='there is no batch to look at'):
        collect(model, [], blocks)
    broken = copy.deepcopy(model)
    broken.backbone.layer2[1].conv1.weight.data[0] = float('nan')
    with pytest.raises(ValueError, match=r'the features of layer2\.1 hold NaN'):
        list(run_blocks(broken, [batch(images, [0, 1])], blocks_of(broken), lambda *_: lambda out: out))
    with pytest.raises(ValueError, match='the features hold NaN'):
        feature_maps(broken, images)
    with pytest.raises(ValueError, match='needs more than 30 samples, got 2'):
        embed(model, [batch(images, [0, 1])])
