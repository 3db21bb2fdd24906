"""The probes: many small networks over the same frozen states, trained together as batched matrix products.

A probe mixes the layers it may see (a softmax of learned weights), projects each token, pools the tokens of a span with
learned attention, and classifies. All probes of a task (every set of layers, every seed, real and control labels) go
through each batch at once: the states are read once for all of them.

Source: Tenney et al. 2019, arXiv:1905.06316 (span pooling, scalar mix), arXiv:1905.05950 (cumulative layers).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stockpot.config import Settings
from stockpot.device import pick_dtype
from stockpot.judge.probe_states import States

__all__ = ["Judged", "Labelled", "ProbeConfig", "ProbeSet", "Shape", "train_probes"]

NUMBERS_AT_ONCE = 48 << 20  # of the largest tensor in a step; bounds memory whatever the number of probes
MIX_RATE = 10.0  # a softmax of a few numbers has further to go than a matrix
Ints = NDArray[np.int64]


class ProbeConfig(Settings):
    """How probes are made and trained."""

    kind: Literal["mlp", "linear"] = Field("mlp", description="of the classifier: mlp · linear")
    width: int = Field(64, ge=2, description="units of a token's projection, and of the hidden layer")
    epochs: int = Field(10, ge=1, description="passes over the training passages")
    lr: float = Field(3e-3, gt=0, description="learning rate at the start; it falls to 0")
    batch_tokens: int = Field(512, ge=32, description="tokens a step, at most")
    most_targets: int = Field(32, ge=1, description="targets of a passage used in an epoch, drawn anew")
    seeds: int = Field(3, ge=1, description="initial weights of each probe")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of the large products; weights stay float32; none: the faster one here"
    )


@dataclass(frozen=True)
class Labelled:
    """The targets of one task, as numbers.

    Attributes:
        passages: numbers of the passages that have any.
        spans: of each passage ``(targets, slots, 2)``, tokens ``[start, end)`` from its first.
        labels: of each passage ``(2, targets)``: the real label and the control's; −1 = not among those learned.
        classes: number of labels.
    """

    passages: tuple[int, ...]
    spans: tuple[Ints, ...]
    labels: tuple[Ints, ...]
    classes: int

    @property
    def slots(self) -> int:
        """Spans of a target: 1 or 2."""
        return int(self.spans[0].shape[1])

    def part(self, numbers: Sequence[int]) -> Labelled:
        """Keep the passages with these places in `passages`."""
        return Labelled(
            tuple(self.passages[i] for i in numbers),
            tuple(self.spans[i] for i in numbers),
            tuple(self.labels[i] for i in numbers),
            self.classes,
        )


@dataclass(frozen=True)
class Shape:
    """Which probes are trained side by side; all arrays have one entry a probe.

    Attributes:
        masks: bool ``(probes, layers)``: the layers it may mix.
        seeds: its initial weights.
        control: whether it learns the control labels.
    """

    masks: NDArray[np.bool_]
    seeds: Ints
    control: NDArray[np.bool_]


@dataclass(frozen=True)
class Judged:
    """What probes said of targets.

    Attributes:
        right: bool ``(probes, targets)``.
        nats: negative log-probability of the label ``(probes, targets)``; NaN for labels that were not learned.
        owners: the passage of each target ``(targets,)``.
    """

    right: NDArray[np.bool_]
    nats: NDArray[np.float32]
    owners: Ints


class ProbeSet:
    """Probes with their weights; made by `train_probes`."""

    def __init__(self, shape: Shape, *, dim: int, slots: int, classes: int, config: ProbeConfig) -> None:
        self.shape, self.config = shape, config
        width, probes = config.width, len(shape.seeds)
        self.masks = torch.from_numpy(shape.masks)
        self.dtype = pick_dtype(torch.device("cpu"), config.dtype)
        hidden = width if config.kind == "mlp" else 0
        drawn = {
            int(seed): _drawn(int(seed), dim, width, slots, hidden, classes) for seed in set(shape.seeds)
        }

        def pile(name: str) -> Tensor:
            return torch.stack([drawn[int(seed)][name] for seed in shape.seeds]).requires_grad_()

        self.mix = torch.zeros(shape.masks.shape, requires_grad=True)
        self.gain = torch.ones(probes, requires_grad=True)
        self.project, self.attend = pile("project"), pile("attend")
        self.bias = torch.zeros(probes, 1, width, requires_grad=True)
        self.hidden = pile("hidden") if hidden else None
        self.hidden_bias = torch.zeros(probes, 1, width, requires_grad=True) if hidden else None
        self.out = pile("out")
        self.out_bias = torch.zeros(probes, 1, classes, requires_grad=True)
        named = [self.mix, self.gain, self.project, self.attend, self.bias, self.out, self.out_bias]
        self.parameters = named + [one for one in (self.hidden, self.hidden_bias) if one is not None]

    def weights(self) -> Tensor:
        """Return each probe's mix of the layers ``(probes, layers)``; a row sums to 1."""
        return self.mix.masked_fill(~self.masks, -math.inf).softmax(-1)

    def __call__(self, batch: _Batch) -> Tensor:
        """Score the targets of a batch: ``(probes, targets, classes)``."""
        probes, tokens = self.mix.shape[0], batch.states.shape[1]
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            mixed = (self.gain[:, None] * self.weights()) @ batch.states.flatten(1)  # (probes, tokens * dim)
            seen = mixed.view(probes, tokens, -1) @ self.project
        seen = seen.float() + self.bias  # (probes, tokens, width)
        notice = seen @ self.attend  # (probes, tokens, slots)
        rows = seen[:, batch.places]  # (probes, batch, seq, width)
        pooled = []
        for slot in range(batch.spans.shape[2]):
            scores = notice[:, batch.places, slot].unsqueeze(2)  # (probes, batch, 1, seq)
            weights = scores.masked_fill(~batch.inside[:, :, slot], -1e9).softmax(-1)
            pooled.append((weights @ rows)[:, batch.rows, batch.columns])  # (probes, targets, width)
        found = torch.cat(pooled, -1)
        if self.hidden is not None and self.hidden_bias is not None:
            found = torch.relu(torch.baddbmm(self.hidden_bias, found, self.hidden))
        return torch.baddbmm(self.out_bias, found, self.out)

    def losses(self, scores: Tensor, batch: _Batch) -> Tensor:
        """Return the cross-entropy of every target ``(probes, targets)``; 0 where the label was not learned."""
        labels = batch.labels[torch.from_numpy(self.shape.control.astype(np.int64))]  # (probes, targets)
        flat = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none")
        return flat.view(labels.shape)

    @torch.inference_mode()
    def judge(self, states: States, data: Labelled) -> Judged:
        """Let every probe label the targets."""
        right, nats, owners = [], [], []
        for batch in _batches(states, data, self._tokens_at_once(states), None, most=None):
            scores = self(batch)
            labels = batch.labels[torch.from_numpy(self.shape.control.astype(np.int64))]
            loss = self.losses(scores, batch).masked_fill(labels < 0, math.nan)
            right.append((scores.argmax(-1) == labels).numpy())
            nats.append(loss.numpy())
            owners.append(batch.owners)
        return Judged(np.concatenate(right, 1), np.concatenate(nats, 1), np.concatenate(owners))

    def _tokens_at_once(self, states: States) -> int:
        most = NUMBERS_AT_ONCE // (states.values.shape[2] * self.mix.shape[0])
        return int(max(32, min(self.config.batch_tokens, most)))


