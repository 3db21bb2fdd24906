"""Row 9: cross-entropy is the negative logarithm of what the true class was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stockpot.claims.claim import Claim, Finding, Material, held


def measure(material: Material) -> Sequence[Finding]:
    """Compute the slide's example."""
    given = torch.tensor([[0.1, 0.6, 0.1, 0.15, 0.05]])
    loss = float(torch.nn.functional.cross_entropy(given.log(), torch.tensor([1])))
    return [held("the true class of five at 0.6 costs 0.51 nats", [float(round(loss, 2) == 0.51)])]


CLAIM = Claim(
    9,
    "cross-entropy",
    "Training minimises −log of the right token's probability",
    "0.51 in the slide's example",
    "the example; exact resuming is held by tests (`tests/stages/test_pretrain.py`)",
    measure,
    needs_cooks=False,
)
