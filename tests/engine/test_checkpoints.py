"""Contract: reading a checkpoint never runs what it holds, and all that mmengine writes can be read.

Oracles: a file that a malicious pickle would create; mmengine's own objects; the tensors that were saved.
"""

import os
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader, save_checkpoint
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from repl_mm.engine.checkpoints import as_safetensors, load_local


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def whole_checkpoint() -> dict:
    """What mmengine's checkpoint hook saves: weights, optimizer, schedulers, message hub."""
    model = nn.Linear(3, 2)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters()))
    scheduler = OneCycleLR(optimizer, eta_max=0.1, total_steps=10)
    optimizer.update_params(model(torch.ones(1, 3)).sum())
    scheduler.step()
    hub = MessageHub('checkpoints')
    hub.update_scalar('train/loss', np.float64(1.5))
    hub.update_scalar('train/loss', torch.tensor(2.5))
    hub.update_info('epoch', 3)
    return dict(
        meta=dict(epoch=3, dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)])),
        state_dict=model.state_dict(),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[scheduler.state_dict()],
    )


def test_what_mmengine_saves_is_read(tmp_path):
    checkpoint = whole_checkpoint()
    save_checkpoint(checkpoint, str(tmp_path / 'a.pth'))
    # Through mmengine's own door, by which its runner resumes.
    read = CheckpointLoader.load_checkpoint(str(tmp_path / 'a.pth'), map_location='cpu', logger='silent')
    assert read.keys() == checkpoint.keys()
    assert torch.equal(read['state_dict']['weight'], checkpoint['state_dict']['weight'])
    assert read['message_hub']['log_scalars']['train/loss'].mean() == 2
    scheduler = read['param_schedulers'][0]
    again = OneCycleLR(OptimWrapper(torch.optim.AdamW([nn.Parameter(torch.ones(1))])), eta_max=0.1, total_steps=10)
    again.load_state_dict(scheduler)
    assert again.last_step == 1


@pytest.mark.parametrize('core', [b'numpy._core', b'numpy.core'])
def test_names_of_numpy_1_and_2_are_read(core, tmp_path):
    save_checkpoint(whole_checkpoint(), str(tmp_path / 'new.pth'))
    with zipfile.ZipFile(tmp_path / 'new.pth') as new, zipfile.ZipFile(tmp_path / 'old.pth', 'w') as old:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith('data.pkl'):
                content, number = re.subn(rb'numpy\._?core(?=\.multiarray)', core, content)
                assert number
            old.writestr(name, content)
    assert load_local(str(tmp_path / 'old.pth'))['message_hub']['log_scalars']['train/loss'].mean() == 2


@pytest.mark.parametrize('protocol', ['zip', 'legacy', 'plain pickle'])
@pytest.mark.parametrize(
    ('function', 'args'),
    [
        (os.system, ['touch {}']),
        (exec, ["open('{}', 'w')"]),
        (__import__, ['os']),
        # One of ours is let through by name, and must not lead further.
        (getattr, [np.ndarray, 'tofile']),
        # Methods of these two are let through, but not what leads to the functions of their modules.
        (getattr, [HistoryBuffer, '__init__']),
        (getattr, [OneCycleParamScheduler, '__module__']),
    ],
)
def test_a_malicious_file_is_not_run(protocol, function, args, tmp_path):
    victim = tmp_path / 'victim'
    args = [arg.format(victim) if isinstance(arg, str) else arg for arg in args]
    content = {'state_dict': {'w': torch.ones(1)}, 'meta': Malicious(function, *args)}
    path = tmp_path / 'bad.pth'
    if protocol == 'plain pickle':
        path.write_bytes(pickle.dumps(content['meta']))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == 'zip')
    said = r'was not read, it holds [\w.]+ and could run code: .* --trust$'
    if protocol == 'plain pickle':  # torch stops at the first byte that none of its own files has
        said = 'is not a checkpoint or is damaged'
    with pytest.raises(ValueError, match=rf'bad\.pth {said}'):
        load_local(str(path))
    assert not victim.exists()


