from __future__ import annotations

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.model.transformer import Transformer
from stockpot.stages.sizes import estimate, fit_budget, sized
from stockpot.train.loop import LoopConfig


@pytest.mark.parametrize("shape", ["decoder", "encoder", "encoder_decoder"])
def test_parameters_are_counted_without_building(shape):
    config = sized(2, vocab_size=300, context=32, shape=shape)
    built = sum(p.numel() for p in Transformer(config).parameters())
    assert config.parameters() == built


def test_a_deeper_dial_is_a_larger_model():
    sizes = [sized(depth, vocab_size=4096, context=256).parameters() for depth in (2, 4, 8, 16)]
    assert sizes == sorted(sizes)


def test_an_estimate_adds_up():
    plan = estimate(
        sized(4, vocab_size=1024, context=128), tokens=1_000_000, tokens_per_s=2_000.0, batch_tokens=4096
    )
    assert plan.seconds == 500.0
    assert plan.flops > 6 * plan.parameters * plan.tokens * 0.9
    assert 0 < plan.memory_gib < 1


def test_the_smallest_candidate_is_always_possible():
    candidates = [sized(depth, vocab_size=512, context=64) for depth in (2, 3)]
    loop = LoopConfig(batch_tokens=128)
    plan = fit_budget(candidates, 0.001, loop=loop, device=torch.device("cpu"))
    assert plan.depth == 2
    assert plan.tokens == int(plan.tokens_per_s * 0.001)


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="no budget"):
        fit_budget([], 0.0, loop=LoopConfig(), device=torch.device("cpu"))


@pytest.mark.parametrize(
    "wrong",
    [lambda: sized(0, vocab_size=8, context=8), lambda: sized(2, vocab_size=8, context=8, shape="rnn")],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
