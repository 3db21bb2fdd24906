"""The loop: batches and a loss in, trained weights out; every objective goes through it.

Decides when to step, log, validate and save, and how a run goes on after an interruption, bit for bit on the CPU. It
knows no objective, no tokenizer and no file format: those come as functions.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stockpot.device import pick_dtype
from stockpot.errors import CheckpointError, DataError
from stockpot.model.layers import Block
from stockpot.run import Run
from stockpot.train.guard import Interrupted, StopWish, diverged, not_finite
from stockpot.train.losses import Loss, LossFn
from stockpot.train.meter import Meter
from stockpot.train.optim import OptimConfig, Optimizer
from stockpot.train.parallel import Group

__all__ = ["Interrupted", "LoopConfig", "TrainState", "fit"]

STATE_FILE = "state/training.pt"
BAD_IN_A_ROW = 10  # skipped steps after which skipping does not help


class LoopConfig(OptimConfig):
    """How long and how to train: the loop's settings and the optimizer's."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_tokens: int = Field(16_384, ge=1, description="real tokens a step, over all micro-batches and processes")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of matrix products; weights stay float32; none: the faster one here"
    )
    compile: bool | None = Field(None, description="compile each layer; none: on CUDA from 1000 steps")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    validate_every: int | None = Field(None, ge=1, description="steps between validations; none: a tenth of all")
    checkpoint_every: int | None = Field(None, ge=1, description="steps between checkpoints; none: a tenth of all")
    keep: int = Field(2, ge=1, description="newest checkpoints kept, beside the best")
    best_metric: str = Field("loss", description="the validation metric, lower is better, that picks the best")
    on_bad_step: Literal["stop", "skip"] = Field("stop", description="a step that is not finite: stop · skip it")
    divergence_factor: float | None = Field(
        3.0, gt=1, description="stop when the logged loss is this many times the first one; none: never"
    )

    def every(self, name: Literal["validate", "checkpoint"]) -> int:
        """Return the interval of a thing in steps."""
        own = self.validate_every if name == "validate" else self.checkpoint_every
        return own or max(1, math.ceil(self.steps / 10))


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        step: finished optimiser steps.
        tokens: real tokens seen.
        best: the best validation metric so far; None without validation.
        best_step: the step it was measured at.
        first_loss: the first logged loss, against which divergence is measured.
        bad_in_a_row: steps skipped without a good one between.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    first_loss: float | None = None
    bad_in_a_row: int = 0


