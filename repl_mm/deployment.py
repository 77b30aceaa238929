"""The door to the deployed network, and the proof that it is the same one."""

import copy
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repl_mm.layers import AdaptiveBlock, ComputingLayer, fold, is_foldable
from repl_mm.layers.parts import find_reader, norm_pairs, stem_pairs
from repl_mm.surgery import check_links, computing_layers, stages_with_sites


class Deployable(nn.Module):
    """A part of a network that is made static by itself, while the rest stays as it is.

    Attributes:
        has_free_size: Whether it is worth trying to export it for images of any size.
    """

    has_free_size: ClassVar[bool] = True

    @torch.no_grad()
    def switch_to_deploy(self, *, fuse_all: bool = False) -> None:
        """Make it static, in place: computing layers become ordinary operators (Eq. 32-33).

        In eval mode it does what it did before. There is no way back: to keep the original, see :func:`deploy`.
        mmpretrain's and timm's re-parameterisation tools call this method.

        Args:
            fuse_all: Fold the batch norms of the retained blocks and of the stem into their convolutions too.

        Raises:
            ValueError: A computing layer lost its neighbours; see :func:`repl_mm.surgery.check_links`.
        """
        make_static(self, fuse_all=fuse_all)


def deploy(network: nn.Module, *, fuse_all: bool = False) -> nn.Module:
    """A static copy of a trained network, in eval mode: no neighbour links, no synthesis, no branch on a mode.

    Args:
        network: A network with computing layers, or a model with a backbone of :mod:`repl_mm.backbones`. It is left as
            it is.
        fuse_all: Fold the batch norms of retained residual blocks and of the stem too; with a backbone of ours, of
            that alone.

    Raises:
        ValueError: There is nothing to deploy, or a computing layer lost its neighbours.
    """
    if not isinstance(network, nn.Module):
        raise ValueError(f'deploy takes a network, an nn.Module, got {type(network).__name__}')
    static = copy.deepcopy(network)
    parts = [module for module in static.modules() if isinstance(module, Deployable)]
    if not parts and not computing_layers(static):
        raise ValueError(
            f'there is nothing to deploy in {type(network).__name__}: it has no computing layers; '
            'repl_mm.replace puts some in'
        )
    for part in parts:
        part.switch_to_deploy(fuse_all=fuse_all)
    make_static(static, fuse_all=fuse_all and not parts)
    return static.eval()


@torch.no_grad()
def make_static(network: nn.Module, *, fuse_all: bool) -> None:
    """What :func:`deploy` does to its copy."""
    check_links(network)
    for stage in stages_with_sites(network).values():
        for index, block in enumerate(stage):
            if isinstance(block, ComputingLayer | AdaptiveBlock):
                stage[index] = block.fuse()
    if fuse_all:
        fold_norms(network)


def fold_norms(network: nn.Module) -> None:
    """Fold the batch norms of residual blocks and of a known stem into the convolutions before them, in place.

    Computing layers read their neighbours' convolutions, so they must be static by now.
    """
    pairs = list(stem_pairs(network))
    for block in network.modules():
        if find_reader(block) is not None:
            pairs += norm_pairs(block)
    homes: dict[nn.Module | None, list[tuple[nn.Module, str]]] = {}
    for parent in network.modules():
        for name, child in parent._modules.items():
            homes.setdefault(child, []).append((parent, name))
    for conv, norm in pairs:
        # What stands at several places would have to be folded differently at each.
        if is_foldable(norm) and len(homes[conv]) == len(homes[norm]) == 1:
            setattr(*homes[conv][0], fold(conv, norm))
            setattr(*homes[norm][0], nn.Identity())


def relative_difference(ours: object, reference: object) -> float:
    """Largest ``max|a - b| / max|b|`` over the tensors of two nested outputs; NaN where one holds NaN.

    Raises:
        ValueError: Their tensors differ in number or in shape.
    """
    pairs = list(zip(_tensors(ours), _tensors(reference), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        raise ValueError(f'outputs of other shapes: {[(tuple(a.shape), tuple(b.shape)) for a, b in pairs]}')
    return torch.stack([(a - b).abs().amax() / b.abs().amax().clamp_min(1e-30) for a, b in pairs]).amax().item()


@torch.no_grad()
def parity(static: nn.Module, reference: nn.Module, inputs: Tensor, *, dtype: torch.dtype | None = None) -> float:
    """Relative difference of two whole models' raw outputs.

    Args:
        static: The deployed model.
        reference: The model that it was made from, in eval mode.
        inputs: Normalised images (N, 3, H, W), or tokens (N, T).
        dtype: The precision to compute in, by default that of the images.
    """
    dtype = dtype or inputs.dtype
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    ours, theirs = (RawOutputs(copy.deepcopy(model).to(dtype))(inputs) for model in (static, reference))
    return relative_difference(ours, theirs)


def takes_images(model: nn.Module) -> bool:
    """Whether a model is one for images; any other has a method ``example_inputs(number, shape=None)``."""
    return not hasattr(model, 'example_inputs')


def example_inputs(model: nn.Module, number: int, shape: Sequence[int] | None = None) -> Tensor:
    """Random inputs that a model can be called with.

    Args:
        model: A model, or the backbone of one.
        number: Of images, or of what else the model takes.
        shape: Of one of them; (C, H, W) of an image. A model for something else has its own.
    """
    return torch.randn(number, *shape) if takes_images(model) else model.example_inputs(number, shape)


class RawOutputs(nn.Module):
    """The tensors that a model gives before any post-processing, as one tuple.

    The logits of a classifier, a segmentor or a language model, a detector's class logits of all levels and then its
    box deltas of all levels, or a backbone's features.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.options = {'mode': 'tensor'} if hasattr(model, 'backbone') else {}

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(inputs, **self.options)))

    def names(self, number: int) -> list[str]:
        """What the outputs are called in an exported graph."""
        if hasattr(self.model, 'bbox_head'):
            return [f'{kind}_{level}' for kind in ('class_logits', 'box_deltas') for level in range(number // 2)]
        if self.options:
            return ['logits'] if number == 1 else [f'logits_{i}' for i in range(number)]
        return [f'features_{i}' for i in range(number)]


def _tensors(nested: object) -> Iterable[Tensor]:
    return [leaf.double() for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
