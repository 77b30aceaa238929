"""Train a model of mmpretrain, mmdet or mmseg from its config."""

from argparse import ArgumentParser, Namespace

from repl_mm.cli import add_arguments, add_trust, build_runner, friendly, load_config, read_checkpoint, require_fit

# isort: split
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint


def parse_args() -> Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', help='continue from this checkpoint, or from the last one in the work dir'
    )
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size')
    add_arguments(parser)
    add_trust(parser)
    return parser.parse_args()


def use_amp(config: Config) -> None:
    kind = config.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f"--amp needs an optim_wrapper of type 'OptimWrapper', the config has {kind!r}")
    config.optim_wrapper.type = 'AmpOptimWrapper'


def use_scaled_lr(config: Config) -> None:
    if 'base_batch_size' not in config.get('auto_scale_lr', {}):
        raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size: set it in the config')
    config.auto_scale_lr.enable = True


@friendly(on_interrupt='run again with --resume to continue from the last checkpoint')
def main() -> None:
    args = parse_args()
    config = load_config(args, sections=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    if args.amp:
        use_amp(config)
    if args.auto_scale_lr:
        use_scaled_lr(config)
    path = find_latest_checkpoint(config.work_dir) if args.resume == 'auto' else args.resume
    if path is not None:
        config.update(load_from=path, resume=True)
        checkpoint = read_checkpoint(path)
        if 'optimizer' not in checkpoint:
            raise ValueError(f'{path} holds weights alone: start from them with --cfg-options load_from={path}')
    runner = build_runner(config, loops=['train'] + ['val'] * (config.get('val_cfg') is not None))
    if path is not None:
        require_fit(runner.model, checkpoint, source=path)
        del checkpoint  # it holds the optimizer's state as well
    runner.train()


if __name__ == '__main__':
    main()
