"""Tables of text for a terminal and in files; records as CSV."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import rich.table
from rich.console import Console, JustifyMethod
from rich.text import Text

from repl_mm.engine.errors import printable

JUSTIFY: dict[str, JustifyMethod] = {'l': 'left', 'r': 'right'}
# What Markdown reads as markup; an underscore between letters is none.
MARKUP = re.compile(r'[\\`*<&|~\[]|(?<![^\W_])_|_(?![^\W_])')


@dataclass(frozen=True)
class Table:
    """A table of text; names in its cells are shown as they are, whatever marks they hold.

    Attributes:
        head: Name of each column.
        align: A letter for each column, ``l`` or ``r``.
        rows: The cells of each row, one for each column.
        title: Shown above the table in a terminal.

    Raises:
        ValueError: A row, or ``align``, does not have one entry for each column.
    """

    head: Sequence[str]
    align: str
    rows: Sequence[Sequence[str]]
    title: str = ''

    def __post_init__(self) -> None:
        for entries in (self.align, *self.rows):
            if len(entries) != len(self.head):
                raise ValueError(f'a table of {len(self.head)} columns ({", ".join(self.head)}) got {entries!r}')

    def print(self) -> None:
        """Write the table to the standard output."""
        # As Text, because rich takes brackets in a plain string for markup; it passes control codes on.
        table = rich.table.Table(title=Text(printable(self.title)) if self.title else None)
        for name, letter in zip(self.head, self.align, strict=True):
            table.add_column(Text(printable(name)), justify=JUSTIFY[letter], overflow='fold')
        for row in self.rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = Console()
        if not console.is_terminal:
            console.width = 10_000  # a file has no width, rich would fold the cells to fit into 80 characters
        console.print(table)

    def markdown(self) -> str:
        """The table as lines of Markdown, the last one ended too."""
        head, *rows = ([escape(cell) for cell in row] for row in (self.head, *self.rows))
        rule = ['---:' if letter == 'r' else '---' for letter in self.align]
        return ''.join(f'| {" | ".join(line)} |\n' for line in (head, rule, *rows))


def render(tables: Sequence[Table], *, form: str) -> str:
    """Tables as the content of a file.

    Args:
        tables: One or more, one after another.
        form: ``'.md'``, ``'.csv'`` or ``'.json'``.
    """
    if form == '.json':
        return json.dumps([dict(title=t.title, columns=t.head, rows=t.rows) for t in tables], indent=2) + '\n'
    if form == '.csv':
        buffers = [io.StringIO() for _ in tables]
        for table, buffer in zip(tables, buffers, strict=True):
            csv.writer(buffer, lineterminator='\n').writerows([table.head, *table.rows])
        return '\n'.join(buffer.getvalue() for buffer in buffers)
    return '\n'.join(f'{escape(t.title)}\n\n' * bool(t.title) + t.markdown() for t in tables)


def escape(text: str) -> str:
    """A text as one line of Markdown that shows it as it is."""
    text = printable(text)
    return MARKUP.sub(r'\\\g<0>', ' '.join(text.split()))


def as_csv(records: Sequence[Any]) -> str:
    """Records, which are dataclasses of one kind, one line each."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [field.name for field in fields(records[0])], lineterminator='\n')
    writer.writeheader()
    writer.writerows(asdict(record) for record in records)
    return buffer.getvalue()
