"""What ``torch.compile`` with an activation memory budget keeps and recomputes, by torch's own partitioner.

The joint graph of the backbone's forward and backward pass is traced on tensors without data and split by the
partitioner (``torch._functorch.config.activation_memory_budget``); nothing is compiled. Memory changes by what the
split keeps, time by what it recomputes, operator by operator: fused operators take less than is predicted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch._functorch import config as functorch
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import GraphModule

from repl_mm.benchmark.devices import Device
from repl_mm.benchmark.fake import FakeStep, OperatorCosts, fake_tensors
from repl_mm.benchmark.predict import PredictedStep, predict_step
from repl_mm.benchmark.training import MIB


def predict_budget(
    config: Config, device: Device, *, batch: int, size: tuple[int, ...], budget: float
) -> PredictedStep:
    """Predict a training step whose backbone is compiled with an activation memory budget, in ``fp32``.

    Args:
        config: As of :func:`repl_mm.benchmark.predict.predict_step`, like ``device``, ``batch`` and ``size``.
        budget: Share of the activations that may be kept, above 0 and up to 1, as torch takes it.

    Raises:
        ValueError: A budget out of range, or what :func:`repl_mm.benchmark.predict.predict_step` raises.
    """
    if not 0 < budget <= 1:
        raise ValueError(f'an activation memory budget is above 0 and at most 1, got {budget}')
    eager = predict_step(config, device, batch=batch, size=size)
    with fake_tensors():
        step = FakeStep(config, batch=batch, size=size, backend='fp32', device=torch.device('cpu'))
        network = step.model.backbone
        kept = bytes_saved(network, step.images)
        plain = split(network, step.images, device)
        within = split(network, step.images, device, budget=budget)
    spared = (kept - within.bytes_saved) / MIB
    memory = {key: value - spared * (key in ('total', 'activations')) for key, value in eager.memory.items()}
    return replace(
        eager,
        memory=memory,
        flops=eager.flops + within.costs.flops - plain.costs.flops,
        bytes_moved=eager.bytes_moved + within.costs.bytes_moved - plain.costs.bytes_moved,
        operators=eager.operators + within.costs.operators - plain.costs.operators,
        seconds=eager.seconds + within.costs.seconds - plain.costs.seconds,
    )


@dataclass(frozen=True)
class Split:
    """A forward and a backward graph: bytes that are kept between the two, and what both cost."""

    bytes_saved: int
    costs: OperatorCosts


def split(network: nn.Module, x: Tensor, device: Device, *, budget: float | None = None) -> Split:
    """Split a network's joint graph within a budget; without one, all that the backward pass asks for is kept."""
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    found: list[Split] = []

    def partition(
        graph: GraphModule, inputs: Any, *, num_fwd_outputs: int, **options: Any
    ) -> tuple[GraphModule, GraphModule]:
        cut = default_partition if budget is None else min_cut_rematerialization_partition
        graphs = cut(graph, inputs, num_fwd_outputs=num_fwd_outputs, **options)
        (output,) = graphs[0].graph.find_nodes(op='output')
        kept = [node.meta['val'] for node in output.args[0][num_fwd_outputs:]]
        given = [node.meta['val'] for node in graphs[0].graph.find_nodes(op='placeholder')]
        with OperatorCosts(device) as costs:
            for each in graphs:
                each(*(node.meta['val'] for node in each.graph.find_nodes(op='placeholder')))
        found.append(Split(_bytes_beside(given, kept), costs))
        return graphs

    def forward(state: Mapping[str, Tensor], x: Tensor) -> Any:
        return torch.func.functional_call(network, state, (x,))

    traced = aot_function(
        forward, fw_compiler=lambda graph, _: graph, partition_fn=partition, num_params_buffers=len(state)
    )
    with functorch.patch(activation_memory_budget=1 if budget is None else budget):
        traced(state, x)
    if not found:
        raise ValueError('a backbone that trains nothing has no backward pass to save memory of')
    return found[0]


def bytes_saved(network: nn.Module, x: Tensor) -> int:
    """What autograd keeps of a forward pass beside images, weights and buffers."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    return _bytes_beside([x, *network.parameters(), *network.buffers()], kept)


def _bytes_beside(given: Iterable[Any], kept: Iterable[Any]) -> int:
    """Bytes of the storages of tensors that are kept and not given, each storage once."""

    def storages(values: Iterable[Any]) -> dict[int, int]:
        found = (value.untyped_storage() for value in values if isinstance(value, Tensor))
        return {storage._cdata: storage.nbytes() for storage in found}

    own = storages(given)
    return sum(size for storage, size in storages(kept).items() if storage not in own)
