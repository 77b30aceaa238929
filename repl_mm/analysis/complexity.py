"""How large a configured model is, counted on the model itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
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


def count(config: Config, *, input_shape: Sequence[int]) -> Complexity:
    """Size of the model of a config, for images of ``input_shape`` (C, H, W).

    Weights are neither loaded nor used: the operations are counted on tensors without data.
    """
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        model = MODELS.build(config.model)
    parameters = list(model.parameters())
    sizes = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    # The meta device also keeps attention in one piece, which the counter knows; a CPU's kernel it would miss.
    model.to('meta').eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, *input_shape, device='meta'), mode='tensor')
    return Complexity(*sizes, counter.get_total_flops())
