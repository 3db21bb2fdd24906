from __future__ import annotations

import pytest
import torch
from torch import nn

from stockpot.train.muon import Matrix, Muon, _nearest_to_one, coefficients, orthogonalise


@pytest.mark.parametrize(("iterations", "lower", "error"), [(3, 1e-2, 0.3), (5, 3e-3, 0.13), (6, 1e-3, 0.08)])
def test_the_polynomials_bring_an_interval_near_one(iterations, lower, error):
    x = torch.linspace(lower, 1, 10_001, dtype=torch.float64)
    for a, b, c in coefficients(iterations):
        x = a * x + b * x**3 + c * x**5
    assert float((x - 1).abs().max()) < error


def test_one_step_is_the_best_quintic():
    # On [0.5, 1] no odd quintic comes nearer to 1 at its worst than one that errs alike, with changing sign, at
    # four points (Chebyshev's alternation).
    x = torch.linspace(0.5, 1, 100_001, dtype=torch.float64)
    a, b, c = _nearest_to_one(0.5, 1.0)
    error = a * x + b * x**3 + c * x**5 - 1
    worst = float(error.abs().max())
    extremes = [error[0], error.min(), error.max(), error[-1]]
    assert [abs(float(value)) for value in extremes] == pytest.approx([worst] * 4, rel=1e-4)


def test_bfloat16_products_stay_near_float32s():
    torch.manual_seed(0)
    matrices = torch.randn(2, 64, 96)
    exact = orthogonalise(matrices, iterations=5, dtype=torch.float32)
    rough = orthogonalise(matrices, iterations=5, dtype=torch.bfloat16).float()
    assert float((exact - rough).norm() / exact.norm()) < 0.03  # bf16 has 8 bits; a few roundings add up


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonalise(torch.zeros(1, 8, 8), iterations=5).any()


def by_hand(weight, gradients, *, lr, momentum, decay):
    """Muon for one matrix, step by step, with an exact orthogonalisation."""
    average = torch.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        u, _, v = torch.linalg.svd(momentum * average + (1 - momentum) * gradient, full_matrices=False)
        weight = weight * (1 - lr * decay) - lr * 0.2 * max(weight.shape) ** 0.5 * (u @ v)
    return weight


def test_fused_matrices_move_as_their_parts_would():
    torch.manual_seed(0)
    fused = nn.Parameter(torch.randn(24, 8))
    start, parts = fused.detach().clone(), (8, 16)
    gradients = [torch.randn(24, 8) for _ in range(3)]
    muon = Muon([Matrix(fused, parts)], momentum=0.9, iterations=8, dtype=torch.float32)
    for gradient in gradients:
        fused.grad = gradient.clone()
        muon.step(0.1, weight_decay=0.5, is_cautious=False)
    expected = [
        by_hand(piece, [g.split(parts)[i] for g in gradients], lr=0.1, momentum=0.9, decay=0.5)
        for i, piece in enumerate(start.split(parts))
    ]
    torch.testing.assert_close(fused.data, torch.cat(expected), atol=5e-3, rtol=0)  # 8 iterations, not an SVD


def test_cautious_decay_shrinks_only_what_the_update_shrinks():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 8))
    plain, start = nn.Parameter(weight.detach().clone()), weight.detach().clone()
    for parameter, decay in ((weight, 0.5), (plain, 0.0)):
        parameter.grad = torch.eye(8)
        muon = Muon([Matrix(parameter, (8,))], momentum=0.9, iterations=5, dtype=torch.float32)
        muon.step(0.1, weight_decay=decay, is_cautious=True)
    agrees = (start - plain.data) * start > 0
    expected = plain.data - torch.where(agrees, 0.1 * 0.5 * start, 0.0)
    torch.testing.assert_close(weight.data, expected)


def test_momenta_of_other_matrices_are_refused():
    one = Muon(
        [Matrix(nn.Parameter(torch.ones(4, 4)), (4,))], momentum=0.9, iterations=5, dtype=torch.float32
    )
    two = Muon(
        [Matrix(nn.Parameter(torch.ones(4, 8)), (4,))], momentum=0.9, iterations=5, dtype=torch.float32
    )
    with pytest.raises(ValueError, match="other shapes"):
        two.load_state_dict(one.state_dict())
