"""Computing layers into a network, and the checks that keep the result sound.

A computing layer is put at the index of the block that it replaces, so every retained block keeps its state-dict key.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repl_mm.layers import AdaptiveBlock, ComputingLayer, ReplConfig, StaticLayer, layer_at, read
from repl_mm.layers.config import coefficient_names, forms_for
from repl_mm.layers.parts import find_reader
from repl_mm.sites import Layout, Selection, Site, choose
from repl_mm.stages import find_stages, named_stages, parts_of

# What only a deployed checkpoint has in the place of a block.
DEPLOYED = ('a deployed layer', 'a block with folded norms')
# What only a checkpoint has whose sites training chooses.
ADAPTIVE = 'computing.mask'


def replace(
    network: nn.Module, *, stages: Iterable[str] | None = None, policy: str, form: str | None = None, **options: Any
) -> Selection:
    """Replace blocks of any network by computing layers, in place.

    Make the optimizer afterwards: one that is made before would train the removed weights. A checkpoint of the network
    as it was loads into it by ``load_state_dict(..., strict=False)``; one that does not belong to it is refused.

    Args:
        network: The network, before it is wrapped or compiled.
        stages: Names of the modules that hold the blocks. Without them, all ``nn.Sequential`` and ``nn.ModuleList``
            count that hold at least three blocks that a reader accepts.
        policy: How sites are chosen: ``'interval'``, ``'budget'``, ``'explicit'``, or ``'adaptive'``, which needs
            :func:`repl_mm.adapt` after every epoch; see :func:`repl_mm.sites.choose`.
        form: What is put there; ``None`` is the papers' own for these blocks.
        **options: Those of the policy (``every=4``) and of the form (``mlp_fusion=True``).

    Returns:
        The chosen sites, as (stage, index), and what was refused.

    Raises:
        ValueError: There are no stages, or none of that name, or no sites; or the network is wrapped, has computing
            layers already, or uses a block twice.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f'replace takes a network, an nn.Module, got {type(network).__name__}')
    _require_bare(network)
    found = find_stages(network) if stages is None else named_stages(network, stages)
    parts = next(parts for blocks in found.values() for block in blocks if (parts := parts_of(block)) is not None)
    repl = dict(policy=policy, **options) | ({} if form is None else dict(form=form))
    config = ReplConfig.parse(repl, forms=forms_for(type(parts)))
    selection = replace_blocks(found, config, name=type(network).__name__)
    if selection.note:
        warnings.warn(selection.note, stacklevel=2)
    network._register_load_state_dict_pre_hook(partial(_check_state_dict, names=tuple(found)), with_module=True)
    return selection


def replace_blocks(
    stages: Mapping[str, nn.Module], config: ReplConfig, *, name: str, zero_init_residual: bool = False
) -> Selection:
    """Choose sites among the blocks of stages, and put computing layers there, in place.

    Args:
        stages: The stages by their name in the state dict, in network order.
        config: How to replace.
        name: What messages call the network.
        zero_init_residual: Start with the layers' branches switched off, as the network's blocks do.

    Raises:
        ValueError: No site is possible, or one that was asked for is not.
    """
    selection = choose(lay_out(stages, config, name=name), policy=config.policy, **config.policy_options)
    modules = list(stages.values())
    for stage, index in selection.candidates:  # before any layer takes what stands there for its neighbour
        modules[stage][index] = AdaptiveBlock(modules[stage][index])
    for site in selection.candidates or selection.sites:
        blocks, index = modules[site.stage], site.index
        removed = blocks[index]
        layer = config.layer_for(read(removed))(
            removed.block if selection.candidates else removed,
            prev=blocks[index - 1],
            next=blocks[index + 1],
            zero_init_residual=zero_init_residual,
            **config.options,
        )
        if selection.candidates:
            removed.attach(layer, is_replaced=site in selection.sites)
        else:
            blocks[index] = layer
    return selection


def sites_of(stages: Iterable[nn.Module]) -> tuple[Site, ...]:
    """The positions in stages that are replaced now."""
    return tuple(
        Site(stage, index)
        for stage, blocks in enumerate(stages)
        for index, block in enumerate(blocks)
        if (block.is_replaced if isinstance(block, AdaptiveBlock) else isinstance(block, ComputingLayer))
    )


