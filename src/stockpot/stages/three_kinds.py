"""Why three kinds: an encoder, a decoder and an encoder-decoder on the same text and the same arithmetic, in one table.

Each is pretrained in its own way (masked tokens, next token, missing spans) until it has spent the same floating-point
operations, and is then asked for what all of them are used for: filling gaps, vectors of sentences, going on with a text,
and, after tuning with equal arithmetic again, turning one sentence into another. How each kind answers is `kinds_asked`'s.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.batch import Batch
from stockpot.data.corrupt import ObjectiveName, objective
from stockpot.data.encode import encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.records import TextRecord
from stockpot.data.sources import read_texts
from stockpot.durable import write_atomically
from stockpot.errors import DataError
from stockpot.judge.metrics import student
from stockpot.model.config import ModelConfig
from stockpot.model.transformer import Transformer
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.stages.kinds_asked import (
    LEAST_TEXT,
    METRICS,
    PairBatches,
    Questions,
    ask_pretrained,
    ask_tuned,
    fitting,
    questions_of,
    read_pairs,
)
from stockpot.stages.sizes import SHAPES
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import LossFn, masked_token_loss, next_token_loss, sequence_to_sequence_loss
from stockpot.train.meter import batch_flops

__all__ = ["Kind", "Kinds", "ThreeKindsConfig", "three_kinds"]

Kind = Literal["encoder", "decoder", "encoder_decoder"]
KINDS: tuple[Kind, ...] = ("encoder", "decoder", "encoder_decoder")
AIMS: dict[Kind, ObjectiveName] = {"encoder": "masked", "decoder": "causal", "encoder_decoder": "span"}
LOSSES: dict[Kind, LossFn] = {
    "encoder": masked_token_loss,
    "decoder": next_token_loss,
    "encoder_decoder": sequence_to_sequence_loss,
}
TRAINED_SHARE = 0.8  # of the minutes; the rest is for asking
MEASURED_STEPS = 6
SENTINELS = 40


class ThreeKindsConfig(Settings):
    """What the three kinds learn from, how large they are, and how long they learn."""

    data: tuple[str, ...] = Field(("village",), description="text for all of them")
    pairs: str = Field(
        "village", description="village (rewriting sentences), or a file of pairs to translate"
    )
    fields: tuple[str, str] = Field(
        ("prompt", "completion"), description="keys of a pair's two sides in that file"
    )
    similarity: str | None = Field(
        None, description="file with premise, hypothesis and relatedness, to compare sentence vectors on"
    )
    documents: int = Field(20_000, ge=50, description="texts to read at most")
    vocab_size: int = Field(1024, ge=300, description="of the tokenizer all share")
    layers: int = Field(4, ge=1, description="of each stack; the encoder-decoder has two")
    dim: int = Field(128, ge=16, description="width")
    context: int = Field(128, ge=40, description="tokens of a row")
    rows: int = Field(16, ge=1, description="rows of a step")
    seeds: int = Field(3, ge=1, description="times everything is done, from new weights")
    minutes: float = Field(20.0, gt=0, description="for everything, on this machine")
    most_steps: int = Field(20_000, ge=1, description="of pretraining, however many minutes there are")
    tuned_share: float = Field(
        0.3, gt=0, lt=1, description="share of the arithmetic that goes into the pairs"
    )
    items: int = Field(200, ge=10, description="questions of each sort")
    seed: int = Field(0, ge=0, description="first of the seeds")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)


@dataclass
class Kinds:
    """The table: what each kind scored, seed by seed.

    Attributes:
        facts: sizes and arithmetic.
        values: metric → kind → one value a seed; a kind that cannot do it is missing.
    """

    facts: dict[str, Any]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def cell(self, metric: str, kind: str) -> str:
        """Write a mean with its 95 % interval over seeds."""
        found = self.values.get(metric, {}).get(kind)
        if not found:
            return "-"
        mean, half = student(found)
        return f"{mean:.3f}" if math.isinf(half) else f"{mean:.3f} ± {half:.3f}"

    def table(self) -> list[list[str]]:
        """Return the table, its header first."""
        rows = [["", *(kind.replace("_", "-") for kind in KINDS)]]
        rows += [[called, *(self.cell(metric, kind) for kind in KINDS)] for metric, called in METRICS.items()]
        return [row for row in rows if set(row[1:]) != {"-"}]

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        facts = self.facts
        return "\n".join(
            [
                *lines,
                "",
                f"{facts['pretraining_flops']:.3g} FLOPs of pretraining and {facts['tuning_flops']:.3g} of tuning for each; "
                f"{facts['seeds']} seeds, {facts['items']} items, means with 95 % intervals over seeds.",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``three-kinds.json`` into a folder; return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            folder / "three-kinds.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
        )
        return folder


def three_kinds(
    config: ThreeKindsConfig | None = None, *, out: str | Path | None = None, progress: Progress | None = None
) -> Kinds:
    """Train the three kinds of model on the same text with equal arithmetic and compare what each can do.

    Args:
        config: data, sizes and minutes.
        out: where ``three-kinds.json`` goes; none: nowhere.
        progress: hears one event a model.

    Raises:
        DataError: if the data does not fit, before any training.
    """
    config, report = config or ThreeKindsConfig(), progress or silent
    begun = time.monotonic()
    work = _Work(config, report)
    found = Kinds(work.facts())
    for seed in range(config.seed, config.seed + config.seeds):
        for kind in KINDS:
            report({"kind": "stage", "name": f"{kind}, seed {seed}"})
            for metric, value in work.run(kind, seed).items():
                found.values.setdefault(metric, {}).setdefault(kind, []).append(value)
    found.facts["seconds"] = time.monotonic() - begun
    if out is not None:
        found.save(out)
    return found


class _Work:
    """What all runs share: text, pairs, questions, and how many steps equal arithmetic buys each kind."""

    def __init__(self, config: ThreeKindsConfig, report: Progress) -> None:
        self.config, self.report = config, report
        self.device = machine.pick_device(config.device)
        self.pairs, self.asked = read_pairs(
            config.pairs, config.fields, config.documents, config.items, config.seed
        )
        texts = list(islice(read_texts(list(config.data)), config.documents))
        marks = [f"<|extra_{number}|>" for number in range(SENTINELS)]
        self.tokenizer = Tokenizer.train(
            texts, vocab_size=config.vocab_size, special_tokens=[*SPECIAL_TOKENS, *marks]
        )
        held = max(20, len(texts) // 20)
        asked = [text for text in texts[:held] if len(self.tokenizer.encode(text)) >= LEAST_TEXT]
        if not asked:
            raise DataError(
                f"None of the {held} texts that are held out has {LEAST_TEXT} tokens, half to read and half to go on with.",
                "Give longer texts, such as several lines as one.",
            )
        self.questions: Questions = questions_of(config.similarity, asked, config.items, config.seed)
        self.asked = fitting(self.asked, self.tokenizer, config.context)
        self.store = encode([TextRecord(text) for text in texts[held:]], self.tokenizer)
        self.steps: dict[Kind, tuple[int, int]] = {}
        self.flops = self._plan()

    def facts(self) -> dict[str, Any]:
        """Return what stands under the table."""
        shapes = {kind: self._shape(kind) for kind in KINDS}
        return {
            "settings": self.config.model_dump(),
            "parameters": {kind: shape.parameters() for kind, shape in shapes.items()},
            "steps": {kind: list(steps) for kind, steps in self.steps.items()},
            "pretraining_flops": self.flops[0],
            "tuning_flops": self.flops[1],
            "seeds": self.config.seeds,
            "items": self.config.items,
        }

    def run(self, kind: Kind, seed: int) -> dict[str, float]:
        """Train one model from new weights, and ask it everything."""
        machine.seed_everything(seed)
        bundle = self._bundle(kind)
        pretraining, tuning = self.steps[kind]
        self._train(bundle, kind, self._corpus(kind, seed), pretraining)
        found = ask_pretrained(bundle, self.questions)
        self._train(bundle, kind, self._paired(bundle, seed), tuning)
        return found | ask_tuned(bundle, self.asked)

    def _bundle(self, kind: Kind) -> Bundle:
        return Bundle(Transformer(self._shape(kind)).to(self.device), self.tokenizer)

    def _shape(self, kind: Kind) -> ModelConfig:
        config = self.config
        extra = {"pair_classes": 0, "segment_types": 0} if kind == "encoder" else {}
        return SHAPES[kind](
            layers=config.layers,
            dim=config.dim,
            context=config.context,
            vocab_size=self.tokenizer.vocab_size,
            **extra,
        )

    def _train(self, bundle: Bundle, kind: Kind, batches: Iterable[Batch], steps: int) -> None:
        loop = LoopConfig(steps=steps, batch_tokens=1, log_every=max(1, steps // 5), divergence_factor=None)
        fit(bundle.model, batches, LOSSES[kind], loop, progress=self.report)
        bundle.model.eval()

    def _corpus(self, kind: Kind, seed: int) -> Iterator[Batch]:
        """Read the same documents in the way of the kind."""
        settings = LoaderConfig(context=self.config.context, micro_batch=self.config.rows, seed=seed)
        return iter(Loader(self.store, settings, objective(AIMS[kind], self.tokenizer)))

    def _paired(self, bundle: Bundle, seed: int) -> Iterator[Batch]:
        return iter(PairBatches(bundle, self.pairs, self.config.rows, seed))

    def _plan(self) -> tuple[float, float]:
        """Measure each kind, and divide the minutes so that all spend equally much arithmetic."""
        costs: dict[Kind, tuple[float, float]] = {}
        seconds = 0.0  # for one FLOP of each kind, pretraining and tuning in their shares
        share = self.config.tuned_share
        for kind in KINDS:
            bundle = self._bundle(kind)
            found = []
            for batches in (self._corpus(kind, 0), self._paired(bundle, 0)):
                some = list(islice(batches, MEASURED_STEPS))
                flops = float(np.mean([batch_flops(bundle.model, batch) for batch in some]))
                self._train(bundle, kind, some[:2], 2)
                begun = time.monotonic()
                self._train(bundle, kind, some, MEASURED_STEPS)
                found.append((flops, (time.monotonic() - begun) / MEASURED_STEPS))
            (one, one_s), (other, other_s) = found
            costs[kind] = (one, other)
            seconds += (1 - share) * one_s / one + share * other_s / other
        budget = 60 * self.config.minutes * TRAINED_SHARE / self.config.seeds / seconds
        least = min(one for one, _ in costs.values())  # this kind takes the most steps
        budget = min(budget, least * self.config.most_steps / (1 - share))
        planned = (1 - share) * budget, share * budget
        for kind, (one, other) in costs.items():
            self.steps[kind] = max(1, round(planned[0] / one)), max(1, round(planned[1] / other))
        return planned
