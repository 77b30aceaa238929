"""Contract: whatever a value of a config is, training does its work, or ends with exit code 2 and one line.

Every value of an experiment in turn is given each of the values below by ``--cfg-options``. Exit code 1 is for a loss
that is not finite.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cli_helpers import CLASSIFIER, run
from mmengine.config import Config
from share import PART

TEXT = (
    CLASSIFIER.replace(
        "type='ResNet_CIFAR', depth=18, base_channels=8",
        "type='repl_mm.ReplResNetCIFAR', depth=32, stem_channels=8, base_channels=16, out_indices=(3,), "
        "repl=dict(policy='interval', every=4)",
    )
    + """
train_dataloader['dataset']['indices'] = val_dataloader['dataset']['indices'] = 20
train_dataloader['batch_size'] = 10
train_cfg['max_epochs'] = 1
optim_wrapper['clip_grad'] = dict(max_norm=1.0)
load_from = None
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0))
log_level, log_processor = 'INFO', dict(window_size=10)
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
"""
)
VALUES = ['None', 'True', '-1', '0', '1.5', 'nan', '1e400', '9' * 30, '', 'x', '[]', '[1,2]', '[None]', '[[1]]', '(x,)']


def leaves(value: Any, place: str = '') -> Iterator[str]:
    """The places of all values, sections included."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        name = f'{place}{key}'
        yield name
        yield from leaves(item, f'{name}.')


PLACES = list(leaves(Config.fromstring(TEXT, '.py').to_dict()))


@pytest.mark.parametrize('section', sorted({place.partition('.')[0] for place in PLACES}))
def test_any_value_at_any_place(section, tmp_path, survived):
    (tmp_path / 'net.py').write_text(TEXT)
    bad, tried = [], 0
    for place in PLACES:
        if place.partition('.')[0] != section:
            continue
        for value in VALUES[PLACES.index(place) % PART :: PART]:
            work_dir = tmp_path / f'run{tried}'
            tried += 1
            case = f'{place}={value[:10]}'
            try:
                done = run('train', tmp_path / 'net.py', '--work-dir', work_dir, '--cfg-options', f'{place}={value}')
            except BaseException as error:  # whatever is let through
                bad.append((case, f'{type(error).__name__}: {str(error)[:200]}'))
                continue
            lines = done.err.strip().splitlines()
            if done.code not in (0, 1, 2):
                bad.append((case, f'exit code {done.code}'))
            elif done.code and not re.search('error: .', lines[-1] if lines else ''):
                bad.append((case, f'exit code {done.code}, last line {lines[-1:]}'))
            elif done.code == 0 and not list(work_dir.glob('*.pth')) and not place.startswith('default_hooks'):
                bad.append((case, 'ends with 0 and wrote nothing'))
    assert not bad, '\n'.join(map(str, bad))
    survived('a bad value in a config', tried)
