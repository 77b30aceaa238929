"""Contract: training and testing from the command line.

A resumed run ends at the same weights as an uninterrupted one, a test repeats the last validation, and every
bad input ends in a one-line message and exit code 2, before training and without a traceback.
"""

import contextlib
import itertools
import json
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from cli_helpers import CLASSIFIER, run
from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import repl_mm.cli.config
from repl_mm.cli.common import exit_on_user_error
from repl_mm.cli.config import load_config

NUMBERS = itertools.count()
TOOLS = Path(__file__).parents[2] / 'tools'
DETECTOR = """
default_scope = 'mmdet'
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    backbone=dict(init_cfg=None, depth=18),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=8),
    bbox_head=dict(num_classes=1, in_channels=8, feat_channels=8, stacked_convs=1),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(type='CocoDataset', data_root='{data}', ann_file='boxes.json', data_prefix=dict(img='images'))
test_dataloader = dict(
    num_workers=0,
    dataset=dict(**data, pipeline=pipeline, metainfo=dict(classes=('person',)), test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='CocoMetric', ann_file='{data}/boxes.json')
test_cfg = dict()
"""
SEGMENTER = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
    backbone=dict(type='ResNet', depth=18),
    decode_head=dict(type='FCNHead', in_channels=512, in_index=3, channels=8, num_convs=1, num_classes=19),
    test_cfg=dict(mode='whole'),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
data = dict(type='CityscapesDataset', data_root='{data}', data_prefix=dict(img_path='images', seg_map_path='labels'))
test_dataloader = dict(
    num_workers=0,
    dataset=dict(**data, img_suffix='.png', seg_map_suffix='.png', pipeline=pipeline, test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_evaluator = dict(type='IoUMetric')
test_cfg = dict()
tta_model = dict(type='SegTTAModel')
flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
tta_pipeline = [pipeline[0], dict(type='TestTimeAug', transforms=[flips, pipeline[1:2], pipeline[2:]])]
"""


@pytest.fixture
def write(tmp_path):
    """Write a config. Each has a name of its own, as mmengine keeps what it built under the config's name."""

    def _write(text=CLASSIFIER):
        path = tmp_path / f'config{next(NUMBERS)}.py'
        path.write_text(text)
        return path

    return _write


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The work dir of a run of two epochs, interrupted after the first one and resumed."""
    folder = tmp_path_factory.mktemp('trained')

    def interrupt(hook, runner):
        if runner.epoch == 1:
            raise KeyboardInterrupt

    for name, resume in (('once', []), ('again', ['--resume'])):
        config = folder / f'{name}.py'
        config.write_text(CLASSIFIER)
        with contextlib.nullcontext() if resume else mock.patch.object(LoggerHook, 'before_train_epoch', interrupt):
            code, _, stderr = run('train', config, '--work-dir', folder, *resume)
        if not resume:
            last = 'interrupted: run again with --resume to continue from the last checkpoint'
            assert (code, stderr.splitlines()[-1]) == (130, last)
    assert code == 0
    return folder


def logged(folder, key):
    """All values of a key in mmengine's logs of training, oldest run first."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'), key=lambda log: log.stat().st_mtime)
    records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [record[key] for record in records if key in record]


