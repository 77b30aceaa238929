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
    'stages',
    'surgery',
    'adaptation',
    'deployment',
    'fitting',
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


HOSTS = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg')


def test_the_method_imports_no_host_library():
    """Up to deployment it needs torch alone, and the package by itself and the sites not even that."""
    code = f"""
import sys, repl_mm, repl_mm.sites
print('torch' in sys.modules)
import repl_mm.layers, repl_mm.surgery, repl_mm.deployment
print(repl_mm.replace is repl_mm.surgery.replace, repl_mm.deploy is repl_mm.deployment.deploy)
print([name for name in {HOSTS} + ('torchvision', 'timm') if name in sys.modules])
"""
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.split('\n')[:3] == ['False', 'True True', '[]']


FAMILIES = {
    'ResNet',
    'ViT',
    'Swin',
    'BasicBlock',
    'Bottleneck',
    'Residual',
    'Transformer',
    'Encoder',
    'Scalar',
    'Headwise',
    'Drop',
}
OF_BLOCKS = {'conv1', 'conv2', 'conv3', 'norm1', 'norm2', 'attn', 'ffn', 'mlp', 'ln1', 'ln2', 'depth', 'arch'}
NAMES = {'channelwise', 'scalar', 'headwise', 'mlp_fusion', 'grad_fraction', 'recompute', 'sources', 'stop_gradient'}


def questions(path: Path) -> list[str]:
    """Where a module asks which family a network is of, or which form a computing layer has."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        text = ast.unparse(node) if isinstance(node, ast.Call | ast.Compare) else ''
        strings = {child.value for child in ast.walk(node) if isinstance(child, ast.Constant)} if text else set()
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('isinstance', 'issubclass'):
            asked = any(name in ast.unparse(node.args[1]) for name in FAMILIES)
        elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') in ('hasattr', 'getattr'):
            asked = bool(strings & (OF_BLOCKS | NAMES))
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') in ('startswith', 'endswith'):
            asked = any(isinstance(s, str) and s.lower().startswith(('resnet', 'vit', 'swin')) for s in strings)
        else:
            asked = isinstance(node, ast.Compare) and bool(strings & (OF_BLOCKS | NAMES | FAMILIES))
        if asked:
            found.append(f'{path.name}:{node.lineno} {text}')
    return found


def test_only_layers_and_backbones_ask_for_families_and_forms():
    outside = [path for path in MODULES if part(path) not in ('layers', 'backbones')]
    assert [question for path in outside for question in questions(path)] == []
    # The question itself is seen where it may be asked.
    assert questions(PACKAGE / 'layers/parts.py') != []


def test_files_and_functions_stay_short():
    long = []
    for path in MODULES:
        text = path.read_text()
        if (lines := len(text.splitlines())) > 350:
            long.append(f'{path.relative_to(PACKAGE)}: {lines} lines')
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and (lines := node.end_lineno - node.lineno + 1) > 75:
                long.append(f'{path.relative_to(PACKAGE)}:{node.lineno} {node.name}: {lines} lines')
    assert long == []
