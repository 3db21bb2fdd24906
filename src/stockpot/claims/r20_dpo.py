"""Row 20: DPO from comparisons of its own answers makes a model that is preferred."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import contest_of


def measure(material: Material) -> Sequence[Finding]:
    """Read the cooks' contests."""
    gold, rewarded, n = [], [], 0
    for cook in material.cooks:
        found = contest_of(cook)
        entry = next(one for one in found.entries if one.model == "dpo")
        gold.append(found.win_rate(entry, "gold").value)
        rewarded.append(found.win_rate(entry, "reward model").value)
        n = len(found.prompts)
    return [
        above("win rate against the tuned model by the villagers' exact taste", gold, 0.5, n=n),
        above("the same by the reward model", rewarded, 0.5, n=n),
    ]


CLAIM = Claim(
    20,
    "dpo",
    "DPO raises what is preferred: the model wins more than half",
    "summaries: 61 % against the reference at temperature 0 (Rafailov et al. 2023, arXiv:2305.18290)",
    "comparisons of each cook's tuned model's own answers by the villagers; answers to 200 unseen prompts at temperature 1",
    measure,
    "That the loss equals TRL's on the same batch is held by a test (`tests/train/test_preference.py`).",
)
