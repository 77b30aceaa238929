"""Contract: what pip is told, what the code imports and what is pinned agree; one command has all tools as verbs.

Oracles: the modules' syntax trees, the files of ``tools/`` and ``configs/``, the pins, a fresh interpreter.
"""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import tomllib
import yaml
from cli_helpers import run
from packaging.requirements import Requirement

from repl_mm.cli import __main__ as entry
from repl_mm.cli.common import EXTRAS, exit_on_user_error
from repl_mm.compat import FORKS, require_one_stack

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
CORE = [Requirement(text) for text in PROJECT['dependencies']]
OPTIONAL = {
    name: [need for need in map(Requirement, texts) if need.name != 'repl_mm']
    for name, texts in PROJECT['optional-dependencies'].items()
}
PINS = {
    need.name: need.specifier
    for line in (ROOT / 'requirements.txt').read_text().splitlines()
    if line and not line.startswith('#')
    for need in [Requirement(line)]
}
CLASSIC = {'mmengine', 'mmdet', 'mmsegmentation', 'mmpretrain', 'ftfy', 'regex'}
# Names of distributions that differ from those of what is imported.
DISTRIBUTIONS = {
    'PIL': 'pillow', 'markdown_it': 'markdown-it-py',
    'sklearn': 'scikit-learn', 'pytorch_grad_cam': 'grad-cam', 'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv', 'mmpretrain': 'onedl-mmpretrain', 'mmdet': 'onedl-mmdetection',
    'mmseg': 'onedl-mmsegmentation',
}  # fmt: skip


def test_the_pins_are_of_what_is_asked_for():
    """Each pin satisfies its range, and each range but the classic libraries' has a pin."""
    asked = {need.name: need for needs in (CORE, *OPTIONAL.values()) for need in needs}
    assert set(PINS) == set(asked) - CLASSIC
    for name, pin in PINS.items():
        (version,) = (spec.version for spec in pin)
        assert asked[name].specifier.contains(version), name


def test_the_core_pulls_in_no_host_library():
    assert {need.name for need in CORE} & {name for fork, names in FORKS.items() for name in (fork, *names)} == set()


def test_what_is_imported_is_asked_for():
    """At the top of a module or inside of a function; the standard library and ourselves aside."""
    given = {need.name for needs in (CORE, *OPTIONAL.values()) for need in needs}
    found = set()
    for path in (ROOT / 'repl_mm').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition('.')[0])
            elif isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
    # mmengine brings yaml; that CityScapes' own scripts are missing is told where they are needed.
    found -= {*sys.stdlib_module_names, 'repl_mm', 'cityscapesscripts', 'yaml'}
    assert {DISTRIBUTIONS.get(name, name) for name in found} <= given
    assert found <= set(EXTRAS)


def test_each_extra_brings_what_the_message_says():
    for module, extra in EXTRAS.items():
        names = {need.name for need in (OPTIONAL[extra] if extra else CORE)}
        assert DISTRIBUTIONS.get(module, module) in names


@pytest.mark.parametrize(
    ('module', 'said'),
    [
        ('scipy.stats', "scipy.stats is not installed: pip install 'repl_mm[tools]'"),
        ('mmengine', "pip install 'repl_mm[onedl]' or, for the classic libraries, pip install 'repl_mm[openmmlab]'"),
    ],
)
def test_a_missing_package_is_one_line(module, said, capsys):
    with pytest.raises(SystemExit, match='2'), exit_on_user_error():
        raise ModuleNotFoundError(f'No module named {module!r}', name=module)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(said)


def test_a_missing_module_of_somebody_else_is_not_hidden():
    with pytest.raises(ModuleNotFoundError), exit_on_user_error():
        raise ModuleNotFoundError("No module named 'mine'", name='mine')


def test_both_stacks_are_refused(monkeypatch):
    names = ['numpy', 'onedl-mmdetection', 'onedl_mmengine', 'MMDet', 'mmcv-lite']
    monkeypatch.setattr(metadata, 'distributions', lambda: [SimpleNamespace(name=name) for name in names])
    said = 'onedl-mmdetection and mmdet are both installed, and one has overwritten files of the other: pip uninstall '
    with pytest.raises(ValueError, match=f'^{said}mmdet onedl-mmdetection, then'):
        require_one_stack()
    names.remove('MMDet')
    require_one_stack()


def test_each_tool_is_a_verb():
    assert sorted(verb.replace('-', '_') for verb in entry.VERBS) == sorted(
        p.stem for p in (ROOT / 'tools').glob('*.py')
    )


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['repl-mm'])
    entry.main([])
    lines = capsys.readouterr().out.splitlines()
    for verb in entry.VERBS:
        (line,) = (line for line in lines if line.split()[:1] == [verb])
        assert line.endswith('.')
    with pytest.raises(SystemExit, match='0'):
        entry.main(['warm-start', '--help'])
    assert capsys.readouterr().out.startswith('usage: repl-mm warm-start [-h]')
    with pytest.raises(SystemExit, match='2'):
        entry.main(['warm_strat'])
    assert capsys.readouterr().err == "error: there is no verb 'warm_strat': did you mean warm-start?\n"


def test_the_list_of_verbs_imports_nothing_large():
    code = 'import sys; from repl_mm.cli.__main__ import main; main([]); print(*sorted(sys.modules))'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert not {'torch', 'numpy', 'mmengine', 'rich'} & set(out.splitlines()[-1].split())


def test_the_index_has_all_configs_that_can_be_trained():
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    entries = [entry for path in index['Import'] for entry in yaml.safe_load((ROOT / path).read_text())['Models']]
    paths = [path for path in (ROOT / 'configs').rglob('[!_]*.py') if path.parent.name != 'studies']
    assert sorted(entry['Config'] for entry in entries) == sorted(str(path.relative_to(ROOT)) for path in paths)
    assert all(entry['Name'] == Path(entry['Config']).stem for entry in entries)


def test_our_configs_are_bases_by_the_name_of_the_package(tmp_path):
    """In an editable install; the wheel's are tried in tests/package."""
    (tmp_path / 'mine.py').write_text("_base_ = 'repl_mm::demo/resnet32-repl_digits.py'\n")
    names = (tmp_path / 'mine.py', ROOT / 'configs/demo/resnet32-repl_digits.py')
    # Below the line that names the config.
    answers = [run('cost', name).out.split('float32')[1].split('\n', 1)[1] for name in names]
    assert answers[0] == answers[1]
    assert '466,906' in answers[0]  # parameters of E2E
