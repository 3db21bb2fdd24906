"""What the tests of the loop share."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import torch

from stockpot.data.batch import Batch
from stockpot.run import Run
from stockpot.train.loop import LoopConfig


class Stream:
    """An endless, seeded stream of batches that tells and takes its place, as a loader does."""

    def __init__(self, rows=4, width=16, vocab_size=40):
        self.rows, self.width, self.vocab_size = rows, width, vocab_size
        self.place = 0

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.place)
        self.place += 1
        start = torch.randint(0, self.vocab_size, (self.rows, 1), generator=generator)
        ids = (start + 3 * torch.arange(self.width + 1)) % self.vocab_size  # each token tells the next
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


class Part(Stream):
    """A process's share of the batches, for its place among those that read."""

    def __init__(self, place):
        super().__init__()
        self.rank, self.world = place.rank, place.world

    def __next__(self):
        return [super(Part, self).__next__() for _ in range(self.world)][self.rank]


def settings(**choices):
    return LoopConfig(
        **{"steps": 10, "batch_tokens": 64, "lr": 1e-2, "dtype": "float32", "log_every": 1, **choices}
    )


def new_run(folder, config):
    return Run.create(folder, stage="pretrain", recipe={"pretrain": config})


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def raising_signal(loss_fn, number, call):
    """Wrap a loss so that its ``call``-th call (from 1) meets a signal."""
    calls = itertools.count(1)

    def wrapped(model, batch):
        if next(calls) == call:
            signal.raise_signal(number)
        return loss_fn(model, batch)

    return wrapped


def threads_of_gloo():
    """Name the threads that a group of processes has left behind, where the system tells."""
    names = [file.read_text(encoding="utf-8").strip() for file in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]
