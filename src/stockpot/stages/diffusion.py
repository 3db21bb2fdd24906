"""Text to picture: a small diffusion model that an encoder's states steer through cross-attention.

The denoiser and the noise schedule are those of diffusers, known to this file alone. A picture is folded, some pixels into
one place, so that the network works at a fraction of the height and width. What steers it is a setting: an encoder's hidden
states, one-hot words, or nothing; now and then the text is left out in training, so that a picture can be pushed away from
what no text gives.
Source: Ho et al. 2020, arXiv:2006.11239 (diffusion); Salimans & Ho 2022, arXiv:2202.00512, §4 (what is predicted, v);
Rombach et al. 2022, arXiv:2112.10752, §3.3 (cross-attention); Ho & Salimans 2022, arXiv:2207.12598 (guidance).
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from stockpot import device as machine
from stockpot.config import Settings
from stockpot.data.captions import CAPTION_PROMPT, fingerprint_captions, read_captions
from stockpot.errors import CheckpointError, ConfigError, DataError
from stockpot.image import save_sheet
from stockpot.run import Run
from stockpot.stages.assemble import GentleLoop, Progress, as_settings, as_sources, silent
from stockpot.stages.steering import Steering, make_steering
from stockpot.train.loop import fit
from stockpot.train.losses import Loss
from stockpot.weights.folder import find_folder, read_json

__all__ = ["DrawConfig", "Painter", "draw", "load_painter", "train_draw"]

STEPS_OF_NOISE = 1000
SHOWN = 12  # drawings that a run leaves
KIND = "stockpot-draw"


class DrawLoop(GentleLoop):
    """How long and how to train a denoiser; a token of a step is a picture.

    Muon for its linear layers, AdamW for convolutions and the rest: after 500 steps 44 % of drawings are right instead of
    16 % with AdamW alone, at the better of two rates (``benchmarks/results/drawing.md``).
    """

    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="of linear layers: muon · adamw; AdamW for convolutions and the rest"
    )
    lr: float = Field(1e-2, gt=0, description="learning rate of linear layers")
    scalar_lr: float | None = Field(
        2e-3, gt=0, description="learning rate of convolutions, norms and biases; none: lr"
    )
    steps: int = Field(1500, ge=1, description="optimiser steps")
    batch_tokens: int = Field(32, ge=1, description="pictures a step")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        "float32", description="of matrix products; convolutions on a CPU are slower in bfloat16"
    )
    schedule: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        "cosine", description="constant · linear · cosine · warmup-stable-decay"
    )


class DrawConfig(Settings):
    """How a model learns to draw."""

    data: tuple[str, ...] = Field(
        ("village:scenes:0:8000",),
        description='pictures with captions: records {"image", "text"}, folders, village:scenes',
    )
    encoder: str | None = Field(
        None,
        description="reads the text: a model that makes hidden states (a run, a folder, minilm), words, or nothing; none: words",
    )
    size: int = Field(32, ge=8, le=128, description="height and width of a picture")
    fold: Literal[1, 2, 4] = Field(4, description="pixels along a side that become one place of the denoiser")
    channels: tuple[int, ...] = Field(
        (64, 64), min_length=2, description="width of the denoiser at each scale, finest first"
    )
    predicts: Literal["picture", "v"] = Field(
        "picture", description="what the denoiser gives: the clean picture, easier for a small one · v"
    )
    text_dropout: float = Field(
        0.1, ge=0, lt=1, description="share of the pictures whose text is left out in training"
    )
    limit: int | None = Field(None, ge=2, description="most pictures; none: all")
    loop: DrawLoop = Field(default_factory=DrawLoop, description="steps, batch, optimizer")
    seed: int = Field(0, ge=0, description="decides start, order and noise")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)
    _loop = field_validator("loop", mode="before")(as_settings)

    @model_validator(mode="after")
    def _fits(self) -> DrawConfig:
        scale = self.fold * 2 ** (len(self.channels) - 1)
        if self.size % scale or any(width % 16 for width in self.channels):
            raise ValueError(f"size is a multiple of {scale} here, and channels of 16")
        return self


@dataclass
class Painter:
    """A denoiser with what steers it.

    Attributes:
        network: the denoiser.
        steering: turns texts into states.
        size: height and width of a picture.
        fold: pixels along a side that are one place of the network.
        predicts: what the network gives.
    """

    network: nn.Module
    steering: Steering
    size: int
    fold: int
    predicts: str

    def paint(
        self, texts: Sequence[str], *, steps: int = 25, guidance: float = 2.0, seed: int = 0
    ) -> NDArray[np.uint8]:
        """Draw a picture of each text, ``(texts, size, size, 3)`` uint8.

        Args:
            texts: what to draw.
            steps: of denoising.
            guidance: how far to go beyond what no text gives; 1: not at all.
            seed: of the noise; each text has its own.
        """
        scheduler = _scheduler("DDIMScheduler", self.predicts)
        scheduler.set_timesteps(steps)
        device = next(self.network.parameters()).device
        side, planes = self.size // self.fold, 3 * self.fold**2
        noise = [
            torch.randn(planes, side, side, generator=torch.Generator().manual_seed(seed + number))
            for number in range(len(texts))
        ]
        states, mask = self.steering.states(texts)
        blank, blank_mask = self.steering.states([""] * len(texts), length=states.shape[1])
        guides = guidance != 1.0 and self.steering.has_words
        states = (torch.cat((states, blank)) if guides else states).to(device)
        mask = (torch.cat((mask, blank_mask)) if guides else mask).to(device)
        x = torch.stack(noise).to(device)
        self.network.eval()
        with torch.inference_mode():
            for time in scheduler.timesteps:
                given = torch.cat((x, x)) if guides else x
                out = _denoise(self.network, given, time.expand(len(given)).to(device), states, mask)
                if guides:
                    with_text, without = out.chunk(2)
                    out = without + guidance * (with_text - without)
                x = scheduler.step(out, time, x).prev_sample
        return _unfold(x, self.fold).cpu().numpy()


def train_draw(
    config: DrawConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> Run:
    """Learn to draw from captions and leave a run that `draw` opens.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    report = progress or silent
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    pixels, texts = _read(config, report)
    steering = make_steering(config.encoder or "words", texts, device=device)
    machine.seed_everything(config.seed)
    painter = Painter(
        _network(config, steering.width).to(device), steering, config.size, config.fold, config.predicts
    )
    batches = _Batches(pixels, texts, painter.steering, config)
    parent = None if steering.bundle is None else config.encoder
    recipe = {"train-draw": config}
    with Run.create(out, stage="train-draw", recipe=recipe, parent=parent, resume=resume) as run:
        trained = sum(one.numel() for one in painter.network.parameters())
        run.note(seed=config.seed, data=fingerprint_captions(config.data), trained_parameters=trained)
        report(
            {
                "kind": "note",
                "text": f"{len(texts):,} pictures, {trained:,} numbers to train, steered by {steering.name}",
            }
        )
        fit(
            painter.network,
            batches,
            partial(_loss, predicts=config.predicts),
            config.loop,
            run=run,
            save=lambda folder: _save(folder, painter, config),
            resume=resume,
            progress=report,
        )
        _leave_sheet(run, painter, texts, config.seed)
    return run


