"""Contract: the planner takes the fewest sites whose measured saving is enough, and says plainly where none are.

Given what each block costs of a score, it takes the sites of the least sum in place of the fewest.

Oracles: brute force over all choices of sites; networks whose sites save a given amount each; counts of
the cost model; the config line that is printed.
"""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import run
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from repl_mm.analysis.cost import count_cost
from repl_mm.analysis.recoverability import Losses
from repl_mm.benchmark import plan as planning
from repl_mm.benchmark.devices import find_device
from repl_mm.benchmark.plan import Saving, make_plan, replaceable
from repl_mm.benchmark.predict import predict_step
from repl_mm.benchmark.site_profile import SiteProfile, measure_site_profile
from repl_mm.benchmark.step import TrainingStep
from repl_mm.benchmark.training import MIB, MeasuredStep
from repl_mm.benchmark.variants import with_repl
from repl_mm.layers.config import variants_of
from repl_mm.sites import Site

CONFIGS = Path(__file__).parents[2] / 'configs'
RESNET = CONFIGS / 'demo/resnet32_digits.py'
VIT = CONFIGS / 'demo/vit-tiny_digits.py'
OPTIONS = dict(batch=4, size=(32, 32), backend='fp32', device=torch.device('cpu'), seconds=0, report=lambda text: None)
STEP = {key: OPTIONS[key] for key in ('batch', 'backend', 'device')} | dict(size=(64, 64))


@pytest.fixture
def savings(monkeypatch):
    """Every site saves 4 % of time and 2 % of memory by prediction; what is measured is set by the test."""
    step_seconds, step_mib = 0.5, 256.0  # far apart, so that neither can stand for the other

    def set_up(measured, *, time=(0.04,) * 3, memory=(0.02,) * 3, frozen=()):
        def measure_site_profile(config, forms, **options):
            layout = TrainingStep(config, **STEP).model.backbone.layout()
            eligible = [site for site in layout.eligible() if site not in frozen]
            parts = SiteProfile(layout, eligible, list(frozen), mib=step_mib, seconds=step_seconds)
            for _ in forms:
                parts.site_seconds.append({stage: share * step_seconds for stage, share in enumerate(time)})
                parts.site_mib.append({stage: share * step_mib for stage, share in enumerate(memory)})
            return parts

        asked = []

        def measure_steps(variants, **_):
            repl = variants['RepL'].model.backbone.repl
            asked.append(repl)
            row = dict(model='', variant='', backend='', batch=1, size='')
            saved = measured(repl)
            return [MeasuredStep(**row), MeasuredStep(**row, time=1 - saved[0], memory=1 - saved[1])]

        monkeypatch.setattr(planning, 'measure_site_profile', measure_site_profile)
        monkeypatch.setattr(planning, 'measure_steps', measure_steps)
        return asked

    return set_up


def number(repl) -> int:
    return len(repl['sites'])


def test_the_prediction_holds(savings):
    asked = savings(lambda repl: (0.04 * number(repl), 0.02 * number(repl)))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.10, None), **OPTIONS)
    assert plan.reached
    assert [number(repl) for repl in asked] == [3]
    assert plan.chosen.measured.time == pytest.approx(0.12)
    assert plan.chosen.predicted.time == pytest.approx(0.12)
    assert plan.chosen.predicted.memory == pytest.approx(0.06)
    assert plan.backbone == 'repl_mm.ReplResNetCIFAR'
    assert plan.bound is None


def test_a_prediction_that_promised_too_much_is_corrected(savings):
    asked = savings(lambda repl: (0.021 * number(repl), 0.0))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.10, None), **OPTIONS)
    assert [number(repl) for repl in asked] == [3, 5]
    assert (plan.reached, number(plan.chosen.repl)) == (True, 5)


def test_a_prediction_that_promised_too_little_is_corrected(savings):
    asked = savings(lambda repl: (0.06 * number(repl), 0.0))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.11, None), **OPTIONS)
    assert [number(repl) for repl in asked] == [3, 2]
    assert (plan.reached, number(plan.chosen.repl)) == (True, 2)


