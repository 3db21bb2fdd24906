"""Emergence or mirage: the same outputs of models of rising compute, under metrics that jump and metrics that do not.

`measure` asks one model the same questions as all others and keeps, answer by answer, exact match, token edit distance,
nats and Brier score; `Study` gathers models into curves, predicts exact match from single tokens, and says whether a jump
survives another metric. Training the models is `stages/emergence`'s business.

Sources: Wei et al. 2022, arXiv:2206.07682 (emergence); Schaeffer et al. 2023, arXiv:2304.15004 (the metric's part in it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stockpot.bundle import Bundle
from stockpot.data.records import CompletionRecord
from stockpot.data.sources import read_records
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import completion_ids, pad, reading_only
from stockpot.generate.request import Sampling
from stockpot.judge.emergence_charts import curve_panels
from stockpot.judge.emergence_fit import Shapes, compare_shapes, powers, sentence_of
from stockpot.judge.metrics import Estimate
from stockpot.village import Village
from stockpot.village.arithmetic import ARITHMETIC_KINDS

__all__ = [
    "METRICS",
    "Curve",
    "Item",
    "Measured",
    "Point",
    "Study",
    "TaskCurves",
    "curves_of",
    "items_of",
    "measure",
]

Floats = NDArray[np.float64]
Item = tuple[str, str]
BATCH = 256
LOGIT_NUMBERS = 1 << 24
DRAWS = 1000
METRICS: dict[str, str] = {
    "exact": "exact match",
    "edit": "token edit distance",
    "nats": "log-likelihood a token",
    "brier": "Brier score",
}
"""Name → what it is called. All but exact match are better when lower."""


def items_of(task: str, limit: int, *, seed: int = 0) -> list[Item]:
    """Return the questions and answers of a task.

    Args:
        task: ``columns`` or ``sums`` of the village, with the number of digits behind a slash (``sums/3``; 4 by
            default), or a file of records with a prompt and a completion.
        limit: at most so many.
        seed: of the village.

    Raises:
        ConfigError, DataError: if there is no such task or file.
    """
    kind, _, digits = task.partition("/")
    if kind in ARITHMETIC_KINDS and not Path(task).exists():
        if digits and not digits.isdigit():
            raise ConfigError(f"{task!r}: {digits!r} is no number of digits.", "Example: sums/4.")
        drawn = Village(seed).arithmetic("val", limit, kind=kind, digits=int(digits or 4))
        return [(one["prompt"], one["completion"]) for one in drawn]
    items: list[Item] = []
    for record in read_records(task):
        if not isinstance(record, CompletionRecord):
            raise DataError(
                f"{record.where}: a {record.kind} record; questions have a prompt and a completion.",
                f"Tasks of the village: {', '.join(ARITHMETIC_KINDS)}.",
            )
        if not isinstance(record.prompt, str):
            raise DataError(f"{record.where}: the prompt is a conversation.", "Give the prompt as one text.")
        items.append((record.prompt, record.completion))
        if len(items) == limit:
            break
    return items


@dataclass(frozen=True)
class Measured:
    """What one model made of the items; arrays have one entry an item.

    Attributes:
        exact: whether the greedy answer is the right one, token for token.
        edit: edits from the greedy answer to the right one, per token of it.
        nats: mean negative log-probability of the right tokens, each after the right ones before it.
        brier: mean Brier score of those predictions: 0 is perfect, 2 the worst.
        right: share of those tokens that are the likeliest.
        tokens: length of the right answer.
    """

    exact: Floats
    edit: Floats
    nats: Floats
    brier: Floats
    right: Floats
    tokens: Floats


def measure(bundle: Bundle, items: Sequence[Item]) -> Measured:
    """Ask a decoder all items, and judge each answer in every way.

    Raises:
        GenerationError: if the model is no decoder, or an item does not fit into its context.
    """
    if bundle.model.config.shape != "decoder":
        raise GenerationError("Curves of emergence are measured on decoders.", "Give decoders.")
    prompts = [bundle.encode(prompt) for prompt, _ in items]
    answers = [completion_ids(bundle, answer) for _, answer in items]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    if longest > bundle.context or not all(answers):
        raise GenerationError(
            f"The longest item has {longest} tokens; this model takes {bundle.context}.", "Use shorter items."
        )
    found: dict[str, list[float]] = {name: [] for name in ("nats", "brier", "right")}
    with reading_only(bundle.model):
        for at in range(0, len(items), BATCH):
            part = slice(at, at + BATCH)
            for name, values in _forced(bundle, prompts[part], answers[part]).items():
                found[name] += values
    written = Engine(bundle, slots=64).generate(
        prompts, Sampling(temperature=0.0, max_tokens=max(map(len, answers)))
    )
    said = [list(one.ids)[: len(answer)] for one, answer in zip(written, answers, strict=True)]
    return Measured(
        np.array([float(a == b) for a, b in zip(said, answers, strict=True)]),
        np.array([_edits(a, b) / len(b) for a, b in zip(said, answers, strict=True)]),
        np.array(found["nats"]),
        np.array(found["brier"]),
        np.array(found["right"]),
        np.array([float(len(answer)) for answer in answers]),
    )


def _forced(
    bundle: Bundle, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> dict[str, list[float]]:
    """Predict each answer token from the right ones before it; returns means over each answer."""
    rows = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, real = pad(rows, bundle.model.device)
    hidden = bundle.model(ids, attention_mask=real, last=0).hidden
    owners = torch.tensor([r for r, answer in enumerate(answers) for _ in answer])
    places = torch.tensor(
        [len(p) - 1 + i for p, answer in zip(prompts, answers, strict=True) for i in range(len(answer))]
    )
    wanted = torch.tensor([token for answer in answers for token in answer], device=ids.device)
    states = hidden[owners.to(ids.device), places.to(ids.device)]
    size = max(1, LOGIT_NUMBERS // bundle.model.config.vocab_size)
    parts: dict[str, list[torch.Tensor]] = {"nats": [], "brier": [], "right": []}
    for some, targets in zip(torch.split(states, size), torch.split(wanted, size), strict=True):
        logs = bundle.model.logits(some).float().log_softmax(-1)
        own = logs.gather(1, targets[:, None])[:, 0]
        parts["nats"].append(-own)
        parts["brier"].append(logs.exp().square().sum(1) - 2 * own.exp() + 1)
        parts["right"].append((logs.argmax(1) == targets).float())
    count = torch.bincount(owners)
    means = {
        name: torch.bincount(owners, weights=torch.cat(values).double().cpu()) / count
        for name, values in parts.items()
    }
    return {name: values.tolist() for name, values in means.items()}


def _edits(first: Sequence[int], second: Sequence[int]) -> int:
    """Count the insertions, deletions and replacements from one list to another (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


# --- curves ---


@dataclass(frozen=True)
class Point:
    """One model on one task.

    Attributes:
        name: of the model.
        compute: FLOPs of its training, or its parameters where nobody knows them.
        scores: metric → value with interval.
        power: p^n, p from the mean nats of a token: how often all tokens would be drawn right if they were independent.
        right_power: the same from the share of tokens that are likeliest, which is what greedy answers are made of.
    """

    name: str
    compute: float
    scores: dict[str, Estimate]
    power: Estimate | None = None
    right_power: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """One metric over all models: which shape it has."""

    metric: str
    shapes: Shapes


@dataclass(frozen=True)
class TaskCurves:
    """All metrics of one task over all models, smallest compute first.

    Attributes:
        task: its name.
        points: one a model.
        curves: one a metric.
        off: mean distance of p^n from exact match.
        right_off: the same for p from the share of tokens that are likeliest.
        sentence: whether the jump survives.
    """

    task: str
    points: tuple[Point, ...]
    curves: tuple[Curve, ...]
    off: float | None
    right_off: float | None
    sentence: str


@dataclass
class Study:
    """Curves of several tasks over one family of models."""

    axis: str = "FLOPs"
    tasks: list[TaskCurves] = field(default_factory=list)

    def add(self, task: str, models: Mapping[str, tuple[float, Measured]], *, seed: int = 0) -> TaskCurves:
        """Make the curves of a task from what its models said.

        Args:
            task: its name.
            models: name → (compute, what it said); all were asked the same items.
            seed: of the resampling of items, which is the same for all models.

        Raises:
            ConfigError: if there are fewer than four models of different compute.
        """
        order = sorted(models, key=lambda name: models[name][0])
        compute = [models[name][0] for name in order]
        said = [models[name][1] for name in order]
        if len(set(compute)) < 4 or len(set(compute)) < len(compute):
            raise ConfigError(
                f"{len(order)} models of {len(set(compute))} different amounts of compute make no curve.",
                "Give at least four, each of its own compute.",
            )
        items = len(said[0].exact)
        rng = np.random.default_rng(seed)
        picks = np.concatenate(
            [np.ones((1, items)), rng.multinomial(items, np.full(items, 1 / items), size=DRAWS)]
        )
        means = {
            name: picks @ np.stack([getattr(one, name) for one in said], 1) / items
            for name in ("exact", "edit", "nats", "brier", "right", "tokens")
        }
        power = powers(np.exp(-means["nats"]), means["tokens"])
        right_power = powers(means["right"], means["tokens"])
        points = tuple(
            Point(
                name,
                compute[i],
                {metric: _estimate(means[metric][:, i], items) for metric in METRICS},
                _estimate(power[:, i], items),
                _estimate(right_power[:, i], items),
            )
            for i, name in enumerate(order)
        )
        off, right_off = (float(np.abs(one[0] - means["exact"][0]).mean()) for one in (power, right_power))
        found = curves_of(task, points, {metric: means[metric] for metric in METRICS}, off, right_off, items)
        self.tasks.append(found)
        return found

    def __str__(self) -> str:
        text = []
        for one in self.tasks:
            text.append(f"{one.task}\n{'model':<16} {self.axis:>10} " + _HEAD)
            for point in one.points:
                scores = " ".join(f"{_short(point.scores.get(metric)):>22}" for metric in METRICS)
                powers_of = f"{_value(point.power):>7} {_value(point.right_power):>7}"
                text.append(f"{point.name[-16:]:<16} {point.compute:>10.3g} {scores} {powers_of}")
            shapes = ", ".join(
                f"{METRICS.get(curve.metric, curve.metric)}: {curve.shapes.form} ({100 * curve.shapes.sharp_wins:.0f} % sharp)"
                for curve in one.curves
            )
            text.append(f"{shapes}\n{one.sentence}\n")
        return "\n".join(text).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON; `read_study` reads it again."""
        return {"axis": self.axis, "tasks": [asdict(one) for one in self.tasks]}

    def save(self, folder: str | Path) -> Path:
        """Write ``emergence.json`` and one chart a task into a folder; return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "emergence.json", json.dumps(self.to_dict(), indent=1, ensure_ascii=False))
        for one in self.tasks:
            name = "".join(sign if sign.isalnum() else "-" for sign in one.task)
            write_atomically(folder / f"{name}.svg", curve_panels(one, self.axis))
        return folder


_HEAD = " ".join(f"{called:>22}" for called in METRICS.values()) + f" {'p^n':>7} {'a^n':>7}"


def curves_of(
    task: str,
    points: tuple[Point, ...],
    drawn: Mapping[str, Floats],
    off: float | None,
    right_off: float | None,
    items: int | None,
) -> TaskCurves:
    """Compare the shapes of every metric; ``drawn`` is metric → ``(1 + resamples, models)``."""
    x = [float(np.log10(point.compute)) for point in points]
    curves = tuple(Curve(metric, compare_shapes(x, values)) for metric, values in drawn.items())
    sentence = sentence_of(
        task,
        {curve.metric: (METRICS.get(curve.metric, curve.metric), curve.shapes) for curve in curves},
        off=off,
        largest=points[-1].scores["exact"].value,
        unseen=None if items is None else 3 / items,
    )
    return TaskCurves(task, points, curves, off, right_off, sentence)


def _estimate(values: Floats, n: int) -> Estimate:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return Estimate(float(values[0]), float(low), float(high), n)


def _short(one: Estimate | None) -> str:
    return "-" if one is None else f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def _value(one: Estimate | None) -> str:
    return "-" if one is None else f"{one.value:.3f}"
