"""What the stages have in common: from settings to the parts a training run is made of.

Sizes micro-batches, measures validation data, and turns a bundle into the function that
writes checkpoints. It trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field
from torch import nn

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import to_toml
from stockpot.data.sources import fingerprint_sources
from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA, attach, frozen_bytes, has_adapters
from stockpot.model.config import ModelConfig
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.text.chat import ChatTemplate
from stockpot.train.loop import LoopConfig
from stockpot.train.losses import LossFn
from stockpot.train.parallel import Group, ParallelConfig, joined
from stockpot.train.schedule import Schedule
from stockpot.weights.store import load, save, save_adapter

__all__ = [
    "GentleLoop",
    "Progress",
    "adapt",
    "as_settings",
    "as_sources",
    "begin_tuning",
    "check_length",
    "checkpoint_writer",
    "heard",
    "mean_metrics",
    "micro_batch_for",
    "note_tuning",
    "open_to_tune",
    "shared_run",
    "silent",
    "together",
    "tokens_at_once",
    "with_steps",
]

Progress = Callable[[dict[str, Any]], None]
MICRO_BATCH_TOKENS = 8192  # enough work a call; measured in benchmarks/notes.md
# Of a micro-batch on a CPU, where larger ones are hardly faster: with adapters, and where all gradients have to be added up.
ACTIVATION_BYTES = {True: 1 << 27, False: 1 << 29}
# Of the gradients' bytes: activations up to which a step in one pass takes less than one in several.
WHOLE_STEP = 4 / 3
LEAST_AT_ONCE = 256  # tokens; with fewer a product mostly waits for its matrix
ROW_TOKENS = 512  # of a row in tuning, unless a record is longer
LOGITS_KEPT = 1 << 26  # a loss that weighs each token keeps its probabilities for the backward pass


class GentleLoop(LoopConfig):
    """How long and how to train a model that is good already: AdamW with small steps."""

    optimizer: Literal["muon", "adamw"] = Field(
        "adamw", description="of matrices: muon · adamw; AdamW for the rest"
    )
    lr: float = Field(1e-5, gt=0, description="learning rate of matrices, and of the rest unless set below")
    batch_tokens: int = Field(
        4096, ge=1, description="real tokens a step, over all micro-batches and processes"
    )
    schedule: Schedule = Field("linear", description="constant · linear · cosine · warmup-stable-decay")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices, per unit of learning rate")
    beta2: float = Field(0.99, ge=0, lt=1, description="adamw: memory of the gradient's square")
    eps: float = Field(1e-8, gt=0, description="adamw: added to the root of the mean square")


def silent(event: dict[str, Any]) -> None:
    """Report nothing."""


def as_sources(value: Any) -> Any:
    """Let a single source stand for a tuple of one, in settings and in Python."""
    return (str(value),) if isinstance(value, str | Path) else value


def as_settings(value: Any) -> Any:
    """Let a plain ``LoopConfig`` stand for a stage's own loop: what it sets holds, the stage has its own defaults."""
    return value.model_dump(exclude_unset=True) if type(value) is LoopConfig else value


def micro_batch_for(
    batch_tokens: int, context: int, at_once: int = MICRO_BATCH_TOKENS, *, processes: int = 1
) -> tuple[int, int]:
    """Split a step's tokens into rows of one forward pass and the number of passes of each process.

    Args:
        batch_tokens: of a step.
        context: tokens of a row.
        at_once: tokens of one pass, at most, but for a single row.
        processes: how many share a step.

    Returns:
        (rows of a micro-batch, micro-batches of a step).

    Raises:
        ConfigError: if a step is shorter than one row for each process.
    """
    rows = batch_tokens // processes // context
    if rows < 1:
        each = "one row" if processes == 1 else f"a row for each of {processes} processes, each"
        raise ConfigError(
            f"loop.batch_tokens = {batch_tokens} is less than {each} of {context} tokens.",
            f"Give at least {context * processes}, or choose a shorter context.",
        )
    passes = min(rows, max(1, math.ceil(rows * context / at_once)))
    while rows % passes:
        passes += 1
    return rows // passes, passes


