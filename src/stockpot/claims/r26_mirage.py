"""Row 26: whether the jump comes from the metric."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from stockpot.claims.claim import Claim, Finding, Material, above, below
from stockpot.claims.family import family_of

SMOOTH = ("edit", "nats", "brier")


def measure(material: Material) -> Sequence[Finding]:
    """Compare exact match with p^n of the same outputs, and the steps of smooth measures with those of exact match."""
    off, smoother = [], []
    for task in family_of(material):
        if task["off"] is not None:
            off.append(task["off"])
        exact = _step([one["scores"]["exact"]["value"] for one in task["points"]])
        others = [
            _step([one["scores"][name]["value"] for one in task["points"]])
            for name in task["points"][0]["scores"]
            if name.startswith(SMOOTH)
        ]
        smoother.append(exact - sum(others) / len(others))
    return [
        below(
            "distance of exact match from p^n of the tokens' likelihood, mean over sizes", off, 0.05, n=1000
        ),
        above(
            "largest step: exact match minus smooth measures, as shares of their ranges",
            smoother,
            0.0,
            n=1000,
        ),
    ]


def _step(values: Sequence[float]) -> float:
    """Give the largest step between neighbours as a share of the range."""
    span = max(values) - min(values)
    steps = [abs(b - a) for a, b in pairwise(values)]
    return max(steps) / span if span else 0.0


CLAIM = Claim(
    26,
    "mirage",
    "The jump comes from the metric",
    "over 92 % of claimed emergent abilities appear under two metrics, multiple choice grade and exact match "
    "(Schaeffer et al. 2023, "
    "arXiv:2304.15004)",
    "the same outputs as for emergence under token edit distance, log-likelihood a token and Brier score; p^n beside exact match",
    measure,
    "Exact match is p^n of the tokens, as the paper says. Where a smaller model has not found the rule and a "
    "larger one has, the smooth "
    "measures of the same outputs jump, too: that jump is no mirage.",
    needs_cooks=False,
)
