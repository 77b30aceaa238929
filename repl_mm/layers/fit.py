"""How computing layers are fitted in closed form to the blocks whose place they take.

In weight space a layer's synthesised weight comes as near to the removed block's as its coefficients allow (Eq. 72-75).
In activation space what it adds to its input comes as near to what the block's output is ahead of it, by least squares
over the features of some batches. Each class is the way of some computing layers, which say so by their ``fit()``.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repl_mm.layers.least_squares import LeastSquares, Solution
from repl_mm.layers.parts import ResidualParts, TransformerParts, read
from repl_mm.layers.static import is_foldable
from repl_mm.synthesis import row_norm

# Numbers of a piece of rows, which is in float64: 32 MiB.
PIECE = 2**22


class Fit(Protocol):
    """A way to fit one computing layer."""

    @property
    def intercept(self) -> bool:
        """Whether the layer can add a constant to what its regressors explain."""

    def aim(self, block: nn.Module) -> nn.Module:
        """What of the removed block to look at: the block itself, for its output, or what ends its residual branch,
        for the sum of its output and the block's input."""

    def nearest(self, removed: Any) -> float | None:
        """Set the coefficients in weight space, given the removed block's parts.

        Returns:
            The distance that is left over the removed weight's norm, both squared; None where weights do not matter.
        """

    def distances(self, removed: Any) -> dict[str, Tensor]:
        """How far the removed block's weights are from what the coefficients can reach (Eq. 72, 74); changes nothing.

        Returns:
            By the name of each weight that the layer stands for, the distance over the weight's norm, group by group;
            nothing where weights do not matter.
        """

    def rows(self, x: Tensor, target: Tensor) -> Iterator[Tensor]:
        """Pieces for :meth:`LeastSquares.add`.

        Args:
            x: A batch of inputs of the computing layer.
            target: What it should add to them, of the same shape.
        """

    def adopt(self, solution: Solution) -> None:
        """Set the layer's own parameters to what was found for its rows."""


def _nearest(columns: Sequence[Tensor], removed: Tensor) -> Solution:
    """Weights of shape (G, n) as the regressors of another."""
    squares = LeastSquares()
    squares.add([torch.stack([*columns, removed], dim=1)])
    return squares.solve(intercept=False)


def _distances(columns: Sequence[Tensor], removed: Tensor) -> Tensor:
    """What of each group of weights (G, n) is outside the span of others, over its norm; 0 where there is none."""
    reached = torch.einsum('gk,kgn->gn', _nearest(columns, removed).slopes, torch.stack([*columns]).double())
    norm = removed.double().norm(dim=1)
    return (removed - reached).norm(dim=1) / norm.where(norm > 0, 1)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.data.copy_(value.view_as(parameter))


