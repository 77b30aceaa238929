"""Where mixing the outputs of two convolutions takes less time than mixing their kernels: forward and backward pass.

    python benchmarks/few_positions.py

The same layer in both ways, in turns, for kernels of several widths; ratios are medians over pairs of one run.
"""

from argparse import ArgumentParser

import numpy as np
import torch
from mmengine.device import get_device
from mmseg.models.backbones.resnet import BasicBlock
from site_overhead import one_pass

from repl_mm.benchmark.timing import describe, time_interleaved
from repl_mm.cli.common import exit_on_user_error
from repl_mm.layers import ComputingBasicBlock

SIDE = 7


class MixingOutputs(ComputingBasicBlock):
    """Mixes outputs, however many they are."""

    def _mixes_outputs(self, x: torch.Tensor) -> bool:
        return True


class MixingKernels(ComputingBasicBlock):
    """Mixes kernels, however few the outputs are."""

    def _mixes_outputs(self, x: torch.Tensor) -> bool:
        return False


@exit_on_user_error()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--channels', nargs='+', type=int, default=[64, 128, 256, 512])
    parser.add_argument('--batch-size', nargs='+', type=int, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument('--seconds', type=float, default=6, help='time for each row (default: %(default)s)')
    args = parser.parse_args()
    device = torch.zeros(1, device=get_device()).device
    print('| channels | size | batch | positions | few | kernels / block | outputs / block | outputs / kernels |')
    print(f'| {" | ".join(["---:"] * 8)} |')
    for channels in args.channels:
        for batch in args.batch_size:
            removed, prev, next = (BasicBlock(channels, channels).to(device) for _ in range(3))
            options = dict(prev=prev, next=next, norm_cfg=dict(type='BN'), zero_init_residual=False)
            x = torch.randn(batch, channels, SIDE, SIDE, device=device).relu()
            layers = [kind(removed, **options).to(device) for kind in (MixingKernels, MixingOutputs)]
            calls = {str(i): one_pass(module.train(), x) for i, module in enumerate((removed, *layers))}
            block, kernels, outputs = time_interleaved(calls, seconds=args.seconds).values()
            ratios = (np.median(np.divide(*pair)) for pair in ((kernels, block), (outputs, block), (outputs, kernels)))
            row = [channels, f'{SIDE} x {SIDE}', batch, batch * SIDE**2, layers[1].few_positions]
            row += [f'{ratio:.3f}' for ratio in ratios]
            print(f'| {" | ".join(map(str, row))} |', flush=True)
    print(f'\n{describe(device)}')


if __name__ == '__main__':
    main()
