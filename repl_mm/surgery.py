"""Surgery on the stages of a built backbone, and the checks that keep the result sound.

A stage is an indexable module of blocks (``nn.Sequential`` or ``nn.ModuleList``). A computing layer is put at the
index of the block that it replaces, so every retained block keeps its state-dict key.
"""

import re
from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import Tensor, nn

from repl_mm.layers import ComputingLayer, StaticLayer, fold, is_foldable
from repl_mm.sites import Site

# What only a deployed checkpoint has in the place of a block.
DEPLOYED = ('a deployed layer', 'a block with folded norms')


def replace_blocks(
    stages: Mapping[str, nn.Module],
    sites: tuple[Site, ...],
    *,
    build: Callable[..., nn.Module],
) -> None:
    """Replace blocks in place.

    Args:
        stages: The backbone's stages by their name in the state dict, in network order.
        sites: What to replace; see :func:`repl_mm.sites.choose`.
        build: Makes the new module from ``(removed, prev=left neighbour, next=right neighbour)``.
    """
    modules = list(stages.values())
    for stage, index in sites:
        blocks = modules[stage]
        blocks[index] = build(blocks[index], prev=blocks[index - 1], next=blocks[index + 1])


def fuse_blocks(stages: Mapping[str, nn.Module]) -> None:
    """Put the static form in the place of every computing layer."""
    for blocks in stages.values():
        for index, block in enumerate(blocks):
            if isinstance(block, ComputingLayer):
                blocks[index] = block.fuse()


def fold_norms(module: nn.Module) -> None:
    """Fold every batch norm that follows a convolution into it, in place.

    The host libraries register a norm right behind its convolution, in blocks, stems and shortcuts alike. Computing
    layers read their neighbours' convolutions, so they must be static by now.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and is_foldable(norm):
                setattr(parent, conv_name, fold(conv, norm))
                setattr(parent, norm_name, nn.Identity())


def computing_layers(module: nn.Module) -> list[ComputingLayer]:
    """All computing layers inside ``module``, in network order."""
    return [child for child in module.modules() if isinstance(child, ComputingLayer)]


def check_links(stages: Mapping[str, nn.Module]) -> None:
    """Make sure that every computing layer reads the blocks that stand beside it now.

    Copying, pickling and averaging a whole network keep the links; putting another module in a neighbour's place
    breaks them, and the computing layer would silently follow weights that nobody trains.

    Raises:
        ValueError: A link is broken.
    """
    for name, blocks in stages.items():
        for index, block in enumerate(blocks):
            if not isinstance(block, ComputingLayer):
                continue
            for side, linked, beside in (
                ('left', block.prev, blocks[index - 1]),
                ('right', block.next, blocks[index + 1]),
            ):
                if linked is not beside:
                    raise ValueError(
                        f'the computing layer at {name}.{index} reads a {side} neighbour that is no longer part of '
                        f'the network: a {type(beside).__name__} was put in its place. Change blocks before the '
                        'backbone is built, or set their weights instead of exchanging the modules'
                    )


def check_checkpoint(stages: Mapping[str, nn.Module], state_dict: Mapping[str, Tensor], *, prefix: str = '') -> None:
    """Make sure that a checkpoint's blocks are those of this backbone, before anything is loaded.

    An end-to-end checkpoint fits a backbone with sites: the removed blocks' weights are left over and the computing
    layers keep their initial values. What does not fit are blocks of another depth or shape, and sites
    elsewhere; a non-strict load would leave such blocks at random values with no more than a warning.

    Args:
        stages: The backbone's stages by their name in the state dict.
        state_dict: What is about to be loaded. Without any block of this backbone it passes.
        prefix: What the backbone's keys begin with, such as ``backbone.``.

    Raises:
        ValueError: The checkpoint belongs to another network.
    """
    found = {name: _blocks_of(state_dict, f'{prefix}{name}.') for name in stages}
    if not any(found.values()):
        return
    depths = [len(blocks) for blocks in stages.values()]
    their_depths = [max(blocks, default=-1) + 1 for blocks in found.values()]
    if depths != their_depths:
        raise ValueError(
            f'the checkpoint belongs to another depth: it has {their_depths} blocks per stage, this backbone '
            f'has {depths}. Give the config that the checkpoint was trained with'
        )
    for name, blocks in stages.items():
        for index, block in enumerate(blocks):
            _check_block(block, f'{name}.{index}', found[name].get(index, {}))


def _blocks_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    """The state dict of each block of a stage, by index."""
    blocks: dict[int, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        if match := re.match(r'(\d+)\.(.+)', key.removeprefix(prefix)) if key.startswith(prefix) else None:
            blocks.setdefault(int(match[1]), {})[match[2]] = value
    return blocks


def _check_block(block: nn.Module, name: str, theirs: Mapping[str, Tensor]) -> None:
    own = block.state_dict()
    replaced = isinstance(block, ComputingLayer | nn.Identity)
    missing = sorted(set(own) - set(theirs) - {key for key in own if key.endswith('num_batches_tracked')})
    kind = _kind_of(theirs)
    # A checkpoint that was trained end to end has a whole block where this backbone has a site.
    if missing and not (replaced and kind == 'another block'):
        advice = 'Give the same sites as in the run that wrote the checkpoint'
        if kind in DEPLOYED or isinstance(block, StaticLayer) or 'conv1.bias' in own:
            advice = (
                'A deployed checkpoint goes with the config that was written beside it, any other one with the '
                'config of its training'
            )
        raise ValueError(
            f'the checkpoint has {kind} at {name}, where this backbone has a {type(block).__name__}: '
            f'{missing[0]} is missing. {advice}'
        )
    for key in [key for key in own if key in theirs]:
        if own[key].shape != theirs[key].shape and not (replaced and missing):
            raise ValueError(
                f'the checkpoint belongs to another network: {name}.{key} has shape {tuple(theirs[key].shape)} there '
                f'and {tuple(own[key].shape)} here. Give the config that the checkpoint was trained with'
            )


def _kind_of(block: Mapping[str, Tensor]) -> str:
    """What wrote the state dict of a block."""
    if not block:
        return 'no block'
    if 'alpha' in block:
        return 'a computing layer'
    # Only a sequence numbers its children, and the host's convolutions have no bias.
    if any(key.startswith('0.') for key in block):
        return DEPLOYED[0]
    return DEPLOYED[1] if 'conv1.bias' in block else 'another block'
