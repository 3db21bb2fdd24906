"""A model as rater: it says which of two answers is better, blind and in both orders, and leaves comparisons to learn from.

Models prefer the answer they read first, or second, whatever it says; so each pair is shown both ways, an answer wins only if it
wins both times, and how strongly the place decided is reported. Where people have compared the same answers, so is how
often the judge agrees with them. It trains nothing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.records import PreferenceRecord, as_messages
from stockpot.data.sources import read_records
from stockpot.durable import write_atomically, write_json_lines
from stockpot.errors import ConfigError, DataError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Prompt
from stockpot.judge.metrics import Estimate, proportion, score_estimate
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.stages.drift import draw
from stockpot.stages.prompts import read_prompts
from stockpot.text.chat import Message
from stockpot.weights.store import load

__all__ = ["Feedback", "FeedbackConfig", "ai_feedback"]

QUESTION = (
    "Question: {prompt}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
    "Which answer is better, A or B? Reply with one letter."
)

PLACE = re.compile(r"\{(prompt|first|second)\}")


class FeedbackConfig(Settings):
    """Who rates what."""

    judge: str | None = Field(None, description="the model that rates: a run, a checkpoint or a model folder")
    data: tuple[str, ...] = Field(
        ("village:preferences/val",),
        description="comparisons, whose outcome the judge is not shown; with model: prompts",
    )
    model: str | None = Field(
        None, description="draws two answers to each prompt; none: the data has both answers"
    )
    question: str = Field(
        QUESTION, description="what the judge is asked, with {prompt}, {first} and {second} in it"
    )
    limit: int = Field(200, ge=1, description="pairs to rate")
    max_tokens: int = Field(64, ge=1, description="longest answer that is drawn")
    seed: int = Field(0, ge=0, description="of the answers that are drawn")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)

    @field_validator("question")
    @classmethod
    def _has_places(cls, value: str) -> str:
        missing = [name for name in ("{prompt}", "{first}", "{second}") if name not in value]
        if missing:
            raise ValueError(f"the question lacks {', '.join(missing)}")
        return value


@dataclass(frozen=True)
class Feedback:
    """What a judge said.

    Attributes:
        pairs: how many pairs it rated.
        consistent: share of them in which the same answer won in both orders; the others are ties.
        first: how often it chose the answer that stood first; 50 % is no bias.
        agreement: how often it agrees with people, an undecided pair counting half; None where nobody has compared.
        comparisons: the records it made.
    """

    pairs: int
    consistent: Estimate
    first: Estimate
    agreement: Estimate | None
    comparisons: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        text = (
            f"{self.pairs:,} pairs; the same answer won in both orders in {self.consistent}; "
            f"the first one was chosen in {self.first}"
        )
        return text if self.agreement is None else f"{text}; agreement with people {self.agreement}"


@dataclass(frozen=True)
class _Pair:
    prompt: tuple[Message, ...]
    one: str
    other: str
    one_is_better: float | None  # what people said: 1, 0, or 0.5 for a tie; None: nobody did

    @property
    def asked(self) -> str:
        return "\n".join(message.content for message in self.prompt)


def ai_feedback(config: FeedbackConfig, *, out: str | Path, progress: Progress | None = None) -> Feedback:
    """Have a model rate pairs of answers; writes ``comparisons.jsonl`` and ``feedback.json`` into ``out``.

    Raises:
        ConfigError: if there is no judge, or ``out`` holds comparisons.
        DataError: if there is no pair, or one is too long for the judge.
    """
    report, folder = progress or silent, Path(out)
    if config.judge is None:
        raise ConfigError("There is no judge.", "Name one: stockpot ai-feedback JUDGE.")
    if (folder / "comparisons.jsonl").exists():
        raise ConfigError(f"{folder} holds comparisons already.", "Give another folder.")
    pairs = _drawn(config) if config.model is not None else _compared(config)
    judge = load(config.judge, device=config.device)
    report({"kind": "note", "text": f"{len(pairs):,} pairs, each in both orders"})
    chances = _first_is_better(judge, pairs, config.question)
    found = _summed(pairs, chances, name=str(config.judge))
    folder.mkdir(parents=True, exist_ok=True)
    write_json_lines(folder / "comparisons.jsonl", found.comparisons)
    facts = {name: value for name, value in asdict(found).items() if name != "comparisons"}
    write_atomically(
        folder / "feedback.json", json.dumps({"settings": config.model_dump(mode="json"), **facts}, indent=1)
    )
    report({"kind": "note", "text": str(found)})
    return found


def _compared(config: FeedbackConfig) -> list[_Pair]:
    """Read comparisons; which answer stands first must not tell which was preferred."""
    pairs: list[_Pair] = []
    for record in read_records(config.data):
        if not isinstance(record, PreferenceRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record has no two answers.",
                "Give comparisons, or name the model that draws answers.",
            )
        if len(pairs) == config.limit:
            break
        said = 0.5 if record.tie else 1.0
        pairs.append(_Pair(as_messages(record.prompt), record.chosen, record.rejected, said))
    return pairs


def _drawn(config: FeedbackConfig) -> list[_Pair]:
    """Draw two answers to each prompt; equal ones are no pair."""
    assert config.model is not None
    bundle = load(config.model, device=config.device)
    asked = read_prompts(config.data, bundle, config.max_tokens, silent, limit=config.limit)
    sides = [
        draw(bundle, asked, max_tokens=config.max_tokens, seed=config.seed + n * len(asked)) for n in (0, 1)
    ]
    pairs = [
        _Pair(prompt.messages or (Message("user", prompt.text),), one.text, other.text, None)
        for prompt, one, other in zip(asked, *sides, strict=True)
        if one.text != other.text
    ]
    if not pairs:
        raise DataError(f"{config.model} gives the same answer twice to every prompt.", "Give other prompts.")
    return pairs


def _first_is_better(judge: Bundle, pairs: Sequence[_Pair], question: str) -> list[tuple[float, float]]:
    """Give the judge's probability that the first answer is better, with the pair in its order and turned round."""
    asked: list[tuple[Prompt, str]] = []
    for pair in pairs:
        for first, second in ((pair.one, pair.other), (pair.other, pair.one)):
            text = _asked(question, {"prompt": pair.asked, "first": first, "second": second})
            prompt: Prompt = text if judge.template is None else [Message("user", text)]
            lead = " " if judge.template is None else ""
            asked += [(prompt, f"{lead}A"), (prompt, f"{lead}B")]
    scores = [one.log_prob for one in Engine(judge).score(asked)]
    chances = [_sigmoid(a - b) for a, b in zip(scores[0::2], scores[1::2], strict=True)]
    return list(zip(chances[0::2], chances[1::2], strict=True))


