"""What all computing layers share."""

from torch import Tensor, nn

from repl_mm.layers.static import StaticLayer


class ComputingLayer(nn.Module):
    """A light layer whose weights are synthesised from its two neighbours at every step (Eq. 5-6).

    It owns its coefficients and its norm only. The neighbours are kept in a plain tuple, so that they are not
    registered as children: every parameter keeps one owner, one key and one gradient. Copying or
    pickling the whole network keeps the links; :func:`repl_mm.replace.check_links` finds broken ones.

    Args:
        prev: The retained block on the left.
        next: The retained block on the right.
    """

    def __init__(self, prev: nn.Module, next: nn.Module) -> None:
        super().__init__()
        self.neighbours = (prev, next)

    @property
    def prev(self) -> nn.Module:
        """The retained block on the left."""
        return self.neighbours[0]

    @property
    def next(self) -> nn.Module:
        """The retained block on the right."""
        return self.neighbours[1]

    def reset_parameters(self) -> None:
        """Give the layer's own parameters their initial values."""
        raise NotImplementedError

    def fuse(self) -> StaticLayer:
        """What the layer is in eval mode as an ordinary operator with weights of its own (Eq. 32-33).

        timm's re-parameterisation tool calls it by this name.
        """
        raise NotImplementedError


def require_shape(what: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``weight``, described by ``what``, has the shape that the removed block had."""
    if tuple(weight.shape) != tuple(shape):
        raise ValueError(
            f'{what} has shape {tuple(weight.shape)}, but the removed block needs {tuple(shape)}: '
            'choose a site whose neighbours have the shape of the block that it replaces'
        )
