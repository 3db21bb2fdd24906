"""Probe a model: which layers know what, where each task is solved, and how sure that is.

`probe` joins the parts: annotated passages, states of all layers, probes trained side by side, and their statistics. The
report holds every figure with its interval, the controls beside the scores, and the order of the tasks with its certainty.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.bundle import Bundle
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError, DataError
from stockpot.judge.metrics import Estimate
from stockpot.judge.probe_charts import mix_chart, place_chart, score_chart
from stockpot.judge.probe_data import PIPELINE, Passage, Target, read_passages, split_passages
from stockpot.judge.probe_lens import HeadLook, LensLayer, attention_statistics, logit_lens
from stockpot.judge.probe_score import (
    Located,
    Order,
    Tally,
    centre_of_gravity,
    draw_weights,
    located,
    online_code,
    order_of,
    scores_of,
    share_right,
)
from stockpot.judge.probe_states import StackName, States, compute_states, depth_of
from stockpot.judge.probe_train import Labelled, ProbeConfig, Shape, train_probes
from stockpot.weights.store import load

__all__ = ["ProbeConfig", "ProbeReport", "TaskProbe", "probe"]

Progress = Callable[[dict[str, Any]], None]
MOST_LABELS = 64  # rarer ones count as wrong
LEAST_TARGETS = 50
LOOKED_AT = 200  # passages for the lens and the attention statistics
CODE_STARTS = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.4,
    0.7,
    1.0,
)  # shares of the training passages that end the blocks of an online code


@dataclass(frozen=True)
class TaskProbe:
    """What probes found out about one task.

    Attributes:
        task: its name.
        train: targets to learn from.
        labels: how many kinds.
        scores: share of right labels (micro F1, since a target has one label) of probes that see layers 0 … l.
        control: the same for random labels of word types, or empty.
        place: the expected layer.
        centre: centre of gravity of the mix of all layers: mean, lowest and highest over seeds.
        mix: the weights of that mix, averaged over seeds.
        bits: length of the online code of the training labels, if asked for.
        compression: how many times shorter that is than sending the labels plainly.
    """

    task: str
    train: int
    labels: int
    scores: tuple[Estimate, ...]
    control: tuple[Estimate, ...]
    place: Located
    centre: tuple[float, float, float]
    mix: tuple[float, ...]
    bits: float | None = None
    compression: float | None = None

    @property
    def selectivity(self) -> tuple[float, ...]:
        """Score minus control score at each layer: what is not explained by remembering words."""
        return tuple(a.value - b.value for a, b in zip(self.scores, self.control, strict=False))


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
    data: str | Path | Sequence[str | Path],
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
        data: annotated files; see `read_passages`.
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
            work = _Work(task, passages, states, config, weights, seed)
            one, expected = work.run(train, test, control=control, mdl=mdl)
            found.tasks.append(one)
            if one.place.value is not None:
                drawn[task] = expected
            found.seconds[task] = time.monotonic() - begun
            report({"kind": "note", "text": f"{task}: {one.scores[-1]}, expected layer {one.place}"})
    found.order = order_of(drawn, PIPELINE)
    begun = time.monotonic()
    texts = [passages[number].text for number in test[:LOOKED_AT]]
    found.lens = logit_lens(bundle, texts, stack=stack)
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


class _Work:
    """The probing of one task."""

    def __init__(
        self,
        task: str,
        passages: Sequence[Passage],
        states: States,
        config: ProbeConfig,
        weights: np.ndarray,
        seed: int,
    ) -> None:
        self.task, self.passages, self.states = task, passages, states
        self.config, self.weights, self.seed = config, weights, seed

    def run(
        self, train: Sequence[int], test: Sequence[int], *, control: bool, mdl: bool
    ) -> tuple[TaskProbe, np.ndarray]:
        """Train and judge; returns the result and the expected layer of each resample."""
        names = self._names(train)
        learned, asked = self._labelled(train, names), self._labelled(test, names)
        targets = sum(int((one[0] >= 0).sum()) for one in learned.labels) if learned.passages else 0
        asked_for = sum(one.shape[1] for one in asked.labels)
        if min(targets, asked_for) < LEAST_TARGETS or len(names) < 2:
            raise DataError(
                f"{self.task}: {targets} targets of {len(names)} kinds to learn from and {asked_for} to test on.",
                f"At least {LEAST_TARGETS} of each and two kinds are needed; leave the task out or give more data.",
            )
        layers, seeds = len(self.states.layers), self.config.seeds
        shape = _shape(layers, seeds, control)
        probes = train_probes(self.states, learned, shape, self.config, order=self.seed)
        judged = probes.judge(self.states, asked)
        own = seeds * layers
        tally = Tally.of(judged.right[:own], judged.owners, seeds)
        scores = scores_of(tally, self.weights, self.seed)
        place, expected = located(scores, self.states.layers)
        chance = _commonest(asked)
        controls = (
            scores_of(Tally.of(judged.right[own:], judged.owners, 1), self.weights) if control else None
        )
        mixes = probes.weights().detach().numpy()[layers - 1 : own : layers]  # those that see all layers
        centres = [centre_of_gravity(mix.tolist(), self.states.layers) for mix in mixes]
        bits = self._code(learned, len(names)) if mdl else (None, None)
        return TaskProbe(
            self.task,
            targets,
            len(names),
            tuple(share_right(scores, i, asked_for, chance) for i in range(layers)),
            ()
            if controls is None
            else tuple(share_right(controls, i, asked_for, None) for i in range(layers)),
            place,
            (float(np.mean(centres)), min(centres), max(centres)),
            tuple(float(x) for x in mixes.mean(0)),
            *bits,
        ), expected

    def _names(self, train: Sequence[int]) -> list[str]:
        counts = Counter(
            target.label for n in train for target in self.passages[n].targets.get(self.task, ())
        )
        return [label for label, _ in counts.most_common(MOST_LABELS)]

    def _labelled(self, numbers: Sequence[int], names: Sequence[str]) -> Labelled:
        """Turn targets into numbers; those on words without a token are passed over."""
        known = {label: number for number, label in enumerate(names)}
        kept, spans, labels = [], [], []
        for number in numbers:
            words = self.states.words[number]
            if words is None:
                continue
            rows, found = [], []
            for target in self.passages[number].targets.get(self.task, ()):
                parts = [
                    _in_tokens(words, span) for span in (target.first, target.second) if span is not None
                ]
                if all(parts):
                    rows.append(parts)
                    found.append((known.get(target.label, -1), self._control(number, target, len(names))))
            if rows:
                kept.append(number)
                spans.append(np.array(rows, np.int64))
                labels.append(np.array(found, np.int64).T)
        return Labelled(tuple(kept), tuple(spans), tuple(labels), len(names))

    def _control(self, number: int, target: Target, classes: int) -> int:
        """Give the last word of the (first) span's type its own random label, the same wherever it stands.

        Source: Hewitt and Liang 2019, arXiv:1909.03368, section 2.
        """
        passage = self.passages[number]
        start, end = passage.words[target.first[1] - 1]
        word = passage.text[start:end].lower()
        digest = hashlib.sha256(f"{self.seed}/{self.task}/{word}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % classes

    def _code(self, learned: Labelled, classes: int) -> tuple[float, float]:
        """Tell the training labels block by block, each by a probe of all layers trained on those before it."""
        order = np.random.default_rng(self.seed).permutation(len(learned.passages)).tolist()
        ends = sorted({max(8, round(share * len(order))) for share in CODE_STARTS})
        layers = len(self.states.layers)
        shape = Shape(np.ones((1, layers), np.bool_), np.zeros(1, np.int64), np.zeros(1, np.bool_))
        sizes = [sum(int((learned.labels[i][0] >= 0).sum()) for i in order[: ends[0]])]
        nats = []
        for end, after in pairwise(ends):
            probes = train_probes(self.states, learned.part(order[:end]), shape, self.config, order=self.seed)
            judged = probes.judge(self.states, learned.part(order[end:after]))
            nats.append(float(np.nansum(judged.nats)))
            sizes.append(int((~np.isnan(judged.nats)).sum()))
        return online_code(nats, sizes, classes)


def _shape(layers: int, seeds: int, control: bool) -> Shape:
    """Lay out probes that see layers 0 … l: every seed, then (if asked) one seed with control labels."""
    cumulative = np.tril(np.ones((layers, layers), np.bool_))
    sets = seeds + int(control)
    return Shape(
        np.concatenate([cumulative] * sets),
        np.repeat([*range(seeds), *([0] if control else [])], layers),
        np.repeat([*([False] * seeds), *([True] if control else [])], layers),
    )


def _in_tokens(words: Sequence[tuple[int, int] | None], span: tuple[int, int]) -> tuple[int, int] | None:
    """Return the tokens of a span of words, or None if it has none."""
    found = [word for word in words[span[0] : span[1]] if word is not None]
    return (found[0][0], found[-1][1]) if found else None


def _commonest(data: Labelled) -> float:
    """Return the score of always giving the label that is commonest in the test."""
    labels = np.concatenate([one[0] for one in data.labels])
    known = labels[labels >= 0]
    return float(np.bincount(known).max() / len(labels)) if len(known) else 0.0
