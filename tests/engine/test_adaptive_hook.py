"""Contract: a run with policy 'adaptive' changes its sites between epochs, and one that is resumed ends as one that was
not interrupted.

Oracles: the uninterrupted run, bit for bit; the scores in its checkpoints, and brute force over all masks.
"""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from cli_helpers import CLASSIFIER, run
from helpers import same
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, DefaultScope

from repl_mm.cli.train import use_adaptive_sites
from repl_mm.engine.hooks import AdaptiveHook
from repl_mm.surgery import sites_of

STEPS, EPOCHS = 3, 3
CONFIG = (
    CLASSIFIER.replace(
        "type='ResNet_CIFAR', depth=18, base_channels=8",
        "type='repl_mm.ReplResNetCIFAR', depth=32, base_channels=4, stem_channels=4, "
        "repl=dict(policy='adaptive', start='interval', every=4)",
    )
    .replace('in_channels=64', 'in_channels=16')
    .replace('indices=96', 'indices=48')
    .replace('max_epochs=2', f'max_epochs={EPOCHS}')
) + """
custom_imports = dict(imports=['test_adaptive_hook'])
default_hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch=False, interval=1)
optim_wrapper['optimizer']['weight_decay'] = 0.1
"""  # fmt: skip


@HOOKS.register_module()
class StopAt(Hook):
    """Ctrl-C after a step, when its checkpoint is written, or when an epoch is through."""

    priority = 'LOWEST'

    def __init__(self, step, after_epoch=False) -> None:
        self.step, self.after_epoch = step, after_epoch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter + 1 == self.step and not self.after_epoch:
            raise KeyboardInterrupt

    def before_val(self, runner) -> None:
        if runner.iter == self.step and self.after_epoch:
            raise KeyboardInterrupt


def train(folder: Path, name: str, *args, change: str = ''):
    config = folder / 'adaptive.py'
    config.write_text(CONFIG + change)
    return run('train', config, '--work-dir', folder / name, *args)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """With a run that nobody interrupted."""
    folder = tmp_path_factory.mktemp('runs')
    assert train(folder, 'whole').code == 0
    return folder


def load(folder: Path, name: str, step: int) -> dict:
    return torch.load(folder / name / f'iter_{step}.pth', weights_only=False)


def masks_of(state: dict) -> dict[str, bool]:
    return {key.removesuffix('.computing.mask'): bool(v) for key, v in state.items() if key.endswith('.mask')}


def test_sites_change_when_an_epoch_begins(folder):
    states = [load(folder, 'whole', step)['state_dict'] for step in range(1, EPOCHS * STEPS + 1)]
    masks = [masks_of(state) for state in states]
    for epoch in range(EPOCHS):
        within = masks[epoch * STEPS : (epoch + 1) * STEPS]
        assert within == within[:1] * STEPS
    assert [name for name, on in masks[0].items() if on] == [f'backbone.layer{stage}.3' for stage in (1, 2, 3)]
    assert masks[0] != masks[-1]
    for epoch in range(EPOCHS - 1):
        last = states[(epoch + 1) * STEPS - 1]
        scores = {name: last[f'{name}.computing.scores'].tolist() for name in masks[0]}
        assert {images for _, images in scores.values()} == {48}
        apart = [
            mask
            for mask in combinations(masks[0], 3)
            if all(a[:-1] != b[:-1] or abs(int(a[-1]) - int(b[-1])) > 1 for a, b in combinations(mask, 2))
        ]
        sums = {mask: sum(scores[name][0] for name in mask) for mask in apart}
        chosen = tuple(name for name, on in masks[(epoch + 1) * STEPS].items() if on)
        # Blocks begin as the identity, so the scores of the first steps lie within rounding of each other.
        assert sums[chosen] == pytest.approx(max(sums.values()), rel=1e-13)
        assert max(sums.values()) - min(sums.values()) > 1e-8


@pytest.mark.parametrize(
    'stops',
    [
        [f'step={STEPS + 1}'],  # in an epoch whose sites are not the first ones
        [f'step={STEPS}', f'step={2 * STEPS}, after_epoch=True'],  # when an epoch's last step is done; between two
    ],
)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(folder, stops):
    name = f'broken {len(stops)}'
    for number, stop in enumerate(stops):
        again = ['--resume'] if number else []
        change = f"custom_hooks = [dict(type='StopAt', {stop})]\n"
        assert train(folder, name, *again, change=change).code == 130
    assert train(folder, name, '--resume').code == 0
    for step in range(STEPS + 1, EPOCHS * STEPS + 1):
        for part in ('state_dict', 'optimizer'):
            assert same(load(folder, name, step)[part], load(folder, 'whole', step)[part]), (step, part)


def test_the_tool_deploys_the_sites_that_were_trained_last(folder):
    """Oracle: tools/test.py on the checkpoint and on what is deployed."""
    checkpoint = folder / 'whole' / f'iter_{EPOCHS * STEPS}.pth'
    done = run('deploy', folder / 'adaptive.py', checkpoint, folder / 'static')
    assert done.code == 0, done.err
    deployed = Config.fromfile(folder / 'static/adaptive_deployed.py')
    on = [name for name, on in masks_of(load(folder, 'whole', EPOCHS * STEPS)['state_dict']).items() if on]
    sites = [(int(name.split('.')[1][-1]) - 1, int(name.split('.')[2])) for name in on]
    assert deployed.model.backbone.repl == dict(policy='explicit', sites=sites)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(deployed.model)
    weights = torch.load(folder / 'static/adaptive_deployed.pth')['state_dict']
    model.load_state_dict(weights)
    assert sites_of(model.backbone.repl_stages().values()) == ()


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ('train_cfg = dict(by_epoch=False, max_iters=4)\n', 'this run counts none: give train_cfg by_epoch=True'),
        ("model['backbone']['repl'] = dict(policy='adaptive', every=4)\n", "needs 'start'"),
    ],
)
def test_bad_configs(tmp_path, change, said):
    done = train(tmp_path, 'run', change=change)
    assert done.code != 0
    assert said in done.err.splitlines()[-1]


def test_several_processes_need_to_know_of_unused_parameters():
    from unittest import mock

    from mmengine.runner import EpochBasedTrainLoop
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from repl_mm.backbones import ReplResNetCIFAR

    network = ReplResNetCIFAR(32, repl=dict(policy='adaptive', start='interval', every=4))
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module, wrapper.find_unused_parameters = network, False
    runner = mock.Mock(model=wrapper, train_loop=mock.Mock(spec=EpochBasedTrainLoop))
    with pytest.raises(ValueError, match='find_unused_parameters=True'):
        AdaptiveHook().before_train(runner)
    wrapper.find_unused_parameters = True
    AdaptiveHook().before_train(runner)


@pytest.mark.parametrize('policy', ['adaptive', 'interval'])
def test_the_tool_adds_what_the_policy_needs(policy):
    config = Config(dict(model=dict(backbone=dict(repl=dict(policy=policy))), custom_hooks=[]))
    for _ in range(2):
        use_adaptive_sites(config)
    assert config.custom_hooks == ([dict(type='repl_mm.AdaptiveHook')] if policy == 'adaptive' else [])
    assert config.get('find_unused_parameters', False) == (policy == 'adaptive')
