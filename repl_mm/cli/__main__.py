"""``repl-mm VERB ...``: the tools of ``tools/`` as verbs of one command, which is also ``python -m repl_mm.cli``."""

import ast
import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from repl_mm import __version__

# In the order in which they are needed.
VERBS = (
    'doctor', 'try', 'cost', 'sites', 'plan', 'benchmark', 'prepare-data', 'make-digit-scenes', 'browse-dataset',
    'seed-checkpoint', 'warm-start', 'recoverability', 'print-config', 'train', 'test', 'eval-metric',
    'confusion-matrix', 'compare', 'study', 'analyze', 'show-predictions', 'image-demo', 'deploy', 'quantize',
)  # fmt: skip


def describe(verb: str) -> str:
    """What a verb does, by its module's docstring, which is read without importing it."""
    path = Path(__file__).with_name(f'{verb.replace("-", "_")}.py')
    return (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition('\n')[0]


def usage() -> str:
    """All verbs, a line each."""
    lines = [f'  {verb:<{max(map(len, VERBS))}}  {describe(verb)}' for verb in VERBS]
    head = (
        f'repl_mm {__version__}: Replacement Learning for OpenMMLab\n\nusage: repl-mm VERB [arguments], of which are\n'
    )
    return '\n'.join([head, *lines, '', 'repl-mm VERB --help tells the arguments of one.'])


def main(argv: Sequence[str] | None = None) -> None:
    """Run a verb.

    Args:
        argv: The verb and its arguments; those of the process by default.
    """
    verb, *args = (sys.argv[1:] if argv is None else argv) or ['--help']
    if verb in ('-h', '--help'):
        print(usage())
    elif verb == '--version':
        print(__version__)
    elif verb in VERBS:
        sys.argv[0] = f'repl-mm {verb}'  # what argparse calls the program
        import_module(f'repl_mm.cli.{verb.replace("-", "_")}').main(args)
    else:
        near = difflib.get_close_matches(verb.replace('_', '-'), VERBS, n=1)
        hint = f'did you mean {near[0]}?' if near else 'repl-mm --help lists them'
        print(f'error: there is no verb {verb!r}: {hint}', file=sys.stderr)
        raise SystemExit(2)


if __name__ == '__main__':
    main()