def _leave_sheet(run: Run, painter: Painter, texts: Sequence[str], seed: int) -> None:
    """Draw a few texts of the data into the run's samples, so that one sees what was learned."""
    shown = list(dict.fromkeys(texts))[:SHOWN]
    folder = run.path / "samples"
    folder.mkdir(exist_ok=True)
    save_sheet(list(painter.paint(shown, seed=seed)), folder / "drawings.png", zoom=4, columns=SHOWN // 2)
    (folder / "drawings.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")


def draw(
    model: str | Path | Painter,
    texts: str | Sequence[str],
    *,
    steps: int = 25,
    guidance: float = 2.0,
    seed: int = 0,
    device: str | None = None,
) -> NDArray[np.uint8]:
    """Draw pictures of texts, ``(texts, size, size, 3)`` uint8.

    Args:
        model: a run of `train_draw`, or what `load_painter` opened.
        texts: one, or several.
        steps: of denoising.
        guidance: how far to go beyond what no text gives; 1: not at all.
        seed: of the noise.
        device: where.

    Raises:
        CheckpointError: if the model is missing, damaged or draws nothing.
    """
    painter = model if isinstance(model, Painter) else load_painter(model, device=device)
    wanted = [texts] if isinstance(texts, str) else list(texts)
    return painter.paint(wanted, steps=steps, guidance=guidance, seed=seed)


def load_painter(ref: str | Path, *, device: str | None = None) -> Painter:
    """Open a run of `train_draw`; errors as for `draw`."""
    folder = find_folder(ref)
    values = read_json(folder, "draw.json", missing={})
    if values.get("kind") != KIND:
        raise CheckpointError(f"{ref} is no model that draws.", "Name a run of stockpot train-draw.")
    place = machine.pick_device(device)
    try:
        steering = make_steering(str(values["encoder"]), [], words=values["words"], device=place)
        own = {name: values[name] for name in ("size", "channels", "fold", "predicts")}
        config = DrawConfig(**own)
        network = _network(config, steering.width)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / 'draw.json'}: {error}.", "Copy the folder again.") from None
    return Painter(
        _fill(network, folder / "denoiser").to(place).eval(),
        steering,
        config.size,
        config.fold,
        config.predicts,
    )


