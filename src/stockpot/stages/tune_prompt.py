"""Tune a soft prompt: vectors in front of a frozen model, or keys and values in its layers, until it answers a task rightly.

The task's examples are put in one wording; their answers are the labels. The model's weights are hashed before and after,
and a run in which they changed fails.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.model.soft import attach_prefix, attach_soft
from stockpot.prompt.items import Questions
from stockpot.prompt.shots import Paper
from stockpot.prompt.soft import Start, frozen_hash, nearest_tokens, start_heads, start_vectors
from stockpot.prompt.training import AnswerBatches, answer_batches, answer_pairs
from stockpot.run import Run
from stockpot.stages.assemble import (
    GentleLoop,
    Progress,
    as_settings,
    checkpoint_writer,
    mean_metrics,
    silent,
)
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss
from stockpot.weights.store import load

__all__ = ["PromptTuningConfig", "tune_prompt"]

VALIDATED = 128  # examples


class PromptLoop(GentleLoop):
    """How long and how to tune a few vectors: large steps."""

    lr: float = Field(0.01, gt=0, description="learning rate of the vectors")
    steps: int = Field(300, ge=1, description="optimiser steps")
    batch_tokens: int = Field(1024, ge=1, description="real tokens a step")


class PromptTuningConfig(Settings):
    """How a soft prompt is tuned."""

    model: str | None = Field(
        None, description="the frozen model: a run, a checkpoint, a model folder, a GGUF file"
    )
    questions: Questions = Field(
        default_factory=Questions, description="the task; its examples are trained on, in its first wording"
    )
    kind: Literal["prompt", "prefix"] = Field(
        "prompt",
        description="prompt: vectors before the input · prefix: keys and values before it in every layer",
    )
    length: int = Field(20, ge=1, le=1024, description="vectors of the soft prompt")
    start: Start = Field("vocabulary", description="what they start from: text · vocabulary · random")
    start_text: str = Field("", description="the text, for start = text; empty: the task's one line")
    rows: int = Field(8, ge=1, description="examples of a micro-batch")
    most_examples: int = Field(2000, ge=4, description="train on at most this many")
    loop: PromptLoop = Field(default_factory=PromptLoop, description="steps, batch, optimizer")
    seed: int = Field(0, ge=0, description="decides the start and the order")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _loop = field_validator("loop", mode="before")(as_settings)


def tune_prompt(
    config: PromptTuningConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> Run:
    """Tune a soft prompt and leave a run that ``load(model, adapters=[run])`` takes.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on, or a frozen weight changed.
    """
    report = progress or silent
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    bundle = _open(config)
    asking, pool = config.questions.open()
    text = config.start_text or asking.about
    ids = _attach(bundle, config, text)
    bundle = replace(bundle, soft=tuple(ids))
    model = bundle.model.to(device)
    if len(pool.examples) < 4:
        raise DataError(f"{pool.source} leaves {len(pool.examples)} examples to train on.", "Lower --limit.")
    chosen = pool.examples[: config.most_examples]
    held = max(1, min(VALIDATED, len(chosen) // 10))
    paper = Paper(asking, next(iter(asking.wordings)), bundle, chat=config.questions.chat, room=16)
    pairs = answer_pairs(paper, chosen)
    validation = answer_batches(bundle, pairs[:held], config.rows)
    batches = AnswerBatches(bundle, pairs[held:], config.rows, config.seed)
    before = frozen_hash(model)
    with Run.create(
        out, stage="tune-prompt", recipe={"tune-prompt": config}, parent=config.model, resume=resume
    ) as run:
        trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
        run.note(
            seed=config.seed,
            data=[{"path": pool.source}],
            parameters=model.config.parameters(),
            trained_parameters=trained,
            frozen_sha256=before,
        )
        shown = f"{len(pairs) - held:,} examples, wording {paper.wording}, {trained:,} numbers to train"
        report({"kind": "note", "text": shown})
        fit(
            model,
            batches,
            next_token_loss,
            config.loop,
            run=run,
            validate=mean_metrics(validation, next_token_loss),
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=report,
        )
        if frozen_hash(model) != before:
            raise TrainError(
                "A frozen weight changed during prompt tuning.", "This is a bug; please report it."
            )
        if config.kind == "prompt":
            run.note(nearest_tokens=nearest_tokens(bundle))
    return run


def _open(config: PromptTuningConfig) -> Bundle:
    if config.model is None:
        raise ConfigError("There is no model to tune a prompt for.", "Name one: stockpot tune-prompt MODEL.")
    bundle = load(config.model, device="cpu", dtype="float32")
    if bundle.model.config.shape != "decoder":
        raise ConfigError(
            f"{config.model} is an {bundle.model.config.shape}; prompts are tuned for decoders."
        )
    if bundle.source is None or bundle.soft:
        raise ConfigError(
            f"{config.model} has no folder of its own or wears a soft prompt already.", "Save it first."
        )
    return bundle


def _attach(bundle: Bundle, config: PromptTuningConfig, text: str) -> range:
    """Put what is trained in front of the model; returns the ids that stand for it."""
    length, start, seed = config.length, config.start, config.seed
    if config.kind == "prefix":
        return attach_prefix(bundle.model, start_heads(bundle, length, start, text=text, seed=seed))
    return attach_soft(bundle.model, start_vectors(bundle, length, start, text=text, seed=seed))
