"""Tune a model on instructions: conversations or prompt/completion pairs, with loss on the answers only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pydantic import Field, field_validator, model_validator

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.corpus import open_corpus
from stockpot.data.corrupt import causal
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.store import TokenStore
from stockpot.model.adapters import LoRA
from stockpot.run import Run
from stockpot.stages.assemble import (
    ROW_TOKENS,
    Progress,
    adapt,
    as_settings,
    as_sources,
    begin_tuning,
    check_length,
    checkpoint_writer,
    heard,
    mean_metrics,
    micro_batch_for,
    note_tuning,
    shared_run,
    together,
    tokens_at_once,
    with_steps,
)
from stockpot.stages.record import sample_writer, write_page
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import Group

__all__ = ["Conversations", "SFTConfig", "read_conversations", "sft"]


PASSES = 3.0  # over the records, where nothing is said: few enough not to learn a few hundred by heart
ALL_COUNT = "; every token counts, as in plain texts: nothing here is a question whose answer is learned"


class TuningLoop(LoopConfig):
    """How long and how to tune: a tenth of the rate at which a small model is pretrained."""

    lr: float | None = Field(
        1e-3, gt=0, description="learning rate of matrices, and of the rest unless set below"
    )
    batch_tokens: int = Field(
        4096, ge=1, description="real tokens a step, over all micro-batches and processes; a row at least"
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
    context: int | None = Field(
        None, ge=8, description="tokens of a row; none: 512, or the longest record if it is longer"
    )
    passes: float | None = Field(
        None, gt=0, description="passes over the records; none: loop.steps if given, else three"
    )
    loop: TuningLoop = Field(default_factory=TuningLoop, description="steps, batch, optimizer")
    val_share: float = Field(0.05, gt=0, lt=0.5, description="share of the records held out for validation")
    val_tokens: int = Field(32_768, ge=1, description="validate on at most this many tokens")
    seed: int = Field(0, ge=0, description="decides the order")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)
    _loop = field_validator("loop", mode="before")(as_settings)

    @model_validator(mode="after")
    def _says_once_how_long(self) -> SFTConfig:
        check_length(self.passes, self.loop)
        return self


def sft(config: SFTConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None) -> Run:
    """Tune on instructions and leave a run folder whose ``model`` holds conversations.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    bundle, device = begin_tuning(config, verb="sft")
    return together(
        device, config.loop, out, partial(_sft, config, bundle, device, Path(out), resume, progress)
    )


def _sft(
    config: SFTConfig,
    bundle: Bundle,
    device: torch.device,
    out: Path,
    resume: bool,
    progress: Progress | None,
    group: Group,
) -> Run:
    report, place = heard(group, progress), config.loop.parallel.reading(group.place)
    model = bundle.model
    found = read_conversations(config, bundle, processes=place.world)
    config, context, train, held_out = found.config, found.context, found.train, found.held_out
    trained = adapt(model, config.adapter, config.loop, device)
    at_once = tokens_at_once(config.loop, model.config, device, config.adapter, weighs=False)
    rows, _ = micro_batch_for(config.loop.batch_tokens, context, at_once, processes=place.world)
    settings = LoaderConfig(context=context, micro_batch=rows, seed=config.seed)
    aim = causal(bundle.tokenizer)
    limit = max(1, config.val_tokens // (rows * context))
    validation = FixedBatches(held_out, settings, aim, max_batches=limit)
    loss_fn = partial(
        next_token_loss, byte_lengths=torch.from_numpy(bundle.tokenizer.byte_lengths).to(device)
    )
    how = {"stage": "sft", "recipe": {"sft": config}, "parent": config.model, "resume": resume}
    with shared_run(group, out, **how) as run:
        tokens = {"train": train.tokens, "validation": held_out.tokens}
        note_tuning(group, run, config, model, trained, tokens=tokens, records=found.counts)
        text = f"{train.documents:,} records, {train.tokens:,} tokens, {trained:,} parameters to train"
        report({"kind": "note", "text": text + (ALL_COUNT if _all_count(train) else "")})
        fit(
            model,
            Loader(train, settings, aim, rank=place.rank, world=place.world),
            loss_fn,
            config.loop,
            run=run,
            validate=mean_metrics(validation, loss_fn),
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=sample_writer(run, bundle, validation, report),
        )
        if group.is_first:
            write_page(run, bundle, config)
    return run


@dataclass(frozen=True)
class Conversations:
    """What is tuned on.

    Attributes:
        config: the settings, with the steps and the tokens of a step that the records decide.
        context: tokens of a row.
        train: records to learn from.
        held_out: records to validate on.
        read: what reading met.
    """

    config: SFTConfig
    context: int
    train: TokenStore
    held_out: TokenStore
    read: ReadReport

    @property
    def counts(self) -> dict[str, int]:
        """How many records there are, and how many were cut or left out, for a manifest."""
        lost = {"cut": self.read.cut, "left_out": self.read.overlong + self.read.bad + self.read.skipped}
        found = {"train": self.train.documents, "validation": self.held_out.documents}
        return found | {name: count for name, count in lost.items() if count}


def read_conversations(config: SFTConfig, bundle: Bundle, *, processes: int = 1) -> Conversations:
    """Read what is tuned on, hold some out, and settle what depends on it: a row's tokens, a step's, and the steps.

    Raises:
        DataError: if there is nothing to learn.
    """
    read = ReadReport()
    longest = config.context or bundle.model.config.context
    store = open_corpus(
        config.data, bundle.tokenizer, bundle.template, reading=config.reading, report=read, context=longest
    )
    context = config.context or min(longest, max(ROW_TOKENS, int(store.lengths.max())))
    train, held_out = store.split(config.val_share, seed=config.seed)
    loop = config.loop
    if "batch_tokens" not in loop.model_fields_set:
        loop = loop.model_copy(update={"batch_tokens": max(loop.batch_tokens, processes * context)})
    settled = {"loop": with_steps(loop, config.passes, train.tokens, usual=PASSES), "passes": None}
    return Conversations(config.model_copy(update=settled), context, train, held_out, read)


def _all_count(store: TokenStore) -> bool:
    """Whether no record has a part that is only read: texts, where conversations are expected."""
    return store.counted is None or all(bool(part.all()) for part in store.counted)
