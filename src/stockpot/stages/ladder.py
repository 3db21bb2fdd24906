"""The prompt ladder: every kind of prompting on the same items of one model, with what each costs.

Rungs, from no help to training: the wordings alone (the median one and the best, which is chosen on examples, not on the
questions), calibrated, with examples, with steps, with similar examples retrieved, with a soft prompt, with a prefix in every
layer, and with low-rank adapters. Every score has its interval; differences to the first rung are paired over the same items.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import Field

from stockpot.config import Settings
from stockpot.device import seed_everything
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.metrics import Estimate, paired_difference, proportion
from stockpot.judge.prompts import WordingScore, ask_wording, opened
from stockpot.model.adapters import LoRA, attach
from stockpot.prompt.extract import same_answer
from stockpot.prompt.items import Item, Pool, Questions
from stockpot.prompt.shots import Paper, Shots, choose
from stockpot.prompt.steps import think
from stockpot.prompt.training import AnswerBatches, answer_pairs
from stockpot.stages.assemble import Progress, silent
from stockpot.stages.report import score_chart
from stockpot.stages.tune_prompt import PromptTuningConfig, tune_prompt
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss
from stockpot.weights.store import load

__all__ = ["Ladder", "LadderConfig", "Rung", "ladder"]

Kind: TypeAlias = Literal["wordings", "shots", "steps", "retrieval", "soft", "prefix", "lora"]
KINDS: tuple[Kind, ...] = ("wordings", "shots", "steps", "retrieval", "soft")
STEPS_TOKENS = 96


class LadderConfig(Settings):
    """Which rungs, and how far each goes."""

    questions: Questions = Field(default_factory=Questions, description="the task and its items")
    kinds: tuple[Kind, ...] = Field(
        KINDS, min_length=1, description="rungs: wordings · shots · steps · retrieval · soft · prefix · lora"
    )
    k: int = Field(4, ge=1, description="examples of the rungs that show some")
    chosen_on: int = Field(32, ge=4, description="examples on which the best wording is chosen")
    encoder: str | None = Field(None, description="finds similar examples; none: the model itself")
    length: int = Field(20, ge=1, description="vectors of the soft prompt, and of the prefix in each layer")
    steps: int = Field(150, ge=1, description="optimiser steps of each rung that is trained")
    lora: LoRA = Field(default_factory=LoRA, description="the adapters of the rung lora")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")
    dtype: str | None = Field(
        None, description="number type of the untrained rungs; none: what suits the device"
    )


@dataclass(frozen=True)
class Rung:
    """One kind of prompting.

    Attributes:
        name: what was done.
        accuracy: share of right answers.
        gain: difference to the first rung over the same items.
        tokens: read and written for all items, examples included.
        trained: parameters that were trained.
        seconds: asking, and training where there is any.
    """

    name: str
    accuracy: Estimate
    gain: Estimate
    tokens: int
    trained: int
    seconds: float


@dataclass
class Ladder:
    """All rungs of one model and task."""

    model: str
    task: str
    source: str
    wording: str
    commonest: float | None
    rungs: list[Rung] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{'rung':<34} {'accuracy':>22} {'gain':>24} {'tokens':>9} {'trained':>9} {'seconds':>8}"
        lines = [head]
        for one in self.rungs:
            a, g = one.accuracy, one.gain
            lines.append(
                f"{one.name:<34} {f'{a.value:.3f} [{a.low:.3f}, {a.high:.3f}]':>22} "
                f"{f'{g.value:+.3f} [{g.low:+.3f}, {g.high:+.3f}]':>24} {one.tokens:>9,} {one.trained:>9,} {one.seconds:>8.1f}"
            )
        e = self.rungs[0].accuracy
        guess = (
            ""
            if e.chance is None
            else f"; guessing scores {e.chance:.2f}, the commonest label {self.commonest:.2f}"
        )
        return "\n".join([*lines, "", f"{e.n} items of {self.source}, wording {self.wording}{guess}"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def chart(self) -> str:
        """Draw the rungs with their intervals; returns SVG."""
        rows = [
            {
                "task": one.name,
                "model": self.task,
                **{key: getattr(one.accuracy, key) for key in ("value", "low", "high", "chance")},
            }
            for one in self.rungs
        ]
        return score_chart(rows, title=f"prompt ladder: {self.task}")

    def save(self, folder: str | Path) -> Path:
        """Write ``ladder.json`` and ``ladder.svg`` into a folder; return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "ladder.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False))
        write_atomically(folder / "ladder.svg", self.chart())
        return folder