def lay_out(stages: Mapping[str, nn.Module], config: ReplConfig, *, name: str) -> Layout:
    """Block counts of stages, and which positions the form of a config refuses.

    Raises:
        ValueError: A block cannot be read, or the form stands for other blocks.
    """
    refused = {}
    for stage, blocks in enumerate(stages.values()):
        for index in range(1, len(blocks) - 1):
            reason = _refusal(blocks[index], blocks[index - 1], blocks[index + 1], config)
            if reason is not None:
                refused[Site(stage, index)] = reason
    return Layout(name, tuple(map(len, stages.values())), refused)


def _refusal(removed: nn.Module, prev: nn.Module, next: nn.Module, config: ReplConfig) -> str | None:
    try:
        parts = [read(block) for block in (removed, prev, next)]
    except ValueError as error:
        return str(error)
    return config.layer_for(parts[0]).refusal(*parts, **config.options)


def _require_bare(network: nn.Module) -> None:
    name = type(network).__name__
    if isinstance(network, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise ValueError(f'{name} holds a copy of what is trained: replace in network.module, then wrap it')
    if isinstance(network, torch._dynamo.OptimizedModule) or network._compiled_call_impl is not None:
        raise ValueError(f'{name} is compiled: replace blocks first, then compile it')
    if computing_layers(network):
        raise ValueError(f'{name} has computing layers already: build it anew, and choose all sites in one call')
    places: dict[nn.Module, str] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        if find_reader(module) is not None and places.setdefault(module, path) != path:
            raise ValueError(
                f'{path} is the same block as {places[module]}: give each place a block of its own (copy.deepcopy)'
            )


def computing_layers(module: nn.Module) -> list[ComputingLayer]:
    """All computing layers inside ``module``, in network order."""
    return [child for child in module.modules() if isinstance(child, ComputingLayer)]


def stages_with_sites(network: nn.Module) -> dict[str, nn.Module]:
    """The modules inside ``network`` that hold computing layers, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if not isinstance(module, AdaptiveBlock) and any(layer_at(child) for child in module._modules.values())
    }


def check_links(network: nn.Module) -> None:
    """Make sure that every computing layer reads the blocks that stand beside it now.

    Copying, pickling and averaging a whole network keep the links; putting another module in a neighbour's place
    breaks them, and the computing layer would silently follow weights that nobody trains.

    Raises:
        ValueError: A link is broken.
    """
    for name, stage in stages_with_sites(network).items():
        blocks = list(stage._modules.values())  # children() would leave out what stands there twice
        for index, block in enumerate(blocks):
            if (layer := layer_at(block)) is None:
                continue
            if not 0 < index < len(blocks) - 1:
                raise ValueError(
                    f'the computing layer at {name}.{index} has lost a neighbour: it stands at the end of its stage'
                )
            for side, linked, beside in zip(
                ('left', 'right'), layer.neighbours, (blocks[index - 1], blocks[index + 1]), strict=True
            ):
                if linked is not beside:
                    raise ValueError(
                        f'the computing layer at {name}.{index} reads a {side} neighbour that is no longer part of '
                        f'the network: a {type(beside).__name__} was put in its place. Change blocks before the '
                        'backbone is built, or set their weights instead of exchanging the modules'
                    )


def _check_state_dict(
    network: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: Any, names: Sequence[str]
) -> None:
    check_checkpoint({name: network.get_submodule(name) for name in names}, state_dict, prefix=prefix)


def check_checkpoint(stages: Mapping[str, nn.Module], state_dict: Mapping[str, Tensor], *, prefix: str = '') -> None:
    """Make sure that a checkpoint's blocks are those of this network, before anything is loaded.

    An end-to-end checkpoint fits a network with sites: the removed blocks' weights are left over and the computing
    layers keep their initial values. What does not fit are blocks of another depth or shape, and sites
    elsewhere; a non-strict load would leave such blocks at random values with no more than a warning.

    Args:
        stages: The stages by their name in the state dict.
        state_dict: What is about to be loaded. Without any block of this network it passes.
        prefix: What the network's keys begin with, such as ``backbone.``.

    Raises:
        ValueError: The checkpoint belongs to another network.
    """
    # A network that is itself a stage has the empty name.
    found = {name: _blocks_of(state_dict, f'{prefix}{name}.' if name else prefix) for name in stages}
    if not any(found.values()):
        return
    depths = [len(blocks) for blocks in stages.values()]
    their_depths = [_depth(list(blocks._modules), found[stage]) for stage, blocks in stages.items()]
    if depths != their_depths:
        raise ValueError(
            f'the checkpoint belongs to another depth: it has {their_depths} blocks per stage, this network '
            f'has {depths}. Give the config that the checkpoint was trained with'
        )
    for name, blocks in stages.items():
        for index, block in blocks._modules.items():
            _check_block(block, f'{name}.{index}'.removeprefix('.'), found[name].get(index, {}))


def _depth(names: Sequence[str], theirs: Mapping[str, Any]) -> int:
    """Number of blocks of a stage in a checkpoint, given what this network calls its own."""
    strangers = len(set(theirs) - set(names))
    if strangers:
        return len(names) + strangers
    return max((place for place, name in enumerate(names, start=1) if name in theirs), default=0)


def _blocks_of(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, dict[str, Tensor]]:
    """The state dict of each block of a stage, by the block's name."""
    blocks: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        if key.startswith(prefix):
            index, dot, rest = key.removeprefix(prefix).partition('.')
            if dot:
                blocks.setdefault(index, {})[rest] = value
    return blocks


def _check_block(block: nn.Module, name: str, theirs: Mapping[str, Tensor]) -> None:
    own = block.state_dict()
    replaced, beside = isinstance(block, ComputingLayer), ADAPTIVE in own
    if ADAPTIVE in theirs and not beside:
        raise ValueError(
            f"the checkpoint was trained with policy 'adaptive', it has a computing layer beside the block at {name}: "
            'give the config that it was trained with, or deploy it first'
        )
    if beside and ADAPTIVE not in theirs:  # trained end to end
        own = {key: value for key, value in own.items() if not key.startswith('computing.')}
    missing = sorted(set(own) - set(theirs) - {key for key in own if key.endswith('num_batches_tracked')})
    kind = _kind_of(theirs)
    coefficients = {f'{"computing." * beside}{coefficient}' for coefficient in coefficient_names()}
    if (replaced or beside) and (strange := sorted((coefficients & set(theirs)) - set(own))):
        raise ValueError(
            f'the checkpoint has another computing layer at {name}: this one has no coefficient {", ".join(strange)}. '
            'Give the options of the run that wrote the checkpoint'
        )
    # A checkpoint that was trained end to end has a whole block where this network has a site.
    if missing and not (replaced and kind == 'another block'):
        advice = 'Give the same sites as in the run that wrote the checkpoint'
        if kind in DEPLOYED or isinstance(block, StaticLayer) or _is_folded(own):
            advice = (
                'A deployed checkpoint goes with the config that was written beside it, any other one with the '
                'config of its training'
            )
        raise ValueError(
            f'the checkpoint has {kind} at {name}, where this network has a {type(block).__name__}: '
            f'{missing[0]} is missing. {advice}'
        )
    for key in [key for key in own if key in theirs]:
        if own[key].shape != theirs[key].shape and not (replaced and missing):
            raise ValueError(
                f'the checkpoint belongs to another network: {name}.{key} has shape {tuple(theirs[key].shape)} there '
                f'and {tuple(own[key].shape)} here. Give the config that the checkpoint was trained with'
            )


def _is_folded(block: Mapping[str, Tensor]) -> bool:
    """Whether the state dict of a block has what folding a norm leaves: a bias of a residual block's convolution."""
    return 'conv1.bias' in block


def _kind_of(block: Mapping[str, Tensor]) -> str:
    """What wrote the state dict of a block."""
    if not block:
        return 'no block'
    if coefficient_names() & set(block):
        return 'a computing layer'
    # Only a sequence numbers its children.
    if any(key.startswith('0.') for key in block):
        return DEPLOYED[0]
    return DEPLOYED[1] if _is_folded(block) else 'another block'
