"""The hand-written backward passes give torch's gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stockpot.model import kernels
from stockpot.model.attention import View, attend
from stockpot.model.kernels import attend_in_blocks

SCALE = 0.3


def heads(seq: int, *, kv_heads: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Make queries, keys and values laid out as the model lays them out."""
    torch.manual_seed(0)
    shapes = ((2, seq, 4, 8), (2, seq, kv_heads, 8), (2, seq, kv_heads, 8))
    return tuple(torch.randn(shape).to(dtype).transpose(1, 2).requires_grad_() for shape in shapes)


def mask_of(kind: str, seq: int) -> Tensor | None:
    documents = torch.arange(seq)[None] // torch.tensor([[3], [5]])
    same = (documents[:, :, None] == documents[:, None])[:, None]
    return {"none": None, "documents": same, "one row": same[:, :, :1] | True}[kind]


def with_gradients(run: object, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    out = run(*inputs)  # type: ignore[operator]
    slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, inputs, slope)]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", 4)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("mask", "causal"),  # a mask for all queries at once cannot be causal
    [("none", True), ("none", False), ("documents", True), ("documents", False), ("one row", False)],
)
def test_attention_and_its_gradients_equal_torchs(mask: str, causal: bool, kv_heads: int) -> None:
    seq = 10  # two blocks and a half
    seen = mask_of(mask, seq)
    if causal and seen is not None:
        seen = seen & torch.ones(seq, seq, dtype=torch.bool).tril()
    inputs = heads(seq, kv_heads=kv_heads)
    ours = with_gradients(
        lambda q, k, v: attend_in_blocks(q, k, v, mask=seen, causal=causal, scale=SCALE), inputs
    )
    is_causal = causal and seen is None
    theirs = with_gradients(
        lambda q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, is_causal=is_causal, scale=SCALE, enable_gqa=True
        ),
        inputs,
    )
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("small_blocks")
def test_attention_in_bfloat16_is_as_near_to_the_truth_as_torchs() -> None:
    exact = heads(10)
    rounded = tuple(part.detach().bfloat16().requires_grad_() for part in exact)
    truth = with_gradients(lambda *a: attend_in_blocks(*a, causal=True, scale=SCALE), exact)
    ours = with_gradients(lambda *a: attend_in_blocks(*a, causal=True, scale=SCALE), rounded)
    theirs = with_gradients(
        lambda *a: F.scaled_dot_product_attention(*a, is_causal=True, scale=SCALE), rounded
    )
    for expected, own, other in zip(truth, ours, theirs, strict=True):
        error, usual = ((x.double() - expected).norm() / expected.norm() for x in (own, other))
        assert error < max(1.5 * usual, 0.01)  # a rounding to 8 bits is 0.2 to 0.4 %, and a few add up


def test_attention_passes_the_numeric_check_of_gradients() -> None:
    inputs = heads(3, kv_heads=2)
    assert torch.autograd.gradcheck(lambda *a: attend_in_blocks(*a, causal=True, scale=SCALE), inputs)


@pytest.mark.usefixtures("small_blocks")
def test_the_future_and_other_documents_get_no_gradient() -> None:
    queries, keys, values = heads(10)
    causal = attend_in_blocks(queries, keys, values, causal=True, scale=SCALE)
    to_keys, to_values = torch.autograd.grad(causal[:, :, :5].sum(), (keys, values))
    assert not to_keys[:, :, 5:].any()
    assert not to_values[:, :, 5:].any()


def test_training_and_judging_attend_alike() -> None:
    inputs = heads(7, dtype=torch.float32)
    training = attend(*inputs, View(causal=True), scale=SCALE)
    with torch.no_grad():
        judging = attend(*inputs, View(causal=True), scale=SCALE)
    torch.testing.assert_close(training, judging, atol=1e-6, rtol=1e-5)
