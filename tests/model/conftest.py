"""Tiny models with lively weights: a new model's zeros and small gains would hide mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from stockpot.model.config import ModelConfig, decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer

VOCAB = 61
BUILDERS = {"decoder": decoder, "encoder": encoder, "encoder_decoder": encoder_decoder}


def enliven(module: torch.nn.Module, seed: int = 0) -> None:
    """Give every weight a random value: matrices keep sizes, gains are near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise * value.shape[-1] ** -0.5)
            else:
                value.copy_((1 if value.mean() > 0.01 else 0) + 0.2 * noise)


@pytest.fixture
def tiny() -> Callable[..., Transformer]:
    """Build ``tiny("decoder", **choices)``: 2 layers, 32 wide, 4 heads of which 2 hold keys, in eval mode."""

    def build(shape: str = "decoder", **choices: Any) -> Transformer:
        sizes: dict[str, Any] = {"layers": 2, "dim": 32, "heads": 4, "context": 64, "vocab_size": VOCAB}
        config: ModelConfig = BUILDERS[shape](**{**sizes, "kv_heads": 2, **choices})
        model = Transformer(config).eval()
        enliven(model)
        return model

    return build


@pytest.fixture
def ids() -> Callable[..., torch.Tensor]:
    """Draw ``ids(batch, seq, seed=0)`` token ids."""

    def draw(batch: int, seq: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))

    return draw
