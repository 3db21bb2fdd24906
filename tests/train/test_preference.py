"""Losses on comparisons: by-hand numbers, ties, and a tiny model that learns to prefer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stockpot.data.batch import Batch, PreferenceBatch
from stockpot.data.branching import branched, tree_of
from stockpot.errors import ConfigError
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.preference import (
    PreferenceConfig,
    answer_rewards,
    bradley_terry,
    dpo,
    ipo,
    preference_loss,
    reward_loss,
    simpo,
)

ONE = torch.tensor([1.0])
TIE = torch.tensor([0.5])


def batch_of(*pairs, **choices):
    """Make a batch of (prompt, chosen, rejected) ids."""
    trees = [tree_of(_ids(p), [_ids(c), _ids(r)]) for p, c, r in pairs]
    texts, _ = branched(trees)
    return PreferenceBatch(texts, choices.pop("chance", torch.ones(len(pairs))), **choices)


def _ids(values):
    return np.array(values, np.int32)


PAIRS = [([1, 2], [3, 4], [5]), ([1], [6], [7, 8, 9]), ([2, 3], [4], [5, 6])]


def tiny(**choices):
    torch.manual_seed(0)
    sizes = {"layers": 2, "dim": 16, "heads": 2, "context": 16, "vocab_size": 12, "zero_init": False}
    return Transformer(decoder(**sizes, **choices))


def test_dpo_by_hand():
    # log(policy / reference): chosen 1.0, rejected -0.5; beta 0.2: -log sigmoid(0.2 · 1.5) = log(1 + e^-0.3)
    loss = dpo(torch.tensor([1.5]), ONE, PreferenceConfig(beta=0.2))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3)), abs=1e-6)
    assert loss.item() == pytest.approx(0.554355, abs=1e-6)


def test_conservative_dpo_by_hand():
    # 0.9 · 0.554355 + 0.1 · 0.854355
    loss = dpo(torch.tensor([1.5]), ONE, PreferenceConfig(beta=0.2, label_smoothing=0.1))
    assert loss.item() == pytest.approx(0.584355, abs=1e-6)


def test_ipo_by_hand():
    # (0.5 - 1 / (2 · 0.25))² = 1.5²
    assert ipo(
        torch.tensor([0.5]), ONE, PreferenceConfig(objective="ipo", beta=0.25)
    ).item() == pytest.approx(2.25)
    assert ipo(
        torch.tensor([0.5]), TIE, PreferenceConfig(objective="ipo", beta=0.25)
    ).item() == pytest.approx(0.25)


def test_simpo_by_hand():
    # -log sigmoid(2 · 0.4 - 0.5) = log(1 + e^-0.3)
    config = PreferenceConfig(objective="simpo", beta=2.0, gamma=0.5)
    assert simpo(torch.tensor([0.4]), ONE, config).item() == pytest.approx(0.554355, abs=1e-6)


def test_bradley_terry_by_hand():
    # -log sigmoid(2 - 0.7 - 1) = log(1 + e^-0.3); a tie: (log(1 + e^-1.3) + log(1 + e^1.3)) / 2
    chosen, rejected = torch.tensor([2.0]), torch.tensor([0.7])
    assert bradley_terry(chosen, rejected, ONE, 1.0).item() == pytest.approx(0.554355, abs=1e-6)
    assert bradley_terry(chosen, rejected, TIE).item() == pytest.approx(0.241008 + 0.65, abs=1e-6)


@pytest.mark.parametrize("objective", ["dpo", "simpo"])
def test_a_tie_pulls_both_ways_equally(objective):
    delta = torch.tensor([0.0], requires_grad=True)
    config = PreferenceConfig(objective=objective, gamma=0.0)
    loss = {"dpo": dpo, "simpo": simpo}[objective](delta, TIE, config)
    (slope,) = torch.autograd.grad(loss.sum(), delta)
    assert slope.item() == 0.0


def test_a_batch_gives_the_loss_of_its_log_probabilities():
    model, batch = tiny(), batch_of(*PAIRS)
    reference = torch.tensor([-3.0, -2.0, -1.0, -9.0, -2.5, -4.0])
    batch.reference = reference
    config = PreferenceConfig(beta=0.3)
    loss = preference_loss(model, batch, config)

    def said(prompt, answer):
        logits = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        return sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(answer))

    sums = torch.stack([said(p, a) for p, c, r in PAIRS for a in (c, r)])
    shift = sums - reference
    delta = shift[0::2] - shift[1::2]
    torch.testing.assert_close(
        loss.total, -torch.nn.functional.logsigmoid(0.3 * delta).sum(), atol=1e-4, rtol=1e-5
    )
    assert loss.count == 3
    total, count = loss.metrics["margin"]
    assert float(total / count) == pytest.approx(0.3 * delta.mean().item(), abs=1e-4)
    total, count = loss.metrics["rejected_log_prob"]
    assert float(total / count) == pytest.approx(sums[1::2].mean().item(), abs=1e-4)
    total, count = loss.metrics["accuracy"]
    assert float(total / count) == pytest.approx((delta > 0).float().mean().item())


def test_a_chosen_answers_own_loss_is_added_per_token_and_a_tie_has_none():
    model = tiny()
    batch = batch_of(*PAIRS[:2], reference=torch.zeros(4), chance=torch.tensor([1.0, 0.5]))
    plain = preference_loss(model, batch, PreferenceConfig())
    anchored = preference_loss(model, batch, PreferenceConfig(chosen_weight=0.5))
    ids = torch.tensor([[1, 2, 3, 4]])
    log_probs = model(ids).logits.detach().log_softmax(-1)
    own = -(log_probs[0, 1, 3] + log_probs[0, 2, 4]) / 2
    assert float((anchored.total - plain.total).detach()) == pytest.approx(0.5 * float(own), rel=1e-4)


def test_per_token_scores_do_not_depend_on_length():
    model = tiny()
    config = PreferenceConfig(objective="simpo", beta=1.0)
    loss = preference_loss(model, batch_of(*PAIRS), config)
    assert "chosen_shift" not in loss.metrics
    with pytest.raises(ValueError, match="reference"):
        preference_loss(model, batch_of(*PAIRS), PreferenceConfig())


def test_ties_do_not_count_in_the_accuracy():
    batch = batch_of(*PAIRS, chance=torch.tensor([1.0, 0.5, 1.0]), reference=torch.zeros(6))
    loss = preference_loss(tiny(), batch, PreferenceConfig())
    assert float(loss.metrics["accuracy"][1]) == 2


def test_a_setting_that_means_nothing_is_refused():
    with pytest.raises(ConfigError, match="label_smoothing"):
        PreferenceConfig(objective="ipo", label_smoothing=0.1)


@pytest.mark.parametrize("objective", ["dpo", "ipo", "simpo"])
def test_a_tiny_model_learns_to_prefer(objective):
    model, batch = tiny(), batch_of(*PAIRS, reference=torch.zeros(6))
    with torch.no_grad():
        from stockpot.train.log_probs import label_log_probs

        batch.reference = label_log_probs(model, batch.texts).per_answer(batch.texts)[0]
    config = PreferenceConfig(objective=objective, beta=0.5)
    before = preference_loss(model, batch, config).metrics["margin"]
    loop = LoopConfig(steps=20, batch_tokens=1, lr=1e-2, optimizer="adamw", dtype="float32")
    fit(model, [batch] * 20, lambda m, b: preference_loss(m, b, config), loop)
    after = preference_loss(model, batch, config)
    assert float(after.metrics["margin"][0]) > float(before[0]) + 1
    assert float(after.metrics["accuracy"][0]) == 3


def test_a_reward_is_read_at_the_last_token_of_each_answer():
    model = tiny(value_head=True)
    with torch.no_grad():
        model.value_head.out.weight.normal_()
    batch = batch_of(*PAIRS)
    rewards = answer_rewards(model, batch.texts)
    for number, (prompt, answer) in enumerate((p, a) for p, c, r in PAIRS for a in (c, r)):
        alone = model.values(model(torch.tensor([prompt + answer]), last=0).hidden)[0, -1]
        assert rewards[number].item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_tiny_reward_model_learns_to_rank_and_stays_centred():
    model, batch = tiny(value_head=True), batch_of(*PAIRS)
    loop = LoopConfig(steps=30, batch_tokens=1, lr=1e-2, optimizer="adamw", dtype="float32")
    fit(model, [batch] * 30, reward_loss, loop)
    loss = reward_loss(model, batch)
    assert float(loss.metrics["accuracy"][0]) == 3
    assert abs(float(loss.metrics["reward"][0]) / 3) < 0.2
    assert float(loss.metrics["brier"][0]) / 3 < 0.1


def test_a_margin_asks_for_a_larger_difference():
    batch = batch_of(*PAIRS, margin=torch.tensor([0.0, 0.0, 3.0]))
    model = tiny(value_head=True)
    plain = reward_loss(model, batch, centre_weight=0.0)
    more = reward_loss(model, batch, margin_weight=1.0, centre_weight=0.0)
    # rewards are all zero at first: 3 · log 2 against 2 · log 2 + log(1 + e^3)
    assert plain.total.item() == pytest.approx(3 * math.log(2), abs=1e-6)
    assert more.total.item() == pytest.approx(2 * math.log(2) + math.log(1 + math.exp(3)), abs=1e-5)


def test_answers_are_needed():
    ids = torch.zeros(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="no answers"):
        answer_rewards(tiny(value_head=True), Batch(ids, ids))
