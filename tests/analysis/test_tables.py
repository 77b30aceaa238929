"""Contract: a table shows its cells as they are, whatever marks they hold, and loses nothing of them.

Oracle: markdown-it-py reads the Markdown back; characters of the cells counted in what the terminal gets.
"""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.text import Text

from repl_mm.analysis.tables import Table

MARKS = st.text(st.sampled_from('\\|`*_~<>[]()!&;#-:ab1 \n\t'), max_size=12)
PARSER = MarkdownIt('commonmark').enable(['table', 'strikethrough'])


def read_cells(markdown: str) -> list[list[str]]:
    """The texts of a table's cells by an independent reader; fails on markup in one, and on anything but one table."""
    tokens = PARSER.parse(markdown)
    assert tokens[0].type == 'table_open'
    assert [token.type for token in tokens].count('table_close') == 1
    assert tokens[-1].type == 'table_close'
    rows = []
    for token in tokens:
        if token.type == 'tr_open':
            rows.append([])
        if token.type == 'inline':
            assert {child.type for child in token.children} <= {'text', 'text_special'}
            rows[-1].append(''.join(child.content for child in token.children))
    return rows


@given(st.lists(st.tuples(MARKS, MARKS), min_size=2, max_size=3))
@example([('a|b', '\\|'), ('lr[bold](x)', '_a_ b_c'), ('&lt;', '<b>~~x~~')])
@example([('', '|'), ('---', '\\')])
def test_markdown_shows_the_cells_as_they_are(rows):
    head, *body = rows
    expected = [[' '.join(cell.split()) for cell in row] for row in rows]
    assert read_cells(Table(head, 'lr', body).markdown()) == expected


def test_markdown_by_hand():
    table = Table(['run', 'step (ms)'], 'lr', [['resnet32-repl_digits', '1.50'], ['–', '']])
    lines = ['| run | step (ms) |', '| --- | ---: |', '| resnet32-repl_digits | 1.50 |', '| – |  |']
    assert table.markdown().splitlines() == lines


def test_a_file_gets_every_line_whole(capsys):
    long = 'x' * 300
    Table(['run', '[red]'], 'lr', [[long, '[bold]1[/bold]'], ['', '2']], title='[blue]').print()
    lines = capsys.readouterr().out.splitlines()
    title, head, first, second = (re.split(r'[│┃]', lines[at])[1:-1] for at in (0, 2, 4, 5))
    assert (title, lines[0].strip()) == ([], '[blue]')
    assert [cell.strip() for cell in head] == ['run', '[red]']
    assert [cell.strip() for cell in first] == [long, '[bold]1[/bold]']
    assert second[1].endswith('2 ')  # to the right


def test_a_narrow_terminal_folds_cells_and_cuts_none(capsys, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', '30')
    Table(['run', 'step'], 'lr', [['w' * 70, '1']]).print()
    plain = Text.from_ansi(capsys.readouterr().out).plain
    assert max(map(len, plain.splitlines())) == 30
    assert (plain.count('w'), plain.count('…')) == (70, 0)


@pytest.mark.parametrize(('align', 'rows'), [('l', []), ('lr', [['1']]), ('lr', [['1', '2', '3']])])
def test_a_table_with_holes_is_refused(align, rows):
    with pytest.raises(ValueError, match=r'a table of 2 columns \(a, b\) got'):
        Table(['a', 'b'], align, rows)
