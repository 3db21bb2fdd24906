"""Products in halves are near those in float64, nearer than bfloat16's, at any size of the numbers and of the matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.model import halves
from stockpot.model.config import decoder
from stockpot.model.linear import Linear
from stockpot.model.transformer import Transformer

pytestmark = pytest.mark.skipif(
    not halves.are_here(), reason="this processor has no vectors of halves, or no compiler"
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (7, 65, 63), (130, 300, 257), (16, 64, 128)]
)
def test_products_both_ways(rows: int, inputs: int, outputs: int, size: float) -> None:
    x, weight, slope = random(rows, inputs) * size, random(outputs, inputs, seed=1), random(rows, outputs)
    x.requires_grad_(), weight.requires_grad_()
    out = halves.multiply(x, weight)
    found = (out, *torch.autograd.grad(out, (x, weight), slope))
    exact_x, exact_weight = x.detach().double(), weight.detach().double()
    exact = (exact_x @ exact_weight.T, slope.double() @ exact_weight, slope.double().T @ exact_x)
    assert all(error(one, other) < 2e-3 for one, other in zip(found, exact, strict=True))


def test_the_error_is_less_than_that_of_bfloat16() -> None:
    x, weight = random(64, 1000), random(300, 1000, seed=1)
    wanted = x.double() @ weight.double().T
    narrow = (x.bfloat16().double() @ weight.bfloat16().double().T).float()
    assert error(halves.multiply(x, weight), wanted) < 0.7 * error(narrow, wanted)


def test_sums_of_the_largest_numbers_do_not_overflow() -> None:
    x, weight = torch.full((8, 512), 7.99), torch.full((64, 512), -7.99)
    # Equal terms are the worst case of adding up in halves: every step rounds in the same direction.
    torch.testing.assert_close(halves.multiply(x, weight), x @ weight.T, rtol=5e-3, atol=0.0)


def test_rows_far_below_the_largest_keep_their_bits() -> None:
    x, weight = random(16, 256), random(64, 256, seed=1)
    x[:8] *= 1e-4
    wanted = x.double() @ weight.double().T
    assert error(halves.multiply(x, weight)[:8], wanted[:8]) < 2e-3


def test_zeros_stay_zeros_and_what_is_not_finite_shows() -> None:
    x, weight = torch.zeros(3, 8), random(5, 8)
    assert (halves.multiply(x, weight) == 0).all()
    for bad in (torch.nan, torch.inf):
        x[1, 2] = bad
        assert halves.multiply(x, weight).isnan().all()


def test_the_result_does_not_depend_on_the_threads() -> None:
    x, weight, before = random(300, 260), random(270, 260, seed=1), torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(halves.multiply(x, weight))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_layers_use_them_in_the_block_alone_and_only_to_learn() -> None:
    layer, x = Linear(256, 256), random(2, 64, 256)
    exact = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), exact)
    with halves.multiplying():
        rounded = layer(x)
        with torch.no_grad():
            assert torch.equal(layer(x), exact)
        assert torch.equal(layer(x[:1]), exact[:1])  # too few rows to pay
        small = Linear(64, 64)
        assert torch.equal(small(x[..., :64]), F.linear(x[..., :64], small.weight, small.bias))
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0.01)


def test_a_layer_that_is_computed_again_is_computed_alike() -> None:
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=256, heads=4, context=128, vocab_size=300))
    ids = torch.arange(128)[None]
    found = []
    for recompute in (False, True):
        assert model.decoder is not None
        model.decoder.recompute = recompute
        with halves.multiplying():
            total = model(ids, last=0).hidden.square().sum()
        found.append(torch.autograd.grad(total, list(model.decoder.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
