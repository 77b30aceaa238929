"""Contract: rounds are timed only while no other process takes the cores, before and meanwhile.

Oracle: a machine of two cores whose seconds are given by hand.
"""

import time

import psutil
import pytest
import torch
from cli_helpers import run

from repl_mm.benchmark import timing
from repl_mm.benchmark.timing import cpu_seconds, time_interleaved


class Machine:
    """Two cores on a clock of its own; ``others`` of them are kept busy by other processes, one by this."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, threads: int, others: float) -> None:
        self.now, self.busy, self.own, self.others = 0.0, 0.0, 0.0, others
        monkeypatch.setattr(timing, 'cpu_seconds', lambda: (self.busy, self.own))
        monkeypatch.setattr(timing.time, 'perf_counter', lambda: self.now)
        monkeypatch.setattr(timing.time, 'sleep', self.sleep)
        monkeypatch.setattr(psutil, 'cpu_count', lambda: 2)
        monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.busy += self.others * seconds

    def work(self, seconds: float = 1.0) -> None:
        self.sleep(seconds)
        self.busy += seconds
        self.own += seconds


@pytest.mark.parametrize(
    ('threads', 'others', 'fits'), [(2, 0.4, True), (2, 0.6, False), (1, 1.4, True), (1, 1.6, False)]
)
def test_a_machine_that_is_busy_before(threads, others, fits, monkeypatch):
    machine = Machine(monkeypatch, threads=threads, others=others)
    if fits:
        assert time_interleaved({'one': machine.work}, seconds=0, least=2) == {'one': [1.0, 1.0]}
        return
    with pytest.raises(ValueError, match=f'^other processes keep {others} of 2 cores busy, and {threads} of them'):
        time_interleaved({'one': machine.work}, seconds=0)
    assert machine.own == 0


def test_a_gpu_needs_one_core(monkeypatch):
    machine = Machine(monkeypatch, threads=2, others=1.2)
    assert time_interleaved({'one': machine.work}, seconds=0, least=1, device=torch.device('cuda'))
    with pytest.raises(ValueError, match='of 2 cores busy, and 2 of them'):
        time_interleaved({'one': machine.work}, seconds=0, least=1, device=torch.device('cpu'))


def test_a_process_that_comes_meanwhile(monkeypatch):
    machine = Machine(monkeypatch, threads=2, others=0)

    def work() -> None:
        machine.work()
        machine.others = 1.5

    with pytest.raises(ValueError, match=r'keep 1\.\d of 2 cores busy'):
        time_interleaved({'one': work}, seconds=0, least=10)
    assert machine.own > 10


def test_the_tool_says_it_in_one_sentence(monkeypatch, tmp_path):
    config = 'configs/demo/resnet32-repl_digits.py'
    monkeypatch.chdir(timing.Path(__file__).parents[2])
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing, 'cpu_seconds', lambda: (50.0 * next(ticks), 0.0))
    done = run(
        *('benchmark', 'train', config, '--variant', 'RepL', '--batch-size', 1, '--size', 8, 8, '--device', 'cpu'),
        *('--seconds', 0, '--out', tmp_path),
    )
    assert done.code == 2
    assert 'other processes keep' in done.err.splitlines()[-1]


def test_the_cores_are_those_of_psutil(monkeypatch):
    """User and system of all; idling, waiting and what guests take, which is users' time already, are not."""
    monkeypatch.undo()  # what tests begin with
    before = cpu_seconds()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    busy, own = (after - start for after, start in zip(cpu_seconds(), before, strict=True))
    assert 0.1 < own < 0.5
    assert own <= busy + 0.1