def ladder(
    model: str | Path,
    config: LadderConfig | None = None,
    *,
    out: str | Path,
    progress: Progress | None = None,
) -> Ladder:
    """Climb the ladder and leave ``ladder.json``, ``ladder.svg`` and the soft prompt's run in a folder.

    Args:
        model: anything `load` takes; trained rungs need a decoder.
        config: the task and the rungs.
        out: the folder; new or empty.
        progress: hears one event a rung.

    Raises:
        ConfigError: if the folder is in use, or there are too few examples.
    """
    config = config or LadderConfig()
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty.", "Give a new folder with --out.")
    climb = _Climb(model, config, out, progress or silent)
    for kind in config.kinds:
        getattr(climb, f"climb_{kind}")()
        climb.ladder.save(out)  # what was climbed stays, whatever becomes of the next rung
    return climb.ladder


class _Climb:
    """What the rungs share: model, items, the chosen wording, and the first rung's answers."""

    def __init__(self, model: str | Path, config: LadderConfig, out: Path, report: Progress) -> None:
        self.config, self.out, self.report, self.model = config, out, report, str(model)
        self.asking, self.pool = config.questions.open()
        if len(self.pool.examples) < max(config.k, config.chosen_on):
            raise ConfigError(
                f"{self.pool.source} leaves {len(self.pool.examples)} examples; {max(config.k, config.chosen_on)} are needed.",
                "Lower --limit, or name a file of examples.",
            )
        self.bundle = load(model, device=config.device, dtype=config.dtype)
        self.engine = Engine(self.bundle, slots=16)
        self.way = "calibrated" if self.pool.labels else "written"
        self.plain = "plain" if self.pool.labels else "written"  # what was trained is not rescaled
        self.first: tuple[bool, ...] | None = None
        begun = time.monotonic()
        self.wording = self._best_wording()
        self.choosing_s = time.monotonic() - begun
        self.ladder = Ladder(
            self.model, self.asking.name, self.pool.source, self.wording, self.pool.commonest
        )

    def _best_wording(self) -> str:
        """Choose the wording that is right most often on examples; none of the questions is looked at."""
        names = list(self.asking.wordings)
        if len(names) == 1:
            return names[0]
        some = self.pool.examples[: self.config.chosen_on]
        pool = Pool(some, (), self.pool.labels, self.pool.source)
        scores = {name: self._score(self.engine, name, pool) for name in names}
        return max(names, key=lambda name: (sum(scores[name].right[self.way]), scores[name].log_prob.value))

    def _score(self, engine: Engine, wording: str, pool: Pool, shots: Shots | None = None) -> WordingScore:
        finder = engine
        if shots is not None and shots.select == "similar" and self.config.encoder is not None:
            finder = Engine(opened(self.config.encoder))
        shown = choose(pool, shots or Shots(), pool.questions, finder.embed)
        return ask_wording(engine, self.asking, wording, pool, shown, chat=self.config.questions.chat)

    def _add(self, name: str, right: Sequence[bool], tokens: int, begun: float, trained: int = 0) -> None:
        seconds = time.monotonic() - begun
        self.first = tuple(right) if self.first is None else self.first
        gain = paired_difference([float(x) for x in self.first], [float(x) for x in right])
        accuracy = proportion(sum(right), len(right), chance=self.pool.chance)
        self.ladder.rungs.append(Rung(name, accuracy, gain, tokens, trained, seconds))
        self.report({"kind": "note", "text": f"{name}: {accuracy}"})

    # --- the rungs ---

    def climb_wordings(self) -> None:
        """Add the rungs of this kind."""
        begun, scores = time.monotonic(), []
        for name in self.asking.wordings:
            scores.append(self._score(self.engine, name, self.pool))
        order = np.argsort([sum(one.right[self.plain]) for one in scores], kind="stable")
        middle = scores[int(order[len(order) // 2])]
        self._add(f"median of {len(scores)} wordings", middle.right[self.plain], middle.tokens, begun)
        best = next(one for one in scores if one.wording == self.wording)
        begun = time.monotonic() - self.choosing_s
        self._add(f"chosen wording, {self.plain}", best.right[self.plain], best.tokens, begun)
        if self.pool.labels:
            self._add("chosen wording, calibrated", best.right["calibrated"], best.tokens, time.monotonic())

    def climb_shots(self) -> None:
        """Add the rungs of this kind."""
        begun = time.monotonic()
        score = self._score(self.engine, self.wording, self.pool, Shots(k=self.config.k))
        self._add(_examples(self.config.k), score.right[self.way], score.tokens, begun)

    def climb_retrieval(self) -> None:
        """Add the rungs of this kind."""
        begun = time.monotonic()
        shots = Shots(k=self.config.k, select="similar", order="similar-last")
        score = self._score(self.engine, self.wording, self.pool, shots)
        self._add(_examples(self.config.k, "retrieved "), score.right[self.way], score.tokens, begun)

    def climb_steps(self) -> None:
        """Add the rungs of this kind."""
        begun = time.monotonic()
        texts = self._bare()
        words = self.asking.words_of(self.wording) if self.pool.labels else {}
        choices = [words.get(label, label) for label in self.pool.labels]
        most = max(
            8, min(STEPS_TOKENS, self.bundle.context // 4)
        )  # steps and answer must fit behind the question
        sampling = Sampling(temperature=0.0, max_tokens=most)
        kind = self.asking.extract
        thoughts = think(self.engine, texts, way="zero-shot", kind=kind, choices=choices, sampling=sampling)
        wanted = [words.get(item.answer, item.answer) for item in self.pool.questions]
        right = [same_answer(one.answer, answer) for one, answer in zip(thoughts, wanted, strict=True)]
        self._add("step by step, two stages", right, sum(one.tokens for one in thoughts), begun)
        solved = [item for item in self.pool.examples[:64] if item.worked][: self.config.k]
        shown = self._bare(solved) if solved else []
        worked = [(text, item.worked, item.answer) for text, item in zip(shown, solved, strict=True)]
        if worked:
            begun = time.monotonic()
            thoughts = think(
                self.engine, texts, way="few-shot", kind=kind, examples=worked, sampling=sampling
            )
            right = [same_answer(one.answer, answer) for one, answer in zip(thoughts, wanted, strict=True)]
            name = f"step by step, {len(worked)} worked examples"
            self._add(name, right, sum(one.tokens for one in thoughts), begun)

    def _bare(self, items: Sequence[Item] | None = None) -> list[str]:
        """Give the items in words for steps: a free question as it is, else in the chosen wording."""
        asked = self.pool.questions if items is None else items
        if not self.pool.labels and "question" in self.asking.fields:
            return [item.fields["question"] for item in asked]
        return self.asking.render(self.wording, [item.fields for item in asked])

    def climb_soft(self) -> None:
        """Add the rungs of this kind."""
        self._climb_tuned("soft", f"soft prompt of {self.config.length}", kind="prompt")

    def climb_prefix(self) -> None:
        """Add the rungs of this kind."""
        self._climb_tuned("prefix", f"prefix of {self.config.length} in every layer", kind="prefix")

    def _climb_tuned(self, folder: str, name: str, *, kind: Literal["prompt", "prefix"]) -> None:
        """Tune what stands before the frozen model; judge it four times only, since few steps are taken."""
        begun = time.monotonic()
        questions = self.config.questions.model_copy(update={"wordings": (self.wording,)})
        quarter = -(-self.config.steps // 4)
        settings = PromptTuningConfig(
            model=self.model,
            questions=questions,
            kind=kind,
            length=self.config.length,
            loop={"steps": self.config.steps, "validate_every": quarter, "checkpoint_every": quarter},
            device=self.config.device,
        )
        run = tune_prompt(settings, out=self.out / folder, progress=self.report)
        worn = load(self.model, device=self.config.device, dtype=self.config.dtype, adapters=[run.path])
        score = self._score(Engine(worn, slots=16), self.wording, self.pool)
        trained = int(run.manifest["trained_parameters"])
        self._add(name, score.right[self.plain], score.tokens, begun, trained)

    def climb_lora(self) -> None:
        """Add the rungs of this kind."""
        begun = time.monotonic()
        seed_everything(self.config.questions.seed)
        bundle = load(self.model, device=self.config.device, dtype="float32")
        trained = attach(bundle.model, self.config.lora)
        paper = Paper(self.asking, self.wording, bundle, chat=self.config.questions.chat, room=16)
        fit(
            bundle.model,
            AnswerBatches(bundle, answer_pairs(paper, self.pool.examples[:2000]), 8),
            next_token_loss,
            LoopConfig(
                steps=self.config.steps, batch_tokens=1024, lr=5e-4, optimizer="adamw", weight_decay=0.0
            ),
        )
        bundle.model.eval()
        score = self._score(Engine(bundle, slots=16), self.wording, self.pool)
        name = f"low-rank adapters, rank {self.config.lora.rank}"
        self._add(name, score.right[self.plain], score.tokens, begun, trained)


def _examples(count: int, kind: str = "") -> str:
    return f"{count} {kind}example{'' if count == 1 else 's'}"
