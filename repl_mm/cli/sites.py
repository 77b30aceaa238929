"""Show which blocks of a config's backbone are replaced, by what, and why other positions were refused."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from repl_mm.cli.common import add_arguments, exit_on_user_error
from repl_mm.engine.errors import explain

if TYPE_CHECKING:
    from repl_mm.backbones import ReplMixin

KEPT, REPLACED = '■', '□'


def stage_table(backbone: ReplMixin) -> Table:
    """One row per stage: how its blocks are used."""
    table = Table('stage', 'blocks', f'kept {KEPT}  replaced {REPLACED}', title=backbone.layout().name)
    for stage, (name, blocks) in enumerate(backbone.stages().items()):
        replaced = {site.index for site in backbone.selection.sites if site.stage == stage}
        table.add_row(name, str(len(blocks)), ' '.join(REPLACED if i in replaced else KEPT for i in range(len(blocks))))
    return table


def site_table(backbone: ReplMixin) -> Table:
    """One row per site: what stands there and which blocks it reads."""
    table = Table()
    for column in ('site', 'replaced by', 'parameters', 'left', 'right'):
        table.add_column(column, no_wrap=True, justify='right' if column == 'parameters' else 'left')
    names = list(backbone.stages())
    for site in backbone.selection.sites:
        name = names[site.stage]
        layer = backbone.stages()[name][site.index]
        beside = [f'{name}.{site.index + step}' if backbone.form != 'drop' else '-' for step in (-1, 1)]
        what = 'nothing' if backbone.form == 'drop' else type(layer).__name__
        own = sum(p.numel() for p in layer.parameters())
        table.add_row(f'{name}.{site.index}  ({site.stage}, {site.index})', what, f'{own:,}', *beside)
    return table


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    add_arguments(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.registry import MODELS, init_default_scope

    from repl_mm.backbones import ReplMixin
    from repl_mm.cli.config import load_config

    config = load_config(args, sections=('model',))
    init_default_scope(config.default_scope)
    with explain(f'cannot build the backbone of {config.filename}'):
        backbone = MODELS.build(config.model.backbone)
    if not isinstance(backbone, ReplMixin) or backbone.selection is None:
        raise ValueError(
            f"{config.filename} replaces nothing: give its backbone type='repl_mm.ReplResNet' (or another of "
            "repl_mm.backbones) and repl=dict(policy='interval', every=4)"
        )
    console = Console()
    console.print(stage_table(backbone))
    console.print(site_table(backbone))
    names = list(backbone.stages())
    for site, reason in backbone.selection.refusals:
        console.print(f'{names[site.stage]}.{site.index} is not replaced: {reason}', highlight=False)
    if backbone.selection.note:
        console.print(backbone.selection.note, highlight=False)
