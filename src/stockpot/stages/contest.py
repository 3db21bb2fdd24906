"""Several models answer the same prompts, and the same judges rate them: who wins, and how far each has moved.

Answers are drawn at temperature 1 with the same seeds, as in training, so that the distance from the first model is that of
what is judged. It trains nothing and writes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.bundle import Bundle
from stockpot.device import pick_device
from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.judge.metrics import Estimate, mean_estimate, paired_difference, score_estimate
from stockpot.run import Run, is_run
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.stages.drift import Drift
from stockpot.stages.prompts import read_prompts
from stockpot.stages.rewards import reward_from
from stockpot.train.rollouts import Asked, Reply, Reward, rated
from stockpot.weights.store import load

__all__ = ["Contest", "Entry", "contest"]


@dataclass(frozen=True)
class Entry:
    """What one model answered.

    Attributes:
        model: its name in the contest.
        replies: an answer a prompt.
        tokens: their lengths.
        ratings: judge → a rating an answer; NaN where it cannot be rated.
        log_ratios: log(this model / the first one) of each answer, nats; None if the two read other ids or are asked otherwise.
    """

    model: str
    replies: tuple[str, ...]
    tokens: tuple[int, ...]
    ratings: dict[str, tuple[float, ...]]
    log_ratios: tuple[float, ...] | None

    @property
    def length(self) -> Estimate:
        """Mean length of an answer in tokens."""
        return mean_estimate([float(one) for one in self.tokens])

    @property
    def kl(self) -> Estimate | None:
        """KL divergence from the first model, nats an answer (k1)."""
        return None if self.log_ratios is None else mean_estimate(self.log_ratios)

    def rating(self, judge: str) -> Estimate:
        """Mean rating by a judge."""
        return mean_estimate([value for value in self.ratings[judge] if value == value])


@dataclass(frozen=True)
class Contest:
    """The entries of all models to the same prompts; the first is what the others are compared with."""

    prompts: tuple[str, ...]
    entries: tuple[Entry, ...]

    def win_rate(self, entry: Entry, judge: str, *, against: Entry | None = None) -> Estimate:
        """Estimate how often an entry is rated higher than another one's answer to the same prompt; a tie is half a win."""
        return score_estimate(self.wins(entry, judge, against=against), chance=0.5)

    def wins(self, entry: Entry, judge: str, *, against: Entry | None = None) -> list[float]:
        """Tell of each prompt whether an entry is rated higher: 1, 0, or 0.5 for a tie; what has no rating is left out."""
        ours, theirs = self._both(entry, judge, against)
        won: list[float] = np.where(ours > theirs, 1.0, np.where(ours == theirs, 0.5, 0.0)).tolist()
        return won

    def gain(self, entry: Entry, judge: str, *, against: Entry | None = None) -> Estimate:
        """Estimate the mean difference of ratings on the same prompts."""
        ours, theirs = self._both(entry, judge, against)
        return paired_difference(theirs.tolist(), ours.tolist())

    def _both(self, entry: Entry, judge: str, against: Entry | None) -> tuple[np.ndarray, np.ndarray]:
        other = self.entries[0] if against is None else against
        pair = np.array([entry.ratings[judge], other.ratings[judge]])
        known = ~np.isnan(pair).any(0)
        return pair[0, known], pair[1, known]

    def rows(self) -> list[dict[str, Any]]:
        """Tell all of it as plain values, one row a model."""
        return [
            {
                "model": one.model,
                "ratings": {judge: asdict(one.rating(judge)) for judge in one.ratings},
                "wins": {judge: asdict(self.win_rate(one, judge)) for judge in one.ratings},
                "gains": {judge: asdict(self.gain(one, judge)) for judge in one.ratings},
                "kl": None if (kl := one.kl) is None else asdict(kl),
                "length": asdict(one.length),
            }
            for one in self.entries
        ]

    def table(self) -> list[list[str]]:
        """Tell it in words, one row a model and judge; the first row has the headings."""
        shown = [["model", "judge", "rating", "wins against the first", "KL", "tokens", "n"]]
        for one in self.entries:
            for judge in one.ratings:
                rating, wins, kl = one.rating(judge), self.win_rate(one, judge), one.kl
                won = (
                    f"{wins.value:.1%} [{wins.low:.1%}, {wins.high:.1%}]"
                    if one is not self.entries[0]
                    else "-"
                )
                shown.append(
                    [
                        one.model,
                        judge,
                        f"{rating.value:.3f} [{rating.low:.3f}, {rating.high:.3f}]",
                        won,
                        "-" if kl is None else f"{kl.value:.2f}",
                        f"{one.length.value:.1f}",
                        f"{rating.n}",
                    ]
                )
        return shown

    def to_json(self) -> str:
        """Write it down, so that `from_json` gives it back."""
        value: dict[str, Any] = {"prompts": self.prompts, "entries": [asdict(one) for one in self.entries]}
        for one in value["entries"]:  # JSON knows no NaN
            one["ratings"] = {
                judge: [None if rating != rating else rating for rating in ratings]
                for judge, ratings in one["ratings"].items()
            }
        return json.dumps(value, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Contest:
        """Read what `to_json` wrote.

        Raises:
            DataError: if it is not that.
        """
        try:
            value = json.loads(text)
            entries = tuple(
                Entry(
                    one["model"],
                    tuple(one["replies"]),
                    tuple(one["tokens"]),
                    {judge: tuple(map(_rating, ratings)) for judge, ratings in one["ratings"].items()},
                    None if one["log_ratios"] is None else tuple(one["log_ratios"]),
                )
                for one in value["entries"]
            )
            return cls(tuple(value["prompts"]), entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"This is no contest: {error}.", "Judge again.") from error


def _rating(saved: float | None) -> float:
    return math.nan if saved is None else saved


def contest(
    models: Mapping[str, str | Path | Bundle],
    judges: Mapping[str, Reward | str],
    data: str | Sequence[str],
    *,
    limit: int | None = None,
    max_tokens: int = 64,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> Contest:
    """Let models answer prompts and have the answers rated.

    Args:
        models: name → a bundle or anything `load` takes; the others are compared with the first.
        judges: name → what rates answers: a function, or what names one, such as a reward model.
        data: prompts.
        limit: how many; None: all.
        max_tokens: longest answer.
        seed: of the answers.
        device: where models and judges compute; None: the fastest present.
        progress: receives an event a model.

    Raises:
        ConfigError: if there is no model or judge.
        DataError: if there is no prompt, or a judge raises, gives no numbers, or rates nothing.
    """
    if not models or not judges:
        raise ConfigError("A contest needs models and a judge.", "Name both.")
    report, place = progress or silent, pick_device(device)
    raters = {
        name: reward_from(one, device=place) if isinstance(one, str) else one for name, one in judges.items()
    }
    sources = as_sources(data)
    first: Bundle | None = None
    prompts: tuple[str, ...] = ()
    entries: list[Entry] = []
    for name, model in models.items():
        _tell_unfinished(name, model, report)
        bundle = model if isinstance(model, Bundle) else load(model, device=place, dtype="float32")
        first = first or bundle
        asked = read_prompts(sources, bundle, max_tokens, silent, limit=limit)
        prompts = prompts or tuple(one.text for one in asked)
        if tuple(one.text for one in asked) != prompts:
            raise DataError(f"{name} has no room for some of the prompts.", "Give shorter prompts.")
        entries.append(_enter(name, bundle, first, asked, raters, max_tokens=max_tokens, seed=seed))
        ratings = ", ".join(f"{judge} {entries[-1].rating(judge)}" for judge in judges)
        report({"kind": "note", "text": f"{name}: {ratings}"})
    _check_shared(entries)
    return Contest(prompts, tuple(entries))


def _tell_unfinished(name: str, model: str | Path | Bundle, report: Progress) -> None:
    """Say where a run that broke off stands in with a checkpoint: what answers is not what was meant to."""
    if not isinstance(model, Bundle) and is_run(model) and (run := Run.open(model)).status != "done":
        text = f"{name}: its run did not end well (status: {run.status}); its checkpoint of step {run.model_step} answers"
        report({"kind": "note", "text": text})


def _enter(
    name: str,
    bundle: Bundle,
    first: Bundle,
    asked: Sequence[Asked],
    judges: Mapping[str, Reward],
    *,
    max_tokens: int,
    seed: int,
) -> Entry:
    stop = () if bundle.template is not None else ("\n",)
    drift = Drift(bundle, asked, lambda: nullcontext(first.model), max_tokens, seed, stop=stop)
    drawn = drift.answers(bundle)
    replies = drift.replies(drawn)
    ratios = None
    is_alike = bundle.tokenizer.fingerprint == first.tokenizer.fingerprint
    if is_alike and (bundle.template is None) == (first.template is None):
        ratios = tuple((drift.log_probs(bundle.model, drawn) - drift.log_probs(first.model, drawn)).tolist())
    return Entry(
        name,
        tuple(one.text for one in replies),
        tuple(one.tokens for one in replies),
        {judge: _rate(judge, rate, name, replies) for judge, rate in judges.items()},
        ratios,
    )


def _rate(judge: str, rate: Reward, model: str, replies: Sequence[Reply]) -> tuple[float, ...]:
    """Let a judge rate a model's answers; some may have no rating (NaN), but not all."""
    try:
        found = rated(rate, replies, may_abstain=True)
    except TrainError as error:
        raise DataError(f"The judge {judge}: {error.what}", error.todo) from error
    if all(value != value for value in found):
        raise DataError(
            f"The judge {judge} rated none of the {len(replies)} answers of {model}.",
            "Give prompts that it knows, or another judge.",
        )
    return tuple(found)


def _check_shared(entries: Sequence[Entry]) -> None:
    """Refuse a contest in which a judge rated no prompt for both of two models."""
    for entry in entries[1:]:
        for judge, ratings in entry.ratings.items():
            first = entries[0].ratings[judge]
            if not any(a == a and b == b for a, b in zip(first, ratings, strict=True)):
                raise DataError(
                    f"The judge {judge} rated no prompt for both {entries[0].model} and {entry.model}.",
                    "Give more prompts, or a judge that rates more of them.",
                )
