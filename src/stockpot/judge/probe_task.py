"""Probe one task: its targets in numbers, its control labels, its probes, and what they add up to.

`TaskWork` takes the states of the passages and leaves a `TaskProbe`; which passages train and which test is decided above.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from stockpot.errors import DataError
from stockpot.judge.metrics import Estimate
from stockpot.judge.probe_data import Passage, Target
from stockpot.judge.probe_score import (
    Located,
    Tally,
    centre_of_gravity,
    located,
    online_code,
    scores_of,
    share_right,
)
from stockpot.judge.probe_states import States
from stockpot.judge.probe_train import Labelled, ProbeConfig, Shape, train_probes

__all__ = ["TaskProbe", "TaskWork"]

MOST_LABELS = 64  # rarer ones count as wrong
LEAST_TARGETS = 50
# shares of the training passages that end the blocks of an online code
CODE_STARTS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)


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


class TaskWork:
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
