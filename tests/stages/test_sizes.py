from __future__ import annotations

from itertools import count

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA, has_adapters
from stockpot.model.transformer import Transformer
from stockpot.stages import sizes
from stockpot.stages.sizes import estimate, fit_budget, sized
from stockpot.train.loop import LoopConfig


@pytest.mark.parametrize("shape", ["decoder", "encoder", "encoder_decoder"])
def test_parameters_are_counted_without_building(shape):
    config = sized(2, vocab_size=300, context=32, shape=shape)
    built = sum(p.numel() for p in Transformer(config).parameters())
    assert config.parameters() == built


def test_a_deeper_dial_is_a_larger_model():
    found = [sized(depth, vocab_size=4096, context=256).parameters() for depth in (2, 4, 8, 16)]
    assert found == sorted(found)


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


def test_a_measurement_lasts_until_a_processor_is_fast_and_is_too_short_to_compile_for(monkeypatch):
    model, seen = sized(2, vocab_size=64, context=32), []

    def counted(network, batches, loss_fn, config, progress):
        taken = 0
        for _ in batches:
            taken += 1
            now.append(now[-1] + 0.2)
            progress({"tokens_per_s": 100.0 * taken})
        seen.append((taken, config.steps))

    now = [0.0]
    monkeypatch.setattr(sizes, "fit", counted)
    monkeypatch.setattr(sizes.time, "monotonic", lambda: now[-1])
    speed = sizes.training_speed(model, loop=LoopConfig(steps=10**4), device=torch.device("cpu"))
    assert seen == [(8, 500)]  # 1.5 s of steps that take 0.2 s; `fit` compiles on a GPU from 1,000 on
    assert speed == pytest.approx(0.9 * 800)


def test_steps_of_an_adapter_are_measured_as_they_are_taken(monkeypatch):
    """Those of training all weights were measured, in one micro-batch each."""
    seen = []

    def counted(network, batches, loss_fn, config, *, progress):
        sizes_of = [batch.tokens for batch in batches]
        seen.append((has_adapters(network), config.batch_tokens, set(sizes_of), len(sizes_of)))
        progress({"tokens_per_s": 1.0})
        progress({"tokens_per_s": 2.0})

    monkeypatch.setattr(sizes, "fit", counted)
    monkeypatch.setattr(sizes.time, "monotonic", count(0.0, 11.0).__next__)  # a slow machine
    model = sized(1, vocab_size=64, context=32)
    loop = LoopConfig(batch_tokens=256)
    place = torch.device("cpu")
    sizes.training_speed(model, loop=loop, device=place, at_once=64, adapter=LoRA(rank=2))
    assert seen == [(True, 256, {64}, 8)]  # two steps of four micro-batches
