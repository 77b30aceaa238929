"""Contract: an option of the command line is data. It names what is registered, and no file that it names is run.

Oracle: a file that every attack would write.
"""

import importlib
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mmdet.datasets
import numpy as np
import pytest
import yaml
from cli_helpers import CLASSIFIER, run
from mmdet.models.detectors import kd_one_stage
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, TRANSFORMS
from mmpretrain.datasets import CIFAR10
from mmseg.models.losses.utils import get_class_weight

from repl_mm.engine import lookup
from repl_mm.engine.lookup import read_pickle, trust

MODULE = """
from pathlib import Path
Path({marker!r}).touch()
from mmengine.registry import MODELS
model = dict(type='ImageClassifier')

def call(*args, **kwargs):
    Path({marker!r}).touch()
"""


@pytest.fixture(autouse=True)
def untrusting(monkeypatch):
    """Each test begins as a process does, whatever config files others have read."""
    monkeypatch.setattr(lookup, '_trusted', set())


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """What an attack writes; modules ``payload`` and ``payload.registry`` can be imported, and write it too."""
    path = tmp_path / 'written'
    package = tmp_path / 'modules' / 'payload'
    package.mkdir(parents=True)
    for name in ('__init__', 'registry', 'utils'):
        (package / f'{name}.py').write_text(MODULE.format(marker=str(path)))
    monkeypatch.syspath_prepend(package.parent)
    (tmp_path / 'config.py').write_text(f"{CLASSIFIER}custom_hooks = [dict(type='EMAHook')]\n")
    return path


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


TOUCH = '__import__("pathlib").Path("{marker}").touch()'
OPTIONS = {
    'a command as log processor': ['log_processor.type=mmengine.call_command', 'log_processor.cmd=[touch,{marker}]'],
    'a function of a host': ['log_processor.type=mmengine.fileio.dump', 'log_processor.file={marker}.json'],
    'a module as type': ['model.backbone.type=payload'],
    'a function as type': ['model.backbone.type=payload.call'],
    'a class of Python': ['model.backbone.type=subprocess.Popen', 'model.backbone.args=[touch,{marker}]'],
    'a constructor': ['optim_wrapper.constructor=payload.call'],
    'an average': ['custom_hooks.0.ema_type=payload.call'],
    'a scope': ['default_scope=payload'],
    'a scope of one part': ['model._scope_=payload'],
    'a scope before a type': ['model.backbone.type=payload.ResNet'],
    'a collate function': ['train_dataloader.collate_fn.type=payload.call'],
    'a sampler': ['train_dataloader.sampler.type=payload.call'],
    'a worker function': ['train_dataloader.worker_init_fn.type=payload.call'],
    'a transform': ['train_dataloader.dataset.pipeline.0.type=payload.call'],
    'a loop': ['train_cfg.type=payload.call'],
    'a schedule': ['param_scheduler.type=payload.call'],
    'a metric': ['val_evaluator.type=payload.call'],
    'a visualizer': ['visualizer.type=payload.call'],
    'a wrapper': ['model_wrapper_cfg.type=payload.call'],
    'imports': ['custom_imports.imports=payload'],
    'an initialiser': ['model.init_cfg.type=payload.call'],
    'a runner': ['runner_type=payload.call'],
    'an expression for a type of number': [
        "train_dataloader.dataset.pipeline=[dict(type=torchvision/ConvertImageDtype,dtype='float,' + " + TOUCH + ')]'
    ],
}


