"""Contract: a study's rows are what its file says, runs are shared by what they train, and differences are paired.

Oracles: scipy's paired t-test, and statistics by hand.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from scipy import stats

from repl_mm.analysis.cost import Complexity
from repl_mm.analysis.runs import Run
from repl_mm.analysis.studies import Row, Study, load_study
from repl_mm.analysis.study_report import as_csv, as_json, as_markdown, as_png, as_table, confidence, find

STUDIES = sorted((Path(__file__).parents[2] / 'configs/studies').glob('*.py'))
HEAD = "title = 'A table'\nmetric = 'accuracy/top1'\nseeds = 2\n"
ROWS = [
    dict(name='E2E', config='net.py', small='net.py'),
    dict(name='other', config='net.py', options={'model.depth': 3}, versus='E2E'),
]


@pytest.fixture
def study(tmp_path):
    """Writes a study's file, with a config beside it."""
    (tmp_path / 'net.py').write_text("model = dict(type='Net', depth=2)\n")

    def write(rows=ROWS, head=HEAD):
        path = tmp_path / 'study.py'
        path.write_text(f'{head}rows = {rows!r}\n')
        return path

    return write


def test_rows_are_configs_with_options(study):
    found = load_study(study(), 'full')
    assert [row.config.model.depth for row in found.rows] == [2, 3]
    assert [row.start.model.depth for row in found.rows] == [2, 2]  # both from the weights of the first
    assert (found.seeds, found.smaller) == (2, '')
    assert [row.name for row in load_study(study(), 'small').rows] == ['E2E']


def test_runs_are_shared_by_those_that_train_the_same(study):
    first, second = load_study(study(), 'full').rows
    renamed = [dict(ROWS[0], name='plain'), dict(ROWS[1], versus='plain')]
    assert [row.key for row in load_study(study(renamed), 'full').rows] == [first.key, second.key]
    assert first.key != second.key
    alone = [dict(ROWS[1], versus='other')]  # which starts from other weights
    assert load_study(study(alone), 'full').rows[0].key != second.key


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([ROWS[0], ROWS[0]], 'has two rows of one name: E2E'),
        ([dict(ROWS[1], versus='nobody')], "'other' is to be compared with 'nobody', which is none of the rows: other"),
        ([dict(ROWS[0], options={'model.depth': 2})], "the options of the row 'E2E' change nothing in net.py"),
        ([dict(ROWS[0], config='nix.py')], 'cannot read the config .*nix.py'),
        ([dict(name='E2E')], 'row 1 has no config'),
        ([dict(ROWS[0], tolerance=3)], "the row 'E2E' has tolerance, which mean nothing here"),
        ([dict(ROWS[0], published=dict(top1=3))], "published of the row 'E2E' has top1"),
        ([3], 'rows is a list of dicts with name and config'),
        ([], 'has no row'),
    ],
)
def test_a_study_that_is_none(study, rows, message):
    with pytest.raises(ValueError, match=message):
        load_study(study(rows), 'full')


def test_other_bad_studies(study, tmp_path):
    with pytest.raises(ValueError, match='has no row with a small config: use --profile full'):
        load_study(study([dict(name='E2E', config='net.py')]), 'small')
    with pytest.raises(ValueError, match='it has no metric, title'):
        load_study(study(head='seeds = 1\n'), 'full')
    with pytest.raises(ValueError, match='has epochs, which mean nothing here'):
        load_study(study(head=f'{HEAD}epochs = 3\n'), 'full')
    with pytest.raises(ValueError, match='seeds is a number from 1, got 0'):
        load_study(study(head=HEAD.replace('seeds = 2', 'seeds = 0')), 'full')
    with pytest.raises(ValueError, match=r'cannot read the study .*nix'):
        load_study(tmp_path / 'nix.py', 'full')


