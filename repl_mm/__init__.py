"""Replacement Learning for OpenMMLab: train with fewer blocks, deploy ordinary ones."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repl_mm.deployment import deploy as deploy
    from repl_mm.surgery import replace as replace

__version__ = '0.1.0'

# Where the public functions are: looked up when they are asked for, so that importing the package imports no torch.
_FUNCTIONS = {'replace': 'surgery', 'deploy': 'deployment'}


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    return getattr(import_module(f'{__name__}.{_FUNCTIONS[name]}'), name)