def test_resumed_run_equals_uninterrupted_one(trained, write, tmp_path):
    assert run('train', write(), '--work-dir', tmp_path)[0] == 0
    states = [torch.load(f / 'epoch_2.pth', weights_only=False)['state_dict'] for f in (trained, tmp_path)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    assert states[0].keys() == states[1].keys()
    assert logged(trained, 'epoch') == [1] * 6 + [2] * 6
    assert logged(trained, 'loss') == logged(tmp_path, 'loss')


def test_test_repeats_the_last_validation(trained, write, tmp_path):
    """Oracle for the accuracy: scikit-learn's labels and NumPy."""
    out, pictures = tmp_path / 'new' / 'out.pkl', tmp_path / 'pictures'
    code, *_ = run(
        'test', write(), trained / 'epoch_2.pth', '--work-dir', tmp_path, '--out', out, '--show-dir', pictures
    )
    assert code == 0
    metrics = json.loads(next(tmp_path.glob('2*/2*.json')).read_text())
    assert metrics['accuracy/top1'] == logged(trained, 'accuracy/top1')[-1]
    labels = load_digits().target
    _, held_out = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    assert [path.name for path in out.parent.iterdir()] == ['out.pkl']
    predictions = pickle.loads(out.read_bytes())
    scores = np.stack([prediction['pred_score'].numpy() for prediction in predictions])
    assert metrics['accuracy/top1'] == pytest.approx(100 * np.mean(scores.argmax(1) == labels[held_out[:25]]))
    assert sorted(p.name for p in pictures.iterdir()) == [f'{i:02}.png' for i in range(25)]
    with Image.open(pictures / '00.png') as picture:
        assert picture.size == (2 * 480, 480)  # 8 pixels, enlarged; the ground truth and the prediction


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Three images with boxes in COCO's form and label maps."""
    root = tmp_path_factory.mktemp('scenes')
    images, boxes = [], []
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    for i in range(3):
        Image.new('RGB', (64, 64)).save(root / 'images' / f'{i}.png')
        Image.new('L', (64, 64)).save(root / 'labels' / f'{i}.png')
        images.append(dict(id=i, file_name=f'{i}.png', height=64, width=64))
        boxes.append(dict(id=i + 1, image_id=i, category_id=1, bbox=[8, 8, 32, 32], area=1024, iscrowd=0))
    categories = [dict(id=1, name='person')]
    (root / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=boxes, categories=categories)))
    return root


@pytest.mark.parametrize('text', [DETECTOR, SEGMENTER])
def test_predictions_and_pictures_of_detection_and_segmentation(text, scenes, write, tmp_path):
    config = write(text.replace('{data}', str(scenes)))
    parsed = Config.fromfile(config)
    with MODELS.switch_scope_and_registry(parsed.default_scope) as registry:
        torch.save(registry.build(parsed.model).state_dict(), tmp_path / 'weights.pth')
    out, shown = tmp_path / 'out.pkl', tmp_path / 'shown'
    arguments = config, tmp_path / 'weights.pth', '--work-dir', tmp_path
    assert run('test', *arguments, '--out', out, '--show-dir', shown, '--show-score-thr', 0.5)[0] == 0
    predictions = pickle.loads(out.read_bytes())
    assert [Path(prediction['img_path']).name for prediction in predictions] == ['0.png', '1.png', '2.png']
    assert all('seg_logits' not in prediction for prediction in predictions)
    assert sorted(path.name for path in shown.iterdir()) == ['0.png', '1.png', '2.png']
    with Image.open(shown / '0.png') as picture:
        # 64 pixels, eight times as large; the detector's pipeline loads no ground truth to show beside.
        assert picture.size == (512 if text is DETECTOR else 2 * 512, 512)
    code, _, stderr = run('test', *arguments, '--tta')
    assert (code, 'tta_model' in stderr) == ((2, True) if text is DETECTOR else (0, False))
    code, _, stderr = run('test', *arguments, '--amp')
    assert (code, 'bfloat16' in stderr) == ((2, True) if text is DETECTOR else (0, False))


def test_mixed_precision_on_a_cpu(trained, write, tmp_path):
    """Training and testing in bfloat16 stay near float32, and are not float32; the weights are."""
    assert run('train', write(), '--work-dir', tmp_path, '--amp', '--cfg-options', 'train_cfg.max_epochs=1')[0] == 0
    losses = np.array([logged(folder, 'loss')[:3] for folder in (trained, tmp_path)])
    assert np.all(losses[0] != losses[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    weights = torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict']
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}

    scores = []
    for amp in ([], ['--amp']):
        out = tmp_path / f'out{len(amp)}.pkl'
        assert run('test', write(), trained / 'epoch_2.pth', '--work-dir', tmp_path, '--out', out, *amp)[0] == 0
        scores.append(torch.stack([prediction['pred_score'].float() for prediction in pickle.loads(out.read_bytes())]))
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, atol=0.02, rtol=0)


