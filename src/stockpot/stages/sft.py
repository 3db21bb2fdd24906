"""Tune a model on instructions: conversations or prompt/completion pairs, with loss on the answers only."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from pydantic import Field, field_validator

from stockpot import device as machine
from stockpot.config import Settings
from stockpot.data.corpus import open_corpus
from stockpot.data.corrupt import causal
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig
from stockpot.data.reading import ReadConfig
from stockpot.data.sources import fingerprint_sources
from stockpot.model.adapters import LoRA
from stockpot.run import Run
from stockpot.stages.assemble import (
    Progress,
    adapt,
    as_settings,
    as_sources,
    checkpoint_writer,
    mean_metrics,
    micro_batch_for,
    open_to_tune,
    silent,
)
from stockpot.stages.record import sample_writer, write_page
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss

__all__ = ["SFTConfig", "sft"]


class TuningLoop(LoopConfig):
    """How long and how to tune: a tenth of the rate at which a small model is pretrained."""

    lr: float | None = Field(
        1e-3, gt=0, description="learning rate of matrices, and of the rest unless set below"
    )


class SFTConfig(Settings):
    """How a model is tuned on instructions."""

    model: str | None = Field(None, description="what to tune: a run, a checkpoint or a model folder")
    data: tuple[str, ...] = Field(
        ("village:chats",),
        description="conversations or prompt/completion records: files, folders, patterns, data-set ids",
    )
    reading: ReadConfig = Field(default_factory=ReadConfig, description="encoding, separators and limits")
    template: str | None = Field(
        None, description="file with a chat template; none: the model's own, or the default one"
    )
    adapter: LoRA | None = Field(
        None,
        description="train a low-rank adapter and freeze the model, such as adapter.rank=8; none: train all",
    )
    context: int | None = Field(None, ge=8, description="tokens of a row; none: the model's")
    loop: TuningLoop = Field(default_factory=TuningLoop, description="steps, batch, optimizer")
    val_share: float = Field(0.05, gt=0, lt=0.5, description="share of the records held out for validation")
    val_tokens: int = Field(32_768, ge=1, description="validate on at most this many tokens")
    seed: int = Field(0, ge=0, description="decides the order")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)
    _loop = field_validator("loop", mode="before")(as_settings)


def sft(config: SFTConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None) -> Run:
    """Tune on instructions and leave a run folder whose ``model`` holds conversations.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    report = progress or silent
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    bundle = open_to_tune(config.model, config.template, verb="sft")
    model = bundle.model.to(device)
    trained = adapt(model, config.adapter, config.loop, device)
    context = config.context or model.config.context
    store = open_corpus(
        config.data, bundle.tokenizer, bundle.template, reading=config.reading, context=context
    )
    train, held_out = store.split(config.val_share, seed=config.seed)
    rows, _ = micro_batch_for(config.loop.batch_tokens, context)
    settings = LoaderConfig(context=context, micro_batch=rows, seed=config.seed)
    aim = causal(bundle.tokenizer)
    limit = max(1, config.val_tokens // (rows * context))
    validation = FixedBatches(held_out, settings, aim, max_batches=limit)
    loss_fn = partial(
        next_token_loss, byte_lengths=torch.from_numpy(bundle.tokenizer.byte_lengths).to(device)
    )
    with Run.create(out, stage="sft", recipe={"sft": config}, parent=config.model, resume=resume) as run:
        run.note(
            data=fingerprint_sources(config.data),
            seed=config.seed,
            tokens={"train": train.tokens, "validation": held_out.tokens},
            parameters=model.config.parameters(),
            trained_parameters=trained,
        )
        text = f"{train.documents:,} records, {train.tokens:,} tokens, {trained:,} parameters to train"
        report({"kind": "note", "text": text})
        fit(
            model,
            Loader(train, settings, aim),
            loss_fn,
            config.loop,
            run=run,
            validate=mean_metrics(validation, loss_fn),
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=sample_writer(run, bundle, validation, report),
        )
        write_page(run, bundle, config)
    return run
