"""The one loop: batches and a loss function in, a trained model out.

Pretraining, tuning and everything later differ in their batches and their loss; here is what they share: accumulation,
clipping, schedule, logging, validation, checkpoints, exact resume, and stopping well. It knows no text and no task.
"""

from __future__ import annotations

import contextlib
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot import device as machine
from stockpot.config import Settings
from stockpot.errors import CheckpointError, TrainError
from stockpot.run import Run
from stockpot.train.losses import LossFn
from stockpot.train.optim import OptimConfig, Optimizer
from stockpot.train.schedule import Schedule, schedule_factor

__all__ = ["LoopConfig", "TrainState", "fit"]

Progress = Callable[[dict[str, Any]], None]
Validate = Callable[[nn.Module], dict[str, float]]
Save = Callable[[Path], None]
STATE = "state/training.pt"


class LoopConfig(Settings):
    """How long and how a model is trained."""

    steps: int = Field(1_000, ge=1, description="optimizer updates")
    batch_tokens: int = Field(16_384, ge=1, description="positions of one step, over all micro-batches")
    lr: float = Field(3e-3, gt=0, description="highest learning rate")
    schedule: Schedule = Field(
        "warmup-stable-decay", description="constant · linear · cosine · warmup-stable-decay"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="steps of rising learning rate; none: 2 % of all, 10 to 500"
    )
    decay_share: float = Field(
        0.4, ge=0, le=1, description="share of the steps that fall (warmup-stable-decay)"
    )
    final_lr_factor: float = Field(
        0.0, ge=0, le=1, description="learning rate of the last step, as a share of the highest"
    )
    optim: OptimConfig = Field(default_factory=OptimConfig, description="the optimizer")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="of matrix products; none: the faster one here"
    )
    log_every: int = Field(10, ge=1, description="steps between two lines of metrics")
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; none: a tenth of all"
    )
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; none: a fifth of all, or 500"
    )
    keep: int = Field(2, ge=1, description="checkpoints kept besides the best")
    not_finite: Literal["stop", "skip"] = Field(
        "stop", description="at a loss that is no number: stop, or skip the step"
    )

    @model_validator(mode="after")
    def _fits(self) -> LoopConfig:
        if self.warmup_steps is not None and self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is more than steps {self.steps}")
        return self

    def lr_at(self, step: int) -> float:
        """Give the learning rate of a step, counted from 0."""
        warmup = self.warmup_steps
        if warmup is None:
            warmup = min(self.steps // 2, max(10, min(500, self.steps // 50)))
        return self.lr * schedule_factor(
            step,
            kind=self.schedule,
            steps=self.steps,
            warmup_steps=warmup,
            decay_steps=round(self.steps * self.decay_share),
            final=self.final_lr_factor,
        )

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(1, self.steps // 10)

    @property
    def save_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or max(1, min(500, self.steps // 5))


@dataclass
class TrainState:
    """Where a training stands.

    Attributes:
        step: optimizer updates done.
        tokens: real tokens seen.
        seconds: spent training, validation and checkpoints included, over all sittings.
        best: lowest validation loss so far.
        skipped: steps left out because their loss was no number.
        status: "done", "running" or "interrupted".
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    skipped: int = 0
    status: str = "running"


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    config: LoopConfig,
    *,
    run: Run | None = None,
    validate: Validate | None = None,
    save: Save | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> TrainState:
    """Train ``model`` in place.

    A step takes micro-batches from ``batches`` until they hold ``config.batch_tokens`` positions; their totals are
    backpropagated one by one and the gradients divided once by the sum of their counts, so that neither padding nor the size
    of micro-batches changes the update.

    Args:
        model: on its device; float32 weights are kept also where products run in bfloat16.
        batches: anything that yields batches; with ``state_dict``/``load_state_dict`` resuming is exact.
        loss_fn: ``(model, batch) -> Loss``.
        config: how long and how.
        run: where metrics and checkpoints go; None: nowhere.
        validate: ``model -> metrics``; ``"loss"`` decides the best checkpoint.
        save: writes the model folder of a checkpoint; None: the weights alone are kept with the state.
        resume: go on from the run's newest whole checkpoint.
        progress: receives ``{"kind": "step", …}`` events.

    Returns:
        How it ended; ``status`` is "interrupted" after SIGINT or SIGTERM, with the last step saved.

    Raises:
        TrainError: if the loss is no number (with ``not_finite="stop"``) or there are no batches.
        CheckpointError: if the run cannot be resumed.
    """
    loop = _Loop(model, batches, loss_fn, config, run, validate, save, progress or (lambda event: None))
    if resume:
        loop.restore()
    return loop.go()


class _Loop:
    """One training: its parts and its state. See `fit`."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss_fn: LossFn,
        config: LoopConfig,
        run: Run | None,
        validate: Validate | None,
        save: Save | None,
        progress: Progress,
    ) -> None:
        self.model, self.loss_fn, self.config = model, loss_fn, config
        self.run, self.validate, self.save, self.progress = run, validate, save, progress
        self.batches = batches
        self.device = next(model.parameters()).device
        self.dtype = machine.pick_dtype(self.device, config.dtype)
        self.optimizer = Optimizer(model, config.optim)
        self.state = TrainState()
        self.window = _Window(self.device)
        self.is_best, self.saved_step = False, 0

    # --- the loop ---

    def go(self) -> TrainState:
        """Train until the last step, a signal, or an error."""
        config, state = self.config, self.state
        self.model.train()
        stream = iter(self.batches)
        started = time.monotonic() - state.seconds
        with _graceful() as stop:
            while state.step < config.steps and not stop.is_set():
                self._step(stream)
                state.seconds = time.monotonic() - started
                is_last = state.step == config.steps
                if state.step % config.log_every == 0 or is_last or state.step == 1:
                    self._log()
                if self.validate is not None and (state.step % config.validation_interval == 0 or is_last):
                    self._validate()
                if self.is_best or state.step % config.save_interval == 0 or is_last:
                    self._checkpoint()
        state.seconds = time.monotonic() - started
        state.status = "done" if state.step == config.steps else "interrupted"
        if state.status == "interrupted" and state.step != self.saved_step:
            self._checkpoint()
        if self.run is not None:
            self._finish("done" if state.status == "done" else "interrupted")
        return state

    def _step(self, stream: Iterator[Any]) -> None:
        """Do one optimizer update."""
        config, positions, count = self.config, 0, torch.zeros((), device=self.device)
        while positions < config.batch_tokens:
            batch = next(stream, None)
            if batch is None:
                raise TrainError(
                    f"The data ended in step {self.state.step + 1} of {config.steps}.",
                    "Let it repeat, or train fewer steps.",
                )
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss_fn(self.model, batch.to(self.device))
            loss.total.backward()
            count = count + loss.count
            self.window.add(loss.metrics)
            self.state.tokens += batch.tokens
            positions += batch.ids.numel() if hasattr(batch, "ids") else batch.tokens
        norm = self.optimizer.scale_and_clip(count)
        self.window.norm = norm
        if bool(torch.isfinite(norm)):
            self.optimizer.step(config.lr_at(self.state.step))
        else:
            self._not_finite(float(norm))
        self.optimizer.zero_grad()
        self.state.step += 1

    def _not_finite(self, norm: float) -> None:
        self.state.skipped += 1
        step = self.state.step + 1
        if self.run is not None:
            self.run.journal(f"step {step}: gradient norm {norm}; metrics {self.window.means()}")
        if self.config.not_finite == "skip":
            return
        kept = (
            ""
            if self.run is None or (last := self.run.latest_checkpoint()) is None
            else f" Step {last[0]} is saved."
        )
        if self.run is not None:
            self._finish("failed")
        raise TrainError(
            f"The loss of step {step} is no number (gradient norm {norm}).{kept}",
            "Lower loop.lr, or set loop.not_finite=skip to leave such steps out.",
        )

    def _finish(self, status: Literal["done", "interrupted", "failed"]) -> None:
        assert self.run is not None  # the caller asked
        facts = {name: value for name, value in asdict(self.state).items() if name != "status"}
        self.run.finish(status, **facts)

    # --- reporting ---

    def _log(self) -> None:
        state, config = self.state, self.config
        means, speed = self.window.means(), self.window.speed(state)
        left = (config.steps - state.step) * state.seconds / max(1, state.step)
        shape = getattr(self.model, "config", None)
        mfu = None
        if shape is not None and hasattr(shape, "flops_per_token"):
            mfu = speed * shape.flops_per_token() / machine.peak_flops(self.device, self.dtype)
        metrics = {f"train/{name}": value for name, value in means.items()}
        facts = {
            "lr": config.lr_at(state.step - 1),
            "grad_norm": float(self.window.norm),
            "tokens": state.tokens,
        }
        facts |= {"tokens_per_s": speed, "time_s": state.seconds, "time_left_s": left}
        if mfu is not None:
            facts["mfu"] = mfu
        if self.run is not None:
            self.run.log(state.step, **metrics, **facts)
        event = {"kind": "step", "step": state.step, "steps": config.steps, "loss": means.get("loss")}
        self.progress({**event, "tokens_per_s": speed, "time_left_s": left})
        self.window.restart(state)

    def _validate(self) -> None:
        assert self.validate is not None  # the caller asked
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            metrics = self.validate(self.model)
        if self.run is not None:
            self.run.log(self.state.step, **{f"val/{name}": value for name, value in metrics.items()})
        loss = metrics.get("loss", math.nan)
        self.is_best = loss < self.state.best
        self.state.best = min(self.state.best, loss) if math.isfinite(loss) else self.state.best
        self.progress({"kind": "note", "text": f"step {self.state.step}: validation loss {loss:.4f}"})
        self.window.restart(self.state)

    # --- checkpoints ---

    def _checkpoint(self) -> None:
        if self.run is None:
            return
        path = self.run.checkpoint(self.state.step, self._write, keep=self.config.keep)
        if self.is_best or self.validate is None or self.saved_step == 0:
            self.run.set_model(path)
        self.is_best, self.saved_step = False, self.state.step
        self.window.restart(self.state)

    def _write(self, folder: Path) -> None:
        if self.save is not None:
            self.save(folder)
        (folder / STATE).parent.mkdir(parents=True, exist_ok=True)
        torch.save(self._saved(), folder / STATE)

    def _saved(self) -> dict[str, Any]:
        version, words, gauss = random.getstate()
        saved = {
            "state": asdict(self.state),
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict() if hasattr(self.batches, "state_dict") else None,
            "random": {"python": [version, list(words), gauss], "torch": torch.get_rng_state()},
            "weights": self.model.state_dict(),
        }
        if self.device.type == "cuda":
            saved["random"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return saved

    def restore(self) -> None:
        """Go back to the run's newest whole checkpoint; a run that has none starts at its beginning."""
        newest = None if self.run is None else self.run.latest_checkpoint()
        if newest is None:
            return
        file = newest[1] / STATE
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            self.state = TrainState(**{**saved["state"], "status": "running"})
            self.model.load_state_dict(saved["weights"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if saved["batches"] is not None:
                self.batches.load_state_dict(saved["batches"])  # type: ignore[attr-defined]
            version, words, gauss = saved["random"]["python"]
            random.setstate((version, tuple(words), gauss))
            torch.set_rng_state(saved["random"]["torch"])
            if "cuda" in saved["random"] and self.device.type == "cuda":
                torch.cuda.set_rng_state(saved["random"]["cuda"], self.device)
        except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(
                f"{file} cannot be resumed from: {error}.", "Start the run anew."
            ) from error
        self.window.restart(self.state)


class _Window:
    """Metrics since the last line: sums stay on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.norm: Tensor = torch.zeros((), device=device)
        self.sums: dict[str, list[Any]] = {}
        self.since, self.tokens = time.monotonic(), 0

    def add(self, metrics: dict[str, tuple[Any, Any]]) -> None:
        """Add one micro-batch's totals and counts."""
        for name, (total, count) in metrics.items():
            pair = self.sums.setdefault(name, [0.0, 0.0])
            pair[0] = pair[0] + total
            pair[1] = pair[1] + count

    def means(self) -> dict[str, float]:
        """Return the quotient of the sums."""
        return {
            name: float(total) / float(count) for name, (total, count) in self.sums.items() if float(count)
        }

    def speed(self, state: TrainState) -> float:
        """Return tokens per second since the last line."""
        return (state.tokens - self.tokens) / max(1e-9, time.monotonic() - self.since)

    def restart(self, state: TrainState) -> None:
        """Begin anew."""
        self.sums.clear()
        self.since, self.tokens = time.monotonic(), state.tokens


@contextlib.contextmanager
def _graceful() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a request to stop after this step; a second one ends the process."""
    stop, before = threading.Event(), {}

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            signal.default_int_handler(number, frame)
        stop.set()

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
