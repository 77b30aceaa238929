"""Contract: the package reads in one direction, and the maths does not need the host libraries.

Oracle: the modules' own syntax trees, and a fresh interpreter.
"""

import ast
import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / 'repl_mm'
# Each module may import those before it.
ORDER = [
    'sites',
    'synthesis',
    'layers',
    'surgery',
    'deployment',
    'compat',
    'registry',
    'engine',
    'backbones',
    'datasets',
]
ORDER += ['export', 'visualization', 'analysis', 'benchmark', 'cli']
MODULES = [path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py']


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith('repl_mm.'):
            found.add(node.module.split('.')[1])
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[1] for alias in node.names if alias.name.startswith('repl_mm.')}
    return found


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = ORDER.index(part(path))
    assert {name for name in imports(path) if ORDER.index(name) > own} == set()


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_what_is_registered_knows_the_registry(path):
    assert ('registry' in imports(path)) <= (part(path) in ('backbones', 'engine', 'datasets'))


TOOLS = sorted((PACKAGE.parent / 'tools').glob('*.py'))


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.name)
def test_a_tool_is_its_module_on_the_command_line(path, monkeypatch):
    calls = []
    monkeypatch.setattr(importlib.import_module(f'repl_mm.cli.{path.stem}'), 'main', lambda: calls.append(path.stem))
    runpy.run_path(str(path))
    assert calls == []
    runpy.run_path(str(path), run_name='__main__')
    assert calls == [path.stem]


def test_tools_parse_before_they_import():
    """A mistyped option and --help are answered without what takes seconds to import; in one fresh interpreter."""
    code = f"""
import contextlib, importlib, io, sys
for tool in {[path.stem for path in TOOLS]}:
    main, answers = importlib.import_module('repl_mm.cli.' + tool).main, []
    for argv in (['--help'], ['--nix']):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main(argv)
            except SystemExit as end:
                answers.append((end.code, 'usage: ' in out.getvalue() + err.getvalue()))
    large = ['torch', 'torchvision', 'mmengine', 'mmcv', 'matplotlib', 'sklearn', 'scipy', 'cv2', 'pandas', 'onnx']
    print(tool, answers, [name for name in large if name in sys.modules])
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [f'{path.stem} [(0, True), (2, True)] []' for path in TOOLS]


def test_the_maths_imports_no_host_library():
    code = (
        'import sys; import repl_mm, repl_mm.sites, repl_mm.synthesis; '
        'print([m for m in sys.modules if m.startswith(("mmengine", "mmcv", "mmpretrain", "mmseg"))])'
    )
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out == '[]\n'


def test_sites_need_no_torch():
    code = 'import sys; import repl_mm.sites; print("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == 'False\n'
