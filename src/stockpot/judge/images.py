"""Does a model see? Captions and answers against the truth, and whether they follow the picture.

On village scenes every word can be checked; on captions that people wrote, likeness is measured. The swap test asks what
the right text's log-probability is with the picture it belongs to, with another one, and with a blank one. All model calls
go through `Engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.bundle import Bundle
from stockpot.data.captions import CAPTION_PROMPT, Captions, question_prompt, read_captions, read_scenes
from stockpot.errors import ConfigError, DataError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Prompt, Sampling
from stockpot.image import Image
from stockpot.judge.captions import bleu, cider, words_of
from stockpot.judge.harness import Row
from stockpot.judge.metrics import Estimate, mean_estimate, proportion
from stockpot.model.sight import sight_of
from stockpot.text.chat import Message
from stockpot.village import Village
from stockpot.village.scenes import (
    COLOURS,
    SHAPES,
    Facts,
    Scene,
    paint,
    read_caption,
    scene_questions,
)
from stockpot.weights.store import load

__all__ = ["ImageReport", "SeenPicture", "evaluate_images"]

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class SeenPicture:
    """What a model said of one picture, and what is true; ``log_prob`` is of the true text, with its own picture, nats."""

    written: str
    truth: str
    log_prob: float
    swapped: float
    blank: float


@dataclass
class ImageReport:
    """Scores of one model on pictures, with all it said."""

    model: str
    data: str
    rows: list[Row] = field(default_factory=list)
    pictures: list[SeenPicture] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{'pictures':<12} {'metric':<26} {'score':>8}  {'95 % interval':<18} {'chance':>6} {'n':>5}"
        ]
        for row in self.rows:
            e = row.estimate
            chance = "-" if e.chance is None else f"{e.chance:.3f}"
            lines.append(
                f"{row.task:<12} {row.metric:<26} {e.value:>8.3f}  {e.interval:<18} {chance:>6} {e.n:>5}"
            )
        return "\n".join([*lines, *self.complaints])

    def score(self, task: str, metric: str) -> Estimate:
        """Give one score.

        Raises:
            KeyError: if it was not measured.
        """
        for row in self.rows:
            if (row.task, row.metric) == (task, metric):
                return row.estimate
        raise KeyError(f"{task} {metric}")

    def to_dict(self) -> dict[str, Any]:
        """Give the report as plain values."""
        return asdict(self)


def evaluate_images(
    model: Bundle | str | Path,
    data: str = "village:scenes/val",
    *,
    limit: int = 200,
    chat: bool = False,
    max_tokens: int = 24,
    progress: Progress | None = None,
) -> ImageReport:
    """Ask a model about pictures.

    Args:
        model: with eyes (`align_image`).
        data: ``village:scenes/val[:SEED[:COUNT]]``, or pictures with captions as `align_image` reads them.
        limit: most pictures.
        chat: ask in a conversation.
        max_tokens: longest caption.
        progress: hears notes.

    Raises:
        ConfigError: if the model reads text only.
        DataError: if the data is wrong.
    """
    bundle = model if isinstance(model, Bundle) else load(model)
    if sight_of(bundle.model) is None:
        raise ConfigError(f"{model} reads text only.", "Give it eyes: stockpot align-image MODEL.")
    asking = _Asking(Engine(bundle), chat, max_tokens)
    report = ImageReport(str(model if not isinstance(model, Bundle) else bundle.source), data)
    if scenes := read_scenes(data, limit):
        side, seed, count = scenes
        _scenes(report, asking, list(Village(seed).scenes(side, min(limit, count))))
    else:
        captions = read_captions([data], limit=limit)
        report.complaints = captions.complaints()
        _captions(report, asking, captions)
    for complaint in report.complaints:
        (progress or _silent)({"kind": "note", "text": complaint})
    return report


def _silent(event: dict[str, Any]) -> None:
    """Report nothing."""


@dataclass
class _Asking:
    """How pictures are put to the engine."""

    engine: Engine
    chat: bool
    max_tokens: int

    def prompt(self, image: Image, words: str) -> Prompt:
        parts: list[str | Image] = [image, words]
        return [Message("user", parts)] if self.chat else parts

    def write(self, images: Sequence[Image], words: str = CAPTION_PROMPT) -> list[str]:
        """Caption pictures greedily; a caption ends with its line."""
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens, stop=("\n",))
        made = self.engine.generate([self.prompt(image, words) for image in images], sampling)
        return [one.text.strip() for one in made]

    def weigh(
        self, images: Sequence[Image], texts: Sequence[str], words: str = CAPTION_PROMPT
    ) -> list[float]:
        """Give each text's log-probability with its picture."""
        pairs = [
            (self.prompt(image, words), text if self.chat else f" {text}")
            for image, text in zip(images, texts, strict=True)
        ]
        return [one.log_prob for one in self.engine.score(pairs)]

    def choose(self, images: Sequence[Image], asked: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
        """Choose the likeliest answer to each question, by log-probability per token."""
        pairs = [
            (self.prompt(image, question_prompt(question)), choice if self.chat else f" {choice}")
            for image, (question, choices) in zip(images, asked, strict=True)
            for choice in choices
        ]
        scores = iter(self.engine.score(pairs))
        chosen = []
        for _, choices in asked:
            means = [(one := next(scores)).log_prob / one.tokens for _ in choices]
            chosen.append(choices[int(np.argmax(means))])
        return chosen


def _swap_test(
    report: ImageReport, asking: _Asking, images: Sequence[Image], truths: Sequence[str], task: str
) -> list[tuple[float, float, float]]:
    """Weigh every true text with its own picture, with the next one of another text, and with a blank one."""
    count = len(images)
    others = []
    for at in range(count):
        steps = (step for step in range(1, count) if truths[(at + step) % count] != truths[at])
        others.append(images[(at + next(steps, 0)) % count])
    blank = Image(np.full((8, 8, 3), 255, dtype=np.uint8))
    own, swapped = asking.weigh(images, truths), asking.weigh(others, truths)
    white = asking.weigh([blank] * count, truths)
    report.rows += [
        Row(task, "follows: own over other", proportion(_wins(own, swapped), count, chance=0.5)),
        Row(task, "follows: own over blank", proportion(_wins(own, white), count, chance=0.5)),
        Row(task, "nats gained over other", mean_estimate(np.subtract(own, swapped).tolist(), chance=0.0)),
        Row(task, "nats gained over blank", mean_estimate(np.subtract(own, white).tolist(), chance=0.0)),
    ]
    return list(zip(own, swapped, white, strict=True))


def _wins(one: Sequence[float], other: Sequence[float]) -> int:
    return sum(a > b for a, b in zip(one, other, strict=True))


# --- village scenes ---


def _attributes(read: Sequence[Facts | None], scenes: Sequence[Scene]) -> list[Row]:
    """Score what captions say, attribute by attribute; of two things, the left or the upper one is the first."""
    checks: dict[str, tuple[float, list[bool]]] = {
        "colour": (1 / len(COLOURS), []),
        "shape": (1 / len(SHAPES), []),
        "count": (1 / 2, []),  # of "one" always: as many scenes show one thing as several
        "relation": (1 / 2, []),  # side by side, or one above the other
    }
    for facts, scene in zip(read, scenes, strict=True):
        true = scene.facts.seen
        said = facts.things if facts is not None else ()
        for at, (colour, shape) in enumerate(true.things):
            checks["colour"][1].append(at < len(said) and said[at][0] == colour)
            checks["shape"][1].append(at < len(said) and said[at][1] == shape)
        if true.relation is not None:
            checks["relation"][1].append(facts is not None and facts.relation == true.relation)
        else:
            checks["count"][1].append(facts is not None and len(said) == 1 and facts.count == true.count)
    return [
        Row("all", f"caption {name}", proportion(sum(right), len(right), chance=chance))
        for name, (chance, right) in checks.items()
        if right
    ]


def _scenes(report: ImageReport, asking: _Asking, scenes: Sequence[Scene]) -> None:
    count = len(scenes)
    images = [Image(paint(scene)) for scene in scenes]
    truths = [scene.facts.caption for scene in scenes]
    written = asking.write(images)
    said = [read_caption(text) for text in written]
    read = [None if facts is None else facts.seen for facts in said]
    exact = [  # what is seen, with no word behind it, whichever thing is named first
        facts is not None and facts.caption == text.rstrip(".") and facts.seen == scene.facts.seen
        for facts, text, scene in zip(said, written, scenes, strict=True)
    ]
    groups = {"all": range(count)} | {
        name: [at for at, scene in enumerate(scenes) if scene.is_held_out == is_new]
        for name, is_new in (("known pairs", False), ("new pairs", True))
    }
    for name, places in groups.items():
        if places:
            report.rows.append(
                Row(name, "caption exact", proportion(sum(exact[at] for at in places), len(places)))
            )
    report.rows += _attributes(read, scenes)
    asked = [questions[at % len(questions)] for at, questions in enumerate(map(scene_questions, scenes))]
    chosen = asking.choose(images, [(question, choices) for question, _, choices in asked])
    right_answers = sum(one == answer for one, (_, answer, _) in zip(chosen, asked, strict=True))
    guess = sum(1 / len(choices) for _, _, choices in asked) / count
    report.rows.append(Row("all", "question answered", proportion(right_answers, count, chance=guess)))
    weighed = _swap_test(report, asking, images, truths, "all")
    report.pictures = [
        SeenPicture(text, truth, *three) for text, truth, three in zip(written, truths, weighed, strict=True)
    ]


# --- captions that people wrote ---


def _captions(report: ImageReport, asking: _Asking, captions: Captions) -> None:
    texts: dict[int, list[str]] = {}
    for one in captions.texts:
        if one.prompt == CAPTION_PROMPT:
            texts.setdefault(one.picture, []).append(one.text)
    readable = []
    for number in texts:
        try:
            captions.pictures[number].pixels()
            readable.append(number)
        except DataError as error:
            report.complaints.append(f"left out: {error.what}")
    if len(readable) < 2:
        raise DataError("Fewer than two pictures with captions can be read.", "Give more.")
    images = [captions.pictures[number] for number in readable]
    known = [texts[number] for number in readable]
    written = asking.write(images)
    exact = [
        any(words_of(text) == words_of(one) for one in some)
        for text, some in zip(written, known, strict=True)
    ]
    report.rows += [
        Row("all", "caption exact", proportion(sum(exact), len(exact))),
        Row("all", "CIDEr", mean_estimate(cider(written, known))),
        Row(
            "all", "BLEU-1", mean_estimate([bleu([t], [k], n=1) for t, k in zip(written, known, strict=True)])
        ),
    ]
    truths = [some[0] for some in known]
    weighed = _swap_test(report, asking, images, truths, "all")
    report.pictures = [
        SeenPicture(text, truth, *three) for text, truth, three in zip(written, truths, weighed, strict=True)
    ]