# --- the network ---


def _diffusers() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import diffusers
    except ImportError:
        raise ConfigError("Drawing needs an extra package.", "pip install 'stockpot[diffusion]'") from None
    return diffusers


def _network(config: DrawConfig, width: int) -> nn.Module:
    count = len(config.channels)
    network: nn.Module = _diffusers().UNet2DConditionModel(
        sample_size=config.size // config.fold,
        in_channels=3 * config.fold**2,
        out_channels=3 * config.fold**2,
        layers_per_block=1,
        block_out_channels=config.channels,
        down_block_types=["CrossAttnDownBlock2D"] * count,
        up_block_types=["CrossAttnUpBlock2D"] * count,
        encoder_hid_dim=width,
        cross_attention_dim=config.channels[-1],
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=True,
    )
    return network


def _scheduler(kind: str, predicts: str) -> Any:
    return getattr(_diffusers(), kind)(
        num_train_timesteps=STEPS_OF_NOISE,
        beta_schedule="squaredcos_cap_v2",
        prediction_type={"picture": "sample", "v": "v_prediction"}[predicts],
        **({"clip_sample": True, "timestep_spacing": "trailing"} if kind == "DDIMScheduler" else {}),
    )


def _denoise(network: nn.Module, x: Tensor, time: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    out: Tensor = network(
        x, time, encoder_hidden_states=states, encoder_attention_mask=mask, return_dict=False
    )[0]
    return out


def _fold(pixels: Tensor, fold: int) -> Tensor:
    """Bring ``(batch, height, width, 3)`` uint8 to ``(batch, 3 · fold², height / fold, width / fold)`` from −1 to 1."""
    return F.pixel_unshuffle(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, fold)


def _unfold(x: Tensor, fold: int) -> Tensor:
    pixels = F.pixel_shuffle(x, fold).permute(0, 2, 3, 1)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _save(folder: Path, painter: Painter, config: DrawConfig) -> None:
    values = {
        "kind": KIND,
        "encoder": _whole_path(painter.steering.source),
        "words": painter.steering.words,
        "size": config.size,
        "fold": config.fold,
        "predicts": config.predicts,
        "channels": list(config.channels),
    }
    painter.network.save_pretrained(folder / "denoiser", safe_serialization=True)  # type: ignore[operator]
    (folder / "draw.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _whole_path(source: str) -> str:
    return str(Path(source).resolve()) if Path(source).exists() else source


def _fill(network: nn.Module, folder: Path) -> nn.Module:
    """Read the denoiser's weights, which are safetensors only."""
    try:
        found = type(network).from_pretrained(folder, use_safetensors=True, local_files_only=True)  # type: ignore[attr-defined]
        network.load_state_dict(found.state_dict())
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder} cannot be read ({reason[:200]}).", "Copy the folder again."
        ) from None
    return network


