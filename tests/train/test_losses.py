from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stockpot.data.batch import Batch
from stockpot.model.config import decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.train import fused
from stockpot.train.losses import (
    cross_entropy,
    linear_cross_entropy,
    masked_token_loss,
    next_token_loss,
    sequence_to_sequence_loss,
)


def test_the_textbook_example():
    probabilities = torch.tensor([[0.1, 0.6, 0.1, 0.15, 0.05]])
    loss = cross_entropy(probabilities.log(), torch.tensor([1]))
    assert float(loss.total / loss.count) == pytest.approx(-math.log(0.6), abs=1e-6)


def test_cross_entropy_is_torchs_without_the_labels_that_do_not_count():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    labels[0, :4] = -100
    loss = cross_entropy(logits, labels)
    assert int(loss.count) == 17
    torch.testing.assert_close(
        loss.total, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    )


@pytest.mark.parametrize("block", [1, 7, 20, 10**6], ids=lambda rows: f"{rows} rows gathered")
def test_gathering_slopes_changes_nothing(monkeypatch, block):
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(101, 16)
    bias, labels = torch.randn(101), torch.randint(0, 101, (40,))
    monkeypatch.setattr(fused, "BLOCK_LOGITS", block * 101)
    pairs = []
    for chunk in (6, 64):  # 64 rows, four times the width, are added at once
        inputs = [one.clone().requires_grad_() for one in (hidden, weight, bias)]
        total = linear_cross_entropy(*inputs[:2], labels, bias=inputs[2], chunk=chunk).total
        (3 * total).backward()
        pairs.append([total.detach(), *(one.grad for one in inputs)])
    for gathered, at_once in zip(*pairs, strict=True):
        torch.testing.assert_close(gathered, at_once, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("counted", ["all", "some", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fused_loss_and_its_gradients_are_torchs(counted, dtype):
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 30, 16, dtype=dtype), torch.randn(101, 16, dtype=dtype)
    labels = torch.randint(0, 101, (4, 30))
    if counted == "some":
        labels[torch.rand(4, 30) < 0.5] = -100
    if counted == "none":
        labels[:] = -100
    pairs = []
    for is_ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if is_ours:
            total = linear_cross_entropy(h, w, labels).total
        else:
            total = F.cross_entropy((h @ w.t()).flatten(0, 1), labels.flatten(), reduction="sum")
        total.backward()
        pairs.append((total.detach(), h.grad, w.grad))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-5, atol=1e-5)


def test_the_fused_loss_in_bfloat16_stays_near_float32():
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 64), 0.2 * torch.randn(300, 64)
    labels = torch.randint(0, 300, (512,))
    exact = linear_cross_entropy(hidden, weight, labels).total
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, labels).total
    assert float(rough) == pytest.approx(float(exact), rel=2e-3)  # bf16 keeps 8 bits of each product's inputs


def test_bits_per_byte_is_nats_over_ln2_and_bytes():
    torch.manual_seed(0)
    model = Transformer(decoder(layers=1, dim=16, heads=1, context=8, vocab_size=10))
    ids = torch.randint(0, 10, (2, 8))
    lengths = torch.arange(10)
    loss = next_token_loss(model, Batch(ids, ids), byte_lengths=lengths)
    total, count = loss.metrics["bits_per_byte"]
    assert float(total) == pytest.approx(float(loss.total.detach()) / math.log(2), rel=1e-5)
    assert float(count) == float(lengths[ids].sum())


def test_padding_changes_neither_total_nor_count():
    torch.manual_seed(0)
    model = Transformer(decoder(layers=2, dim=16, heads=2, context=16, vocab_size=10))
    ids = torch.randint(0, 10, (2, 8))
    padded, labels = torch.zeros(2, 12, dtype=torch.long), torch.full((2, 12), -100)
    padded[:, :8], labels[:, :8] = ids, ids
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, :8] = True
    short = next_token_loss(model, Batch(ids, ids))
    long = next_token_loss(model, Batch(padded, labels, mask))
    assert int(short.count) == int(long.count) == 16
    torch.testing.assert_close(short.total, long.total, rtol=1e-5, atol=1e-5)


def test_masked_tokens_and_pairs_are_weighed_as_documented():
    torch.manual_seed(0)
    model = Transformer(encoder(layers=1, dim=16, heads=1, context=8, vocab_size=10))
    ids = torch.randint(0, 10, (2, 8))
    labels = torch.full_like(ids, -100)
    labels[:, 3] = ids[:, 3]
    loss = masked_token_loss(model, Batch(ids, labels, pair_labels=torch.tensor([0, 1])), pair_weight=16.0)
    assert float(loss.count) == 2 + 2 * 16
    hidden = model(ids).hidden
    tokens = cross_entropy(model.logits(hidden), labels).total
    pairs = cross_entropy(model.pair_logits(hidden), torch.tensor([0, 1])).total
    torch.testing.assert_close(loss.total, tokens + 16 * pairs, rtol=1e-5, atol=1e-5)


def test_sequence_to_sequence_loss_depends_on_the_source():
    torch.manual_seed(0)
    config = encoder_decoder(layers=1, dim=16, heads=1, context=8, vocab_size=10, zero_init=False)
    model = Transformer(config)
    ids = torch.randint(0, 10, (2, 8))
    one = sequence_to_sequence_loss(model, Batch(ids, ids, source=ids))
    other = sequence_to_sequence_loss(model, Batch(ids, ids, source=ids.flip(1)))
    assert float(one.total.detach()) != float(other.total.detach())
    assert int(one.count) == 16
