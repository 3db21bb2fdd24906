"""In-context learning, measured: more examples, wrong labels, and the same examples as gradient steps.

One wording, the same questions throughout; each point is a mean over draws of the examples, with an interval over the
questions. The steps change a copy of the model.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.bundle import Bundle
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.judge.metrics import Estimate, mean_estimate, score_estimate
from stockpot.judge.prompts import Progress, ask_wording, opened
from stockpot.prompt.items import Pool, Questions
from stockpot.prompt.shots import Labels, Paper, Shots, Shown, choose
from stockpot.prompt.training import answer_batch
from stockpot.prompt.wordings import Asking
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss

__all__ = ["Curve", "Point", "gradient_steps", "shots_curve"]

KS = (0, 1, 2, 4, 8, 16)
KINDS: tuple[Labels, ...] = ("gold", "random", "flipped")
STEPS = "gradient steps"


@dataclass(frozen=True)
class Point:
    """One way of using k examples.

    Attributes:
        kind: labels shown (gold, random, flipped), or "gradient steps" with the right ones.
        k: examples.
        accuracy: share of right choices (calibrated for labels, written for free answers), over questions.
        log_prob: of the right answer, nats.
        left_out: examples that did not fit, over all prompts.
    """

    kind: str
    k: int
    accuracy: Estimate
    log_prob: Estimate
    left_out: int


@dataclass
class Curve:
    """Accuracy by number of examples."""

    model: str
    task: str
    wording: str
    draws: int
    points: list[Point] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = list(dict.fromkeys(one.kind for one in self.points))
        head = f"{'k':>4}" + "".join(f" {kind:>22}" for kind in kinds)
        lines = [head]
        for k in sorted({one.k for one in self.points}):
            row = {one.kind: one for one in self.points if one.k == k}
            cells = [_cell(row[kind].accuracy) if kind in row else "-" for kind in kinds]
            lines.append(f"{k:>4}" + "".join(f" {cell:>22}" for cell in cells))
        e = self.points[0].accuracy
        guess = "" if e.chance is None else f", guessing {e.chance:.2f}"
        return "\n".join(
            [*lines, "", f"accuracy with 95 % interval, {e.n} items, {self.draws} draws of examples{guess}"]
        )

    def series(self) -> dict[str, list[tuple[float, float]]]:
        """Give each kind's (k, accuracy) points, for a chart."""
        found: dict[str, list[tuple[float, float]]] = {}
        for one in self.points:
            found.setdefault(one.kind, []).append((one.k, one.accuracy.value))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write everything as JSON."""
        write_atomically(Path(path), json.dumps(self.to_dict(), indent=1))


def shots_curve(
    model: str | Path | Bundle,
    questions: Questions | str = "sentiment",
    *,
    ks: Sequence[int] = KS,
    kinds: Sequence[Labels] = KINDS,
    draws: int = 3,
    lr: float | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Measure accuracy by number of examples, with right and wrong labels, and against gradient steps.

    Args:
        model: a bundle or anything `load` takes.
        questions: what to ask; the first wording is used.
        ks: numbers of examples.
        kinds: labels shown.
        draws: how often the examples are drawn.
        lr: also take the examples of each draw as gradient steps of this learning rate; None: do not.
        progress: hears one event a point.

    Source: Min et al. 2022, arXiv:2202.12837.
    """
    asking, pool = (questions := Questions.of(questions)).open()
    bundle = opened(model)
    engine, wording = Engine(bundle, slots=16), next(iter(asking.wordings))
    curve = Curve(str(bundle.source or "model"), asking.name, wording, draws)
    ways: list[str] = [*kinds, *([STEPS] if lr is not None else [])]
    for kind in ways:
        for k in ks:
            curve.points.append(_point(engine, asking, wording, pool, questions, kind, k, draws, lr or 0.0))
            if progress is not None:
                progress({"kind": "note", "text": f"{kind}, {k}: {curve.points[-1].accuracy}"})
    return curve


def _point(  # noqa: PLR0913 - one cell of a table, with its row and column
    engine: Engine,
    asking: Asking,
    wording: str,
    pool: Pool,
    questions: Questions,
    kind: str,
    k: int,
    draws: int,
    lr: float,
) -> Point:
    right, log_probs, left_out = [], [], 0
    for seed in range(draws if k else 1):
        by_steps = kind == STEPS
        shots = Shots(k=k, labels="gold" if by_steps else kind, seed=seed)
        shown = choose(pool, shots, pool.questions)
        asked = engine
        if by_steps and k:
            tuned = gradient_steps(engine.bundle, asking, wording, shown[0], lr=lr, chat=questions.chat)
            asked = Engine(tuned, slots=16)
        if by_steps:
            shown = [[] for _ in pool.questions]
        score = ask_wording(asked, asking, wording, pool, shown, chat=questions.chat)
        right.append(score.right["calibrated" if pool.labels else "written"])
        log_probs.append(score.log_probs)
        left_out += score.left_out
    mean = np.array(right, dtype=float).mean(0).tolist()  # per question, over draws
    likely = np.array(log_probs).mean(0).tolist()
    accuracy = score_estimate(mean, chance=pool.chance)
    return Point(kind, k, accuracy, mean_estimate(likely), left_out)


def gradient_steps(
    bundle: Bundle,
    asking: Asking,
    wording: str,
    shown: Sequence[Shown],
    *,
    lr: float,
    chat: bool = False,
) -> Bundle:
    """Take one AdamW step for each example, in their order, on a copy of the model; the model itself stays as it is.

    Raises:
        ConfigError: if an example has no answer.
    """
    if any(one.answer is None for one in shown):
        raise ConfigError("Gradient steps need answers.", "Use labels other than none.")
    paper = Paper(asking, wording, bundle, chat=chat)
    prompts = paper.prompts([one.item for one in shown], [[] for _ in shown])
    pairs = [(prompt, paper.answer(one.answer or "")) for prompt, one in zip(prompts, shown, strict=True)]
    tuned = replace(bundle, model=copy.deepcopy(bundle.model).float().requires_grad_(True))
    config = LoopConfig(
        steps=len(pairs),
        batch_tokens=1,
        lr=lr,
        optimizer="adamw",
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.0,
        dtype="float32",
        log_every=max(1, len(pairs)),
        divergence_factor=None,
    )
    fit(tuned.model, [answer_batch(bundle, [pair]) for pair in pairs], next_token_loss, config)
    tuned.model.eval()
    return tuned


def _cell(e: Estimate) -> str:
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" if math.isfinite(e.value) else "-"
