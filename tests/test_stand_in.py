"""Contract: the stand-in for a GPU refuses what a GPU refuses. Runs with ``make test DEVICE=stand-in``."""

import os

import pytest
import torch

pytestmark = pytest.mark.skipif(os.environ.get('DEVICE') != 'stand-in', reason='about the stand-in')


def test_tensors_of_two_devices_are_refused():
    with pytest.raises(RuntimeError, match='on cpu'):
        torch.ones(3) + torch.ones(3, device='cpu')


def test_numbers_of_the_cpu_and_copies_are_taken():
    ours = torch.ones(3) * torch.tensor(2.0, device='cpu')
    assert ours.device.type == 'stand_in'
    torch.testing.assert_close(ours.cpu(), torch.full((3,), 2.0, device='cpu'))


def test_numpy_needs_a_copy_on_the_cpu():
    with pytest.raises(RuntimeError, match='numpy'):
        torch.ones(3).numpy()
    assert torch.ones(3).cpu().numpy().tolist() == [1, 1, 1]
