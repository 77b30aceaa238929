"""Contract: the configs of docs/own_data.md read data that lie as the page says, and their networks have its classes.

Oracle: images, boxes and label images that are written here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from test_docs import blocks, run

from repl_mm.analysis.cost import RealLinspace
from repl_mm.registry import DATASETS
from repl_mm.surgery import computing_layers


def draw(path: Path, mode: str = 'RGB') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (64, 96) if mode == 'L' else (64, 96, 3)
    Image.fromarray(np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)).save(path)


def fruit(root: Path) -> None:
    for split in ('train', 'val'):
        draw(root / 'data/fruit' / split / 'a.jpg')
        (root / f'data/fruit/{split}.json').write_text(
            json.dumps(
                dict(
                    images=[dict(id=1, file_name='a.jpg', width=96, height=64)],
                    categories=[dict(id=7, name='apple'), dict(id=9, name='pear')],
                    annotations=[dict(id=1, image_id=1, category_id=9, bbox=[8, 8, 40, 40], area=1600, iscrowd=0)],
                )
            )
        )


def field(root: Path) -> None:
    for split in ('train', 'val'):
        draw(root / 'data/field/images' / split / 'a.jpg')
        draw(root / 'data/field/labels' / split / 'a.png', 'L')


def birds(root: Path) -> None:
    for split in ('train', 'val'):
        for name in ('wren', 'owl'):
            draw(root / 'data/birds' / split / name / f'{name}.jpg')


DETECTION, SEGMENTATION, FIELD, CLASSIFICATION = range(4)


@pytest.mark.parametrize(
    ('block', 'write', 'classes'),
    [
        (DETECTION, fruit, ('apple', 'pear')),
        (SEGMENTATION, field, ('soil', 'crop', 'weed')),
        (CLASSIFICATION, birds, ('owl', 'wren')),
    ],
)
def test_a_config_reads_its_data(block, write, classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    Path('config.py').write_text(blocks('own_data.md')[block])
    config = Config.fromfile('config.py')
    with DefaultScope.overwrite_default_scope(config.default_scope):
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            dataset = DATASETS.build(loader.dataset)
            assert dataset.metainfo['classes'] == classes
            assert len(dataset) == (2 if block == CLASSIFICATION else 1)
            assert dataset[0]['inputs'].shape[0] == 3
        sample = DATASETS.build(config.val_dataloader.dataset)[0]['data_samples']
        config.model.data_preprocessor = config.get('data_preprocessor')
        if 'pretrained' in config.model:
            config.model.pretrained = None
        with torch.device('meta'), RealLinspace():
            model = MODELS.build(config.model)
    assert computing_layers(model)
    if block == DETECTION:
        assert sample.gt_instances.labels.tolist() == [1]
        assert config.val_evaluator.ann_file == config.test_evaluator.ann_file == 'data/fruit/val.json'
        assert model.bbox_head.num_classes == 2
    elif block == SEGMENTATION:
        assert set(sample.gt_sem_seg.data.unique().tolist()) == {0, 1, 2}
        assert model.decode_head.num_classes == model.auxiliary_head.num_classes == 3
    else:
        assert sample.gt_label.tolist() == [0]
        assert model.head.num_classes == config.data_preprocessor.num_classes == 2
        assert config.val_evaluator.topk == config.test_evaluator.topk == (1,)


def test_a_data_set_of_ones_own_names_a_bad_label_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    field(tmp_path)
    monkeypatch.setitem(sys.modules, 'field', run(blocks('own_data.md')[FIELD]))
    config = blocks('own_data.md')[SEGMENTATION].replace("'BaseSegDataset'", "'repl_mm.Field'")
    Path('config.py').write_text(config.replace(' metainfo=metainfo,', ''))
    loader = Config.fromfile('config.py').val_dataloader
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = DATASETS.build(loader.dataset)
        assert dataset[0]['inputs'].shape[0] == 3
        assert dataset.metainfo['classes'] == ('soil', 'crop', 'weed')
        Image.fromarray(np.full((64, 96), 9, np.uint8)).save('data/field/labels/val/a.png')
        with pytest.raises(ValueError, match=r'labels/val/a\.png'):
            dataset[0]
    DATASETS._module_dict.pop('Field')
