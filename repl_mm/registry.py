"""Registries of scope ``repl_mm``.

They are children of mmengine's root registries, so ``type='repl_mm.ReplResNet'`` resolves from the
default scope of any OpenMMLab library; ``locations`` lets mmengine import what is registered on
the first look-up, without ``custom_imports`` in a config. Each root has one, as mmengine warns of those that the
default scope of a config lacks. Likewise ``_base_ = 'repl_mm::...'`` finds the configs of the package.
"""

import mmengine.registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

MODULE2PACKAGE['repl_mm'] = 'repl_mm'

# Where what is registered is defined, by the name of the registry.
_LOCATIONS = {
    'model': ['repl_mm.backbones'],
    'hook': ['repl_mm.engine.hooks'],
    'loop': ['repl_mm.engine.loops'],
    'strategy': ['repl_mm.engine.strategies'],
    'metric': ['repl_mm.engine.perplexity'],
    'dataset': ['repl_mm.datasets.checked', 'repl_mm.datasets.small_images', 'repl_mm.datasets.text'],
}
_REGISTRIES = {
    root.name: Registry(root.name, parent=root, scope='repl_mm', locations=_LOCATIONS.get(root.name, []))
    for root in vars(mmengine.registry).values()
    if isinstance(root, Registry)
}
MODELS = _REGISTRIES['model']
HOOKS = _REGISTRIES['hook']
LOOPS = _REGISTRIES['loop']
STRATEGIES = _REGISTRIES['strategy']
METRICS = _REGISTRIES['metric']
DATASETS = _REGISTRIES['dataset']
