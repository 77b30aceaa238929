"""One training step of any host library's model, with its losses, optimizer and mixed precision, on random data."""

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from repl_mm.backbones.stochastic_depth import skipped_blocks
from repl_mm.benchmark.operators import OperatorCounter
from repl_mm.benchmark.timing import check_backends
from repl_mm.deployment import example_inputs, takes_images
from repl_mm.engine.hooks.activation_checkpointing import checkpoint_activations


def check_training_backends(backends: Sequence[str]) -> None:
    """Raise ValueError unless all can be trained with: weights in half precision cannot."""
    check_backends(backends)
    if any('bf16' in backend.split('+') for backend in backends):
        raise ValueError("backend bf16 has weights in half precision and is not for training: take 'amp'")


class TrainingStep:
    """A call that trains a model for one step, on random images and labels, or on random tokens.

    Args:
        config: Config of a classifier, detector, segmenter or language model.
        batch: Images or sequences in a batch.
        size: Height and width of the images, or the length of the sequences.
        backend: Names out of :data:`repl_mm.benchmark.BACKENDS` but ``bf16``, joined by ``+``.
        device: Where to train.

    Raises:
        ValueError: ``compile`` of a network with blocks that are skipped at random.

    Attributes:
        operators: How many a forward and a backward pass dispatch, once :meth:`count_operators` was called.
        phases: Seconds of forward pass, backward pass and optimizer of each step so far.
    """

    def __init__(
        self, config: Config, *, batch: int, size: tuple[int, ...], backend: str, device: torch.device
    ) -> None:
        names = backend.split('+')
        scope = config.get('default_scope')
        with DefaultScope.overwrite_default_scope(scope):
            self.model = self._build(config, device)
            wrapper = copy.deepcopy(config.optim_wrapper)
            wrapper.type = 'AmpOptimWrapper' if 'amp' in names else 'OptimWrapper'
            for option in ('dtype', 'loss_scale', 'use_fp64'):  # of a config with mixed precision of its own
                wrapper.pop(option, None)
            # Random labels teach nothing; weights that stay where they are keep every step alike.
            wrapper.optimizer.lr = 1e-9
            self.wrapper = build_optim_wrapper(self.model, wrapper)
        if config.get('activation_checkpointing'):
            checkpoint_activations(self.model.backbone)
        with torch.device(device):
            self.images = example_inputs(self.model, batch, (3, *size) if takes_images(self.model) else size)
        self.samples = _label(self.model, scope, batch, size, device)
        if 'channels-last' in names:
            self.model.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        if 'compile' in names:
            if skipped_blocks(self.model):
                raise ValueError(
                    'stochastic depth does not go with compile, which would compile what each draw leaves: leave one '
                    'of the two out'
                )
            self.model.backbone.compile()
        self.device = device
        self.operators: int | None = None
        self.phases: list[tuple[float, float, float]] = []

    def _build(self, config: Config, device: torch.device) -> nn.Module:
        return MODELS.build(config.model).to(device).train()

    def __call__(self) -> None:
        begin = self._now()
        loss = self._forward()
        after_forward = self._now()
        self.wrapper.backward(loss)
        after_backward = self._now()
        self.update()
        self.phases.append((after_forward - begin, after_backward - after_forward, self._now() - after_backward))

    def backward(self) -> None:
        """Fill the gradients, and update nothing."""
        self.wrapper.backward(self._forward())

    def update(self) -> None:
        """The optimizer's step; gradients are empty after it."""
        self.wrapper.step()
        self.wrapper.zero_grad()

    def _forward(self) -> Tensor:
        """The loss."""
        with self.precision():
            losses = self.model(self.images, self.samples, mode='loss')
        return self.wrapper.scale_loss(self.model.parse_losses(losses)[0])

    def precision(self) -> AbstractContextManager[None]:
        """What a forward pass runs in, which mixed precision is."""
        return self.wrapper.optim_context(self.model)

    def count_operators(self) -> None:
        """Count the operators of a forward and a backward pass."""
        with OperatorCounter() as counter:
            self._forward().backward()
        self.wrapper.zero_grad()
        self.operators = counter.counts.total()

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter()


def _label(model: nn.Module, scope: str, batch: int, size: tuple[int, ...], device: torch.device) -> list[Any] | Tensor:
    """Random labels: a class, seven boxes as an image of COCO has on average, a class for each pixel, or tokens."""
    if scope == 'repl_mm':
        return torch.randint(model.backbone.num_tokens, (batch, *size), device=device)
    if scope == 'mmpretrain':
        return [
            DataSample().set_gt_label(torch.randint(model.head.num_classes, (1,), device=device)) for _ in range(batch)
        ]
    samples = []
    for _ in range(batch):
        if scope == 'mmdet':
            corners = torch.rand(7, 2, 2, device=device).sort(dim=1).values * torch.tensor(size[::-1], device=device)
            sample = DetDataSample(
                metainfo=dict(img_shape=size, batch_input_shape=size, pad_shape=size, ori_shape=size)
            )
            labels = torch.randint(model.bbox_head.num_classes, (7,), device=device)
            sample.gt_instances = InstanceData(bboxes=corners.flatten(1), labels=labels)
        else:
            sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
            classes = torch.randint(model.decode_head.num_classes, (1, *size), device=device)
            sample.gt_sem_seg = PixelData(data=classes)
        samples.append(sample)
    return samples
