"""New weights: any depth and width starts at ln(vocab) and moves at the same pace."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from stockpot.model.config import decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer

VOCAB = 512


def first_loss(model: Transformer, **given: Any) -> float:
    ids = torch.randint(VOCAB, (4, 33), generator=torch.Generator().manual_seed(0))
    if model.config.shape == "encoder_decoder":
        given["source"] = ids
    with torch.no_grad():
        logits = model(ids[:, :-1], **given).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


@pytest.mark.parametrize("dim", [64, 512])
@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"tied": False},
        {"position": "learned"},
        {"position": "sinusoidal"},
        {"norm_place": "post", "final_norm": False},
        {"norm_place": "sandwich"},
        {"norm_place": "output"},
        {"zero_init": False},
        {"masked_head": True},
        {"init_std": 0.02},
    ],
    ids=str,
)
def test_the_first_loss_is_that_of_knowing_nothing(choices: dict[str, Any], dim: int) -> None:
    torch.manual_seed(0)
    for build in (decoder, encoder, encoder_decoder):
        model = Transformer(build(layers=3, dim=dim, heads=4, vocab_size=VOCAB, **choices))
        assert first_loss(model) == pytest.approx(math.log(VOCAB), abs=0.1)


@pytest.mark.parametrize("place", ["pre", "post", "output", "sandwich"])
@pytest.mark.parametrize("zero_init", [True, False])
def test_depth_changes_neither_the_loss_nor_the_size_of_activations(place: str, zero_init: bool) -> None:
    sizes = []
    for layers in (2, 8, 32):
        torch.manual_seed(0)
        choices = {"norm_place": place, "zero_init": zero_init}
        model = Transformer(decoder(layers=layers, dim=64, heads=4, vocab_size=VOCAB, **choices))
        assert first_loss(model) == pytest.approx(math.log(VOCAB), abs=0.1)
        with model.watch() as seen:
            first_loss(model)
        sizes.append(seen.hidden[-1].square().mean().sqrt().item())
    assert max(sizes) < 1.5 * min(sizes)


@pytest.mark.parametrize("place", ["pre", "sandwich"])
@pytest.mark.parametrize("zero_init", [True, False])
def test_gradients_reach_a_deep_model_evenly(place: str, zero_init: bool) -> None:
    torch.manual_seed(0)
    choices = {"norm_place": place, "zero_init": zero_init}
    model = Transformer(decoder(layers=24, dim=64, heads=4, vocab_size=VOCAB, **choices))
    ids = torch.randint(VOCAB, (4, 33))
    for _ in range(2):  # with zeroed writers, the first step opens the way for the second
        logits = model(ids[:, :-1]).logits
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        with torch.no_grad():
            for value in model.parameters():
                value -= 0.05 * value.grad / (value.grad.norm() + 1e-8) * value.numel() ** 0.5
    assert model.decoder is not None
    sizes = [layer.attention.qkv.weight.grad.norm().item() for layer in model.decoder.layers]
    assert min(sizes) > 0
    assert max(sizes) < 30 * min(sizes)


def test_the_same_settings_learn_at_any_depth() -> None:
    ids = torch.randint(64, (8, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for layers in (2, 8, 16):
        torch.manual_seed(0)
        model = Transformer(decoder(layers=layers, dim=32, heads=4, vocab_size=64))
        optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(30):
            logits = model(ids[:, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
    assert max(losses) < math.log(64) - 0.5
    assert max(losses) - min(losses) < 0.6  # deeper is a little quicker; none is stuck


def test_a_new_model_starts_as_its_embeddings() -> None:
    model = Transformer(decoder(layers=4, dim=64, heads=4, vocab_size=VOCAB))
    ids = torch.arange(8)[None]
    with model.watch() as seen:
        model(ids)
    assert all(torch.equal(hidden, model.embed(ids)) for hidden in seen.hidden)


def test_the_seed_decides_the_weights() -> None:
    def build(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return Transformer(decoder(layers=1, dim=32, heads=4, vocab_size=8)).decoder.layers[0].ffn.up.weight

    assert torch.equal(build(1), build(1))
    assert not torch.equal(build(1), build(2))
