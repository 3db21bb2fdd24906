"""Row 15: examples in the prompt help, and how much their labels matter."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above, below
from stockpot.claims.material import open_stage
from stockpot.judge.shots import shots_curve
from stockpot.prompt.items import Questions

ITEMS = 80


def measure(material: Material) -> Sequence[Finding]:
    """Show 0 or 4 examples with right, random or wrong labels."""
    help_, gap = [], []
    for cook in material.cooks:
        curve = shots_curve(
            open_stage(cook, "pretrain"), Questions(task="sentiment", limit=ITEMS), ks=(0, 4), draws=2
        )
        at = {(one.kind, one.k): one.accuracy.value for one in curve.points}
        help_.append(at["gold", 4] - at["gold", 0])
        gap.append(at["gold", 4] - at["random", 4])
    return [
        above("accuracy: 4 examples minus none", help_, 0.0, n=ITEMS),
        below("accuracy: right labels minus random ones (small, as Min et al. found)", gap, 0.05, n=ITEMS),
    ]


CLAIM = Claim(
    15,
    "examples",
    "Examples in the prompt help, and right labels hardly matter",
    "right labels against random ones: 0.8 to 1.6 points (Min et al. 2022, arXiv:2202.12837)",
    "sentiment of village reviews, 4 examples, the cooks' base models",
    measure,
    "Models of a few million parameters that were trained on documents in which no label follows a slash have little to learn "
    "from examples in a prompt; in-context learning is a matter of scale and of data (Chan et al. 2022, arXiv:2205.05055).",
    on_base=True,
)
