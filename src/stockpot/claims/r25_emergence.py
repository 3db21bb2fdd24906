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
    "The three tasks take turns, so each had a third of the steps, and few models had finished learning. Where a task is learned "
    "it is by luck: of three models of one width one knows all of it and two hardly any (`benchmarks/results/emergence.md`). "
    "Each leaps from nothing to everything; the mean of the three does not rise with size surely enough.",
    needs_cooks=False,
    over="tasks",
)
