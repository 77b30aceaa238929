"""Contract: a pipe or a device in the place of a file is refused at once, and nothing is written over one.

Oracle: the test ends. Reading a pipe that nobody writes to never does.
"""

import os
import signal
from pathlib import Path

import pytest
from cli_helpers import CLASSIFIER, run
from mmengine.fileio import get, get_local_path, get_text

from repl_mm.engine.checkpoints import load_local
from repl_mm.engine.files import AtomicBackend, write_atomic
from repl_mm.engine.install import install
from repl_mm.engine.resume import find_newest


@pytest.fixture(autouse=True)
def limit():
    """A test that waits for a pipe ends, and fails."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail('it waits for what never comes'))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


@pytest.fixture(params=['pipe', 'device'])
def no_file(request, tmp_path) -> Path:
    path = tmp_path / 'special.pth'
    if request.param == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to('/dev/zero')
    return path


def _local_path(path: Path) -> None:
    with get_local_path(path):
        pass


@pytest.mark.parametrize('read', [get, get_text, _local_path, load_local, lambda path: write_atomic(path, b'x')])
def test_what_is_no_file_is_refused(read, no_file):
    install()
    with pytest.raises(ValueError, match='is a pipe, socket or device, not a file: give a file'):
        read(no_file)
    assert not no_file.is_file()


def test_the_newest_checkpoint_is_looked_for_past_it(no_file, tmp_path):
    with pytest.raises(ValueError, match=r'can be resumed from, .*is a pipe, socket or device'):
        find_newest(tmp_path)


DATA = "train_dataloader['dataset'] = dict(type='CustomDataset', data_prefix='', pipeline=[dict(type={}), {}], {})\n"
IMAGES = DATA.format("'LoadImageFromFile'", "dict(type='PackInputs')", "ann_file='{folder}/list.txt'")
BOXES = "train_dataloader['dataset'] = dict(type='repl_mm.CocoDataset', ann_file='{file}', pipeline=[])\n"


@pytest.mark.parametrize(
    ('tool', 'text', 'args'),
    [
        ('train', '', ['--resume', '{file}']),
        ('train', "load_from = '{file}'", []),
        ('test', '', ['{file}']),
        ('train', BOXES, []),
        ('train', "train_dataloader['dataset'] = dict(type='CustomDataset', ann_file='{file}')", []),
    ],
    ids=['resumed', 'loaded', 'tested', 'annotations', 'list of images'],
)
def test_tools_refuse_it(tool, text, args, no_file, tmp_path):
    place = dict(file=no_file, folder=tmp_path)
    (tmp_path / 'net.py').write_text(CLASSIFIER + text.format(**place))
    done = run(tool, tmp_path / 'net.py', *(arg.format(**place) for arg in args), '--work-dir', tmp_path / 'work')
    assert done.code == 2
    assert 'special.pth is a pipe, socket or device, not a file' in done.err.splitlines()[-1]


def test_an_image_that_is_a_pipe_is_named(no_file, tmp_path):
    (tmp_path / 'list.txt').write_text(f'{no_file} 0\n' * 12)
    (tmp_path / 'net.py').write_text(CLASSIFIER + IMAGES.format(folder=tmp_path))
    done = run('train', tmp_path / 'net.py', '--work-dir', tmp_path / 'work')
    assert done.code == 2
    assert 'special.pth is a pipe, socket or device, not a file' in done.err.splitlines()[-1]


def test_a_config_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / 'net.py')
    done = run('sites', tmp_path / 'net.py')
    assert done.code == 2
    assert 'net.py' in done.err.splitlines()[-1]


def test_files_are_read_as_before(tmp_path):
    write_atomic(tmp_path / 'file', b'text')
    assert (AtomicBackend().get(tmp_path / 'file'), AtomicBackend().get_text(tmp_path / 'file')) == (b'text', 'text')
