"""Contract: several processes that choose sites agree, and choose as one process does that sees their joint batches.

Oracle: that one process. Each spawned process reads this file, so it imports no host library.
"""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import repl_mm
from repl_mm.adaptation import adaptive_blocks, mean_scores, share_scores

SIZES = (3, 5)  # images of a batch in either process


def network_and_optimizer(world: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True) for _ in range(7)]
    network = nn.Sequential(*layers).double()
    repl_mm.replace(network, policy='adaptive', start='explicit', sites=[(0, 1), (0, 3)])
    if world > 1:
        network = DistributedDataParallel(network, find_unused_parameters=True)
    return network, torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.1)


def train(network: nn.Module, optimizer: torch.optim.Optimizer, batches: list[list[Tensor]]) -> tuple:
    """Scores and sites of each epoch; and whether what did not run had no gradient in any step."""
    history, idle = [], []
    for epoch in batches:
        for batch in epoch:
            optimizer.zero_grad()
            # A sum over images; DDP averages the gradients of the processes.
            network(batch).square().mean(dim=(1, 2)).sum().backward()
            if not dist.is_initialized():
                for parameter in network.parameters():
                    if parameter.grad is not None:
                        parameter.grad /= len(SIZES)
            optimizer.step()
            share_scores(network)
            for block in adaptive_blocks(network).values():
                for name, parameter in block.named_parameters():
                    idle.append((parameter.grad is None) == (name.startswith('computing.') != block.is_replaced))
        scores = mean_scores(network)
        history.append((list(scores.values()), [name.removeprefix('module.') for name in repl_mm.adapt(network)]))
    return history, all(idle)


def train_in_a_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    batches = [[batch.split(SIZES)[rank] for batch in epoch] for epoch in torch.load(f'{folder}/batches.pth')]
    network, optimizer = network_and_optimizer(2)
    history, idle = train(network, optimizer, batches)
    torch.save((history, idle, network.module.state_dict()), f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_ranks_agree(tmp_path):
    batches = torch.randn(4, 2, sum(SIZES), 5, 8).double()
    torch.save(batches, tmp_path / 'batches.pth')
    mp.spawn(train_in_a_process, args=(str(tmp_path),), nprocs=2)
    (first, idle, state), (second, _, other) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert first == second
    assert idle
    assert all(value.equal(other[key]) for key, value in state.items())

    network, optimizer = network_and_optimizer(1)
    history, _ = train(network, optimizer, [list(epoch) for epoch in batches])
    assert [sites for _, sites in first] == [sites for _, sites in history]
    assert len({tuple(sites) for _, sites in history}) > 1
    for (ours, _), (theirs, _) in zip(first, history, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-10)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-10)