def tokens_at_once(
    loop: LoopConfig, model: ModelConfig, device: torch.device, adapter: LoRA | None, *, weighs: bool = True
) -> int:
    """Choose the real tokens of a micro-batch in tuning: on a CPU, as many as take little memory.

    Args:
        loop: the tokens of a step.
        model: a token's activations take about 34 bytes for each layer and unit of width (see `sizes.estimate`).
        device: where.
        adapter: what is trained, if not all of the model.
        weighs: whether the loss weighs the labels one by one, and so keeps their probabilities.
    """
    most = min(loop.batch_tokens, MICRO_BATCH_TOKENS)
    if weighs:
        most = min(most, LOGITS_KEPT // model.vocab_size)
    if device.type == "cpu":
        of_token = 34 * model.main.dim * model.main.layers
        fits = ACTIVATION_BYTES[adapter is not None] // of_token
        if adapter is None and loop.batch_tokens * of_token <= WHOLE_STEP * 4 * model.parameters():
            fits = loop.batch_tokens  # a second pass would stand beside the gradients of the first
        most = min(most, max(LEAST_AT_ONCE, fits))
    return max(1, most)


def check_length(passes: float | None, loop: LoopConfig) -> None:
    """Refuse settings that say twice how long to train.

    Raises:
        ValueError: if both passes and steps are given.
    """
    if passes is not None and "steps" in loop.model_fields_set:
        raise ValueError(
            f"passes = {passes:g} and loop.steps = {loop.steps} both say how long to train: give one "
            "(passes=none takes back a recipe's)"
        )


def with_steps(loop: LoopConfig, passes: float | None, tokens: int, *, usual: float = 1.0) -> LoopConfig:
    """Set the steps from the passes over the data: those asked for; else ``loop.steps`` if it was given; else ``usual``.

    Args:
        loop: settings of the loop.
        passes: over the data, or None.
        tokens: of one pass.
        usual: passes where nothing is said.
    """
    if passes is None and "steps" in loop.model_fields_set:
        return loop
    steps = max(1, round((usual if passes is None else passes) * tokens / loop.batch_tokens))
    return loop.model_copy(update={"steps": steps})


def together(device: torch.device, loop: LoopConfig, out: str | Path, work: Callable[[Group], Run]) -> Run:
    """Do a stage's work on every process that torchrun started, and return the run as the first process left it."""
    with joined(device, loop.parallel) as group:
        run = work(group)
    return run if group.is_first else Run.open(out)


def heard(group: Group, progress: Progress | None) -> Progress:
    """Let the first process speak only."""
    return progress if progress is not None and group.is_first else silent


@contextmanager
def shared_run(group: Group, out: str | Path, **how: Any) -> Iterator[Run]:
    """Open the run of all processes: the first makes it and writes, the others only read.

    A run may be resumed with the model laid out otherwise.

    Args:
        group: the processes.
        out: the run folder.
        how: as for `Run.create`.

    Raises:
        ConfigError: if the processes were started with different settings.
    """
    group.agree(settings=to_toml(how["recipe"]))
    how["may_change"] = [f"{how['stage']}.loop.parallel.{name}" for name in ParallelConfig.model_fields]
    if not group.is_first:
        group.wait()
        yield Run.open(out)
        return
    with Run.create(out, **how) as run:
        group.wait()
        yield run


def open_to_tune(model: str | None, template: str | None, *, verb: str) -> Bundle:
    """Open the decoder a stage starts from, on the CPU in float32, with the template it will hold conversations by.

    Args:
        model: what to tune.
        template: file with a chat template; None: the model's own, or the default one.
        verb: of the stage, for messages.

    Raises:
        ConfigError: if there is no model, it is no decoder, or there is no template.
        CheckpointError: if the model cannot be read.
    """
    if model is None:
        raise ConfigError("There is no model to tune.", f"Name one: stockpot {verb} MODEL.")
    bundle = load(model, device="cpu", dtype="float32")
    if bundle.model.config.shape != "decoder":
        raise ConfigError(
            f"{model} is an {bundle.model.config.shape}; {verb} tunes decoders.", "Give a decoder."
        )
    found = bundle.template or ChatTemplate.of(bundle.tokenizer)
    if template is not None:
        try:
            found = ChatTemplate(Path(template).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{template} cannot be read as a chat template: {error}.", "Give a UTF-8 text file."
            ) from error
    if found is None:
        raise ConfigError(
            f"{model} has no chat template and its tokenizer lacks the tokens of the default one.",
            f"Give a template file with {verb}.template.",
        )
    return replace(bundle, template=found)


class Tuned(Protocol):
    """What the settings of all stages that tune a model have."""

    @property
    def model(self) -> str | None:
        """What is tuned."""

    @property
    def template(self) -> str | None:
        """File with a chat template."""

    @property
    def data(self) -> tuple[str, ...]:
        """Where the data comes from."""

    @property
    def adapter(self) -> LoRA | None:
        """What is trained, if not all of the model."""

    @property
    def loop(self) -> LoopConfig:
        """How long and how to train."""

    @property
    def seed(self) -> int:
        """Of everything random."""

    @property
    def device(self) -> str | None:
        """Where it is tuned."""


def begin_tuning(config: Tuned, *, verb: str) -> tuple[Bundle, torch.device]:
    """Seed everything and open what is tuned; errors as for `open_to_tune`. The model is still on the CPU."""
    if (
        config.adapter is not None
        and config.adapter.frozen is not None
        and config.loop.parallel.kind != "ddp"
    ):
        raise ConfigError(
            f"adapter.frozen = {config.adapter.frozen!r} holds matrices that loop.parallel.kind = "
            f"{config.loop.parallel.kind!r} cannot split over processes.",
            "Leave loop.parallel.kind at ddp, or adapter.frozen out.",
        )
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    return open_to_tune(config.model, config.template, verb=verb), device


def note_tuning(
    group: Group, run: Run, config: Tuned, model: Transformer, trained: int, **facts: Any
) -> None:
    """Write into a run's manifest what every stage that tunes says: data, seed, and how many parameters are trained."""
    if not group.is_first:
        return
    if config.adapter is not None and config.adapter.frozen is not None:
        facts["frozen"] = {"kind": config.adapter.frozen, "bytes": frozen_bytes(model)}
    run.note(
        data=fingerprint_sources(config.data),
        seed=config.seed,
        **facts,
        parameters=model.config.parameters(),
        trained_parameters=trained,
    )


def checkpoint_writer(bundle: Bundle, *, merged: bool = False) -> Callable[[Path], None]:
    """Return the function with which the loop writes the model folder of a checkpoint.

    A model with adapters is written as an adapter folder that names the folder its bundle was read from; ``merged``: as
    a whole model instead.
    """

    def write(folder: Path) -> None:
        if not merged and bundle.source is not None and (bundle.soft or has_adapters(bundle.model)):
            save_adapter(folder, bundle, bundle.source)
        else:
            save(folder, bundle)

    return write


def adapt(model: nn.Module, adapter: LoRA | None, loop: LoopConfig, device: torch.device) -> int:
    """Attach an adapter if one is asked for, and put the model where it is trained; return how many parameters are.

    Frozen matrices are kept in the type of products, so that no step has to cast them, or in the few bits that the adapter
    asks for; where they are split over processes, the way they are gathered does that. What was rounded here needs
    no room for its floats there.
    """
    if adapter is None:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    else:
        dtype = None if loop.parallel.kind == "fsdp" else machine.pick_dtype(device, loop.dtype)
        trained = attach(model, adapter, frozen_dtype=dtype)
    model.to(device)
    return trained


def mean_metrics(batches: Iterable[Any], loss_fn: LossFn) -> Callable[[nn.Module], dict[str, float]]:
    """Return a validation function: every metric of ``loss_fn`` over all batches, and the mean loss.

    The totals and the counts are summed separately, so a short last batch weighs what it holds.
    """

    @torch.inference_mode()
    def validate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        sums: dict[str, list[float]] = {}
        device = next(model.parameters()).device
        for batch in batches:
            loss = loss_fn(model, batch.to(device))
            for name, (total, count) in {"loss": (loss.total, loss.count), **loss.metrics}.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += float(total)
                pair[1] += float(count)
        model.train(was_training)
        return {name: total / count for name, (total, count) in sums.items() if count}

    return validate
