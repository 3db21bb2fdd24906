"""Policy gradients: advantages by hand, clipping, KL estimates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stockpot.data.batch import RolloutBatch
from stockpot.data.branching import branched, tree_of
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.log_probs import label_log_probs
from stockpot.train.policy import (
    ActorCritic,
    PolicyConfig,
    gae,
    group_advantages,
    kl_k1,
    kl_k3,
    leave_one_out,
    policy_loss,
    whiten,
)


def test_gae_by_hand():
    # gamma 0.9, lambda 0.8; deltas: 1 + 0.9·2 - 0.5 = 2.3; 0 + 0.9·1 - 2 = -1.1; 2 - 1 = 1
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 2.0, 1.0]])
    advantages, returns = gae(rewards, values, gamma=0.9, lam=0.8)
    # A2 = 1; A1 = -1.1 + 0.72·1 = -0.38; A0 = 2.3 + 0.72·(-0.38) = 2.0264
    torch.testing.assert_close(advantages, torch.tensor([[2.0264, -0.38, 1.0]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(returns, torch.tensor([[2.5264, 1.62, 2.0]]), atol=1e-6, rtol=0)


def test_gae_is_the_double_sum_and_padding_does_not_matter():
    torch.manual_seed(0)
    rewards, values = torch.randn(1, 6), torch.randn(1, 6)
    found, _ = gae(rewards, values, gamma=0.95, lam=0.7)
    after = torch.cat((values[0, 1:], torch.zeros(1)))
    deltas = rewards[0] + 0.95 * after - values[0]
    wanted = [sum((0.95 * 0.7) ** (k - t) * deltas[k] for k in range(t, 6)) for t in range(6)]
    torch.testing.assert_close(found[0], torch.stack(wanted))
    padded = (torch.nn.functional.pad(one, (0, 3)) for one in (rewards, values))
    torch.testing.assert_close(gae(*padded, gamma=0.95, lam=0.7)[0][:, :6], found)
    with pytest.raises(ValueError, match="shape"):
        gae(rewards, values[:, :2], gamma=1.0, lam=1.0)


def test_group_baselines_by_hand():
    rewards = torch.tensor([[1.0, 3.0, 2.0]])
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor([[-1.5, 1.5, 0.0]]))
    torch.testing.assert_close(group_advantages(rewards, scale=False), torch.tensor([[-1.0, 1.0, 0.0]]))
    torch.testing.assert_close(group_advantages(rewards), torch.tensor([[-1.0, 1.0, 0.0]]) / 1.0001)
    assert group_advantages(torch.full((1, 4), 2.0)).tolist() == [[0.0] * 4]


def test_whitening():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    white = whiten(values)
    assert (white.mean().item(), white.std(correction=0).item()) == (
        pytest.approx(0, abs=1e-6),
        pytest.approx(1),
    )
    assert whiten(values, shift_mean=False).mean().item() == pytest.approx(3.0)


def test_kl_estimates_by_hand():
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_k1(policy, reference).item() == pytest.approx(math.log(2))
    assert kl_k3(policy, reference).item() == pytest.approx(0.5 + math.log(2) - 1)
    # both have the exact divergence as their mean under the policy
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    exact = (p * (p / q).log()).sum()
    for estimate in (kl_k1, kl_k3):
        assert (p * estimate(p.log(), q.log())).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def tiny():
    torch.manual_seed(0)
    return Transformer(decoder(layers=1, dim=16, heads=2, context=16, vocab_size=12, zero_init=False))


def rollout(policy, advantage, *, old_shift=0.0, **choices):
    """Make a batch of one prompt with two completions that the policy wrote."""
    texts, _ = branched([tree_of(np.array([1, 2], np.int32), [np.array(a, np.int32) for a in ([3, 4], [5])])])
    with torch.no_grad():
        found = label_log_probs(policy, texts)
    counted = (texts.labels != -100).float()
    old = found.spread(found.log_probs, texts.labels) - old_shift * counted
    return RolloutBatch(texts, old, advantage * counted, **choices)


def test_the_first_step_is_the_plain_policy_gradient():
    policy = tiny()
    loss = policy_loss(policy, rollout(policy, 2.0), PolicyConfig())
    loss.total.backward()
    found = policy.embed.weight.grad.clone()
    policy.zero_grad()
    batch = rollout(policy, 2.0)
    (-2.0 * label_log_probs(policy, batch.texts).log_probs.sum()).backward()
    torch.testing.assert_close(found, policy.embed.weight.grad, atol=1e-5, rtol=1e-4)
    assert loss.count == 3
    assert float(loss.metrics["kl_step"][0]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("advantage", "old_shift", "moves"), [(1.0, 0.5, False), (1.0, -0.5, True), (-1.0, -0.5, False)]
)
def test_beyond_the_clip_range_nothing_is_gained(advantage, old_shift, moves):
    policy = tiny()
    loss = policy_loss(policy, rollout(policy, advantage, old_shift=old_shift), PolicyConfig(clip_range=0.2))
    loss.total.backward()
    assert bool(policy.embed.weight.grad.abs().max() > 1e-6) is moves
    assert float(loss.metrics["clipped"][0]) == 3


def test_values_are_clipped_like_probabilities():
    model = ActorCritic(tiny())
    counted = rollout(model.policy, 0.0).advantages.ne(0).float()
    batch = rollout(model.policy, 0.0)
    counted = (batch.texts.labels != -100).float()
    batch.returns, batch.old_values = 1.0 * counted, -1.0 * counted
    # the head says 0: plain error 1, clipped value -0.8: error 1.8² = 3.24
    loss = policy_loss(model, batch, PolicyConfig(value_coef=1.0, value_clip=0.2))
    assert float(loss.metrics["value_loss"][0]) == pytest.approx(0.5 * 3 * 3.24, abs=1e-5)
    loss = policy_loss(model, batch, PolicyConfig(value_coef=1.0, value_clip=None))
    assert float(loss.metrics["value_loss"][0]) == pytest.approx(0.5 * 3, abs=1e-5)


def test_the_distance_from_the_reference_has_its_price():
    policy = tiny()
    batch = rollout(policy, 0.0)
    counted = (batch.texts.labels != -100).float()
    batch.reference_log_probs = batch.old_log_probs - math.log(2) * counted
    loss = policy_loss(policy, batch, PolicyConfig(kl_coef=0.1))
    assert loss.total.item() == pytest.approx(0.1 * 3 * (0.5 + math.log(2) - 1), abs=1e-5)
    assert policy_loss(policy, batch, PolicyConfig(), 0.0).total.item() == pytest.approx(0.0, abs=1e-6)
