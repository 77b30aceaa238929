"""What a layer costs: the quantities that computing layers predict of themselves."""

from dataclasses import dataclass

BYTES = 4  # of a float32


@dataclass(frozen=True)
class Cost:
    """What one image, or the network as such, costs.

    Attributes:
        parameters: Number of parameters.
        trainable: Number of those that an optimizer changes.
        forward: Floating-point operations of a forward pass of one image, two per multiply-add; convolutions, matrix
            products and attention, as torch counts them.
        backward: The same of a backward pass.
        activations: Bytes per image that the forward pass keeps for the backward pass.
    """

    parameters: int = 0
    trainable: int = 0
    forward: int = 0
    backward: int = 0
    activations: int = 0

    def __add__(self, other: 'Cost') -> 'Cost':
        return Cost(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: 'Cost') -> 'Cost':
        return Cost(*(a - b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[int, ...]:
        """All quantities, in the order of the attributes."""
        return self.parameters, self.trainable, self.forward, self.backward, self.activations


def layer_cost(parameters: int, forward: int, *, frozen: float = 0, kept: int) -> Cost:
    """A layer of ``forward`` operations, ``frozen`` of them with weights without gradient, that keeps ``kept`` numbers.

    The backward pass takes the operations of the forward pass for the gradient of the inputs, and for that of the
    weights.
    """
    return Cost(parameters, parameters, forward, round(2 * forward - frozen), BYTES * kept)


def recomputed(operations: int, kept: int) -> Cost:
    """What computing again in the backward pass adds, and the numbers that need not be kept for it."""
    return Cost(backward=operations, activations=-BYTES * kept)
