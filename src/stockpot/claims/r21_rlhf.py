"""Row 21: a reward model and PPO, from one's own comparisons, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import contest_of
from stockpot.run import Run


def measure(material: Material) -> Sequence[Finding]:
    """Read the cooks' contests and reward models."""
    told, rewarded, gold, n, pairs = [], [], [], 0, 0
    for cook in material.cooks:
        found = contest_of(cook)
        entry = next(one for one in found.entries if one.model == "ppo")
        rewarded.append(found.win_rate(entry, "reward model").value)
        gold.append(found.win_rate(entry, "gold").value)
        accuracy = Run.open(cook / "reward").manifest["accuracy"]
        told.append(accuracy["value"])
        n, pairs = len(found.prompts), accuracy["n"]
    return [
        above("held-out comparisons that the reward model tells apart, share", told, 0.5, n=pairs),
        above("win rate against the tuned model by the reward model PPO was paid by", rewarded, 0.5, n=n),
        above("the same by the villagers' exact taste", gold, 0.5, n=n),
    ]


CLAIM = Claim(
    21,
    "rlhf",
    "A reward model and PPO make a model that people prefer",
    "InstructGPT's labelers prefer the PPO model to the SFT model (Ouyang et al. 2022, arXiv:2203.02155, figure 1)",
    "each cook's reward model and PPO; answers to 200 unseen prompts at temperature 1",
    measure,
)
