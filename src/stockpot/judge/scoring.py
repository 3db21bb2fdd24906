"""What answers are worth: the measures of each item, and the figures of a task with their intervals.

Pure functions on what a model answered; no model is run here. Each sharp measure has a continuous twin beside it, which moves
before the sharp one does: the margin and the Brier score for choices, the log-probability of the right answer for the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stockpot.judge.asking import Outcome
from stockpot.judge.metrics import (
    Estimate,
    exact_match,
    final_answer,
    mean_estimate,
    ratio_estimate,
    score_estimate,
)
from stockpot.judge.tasks import Extraction, Item, Scorer
from stockpot.prompt.extract import extract, same_answer

__all__ = ["Answer", "Row", "judge_item", "rows_of"]


@dataclass(frozen=True)
class Answer:
    """What a model did with one item, and what that is worth.

    Attributes:
        reply: what it wrote, cut where an answer ends; empty where nothing is written.
        choice: the choice it finds likeliest, by the task's first measure; None without choices.
        scores: measure → value.
        parts: numbers that are added up over items before a figure is made of them, such as bytes.
        log_probs: of each completion, nats.
        note: what a person should know about it, such as why a program did not pass.
    """

    item: Item
    reply: str = ""
    choice: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    log_probs: tuple[float, ...] = ()
    note: str = ""

    @property
    def is_right(self) -> bool | None:
        """Whether the item counts as right by its first measure; None where that is no matter of right and wrong."""
        for name in SHARP:
            if name in self.scores:
                return self.scores[name] >= 0.5
        return None


SHARP = ("acc", "acc_norm", "choice", "grade", "exact", "flexible", "strict", "exact_str_match", "pass@1")


@dataclass(frozen=True)
class Row:
    """One figure of one task.

    Attributes:
        p: where two models are compared, the probability of such a difference if there were none.
    """

    task: str
    metric: str
    estimate: Estimate
    p: float | None = None


def judge_item(item: Item, outcome: Outcome, scorer: Scorer, sizes: Sequence[int]) -> Answer:
    """Turn what a model answered into measures."""
    reply = outcome.replies[0].strip() if outcome.replies else ""
    scores: dict[str, float] = {}
    parts: dict[str, float] = {}
    choice: str | None = None
    if scorer.kind in ("both", "choices") and item.choices:
        chosen = _choices(item, outcome, scorer, sizes)
        scores |= chosen
        choice = item.choices[int(np.argmax(_ways(item, outcome, sizes)[_first_way(scorer, chosen)]))]
    if scorer.kind == "both":
        scores = {"exact": float(exact_match(final_answer(reply), item.answer)), **scores}
        right = item.choices.index(item.answer) if item.choices else 0
        scores["log_prob"] = outcome.log_probs[right] / outcome.tokens[right]
    elif scorer.kind == "write":
        scores |= _written(item, outcome.replies[0], scorer)
        if outcome.log_probs and not item.choices:
            scores["log_prob"] = outcome.log_probs[0] / outcome.tokens[0]
    elif scorer.kind == "word":
        scores["acc"] = float(outcome.is_greedy)
        scores["log_prob"] = outcome.log_probs[0]
        parts = {"log_prob": outcome.log_probs[0]}
    elif scorer.kind == "text":
        words = len(re.split(r"\s+", item.prompt or ""))
        parts = {
            "log_prob": sum(outcome.log_probs),
            "bytes": sizes[0],
            "words": words,
            "tokens": sum(outcome.tokens),
        }
        scores["log_prob"] = sum(outcome.log_probs) / max(1, sum(outcome.tokens))
    return Answer(item, reply, choice, scores, parts, outcome.log_probs)


# --- choices ---


def _ways(item: Item, outcome: Outcome, sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Give each way of comparing completions: their log-probability as it is, by length, or against no question."""
    found = np.array(outcome.log_probs)
    lengths = np.array([max(1, len(choice)) for choice in item.choices])
    ways = {
        "acc": found,
        "acc_norm": found / lengths,
        "acc_bytes": found / np.array([max(1, size) for size in sizes]),
    }
    if outcome.without:
        ways["acc_pmi"] = found - np.array(outcome.without)
    return ways


def _first_way(scorer: Scorer, scores: Mapping[str, float]) -> str:
    if scorer.kind == "both":
        return "acc_bytes"
    return next((name for name in scorer.measures if name.startswith("acc") and name in scores), "acc")


