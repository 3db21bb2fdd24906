"""What the tests of the loop share."""

from __future__ import annotations

import itertools
import signal

import torch

from stockpot.run import Run
from stockpot.train.loop import LoopConfig


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
