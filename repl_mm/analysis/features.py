"""What the blocks of a trained network compute: reduced while it runs, a batch at a time.

Shapes:
    B        images of a batch
    C        channels of a block
    H, W     positions of a block
    n        samples of a batch
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from repl_mm.backbones import ReplMixin
from repl_mm.stages import find_stages

Reduce = Callable[[Tensor], Tensor]


def blocks_of(model: BaseModel) -> dict[str, nn.Module]:
    """The blocks of a model's backbone in network order, computing layers among them, by their names in it.

    Raises:
        ValueError: It has no backbone, or none whose blocks can be found.
    """
    backbone = getattr(model, 'backbone', None)
    if backbone is None:
        raise ValueError(f'{type(model).__name__} has no backbone: give runs of classifiers, detectors or segmentors')
    stages = backbone.repl_stages() if isinstance(backbone, ReplMixin) else find_stages(backbone)
    return {f'{name}.{index}': block for name, stage in stages.items() for index, block in enumerate(stage)}


def last_linear(model: BaseModel) -> nn.Module | None:
    """The layer that classifies: its input is what a network makes of an image. A detector has one a level: None."""
    if hasattr(model, 'decode_head'):
        return getattr(model.decode_head, 'conv_seg', None)
    linears = [module for module in getattr(model, 'head', nn.Module()).modules() if isinstance(module, nn.Linear)]
    return linears[-1] if linears else None


def forward(model: BaseModel, batch: Any) -> Any:
    """A batch of a loader through a model up to its raw outputs."""
    return model(model.data_preprocessor(copy.copy(batch), False)['inputs'], mode='tensor')


def as_map(out: Tensor, size: tuple[int, int]) -> Tensor:
    """The output of a block as (B, C, H, W): tokens go back to their places, class tokens are left out.

    Args:
        out: (B, C, H, W), or (B, tokens, C) with the tokens of the places last, row by row.
        size: Height and width of the images, whose ratio the places have.
    """
    if out.dim() == 4:
        return out
    tokens, (height, width) = out.size(1), size
    side = (height * width / tokens) ** 0.5
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    while rows * columns > tokens:
        rows, columns = (rows - 1, columns) if rows >= columns else (rows, columns - 1)
    return out[:, tokens - rows * columns :].mT.unflatten(-1, (rows, columns))


def mean_over_positions(out: Tensor) -> Tensor:
    """(B, C, H, W) or (B, tokens, C) to (B, C); what has no positions stays."""
    return out.flatten(2).mean(2) if out.dim() == 4 else out.mean(1) if out.dim() == 3 else out


@torch.no_grad()
def run_blocks(
    model: BaseModel,
    batches: Iterable[Any],
    modules: Mapping[str, nn.Module],
    reduce: Callable[[Any, Tensor], Reduce],
    *,
    inputs: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """What modules give for each batch, each reduced as soon as it is there.

    Args:
        model: In eval mode.
        batches: As a loader gives them.
        modules: What to look at, by name.
        reduce: Given the data samples and the images (B, 3, H, W) of a batch, what makes features of an output.
        inputs: Take what the modules are given in place of what they give.

    Raises:
        ValueError: There is no batch, or features are NaN or infinite.
    """
    seen = False
    for batch in batches:
        seen = True
        data = model.data_preprocessor(copy.deepcopy(batch), False)
        found: dict[str, Tensor] = {}
        pool = reduce(data['data_samples'], data['inputs'])

        def keep(name: str, out: Any, found: dict[str, Tensor] = found, pool: Reduce = pool) -> None:
            found[name] = pool(out[0] if isinstance(out, tuple) else out).float()

        handles = [
            module.register_forward_pre_hook(lambda _, args, name=name: keep(name, args))
            if inputs
            else module.register_forward_hook(lambda _, args, out, name=name: keep(name, out))
            for name, module in modules.items()
        ]
        try:
            model(data['inputs'], mode='tensor')
        finally:
            for handle in handles:
                handle.remove()
        for name, value in found.items():
            if not torch.isfinite(value).all():
                raise ValueError(f'the features of {name} hold NaN or infinite values: look at the weights and images')
        yield found
    if not seen:
        raise ValueError('there is no batch to look at: check the data set and --batches')
