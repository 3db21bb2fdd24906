"""The ledger as a table: its settings, its lines, how they are written down, told and drawn.

Gains are paired over the same questions. No model is run here; see `ledger_lines`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from stockpot.config import Settings
from stockpot.durable import write_atomically
from stockpot.errors import DataError
from stockpot.judge.metrics import Estimate, in_words, mean_estimate, paired_difference, proportion
from stockpot.stages.assemble import Progress
from stockpot.stages.ledger_asking import Asked, Said
from stockpot.stages.ledger_parts import Cost
from stockpot.stages.report import score_chart

__all__ = ["Book", "Ledger", "LedgerConfig", "Line"]


class LedgerConfig(Settings):
    """What is asked, and what each line may use."""

    questions: tuple[str, ...] = Field(
        ("village",), description="village (its kinds, and news), village/KIND, or files of questions"
    )
    limit: int = Field(24, ge=1, description="questions a kind, or a file")
    examples: str | None = Field(
        None, description="a file of questions with answers that may be shown; none: the village's own"
    )
    documents: tuple[str, ...] = Field(
        (), description="files from which passages are retrieved; none: the village's news"
    )
    tuned: str | None = Field(None, description="the model after instruction tuning; none: the cook's")
    dpo: str | None = Field(None, description="the model after DPO; none: the cook's")
    rlhf: str | None = Field(None, description="the model after PPO or GRPO; none: the cook's")
    text: tuple[str, ...] | None = Field(
        None, description="what the n-gram model counts; none: what the base model was trained on"
    )
    ngram_tokens: int = Field(1_500_000, ge=1000, description="most tokens that are counted")
    small: bool = Field(True, description="train a smaller sibling of a cook's model, for what size adds")
    k: int = Field(4, ge=1, description="examples shown before a question")
    chosen_on: int = Field(160, ge=4, description="examples on which wordings are chosen")
    covers: float = Field(
        0.5, ge=0, le=1, description="a passage is shown if it holds this share of the question's rare words"
    )
    max_tokens: int = Field(32, ge=1, description="longest answer")
    steps_tokens: int = Field(72, ge=1, description="longest answer with steps")
    seed: int = Field(0, ge=0, description="of the random model")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")
    dtype: str | None = Field(None, description="number type; none: what suits the device")


@dataclass(frozen=True)
class Line:
    """One ingredient.

    Attributes:
        name: of the ingredient.
        over: the line it is compared with; None for the first.
        score: share of questions answered right in writing; None if the line was skipped.
        gain: difference of that share over the same questions.
        choice: share of questions whose right answer was the likeliest of those given.
        liked: mean worth of the replies, 0 to 3: right in a sentence 3, in few words 2, "I do not know." 1.
        liked_gain: difference of that over the same questions.
        cost: what the ingredient took, asking not counted.
        asking_s: seconds to ask what this line changes.
        prompt_tokens: a question's, on average.
        kinds: kind of question → share answered right.
        sentence: what came of it.
        skipped: why there is nothing, or "".
    """

    name: str
    over: str | None = None
    score: Estimate | None = None
    gain: Estimate | None = None
    choice: Estimate | None = None
    liked: Estimate | None = None
    liked_gain: Estimate | None = None
    cost: Cost = field(default_factory=Cost)
    asking_s: float = 0.0
    prompt_tokens: float = 0.0
    kinds: Mapping[str, float] = field(default_factory=dict)
    sentence: str = ""
    skipped: str = ""


@dataclass
class Ledger:
    """All lines, and what was asked.

    Attributes:
        questions: each with its kind, the right answer, and every line's reply.
    """

    model: str
    source: str
    chance: float | None
    lines: list[Line] = field(default_factory=list)
    questions: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        head = (
            f"{'line':<22} {'right':>6} {'95 % interval':>16} {'gain':>7} {'95 % interval':>18} {'choice':>7} "
            f"{'liked':>6} {'seconds':>8} {'FLOPs':>8} {'tokens':>11} {'labels':>7}  over"
        )
        lines = [head]
        for one in self.lines:
            if one.score is None:
                lines.append(f"{one.name:<22} skipped: {one.skipped}")
                continue
            lines.append(self._row(one))
        told = [f"{one.name}: {one.sentence}" for one in self.lines if one.score is not None]
        return "\n".join([*lines, "", self.about(), "", *told])

    def _row(self, one: Line) -> str:
        s, g, c, w = one.score, one.gain, one.choice, one.liked
        assert s is not None and w is not None
        gain = f"{'-':>7} {'-':>18}" if g is None else f"{g.value:>+7.3f} {_span(g):>18}"
        choice = "-" if c is None else f"{c.value:.3f}"
        cost = one.cost
        return (
            f"{one.name:<22} {s.value:>6.3f} {_span(s):>16} {gain} {choice:>7} {w.value:>6.2f} {cost.seconds:>8.1f} "
            f"{cost.flops:>8.1e} {cost.tokens:>11,} {cost.labels:>7,}  {one.over or '-'}"
        )

    def about(self) -> str:
        """Say what was asked and how to read it."""
        first = next((one.score for one in self.lines if one.score is not None), None)
        n = 0 if first is None else first.n
        guess = "" if self.chance is None else f" Guessing among the given answers scores {self.chance:.2f}."
        return (
            f"{n} questions of {self.source}. Right: the reply names the right answer, no wrong one, in a sentence at most."
            f"{guess} Gains are paired over the same questions; cost is the ingredient's own, asking not counted."
        )

    def line(self, name: str) -> Line:
        """Return the line of that name.

        Raises:
            KeyError: if there is none.
        """
        for one in self.lines:
            if one.name == name:
                return one
        raise KeyError(f"no line {name} in this ledger")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def chart(self) -> str:
        """Draw the lines with their intervals; returns SVG."""
        rows = [
            {
                "task": one.name,
                "model": label,
                "value": e.value,
                "low": e.low,
                "high": e.high,
                "chance": chance,
            }
            for one in self.lines
            for label, e, chance in (
                ("right in writing", one.score, None),
                ("right of the given answers", one.choice, self.chance),
            )
            if e is not None
        ]
        return score_chart(rows, title="The ledger: the same questions with one ingredient more in each line")

    def save(self, folder: str | Path) -> Path:
        """Write ``ledger.json`` and ``ledger.svg`` into a folder; return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "ledger.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False))
        write_atomically(folder / "ledger.svg", self.chart())
        return folder

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is no ledger.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            value["lines"] = [_line_of(one) for one in value["lines"]]
            return cls(**value)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is no ledger: {error}.", "Make it again: stockpot ledger.") from error


