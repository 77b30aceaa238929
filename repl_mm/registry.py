"""Registries of scope ``repl_mm``.

They are children of mmengine's root registries, so ``type='repl_mm.ReplResNet'`` resolves from the
default scope of any OpenMMLab library; ``locations`` lets mmengine import what is registered on
the first look-up, without ``custom_imports`` in a config.
"""

from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import HOOKS as ROOT_HOOKS
from mmengine.registry import LOOPS as ROOT_LOOPS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import STRATEGIES as ROOT_STRATEGIES
from mmengine.registry import Registry

MODELS = Registry('model', parent=ROOT_MODELS, scope='repl_mm', locations=['repl_mm.backbones'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='repl_mm', locations=['repl_mm.engine.hooks'])
LOOPS = Registry('loop', parent=ROOT_LOOPS, scope='repl_mm', locations=['repl_mm.engine.loops'])
STRATEGIES = Registry('strategy', parent=ROOT_STRATEGIES, scope='repl_mm', locations=['repl_mm.engine.strategies'])
DATASETS = Registry(
    'dataset',
    parent=ROOT_DATASETS,
    scope='repl_mm',
    locations=['repl_mm.datasets.checked', 'repl_mm.datasets.small_images'],
)
