"""Contract: the package reads in one direction, and the maths does not need the host libraries.

Oracle: the modules' own syntax trees, and a fresh interpreter.
"""

import ast
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