def _line_of(value: dict[str, Any]) -> Line:
    estimates = ("score", "gain", "choice", "liked", "liked_gain")
    made = {name: None if value[name] is None else Estimate(**value[name]) for name in estimates}
    return Line(**{**value, **made, "cost": Cost(**value["cost"])})


def _span(e: Estimate) -> str:
    return f"[{e.low:.3f}, {e.high:.3f}]"


class Book:
    """The ledger as it is written: what each line answered, and the paired gains.

    A line that changes only some questions keeps the other answers of the line before.
    """

    def __init__(self, ledger: Ledger, asked: Asked, report: Progress) -> None:
        self.ledger, self.asked, self.report = ledger, asked, report
        self.answers: dict[str, dict[str, Said]] = {}
        self.last: str | None = None
        ledger.questions = [
            {
                "id": one.id,
                "kind": one.kind,
                "question": one.question,
                "answer": one.answer,
                "choices": list(one.choices),
                "replies": {},
            }
            for one in asked.items
        ]

    def skip(self, name: str, reason: str) -> None:
        """Note that a line does not apply."""
        self.ledger.lines.append(Line(name, skipped=reason))
        self.report({"kind": "note", "text": f"{name}: skipped, {reason}"})

    def add(
        self,
        name: str,
        said: Mapping[str, Said],
        *,
        over: str | None = None,
        cost: Cost | None = None,
        asking_s: float = 0.0,
        about: str = "",
    ) -> None:
        """Add a line.

        Args:
            name: of the ingredient.
            said: item id → answer, of those that this line changes.
            over: the line to compare with; None: the line before.
            cost: of the ingredient.
            asking_s: seconds that asking took.
            about: what was done, before what came of it.
        """
        over = over or self.last
        whole = {**(self.answers[over] if over else {}), **said}
        items = self.asked.items
        now = [whole[one.id] for one in items]
        before = [self.answers[over][one.id] for one in items] if over else None
        score = proportion(sum(one.worth >= 2 for one in now), len(now))
        chosen = [one.choice for one in now if one.choice is not None]
        choice = None if not chosen else proportion(int(sum(chosen)), len(chosen), chance=self.ledger.chance)
        gain = liked_gain = None
        if before is not None:
            gain = paired_difference([one.right for one in before], [one.right for one in now])
            liked_gain = paired_difference([one.worth for one in before], [one.worth for one in now])
        kinds = self._by_kind(now)
        earlier = self.ledger.line(over).kinds if over else None
        line = Line(
            name=name,
            over=over,
            score=score,
            gain=gain,
            choice=choice,
            liked=mean_estimate([one.worth for one in now]),
            liked_gain=liked_gain,
            cost=cost or Cost(),
            asking_s=round(asking_s, 2),
            prompt_tokens=sum(one.tokens for one in now) / len(now),
            kinds=kinds,
            sentence=" ".join(
                part for part in (about, _told(gain, kinds, earlier), _liked(liked_gain, now)) if part
            ),
        )
        self.ledger.lines.append(line)
        for row, one in zip(self.ledger.questions, now, strict=True):
            row["replies"][name] = one.reply
        self.answers[name], self.last = whole, name
        self.report({"kind": "note", "text": f"{name}: {score}"})

    def _by_kind(self, now: Sequence[Said]) -> dict[str, float]:
        kinds: dict[str, list[float]] = {}
        for item, one in zip(self.asked.items, now, strict=True):
            kinds.setdefault(item.kind or "all", []).append(one.right)
        return {kind: sum(some) / len(some) for kind, some in kinds.items()}


def _liked(gain: Estimate | None, now: Sequence[Said]) -> str:
    """Say by how much the replies are liked more or less, if that is more than noise."""
    if gain is None or in_words(gain) == "inside the noise":
        return ""
    mean = sum(one.worth for one in now) / len(now)
    return f"Its replies are worth {mean:.2f} of 3, {mean - gain.value:.2f} before."


def _told(gain: Estimate | None, kinds: Mapping[str, float], earlier: Mapping[str, float] | None) -> str:
    """Say what a line's interval allows to say, and where most of a change lies."""
    if gain is None or earlier is None:
        return ""
    moved = max(kinds, key=lambda kind: abs(kinds[kind] - earlier[kind]))
    where = f"{moved} {earlier[moved]:.0%} → {kinds[moved]:.0%}"
    said = {
        "better": f"It added {gain.value:.1%} of all questions",
        "worse": f"It took away {-gain.value:.1%} of all questions",
    }.get(in_words(gain), "No difference that so few questions can show")
    return f"{said}; most moved {where}." if kinds[moved] != earlier[moved] else f"{said}."