def _asked(question: str, parts: Mapping[str, str]) -> str:
    """Fill the places of a question; braces in what is filled in stay text."""

    def part(place: re.Match[str]) -> str:
        return parts[place[1]]

    return PLACE.sub(part, question)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, value)))


def _summed(pairs: Sequence[_Pair], chances: Sequence[tuple[float, float]], *, name: str) -> Feedback:
    """Turn both orders' probabilities into comparisons and figures."""
    comparisons, verdicts = [], []
    for pair, (as_given, turned) in zip(pairs, chances, strict=True):
        verdict = 1.0 if as_given > 0.5 > turned else 0.0 if as_given < 0.5 < turned else 0.5
        verdicts.append(verdict)
        better, worse = (pair.other, pair.one) if verdict == 0 else (pair.one, pair.other)
        odds = (_logit(as_given) - _logit(turned)) / 2  # the mean of both orders: what the place adds cancels
        outcome: dict[str, Any] = {"tie": True} if verdict == 0.5 else {"margin": round(abs(odds), 4)}
        prompt = [{"role": message.role, "content": message.content} for message in pair.prompt]
        record = {"prompt": prompt, "chosen": better, "rejected": worse, **outcome}
        comparisons.append(record | {"annotator": name, "source": "ai-feedback"})
    known = [
        1 - abs(verdict - pair.one_is_better)
        for pair, verdict in zip(pairs, verdicts, strict=True)
        if pair.one_is_better in (0.0, 1.0)
    ]
    return Feedback(
        len(pairs),
        proportion(sum(one != 0.5 for one in verdicts), len(pairs)),
        score_estimate([(_chosen(a) + _chosen(b)) / 2 for a, b in chances], chance=0.5),
        score_estimate(known, chance=0.5) if known else None,
        tuple(comparisons),
    )


def _chosen(chance: float) -> float:
    """Tell whether the first answer was chosen: 1, 0, or 0.5 where the judge could not say."""
    return 0.5 if chance == 0.5 else float(chance > 0.5)


def _logit(chance: float) -> float:
    chance = min(max(chance, 1e-9), 1 - 1e-9)
    return math.log(chance / (1 - chance))