SHARDED = """
runner_type, strategy = 'FlexibleRunner', dict(type='repl_mm.FSDPStrategy')
"""
CUSTOM_AVERAGE = "custom_hooks = [dict(type='EMAHook')]\n"
DEFAULT_AVERAGE = "default_hooks = dict(ema=dict(type='EMAHook'))\n"
EARLY = [
    ('train', ['missing.py'], 'cannot read the config missing.py: No such file'),
    ('train', ['x = ('], r"cannot read the config .*'\(' was never closed"),
    ('train', ['x = 1 / 0'], 'cannot read the config .*division by zero'),
    ('train', ["_base_ = 'mmnix::a/b.py'"], 'cannot read the config .*mmnix'),
    ('train', ["custom_imports = dict(imports=['nix'])"], r"custom modules from \{'imports': \['nix'\]\}$"),
    ('train', ['x = 1'], 'lacks model, train_dataloader, train_cfg, optim_wrapper'),
    ('train', [CLASSIFIER, '--cfg-options', 'epochs'], "takes KEY=VALUE pairs .*got 'epochs'"),
    ('train', [CLASSIFIER, '--cfg-options', 'model.type.x=1'], 'cannot apply --cfg-options: .*type'),
    ('train', [CLASSIFIER, '--cfg-options', 'runner_type=FlexibleRunner'], "runner_type 'FlexibleRunner'"),
    ('train', [CLASSIFIER + SHARDED + CUSTOM_AVERAGE], "an EMAHook .* a sharded one can't be"),
    ('train', [CLASSIFIER + SHARDED + DEFAULT_AVERAGE], "an EMAHook .* a sharded one can't be"),
    ('train', [CLASSIFIER, '--resume', 'missing.pth'], 'there is no checkpoint missing.pth'),
    ('train', [CLASSIFIER, '--resume', __file__], 'test_tools.py is not a checkpoint'),
    ('train', [CLASSIFIER, '--auto-scale-lr'], 'needs auto_scale_lr.base_batch_size'),
    ('train', [CLASSIFIER, '--amp', '--cfg-options', 'optim_wrapper.type=Nix'], "--amp needs .*'Nix'"),
    ('train', [CLASSIFIER, '--launcher', 'pytorch'], 'torchrun started'),
    ('test', [CLASSIFIER, 'missing.pth'], 'there is no checkpoint missing.pth'),
    ('test', [CLASSIFIER, __file__], 'test_tools.py is not a checkpoint'),
    ('test', [CLASSIFIER, 'any.pth', '--out', 'x.json'], "ends in .pkl, got 'x.json'"),
]


@pytest.mark.parametrize(('tool', 'args', 'expected'), EARLY)
def test_bad_input_leaves_nothing_behind(tool, args, expected, write, tmp_path):
    config = args[0] if args[0].endswith('.py') else write(args[0])
    code, _, stderr = run(tool, config, *args[1:], '--work-dir', tmp_path / 'work')
    assert code == 2
    assert 'error: ' in stderr.splitlines()[-1]
    assert re.search(expected, stderr.splitlines()[-1])
    assert not (tmp_path / 'work').exists()


NO_DATA = "train_dataloader['dataset'] = dict(data_root='/nix/', {})"
NO_FOLDER = "cannot load the train data, check train_dataloader in the config: No such file or directory: '/nix/"
WHILE_BUILDING = [
    ("model['backbone']['type'] = 'Nix'", "unknown type 'Nix', the mmpretrain::model registry"),
    ("model['backbone']['dept'] = 18", "unexpected keyword argument 'dept'"),
    ("model['backbone']['depth'] = 19", 'invalid depth 19'),
    ("optim_wrapper['optimizer']['type'] = 'Nix'", 'cannot build the optimizer'),
    ("param_scheduler['type'] = 'Nix'", "unknown type 'Nix', the mmpretrain::parameter scheduler registry"),
    ("load_from = 'missing.pth'", 'there is no file missing.pth'),
    ("train_dataloader['dataset']['type'] = 'Nix'", "cannot load the train data.*unknown type 'Nix'"),
    ("train_dataloader['dataset']['indices'] = 0", 'the data set is empty'),
    ('train_dataloader.update(drop_last=True, batch_size=97)', 'gives no batch, its data set has 96 samples'),
    (NO_DATA.format("type='CustomDataset'"), NO_FOLDER),
    (NO_DATA.format("type='ImageNet', split='train'"), NO_FOLDER),
    (NO_DATA.format("type='CIFAR10', download=False"), 'Cannot find CIFAR10 dataset'),
    (NO_DATA.format("type='mmdet.CocoDataset', ann_file='x.json'"), NO_FOLDER),
    (NO_DATA.format("type='mmseg.CityscapesDataset', data_prefix=dict(img_path='x', seg_map_path='y')"), NO_FOLDER),
]