def test_one_measurement_without_any_saving_is_not_the_end(savings):
    """It corrects predictions to a quarter, not to nothing: two sites are tried before all that fit."""
    asked = savings(lambda repl: (0.06 * number(repl) if number(repl) > 1 else 0.0, 0.0), time=(0.21,) * 3)
    plan = make_plan(Config.fromfile(RESNET), Saving(0.10, None), **OPTIONS)
    assert [number(repl) for repl in asked] == [1, 2]
    assert (plan.reached, number(plan.chosen.repl)) == (True, 2)


def test_differences_within_noise_leave_the_sites_spread_evenly(savings):
    """0.25 % of what is asked is less than can be measured, so that one site stands in the middle."""
    savings(lambda repl: (1.0, 1.0), time=(0.0404, 0.0404, 0.0405))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.04, None), **OPTIONS)
    assert plan.chosen.repl['sites'] == [(1, 2)]


def test_both_targets_must_be_reached(savings):
    savings(lambda repl: (0.04 * number(repl), 0.021 * number(repl)))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.08, 0.08), **OPTIONS)
    assert (plan.reached, number(plan.chosen.repl)) == (True, 4)


def test_a_leaner_form_comes_before_more_sites(savings):
    savings(lambda repl: (0.02 * number(repl), 0.02 * number(repl) * (3 if repl.get('recompute') else 1)))
    plan = make_plan(Config.fromfile(RESNET), Saving(None, 0.06), **OPTIONS)
    assert plan.reached
    saved_by_plain_sites = 3
    assert number(plan.chosen.repl) <= saved_by_plain_sites


def test_the_stage_that_saves_most_is_taken(savings):
    savings(lambda repl: (0.5, 0.0), time=(0.01, 0.01, 0.1))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.10, None), **OPTIONS)
    (site,) = plan.chosen.repl['sites']
    assert site[0] == 2


def test_time_and_memory_are_weighed_by_what_is_asked_of_each(savings):
    """By hand: of what is asked, a site in stage 0 gives 1 + 1, one in stage 1 4/3 + 0, one in stage 2 0 + 4/3."""
    savings(lambda repl: (1.0, 1.0), time=(0.06, 0.08, 0.0), memory=(0.06, 0.0, 0.08))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.06, 0.06), **OPTIONS)
    assert [site[0] for site in plan.chosen.repl['sites']] == [0]
    predicted = plan.chosen.predicted
    assert (predicted.time, predicted.memory) == (pytest.approx(0.06), pytest.approx(0.06))


def choices(sites):
    """All sets of sites of which no two are neighbours."""
    for number in range(1, len(sites) + 1):
        for chosen in combinations(sites, number):
            if not any(a[0] == b[0] and abs(a[1] - b[1]) == 1 for a, b in combinations(chosen, 2)):
                yield chosen


@pytest.mark.parametrize('seed', range(8))
def test_the_sites_that_cost_least_for_a_saving(savings, seed):
    """Measured as predicted: the plan is then the best of all choices that save enough, of both what is asked for."""
    rng = np.random.default_rng(seed)
    time, memory = rng.uniform(0.01, 0.06, 3), rng.uniform(0.01, 0.06, 3)
    sites = [Site(stage, index) for stage in range(3) for index in (1, 2, 3)]
    loss = dict(zip(sites, rng.choice([-0.25, 0.0, 0.25, 0.5, 1.0, 3.0], 9), strict=True))
    target = Saving(rng.uniform(0.02, 0.12), rng.uniform(0.02, 0.12) if seed % 2 else None)

    def saved(chosen):
        return Saving(*(sum(per[site[0]] for site in chosen) for per in (time, memory)))

    asked = savings(lambda repl: (saved(repl['sites']).time, saved(repl['sites']).memory), time=time, memory=memory)
    plan = make_plan(Config.fromfile(RESNET), target, losses=Losses('', {}, loss), **OPTIONS)
    best = min(sum(loss[site] for site in chosen) for chosen in choices(sites) if saved(chosen).reaches(target))
    assert plan.reached
    assert sum(loss[site] for site in plan.chosen.repl['sites']) == plan.chosen.price == best
    assert len(asked) == 1


def test_what_costs_little_and_saves_too_little_is_corrected(savings):
    """The measured saving is about half of the predicted one, so that more has to be paid."""
    loss = {Site(stage, index): float(stage + 1) for stage in range(3) for index in (1, 2, 3)}
    savings(lambda repl: (0.021 * number(repl), 0.0))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.08, None), losses=Losses('', {}, loss), **OPTIONS)
    assert (plan.reached, plan.chosen.price, number(plan.chosen.repl)) == (True, 1 + 1 + 2 + 2, 4)