def _choices(item: Item, outcome: Outcome, scorer: Scorer, sizes: Sequence[int]) -> dict[str, float]:
    worth = np.array(item.worth)
    ways = _ways(item, outcome, sizes)
    picked = {name: float(worth[int(np.argmax(values))]) for name, values in ways.items()}
    right = worth >= worth.max()
    per_byte = ways["acc_bytes"]
    plain = ways["acc"] - ways["acc"].max()
    mass = np.exp(plain) / np.exp(plain).sum()
    wanted = worth / worth.sum()
    wrong = per_byte[~right]
    margin = float(per_byte[right].max() - wrong.max()) if wrong.size else 0.0
    twins = {
        "margin": margin,
        "brier": float(((mass - wanted) ** 2).sum()),
        "right_mass": float(mass[worth > 0].sum()),
        "log_prob": float(np.array(outcome.log_probs)[right].max()),
    }
    if scorer.kind == "both":
        return {"choice": picked["acc_bytes"], "margin": margin, "brier": twins["brier"]}
    picked["grade"] = picked["acc"]
    asked = scorer.measures or ("acc", "acc_norm")
    extra = ("acc_pmi",) if scorer.pmi and "acc_pmi" not in asked else ()
    names = dict.fromkeys((*asked, *extra, "margin", "brier", "log_prob"))
    every = picked | twins
    return {name: every[name] for name in names if name in every}


# --- writing ---


def _written(item: Item, reply: str, scorer: Scorer) -> dict[str, float]:
    wanted = [item.answer, *item.answers]
    found = {}
    for name, how in (scorer.extract or {"exact": Extraction()}).items():
        text = _extracted(reply, how, item.choices)
        found[name] = float(text is not None and any(_same(text, one, how, scorer) for one in wanted))
    return found


def _extracted(reply: str, how: Extraction, choices: Sequence[str]) -> str | None:
    if how.kind == "all":
        return reply.strip()
    if how.kind == "number":
        return extract(reply, "number")
    if how.kind == "choice":
        return extract(reply, "choice", choices)
    if how.kind == "line":
        return extract(reply, "text")
    found = re.findall(how.pattern, reply)
    if not found or not -len(found) <= how.which < len(found):
        return None
    match: str | tuple[str, ...] = found[how.which]
    return match.strip() if isinstance(match, str) else next((one for one in match if one), "").strip()


def _same(text: str, wanted: str, how: Extraction, scorer: Scorer) -> bool:
    if how.kind == "number" and same_answer(text, wanted.rpartition("####")[2].strip()):
        return True
    for pattern in scorer.ignore:
        text, wanted = re.sub(pattern, "", text), re.sub(pattern, "", wanted)
    if scorer.ignore_case:
        text, wanted = text.casefold(), wanted.casefold()
    if text == wanted:
        return True
    if scorer.tolerance is None:
        return False
    try:
        return math.isclose(float(text), float(wanted), rel_tol=scorer.tolerance)
    except ValueError:
        return False


# --- figures ---


def rows_of(task: str, answers: Sequence[Answer], scorer: Scorer) -> list[Row]:
    """Make a task's figures, each with its interval; none if there is no answer."""
    if not answers:
        return []
    rows = []
    names = dict.fromkeys(name for answer in answers for name in answer.scores)
    for name in names:
        having = [answer for answer in answers if name in answer.scores]
        rows.append(Row(task, name, estimate(name, having)))
    return [*rows, *_summed(task, answers, scorer)]


def estimate(name: str, answers: Sequence[Answer]) -> Estimate:
    """Estimate a measure over items."""
    values, chance = [answer.scores[name] for answer in answers], _chance(name, answers)
    if name in TWINS:
        return mean_estimate(values, chance=chance)
    return score_estimate(values, chance=chance)


TWINS = ("margin", "brier", "log_prob", "right_mass")


def _chance(name: str, answers: Sequence[Answer]) -> float | None:
    if name == "margin":
        return 0.0
    if name in ("choice", "grade", "right_mass") or name.startswith("acc"):
        chances = [answer.item.chance for answer in answers if answer.item.choices]
        return sum(chances) / len(chances) if chances else None
    if name == "brier":  # every choice equally likely
        worths = [np.array(answer.item.worth) / sum(answer.item.worth) for answer in answers]
        return float(np.mean([((1 / one.size - one) ** 2).sum() for one in worths]))
    return None


def _summed(task: str, answers: Sequence[Answer], scorer: Scorer) -> list[Row]:
    """Make figures of sums over items: they are ratios, not means of ratios."""
    if scorer.kind not in ("word", "text"):
        return []
    nats = [-answer.parts["log_prob"] for answer in answers]
    if scorer.kind == "word":
        return [Row(task, "perplexity", _exp(mean_estimate(nats)))]
    figures: dict[str, Any] = {}
    for name, per in (
        ("bits_per_byte", "bytes"),
        ("word_perplexity", "words"),
        ("token_perplexity", "tokens"),
    ):
        rate = ratio_estimate(nats, [answer.parts[per] for answer in answers])
        figures[name] = _scaled(rate, 1 / math.log(2)) if per == "bytes" else _exp(rate)
    return [Row(task, name, value) for name, value in figures.items()]


def _exp(e: Estimate) -> Estimate:
    value, low, high = (math.exp(min(nats, 700.0)) for nats in (e.value, e.low, e.high))
    return Estimate(value, low, high, e.n)


def _scaled(e: Estimate, factor: float) -> Estimate:
    return Estimate(e.value * factor, e.low * factor, e.high * factor, e.n)