@pytest.mark.parametrize(('change', 'expected'), WHILE_BUILDING)
def test_bad_config_is_one_line(change, expected, write, tmp_path):
    code, _, stderr = run('train', write(CLASSIFIER + change), '--work-dir', tmp_path / 'work')
    assert code == 2
    assert re.search('^error: .*' + expected, stderr.splitlines()[-1])
    assert not list(tmp_path.glob('work/*.pth'))


def test_data_that_is_missing_in_a_loader_worker_is_one_line(write, tmp_path):
    (tmp_path / 'list.txt').write_text('missing.png 0\n')
    dataset = f"dict(type='CustomDataset', data_prefix='/nix', ann_file='{tmp_path}/list.txt', pipeline=[dict(type="
    text = f"{CLASSIFIER}train_dataloader.update(num_workers=1, dataset={dataset}'LoadImageFromFile')]))\n"
    code, _, stderr = run('train', write(text), '--work-dir', tmp_path / 'work')
    assert code == 2
    assert stderr.splitlines()[-1].endswith("No such file or directory: '/nix/missing.png'")


MISFITS = [
    (lambda w: w.pop('head.fc.bias'), r'of its keys are 1 missing \(head.fc.bias\): give'),
    (lambda w: w.update({str(i): torch.ones(1) for i in range(4)}), r'4 left over \(0, 1, 2, \.\.\.\): give'),
    (lambda w: w.update({'head.fc.weight': torch.ones(2)}), r'1 of another shape \(head.fc.weight\): give'),
    (lambda w: w.update({'a\nb\x1b[2J': torch.ones(1)}), r'1 left over \(a\\nb\\x1b\[2J\): give'),
    (lambda w: w.update({'head.fc.weight': 'text'}), r'1 no numbers of the right kind \(head.fc.weight\): give'),
]


@pytest.mark.parametrize(('change', 'expected'), MISFITS)
def test_checkpoint_that_does_not_fit(change, expected, trained, write, tmp_path):
    """Both tools refuse what mmengine would load in part."""
    checkpoint = torch.load(trained / 'epoch_2.pth', weights_only=False)
    change(checkpoint['state_dict'])
    torch.save(checkpoint, tmp_path / 'bad.pth')
    for tool, args in (('test', [tmp_path / 'bad.pth']), ('train', ['--resume', tmp_path / 'bad.pth'])):
        code, _, stderr = run(tool, write(), *args, '--work-dir', tmp_path / 'work')
        assert code == 2
        assert re.search('error: the checkpoint .*bad.pth does not fit the model.*' + expected, stderr)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value, trained, write, tmp_path):
    checkpoint = torch.load(trained / 'epoch_2.pth', weights_only=False)
    checkpoint['state_dict']['backbone.bn1.running_var'][3] = value
    torch.save(checkpoint, tmp_path / 'bad.pth')
    for tool, args in (('test', [tmp_path / 'bad.pth']), ('train', ['--resume', tmp_path / 'bad.pth'])):
        code, _, stderr = run(tool, write(), *args, '--work-dir', tmp_path / 'work')
        assert code == 2
        assert re.search(
            'error: .*bad.pth holds NaN or infinite values in (state_dict.)?backbone.bn1.running_var: give', stderr
        )


