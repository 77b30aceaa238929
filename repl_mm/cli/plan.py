"""Find the fewest blocks to replace for a saving of time or memory, measured on this machine or predicted for a GPU.

With --by, not the fewest, but those that cost the least of a trained network's score.

python tools/plan.py my_config.py --save-time 15% --batch-size 16 --size 224 224
python tools/plan.py my_config.py --save-time 15% --batch-size 128 --size 224 224 --predict a100
python tools/plan.py my_config.py --save-time 15% --by look/recoverability.json
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from repl_mm.analysis.tables import Table
from repl_mm.benchmark import BACKENDS
from repl_mm.cli.common import add_cfg_options, add_device, add_table_out, exit_on_user_error, show_tables
from repl_mm.engine.errors import explain

if TYPE_CHECKING:
    from mmengine.config import Config

    from repl_mm.analysis.recoverability import Losses
    from repl_mm.benchmark.plan import Plan, Saving


def percentage(text: str) -> float:
    number = text.removesuffix('%')
    try:
        value = float(number) / 100
    except ValueError:
        value = 0
    if number == text or not 0 < value < 1:
        raise ArgumentTypeError(f'a percentage between 0% and 100% such as 15%, got {text!r}')
    return value


def percent(value: float | None) -> str:
    return '' if value is None else f'{100 * value:.1f} %'


def as_table(plan: Plan, *, predicted: bool, losses: Losses | None) -> Table:
    whole = 'whole network' if predicted else 'measured'
    head = ['sites', 'form', 'predicted time', whole, 'predicted memory', whole]
    head += [] if losses is None else [f'{losses.metric} lost, sum of blocks']
    rows = []
    for trial in plan.trials:
        form = ', '.join(f'{k}={v}' for k, v in trial.repl.items() if k not in ('policy', 'sites')) or 'plain'
        figures = (trial.predicted.time, trial.measured.time, trial.predicted.memory, trial.measured.memory)
        lost = [] if losses is None else [f'{trial.price:+.4g}']
        rows.append([' '.join(f'{s}.{i}' for s, i in trial.repl['sites']), form, *map(percent, figures), *lost])
    return Table(head, 'll' + 'r' * (len(head) - 2), rows, title='saved of E2E')


def shortfall(plan: Plan, target: Saving) -> str:
    """What was not reached, and why."""
    missed = [
        f'{name}: {percent(asked)} asked, {percent(got)} reached, and {percent(most)} is what leaving out '
        f'{plan.positions[1]} blocks altogether saves'
        for name, asked, got, most in (
            ('time', target.time, plan.chosen.measured.time, plan.bound.time),
            ('memory', target.memory, plan.chosen.measured.memory, plan.bound.memory),
        )
        if asked is not None and got < asked
    ]
    word = (
        f'Not reached. {"; ".join(missed)}.\n{plan.positions[0]} blocks can be replaced, {plan.positions[1]} at once.'
    )
    if plan.frozen:
        word += f' {len(plan.frozen)} more lie in frozen stages, where replacing saves next to nothing.'
    if plan.chosen.measured.share_of(target) <= 0:
        return f'{word}\nIts sites save nothing here: train it as it is.'
    return f'{word}\nThe nearest that was found:'


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=' '.join(__doc__.splitlines()[:3]))
    parser.add_argument('config', help='config of a ResNet, ViT or Swin, of a host library or of this one')
    parser.add_argument('--save-time', type=percentage, metavar='PERCENT', help='of the time of a step, such as 15%%')
    parser.add_argument('--save-memory', type=percentage, metavar='PERCENT', help='of the peak memory of a step')
    parser.add_argument('--batch-size', type=int, default=2, help='images in a batch (default: %(default)s)')
    parser.add_argument('--size', nargs=2, type=int, default=[224, 224], metavar=('HEIGHT', 'WIDTH'))
    parser.add_argument('--backend', default='fp32', help=f'out of {", ".join(BACKENDS)}; joined by + (default: fp32)')
    parser.add_argument(
        '--predict', metavar='DEVICE', help='measure nothing, predict for a100, h100 or a .json file that describes one'
    )
    parser.add_argument(
        '--by', type=Path, metavar='FILE',
        help='recoverability.json of the trained network: not the fewest sites, but those that cost the least score',
    )  # fmt: skip
    parser.add_argument('--seconds', type=float, default=20, help='time of a measurement (default: %(default)s)')
    add_device(parser)
    add_table_out(parser)
    add_cfg_options(parser)
    return parser


def find_losses(path: Path, config: Config) -> Losses:
    """What each block of the network of a config costs."""
    from repl_mm.analysis.recoverability import read_losses
    from repl_mm.backbones.configs import replaceable
    from repl_mm.cli.runner import build_model

    return read_losses(path, build_model(replaceable(config)).backbone)


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.save_time is None and args.save_memory is None:
        raise ValueError('say what to save: --save-time 15%, --save-memory 15%, or both')
    if min(args.batch_size, *args.size) < 1:
        raise ValueError('--batch-size and --size are at least 1')
    if not 0 <= args.seconds <= 3600:
        raise ValueError(f'--seconds is from 0 to 3600, got {args.seconds}')

    import torch
    from mmengine.device import get_device
    from mmengine.logging import MMLogger

    from repl_mm.benchmark.devices import find_device
    from repl_mm.benchmark.fake import LEFT_OUT
    from repl_mm.benchmark.plan import Saving, describe, make_plan
    from repl_mm.benchmark.predict import check_predictable, conditions
    from repl_mm.benchmark.step import check_training_backends
    from repl_mm.benchmark.timing import describe as describe_machine
    from repl_mm.cli.config import load_scoped_config

    target = Saving(args.save_time, args.save_memory)
    check_training_backends([args.backend])
    config = load_scoped_config(args, sections=('model', 'optim_wrapper'))
    MMLogger.get_instance('mmengine', log_level='WARNING')
    if args.predict:
        device = find_device(args.predict)
        check_predictable(args.backend, device)
    else:
        with explain(f'cannot use --device {args.device}'):
            device = torch.zeros(1, device=args.device or get_device()).device
    losses = find_losses(args.by, config) if args.by is not None else None
    console = Console(log_path=False)
    with explain(f'cannot plan for {args.config}'), console.status('') as status:

        def report(text: str) -> None:
            console.log(text)
            status.update(text)

        plan = make_plan(
            config, target, batch=args.batch_size, size=tuple(args.size), backend=args.backend, device=device,
            seconds=args.seconds, losses=losses, report=report,
        )  # fmt: skip
    show_tables([as_table(plan, predicted=bool(args.predict), losses=losses)], args.out)
    run = f'Batch {args.batch_size}, {args.size[0]} x {args.size[1]}, {args.backend}'
    if args.predict:
        print(f'{run}; E2E takes {plan.mib:,.0f} MiB and {1e3 * plan.seconds:,.1f} ms a step.')
        print(conditions(args.predict, [args.backend], LEFT_OUT[config.default_scope]))
    else:
        print(f'{run}; {describe_machine(device)}')
    if not plan.reached:
        print(shortfall(plan, target))
    if plan.chosen.measured.share_of(target) > 0:
        # What is inherited would be merged with it.
        fresh = dict(_delete_=True) if config.model.backbone.get('repl') else {}
        print(f"model = dict(backbone=dict(type='{plan.backbone}', {describe(fresh | plan.chosen.repl)}))")
