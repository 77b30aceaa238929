"""How large a configured model is, counted on the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """Size of a model.

    Attributes:
        parameters: Number of parameters.
        trainable: Number of those that an optimizer changes.
        flops: Floating-point operations of one forward pass of one image in evaluation mode, two per multiply-add as in
            Eq. 57 and in torch's counter: convolutions, matrix products and attention. Twice what other tools call
            MACs.
    """

    parameters: int
    trainable: int
    flops: int


class RealLinspace(TorchFunctionMode):
    """Keeps ``torch.linspace`` on the CPU: the host libraries read stochastic depth's rates off it as numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs['device'] = 'cpu'
        return func(*args, **kwargs)


def count(config: Config, *, input_shape: Sequence[int]) -> Complexity:
    """Size of the model of a config, for images of ``input_shape`` (C, H, W).

    Nothing is loaded or initialised, and no memory is taken: parameters and images are tensors without data.
    """
    with DefaultScope.overwrite_default_scope(config.get('default_scope')), torch.device('meta'), RealLinspace():
        model = MODELS.build(config.model)
    parameters = list(model.parameters())
    sizes = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    model.eval()
    # The meta device also keeps attention in one piece, which the counter knows; a CPU's kernel it would miss.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_shape, device='meta'), mode='tensor')
    return Complexity(*sizes, counter.get_total_flops())
