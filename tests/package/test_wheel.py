"""Contract: what is built is whole: a wheel in an empty folder trains, finds its configs, and changes nothing else.

Oracles: the files of the repository, pip's own plan, and the run's checkpoint. Run by ``make test-package``.
"""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def built(tmp_path_factory) -> Path:
    """A folder with the wheel, which is built from the sdist, and the sdist."""
    folder = tmp_path_factory.mktemp('built')
    subprocess.run([sys.executable, '-m', 'build', '--outdir', folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture(scope='module')
def installed(built, tmp_path_factory) -> Path:
    """The Python of a new environment, in a path with spaces, with the wheel and what this one has beside it."""
    folder = tmp_path_factory.mktemp('an environment')
    venv.create(folder, with_pip=True)
    python = folder / 'bin/python'
    (wheel,) = built.glob('*.whl')
    pip = [python, '-I', '-m', 'pip', 'install', '-q', '--no-input', '--disable-pip-version-check']
    subprocess.run([*pip, '--no-deps', wheel], check=True)
    (packages,) = folder.glob('lib/*/site-packages')
    # Behind its own, and without the editable install, which is a .pth file there.
    (others,) = {str(Path(path)) for path in sys.path if path.endswith('site-packages')}
    (packages / 'others.pth').write_text(f'{others}\n')
    return python


def files_of(*folders: str, suffixes: tuple[str, ...] = ('.py', '.sh', '.yml')) -> set[str]:
    listed = subprocess.run(
        ['git', 'ls-files', *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return {name for name in listed if name.endswith(suffixes)}


def test_the_wheel_and_the_sdist_have_all_files(built):
    with zipfile.ZipFile(next(built.glob('*.whl'))) as wheel:
        names = {name for name in wheel.namelist() if '.dist-info/' not in name}
    carried = {f'repl_mm/.mim/{name}' for name in files_of('configs', 'tools') | {'model-index.yml'}}
    assert names == files_of('repl_mm', suffixes=('.py', 'py.typed')) | carried
    with tarfile.open(next(built.glob('*.tar.gz'))) as sdist:
        inside = {name.partition('/')[2] for name in sdist.getnames()}
    assert files_of('repl_mm', 'configs', 'tools') | {'model-index.yml', 'setup.py', 'LICENSE'} <= inside


def test_it_adds_nothing_but_itself_to_a_whole_environment(built, tmp_path):
    (wheel,) = built.glob('*.whl')
    extras = 'onedl,tools,deploy,quantize,analysis'
    report = tmp_path / 'report.json'
    command = [sys.executable, '-m', 'pip', 'install', '--no-input', '--dry-run', '-q', '--report', report]
    subprocess.run([*command, f'{wheel}[{extras}]', '--disable-pip-version-check'], check=True)
    assert [item['metadata']['name'] for item in json.loads(report.read_text())['install']] in ([], ['repl_mm'])


def test_it_trains_from_an_empty_folder(installed, tmp_path):
    """By the command, from a config whose base is named by the package."""
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'repl_mm::demo/resnet32-repl_digits.py'\n"
        'train_cfg = dict(max_epochs=1)\nparam_scheduler = dict(total_steps=1)\n'
        'train_dataloader = dict(dataset=dict(indices=64))\n'
    )
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    for args in (
        ('train', 'mine.py', '--work-dir', 'out'),
        ('test', 'mine.py', 'out/epoch_1.pth', '--work-dir', 'tested'),
        ('deploy', 'mine.py', 'out/epoch_1.pth', 'deployed'),
    ):
        done = subprocess.run(
            [installed.with_name('repl-mm'), *args], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / 'out/epoch_1.pth').is_file()
    where = subprocess.run(
        [installed, '-c', 'import repl_mm; print(repl_mm.__file__)'],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(installed.parents[1]) in where


def test_without_the_rest_it_says_what_is_missing(built, tmp_path):
    """No torch, no host library: the verbs are listed, and a tool says in one line what to install."""
    venv.create(tmp_path / 'bare', with_pip=True)
    (wheel,) = built.glob('*.whl')
    bare = tmp_path / 'bare/bin'
    pip = [bare / 'python', '-I', '-m', 'pip', 'install', '-q', '--no-deps', '--disable-pip-version-check']
    subprocess.run([*pip, wheel], check=True)
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    listed = subprocess.run([bare / 'repl-mm'], env=env, capture_output=True, check=True).stdout
    assert listed.count(b'\n') > 20
    done = subprocess.run([bare / 'repl-mm', 'train', 'net.py'], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1)
    assert done.stderr.startswith('error: torch is not installed')
