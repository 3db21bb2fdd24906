"""Pretrain a model on raw text: next token, masked tokens, sentence pairs, spans or prefixes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from pydantic import Field, field_validator, model_validator

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.corpus import open_corpus
from stockpot.data.corrupt import ObjectiveName, objective
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig, Packing
from stockpot.data.reading import ReadConfig
from stockpot.data.sources import fingerprint_sources
from stockpot.data.store import TokenStore
from stockpot.device import World
from stockpot.errors import ConfigError
from stockpot.model.config import ModelConfig
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.stages.assemble import (
    MICRO_BATCH_TOKENS,
    Progress,
    as_sources,
    checkpoint_writer,
    heard,
    mean_metrics,
    micro_batch_for,
    shared_run,
)
from stockpot.stages.record import sample_writer, write_page
from stockpot.stages.sizes import (
    DEPTHS,
    TOKENS_PER_PARAMETER,
    Plan,
    estimate,
    fit_budget,
    sized,
    tokens_that_fit,
    training_speed,
)
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import Loss, LossFn, masked_token_loss, next_token_loss, sequence_to_sequence_loss
from stockpot.train.parallel import Group, joined
from stockpot.weights.store import load

__all__ = ["PretrainConfig", "plan_pretraining", "pretrain"]

SHAPES: dict[str, str] = {
    "causal": "decoder",
    "masked": "encoder",
    "pairs": "encoder",
    "span": "encoder_decoder",
    "prefix": "decoder",
}


class PretrainConfig(Settings):
    """How a model is pretrained."""

    data: tuple[str, ...] = Field(
        ("village",), description="files, folders, patterns, data-set ids, or village[:SEED]"
    )
    tokenizer: str | None = Field(
        None, description="folder of a tokenizer; none: that of the model to continue"
    )
    objective: ObjectiveName = Field("causal", description="causal · masked · pairs · span · prefix")
    start: str | None = Field(None, description="model to continue from; none: fresh weights")
    model: ModelConfig | None = Field(
        None, description="sizes and parts; its vocabulary is set from the tokenizer"
    )
    size: int | None = Field(None, ge=1, description="the dial: number of layers; sets every other size")
    context: int = Field(256, ge=8, description="tokens of a row, where size sets the model")
    pack: Packing = Field("documents", description="documents · stream · alone")
    loop: LoopConfig = Field(default_factory=LoopConfig, description="steps, batch, optimizer")
    val_share: float = Field(0.02, gt=0, lt=0.5, description="share of the documents held out for validation")
    val_tokens: int = Field(65_536, ge=1, description="validate on at most this many tokens")
    minutes: float | None = Field(
        None, gt=0, description="choose size (unless given) and steps to train about this long"
    )
    tokens_per_parameter: float = Field(
        TOKENS_PER_PARAMETER,
        gt=0,
        description="with minutes: train a model this long before a larger one is chosen",
    )
    reading: ReadConfig = Field(default_factory=ReadConfig, description="encoding, separators and limits")
    seed: int = Field(0, ge=0, description="decides weights, order and corruption")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")
    dtype: str | None = Field(None, description="float32 or bfloat16; none: the faster one here")

    _sources = field_validator("data", mode="before")(as_sources)

    @model_validator(mode="after")
    def _fits(self) -> PretrainConfig:
        given = [name for name in ("start", "model", "size") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other")
        return self

    def shape_of_model(self, vocab_size: int) -> ModelConfig:
        """Describe the model to build, with the tokenizer's vocabulary."""
        if self.model is not None:
            return self.model.model_copy(update={"vocab_size": vocab_size})
        choices = {"attends": "prefix"} if self.objective == "prefix" else {}
        shape = SHAPES[self.objective]
        return sized(self.size or 4, vocab_size=vocab_size, context=self.context, shape=shape, **choices)