def test_losses_hold_for_one_form(savings):
    """Forms that compute the same are tried too, others are not: what they cost is not known."""
    loss = {Site(0, index): 1.0 for index in range(1, 11)}
    options = OPTIONS | dict(size=(32, 32))
    asked = savings(lambda repl: (0.01, 0.0), time=(0.04,))
    make_plan(Config.fromfile(VIT), Saving(0.5, None), losses=Losses('', dict(mlp_fusion=True), loss), **options)
    tried = [repl for repl in asked if repl.get('form') != 'drop']
    assert len(tried) > 1
    assert all(repl['mlp_fusion'] for repl in tried)
    with pytest.raises(ValueError, match=r"known for \{'mlp_fusion': False\}, and there is no plan for sites of this"):
        make_plan(Config.fromfile(VIT), Saving(0.5, None), losses=Losses('', dict(mlp_fusion=False), loss), **options)


class Operations(TorchDispatchMode):
    """Counts floating-point operations; torch's own counter follows modules, which ``autograd.grad`` does not allow."""

    total = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **kwargs or {})
        if count := flop_registry.get(operator.overloadpacket):
            self.total += count(*args, **kwargs or {}, out_val=out)
        return out


@pytest.fixture
def counted_time(monkeypatch):
    """Calls take a second for each floating-point operation; the optimizer's part of a step, one for each parameter."""

    def time_interleaved(calls, **_):
        times = {}
        for name, call in calls.items():
            with Operations() as counted:
                call()
            times[name] = [float(counted.total)] * 5
        return times

    take_step = TrainingStep.__call__

    def step(self):
        take_step(self)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        self.phases[-1] = (*self.phases[-1][:2], float(trained))

    monkeypatch.setattr('repl_mm.benchmark.site_profile.time_interleaved', time_interleaved)
    monkeypatch.setattr(TrainingStep, '__call__', step)


def saved_by_a_site(stage: int, *, form: str = 'channelwise') -> int:
    """One of a block's two convolutions or both, forward and twice that backward, and a second for each parameter."""
    channels, side = 16 * 2**stage, STEP['size'][0] // 2**stage
    convolution = 3 * 2 * STEP['batch'] * side**2 * 9 * channels**2
    block, site = 2 * 9 * channels**2 + 4 * channels, 4 * channels
    return 2 * convolution + block if form == 'drop' else convolution + block - site


def test_a_site_saves_the_time_of_its_own_stage_and_of_its_parameters_in_the_optimizer(counted_time):
    config = replaceable(Config.fromfile(RESNET))
    sites, dropped = measure_site_profile(config, ({}, dict(form='drop')), seconds=0, **STEP).site_seconds
    assert sites == pytest.approx({stage: saved_by_a_site(stage) for stage in range(3)}, rel=1e-9)
    assert dropped == pytest.approx({stage: saved_by_a_site(stage, form='drop') for stage in range(3)}, rel=1e-9)


def test_the_prediction_is_the_sum_of_the_sites_over_the_whole_step(counted_time, monkeypatch):
    row = MeasuredStep(model='', variant='', backend='', batch=4, size='', time=1.0, memory=1.0)
    monkeypatch.setattr(planning, 'measure_steps', lambda variants, **_: [row, row])
    config = Config.fromfile(RESNET)
    with Operations() as counted:
        TrainingStep(replaceable(config), **STEP)()
    plan = make_plan(config, Saving(0.2, None), **OPTIONS | dict(size=(64, 64)))
    plain = [trial for trial in plan.trials if trial.repl.keys() == {'policy', 'sites'}]
    assert plain
    for trial in plain:
        saved = sum(saved_by_a_site(stage) for stage, _ in trial.repl['sites'])
        assert trial.predicted.time == pytest.approx(saved / counted.total)


def test_what_is_out_of_reach_gets_the_best_and_the_bound(savings):
    asked = savings(lambda repl: ((0.05 if repl.get('form') == 'drop' else 0.01) * number(repl), 0.0))
    plan = make_plan(Config.fromfile(RESNET), Saving(0.60, None), **OPTIONS)
    assert not plan.reached
    most = plan.positions[1]
    assert number(plan.chosen.repl) == most == 6
    assert plan.bound.time == pytest.approx(0.05 * most)
    assert len(asked) <= 4