def train_probes(
    states: States, data: Labelled, shape: Shape, config: ProbeConfig, *, order: int = 0
) -> ProbeSet:
    """Train all probes of a task on its training targets.

    Args:
        states: the frozen states.
        data: training targets.
        shape: which probes.
        config: their make.
        order: seed of the order of passages, the same for all probes.
    """
    dim = states.values.shape[2]
    probes = ProbeSet(shape, dim=dim, slots=data.slots, classes=data.classes, config=config)
    rates = [config.lr * (MIX_RATE if one is probes.mix else 1.0) for one in probes.parameters]
    groups = [{"params": [one], "lr": rate} for one, rate in zip(probes.parameters, rates, strict=True)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    rng = np.random.default_rng(order)
    at_once = probes._tokens_at_once(states)
    steps = config.epochs * sum(1 for _ in _shelves(states, data, at_once, None))
    step = 0
    for _ in range(config.epochs):
        for batch in _batches(states, data, at_once, rng, most=config.most_targets):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * max(0.0, 1 - step / steps)
            optimizer.zero_grad(set_to_none=True)
            counted = (batch.labels[0] >= 0).sum().clamp(min=1)
            (probes.losses(probes(batch), batch).sum() / counted).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
    return probes


def _drawn(seed: int, dim: int, width: int, slots: int, hidden: int, classes: int) -> dict[str, Tensor]:
    """Draw initial weights: the same for every probe of a seed, so that their differences are not luck."""
    source = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source) / math.sqrt(shape[0])

    found = {"project": normal(dim, width), "attend": torch.zeros(width, slots)}
    found["hidden"] = normal(slots * width, hidden or width)
    found["out"] = normal(hidden or slots * width, classes)
    return found


