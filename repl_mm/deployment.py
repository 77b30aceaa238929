"""The door to the deployed network, and the proof that it is the same one."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from repl_mm.backbones import ReplMixin


def deploy(model: nn.Module, *, fuse_all: bool = False) -> nn.Module:
    """A static copy of a trained model, in eval mode: no neighbour links, no synthesis, no branch on a mode.

    Args:
        model: A model with a backbone of this package, or such a backbone. It is left as it is.
        fuse_all: Fold the batch norms of the backbone's retained blocks and stem too.

    Raises:
        ValueError: There is no such backbone, or a computing layer lost its neighbours.
    """
    static = copy.deepcopy(model)
    backbones = [module for module in static.modules() if isinstance(module, ReplMixin)]
    if not backbones:
        raise ValueError(
            f'there is nothing to deploy in {type(model).__name__}: its backbone is none of repl_mm, such as ReplResNet'
        )
    for backbone in backbones:
        backbone.switch_to_deploy(fuse_all=fuse_all)
    return static.eval()


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
def parity(static: nn.Module, reference: nn.Module, images: Tensor) -> float:
    """Relative difference of two whole models' raw outputs, computed in the precision of ``images``.

    Args:
        static: The deployed model.
        reference: The model that it was made from, in eval mode.
        images: Normalised images, shape (N, 3, H, W).
    """
    ours, theirs = (RawOutputs(copy.deepcopy(model).to(images.dtype))(images) for model in (static, reference))
    return relative_difference(ours, theirs)


class RawOutputs(nn.Module):
    """The tensors that a model gives before any post-processing, as one tuple.

    A classifier's and a segmentor's logits, a detector's class logits of all levels and then its box deltas of all
    levels, or a backbone's features.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.options = {'mode': 'tensor'} if hasattr(model, 'backbone') else {}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(tree_leaves(self.model(images, **self.options)))

    def names(self, number: int) -> list[str]:
        """What the outputs are called in an exported graph."""
        if hasattr(self.model, 'bbox_head'):
            return [f'{kind}_{level}' for kind in ('class_logits', 'box_deltas') for level in range(number // 2)]
        if self.options:
            return ['logits'] if number == 1 else [f'logits_{i}' for i in range(number)]
        return [f'features_{i}' for i in range(number)]


def _tensors(nested: object) -> Iterable[Tensor]:
    return [leaf.double() for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
