"""Print a config as a run gets it: after inheritance and options."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from repl_mm.cli.common import add_arguments, exit_on_user_error


def key_lines(value: Any, key: str = '') -> Iterator[str]:
    """One line KEY=VALUE per setting, with the keys that ``--cfg-options`` takes."""
    if isinstance(value, dict) and value:
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = list(enumerate(value))
    else:
        yield f'{key}={value!r}'
        return
    for name, item in items:
        yield from key_lines(item, f'{key}.{name}' if key else str(name))


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    parser.add_argument('--keys', action='store_true', help='one line KEY=VALUE per setting, to search and compare')
    add_arguments(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from repl_mm.cli.config import load_config
    from repl_mm.engine.errors import printable

    config = load_config(args, sections=())
    text = '\n'.join(key_lines(config.to_dict())) if args.keys else config.pretty_text.rstrip()
    for line in text.splitlines():
        print(printable(line))