def pretrain(
    config: PretrainConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> Run:
    """Train on raw text and leave a run folder whose ``model`` is the best checkpoint.

    Args:
        config: everything that decides the result.
        out: the run folder.
        resume: go on from the newest whole checkpoint, exactly.
        progress: receives events; see the command line's ``show``.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    device = machine.pick_device(config.device)
    with joined(device, config.loop.parallel) as group:
        report = heard(group, progress)
        if config.minutes is not None:
            config, plan = _planned(config, group)
            report({"kind": "note", "text": str(plan)})
        machine.seed_everything(config.seed)
        bundle = _bundle(config)
        bundle.model.to(device)
        store = open_corpus(config.data, bundle.tokenizer, reading=config.reading)
        train, held_out = store.split(config.val_share, seed=config.seed)
        loss_fn = _loss(config, bundle, device)
        place = config.loop.parallel.reading(group.place)
        fits = partial(tokens_that_fit, loop=config.loop, processes=place.world, device=device)
        at_once = min(group.gather_objects(fits(bundle.model, loss_fn)))
        batches, validation = _batches(config, bundle, train, held_out, place, at_once)
        how = {"stage": "pretrain", "recipe": {"pretrain": config}, "parent": config.start, "resume": resume}
        with shared_run(group, out, **how) as run:
            if group.is_first:
                _note(run, config, bundle, train, held_out, report)
            fit(
                bundle.model,
                batches,
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
    return run if group.is_first else Run.open(out)  # as the first left it


def _planned(config: PretrainConfig, group: Group) -> tuple[PretrainConfig, Plan]:
    if group.place.world > 1:
        raise ConfigError(
            "minutes measures one process, and there are several.",
            "Give the size and the steps: --size and --steps.",
        )
    return plan_pretraining(config)


def _note(
    run: Run,
    config: PretrainConfig,
    bundle: Bundle,
    train: TokenStore,
    held_out: TokenStore,
    report: Progress,
) -> None:
    parameters = bundle.model.config.parameters()
    run.note(
        data=fingerprint_sources(config.data),
        seed=config.seed,
        tokens={"train": train.tokens, "validation": held_out.tokens},
        parameters=parameters,
    )
    report({"kind": "note", "text": f"{parameters:,} parameters, {train.tokens:,} tokens of text"})


def plan_pretraining(config: PretrainConfig) -> tuple[PretrainConfig, Plan]:
    """Say what the training will take, and replace ``minutes`` by the size and the steps they buy on this machine.

    Measures a few training steps. The settings returned hold plain numbers, so that a recipe repeats the run.
    """
    loop, device = config.loop, machine.pick_device(config.device)
    if config.minutes is not None and config.start is None and config.model is None and config.size is None:
        vocab_size = _tokenizer(config).vocab_size
        sizes = (config.model_copy(update={"size": depth}) for depth in DEPTHS)
        candidates = (one.shape_of_model(vocab_size) for one in sizes)
        plan = fit_budget(
            candidates,
            config.minutes * 60,
            loop=loop,
            device=device,
            tokens_per_parameter=config.tokens_per_parameter,
        )
        config = config.model_copy(update={"size": plan.depth})
    else:
        model = _bundle(config).model.config
        speed = training_speed(model, loop=loop, device=device)
        tokens = (
            loop.steps * loop.batch_tokens if config.minutes is None else int(speed * config.minutes * 60)
        )
        plan = estimate(model, tokens=tokens, tokens_per_s=speed, batch_tokens=loop.batch_tokens)
    if config.minutes is not None:
        steps = max(1, plan.tokens // loop.batch_tokens)
        config = config.model_copy(update={"minutes": None, "loop": loop.model_copy(update={"steps": steps})})
    return config, plan


def _bundle(config: PretrainConfig) -> Bundle:
    if config.start is not None:
        bundle = load(config.start, device="cpu", dtype="float32")
        if (
            config.tokenizer is not None
            and Tokenizer.load(config.tokenizer).fingerprint != bundle.tokenizer.fingerprint
        ):
            raise ConfigError(
                f"{config.tokenizer} is not the tokenizer of {config.start}.",
                "Leave out --tokenizer to use the model's own.",
            )
        _check_shape(config, bundle.model.config)
        return Bundle(bundle.model, bundle.tokenizer)
    tokenizer = _tokenizer(config)
    model = config.shape_of_model(tokenizer.vocab_size)
    _check_shape(config, model)
    return Bundle(Transformer(model), tokenizer)


def _check_shape(config: PretrainConfig, model: ModelConfig) -> None:
    """Refuse a model that its objective would train without a word, and for nothing.

    Raises:
        ConfigError: naming the shape that the objective is for.
    """
    wanted = {"prefix": ("decoder", "encoder_decoder")}.get(config.objective, (SHAPES[config.objective],))
    if model.shape not in wanted:
        raise ConfigError(
            f'The objective "{config.objective}" trains {_a(wanted[0])}; this model is {_a(model.shape)}.',
            "Choose another objective, or another model (none: one of the right shape).",
        )
    if config.objective == "prefix" and model.shape == "decoder" and model.main.attends != "prefix":
        raise ConfigError(
            'The objective "prefix" needs a decoder that sees the beginning from both sides.',
            "Set model.decoder.attends = 'prefix', or use the dial, size.",
        )


def _a(shape: str) -> str:
    return f"{'a' if shape == 'decoder' else 'an'} {shape.replace('_', '-')}"


def _tokenizer(config: PretrainConfig) -> Tokenizer:
    if config.tokenizer is None:
        raise ConfigError(
            "Fresh weights need a tokenizer.",
            "Give one with --tokenizer (`stockpot train-tokenizer` makes one).",
        )
    return Tokenizer.load(config.tokenizer)


def _loss(config: PretrainConfig, bundle: Bundle, device: torch.device) -> LossFn:
    shape = bundle.model.config.shape
    chosen: dict[str, Callable[..., Loss]] = {
        "encoder": masked_token_loss,
        "decoder": next_token_loss,
        "encoder_decoder": sequence_to_sequence_loss,
    }
    return partial(chosen[shape], byte_lengths=torch.from_numpy(bundle.tokenizer.byte_lengths).to(device))


def _batches(
    config: PretrainConfig,
    bundle: Bundle,
    train: TokenStore,
    held_out: TokenStore,
    place: World,
    at_once: int = MICRO_BATCH_TOKENS,
) -> tuple[Loader, FixedBatches]:
    """Give each process its share of the rows; all of them validate on the same ones."""
    context = bundle.model.config.context
    rows, _ = micro_batch_for(config.loop.batch_tokens, context, at_once, processes=place.world)
    settings = LoaderConfig(context=context, micro_batch=rows, pack=config.pack, seed=config.seed)
    aim = objective(
        config.objective, bundle.tokenizer, two_stacks=bundle.model.config.shape == "encoder_decoder"
    )
    limit = max(1, config.val_tokens // (rows * context))
    return (
        Loader(train, settings, aim, rank=place.rank, world=place.world),
        FixedBatches(held_out, settings, aim, max_batches=limit),
    )
