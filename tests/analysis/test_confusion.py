"""Contract: which class is taken for which, over images, pixels and objects.

Oracles: matrices by hand; scikit-learn's function for the pixels; mmdet's ground truth in its own form.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from repl_mm.analysis.confusion import as_png, as_table, count_images, count_objects, count_pixels, most_confused


def image(truth: int, found: int) -> dict:
    return dict(gt_label=torch.tensor([truth]), pred_label=torch.tensor([found]))


def test_images_by_hand():
    counts = count_images([image(0, 0), image(0, 2), image(2, 2), image(0, 2)], 3)
    assert counts.tolist() == [[1, 0, 2], [0, 0, 0], [0, 0, 1]]
    [pair] = most_confused(counts, ['cat', 'dog', 'cow']).rows
    assert pair == ['cat', 'cow', '2', '66.7']


def test_an_image_with_several_labels_is_refused():
    with pytest.raises(ValueError, match='one label each'):
        count_images([dict(gt_label=torch.tensor([0, 1]), pred_label=torch.tensor([0]))], 2)


def test_pixels_equal_scikit_learn():
    random = np.random.default_rng(0)
    samples, every = [], []
    for _ in range(3):
        truth, found = random.integers(0, 5, (2, 1, 6, 7))
        truth[0, 0, :3] = 255
        samples.append({
            'gt_sem_seg': dict(data=torch.tensor(truth).to(torch.uint8)), 'pred_sem_seg': dict(data=torch.tensor(found))
        })  # fmt: skip
        every.append((truth.ravel(), found.ravel()))
    truth, found = np.concatenate(every, axis=1)
    known = truth != 255
    assert known.sum() == 3 * (42 - 3)
    assert (count_pixels(samples, 5) == confusion_matrix(truth[known], found[known], labels=range(5))).all()


def test_pixels_without_ground_truth_are_refused():
    with pytest.raises(ValueError, match='no ground truth'):
        count_pixels([dict(pred_sem_seg=dict(data=torch.zeros(1, 2, 2)))], 5)


def object_at(left: float, label: int, *, ignore: int = 0) -> dict:
    return dict(bbox=[left, 0, left + 10, 10], bbox_label=label, ignore_flag=ignore)


def boxes(*found: tuple[float, int, float]) -> dict:
    lefts, labels, scores = zip(*found, strict=True) if found else ((), (), ())
    corners = torch.tensor([[left, 0, left + 10, 10] for left in lefts]).reshape(-1, 4).float()
    return dict(img_id=7, pred_instances=dict(bboxes=corners, labels=torch.tensor(labels), scores=torch.tensor(scores)))


@pytest.mark.parametrize(
    ('found', 'objects', 'counted'),
    [
        pytest.param([(0, 1, 0.9)], [object_at(0, 1)], {(1, 1): 1}, id='right'),
        pytest.param([(0, 0, 0.9)], [object_at(0, 1)], {(1, 0): 1}, id='of another class'),
        pytest.param([(0, 1, 0.2)], [object_at(0, 1)], {(1, 2): 1}, id='below the least score, so missed'),
        pytest.param([(0, 1, 0.9), (0.1, 1, 0.8)], [object_at(0, 1)], {(1, 1): 1, (2, 1): 1}, id='found twice'),
        # A shift by 4 of 10 overlaps by 6/14 = 0.43, one by 3 by 7/13 = 0.54.
        pytest.param([(4, 1, 0.9)], [object_at(0, 1)], {(1, 2): 1, (2, 1): 1}, id='too far away'),
        pytest.param([(3, 1, 0.9)], [object_at(0, 1)], {(1, 1): 1}, id='near enough'),
        # The better box comes first, and takes the object that it overlaps more.
        pytest.param([(2, 0, 0.6), (1, 1, 0.9)], [object_at(0, 1)], {(1, 1): 1, (2, 0): 1}, id='the better box first'),
        pytest.param([(1, 1, 0.9)], [object_at(3, 0), object_at(0, 1)], {(1, 1): 1, (0, 2): 1}, id='the nearer object'),
        pytest.param([(0, 1, 0.9)], [object_at(0, 0, ignore=1)], {}, id='in an ignored region'),
        pytest.param([], [object_at(0, 0), object_at(50, 1)], {(0, 2): 1, (1, 2): 1}, id='no box at all'),
        pytest.param([(0, 1, 0.9)], [], {(2, 1): 1}, id='no object at all'),
    ],
)
def test_objects_by_hand(found, objects, counted):
    expected = np.zeros((3, 3), dtype=int)
    for place, number in counted.items():
        expected[place] = number
    assert count_objects([boxes(*found)], {7: objects}, 2).tolist() == expected.tolist()


def test_a_picture_and_a_table_hold_all_classes():
    counts = np.array([[3, 1, 0], [0, 0, 0], [2, 0, 5]])
    table = as_table(counts, ['$a$', 'b', 'background'])
    assert table.rows == [['$a$', '3', '1', '0'], ['b', '0', '0', '0'], ['background', '2', '0', '5']]
    assert as_png(counts, ['$a$', 'b', 'background'], title='run_1').startswith(b'\x89PNG')
