"""Emergence or mirage: the same outputs of models of rising compute, under metrics that jump and metrics that do not.

`Study` gathers what models answered (see `emergence_answers`) into curves, predicts exact match from single tokens, and says
whether a jump survives another metric. Training the models is `stages/emergence`'s business.

Sources: Wei et al. 2022, arXiv:2206.07682 (emergence); Schaeffer et al. 2023, arXiv:2304.15004 (the metric's part in it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.durable import write_atomically
from stockpot.errors import ConfigError
from stockpot.judge.emergence_answers import Measured
from stockpot.judge.emergence_charts import curve_panels
from stockpot.judge.emergence_fit import Shapes, compare_shapes, powers, sentence_of
from stockpot.judge.metrics import Estimate

__all__ = [
    "METRICS",
    "Curve",
    "Point",
    "Study",
    "TaskCurves",
    "curves_of",
]

Floats = NDArray[np.float64]
DRAWS = 1000
METRICS: dict[str, str] = {
    "exact": "exact match",
    "edit": "token edit distance",
    "nats": "log-likelihood a token",
    "brier": "Brier score",
}
"""Name → what it is called. All but exact match are better when lower."""


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

    def add(
        self, task: str, models: Mapping[str, tuple[float, Sequence[Measured]]], *, seed: int = 0
    ) -> TaskCurves:
        """Make the curves of a task from what its models said.

        Args:
            task: its name.
            models: name → (compute, what it said, once for each seed it was trained with); all were asked the same items.
            seed: of the resampling: of items, the same for all models, and of the seeds of each.

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
        items = len(said[0][0].exact)
        means = _resampled(said, items, np.random.default_rng(seed))
        power, right_power = means["power"], means["right_power"]
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


def _resampled(said: Sequence[Sequence[Measured]], items: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Return every mean in every resample ``(1 + draws, models)``; row 0 is the sample itself."""
    picks = np.concatenate(
        [np.ones((1, items)), rng.multinomial(items, np.full(items, 1 / items), size=DRAWS)]
    )
    columns: dict[str, list[Floats]] = {}
    for runs in said:
        count = len(runs)
        seeds = rng.multinomial(count, np.full(count, 1 / count), size=1 + DRAWS) / count
        seeds[0] = 1 / count
        each = {
            name: picks @ np.stack([getattr(one, name) for one in runs], 1) / items  # (1 + draws, seeds)
            for name in ("exact", "edit", "nats", "brier", "right", "tokens")
        }
        # each run has its own p: the power of a mean is not the mean of powers
        each["power"] = powers(np.exp(-each["nats"]), each["tokens"])
        each["right_power"] = powers(each["right"], each["tokens"])
        for name, values in each.items():
            columns.setdefault(name, []).append((values * seeds).sum(1))
    return {name: np.stack(values, 1) for name, values in columns.items()}


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
