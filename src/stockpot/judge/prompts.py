"""How much the wording decides: the probability of the right answer, and who chooses right, under many wordings.

Each wording asks the same items. Its probability is the model's own, not one among the labels, so that "1 in 10,000" is
what it seems; choices are made in four ways (see `prompt.scoring`). Nothing here is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import prompt_ids
from stockpot.generate.request import Prompt, Sampling
from stockpot.judge.metrics import Estimate, mean_estimate, proportion
from stockpot.prompt.extract import extract, same_answer
from stockpot.prompt.items import Item, Pool, Questions
from stockpot.prompt.scoring import (
    CONTENT_FREE,
    calibrated,
    check_options,
    option_log_probs,
    per_byte,
    pmi,
    relative,
)
from stockpot.prompt.shots import Paper, Shots, Shown, choose
from stockpot.prompt.wordings import Asking
from stockpot.weights.store import load

__all__ = ["PromptsReport", "WordingScore", "ask_wording", "opened", "prompts"]

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class WordingScore:
    """What one wording did.

    Attributes:
        wording: its name.
        log_prob: mean log-probability of the right answer, nats, all its tokens together.
        share: mean probability of the right label among the labels; None for free answers.
        accuracy: way of choosing → share of right choices.
        log_probs: log-probability of the right answer, item by item.
        right: way of choosing → whether each item's choice was right.
        tokens: of all prompts.
        left_out: examples that did not fit the context.
    """

    wording: str
    log_prob: Estimate
    share: Estimate | None
    accuracy: dict[str, Estimate]
    log_probs: tuple[float, ...]
    right: dict[str, tuple[bool, ...]]
    tokens: int
    left_out: int

    @property
    def probability(self) -> float:
        """The right answer's probability: the geometric mean over items."""
        return math.exp(self.log_prob.value)


@dataclass
class PromptsReport:
    """The wordings of one task on one model, in the order of the task file."""

    model: str
    task: str
    source: str
    labels: tuple[str, ...]
    commonest: float | None
    shots: Shots
    scores: list[WordingScore] = field(default_factory=list)

    def __str__(self) -> str:
        ways = list(self.scores[0].accuracy) if self.scores else []
        heads = "".join(f" {way:>22}" for way in ways)
        lines = [f"{'wording':<26} {'P(right)':>9} {'1 in':>9}{heads}"]
        for one in self.scores:
            cells = "".join(f" {_interval(one.accuracy[way]):>22}" for way in ways)
            lines.append(f"{one.wording:<26} {one.probability:>9.2g} {_one_in(one.probability):>9}{cells}")
        return "\n".join([*lines, "", *self._spread(ways)])

    def _spread(self, ways: Sequence[str]) -> list[str]:
        n = self.scores[0].log_prob.n
        chances = [one.probability for one in self.scores]
        chance = ""
        if self.commonest is not None:
            chance = f"; guessing scores {1 / len(self.labels):.2f}, the commonest label {self.commonest:.2f}"
        lines = [
            f"{len(self.scores)} wordings, {n} item{'s' if n > 1 else ''}{chance}",
            f"P(right): {min(chances):.2g} to {max(chances):.2g}, a factor of {max(chances) / max(min(chances), 1e-300):.3g}",
        ]
        for way in ways:
            low, middle, high = self.spread(way)
            lines.append(f"accuracy, {way}: lowest {low:.3f}, median {middle:.3f}, highest {high:.3f}")
        return lines

    def spread(self, way: str) -> tuple[float, float, float]:
        """Give the lowest, the median and the highest accuracy over the wordings."""
        values = np.array([one.accuracy[way].value for one in self.scores])
        return float(values.min()), float(np.median(values)), float(values.max())

    def score(self, wording: str) -> WordingScore:
        """Return one wording's score.

        Raises:
            KeyError: if it was not asked.
        """
        for one in self.scores:
            if one.wording == wording:
                return one
        raise KeyError(f"no wording {wording} in this report")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        whole = asdict(self) | {"shots": self.shots.model_dump(mode="json")}
        for one, score in zip(whole["scores"], self.scores, strict=True):
            one["probability"] = score.probability
        return whole


def prompts(
    model: str | Path | Bundle,
    questions: Questions | str = "nli",
    *,
    shots: Shots | None = None,
    encoder: str | Path | Bundle | None = None,
    progress: Progress | None = None,
) -> PromptsReport:
    """Ask the same items in every wording of a task.

    Args:
        model: a bundle or anything `load` takes.
        questions: what to ask; a name alone is a task's.
        shots: examples before each question; None: none.
        encoder: finds similar examples; None: the model itself.
        progress: hears one event a wording.

    Raises:
        ConfigError: if the task file is wrong or ``chat`` is asked of a model without a chat template.
        DataError: if an item is wrong.
        GenerationError: if a label word cannot be told apart or a question does not fit.
    """
    questions, shots = Questions.of(questions), shots or Shots()
    asking, pool = questions.open()
    bundle = opened(model)
    if questions.chat and bundle.template is None:
        raise ConfigError("This model has no chat template.", "Leave --chat out.")
    engine = Engine(bundle, slots=16)
    finder = engine if encoder is None else Engine(opened(encoder))
    shown = choose(pool, shots, pool.questions, finder.embed)
    report = PromptsReport(
        str(bundle.source or "model"), asking.name, pool.source, pool.labels, pool.commonest, shots
    )
    for name in asking.wordings:
        report.scores.append(ask_wording(engine, asking, name, pool, shown, chat=questions.chat))
        if progress is not None:
            progress({"kind": "note", "text": f"{name}: P(right) {report.scores[-1].probability:.2g}"})
    return report


