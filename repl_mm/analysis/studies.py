"""Studies: the rows of a table of a paper, each a config that is trained with several seeds, from the same weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from mmengine.config import Config

from repl_mm.engine.errors import explain

Profile = Literal['full', 'small']
ROW_KEYS = {'name', 'config', 'small', 'options', 'versus', 'published', 'note'}
STUDY_KEYS = {'title', 'metric', 'seeds', 'rows', 'smaller'}
PUBLISHED_KEYS = {'score', 'memory_gb', 'epoch_s'}


@dataclass(frozen=True)
class Row:
    """What a row of a study trains.

    Attributes:
        name: Its name in the table.
        config: What it trains, complete; the seed is set by each run.
        source: The file of the config, without its ending.
        versus: The row that it is compared with and whose model's weights it starts from, usually E2E; None where it
            is such a row itself.
        published: What the paper prints: ``score``, ``memory_gb``, ``epoch_s``; what it does not print is left out.
        note: What has to be said beside it.
        start: The row's config, or that of ``versus``, whose model gives the weights at the start.
    """

    name: str
    config: Config
    source: str
    versus: str | None
    start: Config
    published: Mapping[str, float] = field(default_factory=dict)
    note: str = ''

    @property
    def key(self) -> str:
        """Name of the folder of its runs: the same for rows, of whatever study, that train the same."""
        content = [self.config.to_dict(), self.start.to_dict()]
        text = json.dumps(content, sort_keys=True, default=str)
        return f'{self.source}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


@dataclass(frozen=True)
class Study:
    """A table: its rows in order, the metric that they are scored by, and what is smaller than in the paper."""

    title: str
    metric: str
    seeds: int
    rows: tuple[Row, ...]
    smaller: str = ''


def load_study(path: Path, profile: Profile) -> Study:
    """Read a study's file, such as ``configs/studies/2026_table_1.py``.

    Args:
        path: The file. Paths of configs in it start from its folder.
        profile: ``'full'``, the paper's recipe, or ``'small'``, what each row names as ``small``; rows without it are
            left out.

    Raises:
        ValueError: A name is given twice or unknown, a config cannot be read, options change nothing, or nothing is
            left to train.
    """
    if profile not in get_args(Profile):
        raise ValueError(f'the profile is one of {", ".join(get_args(Profile))}, got {profile!r}')
    with explain(f'cannot read the study {path}', errors=Exception):
        content = Config.fromfile(path).to_dict()
    if missing := {'title', 'metric', 'rows'} - set(content):
        raise ValueError(f'{path} is no study: it has no {", ".join(sorted(missing))}')
    _refuse_unknown(content, STUDY_KEYS, what=str(path))
    given = [row for row in _checked_rows(content['rows'], path) if profile == 'full' or 'small' in row]
    if not content['rows']:
        raise ValueError(f'{path} has no row')
    if not given:
        raise ValueError(f'{path} has no row with a small config: use --profile full')
    names = [row['name'] for row in given]
    read = cache(_read_config)  # rows have files in common
    configs = {row['name']: _with_options(read(_config_path(path.parent, row, profile)), row) for row in given}
    for row in given:
        if row.get('versus', row['name']) not in names:
            raise ValueError(
                f'{path}: the row {row["name"]!r} is to be compared with {row["versus"]!r}, which is none of the rows: '
                f'{", ".join(names)}'
            )
    seeds = content.get('seeds', 5)
    if not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f'{path}: seeds is a number from 1, got {seeds!r}')
    return Study(
        title=content['title'],
        metric=content['metric'],
        seeds=seeds,
        smaller=content.get('smaller', '') if profile == 'small' else '',
        rows=tuple(
            Row(
                name=row['name'],
                config=configs[row['name']],
                source=_config_path(path.parent, row, profile).stem,
                versus=row.get('versus'),
                start=configs[row.get('versus', row['name'])],
                published=row.get('published', {}),
                note=row.get('note', ''),
            )
            for row in given
        ),
    )


def _checked_rows(rows: Any, path: Path) -> Sequence[Mapping[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f'{path}: rows is a list of dicts with name and config, got {rows!r:.80}')
    for at, row in enumerate(rows, start=1):
        if missing := {'name', 'config'} - set(row):
            raise ValueError(f'{path}: row {at} has no {", ".join(sorted(missing))}')
        _refuse_unknown(row, ROW_KEYS, what=f'{path}: the row {row["name"]!r}')
        _refuse_unknown(row.get('published', {}), PUBLISHED_KEYS, what=f'{path}: published of the row {row["name"]!r}')
    names = [row['name'] for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'{path} has two rows of one name: {", ".join(twice)}')
    return rows


def _refuse_unknown(given: Mapping[str, Any], known: set[str], *, what: str) -> None:
    if unknown := sorted(set(given) - known):
        raise ValueError(f'{what} has {", ".join(unknown)}, which mean nothing here: {", ".join(sorted(known))} do')


def _config_path(folder: Path, row: Mapping[str, Any], profile: Profile) -> Path:
    return folder / row['config' if profile == 'full' else 'small']


def _read_config(path: Path) -> Config:
    with explain(f'cannot read the config {path}', errors=Exception):
        return Config.fromfile(path)


def _with_options(config: Config, row: Mapping[str, Any]) -> Config:
    """A copy of a config with the options of a row.

    Raises:
        ValueError: They cannot be applied, or change nothing.
    """
    changed = config.copy()
    with explain(f'cannot apply the options of the row {row["name"]!r}', errors=Exception):
        changed.merge_from_dict(row.get('options', {}))
    if row.get('options') and changed.to_dict() == config.to_dict():
        raise ValueError(f'the options of the row {row["name"]!r} change nothing in {row["config"]}: {row["options"]}')
    return changed
