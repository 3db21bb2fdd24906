"""Heads on top of hidden states."""

from __future__ import annotations

import torch

from stockpot.model.heads import ClassificationHead, ValueHead, last_real, mean_real


def test_a_pair_is_judged_by_its_first_token() -> None:
    head, hidden = ClassificationHead(8, 3), torch.randn(2, 5, 8)
    changed = hidden.clone()
    changed[:, 1:] = 0
    assert head(hidden).shape == (2, 3)
    torch.testing.assert_close(head(hidden), head(changed))


def test_values_start_at_zero_and_exist_at_every_position() -> None:
    head, hidden = ValueHead(8), torch.randn(2, 5, 8)
    assert torch.equal(head(hidden), torch.zeros(2, 5))
    head(hidden).sum().backward()
    assert head.out.weight.grad is not None
    assert bool(head.out.weight.grad.any())


def test_the_last_real_token_is_found_on_either_side_of_padding() -> None:
    values = torch.arange(10.0).view(2, 5)
    mask = torch.tensor([[True, True, False, False, False], [False, False, True, True, True]])
    assert last_real(values, mask).tolist() == [1.0, 9.0]
    assert last_real(values, mask.long()).tolist() == [1.0, 9.0]
    assert last_real(values, None).tolist() == [4.0, 9.0]
    assert last_real(torch.randn(2, 5, 8), mask).shape == (2, 8)


def test_the_mean_leaves_padding_out() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert mean_real(hidden, mask).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    torch.testing.assert_close(mean_real(hidden, None), hidden.mean(1))
