"""Ways to save, as configs: dropped and replaced blocks, stochastic depth, activation checkpointing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from repl_mm.backbones.configs import backbone_class, e2e_twin, require_sites, with_repl

# Ways to replace. ``lean`` recomputes activations and samples gradients; ``half`` takes every second block.
RECIPES: dict[str, dict[str, Any]] = {
    'interval': dict(policy='interval', every=4),
    'budget': dict(policy='budget', every=4),
    'lean': dict(policy='budget', every=4, recompute=True, grad_fraction=0.25),
    'half': dict(policy='budget', every=2),
    'half, lean': dict(policy='budget', every=2, recompute=True, grad_fraction=0.25),
}
STOCHASTIC_DEPTH = 0.2
# The rows of a table, in order; see :func:`build_variants`.
VARIANTS = (
    'E2E',
    *(f'{what}, {recipe}' for recipe in ('interval', 'budget', 'half') for what in ('drop', 'RepL')),
    'RepL, lean',
    'RepL, half, lean',
    'SD',
    'RepL, budget + SD',
    'RepL, half, lean + SD',
    'AC',
    'RepL, budget + AC',
)
# Published by arXiv 2605.19533, Tables I, II, VIII, X and XIV: (memory, time) of RepL over those of E2E, on A100s.
PUBLISHED = {
    'resnet32': (0.796, 0.785),
    'resnet110': (0.818, 0.799),
    'vit-tiny-p8': (0.740, 0.830),
    'resnet34': (0.875, 0.886),
    'resnet101': (0.862, 0.856),
    'resnet152': (0.877, 0.858),
    'vit-tiny-p16': (0.788, 0.811),
    'vit-small-p16': (0.771, 0.773),
    'vit-base-p16': (0.713, 0.749),
    'retinanet_r50': (0.850, 0.841),
    'retinanet_r101': (0.812, 0.842),
    'deeplabv3_r50-d8': (0.849, 0.850),
    'deeplabv3plus_r50-d8': (0.846, 0.841),
    'deeplabv3_r101-d8': (0.838, 0.863),
    'deeplabv3plus_r101-d8': (0.840, 0.851),
    'transformer-lm-12l': (0.880, 0.851),
}


def name_of(config: Config) -> str:
    """What the rows of a config are called: its name without the recipe, as the published tables have it."""
    stem = Path(config.filename).stem.replace('-repl', '')
    first, backbone = stem.partition('_')[0], config.model.backbone
    # A depth or a patch size that an override sets counts, not the one in the file's name.
    candidates = [re.sub(r'\d+$', str(backbone.get('depth')), first), f'{first}-p{backbone.get("patch_size")}']
    candidates += [name for name in PUBLISHED if stem.startswith(f'{name}_')]
    return next((name for name in candidates if name in PUBLISHED), stem)


def variants_for(config: Config, backend: str = 'fp32') -> list[str]:
    """The names of ``VARIANTS`` that a config with sites can be.

    There is no stochastic depth where its backbone has none, nor of whole blocks where a step is compiled.

    Raises:
        ValueError: A config that replaces nothing.
    """
    require_sites(config)
    option = backbone_class(config).depth_option
    skips = option is not None and not (option == 'stochastic_depth' and 'compile' in backend.split('+'))
    return [name for name in VARIANTS if skips or 'SD' not in name]


def build_variants(config: Config, names: Sequence[str] = VARIANTS) -> dict[str, Config]:
    """Configs of the variants of a config with sites.

    Args:
        config: A config with ``repl``; its own choice of sites is the variant ``'RepL'``.
        names: Out of ``VARIANTS``, ``'RepL'`` and ``'drop'``. ``SD`` is stochastic depth, for ViTs the host's drop
            path; ``AC`` activation checkpointing of every retained block.

    Raises:
        ValueError: A name that does not exist, stochastic depth of a backbone that has none, or a config that replaces
            nothing.
    """
    require_sites(config)
    found = {}
    for name in names:
        what, *extra = name.split(' + ') if name not in ('SD', 'AC') else ('E2E', name)
        kind, _, recipe = what.partition(', ')
        if kind not in ('E2E', 'drop', 'RepL') or (recipe and recipe not in RECIPES) or set(extra) - {'SD', 'AC'}:
            allowed = ', '.join(map(repr, (*VARIANTS, 'RepL', 'drop')))
            raise ValueError(f'unknown variant {name!r}: choose out of {allowed}')
        chosen = RECIPES[recipe] if recipe else config.model.backbone.repl
        variant = with_repl(config, **chosen | (dict(form='drop') if kind == 'drop' else {}))
        if kind == 'E2E':
            variant = e2e_twin(variant)
        if 'SD' in extra:
            if (option := backbone_class(config).depth_option) is None:
                raise ValueError(f'{name!r}: {config.model.backbone.type} has no stochastic depth, leave it out')
            variant.model.backbone[option] = STOCHASTIC_DEPTH
        variant.activation_checkpointing = 'AC' in extra
        found[name] = variant
    return found