# --- training ---


@dataclass
class _Batch:
    """Pictures ``(batch, height, width, 3)`` uint8, what steers them, noise like the folded pictures, times ``(batch,)``."""

    pixels: Tensor
    states: Tensor
    mask: Tensor
    noise: Tensor
    times: Tensor

    @property
    def tokens(self) -> int:
        """Pictures."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> _Batch:
        return replace(self, **{name: value.to(device) for name, value in vars(self).items()})


class _Batches:
    """Batches without end; a place in it can be kept and taken up again."""

    def __init__(
        self, pixels: NDArray[np.uint8], texts: Sequence[str], steering: Steering, config: DrawConfig
    ) -> None:
        self._pixels, self._texts, self._steering, self._config = pixels, texts, steering, config
        self._given = 0

    def __iter__(self) -> Iterator[_Batch]:
        while True:
            config = self._config
            dice = random.Random(f"{config.seed}:{self._given}")
            noise = torch.Generator().manual_seed(dice.getrandbits(62))
            chosen = [dice.randrange(len(self._texts)) for _ in range(config.loop.batch_tokens)]
            texts = [self._texts[at] if dice.random() >= config.text_dropout else "" for at in chosen]
            states, mask = self._steering.states(texts)
            pixels = torch.from_numpy(self._pixels[chosen])
            side = config.size // config.fold
            self._given += 1
            yield _Batch(
                pixels,
                states,
                mask,
                torch.randn(len(chosen), 3 * config.fold**2, side, side, generator=noise),
                torch.randint(0, STEPS_OF_NOISE, (len(chosen),), generator=noise),
            )

    def state_dict(self) -> dict[str, Any]:
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._given = int(state["given"])


@lru_cache(maxsize=2)
def _noising(predicts: str) -> Any:
    """Make the schedule of training."""
    return _scheduler("DDPMScheduler", predicts)


def _loss(network: nn.Module, batch: _Batch, *, predicts: str) -> Loss:
    """Compare what the denoiser gives with what it should give: the mean over each picture."""
    schedule = _noising(predicts)
    x = _fold(batch.pixels, batch.pixels.shape[1] // batch.noise.shape[2])
    noisy = schedule.add_noise(x, batch.noise, batch.times)
    wanted = x if predicts == "picture" else schedule.get_velocity(x, batch.noise, batch.times)
    out = _denoise(network, noisy, batch.times, batch.states, batch.mask)
    total = (out.float() - wanted).square().mean(dim=(1, 2, 3)).sum()
    return Loss(total, batch.tokens, {"loss": (total.detach(), batch.tokens)})


def _read(config: DrawConfig, report: Progress) -> tuple[NDArray[np.uint8], list[str]]:
    """Open the pictures that have a caption; a damaged one is left out and told."""
    captions = read_captions(config.data, limit=config.limit)
    for complaint in captions.complaints():
        report({"kind": "note", "text": complaint})
    pixels, texts, bad = [], [], []
    for one in captions.texts:
        if one.prompt != CAPTION_PROMPT:
            continue
        try:
            pixels.append(captions.pictures[one.picture].square(config.size))
            texts.append(one.text)
        except DataError as error:
            bad.append(error.what)
    if bad:
        report({"kind": "note", "text": f"{len(bad):,} pictures cannot be read and are left out: {bad[0]}"})
    if not texts:
        raise DataError("No picture with a caption can be read.", "Give pictures with captions.")
    return np.stack(pixels), texts
