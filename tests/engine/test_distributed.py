"""Contract: several processes on CPUs train the network that one process would train on the joint batch.

All processes end with the same weights, bit for bit; losses, weights and running statistics are those of one process up
to the order of float32 sums, with batch norms synchronised.
"""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from repl_mm.engine.cpu import GlooBatchNorm, synchronise_batch_norms
from repl_mm.surgery import check_links

ROOT = Path(__file__).parents[2]
PROBE = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Probe(Hook):
    '''Keep what each process has seen and learned.'''

    def before_train(self, runner):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.losses.append(outputs['loss'].item())

    def after_train(self, runner):
        model = getattr(runner.model, 'module', runner.model)
        torch.save(dict(losses=self.losses, state=model.state_dict()), f'{runner.work_dir}/rank{runner.rank}.pth')
"""
CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['probe'])
custom_hooks = [dict(type='Probe')]
data_preprocessor = dict(num_classes=10, mean=[78.0] * 3, std=[96.0] * 3, to_rgb=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='repl_mm.ReplResNetCIFAR', depth=32, repl=dict(policy='interval', every=4, recompute=True)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss'), topk=(1,)),
)
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(type='repl_mm.Digits', split='train', indices=128, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_dataloader = dict(
    batch_size=5,
    num_workers=0,
    dataset=dict(type='repl_mm.Digits', split='val', indices=25, pipeline=[dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))
randomness = dict(seed=0)
sync_bn = 'torch'
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(command, folder):
    """Start a command with the environment's Python; its output goes to a file in the folder."""
    env = os.environ | dict(
        PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        PYTHONPATH=f'{folder}:{ROOT}',
        PORT=str(free_port()),
        OMP_NUM_THREADS='1',
        CUDA_VISIBLE_DEVICES='-1',
    )
    with open(folder / f'{Path(command[0]).stem}.txt', 'w') as output:
        return subprocess.Popen(list(map(str, command)), env=env, stdout=output, stderr=subprocess.STDOUT)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """The folder with the work dirs ``one``, of one process, and ``two``, of two with half the batch each."""
    folder = tmp_path_factory.mktemp('runs')
    (folder / 'probe.py').write_text(PROBE)
    config = folder / 'config.py'
    config.write_text(CONFIG)
    half = ['--cfg-options', 'train_dataloader.batch_size=16']
    two = start([ROOT / 'tools/dist_train.sh', config, 2, '--work-dir', folder / 'two', *half], folder)
    one = start([sys.executable, ROOT / 'tools/train.py', config, '--work-dir', folder / 'one'], folder)
    assert one.wait() == 0
    assert two.wait() == 0, (folder / 'dist_train.txt').read_text()
    return folder


@pytest.fixture(scope='module')
def probes(runs):
    """What one process, and the first and second of two, have kept."""
    return [torch.load(runs / name) for name in ('one/rank0.pth', 'two/rank0.pth', 'two/rank1.pth')]


