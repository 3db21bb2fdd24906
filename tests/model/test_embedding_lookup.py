"""Looking up in a large table: torch's numbers and torch's gradient, which takes memory only where it is not zero."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stockpot.device import LARGE_BLOCK, lazy_zeros
from stockpot.model import lookup

ROWS, DIM = 1 << 15, 256  # 32 MiB


@pytest.fixture
def table() -> lookup.Embedding:
    torch.manual_seed(0)
    return lookup.Embedding(ROWS, DIM)


def test_values_and_gradient_are_torchs(table):
    assert table.weight.nbytes >= LARGE_BLOCK
    ids, slope = torch.randint(0, ROWS, (3, 50)), torch.randn(3, 50, DIM)
    ids[:, :5] = 7  # more than once
    plain = nn.Embedding.from_pretrained(table.weight.detach().clone(), freeze=False)
    for one in (table, plain):
        one(ids).backward(slope)
    assert torch.equal(table(ids), plain(ids))
    torch.testing.assert_close(
        table.weight.grad, plain.weight.grad, rtol=1e-6, atol=1e-6
    )  # the order of sums
    assert table(ids).grad_fn.name() != plain(ids).grad_fn.name()  # so that this compares two ways


def test_a_gradient_is_added_to_what_is_there_and_to_that_of_a_tied_matrix(table):
    ids = torch.tensor([[1, 2, 2]])
    (table(ids).sum() + 2 * table.weight.sum()).backward()
    table(ids).sum().backward()
    counts = torch.zeros(ROWS).index_add_(0, ids[0], torch.ones(3))
    assert torch.equal(table.weight.grad, (2 + 2 * counts)[:, None].expand(-1, DIM))


def test_small_tables_and_frozen_ones_are_torchs(table, monkeypatch):
    monkeypatch.setattr(lookup, "lazy_zeros", lambda _: pytest.fail("not here"))
    small = lookup.Embedding(10, 4)
    small(torch.tensor([1])).sum().backward()
    table.requires_grad_(False)
    assert not table(torch.tensor([1])).requires_grad


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="memory is asked of Linux")
def test_a_gradient_of_few_rows_takes_little_memory(table):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096

    found, before = table(torch.arange(20)), resident()
    found.sum().backward()
    assert table.weight.grad.count_nonzero() == 20 * DIM  # and reading it takes none
    assert resident() - before < LARGE_BLOCK // 2


def test_lazy_zeros_are_zeros_to_write_to():
    zeros = lazy_zeros((300, 20))
    assert zeros.shape == (300, 20) and not zeros.any()
    zeros[299, 19] = 1.0
    assert float(zeros.sum()) == 1.0
