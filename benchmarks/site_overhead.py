"""What a computing layer costs beside the block that it replaces: forward and backward pass, by itself.

    python benchmarks/site_overhead.py --batch-size 2 16

Ratios of one run: medians over interleaved rounds of the layer's time over the block's. A dropped block would cost
nothing.
Operators are those that torch dispatches in the plain layer and in the block, without views and allocations.
"""

from argparse import ArgumentParser
from collections.abc import Callable

import numpy as np
import torch
from mmengine.device import get_device
from mmseg.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from repl_mm.benchmark.operators import OperatorCounter
from repl_mm.benchmark.timing import describe, time_interleaved
from repl_mm.cli.common import exit_on_user_error
from repl_mm.layers import ComputingBasicBlock, ComputingBottleneck

OPTIONS = {
    'plain': {},
    'recompute': dict(recompute=True),
    'grad_fraction=0.25': dict(grad_fraction=0.25),
    'both': dict(recompute=True, grad_fraction=0.25),
}
# Stages of ResNet-34 and ResNet-101 at 224 x 224: block, computing layer, channels of its 3x3 convolution, resolution.
STAGES = [
    *((BasicBlock, ComputingBasicBlock, width, side) for width, side in ((64, 56), (128, 28), (256, 14), (512, 7))),
    *((Bottleneck, ComputingBottleneck, width, side) for width, side in ((128, 28), (256, 14))),
]


def one_pass(module: nn.Module, x: Tensor) -> Callable[[], None]:
    x = x.clone().requires_grad_()
    wanted = [x, *module.parameters()]

    def call() -> None:
        out = module(x)
        torch.autograd.grad(out, wanted, torch.ones_like(out))
        if x.is_cuda:
            torch.cuda.synchronize()

    return call


@exit_on_user_error()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', nargs='+', type=int, default=[2, 16])
    parser.add_argument('--seconds', type=float, default=6, help='time for each row (default: %(default)s)')
    args = parser.parse_args()
    device = torch.zeros(1, device=get_device()).device
    print(f'| block | channels | size | batch | operators | {" | ".join(OPTIONS)} |')
    print(f'| --- | {" | ".join(["---:"] * (4 + len(OPTIONS)))} |')
    for batch in args.batch_size:
        for block, layer, width, side in STAGES:
            channels = width * block.expansion
            make = lambda: block(channels, width).to(device)  # noqa: B023, E731
            removed, prev, next = make(), make(), make()
            modules = {name: layer(removed, prev=prev, next=next, **form).to(device) for name, form in OPTIONS.items()}
            x = torch.randn(batch, channels, side, side, device=device).relu()
            calls = {name: one_pass(module.train(), x) for name, module in {'block': removed, **modules}.items()}
            operators = []
            for name in ('plain', 'block'):
                with OperatorCounter() as counter:
                    calls[name]()
                operators.append(str(counter.counts.total()))
            times = time_interleaved(calls, seconds=args.seconds)
            ratios = [f'{np.median(np.divide(times[name], times["block"])):.3f}' for name in OPTIONS]
            row = [block.__name__, str(channels), f'{side} x {side}', str(batch), ' / '.join(operators), *ratios]
            print(f'| {" | ".join(row)} |', flush=True)
    print(f'\n{describe(device)}')


if __name__ == '__main__':
    main()
