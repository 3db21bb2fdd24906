"""Row 13: the wording decides how probable the right answer is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.material import open_stage
from stockpot.judge.prompts import prompts
from stockpot.prompt.items import Questions

ITEMS = 40


def measure(material: Material) -> Sequence[Finding]:
    """Ask the same entailment items in every wording."""
    spread, accuracy = [], []
    for cook in material.cooks:
        found = prompts(open_stage(cook, "pretrain"), Questions(task="nli", limit=ITEMS))
        chances = [one.log_prob.value for one in found.scores]
        spread.append((max(chances) - min(chances)) / math.log(10))
        low, _, high = found.spread("calibrated")
        accuracy.append(high - low)
    return [
        above("P(right): powers of ten between the best and the worst of 22 wordings", spread, 1.0, n=ITEMS),
        above("accuracy, calibrated: best minus worst wording", accuracy, 0.0, n=ITEMS),
    ]


CLAIM = Claim(
    13,
    "wording",
    "The same question in other words: the right answer's probability moves by powers of ten",
    "1 in 10,000, 1 in 20, 1 in 2 for three wordings of one item (the lecture's slide)",
    "22 wordings of 40 village entailment items, the cooks' base models",
    measure,
    "The best of many wordings is above the worst by chance alone, too; the first finding is far beyond that, "
    "the second one may not be.",
    on_base=True,
)