def test_bare_weights_can_be_tested_but_not_resumed(trained, write, tmp_path):
    torch.save(torch.load(trained / 'epoch_2.pth', weights_only=False)['state_dict'], tmp_path / 'bare.pth')
    assert run('test', write(), tmp_path / 'bare.pth', '--work-dir', tmp_path / 'work')[0] == 0
    code, _, stderr = run('train', write(), '--resume', tmp_path / 'bare.pth', '--work-dir', tmp_path / 'work')
    assert code == 2
    assert f'bare.pth holds weights alone: start from them with --cfg-options load_from={tmp_path}' in stderr


def test_learning_rate_scales_with_the_batch_size(write, tmp_path):
    """By hand: 16 images a step instead of 64 make 0.05 a quarter."""
    text = CLASSIFIER + 'auto_scale_lr = dict(base_batch_size=64)\ntrain_cfg.update(max_epochs=1)\n'
    assert run('train', write(text), '--work-dir', tmp_path, '--auto-scale-lr')[0] == 0
    assert logged(tmp_path, 'lr') == [0.0125] * 6


def test_mmpretrain_configs_get_the_loader_of_its_own_tools(write):
    """Read off mmpretrain's tools/train.py; persistent workers need workers."""
    args = mock.Mock(config=write(), local_rank=0, launcher='none', cfg_options=[], work_dir=None)
    config = load_config(args, sections=())
    assert (config.train_dataloader.collate_fn, config.train_dataloader.persistent_workers) == (
        dict(type='default_collate'),
        False,
    )
    args.cfg_options = ['train_dataloader.num_workers=2', 'default_scope=mmpretrain']
    assert load_config(args, sections=()).train_dataloader.persistent_workers
    args.cfg_options = ['default_scope=mmdet']
    assert 'collate_fn' not in load_config(args, sections=()).train_dataloader