# --- batches ---


@dataclass(frozen=True)
class _Batch:
    """States of some passages and their targets.

    Shapes: states ``(layers, tokens, dim)``; places ``(batch, seq)``: the token at each place, 0 where there is none;
    spans ``(batch, most, slots, 2)``; inside, bool ``(batch, most, slots, seq)``; rows and columns ``(targets,)``: where
    each real target stands; labels ``(2, targets)``; owners ``(targets,)``.
    """

    states: Tensor
    places: Tensor
    spans: Tensor
    inside: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor
    owners: Ints


def _shelves(
    states: States, data: Labelled, tokens: int, rng: np.random.Generator | None
) -> Iterator[list[int]]:
    """Group passages of like lengths into batches of at most ``tokens`` tokens, padding included; shuffled if asked."""
    lengths = np.array([states.starts[n + 1] - states.starts[n] for n in data.passages])
    noise = 0.0 if rng is None else rng.uniform(0, 0.2 * lengths.mean(), len(lengths))
    shelves: list[list[int]] = [[]]
    for i in np.argsort(-(lengths + noise), kind="stable").tolist():
        longest = max(int(lengths[i]), max((int(lengths[j]) for j in shelves[-1]), default=0))
        if shelves[-1] and longest * (len(shelves[-1]) + 1) > tokens:
            shelves.append([])
        shelves[-1].append(i)
    order = range(len(shelves)) if rng is None else rng.permutation(len(shelves)).tolist()
    return (shelves[i] for i in order)


def _batches(
    states: States, data: Labelled, tokens: int, rng: np.random.Generator | None, *, most: int | None
) -> Iterator[_Batch]:
    for numbers in _shelves(states, data, tokens, rng):
        yield _batch(states, data, numbers, rng, most)


def _batch(
    states: States, data: Labelled, numbers: Sequence[int], rng: np.random.Generator | None, most: int | None
) -> _Batch:
    starts = [int(states.starts[data.passages[i]]) for i in numbers]
    sizes = [
        int(states.starts[data.passages[i] + 1]) - start for i, start in zip(numbers, starts, strict=True)
    ]
    blocks = [states.values[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    read = torch.from_numpy(np.concatenate(blocks))  # (tokens, layers, dim), copied out of the file
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    seq = max(sizes)
    places = np.where(np.arange(seq) < np.array(sizes)[:, None], firsts[:, None] + np.arange(seq), 0)
    chosen = [_chosen(data.spans[i].shape[0], rng, most) for i in numbers]
    width = max(len(one) for one in chosen)
    spans = np.zeros((len(numbers), width, data.slots, 2), np.int64)
    spans[..., 1] = 1
    for row, (i, some) in enumerate(zip(numbers, chosen, strict=True)):
        spans[row, : len(some)] = data.spans[i][some]
    rows = np.repeat(np.arange(len(numbers)), [len(one) for one in chosen])
    columns = np.concatenate([np.arange(len(one)) for one in chosen])
    at = np.arange(seq)
    inside = (at >= spans[..., :1]) & (at < spans[..., 1:])
    labels = np.concatenate(
        [data.labels[i][:, some] for i, some in zip(numbers, chosen, strict=True)], axis=1
    )
    owners = np.array([data.passages[i] for i in numbers])[rows]
    return _Batch(
        read.permute(1, 0, 2).float().contiguous(),
        torch.from_numpy(places),
        torch.from_numpy(spans),
        torch.from_numpy(inside),
        torch.from_numpy(rows),
        torch.from_numpy(columns),
        torch.from_numpy(labels),
        owners,
    )


def _chosen(count: int, rng: np.random.Generator | None, most: int | None) -> Ints:
    if rng is None or most is None or count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, most, replace=False))
