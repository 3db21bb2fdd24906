"""When training must stop: a signal from outside, or numbers that are no longer numbers.

Turns SIGINT and SIGTERM into a wish the loop can look at, and a bad step into an error that says what happened, where
in the data, and what to do. It saves no checkpoint and changes no weight.
"""

from __future__ import annotations

import json
import math
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor, nn

from stockpot.errors import TrainError
from stockpot.run import Run, write_atomically
from stockpot.train.losses import Loss

__all__ = ["Interrupted", "StopWish", "diverged", "not_finite"]

BAD_BATCH = "bad-batch.json"


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop and has.

    Attributes:
        step: finished optimiser steps.
        checkpoint: where they are saved, if there is a run.
    """

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        where = f", saved in {checkpoint}" if checkpoint else ""
        super().__init__(f"interrupted after step {step}{where}")
        self.step, self.checkpoint = step, checkpoint


class StopWish:
    """Whether someone wants this to stop.

    Inside the block SIGINT and SIGTERM are noted, not raised; a second one is raised at once. Outside the main thread
    signals are left alone.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopWish:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt(f"second signal {signal.Signals(number).name}")
        self.is_set = True


def not_finite(
    step: int,
    losses: Sequence[Loss],
    batches: Sequence[Any],
    model: nn.Module,
    *,
    position: Any,
    run: Run | None,
) -> TrainError:
    """Describe a step whose gradient is not finite, and write the batch to blame into the run folder.

    Args:
        step: the step that was not taken, counted from 1.
        losses: one for each micro-batch.
        batches: the micro-batches.
        model: with the gradients of the step.
        position: where in the data the step began, as the loader tells it.
        run: where ``bad-batch.json`` goes.
    """
    bad = [index for index, loss in enumerate(losses) if not math.isfinite(float(loss.total.detach()))]
    if bad:
        index = bad[0]
        what = (
            f"the loss is {float(losses[index].total.detach())} in micro-batch {index + 1} of {len(losses)}"
        )
    else:
        index = 0
        names = [
            name for name, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)
        ]
        what = (
            f"the losses are finite but the gradient is not ({', '.join(names[:3]) or 'its norm overflows'})"
        )
    where = ""
    if run is not None:
        row = {"step": step, "micro_batch": index + 1, "position": position, "ids": _ids(batches[index])}
        write_atomically(run.path / BAD_BATCH, json.dumps(row, default=str) + "\n")
        where = f"; the batch is in {run.path / BAD_BATCH}"
    return TrainError(f"Step {step}: {what}{where}.", _advice(run))


def diverged(step: int, loss: float, first: float, *, run: Run | None) -> TrainError:
    """Describe a loss that has grown far above where it began."""
    return TrainError(
        f"Step {step}: the loss is {loss:.4g}; it began at {first:.4g}. Training diverges.", _advice(run)
    )


def _advice(run: Run | None) -> str:
    newest = run.latest_checkpoint() if run is not None else None
    kept = f"The last good checkpoint is {newest[1]}. " if newest else ""
    return (
        kept
        + "Lower loop.lr, raise loop.warmup_steps, or pass over bad steps with loop.on_bad_step = 'skip'."
    )


def _is_finite(values: Tensor) -> bool:
    return bool(values.isfinite().all())


def _ids(batch: Any) -> list[list[int]] | None:
    ids = getattr(batch, "ids", None)
    return ids.tolist() if isinstance(ids, Tensor) else None
