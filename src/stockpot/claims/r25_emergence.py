"""Row 25: exact match jumps with scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from stockpot.claims.claim import Claim, Finding, Material, above
from stockpot.claims.family import family_of


def measure(material: Material) -> Sequence[Finding]:
    """Look for the largest step of exact match between neighbouring sizes."""
    jumps = []
    for task in family_of(material):
        exact = [one["scores"]["exact"]["value"] for one in task["points"]]
        jumps.append(max(b - a for a, b in pairwise(exact)))
    return [above("largest step of exact match from one size to the next", jumps, 0.3, n=1000)]


CLAIM = Claim(
    25,
    "emergence",
    "Exact match jumps with scale",
    "abilities that are absent in small models and present in large ones (Wei et al. 2022, arXiv:2206.07682)",
    "seven sizes that learn codes by heart, addition without carrying and true addition; each task counts as one value",
    measure,
    "With 4,500 steps in the place of 1,500 sums jump from nothing to two models of three at the largest width, and codes rise "
    "with size; columns are found by one or two seeds of three at three widths and by none at one between them. All three "
    "largest steps lie beyond the bar; three tasks leave an interval that does not (`benchmarks/results/emergence.md`).",
    needs_cooks=False,
    over="tasks",
)
