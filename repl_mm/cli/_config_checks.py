"""Are the sections of a config what mmengine takes them for? It would end in a traceback, or go on."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmengine.config import Config

from repl_mm.compat import can_compile, torch_too_old


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_dict_or_list(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)


def _are_hooks(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(hook, Mapping) for hook in value)


def _are_named_hooks(value: Any) -> bool:
    return isinstance(value, Mapping) and all(hook is None or isinstance(hook, Mapping) for hook in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value > 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


Check = tuple[Callable[[Any], bool], str]
DICT: Check = (_is_dict, 'a dict')
DICT_OR_LIST: Check = (_is_dict_or_list, 'a dict or a list of dicts')
TEXT: Check = (_is_text, 'a text')
COUNT: Check = (_is_count, 'a whole number above 0')
WHOLE: Check = (_is_whole, 'a whole number')

# Of what is given; a section that is not there, or None, is another matter. No key below one may be None.
SECTIONS: dict[str, Check] = {
    **dict.fromkeys(('model', 'optim_wrapper', 'train_cfg', 'val_cfg', 'test_cfg', 'env_cfg', 'randomness'), DICT),
    **dict.fromkeys(('train_dataloader', 'val_dataloader', 'test_dataloader', 'strategy', 'visualizer'), DICT),
    **dict.fromkeys(('log_processor', 'data_preprocessor', 'auto_scale_lr', 'model_wrapper_cfg'), DICT),
    **dict.fromkeys(('val_evaluator', 'test_evaluator', 'param_scheduler'), DICT_OR_LIST),
    **dict.fromkeys(('load_from', 'work_dir', 'default_scope', 'log_level', 'experiment_name'), TEXT),
    'custom_hooks': (_are_hooks, 'a list of dicts'),
    'default_hooks': (_are_named_hooks, 'a dict of dicts'),
    'train_cfg.max_epochs': COUNT,
    'train_cfg.max_iters': COUNT,
    'train_cfg.val_interval': COUNT,
    'model.backbone': DICT,
    **{f'{split}_dataloader.num_workers': WHOLE for split in ('train', 'val', 'test')},
}


def check_config(config: Config) -> None:
    """Make sure that each section which is given is of its kind.

    Raises:
        ValueError: One is not; it is named, with what it takes.
    """
    for name, (is_right, kind) in SECTIONS.items():
        first, _, key = name.partition('.')
        section = config.get(first)
        if key:
            is_given = isinstance(section, Mapping) and key in section
            value = section[key] if is_given else None
        else:
            is_given, value = section is not None, section
        if is_given and not is_right(value):
            raise ValueError(f'{name} of the config takes {kind}, got {value!r}')
    if 'env_cfg' in config and config.env_cfg is None:
        raise ValueError('env_cfg of the config takes a dict, got None: leave it out')
    _check_init(config.get('model'), 'model')
    if config.get('compile') and not can_compile():
        raise torch_too_old('compile of the config', needs='2.6')
    backend = config.compile.get('backend') if isinstance(config.get('compile'), Mapping) else None
    backends = torch.compiler.list_backends(exclude_tags=())
    if isinstance(backend, str) and backend not in backends:
        raise ValueError(f'compile.backend of the config takes one of {", ".join(backends)}, got {backend!r}')


def _check_init(value: Any, name: str) -> None:
    """Every ``init_cfg``, which a model reads when the run has begun."""
    if isinstance(value, Mapping):
        given = value.get('init_cfg')
        if given is not None and not _is_dict_or_list(given):
            raise ValueError(f'{name}.init_cfg of the config takes a dict or a list of dicts, got {given!r}')
        for key, item in value.items():
            _check_init(item, f'{name}.{key}')
    elif isinstance(value, list | tuple):
        for at, item in enumerate(value):
            _check_init(item, f'{name}.{at}')
