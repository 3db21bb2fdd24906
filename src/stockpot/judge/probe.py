"""Probe a model: which layers know what, where each task is solved, and how sure that is.

`probe` joins the parts: annotated passages, states of all layers, probes trained side by side, and their statistics. The
report holds every figure with its interval, the controls beside the scores, and the order of the tasks with its certainty.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stockpot.bundle import Bundle
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError
from stockpot.judge.probe_charts import mix_chart, place_chart, score_chart
from stockpot.judge.probe_data import PIPELINE, Passage, read_passages, split_passages
from stockpot.judge.probe_lens import HeadLook, LensLayer, attention_statistics, logit_lens
from stockpot.judge.probe_score import (
    Order,
    draw_weights,
    order_of,
)
from stockpot.judge.probe_states import StackName, compute_states, depth_of
from stockpot.judge.probe_task import TaskProbe, TaskWork
from stockpot.judge.probe_train import ProbeConfig
from stockpot.weights.store import load

__all__ = ["ProbeConfig", "ProbeReport", "TaskProbe", "probe"]

Progress = Callable[[dict[str, Any]], None]
LOOKED_AT = 200  # passages for the lens and the attention statistics


@dataclass
class ProbeReport:
    """Everything that probing one model found."""

    model: str
    stack: str
    layers: tuple[int, ...]
    passages: dict[str, int]
    config: dict[str, Any]
    tasks: list[TaskProbe] = field(default_factory=list)
    order: Order | None = None
    lens: list[LensLayer] | None = None
    heads: list[HeadLook] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        head = (
            f"{'task':<14} {'n':>6} {'chance':>7} {'layer ' + str(self.layers[0]):>9} {'best':>15} "
            f"{'gain':>7} {'select.':>8}  {'expected layer':<20} {'centre':>7}"
        )
        lines = [head]
        for one in self.tasks:
            best = max(one.scores, key=lambda e: e.value)
            at = self.layers[one.scores.index(best)]
            chosen = f"{one.selectivity[-1]:+.3f}" if one.control else "-"
            lines.append(
                f"{one.task:<14} {best.n:>6} {best.chance or 0:>7.3f} {one.scores[0].value:>9.3f} "
                f"{f'{best.value:.3f} (0-{at})':>15} {one.scores[-1].value - one.scores[0].value:>+7.3f} {chosen:>8}  "
                f"{one.place!s:<20} {one.centre[0]:>7.2f}"
            )
        return "\n".join([*lines, "", self.sentence])

    @property
    def sentence(self) -> str:
        """Say in words whether the tasks come in the order of the classical pipeline."""
        if self.order is None:
            return "Fewer than two tasks have a place, so there is no order to speak of."
        order = self.order
        doubtful = [f"{a} before {b}" for a, b, share in order.pairs if 0.025 < share < 0.975]
        against = [f"{b} before {a}" for a, b, share in order.pairs if share <= 0.025]
        text = (
            f"The order {' < '.join(order.tasks)} holds as a whole in {100 * order.whole:.0f} % of resamples "
            f"(Kendall's tau {order.tau:+.2f}, 95 % interval {order.tau_low:+.2f} to {order.tau_high:+.2f})."
        )
        if against:
            text += f" Clearly the other way round: {', '.join(against)}."
        if doubtful:
            text += f" Not decided by this data: {', '.join(doubtful)}."
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        value = asdict(self)
        for saved, one in zip(value["tasks"], self.tasks, strict=True):
            saved["selectivity"] = list(one.selectivity)
        return value | {"sentence": self.sentence}

    def charts(self) -> dict[str, str]:
        """Draw places, scores and mixes; name → SVG."""
        return {
            "places": place_chart(self.tasks, self.layers),
            "scores": score_chart(self.tasks, self.layers),
            "mixes": mix_chart(self.tasks, self.layers),
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``probe.json`` and the charts into a folder; return it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "probe.json", json.dumps(self.to_dict(), ensure_ascii=False, indent=1))
        for name, drawn in self.charts().items():
            write_atomically(folder / f"{name}.svg", drawn)
        return folder


def probe(  # noqa: PLR0913 - what is probed, on what, and how
    model: str | Path | Bundle,
    data: str | Path | Sequence[str | Path] = "village",
    *,
    layers: str | Sequence[int] = "all",
    tasks: Sequence[str] | None = None,
    limit: int = 2000,
    stack: StackName | None = None,
    config: ProbeConfig | None = None,
    control: bool = True,
    mdl: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeReport:
    """Find out which layers of a model know what: edge probing with all its safeguards.

    Args:
        model: a bundle or anything `load` takes: an encoder, a decoder or an encoder-decoder.
        data: annotated files, or the village's own parses; see `read_passages`.
        layers: ``"all"``, or numbers in rising order, 0 for the embeddings.
        tasks: some of those the data holds; None: all.
        limit: passages, evenly from the files.
        stack: of an encoder-decoder, which one; None: its encoder.
        config: how probes are made and trained.
        control: also train probes on random labels of word types, to see what remembering alone would score.
        mdl: also measure how short the labels can be told given the states (online code); costs about one more training.
        seed: of drawing, splitting and the order of training.
        progress: hears one event a task.

    Raises:
        ConfigError: if layers or tasks do not exist.
        DataError: if the data cannot be read or holds too little.
    """
    report = progress or (lambda _: None)
    config = config or ProbeConfig()
    begun = time.monotonic()
    bundle = model if isinstance(model, Bundle) else load(model)
    chosen = _layers(layers, depth_of(bundle, stack))
    sources = [data] if isinstance(data, str | Path) else list(data)
    passages = read_passages(sources, limit=limit, seed=seed)
    train, test = split_passages(passages, seed=seed)
    with tempfile.TemporaryDirectory(prefix="stockpot-probe-") as folder:
        states = compute_states(bundle, passages, Path(folder), layers=chosen, stack=stack)
        found = ProbeReport(
            model=str(bundle.source or "model"),
            stack=stack or ("decoder" if bundle.model.config.shape == "decoder" else "encoder"),
            layers=chosen,
            passages={"train": len(train), "test": len(test), "left_out": states.left_out},
            config=config.model_dump() | {"seed": seed, "limit": limit},
        )
        found.seconds["states"] = time.monotonic() - begun
        report({"kind": "note", "text": f"{states.values.shape[0]:,} tokens, {len(chosen)} layers read"})
        weights = draw_weights(len(passages), seed)
        drawn = {}
        for task in _tasks(passages, tasks):
            begun = time.monotonic()
            work = TaskWork(task, passages, states, config, weights, seed)
            one, expected = work.run(train, test, control=control, mdl=mdl)
            found.tasks.append(one)
            if one.place.value is not None:
                drawn[task] = expected
            found.seconds[task] = time.monotonic() - begun
            report({"kind": "note", "text": f"{task}: {one.scores[-1]}, expected layer {one.place}"})
    found.order = order_of(drawn, PIPELINE)
    begun = time.monotonic()
    texts = [passages[number].text for number in test[:LOOKED_AT]]
    found.lens = logit_lens(bundle, texts, stack=stack, layers=chosen)
    found.heads = attention_statistics(bundle, texts, stack=stack)
    found.seconds["looking"] = time.monotonic() - begun
    return found


def _layers(layers: str | Sequence[int], depth: int) -> tuple[int, ...]:
    if layers == "all":
        return tuple(range(depth + 1))
    try:
        numbers = tuple(int(one) for one in (layers.split(",") if isinstance(layers, str) else layers))
    except ValueError:
        numbers = ()
    if len(numbers) < 2 or list(numbers) != sorted(set(numbers)) or numbers[0] < 0 or numbers[-1] > depth:
        raise ConfigError(
            f"layers = {layers!r} does not name at least two layers from 0 to {depth} in rising order.",
            'Give "all", or numbers such as 0,3,6.',
        )
    return numbers


def _tasks(passages: Sequence[Passage], wanted: Sequence[str] | None) -> list[str]:
    present = {task for passage in passages for task in passage.targets}
    known = [task for task in PIPELINE if task in present] + sorted(present - set(PIPELINE))
    unknown = [task for task in wanted or () if task not in present]
    if unknown:
        raise ConfigError(f"The data has no {unknown[0]}.", f"It has: {', '.join(known)}.")
    return [task for task in known if wanted is None or task in wanted]
