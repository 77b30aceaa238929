"""Contract: perplexity is the exponential of the mean negative log-likelihood of words, however they are dealt out.

Oracles: the words' probabilities multiplied by hand; one process that sees all of them.
"""

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from repl_mm.engine.perplexity import Perplexity

# Sequences of several lengths, so that a mean over sequences is another one.
PROBABILITIES = [[0.5, 0.25], [0.1], [0.2, 0.4, 0.8], [0.05], [1.0, 0.5]]
EXPECTED = (0.5 * 0.25 * 0.1 * 0.2 * 0.4 * 0.8 * 0.05 * 1.0 * 0.5) ** (-1 / 9)
PREDICTIONS = [dict(log_likelihood=torch.tensor(values).log()) for values in PROBABILITIES]


def test_by_hand():
    metric = Perplexity()
    metric.process(None, PREDICTIONS[:2])
    metric.process(None, PREDICTIONS[2:])
    assert metric.evaluate(5) == {'perplexity': pytest.approx(EXPECTED, rel=1e-6)}


def test_a_model_that_knows_nothing_is_as_wrong_as_its_vocabulary_is_large():
    metric = Perplexity()
    metric.process(None, [dict(log_likelihood=torch.full((7,), -math.log(100)))])
    assert metric.evaluate(1)['perplexity'] == pytest.approx(100)


def test_what_no_float_can_hold_is_infinite():
    metric = Perplexity()
    metric.process(None, [dict(log_likelihood=torch.full((2,), -1e4))])
    assert metric.evaluate(1) == {'perplexity': math.inf}


def evaluate(rank: int, port: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    metric = Perplexity()
    # As mmengine's sampler deals them out: in turn, and one again where they do not come out even.
    metric.process(None, [*PREDICTIONS, PREDICTIONS[0]][rank::2])
    torch.save(metric.evaluate(5), f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def test_over_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    mp.spawn(evaluate, (port, str(tmp_path)), nprocs=2)
    found = [torch.load(Path(tmp_path, f'{rank}.pt'))['perplexity'] for rank in range(2)]
    assert found == [pytest.approx(EXPECTED, rel=1e-6)] * 2
