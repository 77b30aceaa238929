"""Contract: a file that is cut, changed or made to do harm is named and passed over; a full disk costs none.

Oracles: the files as they were; a file that a malicious checkpoint would create.
"""

import os
import pickle
import random
import re
import resource
import shutil

import pytest
import torch
from helpers import same
from runs import STEPS, output, start, write_config
from share import PART

from repl_mm.engine import resume
from repl_mm.engine.checkpoints import as_safetensors, load_local
from repl_mm.engine.resume import find_newest
from repl_mm.engine.weights import read_checkpoint

PLACES = 200 // PART
TASK = 'classification'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The work dir of a whole run, with its last two checkpoints."""
    folder = tmp_path_factory.mktemp('run')
    config = write_config(TASK, folder=folder, data=folder)
    process = start(config, folder / 'work')
    process.join()
    assert process.exitcode == 0, output(folder / 'work')
    return folder


def ranges(size: int):
    """``PLACES`` equal ranges of the bytes of a file, as (first, end)."""
    return [(size * i // PLACES, size * (i + 1) // PLACES) for i in range(PLACES)]


def damage(content: bytes, kind: str, first: int, end: int, chance: random.Random) -> bytes:
    place = chance.randrange(first, end)
    if kind == 'cut':
        return content[:place]
    return content[:place] + bytes([content[place] ^ chance.randint(1, 255)]) + content[place + 1 :]


@pytest.mark.parametrize('kind', ['cut', 'flipped'])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_damaged_file_is_named_or_read_as_it_was(run, suffix, kind, tmp_path, survived):
    """A byte that nothing depends on, such as a date in an archive, may differ."""
    path = run / f'work/iter_{STEPS}.pth'
    if suffix == '.safetensors':
        state = load_local(str(path))['state_dict']
        path = tmp_path / 'whole.safetensors'
        path.write_bytes(as_safetensors(state, meta=dict(config='some text')))
    content, whole = path.read_bytes(), load_local(str(path))
    chance, named = random.Random(kind + suffix), 0
    damaged = tmp_path / f'damaged{suffix}'
    for first, end in ranges(len(content)):
        damaged.write_bytes(damage(content, kind, first, end, chance))
        try:
            read = read_checkpoint(str(damaged))
        except ValueError as error:
            assert re.search(re.escape(str(damaged)), str(error))  # noqa: PT017 (or it is read)
            named += 1
        else:
            assert same(read, whole)
        survived(f'{suffix} {kind}')
    assert named == PLACES if kind == 'cut' else named > 0.9 * PLACES


def test_resuming_passes_over_damaged_checkpoints(run, tmp_path, survived, monkeypatch):
    """At as many places; the one before is taken, unless the damage changes nothing."""
    newest, before = tmp_path / f'iter_{STEPS}.pth', tmp_path / f'iter_{STEPS - 2}.pth'
    shutil.copy(run / 'work' / before.name, before)
    content = (run / 'work' / newest.name).read_bytes()
    whole = load_local(str(run / 'work' / newest.name))
    said = []
    monkeypatch.setattr(resume, 'print_log', lambda message, *_: said.append(message))
    chance, passed_over = random.Random(0), 0
    for first, end in ranges(len(content)):
        newest.write_bytes(damage(content, chance.choice(['cut', 'flipped']), first, end, chance))
        found = find_newest(tmp_path)
        if found == before:
            passed_over += 1
            assert f'{newest} is not a checkpoint or is damaged' in said[-1]
            assert len(said) == passed_over
        else:
            assert same(load_local(str(found)), whole)
        survived('newest checkpoint damaged, then resumed')
    assert passed_over > 0.9 * PLACES


def test_a_run_whose_newest_checkpoint_is_damaged_ends_the_same(run, tmp_path, survived):
    shutil.copytree(run / 'work', tmp_path / 'work')
    newest = tmp_path / f'work/iter_{STEPS}.pth'
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    process = start(run / f'{TASK}.py', tmp_path / 'work', '--resume')
    process.join()
    assert process.exitcode == 0, output(tmp_path / 'work')
    assert f'iter_{STEPS}.pth is not a checkpoint or is damaged' in output(tmp_path / 'work')
    assert same(load_local(str(newest))['state_dict'], load_local(str(run / f'work/{newest.name}'))['state_dict'])
    survived('run resumed from the checkpoint before')


@pytest.mark.parametrize('checkpoint', [1, 2, 4])
def test_a_full_disk_ends_the_run_with_a_message(run, checkpoint, tmp_path, survived):
    """The limit of a file's size stands in for the disk's; from the given checkpoint on there is no room."""
    config, work_dir = run / f'{TASK}.py', tmp_path / 'work'

    def fill_up() -> None:
        from repl_mm.engine import files

        write, left = files.write_atomic, [checkpoint]

        def write_until_full(path, content):
            left[0] -= path.suffix == '.pth'
            if left[0] == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, resource.RLIM_INFINITY))
            write(path, content)

        files.write_atomic = write_until_full

    process = start(config, work_dir, before=fill_up)
    process.join()
    last = output(work_dir).splitlines()[-1]
    assert process.exitcode == 2
    assert last.startswith('error: cannot write ')
    assert f'iter_{2 * checkpoint}.pth: file too large. What was there before is as it was' in last
    assert sorted(path.name for path in work_dir.glob('*.pth*')) == [
        f'iter_{2 * step}.pth' for step in range(max(1, checkpoint - 2), checkpoint)
    ]
    assert list(work_dir.glob('.*.part')) == []
    again = start(config, work_dir, '--resume')
    again.join()
    assert again.exitcode == 0, output(work_dir)
    whole, found = (load_local(str(folder / f'iter_{STEPS}.pth')) for folder in (run / 'work', work_dir))
    assert same(found['state_dict'], whole['state_dict'])
    survived('disk full')


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


PAYLOADS = dict(
    system=lambda victim: Malicious(os.system, f'touch {victim}'),
    exec=lambda victim: Malicious(exec, f"open({str(victim)!r}, 'w')"),
    open=lambda victim: Malicious(open, str(victim), 'w'),
    torch_load=lambda victim: Malicious(torch.load, str(victim)),
    shutil=lambda victim: Malicious(shutil.copy, __file__, str(victim)),
    getattr=lambda victim: Malicious(getattr, torch.nn.Module, 'load_state_dict'),
)


@pytest.mark.parametrize('where', ['weight', 'optimizer', 'meta', 'message hub', 'gradients', 'all'])
@pytest.mark.parametrize('payload', PAYLOADS)
def test_a_malicious_checkpoint_creates_nothing(run, payload, where, tmp_path, survived):
    """Through the doors of training: resuming, starting from weights."""
    victim = tmp_path / 'victim'
    try:
        bad = PAYLOADS[payload](victim)
        pickle.dumps(bad)
    except TypeError:  # what cannot be written cannot do harm
        survived('malicious pickle')
        return
    content = load_local(str(run / f'work/iter_{STEPS}.pth'))
    if where == 'weight':
        content['state_dict']['head.fc.bias'] = bad
    elif where == 'all':
        content = bad
    else:
        content[where.replace(' ', '_')] = bad
    (tmp_path / 'work').mkdir()
    torch.save(content, tmp_path / f'work/iter_{STEPS}.pth')
    with pytest.raises(ValueError, match='could run code'):
        read_checkpoint(str(tmp_path / f'work/iter_{STEPS}.pth'))
    with pytest.raises(ValueError, match='can be resumed from'):
        find_newest(tmp_path / 'work')
    assert not victim.exists()
    survived('malicious pickle', 2)


@pytest.mark.parametrize('args', [['--resume'], ['--cfg-options', 'load_from={}']])
def test_training_does_not_run_what_a_checkpoint_holds(run, args, tmp_path, survived):
    victim, work_dir = tmp_path / 'victim', tmp_path / 'work'
    work_dir.mkdir()
    path = work_dir / 'iter_4.pth'
    torch.save(dict(state_dict={}, optimizer=Malicious(os.system, f'touch {victim}')), path)
    process = start(run / f'{TASK}.py', work_dir, *(arg.format(path) for arg in args))
    process.join()
    assert process.exitcode == 2
    assert 'could run code' in output(work_dir)
    assert not victim.exists()
    survived('malicious pickle')
