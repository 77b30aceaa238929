"""Configs of models with a backbone of ours, and what else can be made of them."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from repl_mm.backbones.mixin import ReplMixin
from repl_mm.layers.config import foreign_options, structural_options
from repl_mm.registry import MODELS

# Backbones of the host libraries, and ours that have their place.
REPLACEABLE = {
    'ResNet': 'repl_mm.ReplResNet',
    'ResNetV1c': 'repl_mm.ReplResNetV1c',
    'ResNetV1d': 'repl_mm.ReplResNetV1d',
    'ResNeXt': 'repl_mm.ReplResNeXt',
    'ResNet_CIFAR': 'repl_mm.ReplResNetCIFAR',
    'VisionTransformer': 'repl_mm.ReplViT',
    'SwinTransformer': 'repl_mm.ReplSwin',
    'CausalTransformer': 'repl_mm.ReplTransformer',
}
# Other networks that the papers compare with: what their tables call them, and the backbone that they change.
BASELINES = {'repl_mm.SkipAttentionViT': ('Skip-Attention', 'repl_mm.ReplViT')}


def backbone_class(config: Config) -> type[ReplMixin]:
    """The class of a config's backbone, which is one of ours."""
    return MODELS.get(config.model.backbone.type)


def require_sites(config: Config) -> None:
    """Raise ValueError unless the backbone of a config replaces something."""
    if not (config.model.get('backbone') or {}).get('repl'):
        raise ValueError(
            f'{config.filename} replaces nothing: give its backbone type={replaceable(config).model.backbone.type!r} '
            "and repl=dict(policy='interval', every=4)"
        )


def is_adaptive(config: Config) -> bool:
    """Whether training chooses the sites of a config."""
    repl = (config.model.get('backbone') or {}).get('repl')
    return isinstance(repl, Mapping) and repl.get('policy') == 'adaptive'  # what it may be, the backbone says


def e2e_twin(config: Config) -> Config:
    """A copy of a config that replaces nothing."""
    twin = copy.deepcopy(config)
    backbone = twin.model.backbone
    if backbone.type in BASELINES:
        backbone.type = BASELINES[backbone.type][1]
        backbone.pop('skip', None)
    backbone.repl = None
    return twin


def with_repl(config: Config, **repl: Any) -> Config:
    """A copy of a config, whose ``repl`` may be None, with other sites.

    The form and what it computes stay unless they are given; options that it does not have are left out.
    """
    config = copy.deepcopy(config)
    own: Mapping[str, Any] = config.model.backbone.get('repl') or {}
    form = repl.get('form', own.get('form'))
    named = {} if form is None else dict(form=form)
    form = form or backbone_class(config).forms()[0]
    kept = structural_options(form, own) | repl
    foreign = foreign_options(form)
    # Replaced, not merged: the options of one policy are not those of another.
    config.model.backbone.pop('repl', None)
    config.model.backbone.repl = {key: value for key, value in kept.items() if key not in foreign} | named
    return config


def replaceable(config: Config) -> Config:
    """A copy of a config whose backbone is ours and replaces nothing yet.

    Raises:
        ValueError: A backbone that cannot be replaced in.
    """
    config = copy.deepcopy(config)
    backbone = config.model.get('backbone')
    if backbone is None:
        raise ValueError(f'the model of {config.filename} has no backbone')
    kind = str(backbone.get('type')).split('.')[-1]
    if kind in REPLACEABLE:
        backbone.type = REPLACEABLE[kind]
    elif f'repl_mm.{kind}' not in REPLACEABLE.values():
        allowed = ', '.join(sorted({*REPLACEABLE, *(name.removeprefix('repl_mm.') for name in REPLACEABLE.values())}))
        raise ValueError(f'no sites in a backbone of type {backbone.get("type")!r}: there are some in {allowed}')
    backbone.repl = None
    return config
