"""What part of a forward pass is synthesis: the most that deploying can save of it.

    python benchmarks/synthesis_share.py configs/classification/resnet101-repl_4xb128-90e_in1k.py --backend fp32 amp

With a share s, the dynamic network takes no longer than 1 / (1 - s) times the deployed one, but for the folded norms.
"""

from argparse import ArgumentParser
from pathlib import Path
from statistics import median

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger

from repl_mm.benchmark.latency import build_states, prepare
from repl_mm.benchmark.timing import describe, time_interleaved
from repl_mm.cli.common import exit_on_user_error
from repl_mm.layers import ComputingLayer, HeadwiseTransformerLayer, ScalarTransformerLayer
from repl_mm.surgery import computing_layers


@torch.no_grad()
def synthesise(layers: list[ComputingLayer]) -> None:
    """Everything that a forward pass computes from weights alone."""
    for layer in layers:
        if isinstance(layer, ScalarTransformerLayer | HeadwiseTransformerLayer):
            layer.weight_and_bias()
            if layer.options['mlp_fusion']:
                layer.mlp_weights()
        else:
            layer.weight()


@exit_on_user_error()
def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--backend', nargs='+', default=['fp32'])
    args = parser.parse_args()
    MMLogger.get_instance('mmengine', log_level='WARNING')
    device = torch.zeros(1, device=get_device()).device
    images = torch.randn(args.batch_size, 3, 224, 224, device=device)
    print('| model | backend | batch | forward (ms) | synthesis (ms) | share | 1 / (1 - share) |')
    print('| --- | --- | ---: | ---: | ---: | ---: | ---: |')
    for path in args.configs:
        model = build_states(Config.fromfile(path))['RepL, dynamic'].to(device)
        for backend in args.backend:
            layers = computing_layers(model.bfloat16() if 'bf16' in backend else model.float())
            calls = {'forward': prepare(model, images, backend=backend), 'synthesis': lambda: synthesise(layers)}  # noqa: B023
            times = {name: 1000 * median(seconds) for name, seconds in time_interleaved(calls, seconds=6).items()}
            share = times['synthesis'] / times['forward']
            row = [Path(path).stem.split('_')[0], backend, str(args.batch_size)]
            row += [f'{times["forward"]:.2f}', f'{times["synthesis"]:.2f}', f'{share:.1%}', f'{1 / (1 - share):.3f}']
            print(f'| {" | ".join(row)} |')
    print(f'\n{describe(device)}')


if __name__ == '__main__':
    main()
