"""What a run says in the terminal: its own lines, without the host libraries' listings.

The log file in the work directory keeps them all.
"""

import contextlib
import io
import logging
import re
import warnings
import weakref
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mmengine.runner import Runner
from torch import nn

from repl_mm.layers import ComputingLayer

# How messages begin that tell nothing of a run.
NOISE = (
    '\n' + 60 * '-' + '\nSystem environment',
    'Config:\n',
    'Hooks will be executed in the following order',
    'Distributed training is not used, all SyncBatchNorm',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Exp name: ',
)
HOSTS = r'(mmengine|mmcv|mmpretrain|mmdet|mmseg)\b'
MISMATCH = 'The model and loaded state dict do not match exactly'


def hide_warnings() -> None:
    """Ignore what the host libraries warn of themselves."""
    warnings.filterwarnings('ignore', module=HOSTS)
    for kind in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings('ignore', category=kind)


def import_hosts() -> None:
    """Import the host libraries without what they print meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()):
        for name in ('mmpretrain.datasets', 'mmdet.datasets', 'mmseg.datasets', 'mmdet.evaluation'):
            import_module(name)


def quiet(kind: type[Runner]) -> type[Runner]:
    """A kind of runner that leaves the hosts' listings out of the terminal."""

    def build_logger(self: Any, *args: Any, **kwargs: Any) -> logging.Logger:
        logger = kind.build_logger(self, *args, **kwargs)
        runner = weakref.ref(self)  # loggers stay for ever, and a runner holds a model and workers
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: _shorten(record, runner()))
        return logger

    def load_or_resume(self: Any) -> None:
        # mmengine prints what it says here past the loggers.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            kind.load_or_resume(self)
        _, found, text = printed.getvalue().partition(MISMATCH)
        if found:
            self.logger.warning(describe_mismatch(self.model, text))

    return type(kind.__name__, (kind,), dict(build_logger=build_logger, load_or_resume=load_or_resume))


def _shorten(record: logging.LogRecord, runner: Runner | None) -> bool:
    """Whether the terminal gets a message; a wall of keys becomes a line."""
    text = record.getMessage()
    if MISMATCH in text and runner is not None:
        record.msg, record.args = describe_mismatch(runner.model, text), ()
    return not text.startswith(NOISE)


def describe_mismatch(model: nn.Module, text: str) -> str:
    """What mmengine says of keys that differ, in one line; those of sites that a checkpoint knows as blocks differ."""
    unexpected, missing = (
        found[1].split(', ')
        if (found := re.search(rf'^{name} in source state_dict: (.+)$', text, re.MULTILINE))
        else []
        for name in ('unexpected key', 'missing keys')
    )
    while hasattr(model, 'module'):
        model = model.module
    names = [f'{name}.' for name, part in model.named_modules() if isinstance(part, ComputingLayer)]
    sites = (*names, *(name.partition('.')[2] for name in names))  # a backbone is loaded by its own names
    fresh = {site for site in sites if any(key.startswith(site) for key in missing)}
    rest = {
        'missing': [key for key in missing if not key.startswith(sites)],
        'left over': [key for key in unexpected if not key.startswith(sites)],
    }
    parts = [f'{len(fresh)} site{"s start" if len(fresh) > 1 else " starts"} fresh'] if fresh else []
    parts += [f'{len(keys)} keys {what} ({_some(keys)})' for what, keys in rest.items() if keys]
    parts += (mismatched := re.findall(r'size mismatch for .+', text))
    if not any(rest.values()) and not mismatched:
        parts.append('all other keys matched')
    return ', '.join(parts)


def _some(keys: Sequence[str]) -> str:
    return ', '.join([*keys[:3], *(['...'] if len(keys) > 3 else [])])