def test_both_processes_end_with_the_same_weights(probes):
    _, first, second = (probe['state'] for probe in probes)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_two_processes_equal_one_on_the_joint_batch(probes):
    """Oracle: the run of one process.

    Float32 sums in another order differ by about 1e-7, and by 3e-7 after these four steps; a norm whose backward pass
    is not synchronised shows in the weights at 5e-4, one that is not synchronised at all at 3e-2.
    """
    one, first, second = probes
    losses = [(a + b) / 2 for a, b in zip(first['losses'], second['losses'], strict=True)]
    assert len(losses) == 4
    assert losses == pytest.approx(one['losses'], rel=1e-6)
    for key, value in one['state'].items():
        torch.testing.assert_close(
            first['state'][key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f'{key}: {m}'
        )


def test_the_log_says_that_no_gpu_is_used_once(runs):
    assert (runs / 'dist_train.txt').read_text().count('No GPU found: 2 processes') == 1


def test_two_processes_test_as_one_validates(runs):
    """25 images on two processes: one of them is seen twice and must be counted once."""
    checkpoint, out = runs / 'two/epoch_1.pth', runs / 'out.pkl'
    command = [ROOT / 'tools/dist_test.sh', runs / 'config.py', checkpoint, 2]
    assert start([*command, '--work-dir', runs / 'test', '--out', out], runs).wait() == 0
    metrics = json.loads(next(runs.glob('test/2*/2*.json')).read_text())
    log = next(runs.glob('two/2*/vis_data/scalars.json')).read_text().splitlines()
    assert metrics['accuracy/top1'] == json.loads(log[-1])['accuracy/top1']
    assert [prediction['sample_idx'] for prediction in pickle.loads(out.read_bytes())] == list(range(25))


def norms_in_a_process(rank, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    for name, (norm, batches) in torch.load(f'{folder}/input.pth', weights_only=False).items():
        synchronise_batch_norms(norm, every=True)
        network = torch.compile(nn.Sequential(norm), backend='aot_eager') if name == 'compiled' else norm
        results = []
        for x, weight in batches[rank]:
            x.requires_grad_()
            y = network(x)
            (y * weight).sum().backward()
            results.append((y.detach(), x.grad))
        grads = [parameter.grad for parameter in norm.parameters()]
        torch.save((results, grads, norm.eval()(x).detach(), norm.state_dict()), f'{folder}/{name}{rank}.pth')


def test_in_evaluation_a_synchronised_norm_stays_in_the_compiled_graph():
    norm = nn.BatchNorm2d(4).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 3, 3)
    expected = norm(x)
    synchronise_batch_norms(norm, every=True)
    compiled = torch.compile(norm, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_batch_norm_over_processes_equals_the_joint_batch(tmp_path):
    """Oracle: torch's BatchNorm on the concatenated batch in float64; the processes have 3 and 5 samples."""
    norms = dict(
        images=(nn.BatchNorm2d(4), (4, 3, 2)),
        cumulative=(nn.BatchNorm2d(4, momentum=None), (4, 3, 2)),
        vectors=(nn.BatchNorm1d(6), (6,)),
        compiled=(nn.BatchNorm2d(4), (4, 3, 2)),
        plain=(nn.BatchNorm2d(2, affine=False, track_running_stats=False), (2, 3, 3)),
    )
    inputs = {}
    for name, (norm, shape) in norms.items():
        for parameter in norm.double().parameters():
            nn.init.normal_(parameter)
        inputs[name] = (
            norm,
            [
                [(torch.randn(n, *shape).double() + 100, torch.randn(n, *shape).double()) for _ in range(2)]
                for n in (3, 5)
            ],
        )
    torch.save(inputs, tmp_path / 'input.pth')
    mp.spawn(norms_in_a_process, args=(str(tmp_path), 2), nprocs=2)

    for name, (norm, batches) in inputs.items():
        found = [torch.load(tmp_path / f'{name}{rank}.pth') for rank in range(2)]
        for step, pairs in enumerate(zip(*batches, strict=True)):
            x, weight = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            y = norm(x.requires_grad_())
            (y * weight).sum().backward()
            for joint, part in ((y, 0), (x.grad, 1)):
                torch.testing.assert_close(torch.cat([result[0][step][part] for result in found]), joint.detach())
        for i, parameter in enumerate(norm.parameters()):
            torch.testing.assert_close(sum(result[1][i] for result in found), parameter.grad)
        norm.eval()
        for rank, result in enumerate(found):
            if norm.track_running_stats:
                torch.testing.assert_close(result[2], norm(batches[rank][-1][0]).detach())
            for key, value in norm.state_dict().items():
                torch.testing.assert_close(result[3][key], value)


@pytest.mark.parametrize('every', [False, True])
def test_only_the_norms_that_ask_for_it_are_synchronised(every):
    from repl_mm.backbones import ReplResNetCIFAR  # not above, as each spawned process reads this file

    backbone = ReplResNetCIFAR(depth=32, repl=dict(policy='interval', every=4))
    backbone.layer1[1].norm1.__class__ = nn.SyncBatchNorm
    parameters, keys = list(backbone.parameters()), list(backbone.state_dict())
    synchronise_batch_norms(backbone, every=every)
    check_links(backbone)
    assert all(a is b for a, b in zip(parameters, backbone.parameters(), strict=True))
    assert list(backbone.state_dict()) == keys
    norms = [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert sum(isinstance(norm, GlooBatchNorm) for norm in norms) == (len(norms) if every else 1)
