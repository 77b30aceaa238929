"""Replacement Learning for OpenMMLab: train with fewer blocks, deploy ordinary ones."""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repl_mm.adaptation import adapt as adapt
    from repl_mm.deployment import deploy as deploy
    from repl_mm.fitting import warm_start as warm_start
    from repl_mm.surgery import replace as replace

__version__ = '0.1.0'

# The public functions and their modules, looked up when they are asked for: importing the package imports no torch.
_FUNCTIONS = {'replace': 'surgery', 'deploy': 'deployment', 'warm_start': 'fitting', 'adapt': 'adaptation'}


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_FUNCTIONS[name]}'), name)


class _OperatorFinder(MetaPathFinder, Loader):
    """Gives ``mmcv.ops`` the operators of :mod:`repl_mm.compat` where mmcv was installed without compiled ones.

    It stands at the end of ``sys.meta_path``, so compiled operators are found before it.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        # Whoever asks for another reason than to load them hears that there are no compiled operators.
        return ModuleSpec(name, self) if name == 'mmcv._ext' and 'mmcv.ops' in sys.modules else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from repl_mm.compat import TorchOperators

        return TorchOperators(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # A spec without a loader: mmcv goes on reporting that it has no compiled operators.
        module.__spec__ = ModuleSpec(module.__name__, loader=None)


sys.meta_path.append(_OperatorFinder())