def fit(  # noqa: PLR0913 - the seam of docs/architecture.md
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    config: LoopConfig,
    *,
    run: Run | None = None,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    save: Callable[[Path], None] | None = None,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> TrainState:
    """Train ``model`` in place, on the device it is on.

    Each step pulls micro-batches until their real tokens come nearest to ``config.batch_tokens``, sums the gradients of
    the losses' totals, divides once by the summed count, clips and updates. Training ends after ``config.steps`` or
    with the batches.

    Args:
        model: its weights stay float32; products run in ``config.dtype``.
        batches: micro-batches, each with ``tokens`` and ``to(device)``. With ``state_dict`` and ``load_state_dict`` they
            resume at once; without, those already seen are read over.
        loss_fn: ``(model, batch) -> Loss``.
        config: everything else that decides the result.
        run: where metrics and checkpoints go; None: nowhere. Only the first process writes.
        validate: ``model -> {name: value}``; logged as ``val/name``.
        save: writes the model folder of a checkpoint into the empty folder it is given.
        resume: go on from the run's newest whole checkpoint; a run without one starts from the beginning.
        progress: receives ``{"kind": "step", "step", "steps", "loss", "tokens_per_s", "time_left_s", …}``.

    Raises:
        TrainError: if the loss or gradient is not finite, or training diverges.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is saved.
        CheckpointError: if the checkpoint does not fit the model or settings.
        DataError: if there is no batch.
    """
    loop = _Loop(model, batches, loss_fn, config, run, validate, save, progress)
    if resume and run is not None and (found := run.latest_checkpoint()):
        loop.load(found[1])
    with StopWish() as wish:
        loop.train(wish)
    return loop.state


class _Loop:
    """The parts of one training run and what they do in a step."""

    def __init__(  # noqa: PLR0913 - fit's arguments
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFn,
        config: LoopConfig,
        run: Run | None,
        validate: Callable[[nn.Module], dict[str, float]] | None,
        save: Callable[[Path], None] | None,
        progress: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.loss_fn, self.config = model, loss_fn, config
        self.run, self.validate, self.save, self.progress = run, validate, save, progress
        self.group = Group()
        self.group.share(model)
        self.optimizer = Optimizer(model, config, config.steps)
        self.device = self.optimizer.parameters[0].device
        self.dtype = pick_dtype(self.device, config.dtype)
        self.feed = _Feed(batches, config.batch_tokens / self.group.place.world)
        self.meter = Meter(model, self.device, self.dtype)
        self.state = TrainState()
        self.saved_step: int | None = None
        self.saved_path: Path | None = None
        if config.compile or (config.compile is None and self.device.type == "cuda" and config.steps >= 1000):
            _compile_layers(model)

    # --- training ---

    def train(self, wish: StopWish) -> None:
        """Step until the end, the last batch or a wish to stop."""
        self.model.train()
        began_at = self.state.step
        norm = torch.zeros(())
        while self.state.step < self.config.steps:
            before = self.place()
            taken = self.step(before, wish)
            if taken is None and not self._wants_stop(wish):
                if self.state.step == 0:
                    raise DataError("There is no batch to train on.", "Give more data.")
                break
            if self._wants_stop(wish):
                self._interrupt(before if taken is None else self.place())
            assert taken is not None
            norm = taken
            self._after_step(norm, began_at)
        self._finish(norm, began_at)

    def step(self, before: dict[str, Any], wish: StopWish) -> Tensor | None:
        """Take one optimiser step.

        Returns:
            the gradient's norm; None if the data ended or a wish to stop came before the last micro-batch.
        """
        losses: list[Loss] = []
        seen: list[Any] = []
        for batch in self.feed.step():
            if wish.is_set and self.group.place.world == 1:
                self.optimizer.clear()
                return None
            batch = batch.to(self.device)
            with self.autocast():
                loss = self.loss_fn(self.model, batch)
            loss.total.backward()
            losses.append(loss)
            seen.append(batch)
        if not losses:
            return None
        self.group.sum_gradients(self.optimizer.parameters)
        count = sum((loss.count for loss in losses), start=torch.zeros((), device=self.device))
        norm = self.optimizer.scale(self.group.sum(count))
        is_good = math.isfinite(float(norm))
        if is_good:
            self.optimizer.step(self.state.step)
            for loss in losses:
                self.meter.add(loss)
        self.state.bad_in_a_row = 0 if is_good else self.state.bad_in_a_row + 1
        if not is_good and (self.config.on_bad_step == "stop" or self.state.bad_in_a_row >= BAD_IN_A_ROW):
            raise not_finite(
                self.state.step + 1, losses, seen, self.model, position=before["data"], run=self._writer
            )
        self.optimizer.clear()
        self.meter.count(sum(batch.tokens for batch in seen))
        self.state.step += 1
        return norm

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute matrix products in the number type of training."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- between steps ---

    def _after_step(self, norm: Tensor, began_at: int) -> None:
        step, config = self.state.step, self.config
        if step % config.log_every == 0 or step == began_at + 1:
            self._log(norm, began_at)
        is_due = step % config.every("checkpoint") == 0 and self.run is not None
        if step < config.steps:  # the last step is the end's
            if step % config.every("validate") == 0 or is_due:
                self._validate()
            if is_due:
                self._checkpoint(self.place())

    def _finish(self, norm: Tensor, began_at: int) -> None:
        if self.state.step == self.saved_step:
            return
        if self.state.step % self.config.log_every:
            self._log(norm, began_at)
        self._validate()
        self._checkpoint(self.place())

    def _log(self, norm: Tensor, began_at: int) -> None:
        step = self.state.step
        means = self.meter.read(self.group)
        if not means:
            return
        self.state.tokens = self.meter.tokens
        left = self.meter.time_left_s(step - began_at, self.config.steps - step)
        rates = self.meter.speed() | {"time_left_s": left}
        facts = {"lr": self.optimizer.lr(step - 1), "grad_norm": float(norm), "tokens": self.meter.tokens}
        facts |= rates | {"stall_s": self.meter.stall_s}
        if self._writer is not None:
            self._writer.log(step, **{f"train/{name}": value for name, value in means.items()}, **facts)
        self._report(means | facts)
        loss = means.get("loss", math.nan)
        if self.state.first_loss is None:
            self.state.first_loss = loss
        factor = self.config.divergence_factor
        if factor is not None and self.state.first_loss > 0 and loss > factor * self.state.first_loss:
            raise diverged(step, loss, self.state.first_loss, run=self._writer)

    def _validate(self) -> None:
        if self.validate is None:
            return
        with self.meter.pause(), self.autocast():
            was_training = self.model.training
            self.model.eval()
            found = self.validate(self.model)
            self.model.train(was_training)
        if self._writer is not None:
            self._writer.log(self.state.step, **{f"val/{name}": value for name, value in found.items()})
        self._report({f"val/{name}": value for name, value in found.items()})
        value = found.get(self.config.best_metric)
        if value is not None and math.isfinite(value) and (self.state.best is None or value < self.state.best):
            self.state.best, self.state.best_step = value, self.state.step

    def _report(self, facts: dict[str, float]) -> None:
        if self.progress is not None and self.group.is_first:
            self.progress({"kind": "step", "step": self.state.step, "steps": self.config.steps, **facts})

    @property
    def _writer(self) -> Run | None:
        return self.run if self.group.is_first else None

    # --- stopping, saving, going on ---

    def _wants_stop(self, wish: StopWish) -> bool:
        """Whether any process was asked to stop; all give the same answer."""
        return bool(self.group.sum(torch.tensor(float(wish.is_set))) > 0) if self.group.place.world > 1 else wish.is_set

    def _interrupt(self, place: dict[str, Any]) -> None:
        if self.state.step != self.saved_step and self.state.step > 0:
            self._checkpoint(place)
        raise Interrupted(self.state.step, self.saved_path)

    def place(self) -> dict[str, Any]:
        """Return where the next step begins: in the data and in the random streams."""
        return {"data": self.feed.state_dict(), "random": _random_state(self.device)}

    def _checkpoint(self, place: dict[str, Any]) -> None:
        if self.run is None:
            return
        with self.meter.pause(is_stall=True):
            self.state.tokens = self.meter.tokens
            streams = self.group.gather(place["random"]["torch"])
            if self._writer is None:
                return
            content = {
                "version": 1,
                "progress": asdict(self.state),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "meter": self.meter.state_dict(),
                "data": place["data"],
                "random": place["random"] | {"torch": streams},
            }

            def write(folder: Path) -> None:
                if self.save is not None:
                    self.save(folder)
                file = folder / STATE_FILE
                file.parent.mkdir()
                torch.save(content, file)

            path = self._writer.checkpoint(self.state.step, write, keep=self.config.keep)
            if self.state.best_step in (None, self.state.step):
                self._writer.set_model(path)
        self.saved_step, self.saved_path = self.state.step, path

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            CheckpointError: if it cannot be read or does not fit.
        """
        content = _read_state(checkpoint / STATE_FILE)
        try:
            self.model.load_state_dict(content["model"])
        except RuntimeError as error:
            raise CheckpointError(
                f"{checkpoint} holds another model ({str(error).splitlines()[-1].strip()}).",
                "Resume with the settings of the interrupted run.",
            ) from None
        self.optimizer.load_state_dict(content["optimizer"])
        self.meter.load_state_dict(content["meter"])
        self.feed.load_state_dict(content["data"])
        self.state = TrainState(**content["progress"])
        streams = content["random"]["torch"]
        stream = streams[min(self.group.place.rank, len(streams) - 1)]
        _set_random_state(content["random"] | {"torch": stream}, self.device)
        self.saved_step, self.saved_path = self.state.step, checkpoint