def opened(model: str | Path | Bundle) -> Bundle:
    """Open a model unless it is open."""
    return model if isinstance(model, Bundle) else load(model)


def ask_wording(
    engine: Engine,
    asking: Asking,
    name: str,
    pool: Pool,
    shown: Sequence[Sequence[Shown]],
    *,
    chat: bool = False,
) -> WordingScore:
    """Ask all questions of a pool in one wording, behind the examples chosen for each."""
    paper = Paper(asking, name, engine.bundle, chat=chat)
    words = pool.labels or [item.answer for item in pool.questions]  # as the wording spells them
    longest = [len(engine.bundle.tokenizer.encode(paper.answer(one))) for one in words]
    paper.room = max(8 if pool.labels else 24, *longest)
    made = paper.prompts(pool.questions, shown)
    tokens = sum(len(prompt_ids(engine.bundle, prompt)) for prompt in made)
    if pool.labels:
        log_probs, share, right = _choose_labels(engine, paper, pool, made, shown)
    else:
        log_probs, share, right = _write_answers(engine, paper, pool, made)
    n = len(made)
    return WordingScore(
        wording=name,
        log_prob=mean_estimate(log_probs),
        share=share,
        accuracy={way: proportion(sum(hits), n, chance=pool.chance) for way, hits in right.items()},
        log_probs=tuple(log_probs),
        right=right,
        tokens=tokens,
        left_out=paper.left_out,
    )


Judged = tuple[list[float], Estimate | None, dict[str, tuple[bool, ...]]]


def _choose_labels(
    engine: Engine, paper: Paper, pool: Pool, made: Sequence[Prompt], shown: Sequence[Sequence[Shown]]
) -> Judged:
    words = [paper.answer(label) for label in pool.labels]
    check_options(engine.bundle, words)
    options = [words] * len(made)
    found = option_log_probs(engine, made, options)
    empty = [Item(f"nothing-{text}", dict.fromkeys(paper.asking.fields, text), "") for text in CONTENT_FREE]
    apart = Paper(paper.asking, paper.wording, engine.bundle, chat=paper.chat, room=paper.room)
    bare = _never_empty(apart.prompts(empty[1:2], [[]]), engine.bundle)
    without = option_log_probs(engine, bare, [words])
    rescaled = np.empty_like(found)
    for row, places in _alike(shown):  # each question leans as its own examples make it lean
        content_free = _never_empty(apart.prompts(empty, [list(row)] * len(empty)), engine.bundle)
        leaning = option_log_probs(engine, content_free, [words] * len(empty))
        rescaled[places] = calibrated(found[places], leaning)
    gold = np.array([pool.labels.index(item.answer) for item in pool.questions])
    ways = {
        "plain": found,
        "length": per_byte(found, options),
        "pmi": pmi(found, without),
        "calibrated": rescaled,
    }
    right = {way: tuple((values.argmax(1) == gold).tolist()) for way, values in ways.items()}
    rows = np.arange(len(made))
    share = mean_estimate(np.exp(relative(found))[rows, gold].tolist(), chance=pool.chance)
    return found[rows, gold].tolist(), share, right


def _alike(shown: Sequence[Sequence[Shown]]) -> list[tuple[list[Shown], list[int]]]:
    """Group questions by the examples before them: the examples, and the places of their questions."""
    groups: dict[tuple[tuple[str, str | None], ...], tuple[list[Shown], list[int]]] = {}
    for place, row in enumerate(shown):
        key = tuple((one.item.key, one.answer) for one in row)
        groups.setdefault(key, (list(row), []))[1].append(place)
    return list(groups.values())


def _never_empty(made: list[Prompt], bundle: Bundle) -> list[Prompt]:
    """Put a line break where a wording without its fields has no token to go on from."""
    return [prompt if prompt_ids(bundle, prompt) else "\n" for prompt in made]


def _write_answers(engine: Engine, paper: Paper, pool: Pool, made: Sequence[Prompt]) -> Judged:
    answers = [[paper.answer(item.answer)] for item in pool.questions]
    log_probs = option_log_probs(engine, made, answers)[:, 0].tolist()
    sampling = Sampling(temperature=0.0, max_tokens=min(16, paper.room), stop=("\n",))
    replies = engine.generate(made, sampling)
    kind = paper.asking.extract
    right = tuple(
        same_answer(extract(reply.text, kind), item.answer)
        for reply, item in zip(replies, pool.questions, strict=True)
    )
    return log_probs, None, {"written": right}


def _interval(e: Estimate) -> str:
    return f"{e.value:.3f} {e.interval}"


def _one_in(probability: float) -> str:
    if probability < 1e-6:
        return f"{1 / max(probability, 1e-300):.1e}"
    return f"{1 / probability:,.2g}" if probability > 0.1 else f"{1 / probability:,.0f}"