@pytest.mark.parametrize('trusted', [False, True])
def test_a_download_is_read_the_same_way(trusted, tmp_path, monkeypatch):
    """mmengine's loader of addresses, with a local file in the place of the network."""
    victim = tmp_path / 'victim'
    torch.save({'w': Malicious(os.system, f'touch {victim}')}, tmp_path / 'bad.pth')
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda url, file, *_, **__: shutil.copy(tmp_path / 'bad.pth', file)
    )
    if trusted:
        monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
        CheckpointLoader.load_checkpoint('https://nowhere.invalid/bad.pth', logger='silent')
    else:
        with pytest.raises(ValueError, match=r'bad\.pth was not read, it holds [\w.]+ and could run code'):
            CheckpointLoader.load_checkpoint('https://nowhere.invalid/bad.pth', logger='silent')
    assert victim.exists() == trusted


def test_trust_lifts_the_restriction(tmp_path, monkeypatch):
    victim = tmp_path / 'victim'
    torch.save({'state_dict': {}, 'meta': Malicious(os.system, f'touch {victim}')}, tmp_path / 'old.pth')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    assert load_local(str(tmp_path / 'old.pth'))['state_dict'] == {}
    assert victim.exists()


def test_safetensors_keep_tensors_and_meta(tmp_path):
    shared = torch.randn(2, 3)
    state = {'a': shared, 'b': shared, 'c': torch.arange(6).view(2, 3).t(), 'd': torch.tensor(7)}
    (tmp_path / 'a.safetensors').write_bytes(as_safetensors(state, meta={'dataset_meta': {'classes': ['x']}}))
    read = load_local(str(tmp_path / 'a.safetensors'))
    assert read['state_dict'].keys() == state.keys()
    assert all(torch.equal(read['state_dict'][key], value) for key, value in state.items())
    assert read['meta'] == {'dataset_meta': {'classes': ['x']}}


@pytest.mark.parametrize(
    'change',
    [
        lambda state, meta: meta.update(meta=meta['meta'].replace('cat', 'dog')),
        lambda state, meta: state.update(a=state['a'] + 1),
        lambda state, meta: state.update(a=state['a'].view(3, 2)),
        lambda state, meta: state.update(a=state['a'].view(torch.int32)),
        lambda state, meta: state.update(c=state.pop('a')),
        lambda state, meta: state.pop('a'),
    ],
    ids=['meta', 'value', 'shape', 'type', 'key', 'missing'],
)
def test_a_check_sum_covers_all_that_safetensors_hold(change, tmp_path):
    path = tmp_path / 'a.safetensors'
    path.write_bytes(as_safetensors({'a': torch.randn(2, 3), 'b': torch.ones(1)}, meta={'classes': ['cat']}))
    assert load_local(str(path))['meta'] == {'classes': ['cat']}
    with safe_open(path, framework='pt') as file:
        state, meta = {key: file.get_tensor(key) for key in ('a', 'b')}, file.metadata()
    change(state, meta)
    path.write_bytes(save(state, metadata=meta))
    with pytest.raises(ValueError, match=r'a\.safetensors is not a checkpoint or is damaged'):
        load_local(str(path))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('length', [0, 1, 100, -1])
def test_a_damaged_file_is_named(suffix, length, tmp_path):
    path = tmp_path / f'cut{suffix}'
    state = {'w': torch.randn(100)}
    if suffix == '.pth':
        torch.save({'state_dict': state}, path)
    else:
        path.write_bytes(as_safetensors(state, meta={}))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=rf'cut{suffix} is not a checkpoint or is damaged'):
        load_local(str(path))


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r'there is no file nowhere\.pth'):
        CheckpointLoader.load_checkpoint('nowhere.pth', logger='silent')