@pytest.mark.parametrize(
    ('path', 'profile'),
    [
        pytest.param(path, profile, id=f'{path.stem}, {profile}')
        for path in STUDIES
        for profile in ('full', 'small')
        if profile == 'full' or 'small=' in path.read_text()
    ],
)
def test_the_papers_tables(path, profile):
    found = load_study(path, profile)
    assert len({row.key for row in found.rows}) == len(found.rows)
    # What is compared differs in the model alone, unless the table is about recipes.
    for row in found.rows:
        if row.versus:
            assert row.config.train_dataloader == row.start.train_dataloader
            assert row.config.optim_wrapper.optimizer == row.start.optim_wrapper.optimizer
    assert bool(found.smaller) == (profile == 'small')


def run(score, step=0.5):
    cost = dict(step_time_s=dict(p50=step), s_per_epoch=9.0, memory_bytes=dict(peak_resident=3 * 2**20))
    return Run('run', cost, Complexity(10, 10, 4_000_000), True, [], {'accuracy/top1': [(1, 0.0), (2, score)]})


@pytest.fixture
def found():
    plain = Row('E2E', Config(), 'net', None, Config(), dict(score=90.0, memory_gb=4.0))
    other = Row('RepL', Config(), 'net', 'E2E', Config(), dict(score=91.5, memory_gb=3.0), 'a | note')
    return Study('A table', 'accuracy/top1', 3, (plain, other), 'few images')


def test_differences_are_paired(found):
    ours, theirs = {0: 81.0, 1: 84.0, 2: 86.5}, {0: 80.0, 1: 85.0, 2: 84.0, 3: 10.0}  # the last has no partner
    runs = {
        'RepL': {seed: run(score, step=0.4) for seed, score in ours.items()},
        'E2E': {seed: run(score) for seed, score in theirs.items()},
    }
    plain, other = find(found, runs, {'RepL': 1})
    oracle = stats.ttest_rel([81.0, 84.0, 86.5], [80.0, 85.0, 84.0])
    np.testing.assert_allclose(other.interval, oracle.confidence_interval(0.95))
    assert other.difference == pytest.approx((1 - 1 + 2.5) / 3)
    assert other.score == pytest.approx(83.8333333)
    assert other.deviation == pytest.approx(np.std([81, 84, 86.5], ddof=1))
    assert (other.seeds, plain.seeds, other.diverged, plain.diverged) == (3, 4, 1, 0)
    assert (plain.difference, plain.interval, other.published_difference) == (None, None, 1.5)
    assert (other.step_ms, other.memory_mib, other.epoch_s) == (400, 3, 9)
    [_, cells] = as_table(found, [plain, other]).rows
    assert cells[1].endswith(', 1 diverged')
    assert cells[9] == '400.0 (-20.0 %)'
    assert cells[10] == '3.00 (-25.0 %)'


def test_one_seed_has_no_interval(found):
    _, other = find(found, {'RepL': {0: run(81.0)}, 'E2E': {0: run(80.0)}}, {})
    assert (other.difference, other.interval, other.deviation) == (1.0, None, None)
    assert confidence([1.0, 1.0, 1.0]) == (1.0, 1.0)


def test_a_row_without_a_finished_run(found):
    findings = find(found, {'E2E': {0: run(80.0)}}, {'RepL': 2})
    assert as_table(found, findings).rows[1][1:4] == ['–, 2 diverged', '0', '–']
    assert as_png(found, findings).startswith(b'\x89PNG')


def test_the_page(found):
    findings = find(found, {'E2E': {0: run(80.0)}, 'RepL': {0: run(81.0)}}, {})
    page = as_markdown(found, findings, made_by='tools/study.py x', conditions='Measured.')
    assert 'Smaller than in the paper: few images' in page
    assert r'- RepL: a \| note' in page
    assert json.loads(as_json(found, findings))['rows'][1]['difference'] == 1.0
    assert as_csv(findings).splitlines()[2].startswith('RepL,E2E,1,0,81.0,')


def test_another_metric(found):
    other = Study('A table', 'mIoU', 3, found.rows)
    with pytest.raises(ValueError, match='was not validated with mIoU, but with accuracy/top1'):
        find(other, {'E2E': {0: run(80.0)}}, {})