@pytest.mark.parametrize(
    ('path', 'state', 'side'),
    [(RESNET, 4, 64), (VIT, 8, 32), (CONFIGS / 'demo/retinanet_r34_fpn_digits.py', 8, 64)],
)
def test_predicted_memory_is_that_of_the_equations(path, state, side):
    """Oracle: the cost model's activations of four images, and four bytes of a weight and its optimizer's state."""
    config = replaceable(Config.fromfile(path))
    forms = variants_of('scalar' if path == VIT else 'channelwise')
    size = (side, side)
    parts = measure_site_profile(config, forms[:2], seconds=0, **STEP | dict(size=size))
    site = parts.eligible[-1]
    e2e = count_cost(config, (3, *size))
    for form, predicted in zip(forms, parts.site_mib, strict=False):
        replaced = with_repl(config, policy='explicit', sites=[tuple(site)], **form)
        saved = e2e - count_cost(replaced, (3, *size))
        expected = 4 * saved.activations + (4 + state) * saved.parameters
        assert predicted[site.stage] == pytest.approx(expected / MIB, rel=1e-3)
    assert parts.site_mib[1][site.stage] > parts.site_mib[0][site.stage]


def test_a_plan_says_which_positions_are_frozen_and_takes_none_of_them(savings):
    frozen = tuple(Site(0, index) for index in (1, 2, 3))
    asked = savings(lambda repl: (0.0, 0.0), frozen=frozen)
    plan = make_plan(Config.fromfile(RESNET), Saving(0.9, None), **OPTIONS)
    assert (plan.frozen, plan.positions) == (frozen, (6, 4))
    assert {site[0] for repl in asked for site in repl['sites']} == {1, 2}


def test_what_does_not_fit_twice_asks_for_a_smaller_batch(savings, monkeypatch):
    """Where E2E and RepL do not fit into memory together, there is no ratio of their times."""
    savings(lambda repl: (0.0, 0.0))
    row = MeasuredStep(model='', variant='', backend='', batch=4, size='', note='out of memory')
    monkeypatch.setattr(planning, 'measure_steps', lambda variants, **_: [row, row])
    with pytest.raises(ValueError, match=r'a batch of 4 does not fit into memory twice.* take a smaller one'):
        make_plan(Config.fromfile(RESNET), Saving(0.1, None), **OPTIONS)


def test_positions_in_frozen_stages_are_left_out():
    config = Config.fromfile(CONFIGS / 'demo/retinanet_r34_fpn_digits.py')
    config.model.backbone.frozen_stages = 2
    parts = measure_site_profile(replaceable(config), ({},), seconds=0, **STEP)
    assert {site.stage for site in parts.frozen} == {0, 1}
    assert {site.stage for site in parts.eligible} == {2, 3}
    config.model.backbone.frozen_stages = 4
    with pytest.raises(ValueError, match='has no position to replace: all positions lie in frozen stages'):
        make_plan(config, Saving(0.1, None), **OPTIONS)


def test_stochastic_depth_is_no_obstacle():
    config = Config.fromfile(RESNET)
    plain = measure_site_profile(replaceable(config), ({},), seconds=0, **STEP)
    config.model.backbone.stochastic_depth = 0.99
    skipping = measure_site_profile(replaceable(config), ({},), seconds=0, **STEP)
    assert skipping.mib == plain.mib
    assert skipping.site_mib == plain.site_mib


def test_networks_without_positions_are_told_apart():
    config = Config.fromfile(RESNET)
    config.model.backbone = dict(type='ResNet', depth=18)
    config.model.head.in_channels = 512
    with pytest.raises(ValueError, match=r'-18 has no position to replace: none of its blocks \(2, 2, 2, 2\)'):
        make_plan(config, Saving(0.1, None), **OPTIONS)
    config.model.backbone = dict(type='MobileNetV2')
    with pytest.raises(ValueError, match=r"backbone of type 'MobileNetV2': there are some in .*ReplResNet"):
        make_plan(config, Saving(0.1, None), **OPTIONS)


