"""Row 4: a layer maps L vectors to L others, and says where it looked."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stockpot.claims.claim import Claim, Finding, Material, held
from stockpot.claims.material import open_stage

TEXT = "Where does the baker live?"


@torch.inference_mode()
def measure(material: Material) -> Sequence[Finding]:
    """Watch the base models read a text."""
    rows, causal, shapes = [], [], []
    for cook in material.cooks:
        bundle = open_stage(cook, "pretrain")
        ids = torch.tensor([bundle.encode(TEXT)])
        with bundle.model.watch() as seen:
            output = bundle.model(ids)
        weights = torch.stack([layer.float() for layer in seen.attention])
        rows.append(float(torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-3)))
        causal.append(float(weights.triu(1).abs().max() == 0))
        shapes.append(float(output.hidden.shape == (1, ids.shape[1], bundle.model.config.dim)))
    return [
        held("every head's weights add up to 1 for every token", rows),
        held("no token looks ahead", causal),
        held("L vectors go in and L come out", shapes),
    ]


CLAIM = Claim(
    4,
    "layer",
    "A layer turns L vectors into L others; its attention can be read",
    "the lecture's picture of attention word by word",
    "the cooks' base models on one question",
    measure,
    on_base=True,
)
