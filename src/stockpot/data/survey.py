"""What comparisons are worth, before anything is trained on them.

Leaves out pairs that say nothing, counts what contradicts itself, and tells two things that often explain a result: how
often the longer answer was chosen, and how well the raters agree. It encodes nothing and sees no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stockpot.data.pairs import prompt_key
from stockpot.data.records import PreferenceRecord, Record
from stockpot.errors import DataError

__all__ = ["Survey", "survey"]

Vote = int  # 1: the first answer in alphabetical order is better, -1: the second, 0: a tie


@dataclass(frozen=True)
class Survey:
    """What was found in comparisons.

    Attributes:
        pairs: comparisons that are of use.
        prompts: different prompts among them.
        ties: comparisons in which neither answer was better.
        identical: comparisons of an answer with itself, which were left out.
        repeated: comparisons that say the same as an earlier one by the same rater, which were left out.
        contradicted: pairs of answers of which different comparisons prefer different sides.
        longer_chosen: comparisons without ties in which the longer answer was chosen; with ``of_different_length``.
        of_different_length: comparisons without ties whose answers differ in length.
        chosen_chars: mean length of chosen answers.
        rejected_chars: mean length of rejected answers.
        raters: different raters who are named.
        rated_twice: pairs of answers that several raters compared.
        agreement: share of those raters' pairs of votes that are equal; None without any.
        alpha: Krippendorff's alpha of these votes: 1 = agreement, 0 = chance; None without any.
    """

    pairs: int
    prompts: int
    ties: int
    identical: int
    repeated: int
    contradicted: int
    longer_chosen: int
    of_different_length: int
    chosen_chars: float
    rejected_chars: float
    raters: int
    rated_twice: int
    agreement: float | None
    alpha: float | None

    def __str__(self) -> str:
        lines = [f"{self.pairs:,} comparisons of {self.prompts:,} prompts, {self.ties:,} ties"]
        if self.identical or self.repeated:
            lines.append(f"left out: {self.identical:,} of an answer with itself, {self.repeated:,} repeated")
        if self.contradicted:
            lines.append(f"{self.contradicted:,} pairs of answers are preferred one way and the other")
        if self.of_different_length:
            share = self.longer_chosen / self.of_different_length
            lines.append(
                f"the longer answer was chosen in {share:.0%} (mean {self.chosen_chars:.0f} characters against "
                f"{self.rejected_chars:.0f})" + (": a model may learn length instead" if share > 0.65 else "")
            )
        if self.agreement is not None and self.alpha is not None:
            lines.append(
                f"{self.raters} raters agree on {self.agreement:.0%} of {self.rated_twice:,} pairs rated more than once "
                f"(alpha {self.alpha:.2f})"
            )
        return "; ".join(lines)


def survey(records: Iterable[Record]) -> tuple[list[PreferenceRecord], Survey]:
    """Sort out comparisons: those that are of use, and what was found.

    Raises:
        DataError: if a record is no comparison, or none is of use.
    """
    kept: list[PreferenceRecord] = []
    seen: set[tuple[object, ...]] = set()
    votes: dict[tuple[str, str, str], list[tuple[str | None, Vote]]] = defaultdict(list)
    identical = repeated = 0
    for record in records:
        if not isinstance(record, PreferenceRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record; comparisons have a prompt, a chosen and a rejected answer.",
                "`stockpot inspect` shows what a file holds.",
            )
        if record.chosen.strip() == record.rejected.strip():
            identical += 1
            continue
        prompt = prompt_key(record)
        first, second = sorted((record.chosen, record.rejected))
        vote: Vote = 0 if record.tie else 1 if first == record.chosen else -1
        mark = (prompt, first, second, vote, record.annotator)
        if mark in seen:
            repeated += 1
            continue
        seen.add(mark)
        votes[prompt, first, second].append((record.annotator, vote))
        kept.append(record)
    if not kept:
        raise DataError(
            f"There is no comparison to learn from ({identical} compare an answer with itself).",
            "Look at the data's files.",
        )
    return kept, _summary(kept, votes, identical, repeated)


def _summary(
    kept: Sequence[PreferenceRecord],
    votes: dict[tuple[str, str, str], list[tuple[str | None, Vote]]],
    identical: int,
    repeated: int,
) -> Survey:
    clear = [record for record in kept if not record.tie]
    uneven = [record for record in clear if len(record.chosen) != len(record.rejected)]
    rated = [[vote for _, vote in one] for one in votes.values() if len({who for who, _ in one}) > 1]
    agreement, alpha = agreement_of(rated)
    return Survey(
        pairs=len(kept),
        prompts=len({prompt for prompt, _, _ in votes}),
        ties=len(kept) - len(clear),
        identical=identical,
        repeated=repeated,
        contradicted=sum(len({vote for _, vote in one if vote}) > 1 for one in votes.values()),
        longer_chosen=sum(len(record.chosen) > len(record.rejected) for record in uneven),
        of_different_length=len(uneven),
        chosen_chars=sum(len(record.chosen) for record in kept) / len(kept),
        rejected_chars=sum(len(record.rejected) for record in kept) / len(kept),
        raters=len({record.annotator for record in kept if record.annotator is not None}),
        rated_twice=len(rated),
        agreement=agreement,
        alpha=alpha,
    )


def agreement_of(units: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    """Say how far several votes on each unit agree.

    Returns:
        the share of equal pairs of votes, and Krippendorff's alpha for names (nominal data).

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C.

    >>> agreement_of([[1, 1], [1, 1], [0, 1]])
    (0.6666666666666666, 0.0)
    """
    pairable = [list(unit) for unit in units if len(unit) > 1]
    if not pairable:
        return None, None
    together: Counter[tuple[int, int]] = Counter()
    weights: dict[tuple[int, int], float] = defaultdict(float)
    for unit in pairable:
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    together[one, other] += 1
                    weights[one, other] += 1 / (len(unit) - 1)
    equal = sum(count for (one, other), count in together.items() if one == other) / sum(together.values())
    totals: dict[int, float] = defaultdict(float)
    for (one, _), weight in weights.items():
        totals[one] += weight
    n = sum(totals.values())
    observed = sum(weight for (one, other), weight in weights.items() if one != other)
    expected = sum(totals[a] * totals[b] for a in totals for b in totals if a != b) / (n - 1)
    return equal, 1.0 if expected == 0 else 1 - observed / expected