@pytest.mark.parametrize('kind', ['mmpretrain.ResNet', 'ResNet', 'repl_mm.ReplResNet'])
def test_a_hosts_backbone_becomes_ours(kind):
    config = Config.fromfile(RESNET)
    config.model.backbone = dict(type=kind, depth=34, repl=dict(policy='interval', every=4))
    found = replaceable(config)
    assert found.model.backbone == dict(type='repl_mm.ReplResNet', depth=34, repl=None)
    assert config.model.backbone.type == kind


@pytest.fixture
def printed(monkeypatch):
    lines = []
    monkeypatch.setattr('builtins.print', lambda text='', **_: lines.extend(str(text).splitlines()))
    return lines


@pytest.mark.parametrize('path', [RESNET, CONFIGS / 'demo/resnet32-repl_digits.py'])
def test_tool_prints_a_line_that_builds(printed, path, tmp_path):
    code, _, stderr = run(
        'plan', path, '--save-memory', '2%', '--size', '32', '32', '--batch-size', '8', '--seconds', '0'
    )
    assert (code, stderr) == (0, '')
    (line,) = [line for line in printed if line.startswith('model = dict(')]
    (tmp_path / 'planned.py').write_text(f'_base_ = {str(path)!r}\n{line}\n')
    config = Config.fromfile(tmp_path / 'planned.py')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(config.model).backbone
    assert all(isinstance(site, Site) for site in backbone.selection.sites)
    assert backbone.selection.sites


def test_tool_says_what_is_out_of_reach(printed):
    code, _, stderr = run(
        'plan', RESNET, '--save-memory', '95%', '--size', '32', '32', '--batch-size', '2', '--seconds', '0'
    )
    assert (code, stderr) == (0, '')
    assert any(line.startswith('Not reached. memory: 95.0 % asked') for line in printed)
    assert '9 blocks can be replaced, 6 at once.' in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), 'say what to save: --save-time 15%, --save-memory 15%, or both'),
        (('--save-time', '15'), "a percentage between 0% and 100% such as 15%, got '15'"),
        (('--save-time', '120%'), "got '120%'"),
        (('--save-memory', 'nan%'), "got 'nan%'"),
        (('--save-time', '10%', '--batch-size', '0'), '--batch-size and --size are at least 1'),
        (('--save-time', '10%', '--backend', 'tpu'), 'unknown backend tpu'),
    ],
)
def test_tool_refuses_what_is_unclear(arguments, message):
    code, _, stderr = run('plan', RESNET, *arguments)
    assert (code, message in stderr) == (2, True)


def test_a_prediction_for_a_device_needs_no_clock():
    """What is chosen saves of the whole predicted step what it says; figures of E2E are those of the prediction."""
    device = find_device('a100')
    options = OPTIONS | dict(batch=256, device=device)
    plan = make_plan(Config.fromfile(RESNET), Saving(0.06, None), **options)
    e2e, chosen = (
        predict_step(config, device, batch=256, size=(32, 32))
        for config in (
            replaceable(Config.fromfile(RESNET)),
            with_repl(replaceable(Config.fromfile(RESNET)), **plan.chosen.repl),
        )
    )
    assert plan.reached
    assert (plan.seconds, plan.mib) == (e2e.seconds, e2e.memory['total'])
    assert plan.chosen.measured.time == 1 - chosen.seconds / e2e.seconds >= 0.06
    assert plan.chosen.measured.memory == 1 - chosen.memory['total'] / e2e.memory['total']
    # Blocks add up: both see the same operators.
    assert plan.chosen.predicted.time == pytest.approx(plan.chosen.measured.time, rel=0.1)
    assert plan.chosen.predicted.memory == pytest.approx(plan.chosen.measured.memory, rel=0.1)


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (['--predict', 'v100'], "unknown device 'v100': choose out of a100, h100"),
        (['--predict', 'a100', '--batch-size', 0], '--batch-size and --size are at least 1'),
        (['--predict', 'a100', '--backend', 'compile'], 'steps are predicted for fp32 or amp'),
    ],
)
def test_what_cannot_be_predicted_is_one_line(args, expected):
    done = run('plan', RESNET, '--save-time', '10%', *args)
    assert done.code == 2
    assert expected in done.err.splitlines()[-1]
