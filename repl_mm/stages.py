"""Where a network has its blocks.

A stage is an indexable module of blocks: ``nn.Sequential`` or ``nn.ModuleList``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from repl_mm.layers.parts import Parts, find_reader, full_name, read


def find_stages(network: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network that hold three blocks or more that can be read, by name.

    Raises:
        ValueError: There are none, or stages of two kinds.
    """
    found, kinds = {}, set()
    reasons: list[str] = []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList):
            continue
        parts = [parts_of(block, reasons) for block in module]
        known = [part for part in parts if part is not None]
        if len(known) >= 3:
            found[name] = module
            kinds |= set(map(type, known))
    if not found:
        raise ValueError(_nothing_found(network, reasons))
    if len(kinds) > 1:
        raise ValueError(
            f'{type(network).__name__} has stages of residual and of transformer blocks, {", ".join(found)}: name '
            f"those to replace in, such as stages=['{next(iter(found))}']"
        )
    return found


def parts_of(block: nn.Module, reasons: list[str] | None = None) -> Parts | None:
    """The parts of a block, or None where it cannot be read; then ``reasons`` gets the reason of a known class."""
    if find_reader(block) is None:
        return None
    try:
        return read(block)
    except ValueError as error:
        if reasons is not None:
            reasons.append(str(error))
        return None


def _nothing_found(network: nn.Module, reasons: Sequence[str]) -> str:
    name = type(network).__name__
    if reasons:
        return f'{name} has no blocks that can be replaced: {reasons[0]}'
    children = [
        (full_name(type(block)), len(module))
        for module in network.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module) >= 3
        for block in module
        if find_reader(block) is None and next(block.children(), None) is not None
    ]
    if any(parts_of(block) is not None for block in network.modules()):
        return f'{name} has no stage of three blocks or more, so no block between two others: choose a deeper network'
    if not children:
        return f'{name} has no stage: an nn.Sequential or nn.ModuleList that holds three blocks or more of one kind'
    block = Counter(child for child, _ in children).most_common(1)[0][0]
    short = block.rpartition('.')[2]
    return (
        f'{name} has no blocks that a reader knows. Most of its blocks are of class {block}; say once what one of them '
        f'lends, for a pre-norm transformer:\n'
        f'import repl_mm.layers\n'
        f'@repl_mm.layers.reads({short})\n'
        f'def _(block):\n'
        f'    return repl_mm.layers.TransformerParts(\n'
        f'        proj=block.attn.proj, norm1=block.norm1, norm2=block.norm2,\n'
        f'        mlp=(block.mlp.fc1, block.mlp.fc2), activation=block.mlp.act, num_heads=block.attn.num_heads,\n'
        f'    )'
    )


def named_stages(network: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of these names.

    Raises:
        ValueError: There is none of a name, or it holds no block that can be read.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        names = [names]
    names = list(names)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"'stages' are names of modules such as ['layer3', 'layer4'], or None, got {names!r}")
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules:
            holders = [n for n, m in modules.items() if isinstance(m, nn.Sequential | nn.ModuleList) and len(m) >= 3]
            raise ValueError(
                f'{type(network).__name__} has no module {name!r}: modules that hold three or more are '
                f'{", ".join(holders) or "none"}'
            )
        if not isinstance(modules[name], nn.Sequential | nn.ModuleList):
            raise ValueError(f'{name!r} is no stage: give names of nn.Sequential or nn.ModuleList modules')
    found = {name: modules[name] for name in names}
    reasons: list[str] = []
    if not any(parts_of(block, reasons) is not None for blocks in found.values() for block in blocks):
        why = reasons[0] if reasons else _nothing_found(network, [])
        raise ValueError(f'no block in {", ".join(map(repr, names))} can be read: {why}')
    return found