@pytest.mark.parametrize(
    ('gpus', 'launcher', 'expected'),
    [
        (1, 'pytorch', r'2 processes were started on this machine, which has 1 GPU\(s\)'),
        (0, 'slurm', '--launcher slurm needs GPUs'),
    ],
)
def test_launch_that_the_machine_cannot_run(gpus, launcher, expected, write, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(repl_mm.cli.config, 'get_device', lambda: 'cuda' if gpus else 'cpu')
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    code, _, stderr = run('train', write(), '--launcher', launcher, '--work-dir', tmp_path / 'work')
    assert code == 2
    assert re.search('error: ' + expected, stderr)
    assert not (tmp_path / 'work').exists()


def test_bugs_keep_their_traceback(write, tmp_path, monkeypatch):
    for error in (AttributeError('bug'), KeyError('bug')):
        monkeypatch.setattr(Runner, 'train', mock.Mock(side_effect=error))
        with pytest.raises(type(error), match='bug'):
            run('train', write(), '--work-dir', tmp_path)


def test_other_processes_give_the_first_one_time_to_speak(capsys, monkeypatch):
    pauses = []
    monkeypatch.setattr('time.sleep', pauses.append)
    for rank in '01':
        monkeypatch.setenv('RANK', rank)
        with pytest.raises(SystemExit, match='2'), exit_on_user_error():
            raise ValueError('no')
    assert capsys.readouterr().err.splitlines() == ['error: no', 'rank 1: error: no']
    assert len(pauses) == 1


@pytest.fixture
def launch(tmp_path):
    """Run a launch script, with a Python that counts two GPUs and names what it would start."""
    stand_in = f"""#!/bin/sh
case "$*" in
    *_torchrun*) echo "started $*" ;;
    *device_count*) echo 2 ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
    for name in ('python', 'srun'):
        (tmp_path / name).write_text(stand_in if name == 'python' else '#!/bin/sh\necho "started $*"\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / 'config.py').touch()

    def _launch(script: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
        env = dict(PATH=f'{tmp_path}:/usr/bin:/bin', **variables)
        command = ['bash', str(TOOLS / script), *args]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

    return _launch


BAD_LAUNCHES = [
    (['config.py', '3'], {}, '3 processes were asked for, and this machine has 2 GPU(s): ask for at most 2'),
    (['config.py', 'all'], {}, "GPUS is a whole number from 1 to 1024, got 'all'"),
    (['config.py', '0'], {}, "GPUS is a whole number from 1 to 1024, got '0'"),
    (['config.py', '1' * 30], {}, 'GPUS is a whole number from 1 to 1024, got'),
    (['config.py', ''], {}, "GPUS is a whole number from 1 to 1024, got ''"),
    (['nowhere.py', '1'], {}, 'there is no config nowhere.py'),
    (['', '1'], {}, 'there is no config : give'),
    (['config.py'], {}, 'usage: dist_train.sh CONFIG GPUS'),
    (['config.py', '1'], dict(PORT='70000'), "PORT is a whole number from 1 to 65535, got '70000'"),
    (['config.py', '1'], dict(PORT='-1'), "PORT is a whole number from 1 to 65535, got '-1'"),
    (['config.py', '1'], dict(PORT='0'), "PORT is a whole number from 1 to 65535, got '0'"),
    (['config.py', '1'], dict(PORT='a;b'), "PORT is a whole number from 1 to 65535, got 'a;b'"),
    (['config.py', '1'], dict(NNODES='abc'), "NNODES is a whole number from 1 to 100000, got 'abc'"),
    (['config.py', '1'], dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
    (['config.py', '1'], dict(NODE_RANK='1'), "NODE_RANK is a whole number from 0 to 0, got '1'"),
    (['config.py', '1'], dict(NNODES='2', NODE_RANK='x'), "NODE_RANK is a whole number from 0 to 1, got 'x'"),
]


@pytest.mark.parametrize(('args', 'variables', 'expected'), BAD_LAUNCHES)
def test_launch_script_speaks_before_torchrun(launch, args, variables, expected):
    done = launch('dist_train.sh', *args, **variables)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith(f'error: {expected}')
    assert done.stderr.count('\n') == 1


def test_what_launch_scripts_start(launch):
    """A port is found where none is given, on one machine; one that is taken is named."""
    assert (
        '--nnodes=1 --node_rank=0 --standalone --nproc_per_node=2 ' in launch('dist_train.sh', 'config.py', '2').stdout
    )
    with socket.create_server(('', 0)) as taken:
        port = str(taken.getsockname()[1])
        busy = launch('dist_test.sh', 'config.py', 'a.pth', '2', PORT=port)
    assert busy.returncode == 2
    assert busy.stderr.startswith(f'error: the port {port} cannot be listened at, another run may use it')
    free = launch('dist_test.sh', 'config.py', 'a.pth', '2', PORT=port).stdout
    assert f'--master_addr=127.0.0.1 --master_port={port} --nproc_per_node=2 ' in free
    assert free.endswith('test.py config.py a.pth --launcher pytorch\n')


def test_slurm_script_speaks_before_srun(launch):
    started = launch('slurm_train.sh', 'gpu', 'job', 'config.py', '--amp', GPUS='4', GPUS_PER_NODE='4')
    assert '--ntasks=4 --ntasks-per-node=4 ' in started.stdout
    for name, value in (('GPUS', 'many'), ('GPUS_PER_NODE', '0'), ('CPUS_PER_TASK', '-1')):
        bad = launch('slurm_train.sh', 'gpu', 'job', 'config.py', **{name: value})
        assert (bad.returncode, bad.stdout) == (2, '')
        assert re.match(f"error: {name} is a whole number from 1 to \\d+, got '{value}'", bad.stderr)
    assert launch('slurm_train.sh', 'gpu').stderr.startswith('error: usage: slurm_train.sh PARTITION')
    assert launch('slurm_test.sh', 'gpu', 'job', 'config.py').stderr.startswith('error: usage: slurm_test.sh PARTITION')
    scored = launch('slurm_test.sh', 'gpu', 'job', 'config.py', 'net.pth', '--out', 'found.pkl', GPUS='2')
    assert scored.stdout.rstrip().endswith('test.py config.py net.pth --out found.pkl --launcher slurm')
    assert '--ntasks=2 ' in scored.stdout
