"""Row 3: without positions, attention is blind to order."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stockpot.claims.claim import Claim, Finding, Material, above, below
from stockpot.model.config import encoder
from stockpot.model.transformer import Transformer

POSITIONS = ("rope", "learned", "sinusoidal", "alibi")


@torch.inference_mode()
def measure(material: Material) -> Sequence[Finding]:
    """Exchange two tokens before the one that is looked at, in encoders with drawn weights."""
    moved: dict[str, list[float]] = {}
    for seed in material.seeds:
        ids = torch.randint(5, 60, (256, 12), generator=torch.Generator().manual_seed(seed))
        other = ids.clone()
        other[:, [2, 7]] = ids[:, [7, 2]]
        for kind in ("none", *POSITIONS):
            torch.manual_seed(seed)
            shape = encoder(
                layers=2, dim=32, heads=2, context=32, vocab_size=64, position=kind, zero_init=False
            )
            model = Transformer(shape).eval()
            change = (model(ids).hidden[:, 0] - model(other).hidden[:, 0]).abs().amax(1).mean()
            moved.setdefault(kind, []).append(float(change))
    blind = below(
        "change of a state when two other tokens change places, no positions", moved["none"], 1e-5, n=256
    )
    seen = [above(f"the same, {kind}", moved[kind], 1e-3, n=256) for kind in POSITIONS]
    return [blind, *seen]


CLAIM = Claim(
    3,
    "order",
    "Without positions an encoder does not see order",
    "attention is equivariant to order (Vaswani et al. 2017, arXiv:1706.03762, §3.5)",
    "encoders of two layers with drawn weights; no training",
    measure,
    "T5's relative buckets are not among them: their biases begin at zero, so that order is learned. How positions hold beyond "
    "the length of "
    "training is not measured here.",
    needs_cooks=False,
)
