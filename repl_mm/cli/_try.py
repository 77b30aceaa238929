"""The steps of ``try``: each leaves its files in one folder, and is left out where they are there already."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console

from repl_mm import __version__
from repl_mm.analysis.html import as_html
from repl_mm.analysis.records import read_cost
from repl_mm.analysis.tables import escape
from repl_mm.backbones.configs import replaceable
from repl_mm.benchmark.devices import find_device
from repl_mm.benchmark.fake import LEFT_OUT
from repl_mm.benchmark.plan import Plan, Saving, describe, make_plan
from repl_mm.benchmark.predict import conditions
from repl_mm.cli.common import launch
from repl_mm.cli.config import load_scoped_config
from repl_mm.cli.plan import as_table, percent, shortfall
from repl_mm.cli.runner import build_model
from repl_mm.cli.warm_start import load_batches
from repl_mm.engine.errors import explain, printable
from repl_mm.engine.files import write_atomic
from repl_mm.engine.weights import load_strict, read_checkpoint


class Attempt:
    """A network with and without sites, in a folder.

    Args:
        args: Of the tool.
        folder: Where all goes.

    Raises:
        ValueError: A config without data or with sites, a checkpoint that does not fit, or a folder that was begun
            with others.
    """

    def __init__(self, args: Namespace, folder: Path):
        self.args, self.folder = args, folder
        training, testing = ('train_cfg', 'optim_wrapper'), ('test_dataloader', 'test_cfg', 'test_evaluator')
        sections = ('model', 'train_dataloader', *(testing if args.checkpoint else training))
        self.config = load_scoped_config(args, sections=sections)
        MMLogger.get_instance('mmengine', log_level='ERROR')
        self.device = find_device(args.predict)
        self.backend = 'amp' if 'Amp' in str((self.config.get('optim_wrapper') or {}).get('type')) else 'fp32'
        if self.config.model.get('backbone', {}).get('repl'):
            raise ValueError(f'{args.config} replaces blocks already: give the config of the network without sites')
        replaceable(self.config)  # raises where there are no sites
        if args.checkpoint:
            args.checkpoint = str(Path(args.checkpoint).resolve())
            load_strict(build_model(self.config), read_checkpoint(args.checkpoint), source=args.checkpoint)
        self.config.pop('work_dir', None)
        if args.steps:
            use_steps(self.config, args.steps)
        self.step, self.of = 0, 4 if args.checkpoint else 7
        self._begin()

    @property
    def trained(self) -> tuple[Path, Path]:
        """The work directories of the two trainings."""
        return self.folder / 'E2E', self.folder / 'RepL'

    @property
    def network(self) -> Path:
        """The config with sites."""
        return self.folder / 'repl.py'

    @property
    def warm(self) -> Path:
        """The checkpoint that is fitted to the trained network."""
        return self.folder / 'warm.pth'

    def _begin(self) -> None:
        """Write what was asked for into the folder, or compare it with what is there."""
        asked = {name: getattr(self.args, name) for name in ('checkpoint', 'steps', 'save_time', 'predict')}
        content = json.dumps(dict(asked, repl_mm=__version__, config=self.config.pretty_text), indent=2)
        path = self.folder / 'asked.json'
        if path.exists() and path.read_text() != content:
            raise ValueError(f'{self.folder} was begun with another config or other options: give another --work-dir')
        write_atomic(path, content.encode())
        write_atomic(self.folder / 'e2e.py', self.config.pretty_text.encode())

    def say(self, what: str) -> None:
        """Announce a step."""
        self.step += 1
        Console().print(f'== {self.step} of {self.of}: {printable(what)}', style='bold', markup=False, soft_wrap=True)

    def call(self, tool: str, *args: Any, log: Path | None = None) -> None:
        """Run a tool, which says itself what goes wrong."""
        if code := launch(tool, *map(str, args), log=log):
            if log is not None:
                print(printable(log.read_text(errors='replace').splitlines()[-1]))
            raise ValueError(f'{tool} ended with code {code}, see above: the same command goes on from there')

    @cached_property
    def batch(self) -> tuple[int, tuple[int, int]]:
        """Images in a batch of the training, and their height and width, as the first batch has them."""
        [batch] = load_batches(self.config, number=1)
        with explain('cannot prepare a batch of the training data'):
            inputs = build_model(self.config).data_preprocessor(batch, training=True)['inputs']
            number, _, height, width = inputs.shape
        return number, (height, width)

    def run(self) -> None:
        """Take all steps."""
        plan = self.plan()
        if plan['repl'] is None:
            self.of = 2
            self.report(plan, [])
            return
        if self.args.checkpoint:
            self.fit()
        else:
            self.train()
        self.say('deploying the network with sites')
        log = self.folder / 'deploy.log'
        if not (self.folder / 'deployed').exists():
            log.unlink(missing_ok=True)
            source = self.warm if self.args.checkpoint else (self.trained[1] / 'last_checkpoint').read_text().strip()
            self.call('deploy', self.network, source, self.folder / 'deployed', log=log)
        self.report(plan, ['## Deployed', code(log.read_text(errors='replace'))])

    def plan(self) -> dict[str, Any]:
        """Choose the sites for the batch and the images of the config, and write its twin with them."""
        self.say(f'planning for {self.args.predict}')
        path = self.folder / 'plan.json'
        if path.exists():
            return json.loads(path.read_text())
        (number, size), target = self.batch, Saving(self.args.save_time, None)
        with explain(f'cannot plan for {self.args.config}'):
            plan = make_plan(
                self.config, target, batch=number, size=size, backend=self.backend, device=self.device, seconds=0,
                report=lambda text: print(f'   {text}'),
            )  # fmt: skip
        useful = plan.chosen.measured.share_of(target) > 0
        found = dict(
            repl=plan.chosen.repl if useful else None,
            saved=dict(time=plan.chosen.measured.time, memory=plan.chosen.measured.memory),
            text=self.describe(plan, target, number, size),
        )
        if useful:
            twin = replaceable(self.config)
            twin.model.backbone.repl = plan.chosen.repl
            write_atomic(self.network, twin.pretty_text.encode())
            found['line'] = f"model = dict(backbone=dict(type='{plan.backbone}', {describe(plan.chosen.repl)}))"
        write_atomic(path, json.dumps(found, indent=2).encode())
        return found

    def describe(self, plan: Plan, target: Saving, number: int, size: Sequence[int]) -> str:
        """The plan as a section of the report."""
        said = (
            f'A batch of {number}, {size[0]} x {size[1]}, {self.backend}: E2E takes {plan.mib:,.0f} MiB and '
            f'{1e3 * plan.seconds:,.1f} ms a step.'
        )
        assumed = conditions(self.args.predict, [self.backend], LEFT_OUT[self.config.default_scope])
        parts = [as_table(plan, predicted=True, losses=None).markdown(), escape(said), escape(assumed)]
        if not plan.reached:
            parts.insert(1, f'**{escape(shortfall(plan, target).replace(chr(10), " "))}**')
        return '\n\n'.join(parts)

    def train(self) -> None:
        """Both trainings from the same weights, and their comparison."""
        start = self.config.get('load_from') or self.folder / 'seed.pth'
        self.say('a seed checkpoint, which both trainings start from')
        if not self.config.get('load_from') and not Path(start).exists():
            self.call('seed_checkpoint', self.folder / 'e2e.py', start)
        for work_dir, name in zip(self.trained, ('e2e.py', 'repl.py'), strict=True):
            self.say(f'training {work_dir.name}')
            cost = work_dir / 'cost.json'
            if cost.exists() and read_cost(cost)['complete']:
                continue
            resume = ['--resume'] * any(work_dir.glob('*.pth'))
            config = self.folder / f'{work_dir.name}.py'
            write_atomic(config, f"_base_ = './{name}'\nload_from = {str(start)!r}\n".encode())
            self.call('train', config, '--work-dir', work_dir, *resume)
        self.say('comparing the two')
        self.call('compare', *self.trained, '--out', self.folder)

    def fit(self) -> None:
        """Fit the network with sites to the trained one."""
        self.say('fitting the network with sites to the trained one, and scoring it after each step')
        if not self.warm.with_suffix('.json').exists():
            self.call('warm_start', self.network, self.args.checkpoint, self.warm)

    def report(self, plan: dict[str, Any], deployed: Sequence[str]) -> None:
        """Write all that was found on one page."""
        self.say('the report')
        name = escape(Path(self.args.config).name)
        parts = [f'# Replacement Learning for {name}', f'repl_mm {__version__}.']
        if plan['repl'] is not None:
            parts += [*self.summary(plan['saved']), 'The line to paste:', code(plan['line'])]
        parts += [f'## What it would save on {escape(self.args.predict)}', plan['text']]
        if plan['repl'] is not None:
            parts += self.scores()
        markdown = '\n\n'.join([*parts, *deployed]) + '\n'
        write_atomic(self.folder / 'report.md', markdown.encode(errors='backslashreplace'))
        page = as_html(markdown, title=f'Replacement Learning for {Path(self.args.config).name}', folder=self.folder)
        write_atomic(self.folder / 'report.html', page.encode(errors='backslashreplace'))
        print(printable(f'Wrote {self.folder / "report.html"}'))

    def summary(self, saved: dict[str, float]) -> list[str]:
        """What it saves and what it scores, a sentence each."""
        said = [
            f'Predicted for {escape(self.args.predict)}: a step saves {percent(saved["time"])} of the time and '
            f'{percent(saved["memory"])} of the memory.'
        ]
        comparison = self.folder / 'comparison.json'
        if not self.args.checkpoint and comparison.exists():
            row = next(iter(json.loads(comparison.read_text())['rows']))
            if row['change_unit'] == 'difference' and None not in row['values']:
                e2e, repl = row['values']
                said.append(f'{escape(row["label"])}: {repl:.2f}, and {e2e:.2f} without sites.')
        return said

    def scores(self) -> list[str]:
        """What was trained or fitted, as a section of the report."""
        if self.args.checkpoint:
            return [
                '## What is left of its score, without training',
                self.warm.with_suffix('.md').read_text(),
                'To train on from here:',
                code(
                    shlex.join(
                        ['python', 'tools/train.py', str(self.network), '--cfg-options', f'load_from={self.warm}']
                    )
                ),
            ]
        length = f'{self.args.steps} steps, with a schedule that ends there: a first look' if self.args.steps else ''
        pictures = [f'![{name}]({name})' for name in ('comparison.png', 'bubbles.png') if (self.folder / name).exists()]
        return [
            '## What it scores',
            f'One training of each from the same weights{escape(", of " + length) if length else ""}. What differs by '
            'little may be chance: several seeds tell, which `tools/study.py` trains.',
            (self.folder / 'comparison.md').read_text(),
            *pictures,
        ]


def use_steps(config: Config, steps: int) -> None:
    """Let a training be one of so many steps, warmed up for a tenth of them and annealed to nothing."""
    warmup = max(1, steps // 10)
    config.train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=steps)
    config.param_scheduler = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=warmup),
        dict(type='CosineAnnealingLR', by_epoch=False, begin=warmup, end=steps, T_max=steps - warmup),
    ]
    hooks = dict(config.get('default_hooks') or {})
    hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch=False, interval=max(1, steps // 4), max_keep_ckpts=1)
    hooks['logger'] = dict(type='LoggerHook', interval=max(1, steps // 40), log_metric_by_epoch=False)
    config.default_hooks = hooks
    config.log_processor = dict(config.get('log_processor') or {}, by_epoch=False)


def code(text: str) -> str:
    """A block of Markdown that shows a text as it is."""
    return '\n'.join(['~~~~~~', *(printable(line) for line in text.splitlines()), '~~~~~~'])
