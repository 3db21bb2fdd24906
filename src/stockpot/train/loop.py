"""The loop: batches and a loss in, trained weights out; every objective goes through it.

Decides when to step, log, validate and save, and how a run goes on after an interruption, bit for bit on the CPU. It
knows no objective, no tokenizer and no file format: those come as functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stockpot.device import MANY_NUMBERS, current, keep_freed_memory, pick_dtype
from stockpot.durable import discard, empty_room, fill_from
from stockpot.errors import CheckpointError, DataError
from stockpot.model.halves import are_fastest, multiplying
from stockpot.run import Run
from stockpot.train.ahead import Ahead
from stockpot.train.behind import Behind, copied
from stockpot.train.feed import Feed
from stockpot.train.guard import Interrupted, StopWish, diverged, not_finite
from stockpot.train.layout import lay_out, learned, local
from stockpot.train.loop_config import LoopConfig
from stockpot.train.losses import Loss, LossFn
from stockpot.train.meter import Meter
from stockpot.train.narrow_adamw import arithmetic
from stockpot.train.optim import Optimizer
from stockpot.train.parallel import Group
from stockpot.train.resume import (
    has_parts,
    random_state,
    read_parts,
    read_state,
    set_random_state,
    write_parts,
    write_state,
)
from stockpot.train.stacks import set_up

__all__ = ["Interrupted", "LoopConfig", "TrainState", "fit"]

BAD_IN_A_ROW = 10  # skipped steps after which skipping does not help


@dataclass
class TrainState:
    """Where training stands.

    Attributes:
        step: finished optimiser steps.
        tokens: real tokens seen.
        best: the best validation metric among the checkpoints; None without validation.
        best_step: the step it was measured at.
        judged: the step of the latest validation, or of where one was due.
        first_loss: the first logged loss, against which divergence is measured.
        grad_norm: that of the latest step, before clipping.
        bad_in_a_row: steps skipped without a good one between.
    """

    step: int = 0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None
    judged: int = 0
    first_loss: float | None = None
    grad_norm: float = 0.0
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
        progress: receives ``{"kind": "step", "step", "steps", "loss", "tokens_per_s", "time_left_s", …}`` at each log
            line, ``{"kind": "validated", "step", …}`` and ``{"kind": "note", "text"}`` at each validation.

    Raises:
        TrainError: if the loss or gradient is not finite, or training diverges.
        Interrupted: after SIGINT or SIGTERM, when the checkpoint is saved.
        CheckpointError: if the checkpoint does not fit the model or settings.
        DataError: if there is no batch.
    """
    loop = _Loop(model, batches, loss_fn, config, _Doors(run, validate, save, progress))
    if run is not None and loop.group.from_first(lambda: resume):  # as the first process was asked
        newest = loop.group.from_first(run.latest_checkpoint)
        if newest is not None:
            loop.load(newest[1])
    with StopWish() as wish, current(loop.device):
        try:
            loop.train(wish)
        finally:
            loop.behind.settle()
            if loop.ahead is not None:
                loop.ahead.close()
    return loop.state


@dataclass(frozen=True)
class _Doors:
    """The ways out of the loop; each may be missing."""

    run: Run | None
    validate: Callable[[nn.Module], dict[str, float]] | None
    save: Callable[[Path], None] | None
    progress: Callable[[dict[str, Any]], None] | None