@pytest.mark.parametrize('name', OPTIONS)
def test_no_option_runs_code(name, marker, tmp_path):
    options = [option.format(marker=marker) for option in OPTIONS[name]]
    run('train', tmp_path / 'config.py', '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    assert not marker.exists()
    assert not marker.with_suffix('.json').exists()


def test_an_option_has_no_calls(marker, tmp_path):
    done = run(
        'train',
        tmp_path / 'config.py',
        '--cfg-options',
        'custom_hooks=[dict(type=EMAHook,ema_type=StochasticWeightAverage)]',
    )
    assert done.code == 2
    assert 'a value is a number, a word, or a list of them' in done.err.splitlines()[-1]


@pytest.mark.parametrize('name', ['a function of a host', 'a class of Python', 'a scope', 'imports'])
def test_it_is_said_in_one_line(name, marker, tmp_path):
    options = [option.format(marker=marker) for option in OPTIONS[name]]
    done = run('train', tmp_path / 'config.py', '--work-dir', tmp_path / 'work', '--cfg-options', *options)
    assert done.code == 2
    assert 'error: ' in done.err.splitlines()[-1]
    said = ('unknown type', 'is not one of the libraries', 'stands in the config file')
    assert any(text in done.err.splitlines()[-1] for text in said)


def test_a_config_file_may_name_what_it_could_import(marker):
    with pytest.raises(ValueError, match="'payload' is not one of the libraries mmengine, "):
        MODELS.get('payload.call')
    trust(Config(dict(model=[dict(type='payload.call')])))
    assert MODELS.get('payload.call').__name__ == 'call'


@pytest.mark.parametrize('suffix', ['pkl', 'pickle', 'yaml', 'npy'])
def test_no_data_file_runs_code(suffix, marker, tmp_path):
    path = tmp_path / f'weights.{suffix}'
    if suffix == 'npy':
        np.save(path, np.array([Payload(marker)], dtype=object), allow_pickle=True)
        read = mmdet.datasets.OpenImagesDataset._get_relation_matrix
        read = partial(read, SimpleNamespace(backend_args=None))
    else:
        text = f'!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{marker}]]'
        path.write_bytes(text.encode() if suffix == 'yaml' else pickle.dumps(Payload(marker)))
        read = get_class_weight
    with pytest.raises((ValueError, yaml.YAMLError)):
        read(str(path))
    assert not marker.exists()


def test_cifar_without_digests_runs_no_code(marker, tmp_path):
    class Local(CIFAR10):
        train_list = test_list = (('data_batch_1', None),)
        meta = CIFAR10.meta | dict(md5=None)

    folder = tmp_path / 'cifar-10-batches-py'
    folder.mkdir()
    for name in ('data_batch_1', 'batches.meta'):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ValueError, match=r'the pickle holds pathlib.*could run code'):
        Local(data_root=str(tmp_path), split='train', pipeline=[])
    assert not marker.exists()
    images = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
    (folder / 'data_batch_1').write_bytes(pickle.dumps({'data': images, 'labels': [3, 5]}, protocol=2))
    read = Local(data_root=str(tmp_path), split='train', pipeline=[])
    assert [read[at]['gt_label'] for at in range(2)] == [3, 5]
    np.testing.assert_array_equal(read[1]['img'], images[1].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickled_data_is_read(protocol, tmp_path):
    data = dict(a=[1, 2.5, 'text', b'bytes', None], b={3, 4}, c=(np.float32(7), np.arange(6).reshape(2, 3)))
    path = tmp_path / 'data.pkl'
    path.write_bytes(pickle.dumps(data, protocol=protocol))
    with path.open('rb') as file:
        read = read_pickle(file)
    np.testing.assert_array_equal(read['c'][1], data['c'][1])
    assert (read['a'], read['b'], read['c'][0]) == (data['a'], data['b'], 7)


def test_a_teachers_config_from_an_option_is_not_run(marker, tmp_path):
    path = tmp_path / 'modules' / 'payload' / 'utils.py'
    with pytest.raises(ValueError, match='would run as Python'):
        kd_one_stage.Config.fromfile(path)
    assert not marker.exists()
    trust(Config(dict(teacher=str(path))))
    assert kd_one_stage.Config.fromfile(path).model.type == 'ImageClassifier'


EVALUATED = [
    ('mmcv.ops.nms', ['nms', 'soft_nms'], ['torch.load', 'os', 'ext_module.nms', 'np.fromfile', 'nms()']),
    (
        'mmdet.models.task_modules.tracking.camera_motion_compensation',
        ['cv2.MOTION_EUCLIDEAN'],
        ['cv2.nix', '1', 'cv2.imread'],
    ),
    (
        'mmpretrain.datasets.transforms.processing',
        ['torch.float16'],
        ['torch.load', 'torch.float, 1', 'torch.hub.load'],
    ),
    ('mmcv.cnn.rfsearch.search', ['nn.Conv2d', 'Conv2dRFSearchOp'], ['nn.functional.conv2d', '__builtins__']),
]


@pytest.mark.parametrize(('module', 'names', 'refused'), EVALUATED, ids=[case[0] for case in EVALUATED])
def test_evaluated_arguments_are_names(module, names, refused):
    looked_up = importlib.import_module(module).eval
    for name in names:
        assert looked_up(name) is not None
    for text in [*refused, '__import__("os").system("true")']:
        with pytest.raises(ValueError, match='check its spelling'):
            looked_up(text)


def test_registered_names_of_all_kinds_still_resolve():
    for registry, name in (
        (MODELS, 'mmdet.RetinaNet'),
        (HOOKS, 'repl_mm.CostHook'),
        (TRANSFORMS, 'mmseg.PackSegInputs'),
    ):
        assert registry.get(name).__name__ == name.rpartition('.')[2]
