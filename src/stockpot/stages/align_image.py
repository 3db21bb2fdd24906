"""Give a language model eyes: pictures become vectors before its words, the model itself stays frozen or learns with them.

Tower → grid of features → projector → vectors behind the vocabulary. What is trained beside the projector is a setting: nothing,
bottleneck adapters (MAGMA), LoRA, or all of the model. Frozen weights are hashed before and after, and a run in which
they changed fails; what it did to the model's loss on plain text is told.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.batch import Batch, ImageBatch
from stockpot.data.captions import Captions, fingerprint_captions, read_captions
from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.model.adapters import LoRA, attach
from stockpot.model.bottleneck import Bottleneck, attach_bottlenecks
from stockpot.model.sight import ImageReader, ReaderConfig, attach_sight, sight_of
from stockpot.prompt.soft import frozen_hash
from stockpot.run import Run
from stockpot.stages.assemble import GentleLoop, Progress, as_settings, as_sources, mean_metrics, silent
from stockpot.stages.plain_text import plain_batches, text_loss
from stockpot.stages.tower import COLOUR_MEAN, COLOUR_STD, TowerConfig, train_tower
from stockpot.train.loop import fit
from stockpot.train.pictures import CaptionBatches, Grids, Row, caption_rows, image_loss, look_at_all
from stockpot.weights.sight import image_tower
from stockpot.weights.store import load, save_adapter

__all__ = ["AlignImageConfig", "align_image"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class AlignLoop(GentleLoop):
    """How long and how to train a projector and adapters."""

    lr: float = Field(
        2e-3, gt=0, description="learning rate of the projector, and of the rest unless set below"
    )
    steps: int = Field(400, ge=1, description="optimiser steps")
    batch_tokens: int = Field(2048, ge=1, description="real tokens a step, pictures' included")
    schedule: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        "cosine", description="constant · linear · cosine · warmup-stable-decay"
    )


class AlignImageConfig(Settings):
    """How a language model learns to speak of pictures."""

    model: str | None = Field(
        None, description="the language model: a run, a checkpoint, a model folder, a GGUF file"
    )
    data: tuple[str, ...] = Field(
        ("village:scenes",),
        description='pictures with texts: records {"image", "text"}, folders, village:scenes',
    )
    vision: str | None = Field(
        None,
        description="the tower: a ViT or CLIP folder or hub id; none: a small one is trained first, on the captions",
    )
    tower: TowerConfig = Field(
        default_factory=TowerConfig, description="the small tower, where none is named"
    )
    projector: Literal[1, 2] = Field(
        1, description="layers between tower and model: 1 = linear, 2 = with GELU between"
    )
    adapters: Literal["none", "linear", "bottleneck", "lora", "full"] = Field(
        "bottleneck",
        description="what is trained: none · linear (the projector alone) · bottleneck · lora · full (all but the tower)",
    )
    bottleneck: Bottleneck = Field(default_factory=Bottleneck, description="for adapters = bottleneck")
    lora: LoRA = Field(default_factory=LoRA, description="for adapters = lora")
    chat: bool = Field(
        False, description="put picture and prompt as a user's message, the text as the answer"
    )
    rows: int = Field(32, ge=1, description="texts of a micro-batch")
    limit: int | None = Field(None, ge=2, description="most pictures; none: all")
    texts: tuple[str, ...] = Field(
        ("village",), description="plain text on which the model is measured before and after"
    )
    val_share: float = Field(0.05, gt=0, lt=0.5, description="share of the pictures held out for validation")
    loop: AlignLoop = Field(default_factory=AlignLoop, description="steps, batch, optimizer")
    full_lr: float = Field(
        5e-4, gt=0, description="learning rate for adapters = full, unless loop.lr is given"
    )
    seed: int = Field(0, ge=0, description="decides tower, projector and order")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", "texts", mode="before")(as_sources)
    _loop = field_validator("loop", mode="before")(as_settings)


def align_image(
    config: AlignImageConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> Run:
    """Teach a model to speak of pictures and leave a run that ``load`` opens.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on, or a frozen weight changed.
    """
    report = progress or silent
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    bundle = _open(config)
    captions = read_captions(config.data, limit=config.limit)
    for complaint in captions.complaints():
        report({"kind": "note", "text": complaint})
    texts = plain_batches(bundle, config.texts)
    with Run.create(
        out, stage="align-image", recipe={"align-image": config}, parent=config.model, resume=resume
    ) as run:
        reader = _reader(config, bundle, captions, run, report)
        grids, facts = _grids(reader, captions, run, report)
        rows = _rows(bundle, captions, reader.config.grid, config, report)
        loss, own = text_loss(bundle.model, texts), set(bundle.model.state_dict())
        trained = _attach(bundle, reader, config)
        added = [name for name in bundle.model.state_dict() if name not in own]
        before = {
            "text_loss": loss,
            "hash": frozen_hash(bundle.model, added),
        }  # as an adapter may have rounded it
        model = bundle.model.to(device)
        run.note(
            seed=config.seed,
            data=fingerprint_captions(config.data),
            parameters=model.config.parameters(),
            trained_parameters=trained,
            pictures=facts,
            without_picture=len(captions.without_picture),
            without_text=len(captions.without_text),
            frozen_sha256=before["hash"],
        )
        report({"kind": "note", "text": f"{len(rows[0]):,} texts to train on, {trained:,} numbers to train"})
        shown = _train(bundle, rows, grids, config, run, resume=resume, report=report)
        _tell_saving(facts, shown, run, report)
        _prove(model, added, before, texts, config, run, report)
    return run


# --- parts ---


def _open(config: AlignImageConfig) -> Bundle:
    if config.model is None:
        raise ConfigError("There is no model to give eyes to.", "Name one: stockpot align-image MODEL.")
    bundle = load(config.model, device="cpu", dtype="float32")
    if bundle.model.config.shape != "decoder" or not bundle.model.config.predicts:
        raise ConfigError(
            f"{config.model} writes no text of its own; eyes are for decoders.", "Name a decoder."
        )
    if bundle.source is None or bundle.soft or sight_of(bundle.model) is not None:
        raise ConfigError(
            f"{config.model} has no folder of its own, a soft prompt, or eyes already.",
            "Name the plain model.",
        )
    if config.chat and bundle.template is None:
        raise ConfigError(
            f"{config.model} holds no conversations.", "Leave chat out, or tune it first (stockpot sft)."
        )
    return bundle


def _reader(
    config: AlignImageConfig, bundle: Bundle, captions: Captions, run: Run, report: Progress
) -> ImageReader:
    """Open or train the tower, and put a fresh projector behind it. A tower trained here is kept in the run."""
    kept = run.path / "tower"
    if config.vision is not None or (kept / "model.safetensors").is_file():
        tower = image_tower(config.vision or kept)
    else:
        from stockpot.weights.vision import save_vision

        tower = train_tower(
            config.tower,
            captions.pictures,
            captions.texts,
            bundle.tokenizer,
            seed=config.seed,
            progress=report,
        )
        save_vision(kept, tower)
    is_clip = config.vision is not None and tower.config.stack.embedding_norm
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (COLOUR_MEAN, COLOUR_STD)
    weight = bundle.model.embed.weight.detach()
    spread = float(weight.float().std()) * (bundle.model.config.embedding_scale or 1.0)
    machine.seed_everything(config.seed)
    settings = ReaderConfig(
        image=tower.config, dim=bundle.model.config.dim, layers=config.projector, mean=mean, std=std
    )
    if settings.grid >= bundle.context:
        raise ConfigError(
            f"A picture is {settings.grid} vectors; the model's context is {bundle.context}.",
            "Use a tower with larger patches.",
        )
    return ImageReader(settings, tower, std=spread)


def _grids(
    reader: ImageReader, captions: Captions, run: Run, report: Progress
) -> tuple[Grids, dict[str, Any]]:
    """Look at every picture once, and leave out the texts of those that cannot be read."""
    began = time.perf_counter()
    grids, bad = look_at_all(reader, captions.pictures, run.path / "features.npy")
    (run.path / "features.npy").unlink()  # the map stays open as long as it is needed
    seconds = time.perf_counter() - began
    if bad:
        first = next(iter(bad.values()))
        report({"kind": "note", "text": f"{len(bad):,} pictures cannot be read and are left out: {first}"})
        captions.texts = [one for one in captions.texts if one.picture not in bad]
    if not captions.texts:
        raise DataError("None of the pictures can be read.", "Look at what the notes above say.")
    each = 1000 * seconds / len(captions.pictures)
    report(
        {
            "kind": "note",
            "text": f"{len(captions.pictures):,} pictures seen in {seconds:.1f} s, {each:.2f} ms each",
        }
    )
    return grids, {"count": len(captions.pictures), "damaged": len(bad), "look_s": round(seconds, 2)}


def _rows(
    bundle: Bundle, captions: Captions, grid: int, config: AlignImageConfig, report: Progress
) -> tuple[list[Row], list[Row]]:
    """Encode the texts; those of every n-th picture are kept for validation."""
    rows, overlong = caption_rows(bundle, captions.texts, grid, chat=config.chat)
    if overlong:
        report({"kind": "note", "text": f"{overlong:,} texts exceed the context and are left out"})
    each = max(2, round(1 / config.val_share))
    held = [row for row in rows if row.picture % each == each - 1]
    kept = [row for row in rows if row.picture % each != each - 1]
    if not kept or not held:
        raise DataError(f"{len(rows)} texts are too few to train and to validate on.", "Give more pictures.")
    return kept, held


def _attach(bundle: Bundle, reader: ImageReader, config: AlignImageConfig) -> int:
    """Freeze what stays, put on what is trained; returns how many numbers that is."""
    model = bundle.model
    model.requires_grad_(False)
    if config.adapters == "lora":
        attach(model, config.lora)
    elif config.adapters == "bottleneck":
        attach_bottlenecks(model, config.bottleneck)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(
                name.rpartition(".")[2] in ("narrow", "narrow_bias", "wide", "wide_bias")
            )
    elif config.adapters == "full":
        model.requires_grad_(True)
    attach_sight(model, reader)
    reader.requires_grad_(config.adapters != "none")
    reader.tower.requires_grad_(False)
    return sum(one.numel() for one in model.parameters() if one.requires_grad)


def _train(
    bundle: Bundle,
    rows: tuple[list[Row], list[Row]],
    grids: Grids,
    config: AlignImageConfig,
    run: Run,
    *,
    resume: bool,
    report: Progress,
) -> int:
    """Train, and return how many pictures the batches showed, which the tower did not have to look at again."""
    model, source = bundle.model, bundle.source
    assert source is not None
    vocab = model.config.vocab_size
    train = CaptionBatches(rows[0], grids, vocab=vocab, size=config.rows, seed=config.seed)
    held = CaptionBatches(rows[1], grids, vocab=vocab, size=config.rows).once()
    validate = _validation(held)
    if config.adapters == "none":
        found = validate(model)
        run.log(0, **{f"val/{name}": value for name, value in found.items()})
        run.set_model(run.checkpoint(0, lambda folder: _save(folder, bundle, source), keep=1))
        report({"kind": "note", "text": f"nothing is trained; validation loss {found['loss']:.4g}"})
        return 0
    is_gentle = config.adapters == "full" and "lr" not in config.loop.model_fields_set
    fit(
        model,
        train,
        image_loss,
        config.loop.model_copy(update={"lr": config.full_lr}) if is_gentle else config.loop,
        run=run,
        validate=validate,
        save=lambda folder: _save(folder, bundle, source),
        resume=resume,
        progress=report,
    )
    return train.shown


def _tell_saving(facts: dict[str, Any], shown: int, run: Run, report: Progress) -> None:
    """Tell what it saved to look at every picture once, and not whenever it is shown."""
    if not shown:
        return
    saved = round((shown / facts["count"] - 1) * facts["look_s"], 2)
    run.note(pictures=facts | {"shown": shown, "saved_s": saved})
    text = f"pictures were shown {shown:,} times and seen once each: {saved:,.1f} s of looking saved"
    report({"kind": "note", "text": text})


def _save(folder: Path, bundle: Bundle, source: Path) -> None:
    save_adapter(folder, bundle, source)


def _validation(held: list[ImageBatch]) -> Any:
    """Measure the held-out texts with their own pictures, with each other's, and with blank ones."""
    own = mean_metrics(held, image_loss)
    others = mean_metrics(held, partial(image_loss, change=_swap))
    blank = mean_metrics(held, partial(image_loss, change=torch.zeros_like))

    def validate(model: nn.Module) -> dict[str, float]:
        found = own(model)
        return found | {"swapped_loss": others(model)["loss"], "blank_loss": blank(model)["loss"]}

    return validate


def _swap(features: Tensor) -> Tensor:
    return features.roll(1, 0)


# --- what it did to the model ---


def _prove(
    model: nn.Module,
    added: list[str],
    before: dict[str, Any],
    texts: list[Batch],
    config: AlignImageConfig,
    run: Run,
    report: Progress,
) -> None:
    """Compare the model's own weights and its loss on plain text with what they were.

    Raises:
        TrainError: if a weight changed that was to stay.
    """
    same = frozen_hash(model, added) == before["hash"]
    if not same and config.adapters != "full":
        raise TrainError(
            "A frozen weight changed while the model learned to see.", "This is a bug; please report it."
        )
    after = text_loss(model, texts)
    run.note(is_frozen=same, text_loss={"before": before["text_loss"], "after": after})
    told = "unchanged, by their hash" if same else "trained"
    text = f"the model's own weights are {told}; loss on plain text {before['text_loss']:.4f} → {after:.4f}"
    report({"kind": "note", "text": text})
