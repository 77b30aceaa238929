"""Show which blocks of a config's backbone are replaced, by what, and why other positions were refused."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from repl_mm.analysis.tables import Table
from repl_mm.cli.common import add_arguments, add_table_out, exit_on_user_error, show_tables
from repl_mm.engine.errors import explain

if TYPE_CHECKING:
    from repl_mm.backbones import ReplMixin

KEPT, REPLACED = '■', '□'


def stage_table(backbone: ReplMixin) -> Table:
    """One row per stage: how its blocks are used."""
    rows = []
    for stage, (name, blocks) in enumerate(backbone.repl_stages().items()):
        replaced = {site.index for site in backbone.selection.sites if site.stage == stage}
        row = ' '.join(REPLACED if i in replaced else KEPT for i in range(len(blocks)))
        rows.append([name, str(len(blocks)), row])
    return Table(['stage', 'blocks', f'kept {KEPT}  replaced {REPLACED}'], 'lrl', rows, title=backbone.title)


def site_table(backbone: ReplMixin) -> Table:
    """One row per site: what stands there and which blocks it reads."""
    from repl_mm.layers import layer_at

    rows = []
    names = list(backbone.repl_stages())
    for site in backbone.selection.sites:
        name = names[site.stage]
        layer = layer_at(backbone.repl_stages()[name][site.index])
        beside = [f'{name}.{site.index + step}' for step in (-1, 1)]
        own = sum(p.numel() for p in layer.parameters())
        rows.append([f'{name}.{site.index}  ({site.stage}, {site.index})', type(layer).__name__, f'{own:,}', *beside])
    return Table(['site', 'replaced by', 'parameters', 'left', 'right'], 'llrll', rows)


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='a config file')
    add_table_out(parser)
    add_arguments(parser)
    return parser


@exit_on_user_error()
def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)

    from mmengine.registry import MODELS, init_default_scope

    from repl_mm.backbones.configs import require_sites
    from repl_mm.cli.config import load_config

    config = load_config(args, sections=('model',))
    init_default_scope(config.default_scope)
    require_sites(config)
    with explain(f'cannot build the backbone of {config.filename}'):
        backbone = MODELS.build(config.model.backbone)
    console = Console()
    show_tables([stage_table(backbone), site_table(backbone)], args.out)
    names = list(backbone.repl_stages())
    for site, reason in backbone.selection.refusals:
        console.print(
            f'{names[site.stage]}.{site.index} is not replaced: {reason}', highlight=False, markup=False, soft_wrap=True
        )
    if candidates := backbone.selection.candidates:
        console.print(
            f'These are the sites of the first epoch; at each further one, training chooses as many of '
            f'{len(candidates)} positions',
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if backbone.selection.note:
        console.print(backbone.selection.note, highlight=False, markup=False, soft_wrap=True)