class _ResidualFit:
    """Channel by channel, in front of the last activation."""

    intercept = True

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def aim(self, block: nn.Module) -> nn.Module:
        return read(block).norms[-1]

    def _columns(self) -> list[Tensor]:
        """The normalised kernels that the coefficients weigh, in their order."""
        kernels = (kernel.detach() / row_norm(kernel.detach())[..., None, None] for kernel in self.layer.kernels())
        return self.layer.columns(*kernels)

    def _rows_of_kernels(self, removed: ResidualParts) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The columns, and the removed kernels of their shape by name, one row for each output channel."""
        columns = [column.flatten(1) for column in self._columns()]
        kernels = {f'conv{at + 1}': removed.convs[at].weight.detach().flatten(1) for at in self.layer.stands_in}
        return columns, {name: kernel for name, kernel in kernels.items() if kernel.shape == columns[0].shape}

    def distances(self, removed: ResidualParts) -> dict[str, Tensor]:
        """Channel by channel, of each kernel."""
        columns, kernels = self._rows_of_kernels(removed)
        return {name: _distances(columns, kernel) for name, kernel in kernels.items()}

    def nearest(self, removed: ResidualParts) -> float:
        """A BasicBlock has two kernels where its layer has one: the nearer of the two is taken."""
        columns, kernels = self._rows_of_kernels(removed)
        found = [_nearest(columns, kernel) for kernel in kernels.values()]
        best = min(found, key=lambda solution: solution.unexplained)
        self._set_coefficients(best)
        return best.unexplained

    def _set_coefficients(self, solution: Solution) -> None:
        for name, values in zip(self.layer.coefficients, solution.slopes.unbind(1), strict=True):
            _set(getattr(self.layer, name), values)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The regressors, each of shape (N, C, H, W)."""
        raise NotImplementedError

    def rows(self, x: Tensor, target: Tensor) -> Iterator[Tensor]:
        maps = [*self._maps(x), target]
        images = max(1, PIECE // (len(maps) * target[0].numel()))
        for parts in zip(*(each.split(images) for each in maps), strict=True):
            yield torch.stack(parts).flatten(3).permute(2, 0, 1, 3).flatten(2)  # (C, k + 1, n)

    def _set_norm(self, solution: Solution, *, mean: Tensor, var: Tensor, scale: Tensor) -> None:
        """Let a batch norm in eval mode give ``scale z + intercept`` for inputs z of this mean and variance."""
        norm = self.layer.norm
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
        if norm.weight is not None:
            _set(norm.weight, scale * (var + norm.eps).sqrt())
            _set(norm.bias, solution.intercept + scale * mean)


class ConvolutionFit(_ResidualFit):
    """One convolution and a batch norm: the slopes of both neighbours' convolutions of the input are the coefficients.

    A norm without affine parameters has no scale of its own: only the direction is fitted.
    """

    def _maps(self, x: Tensor) -> list[Tensor]:
        return [F.conv2d(x, kernel, **self.layer.geometry) for kernel in self._columns()]

    def adopt(self, solution: Solution) -> None:
        self._set_coefficients(solution)
        mean = (solution.slopes * solution.mean).sum(-1)
        var = torch.einsum('gi,gij,gj->g', solution.slopes, solution.covariance, solution.slopes).clamp_min(0)
        self._set_norm(solution, mean=mean, var=var, scale=torch.ones_like(mean))


class NormFit(_ResidualFit):
    """The coefficients stay what they are in weight space, and the last norm's scale and shift are fitted."""

    def _maps(self, x: Tensor) -> list[Tensor]:
        z = self.layer.before_norm(x)
        norm = self.layer.norm
        if is_foldable(norm):
            return [z]
        plain = copy.deepcopy(norm).eval()  # a norm over groups or an image, without its affine parameters
        if plain.weight is not None:
            nn.init.ones_(plain.weight)
            nn.init.zeros_(plain.bias)
        return [plain(z)]

    def adopt(self, solution: Solution) -> None:
        scale, norm = solution.slopes[:, 0], self.layer.norm
        if is_foldable(norm):
            self._set_norm(solution, mean=solution.mean[:, 0], var=solution.covariance[:, 0, 0], scale=scale)
        elif norm.weight is not None:
            _set(norm.weight, scale)
            _set(norm.bias, solution.intercept)


class _TokenFit:
    """Of transformers, which see each token by itself; what stands behind a block's sum is its output."""

    intercept = False

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def aim(self, block: nn.Module) -> nn.Module:
        return block

    def rows(self, x: Tensor, target: Tensor) -> Iterator[Tensor]:
        tokens = max(1, PIECE // (x.size(-1) * self._number()))
        for parts in zip(*(each.flatten(0, -2).split(tokens) for each in (x, target)), strict=True):
            yield self._piece(*parts)

    def _number(self) -> int:
        """Numbers of a row for one of its channels."""
        raise NotImplementedError

    def _piece(self, x: Tensor, target: Tensor) -> Tensor:
        """Tokens (T, D) and their targets to rows."""
        raise NotImplementedError


class ProjectionFit(_TokenFit):
    """The projection's coefficients.

    An MLP behind it makes the output a curved function of them; then it is fitted by its tangent at the coefficients
    that the layer has (one Gauss-Newton step).
    """

    def _groups(self, removed: TransformerParts) -> tuple[list[Tensor], Tensor]:
        """The neighbours' projections and the removed one, a row for each group that has coefficients of its own."""
        prev, next = (self.layer.grouped(parts.proj.weight.detach(), borrowed=True) for parts in self.layer.parts)
        return self.layer.columns(prev, next), self.layer.grouped(removed.proj.weight.detach(), borrowed=False)

    def distances(self, removed: TransformerParts) -> dict[str, Tensor]:
        """Of the attention's projection, head by head where heads have coefficients."""
        return {'proj': _distances(*self._groups(removed))}

    def nearest(self, removed: TransformerParts) -> float:
        solution = _nearest(*self._groups(removed))
        self._set_coefficients(solution.slopes.mT)
        return solution.unexplained

    def adopt(self, solution: Solution) -> None:
        self._set_coefficients(solution.slopes)

    def _set_coefficients(self, values: Tensor) -> None:
        """All of the first neighbour's, then all of the second one's."""
        names = self.layer.coefficients
        for name, own in zip(names, values.flatten().chunk(len(names)), strict=True):
            _set(getattr(self.layer, name), own)

    def _number(self) -> int:
        return 1 + sum(getattr(self.layer, name).numel() for name in self.layer.coefficients)

    def _piece(self, x: Tensor, target: Tensor) -> Tensor:
        layer = self.layer
        columns = layer.projected(x)
        branch = layer._projection(x)
        if layer._has_mlp:
            hidden = x + branch
            columns = [column + torch.func.jvp(layer._mlp, (hidden,), (column,))[1] for column in columns]
            branch = branch + layer._mlp(hidden)
        now = torch.cat([getattr(layer, name).detach() for name in layer.coefficients])
        tangent = sum(value * column for value, column in zip(now, columns, strict=True))
        return torch.stack([*columns, target - branch + tangent]).flatten(1).unsqueeze(0)


class AffineFit(_TokenFit):
    """Scale and shift of each channel."""

    intercept = True

    def nearest(self, removed: TransformerParts) -> float | None:
        """No weights are borrowed."""

    def distances(self, removed: TransformerParts) -> dict[str, Tensor]:
        """No weights are borrowed."""
        return {}

    def adopt(self, solution: Solution) -> None:
        _set(self.layer.gamma, solution.slopes)
        _set(self.layer.delta, solution.intercept)

    def _number(self) -> int:
        return 2

    def _piece(self, x: Tensor, target: Tensor) -> Tensor:
        return torch.stack([x, target]).permute(2, 0, 1)
