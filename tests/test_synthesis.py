"""Contract: the synthesised weight is the paper's, and only the coefficients learn from it.

Oracles: 2 x 2 kernels worked out by hand; the plain formulas written with torch's own autograd; gradcheck in float64.
"""

import math
from collections import Counter

import oracles
import pytest
import torch
from helpers import ON_CPU
from torch._subclasses import FakeTensorMode

from repl_mm import synthesis
from repl_mm.benchmark.operators import OperatorCounter

PREV = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]], [[[0.0, 0.0], [6.0, 8.0]]]])  # rows of norm 5 and 10
NEXT = torch.tensor([[[[0.0, 5.0], [12.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])  # rows of norm 13 and 2


def double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def ours_of(mixed):
    """One source a neighbour, for both ways to write a mix."""
    if mixed is not synthesis.mix:
        return mixed
    return lambda alpha, prev, beta, next: synthesis.mix(alpha, (prev,), beta, (next,))[0]


FORMS = {
    'conv': (synthesis.mix_channels, oracles.channels, (6, 4, 3, 3), 6),
    'linear': (synthesis.mix_channels, oracles.channels, (6, 12), 6),
    'heads': (synthesis.mix_heads, oracles.heads, (12, 12), 3),
    'scalars': (synthesis.mix, oracles.scalars, (12, 12), 1),
    'scalar bias': (synthesis.mix, oracles.scalars, (12,), 1),
}


def sources(form):
    mixed, plain, shape, coefficients = FORMS[form]
    alpha, beta = double(coefficients).requires_grad_(), double(coefficients).requires_grad_()
    return ours_of(mixed), plain, alpha, double(*shape).requires_grad_(), beta, double(*shape).requires_grad_()


def test_two_by_two_kernels_by_hand():
    alpha, beta = torch.tensor([10.0, -1.0]), torch.tensor([13.0, 4.0])
    weight = synthesis.mix_channels(alpha, PREV, beta, NEXT)
    # Channel 0: 10/5 [3 0; 0 4] + 13/13 [0 5; 12 0]; channel 1: -1/10 [0 0; 6 8] + 4/2 [1 1; 1 1].
    by_hand = torch.tensor([[[[6.0, 5.0], [12.0, 8.0]]], [[[2.0, 2.0], [1.4, 1.2]]]])
    torch.testing.assert_close(weight, by_hand)


def test_two_heads_by_hand():
    prev = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    next = torch.tensor([[0.0, 1.0], [5.0, 12.0]])
    weight = synthesis.mix_heads(torch.tensor([5.0, 10.0]), prev, torch.tensor([13.0, 26.0]), next)
    # Column 0 takes 5 and 13, column 1 takes 10 and 26; the rows of prev are divided by 5, 2, those of next by 1, 13.
    torch.testing.assert_close(weight, torch.tensor([[3.0, 8.0 + 26.0], [5.0, 10.0 + 24.0]]))


def test_means_by_hand():
    mean = synthesis.average(torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(mean, torch.tensor([2.0, 0.0]))
    mean = synthesis.average_normalised(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
    torch.testing.assert_close(mean, torch.tensor([[0.3, 0.9]]))


def test_a_row_of_zeros_stays_zero():
    zero = torch.zeros(2, 1, 2, 2)
    ones = torch.ones(2)
    assert synthesis.mix_channels(ones, zero, ones, zero).equal(zero)
    assert math.isclose(synthesis.row_norm(zero)[0].item(), 1e-4, rel_tol=1e-6)  # sqrt(eps)


@pytest.mark.parametrize('form', FORMS)
def test_weight_and_coefficient_gradients_equal_the_plain_formula(form):
    mixed, plain, alpha, prev, beta, next = sources(form)
    ours, theirs = mixed(alpha, prev, beta, next), plain(alpha, prev, beta, next)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, (alpha, beta), grad)
    torch.testing.assert_close(torch.autograd.grad(ours, (alpha, beta), grad), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
def test_float32_is_within_rounding_of_the_plain_formula(form):
    mixed, plain, *tensors = sources(form)
    single = [tensor.detach().float() for tensor in tensors]
    torch.testing.assert_close(mixed(*single), plain(*single), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('form', FORMS)
def test_gradcheck(form):
    mixed, _, alpha, prev, beta, next = sources(form)
    assert torch.autograd.gradcheck(lambda a, b: mixed(a, prev, b, next), (alpha, beta))


@pytest.mark.parametrize('form', FORMS)
def test_neighbours_get_no_gradient(form):
    mixed, _, alpha, prev, beta, next = sources(form)
    mixed(alpha, prev, beta, next).square().sum().backward()
    assert prev.grad is None
    assert next.grad is None
    assert alpha.grad.abs().min() > 0
    assert beta.grad.abs().min() > 0


@pytest.mark.parametrize('form', ['conv', 'linear', 'heads'])
def test_scaling_the_rows_of_a_neighbour_changes_nothing(form):
    mixed, _, alpha, prev, beta, next = sources(form)
    factor = torch.rand(prev.size(0), dtype=torch.float64).add(0.5).view(-1, *[1] * (prev.dim() - 1))
    scaled = mixed(alpha, prev * factor, beta, next / factor)
    torch.testing.assert_close(scaled, mixed(alpha, prev, beta, next), rtol=1e-7, atol=1e-7)


def test_scalars_do_not_normalise():
    mixed, _, alpha, prev, beta, next = sources('scalars')
    torch.testing.assert_close(mixed(alpha, 2 * prev, beta, 2 * next), 2 * mixed(alpha, prev, beta, next))


def test_a_frozen_coefficient_gets_no_gradient():
    mixed, _, alpha, prev, beta, next = sources('conv')
    mixed(alpha.detach(), prev, beta, next).sum().backward()
    assert alpha.grad is None
    assert beta.grad is not None


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('form', FORMS)
def test_autocast_leaves_the_synthesis_in_float32(form, half):
    mixed, plain, *tensors = sources(form)
    alpha, prev, beta, next = (tensor.detach().float().requires_grad_() for tensor in tensors)
    with torch.autocast('cpu', half):
        weight = mixed(alpha, prev, beta, next)
        weight.sum().backward()
    expected = torch.autograd.grad(plain(alpha, prev, beta, next).sum(), alpha)[0]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(alpha.grad, expected, rtol=1e-5, atol=1e-5)


def test_channels_last_weights_give_the_same_weight_in_the_same_format():
    mixed, _, alpha, prev, beta, next = sources('conv')
    last = mixed(
        alpha, *(t.detach().to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in (prev, beta, next))
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, mixed(alpha, prev, beta, next))
    grad = torch.randn_like(last)
    grads = [
        torch.autograd.grad(weight, (alpha, beta), grad, retain_graph=True)
        for weight in (last, mixed(alpha, prev, beta, next))
    ]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('size', [1e-3, 1e-5, 1.0])
def test_float16_weights_of_a_tiny_norm_do_not_underflow(size):
    """The eps of Eq. 9 is 0 in float16; a row below its root must not become one of norm 1, nor NaN."""
    prev, next = (torch.randn(6, 4, 3, 3).mul(size / 6).half() for _ in range(2))
    prev[0] = 0
    alpha, beta = (torch.randn(6).half() for _ in range(2))
    weight = synthesis.mix_channels(alpha, prev, beta, next)
    expected = oracles.channels(alpha.double(), prev.double(), beta.double(), next.double())
    torch.testing.assert_close(weight.double(), expected, rtol=1e-2, atol=2e-3)
    average = synthesis.average_normalised(prev.flatten(1), next.flatten(1))
    expected = (oracles.rows(prev.double()) + oracles.rows(next.double())).flatten(1) / 2
    torch.testing.assert_close(average.double(), expected, rtol=1e-2, atol=2e-3)


def test_the_compilers_formula_is_the_same():
    for form in FORMS:
        mixed, _, *tensors = sources(form)
        traced = torch.jit.trace(lambda *given, mixed=mixed: mixed(*given), tensors, check_trace=False)
        torch.testing.assert_close(traced(*tensors), mixed(*tensors), rtol=1e-12, atol=1e-12)


@ON_CPU  # a GPU's and the stand-in's operators are others
@pytest.mark.parametrize(
    ('form', 'forward', 'backward'),
    # Roots and both sources, their norms; coefficients over norms; two products and a sum. Backward: both sources
    # times the gradient, summed, over norms; where rows share coefficients, summed again.
    [
        ('conv', ['cat', 'linalg_vector_norm', 'stack', 'div', 'mul', 'addcmul_'], ['stack', 'mul_', 'sum', 'div']),
        (
            'heads',
            ['cat', 'linalg_vector_norm', 'stack', 'div', 'mul', 'addcmul_'],
            ['stack', 'mul_', 'sum', 'div', 'sum'],
        ),
        ('scalars', ['mul', 'addcmul_'], ['cat', 'cat', 'mul_', 'sum']),
    ],
)
def test_operators_by_hand(form, forward, backward):
    mixed, _, alpha, prev, beta, next = sources(form)
    mixed(alpha, prev, beta, next)  # makes what is made once
    with OperatorCounter() as counter:
        weight = mixed(alpha, prev, beta, next)
    assert counter.counts == Counter(forward)
    grad = torch.randn_like(weight)
    with OperatorCounter() as counter:
        torch.autograd.grad(weight, (alpha, beta), grad)
    assert counter.counts == Counter(backward)


@ON_CPU
def test_tensors_without_data_leave_nothing_behind(monkeypatch):
    """Inside of another kind of tensors' mode, with weights of either kind."""
    monkeypatch.setattr(synthesis, '_ROOTS', {})
    mixed, plain, *tensors = sources('conv')
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert mixed(*tensors).shape == tensors[1].shape
    with torch.inference_mode():
        mixed(*tensors)
    ours, theirs = mixed(*tensors), plain(*tensors)
    assert type(ours) is torch.Tensor
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.sum().backward()
    assert mixed(*(t.to('meta') for t in tensors)).is_meta


def test_sources_changed_before_the_backward_pass_are_noticed():
    mixed, _, alpha, prev, beta, next = sources('conv')
    weight = mixed(alpha, prev, beta, next)
    with torch.no_grad():
        prev.mul_(2)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        weight.sum().backward()
