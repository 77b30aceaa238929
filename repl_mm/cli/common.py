"""What the command-line tools share before they import anything large: arguments, and errors that a person can read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repl_mm.engine.errors import UNKNOWN_TYPE, printable, summarise

if TYPE_CHECKING:
    from repl_mm.analysis.tables import Table

TABLE_FORMS = ('.md', '.csv', '.json')
# The extra that brings a package, by the name under which it is imported; the core has no extra.
EXTRAS = {
    **dict.fromkeys(('torch', 'torchvision', 'numpy', 'PIL', 'psutil', 'rich', 'safetensors', 'typing_extensions'), ''),
    **dict.fromkeys(('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg'), 'onedl'),
    **dict.fromkeys(('markdown_it', 'matplotlib', 'pycocotools', 'scipy', 'sklearn', 'tensorboard'), 'tools'),
    **dict.fromkeys(('onnx', 'onnxruntime', 'onnxscript'), 'deploy'),
    'torchao': 'quantize',
    'pytorch_grad_cam': 'analysis',
}


@contextmanager
def exit_on_user_error(*, on_interrupt: str = '') -> Iterator[None]:
    """End a tool on bad input with a one-line message and exit code 2, and on Ctrl-C with 130; other errors pass.

    Use it as a decorator of ``main``.

    Args:
        on_interrupt: What to do after an interruption.
    """
    try:
        yield
    except KeyboardInterrupt:
        _leave(f'interrupted: {on_interrupt}'.removesuffix(': '), code=130)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or '').partition('.')[0])
        if extra is None:
            raise
        # Never by hand: the classic libraries and their forks write over each other's files.
        classic = " or, for the classic libraries, pip install 'repl_mm[openmmlab]'" if extra == 'onedl' else ''
        needed = f"'repl_mm[{extra}]'" if extra else 'repl_mm'
        _leave(f'error: {error.name} is not installed: pip install {needed}{classic}', code=2)
    except FloatingPointError as error:
        _leave(f'error: {error}', code=1)
    except RuntimeError as error:
        if str(error).startswith('Symlink loop'):  # what Path.resolve raises
            _leave(f'error: {summarise(error)}: give another path', code=2)
        if 'DataLoader worker' not in str(error):
            raise
        _leave(f'error: {summarise(error)}: it may have run out of memory', code=1)
    except (ValueError, OSError, KeyError) as error:
        if isinstance(error, KeyError) and not UNKNOWN_TYPE.search(str(error)):
            raise
        _leave(f'error: {summarise(error)}', code=2)


def launched_rank() -> int:
    """The number that a launcher has given to this process, before any group is made."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return int(next((os.environ[name] for name in names if name in os.environ), 0))


def _leave(message: str, *, code: int) -> None:
    if (rank := launched_rank()) > 0:
        # If the first process met the same, its launcher ends this one before the message comes twice.
        time.sleep(15)
        message = f'rank {rank}: {message}'
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(code)


class Trust(Action):
    """Lets torch unpickle whatever a file holds, from here on and in all child processes."""

    def __call__(self, *_: Any) -> None:
        os.environ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'] = '1'


def add_trust(parser: ArgumentParser) -> None:
    """The flag of all tools that read a checkpoint."""
    parser.add_argument(
        '--trust', nargs=0, action=Trust, help='read checkpoints that hold more than weights, and may run any code'
    )


def _key_value(text: str) -> str:
    if '=' not in text:
        raise ArgumentTypeError(f'takes KEY=VALUE pairs such as train_cfg.max_epochs=3, got {text!r}')
    return text


def add_cfg_options(parser: ArgumentParser) -> None:
    """The flag of all tools that read a config; :func:`repl_mm.cli.config.load_config` parses its values."""
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', type=_key_value, metavar='KEY=VALUE',
        help='override settings of the config',
    )  # fmt: skip
    # What a tool without a run has no flags for.
    parser.set_defaults(launcher='none', local_rank=0, work_dir=None)


def add_arguments(parser: ArgumentParser) -> None:
    """The flags that OpenMMLab's tools for training and testing have in common."""
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<name of the config>)')
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16 on a GPU, bfloat16 on a CPU')
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def add_verbose(parser: ArgumentParser) -> None:
    """The flag of tools with a run."""
    parser.add_argument(
        '--verbose', action='store_true', help="show the host libraries' listings and warnings in the terminal too"
    )


def _table_file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in TABLE_FORMS:
        raise ArgumentTypeError(f'takes a file that ends in {", ".join(TABLE_FORMS)}, got {text!r}')
    return path


def add_table_out(parser: ArgumentParser) -> None:
    """The flag of tools that print tables; :func:`show_tables` does what it says."""
    parser.add_argument(
        '--out',
        type=_table_file,
        metavar='FILE',
        help=f'write the tables too, as the name ends: {", ".join(TABLE_FORMS)}',
    )


def show_tables(tables: Sequence[Table], out: Path | None) -> None:
    """Print tables, and write them into a file if there shall be one."""
    from repl_mm.analysis.tables import render
    from repl_mm.engine.files import write_atomic

    for table in tables:
        table.print()
    if out is not None:
        write_atomic(out, render(tables, form=out.suffix).encode(errors='backslashreplace'))
        print(printable(f'Wrote {out}'))


def add_device(parser: ArgumentParser) -> None:
    """The flag of tools that run a model without a runner; None stands for mmengine's choice."""
    parser.add_argument('--device', help='where the model runs (default: a GPU where there is one)')


def add_picture_arguments(parser: ArgumentParser) -> None:
    """What the tools that write pictures have in common."""
    parser.add_argument('--out-dir', type=Path, required=True, help='folder for the pictures')
    add_cfg_options(parser)


def launch(tool: str, *args: str, log: Path | None = None) -> int:
    """Run a tool as a process of its own.

    Args:
        tool: Name of its module in ``repl_mm.cli``.
        args: Of its command line.
        log: A file for what it says, to which that is appended; None for the terminal.

    Returns:
        Its exit code.
    """
    program = f'from repl_mm.cli.{tool} import main; main()'
    with nullcontext() if log is None else log.open('a') as out:
        error = None if log is None else subprocess.STDOUT
        return subprocess.run([sys.executable, '-c', program, *args], stdout=out, stderr=error).returncode
