"""The runner or the model of a config."""

from collections.abc import Sequence

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner

from repl_mm.engine.cpu import GlooRunner
from repl_mm.engine.errors import explain
from repl_mm.engine.logs import quiet


def build_runner(config: Config, *, loops: Sequence[str], verbose: bool = False) -> Runner | FlexibleRunner:
    """The runner of a config, with the data of its loops loaded.

    Args:
        config: As it comes from :func:`load_config`.
        loops: Which of ``'train'``, ``'val'`` and ``'test'``.
        verbose: Whether the terminal gets the hosts' listings too.

    Raises:
        ValueError: Something in the config cannot be built, or a data set is empty.
    """
    with explain(f'cannot build {config.filename}'):
        kind = _runner_type(config)
        runner = (kind if verbose else quiet(kind)).from_cfg(config)
    for loop in loops:
        with explain(f'cannot load the {loop} data, check {loop}_dataloader in the config'):
            loader = getattr(runner, f'{loop}_loop').dataloader
        if len(loader) == 0:
            raise ValueError(
                f'{loop}_dataloader gives no batch, its data set has {len(loader.dataset)} samples: check its paths '
                'and its batch_size'
            )
    if 'train' in loops and isinstance(runner, Runner):  # a strategy builds it behind the model
        with explain('cannot build the optimizer'):
            runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    return runner


def _runner_type(config: Config) -> type[Runner | FlexibleRunner]:
    if config.get('runner_type') == 'FlexibleRunner':
        return FlexibleRunner
    return GlooRunner if config.launcher != 'none' and get_device() == 'cpu' else Runner


def build_model(config: Config) -> BaseModel:
    """The model of a config, as its runner would build it.

    Raises:
        ValueError: It cannot be built.
    """
    with explain(f'cannot build the model of {config.filename}'):
        if 'data_preprocessor' in config:
            config.model.setdefault('data_preprocessor', config.data_preprocessor)
        return MODELS.build(config.model)
