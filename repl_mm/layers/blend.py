"""The form of the 2024 paper: a block whose weights are a blend of its neighbours' (P24 Eq. 8-15)."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from repl_mm.layers.adopter import Adopter
from repl_mm.layers.base import ComputingLayer, shape_refusal
from repl_mm.layers.cost import Cost
from repl_mm.layers.parts import Parts, ResidualParts, TransformerParts, read
from repl_mm.synthesis import mix


class BlendedBlock(Adopter, ComputingLayer):
    """The removed block, run with the weights ``alpha theta_prev + beta theta_next`` (P24 Eq. 8-15, supplement A.1).

    Two scalars weigh all parameters that are blended: of a residual block every one, the affine terms of its norms too,
    whose running statistics are its own; of a transformer block those of its attention, while its norms and its MLP
    are its own and train. The neighbours get gradients through it.

    What is its own has the removed block's keys. So a checkpoint of the plain network brings a transformer block's
    norms and MLP along; a residual block's running statistics are left out there, since they are those of other
    weights.
    """

    form = 'blend'
    kinds = (ResidualParts, TransformerParts)
    coefficients = {'alpha': 0.5, 'beta': 0.5}

    def __init__(self, removed: nn.Module, **kwargs: Any) -> None:
        super().__init__(removed, **kwargs)
        block = copy.deepcopy(removed)
        for module in block.modules():
            module._forward_hooks.clear()  # which are the removed block's
            module._forward_pre_hooks.clear()
        if hasattr(block, 'with_cp'):
            block.with_cp = False  # it would run again in the backward pass, when the weights are gone
        # By their names in the block.
        self.blended = tuple(_blended(block))
        for name in self.blended:
            own = attrgetter(name)(removed)
            for side, neighbour in zip(('left', 'right'), self.neighbours, strict=True):
                if reason := _lack(f"the {side} neighbour's {name}", attrgetter(name), neighbour, own):
                    raise ValueError(f'{type(removed).__name__} cannot be replaced: {reason}')
            parent, _, leaf = name.rpartition('.')
            block.get_submodule(parent)._parameters[leaf] = None
        self.adopt(block)
        self._make_coefficients(own, 1)
        super().reset_parameters()
        self._forget_statistics()

    @classmethod
    def refusal(cls, removed: Parts, prev: Parts, next: Parts, **options: Any) -> str | None:
        if any(type(parts) is not type(removed) for parts in (prev, next)):
            return 'its neighbours are blocks of another kind'
        if isinstance(removed, TransformerParts) and None in (removed.attention, prev.attention, next.attention):
            return "the reader of its class does not say which module is its attention: give 'attention' there"
        for side, parts in (('left', prev), ('right', next)):
            lent = dict(_shapes(parts))
            for what, own in _shapes(removed):
                if what not in lent:
                    return f'the {side} neighbour has no {what}'
                if reason := shape_refusal(f"the {side} neighbour's {what}", lent[what], own):
                    return reason
        return None

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Coefficients to 1/2, running statistics to those of no batch, and what else is its own as its host does."""
        super().reset_parameters()
        self._forget_statistics()
        if not hasattr(self.block, 'init_weights'):
            return
        whole = self.fuse()
        # OpenMMLab's blocks note how each parameter was set; one without notes takes itself for a network, and logs.
        notes = {p: dict(init_info='', tmp_mean_value=p.mean().cpu()) for p in whole.parameters()}
        for module in whole.modules():
            module._params_init_info = notes
        whole.init_weights()
        for name, parameter in self.named_parameters():
            if name not in self.coefficients:
                parameter.copy_(attrgetter(name)(whole))

    def _forget_statistics(self) -> None:
        for norm in self.norms:
            norm.reset_running_stats()

    def weights(self) -> dict[str, Tensor]:
        """The blended parameters by their names in the block."""
        prev, next = ([attrgetter(name)(block) for name in self.blended] for block in self.neighbours)
        return dict(zip(self.blended, mix(self.alpha, prev, self.beta, next, stop_gradient=False), strict=True))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the removed block, whatever that is called with."""
        return functional_call(self.block, self.weights(), (x, *args), kwargs)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """An ordinary block of the removed one's class that owns the blended weights."""
        weights = self.weights()
        block = copy.deepcopy(self.block)
        for name in self.coefficients:
            del block._parameters[name]
        for name, weight in weights.items():
            parent, _, leaf = name.rpartition('.')
            block.get_submodule(parent)._parameters[leaf] = nn.Parameter(weight.clone())
        return block

    def costs(self, shape: torch.Size, removed: Cost) -> tuple[Cost, Cost]:
        own = sum(p.numel() for p in self.parameters())
        return replace(removed, parameters=own, trainable=own), removed

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if f'{prefix}alpha' not in state_dict:
            # Its children are loaded from what is left here.
            own = {id(buffer) for norm in self.norms for buffer in norm.buffers()}
            for name, buffer in self.named_buffers():
                if id(buffer) in own:
                    state_dict.pop(f'{prefix}{name}', None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _blended(block: nn.Module) -> Iterator[str]:
    """Names of the parameters of a block that are blended."""
    parts = read(block)
    branch = parts.attention if isinstance(parts, TransformerParts) else block
    [prefix] = [name for name, module in block.named_modules() if module is branch]
    for name, _ in branch.named_parameters():
        yield f'{prefix}.{name}'.removeprefix('.')


def _lack(what: str, get: attrgetter, neighbour: nn.Module, own: Tensor) -> str | None:
    """The reason why a neighbour cannot lend a parameter, or None."""
    try:
        return shape_refusal(what, get(neighbour), own)
    except AttributeError:
        return f'{what} does not exist'


def _shapes(parts: Parts) -> Iterator[tuple[str, Tensor]]:
    """What is blended of a block of such parts, with words for each."""
    modules: Mapping[str, nn.Module]
    if isinstance(parts, TransformerParts):
        modules = {'attention': parts.attention}
    else:
        modules = {f'convolution {n}': conv for n, conv in enumerate(parts.convs, start=1)}
        modules |= {f'norm {n}': norm for n, norm in enumerate(parts.norms, start=1)}
    for what, module in modules.items():
        for name, parameter in module.named_parameters():
            yield f'{what} ({name})', parameter
