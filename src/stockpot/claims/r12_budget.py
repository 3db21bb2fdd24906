"""Row 12: compute, memory and time are known before the start."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above, below


def measure(material: Material) -> Sequence[Finding]:
    """Compare the minutes that the cooks were given with those they took."""
    whole = []
    for cook in material.cooks:
        state = json.loads((cook / "cook.json").read_text(encoding="utf-8"))
        text = (cook / "recipe.toml").read_text(encoding="utf-8")
        given = re.search(r"--minutes (\S+)", text)
        if given is None:
            material.told.append("A cook was given no minutes, so there is nothing to compare with.")
        minutes = math.nan if given is None else float(given[1])
        whole.append(sum(one.get("seconds", 0.0) for one in state.values()) / (60 * minutes))
    return [
        below("all stages, minutes taken over minutes given", whole, 1.1),
        above("the same", whole, 0.75),
    ]


CLAIM = Claim(
    12,
    "budget",
    "One size dial; the minutes are planned before the start",
    "the lecture's GPU-poor, middle class and rich",
    "the cooks' own plans: size and steps were chosen from a measurement of a few steps",
    measure,
    "A cook measures the machine at its start; what others do on it later makes it longer. Larger machines: "
    "`benchmarks/results/scale.md`.",
    on_base=True,
)
