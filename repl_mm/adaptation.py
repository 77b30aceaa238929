"""Sites that training chooses (Adaptive-RepL, Section IV-D1h): scores of blocks in, the sites of the next epoch out.

A block is redundant that gives what it gets: its score is the mean cosine similarity of the two over an epoch's images,
those of all processes. A replaced position scores by its computing layer.
"""

from fractions import Fraction

import torch
import torch.distributed as dist
from torch import nn

from repl_mm.layers import AdaptiveBlock
from repl_mm.sites import Layout, Site, spread
from repl_mm.surgery import stages_with_sites


def adaptive_blocks(network: nn.Module) -> dict[str, AdaptiveBlock]:
    """The blocks of a network that may be replaced, by name, in network order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, AdaptiveBlock)}


@torch.no_grad()
def share_scores(network: nn.Module) -> None:
    """Add to the scores of the epoch what all processes have seen since the last call, which all must make.

    A checkpoint holds the scores of the epoch: before one is written in the middle of an epoch, call this.
    """
    layers = [block.computing for block in adaptive_blocks(network).values()]
    if not layers:
        return
    recent = torch.stack([layer.recent for layer in layers])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(recent)
    for layer, new in zip(layers, recent, strict=True):
        layer.scores += new
        layer.recent.zero_()


@torch.no_grad()
def reset_scores(network: nn.Module) -> None:
    """Let an epoch begin: no image was seen in it."""
    for block in adaptive_blocks(network).values():
        block.computing.scores.zero_()
        block.computing.recent.zero_()


def mean_scores(network: nn.Module) -> dict[str, float]:
    """Score of each block that may be replaced; 0 where no image was seen, as in a frozen stage."""
    blocks = adaptive_blocks(network)
    sums = torch.stack([block.computing.scores for block in blocks.values()]).tolist()
    return {name: total / images if images else 0.0 for name, (total, images) in zip(blocks, sums, strict=True)}


def adapt(network: nn.Module) -> tuple[str, ...]:
    """Replace, from now on, the blocks of the highest scores since the last call; call it between two epochs.

    As many as before, no two of them adjacent, with the highest sum of scores: the exact choice of
    :func:`repl_mm.sites.spread`. Without a score the sites stay. Several processes must call it together.

    Args:
        network: A network with ``policy='adaptive'``, or a model that holds one.

    Returns:
        Names of the replaced blocks.

    Raises:
        ValueError: The sites of the network are fixed, or there are none.
    """
    blocks = adaptive_blocks(network)
    if not blocks:
        raise ValueError(
            f"{type(network).__name__} has no sites to choose anew: replace blocks with policy='adaptive' first"
        )
    share_scores(network)
    scores = mean_scores(network)
    if any(scores.values()):
        stages = stages_with_sites(network)
        layout = Layout('', tuple(map(len, stages.values())))
        names = {
            Site(stage, index): f'{name}.{key}'.removeprefix('.')
            for stage, (name, module) in enumerate(stages.items())
            for index, key in enumerate(module._modules)
            if f'{name}.{key}'.removeprefix('.') in blocks
        }
        number = sum(block.is_replaced for block in blocks.values())
        chosen = spread(layout, list(names), number=number, worth=lambda site: Fraction(scores[names[site]]))
        for site, name in names.items():
            blocks[name].is_replaced = site in chosen
    reset_scores(network)
    return tuple(name for name, block in blocks.items() if block.is_replaced)
