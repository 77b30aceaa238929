"""Checks of ``doctor`` that are about tensors: networks on a device, beside the same on the CPU in float64."""

import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from repl_mm.backbones import ReplResNet, ReplResNetCIFAR, ReplViT
from repl_mm.benchmark.latency import prepare
from repl_mm.deployment import deploy, relative_difference
from repl_mm.engine.errors import summarise
from repl_mm.layers.base import ComputingLayer

EVERY = dict(policy='interval', every=3)
VIT = dict(arch=dict(embed_dims=48, num_layers=6, num_heads=3, feedforward_channels=96), img_size=64, patch_size=8)
NETWORKS: dict[str, partial[Any]] = {
    'BasicBlock': partial(ReplResNetCIFAR, 32),
    'Bottleneck': partial(ReplResNet, 50, stem_channels=16, base_channels=16),
    'ViT': partial(ReplViT, **VIT, out_type='featmap', out_indices=(2, 5)),
}


class NotRunError(Exception):
    """A check that cannot be made here; says why."""


def networks(*, defaults_only: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """A small network of each kind of block with each of its computing layers, in float64, with random coefficients."""
    for kind, build in NETWORKS.items():
        backbone: Any = build.func
        forms = backbone.forms()
        for form in forms[:1] if defaults_only else forms:
            network = build(repl=EVERY | dict(form=form)).double()
            for module in network.modules():
                if isinstance(module, ComputingLayer):
                    for name in module.coefficients:
                        nn.init.normal_(getattr(module, name))
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.normal_(module.running_mean)
                    nn.init.uniform_(module.running_var, 0.5, 2)
                    if module.weight is not None:
                        nn.init.uniform_(module.weight, 0.5, 1.5)
            yield f'{kind}, {form}', network


def passes(network: nn.Module, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs, and the gradients of the sum of their squares, on the CPU in float64."""
    outputs = network(images)
    network.zero_grad()
    sum(output.square().mean() for output in outputs).backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    outputs, gradients = ([tensor.detach().cpu().double() for tensor in tensors] for tensors in (outputs, gradients))
    return outputs, gradients


def limit(difference: float, most: float, what: str) -> str:
    """A line with a difference; AssertionError if it is above what rounding explains, or NaN."""
    if not difference <= most:
        raise AssertionError(f'{what} differs by {difference:.1e} of the largest value, at most {most:.0e} is rounding')
    return f'{difference:.0e}'


def computing_layers_agree(device: torch.device) -> str:
    """Outputs and gradients of training in float64; outputs in float32 without TF32."""
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    cases = list(networks())
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        for name, network in cases:
            images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
            outputs, gradients = passes(copy.deepcopy(network), images)
            for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
                ours = passes(copy.deepcopy(network).to(device, dtype), images.to(device, dtype))
                difference = relative_difference(ours[0], outputs)
                if dtype is torch.float64:  # float32's rounding switches some ReLUs, which gradients show
                    # As one vector: the gradient of a bias in front of a batch norm is nothing but rounding.
                    of_all = [torch.cat([t.flatten() for t in tensors]) for tensors in (ours[1], gradients)]
                    difference = max(difference, relative_difference(*of_all))
                limit(difference, most, f'{name} in {dtype}')
                worst[dtype] = max(worst[dtype], difference)
    of_float64, of_float32 = worst.values()
    return f'{len(cases)} kinds: {of_float64:.0e} in float64, with gradients; {of_float32:.0e} in float32'


@torch.no_grad()
def deployed_networks_agree(device: torch.device) -> str:
    """The deployed network on the device, beside the trained one on the CPU."""
    worst = 0.0
    for name, network in networks():
        images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
        expected = network.eval()(images)
        static = deploy(network, fuse_all=True).to(device)
        difference = relative_difference([out.cpu() for out in static(images.to(device))], expected)
        limit(difference, 1e-9, name)
        worst = max(worst, difference)
    return f'{worst:.0e} in float64, all norms folded'


def backend_agrees(device: torch.device, *, backend: str, most: float) -> str:
    """A forward pass by a backend, beside float64."""
    worst = 0.0
    for name, network in networks(defaults_only=backend == 'compile'):  # a compilation takes long
        network.eval()
        images = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            expected = network(images.double())
        try:
            outputs = prepare(network.float(), images.to(device), backend=backend)()
        except Exception as error:
            if backend == 'compile' and 'compiler' in str(error).lower():
                raise NotRunError(f'torch.compile finds no compiler here: {summarise(error)}') from None
            raise
        difference = relative_difference([out.cpu().double() for out in outputs], expected)
        limit(difference, most, name)
        worst = max(worst, difference)
    return f'{worst:.0e} beside float64'


def several_processes(device: torch.device, *, ranks: int) -> str:
    """Gradients of data-parallel training, beside one process with the joint batch, in float64."""
    network = NETWORKS['ViT'](repl=EVERY).double()
    images = torch.randn(2 * ranks, 3, 64, 64, dtype=torch.float64)
    expected = passes(copy.deepcopy(network), images)[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one_of_several, (ranks, device.type, folder, network, images), nprocs=ranks)
        found = torch.load(f'{folder}/gradients.pth', weights_only=True)
    difference = relative_difference(found, expected)
    backend = 'NCCL' if device.type == 'cuda' else 'Gloo'
    return f'{backend}: {limit(difference, 1e-9, "the mean gradient")} beside one process with all images'


def _one_of_several(rank: int, ranks: int, kind: str, folder: str, network: nn.Module, images: Tensor) -> None:
    device = torch.device(kind, rank) if kind == 'cuda' else torch.device('cpu')
    if kind == 'cuda':
        torch.cuda.set_device(device)
    backend = 'nccl' if kind == 'cuda' else 'gloo'
    dist.init_process_group(backend, init_method=f'file://{folder}/store', rank=rank, world_size=ranks)
    parallel = DistributedDataParallel(network.to(device), device_ids=[rank] if kind == 'cuda' else None)
    gradients = passes(parallel, images[2 * rank : 2 * rank + 2].to(device))[1]
    if rank == 0:
        torch.save(gradients, f'{folder}/gradients.pth')
    dist.barrier()
    dist.destroy_process_group()
