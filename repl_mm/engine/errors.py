"""Errors of the host libraries, as a person can read them."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# What the host libraries raise on bad input; the rest is taken for a bug.
HOST_ERRORS = (ArithmeticError, AssertionError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (.+) registry')


@contextmanager
def explain(task: str, *, errors: type[Exception] | tuple[type[Exception], ...] = HOST_ERRORS) -> Iterator[None]:
    """Turn errors that stand for bad input during a task into a ``ValueError`` that names the task."""
    try:
        yield
    except errors as error:
        raise ValueError(f'{task}: {summarise(error)}') from error


def printable(text: str) -> str:
    """A text in one line without control codes, which would act on the terminal that they are written to."""
    return ''.join(
        mark if mark.isprintable() else ' ' if mark.isspace() else mark.encode('unicode_escape').decode()
        for mark in text
    )


def summarise(error: Exception) -> str:
    """The line of an error's message that tells most."""
    # str(KeyError) is the repr of its message.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    if not text:
        return type(error).__name__
    if 'Original Traceback' in text:  # from the worker of a data loader
        return printable(text.splitlines()[-1])
    line = re.sub(r'^\[Errno \d+\] |, the current sys.path is:', '', text.splitlines()[0])
    if unknown := UNKNOWN_TYPE.match(line):
        return f"unknown type '{unknown[1]}', the {unknown[2]} registry does not have it: check its spelling"
    if isinstance(error, LookupError) and ' ' not in line:
        return f"'{line}' is not there"
    return printable(line).replace('need at least one array to concatenate', 'the data set is empty')


def shorten(names: Sequence[str]) -> str:
    """The first three of some names, which may come from a file."""
    # Escaped one by one: a name with a line break is not the same as one with a space.
    shown = [name if name.isprintable() else repr(name)[1:-1] for name in map(str, names[:3])]
    return f'{", ".join(shown)}{", ..." if names[3:] else ""}'
