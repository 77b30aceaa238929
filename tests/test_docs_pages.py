"""Contract: what the pages link to is there, their code and command lines can be run, their tables are the code's.

Oracles: the files themselves, GitHub's rule for anchors, the tools' own parsers, the forms' and policies' own options.
"""

import ast
import csv
import importlib
import inspect
import re
import shlex
from collections import defaultdict
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mmengine.config import Config

from repl_mm.backbones import ReplMixin, ReplResNet
from repl_mm.layers.config import FORMS, forms_for
from repl_mm.layers.parts import ResidualParts, TransformerParts
from repl_mm.registry import _LOCATIONS
from repl_mm.sites import POLICIES, policy_options

ROOT = Path(__file__).parents[1]
SITE = sorted(path for path in (ROOT / 'docs').rglob('*.md') if '_build' not in path.parts)
PAGES = [*SITE, *(ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md'))]
by_path = pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt('gfm-like', {'linkify': False}).parse(page.read_text())


def links(page: Path) -> list[str]:
    children = [child for token in tokens(page) for child in token.children or ()]
    return [child.attrs.get('href') or child.attrs['src'] for child in children if child.type in ('link_open', 'image')]


@cache
def anchors(page: Path) -> set[str]:
    """Those that GitHub gives to headings: lower case, no punctuation, dashes for spaces."""
    found = set()
    for opening, heading in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == 'heading_open':
            text = ''.join(child.content for child in heading.children)
            found.add(re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-'))
    return found


@by_path
def test_links_lead_somewhere(page):
    broken = []
    for link in links(page):
        url = urlsplit(link)
        if url.scheme:
            good = url.scheme == 'https' and '.' in url.netloc
        else:
            target = (page.parent / url.path).resolve() if url.path else page
            good = target.is_file() and (not url.fragment or url.fragment in anchors(target))
            # Sphinx knows the pages of the site alone.
            good = good and (page not in SITE or target.suffix != '.md' or target in SITE)
        if not good:
            broken.append(link)
    assert broken == []


def test_every_page_is_in_the_contents():
    found = {ROOT / 'docs/index.md'}
    for page in (ROOT / 'docs/index.md', ROOT / 'docs/results/index.md'):
        for token in tokens(page):
            if token.type == 'fence' and token.info == '{toctree}':
                for name in re.findall(r'^[^:\s]\S*$', token.content, re.MULTILINE):
                    found |= set(page.parent.glob(f'{name}.md'))
    assert found == set(SITE)


def codes() -> list:
    return [
        pytest.param(token.content, page.name, id=f'{page.relative_to(ROOT)}:{token.map[0] + 1}')
        for page in PAGES
        for token in tokens(page)
        if token.type == 'fence' and token.info == 'python'
    ]


def free_names(tree: ast.Module) -> set[str]:
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stored = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    return {node.id for node in names if isinstance(node.ctx, ast.Load)} - stored


@pytest.mark.parametrize(('code', 'page'), codes())
def test_python_can_be_read(code, page, tmp_path):
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
    is_config = all(isinstance(node, ast.Assign) for node in tree.body) and free_names(tree) <= {'dict', '_base_'}
    if is_config and page != 'own_data.md':  # test_docs_data.py builds those
        (tmp_path / 'config.py').write_text(code)
        config = Config.fromfile(tmp_path / 'config.py')
        assert '_base_' not in code or config.model.backbone.type.startswith('repl_mm.')


def test_configs_are_told_from_other_code():
    assert free_names(ast.parse("_base_ = 'x'\ndata = 1\nmodel = dict(data=data, pipeline=_base_.pipeline)")) == {
        'dict'
    }
    assert 'session' in free_names(ast.parse('(logits,) = session.run(None, dict(images=1))'))


def lines() -> list:
    """The indented lines and the inline code of the pages that call a tool or a target of make."""
    found = []
    for page in PAGES:
        for token in tokens(page):
            if token.type == 'code_block':
                texts = token.content.replace('\\\n', ' ').splitlines()
            else:
                inline = [child.content for child in token.children or () if child.type == 'code_inline']
                texts = [text for text in inline if ' ' in text and not re.search(r'\bOUT\b|\.\.\.|\|', text)]
            for text in texts:
                calls = re.match(r'\s*(srun )?(python (-u )?)?tools/|\s*make ', text)
                if calls and page.name != 'CHANGELOG.md':
                    found.append(
                        pytest.param(
                            text.strip(),
                            token.type != 'code_block',
                            id=f'{page.relative_to(ROOT)}: {text.strip()}'[:110],
                        )
                    )
    return found


@pytest.mark.parametrize(('line', 'is_inline'), lines())
def test_command_lines_are_understood(line, is_inline, capsys):
    words = [word for word in shlex.split(line, comments=True) if word not in ('srun', 'python', '-u')]
    if words[0] == 'make':
        targets = re.search(r'^\.PHONY: (.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1].split()
        assert [word for word in words[1:] if '=' not in word and word not in targets] == []
        return
    tool, *arguments = words
    assert (ROOT / tool).is_file()
    if tool.endswith('.sh'):  # CONFIG PROCESSES, or CONFIG CHECKPOINT PROCESSES, and what the tool takes
        name = 'test' if tool.endswith('dist_test.sh') else 'train'
        arguments.pop(1 + (name == 'test'))
    else:
        name = Path(tool).stem
    try:
        importlib.import_module(f'repl_mm.cli.{name}').build_parser().parse_args(arguments)
    except SystemExit:  # a sentence may leave out what the tool cannot do without
        assert is_inline
        assert 'arguments are required' in capsys.readouterr().err


def tables(page: Path) -> list[list[list[str]]]:
    """Cells of the page's tables, row by row, as they are written."""
    found = []
    for token in tokens(page):
        if token.type == 'table_open':
            found.append([])
        elif token.type == 'tr_open':
            found[-1].append([])
        elif token.type == 'inline' and found and token.level > 3:
            found[-1][-1].append(token.content)
    return found


def coded(cell: str) -> list[str]:
    return re.findall(r'`([^`]*)`', cell)


def test_the_tables_of_options_are_the_codes_options():
    policies, policy_values, blocks, forms, options, arguments = tables(ROOT / 'docs/options.md')
    assert {coded(row[0])[0]: coded(row[1]) for row in policies[1:]} == {
        policy: policy_options(policy) for policy in POLICIES
    }
    every = {option for policy in POLICIES for option in policy_options(policy)}
    assert sorted(coded(row[0])[0] for row in policy_values[1:]) == sorted(every)
    assert {row[0]: coded(row[1]) for row in blocks[1:]} == {
        'residual': forms_for(ResidualParts),
        'transformer': forms_for(TransformerParts),
    }
    assert [coded(row[0])[0] for row in forms[1:]] == list(dict.fromkeys(layer.form for layer in FORMS))
    of_code = defaultdict(set)
    for layer in FORMS:
        for name, option in layer.options_of_form.items():
            of_code[name, option.allowed, repr(option.default)].add(layer.form)
    of_page = {(*coded(row[0]), row[1], *coded(row[2])): set(coded(row[3])) for row in options[1:]}
    assert of_page == of_code
    assert len(options) - 1 == len(of_page)
    assert len(arguments) == 3


def test_defaults_of_a_backbones_arguments():
    arguments = tables(ROOT / 'docs/options.md')[-1][1:]
    given = {**inspect.signature(ReplMixin).parameters, **inspect.signature(ReplResNet).parameters}
    assert {coded(row[0])[0]: coded(row[1])[0] for row in arguments} == {
        name: repr(given[name].default) for name in ('deploy', 'stochastic_depth')
    }


def test_what_the_page_on_when_counts():
    """Oracle: the table of evidence, read without the code that wrote it."""
    with (ROOT / 'docs/results/evidence.csv').open() as file:
        rows = [row for row in csv.DictReader(file) if row['what'] == 'RepL']

    def reached(row: dict[str, str], kind: str) -> bool:
        return all(float(row[kind + what]) <= float(row['published_' + what]) + 0.005 for what in ('time', 'memory'))

    counts = [sum(reached(row, kind) for row in rows) for kind in ('', 'drop_', 'choice_')]
    assert all(float(row['drop_' + what]) < float(row[what]) for row in rows for what in ('time', 'memory'))
    assert all(row['network'].startswith(('ViT', 'Transformer')) for row in rows if reached(row, 'choice_'))
    dense = [row for row in rows if row['table'] in ('VIII', 'XIV')]
    spans = []
    for what in ('time', 'memory'):
        saved = [100 * (1 - float(row[what])) for row in dense]
        spans.append(f'{min(saved):.1f} to {max(saved):.1f} % of {what}')
    assert counts[0] == 0
    text, number = (ROOT / 'docs/when.md').read_text(), len(rows)
    for said in (
        f'RepL reaches both in none of {number} plain rows',
        f'less time and less memory than RepL in each of the {number}; both published savings in {counts[1]} ',
        f'both published savings in {counts[2]} of the {number}, all of them Transformers',
        f'{", ".join(spans)} predicted',
    ):
        assert said in text


def test_all_tools_are_listed():
    listed = [coded(row[0])[0] for row in tables(ROOT / 'docs/quick_start.md')[-1][1:]]
    assert listed == sorted(path.name for path in (ROOT / 'tools').glob('*.py'))


def test_the_reference_has_all_forms_and_all_that_is_registered():
    described = set(re.findall(r'automodule:: (\S+)\n   :members:', (ROOT / 'docs/api.md').read_text()))
    registered = {module for modules in _LOCATIONS.values() for module in modules}
    assert registered | {layer.__module__ for layer in FORMS} <= described