class _Loop:
    """The parts of one training run and what they do in a step."""

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], loss_fn: LossFn, config: LoopConfig, doors: _Doors
    ) -> None:
        self.model, self.loss_fn, self.config, self.doors = model, loss_fn, config, doors
        self.group = Group()
        self.device = next(model.parameters()).device
        self.dtype = self.group.from_first(lambda: pick_dtype(self.device, config.dtype))
        self.halves = self.group.from_first(
            lambda: (
                config.dtype is None
                and config.parallel.kind != "tensor"
                and are_fastest(self.device, self.dtype)
            )
        )
        self.reads_model = getattr(batches, "reads_model", False)  # answers are drawn with it
        self.ahead = None if self.reads_model else _ahead_of(batches, self.device)
        self.group.agree(settings=config.model_dump_json(), model=_outline(model))
        if config.moments == "bfloat16":  # replicas must round alike
            self.group.agree(**{"arithmetic of AdamW": arithmetic(self.device)})
        self.layout = lay_out(model, config.parallel, self.group, self.dtype)
        self.readers = self.layout.readers
        self.feed = Feed(self.ahead or batches, config.batch_tokens, self.readers)
        self.group.agree(data=repr(self.feed.state_dict()))
        compiles = config.compile
        if compiles is None:
            compiles = (
                self.device.type == "cuda" and config.steps >= 1000 and config.parallel.kind != "tensor"
            )
        set_up(
            self.layout.trained, self.device, recompute=config.parallel.recompute, flex=config.flex,
            narrow_states=config.narrow_states, fp8=config.fp8, compiles=compiles,
        )  # fmt: skip
        self.optimizer = Optimizer(self.layout.described, config, config.steps, self.layout)
        rate = 2.0 if self.halves else 1.0  # a vector holds twice as many
        self.meter = Meter(model, self.device, self.dtype, processes=self.group.place.world, rate=rate)
        self.state = TrainState()
        self.began_at = 0
        self.saved: tuple[int, int] | None = None  # step and judged of the newest checkpoint
        self.saved_path: Path | None = None
        self.behind = Behind()
        self.aside = self.group.aside() if config.checkpoint_behind and self.layout.is_split else None
        self.run = doors.run if self.group.is_first else None  # to write to
        if self.device.type == "cpu":
            keep_freed_memory(large=self.optimizer.numbers >= MANY_NUMBERS)

    def train(self, wish: StopWish) -> None:
        """Step until the end, the last batch or a wish to stop."""
        self.layout.trained.train()
        self.began_at = self.state.step
        self.judge_and_save()  # what an interruption right after a step left undone
        while self.state.step < self.config.steps:
            place = self.place()
            is_taken = self.step(place, wish)
            if is_taken and (self.state.step % self.config.log_every == 0 or self.state.step == 1):
                self.log()
            if self.group.any(wish.is_set):
                self.checkpoint(self.place() if is_taken else place)
                self.behind.wait()
                self.layout.finish()
                raise Interrupted(self.state.step, self.saved_path)
            if not is_taken:
                break
            self.judge_and_save()
        if self.state.step == 0:
            raise DataError("There is no batch to train on.", "Give more data.")
        self.finish()

    # --- one step ---

    def step(self, place: dict[str, Any], wish: StopWish) -> bool:
        """Take one optimiser step; False if the data ended or a wish to stop came before it was whole.

        Raises:
            TrainError: if the gradient is not finite and the settings do not say to skip such a step.
        """
        losses: list[Loss] = []
        seen: list[Any] = []
        is_last = True
        for batch, is_last in self.micro_batches():
            if wish.is_set and self.group.is_alone:
                self.optimizer.clear()
                return False
            seen.append(batch.to(self.device))
            self.layout.begin(is_last=is_last)
            with self.autocast():
                losses.append(self.loss_fn(self.layout.trained, seen[-1]))
            losses[-1].total.backward()  # type: ignore[no-untyped-call]
        if self.group.any(not losses):
            self.optimizer.clear()
            return False
        if self.layout.is_split and not is_last:
            self.send(seen[-1])
        self.state.grad_norm = self.combine(losses)
        is_good = math.isfinite(self.state.grad_norm)
        if is_good:
            self.optimizer.step(self.state.step)
            for loss in losses:
                self.meter.add(loss)
        self.state.bad_in_a_row = 0 if is_good else self.state.bad_in_a_row + 1
        if not is_good and (self.config.on_bad_step == "stop" or self.state.bad_in_a_row >= BAD_IN_A_ROW):
            bad = self.state.step + 1
            raise not_finite(bad, losses, seen, self.model, position=place["data"], run=self.run)
        self.optimizer.clear(gives_back=self.config.parallel.recompute)
        self.meter.count(seen, self.readers)
        self.state.step += 1
        return True

    def micro_batches(self) -> Iterator[tuple[Any, bool]]:
        """Deal out a step; where answers are drawn for it, the model that was given is as it is now meanwhile."""
        if not (self.reads_model and self.layout.is_split):
            return self.feed.step()
        with self.layout.published():
            return iter(list(self.feed.step()))

    def send(self, batch: Any) -> None:
        """Sum a split model's gradients where the data ended amid a step: with a micro-batch more, which adds nothing."""
        self.layout.begin(is_last=True)
        with self.autocast():
            total = self.loss_fn(self.layout.trained, batch).total
        (total * 0.0).backward()  # type: ignore[no-untyped-call]

    def combine(self, losses: list[Loss]) -> float:
        """Turn the gradients of all totals into that of their mean, clipped; return its norm before clipping."""
        self.layout.collect()
        count = torch.zeros((), device=self.device)
        for loss in losses:
            count += loss.count
        return float(self.optimizer.scale(self.readers.sum(count)))  # the one wait for the device in a step

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute matrix products in the number type of training."""
        if self.halves:
            return multiplying()
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- between steps ---

    def judge_and_save(self) -> None:
        """Validate and save where it is due; the end of the run takes care of the last step."""
        step, config = self.state.step, self.config
        if step in (0, config.steps, self.state.judged):
            return
        saves = step % config.every("checkpoint") == 0 and self.doors.run is not None
        if saves or step % config.every("validate") == 0:
            self.judge(is_candidate=saves)
        if saves:
            self.checkpoint(self.place())

    def finish(self) -> None:
        """Log what is left, validate and save, unless a resumed run had nothing more to do."""
        self.log()
        if self.state.judged != self.state.step:
            self.judge(is_candidate=True)
            self.checkpoint(self.place())
        self.behind.wait()
        self.layout.finish()

    def log(self) -> None:
        """Write the means since the last line, if there are any.

        Raises:
            TrainError: if the loss says that training diverges.
        """
        means = self.meter.read(self.readers)
        if not means:
            return
        step, self.state.tokens = self.state.step, self.meter.tokens
        speed = self.meter.speed()
        speed["time_left_s"] = self.meter.time_left_s(step - self.began_at, self.config.steps - step)
        facts = {
            "lr": self.optimizer.lr(step - 1),
            "grad_norm": self.state.grad_norm,
            "tokens": self.meter.tokens,
            "flops": self.meter.flops,
        }
        facts |= speed | {"time_s": self.meter.seconds(), "stall_s": self.meter.stall_s}
        if self.run is not None:
            self.run.log(step, **{f"train/{name}": value for name, value in means.items()}, **facts)
        self.tell({"kind": "step", "step": step, "steps": self.config.steps, **means, **facts})
        loss = means["loss"]
        first = self.state.first_loss = loss if self.state.first_loss is None else self.state.first_loss
        factor = self.config.divergence_factor
        if factor is not None and loss > max(first * factor, first + 1):
            raise diverged(step, loss, first, run=self.run)

    def judge(self, *, is_candidate: bool) -> None:
        """Validate; a candidate is about to be saved and may become the best."""
        self.state.judged = self.state.step
        if self.doors.validate is None:
            return
        with self.meter.pause(), self.layout.published(), self.autocast():
            self.model.eval()
            found = self.doors.validate(self.model)
            self.model.train()
            self.tell({"kind": "validated", "step": self.state.step, **found})
        if self.run is not None:
            self.run.log(self.state.step, **{f"val/{name}": value for name, value in found.items()})
        text = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        self.tell({"kind": "note", "text": f"step {self.state.step}: validation {text}"})
        value = found.get(self.config.best_metric, math.nan)
        if is_candidate and (
            value < self.state.best if self.state.best is not None else math.isfinite(value)
        ):
            self.state.best, self.state.best_step = value, self.state.step

    def tell(self, event: dict[str, Any]) -> None:
        """Tell the progress, if someone listens."""
        if self.doors.progress is not None and self.group.is_first:
            self.doors.progress(event)

    # --- stopping, saving, going on ---

    def place(self) -> dict[str, Any]:
        """Return where the next step begins, in the data and in the random streams."""
        return {"data": self.feed.state_dict(), "random": random_state(self.device)}

    def checkpoint(self, place: dict[str, Any]) -> None:
        """Save everything the next step depends on, with what is known about this one."""
        step = self.state.step
        if self.doors.run is None or step == 0 or self.saved == (step, self.state.judged):
            return
        self.state.tokens = self.meter.tokens
        streams = self.readers.gather(place["random"]["torch"])
        place = place | {"random": place["random"] | {"torch": streams}}
        with self.meter.pause(is_stall=True), self.layout.published():
            keep = self.keep_behind if self.config.checkpoint_behind else self.keep
            self.saved_path = keep(step, place)
        self.saved = (step, self.state.judged)

    def keep(self, step: int, place: dict[str, Any]) -> Path | None:
        """Write a checkpoint; the processes of a split model write it together. Returns where, on the first."""
        if self.run is None:
            if self.layout.is_split:
                write_parts(self.group.from_first(Path), self.tensors())
            return None
        path = self.run.checkpoint(step, lambda folder: self.write(folder, place), keep=self.config.keep)
        if self.state.best_step in (None, step):
            self.run.set_model(path)
        return path

    def keep_behind(self, step: int, place: dict[str, Any]) -> Path | None:
        """Do what ``keep`` does while training goes on: the model is written at once, the training state from a copy."""
        self.behind.wait()
        run, is_best = self.run, self.state.best_step in (None, step)
        room = self.group.from_first(lambda: None if run is None else empty_room(run.checkpoint_path(step)))
        assert room is not None
        parts = copied(self.tensors()) if self.layout.is_split else {}
        if run is None:
            if parts:
                self.behind.start(lambda: write_parts(room, parts, self.aside))
            return None
        if self.doors.save is not None:
            self.doors.save(room)
        content = copied(self.content(place))

        def write(half: Path) -> None:
            if parts:
                write_parts(room, parts, self.aside)
            fill_from(room, half)
            write_state(half, content)

        def keep() -> None:
            try:
                path = run.checkpoint(step, write, keep=self.config.keep)
            finally:
                discard(room)
            if is_best:
                run.set_model(path)

        self.behind.start(keep)
        return run.checkpoint_path(step)

    def content(self, place: dict[str, Any]) -> dict[str, Any]:
        """Return what the training state holds, beside the parts of a split model."""
        content = {"progress": asdict(self.state), "meter": self.meter.state_dict()}
        if not self.layout.is_split:
            content |= {"model": learned(self.model), "optimizer": self.optimizer.state_dict()}
        return content | place

    def write(self, folder: Path, place: dict[str, Any]) -> None:
        """Fill a checkpoint folder."""
        if self.doors.save is not None:
            self.doors.save(folder)
        write_state(folder, self.content(place))
        if self.layout.is_split:
            self.group.from_first(lambda: folder)
            write_parts(folder, self.tensors())

    def load(self, checkpoint: Path) -> None:
        """Continue from a checkpoint, of however many processes that held the model in whatever way.

        Raises:
            CheckpointError: if it cannot be read or does not fit.
        """
        content = read_state(checkpoint)
        try:
            if has_parts(checkpoint):
                read_parts(checkpoint, into := self.tensors(), alone=not self.layout.is_split)
                self.optimizer.load_named({name: local(one) for name, one in into.items()})
            else:
                self.layout.load(content["model"])
                self.optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{checkpoint} holds another model ({str(error).splitlines()[-1].strip()}).",
                "Resume with the settings of the interrupted run.",
            ) from None
        self.meter.load_state_dict(content["meter"])
        self.feed.load_state_dict(content["data"])
        self.state = TrainState(**content["progress"])
        streams = content["random"]["torch"]
        own = streams[min(self.readers.place.rank, len(streams) - 1)]
        set_random_state(content["random"] | {"torch": own}, self.device)
        self.saved, self.saved_path = (self.state.step, self.state.judged), checkpoint

    def tensors(self) -> dict[str, Tensor]:
        """Name everything that training changes, as the layout has it."""
        named = {f"model.{name}": one.detach() for name, one in self.layout.tensors.items()}
        named |= self.optimizer.named_state()
        return {name: self.layout.as_split(name.partition(".")[2], one) for name, one in named.items()}


def _ahead_of(batches: Iterable[Any], device: torch.device) -> Ahead | None:
    """Let a thread make a GPU's next batches ready, where they can tell their place; None: they are made when asked for."""
    return Ahead(batches, pins=True) if device.type == "cuda" and hasattr(batches, "state_dict") else None


def _outline(model: nn.Module) -> str:
    """Describe the parameters of a model."""
    return " ".join(f"{name}{tuple(p.shape)}{p.requires_grad}" for name, p in model.named_parameters())
