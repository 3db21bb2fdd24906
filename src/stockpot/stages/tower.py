"""Train a small tower from nothing on pictures with captions.

Either pictures and captions are brought into one space (contrastively), or the tower learns to name a caption's words from
all that its patches see (supervised). What is kept is a ViT; the captions' side is thrown away.
Source: Radford et al. 2021, arXiv:2103.00020 (contrastive); Joulin et al. 2016, arXiv:1511.02251, §3.2 (words, by softmax).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.data.captions import CAPTION_PROMPT, Caption
from stockpot.errors import DataError
from stockpot.image import Image
from stockpot.model.config import StackConfig, decoder
from stockpot.model.vision import ImageConfig, ImageEncoder, TextTowerConfig, TowersConfig, TwoTowers
from stockpot.stages.assemble import GentleLoop, Progress
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import fit
from stockpot.train.losses import Loss
from stockpot.train.pictures import Pair, PairBatch, PairBatches, contrastive_loss

__all__ = ["COLOUR_MEAN", "COLOUR_STD", "TowerConfig", "train_tower"]

COLOUR_MEAN = COLOUR_STD = (0.5, 0.5, 0.5)
LEAST_PAIRS = 8


class TowerLoop(GentleLoop):
    """How long and how to train two towers; a token of a step is a picture."""

    lr: float = Field(1e-3, gt=0, description="learning rate")
    steps: int = Field(400, ge=1, description="optimiser steps")
    batch_tokens: int = Field(128, ge=2, description="pictures a step, each told from all others")
    weight_decay: float = Field(0.05, ge=0, description="decay of matrices, per unit of learning rate")


class TowerConfig(Settings):
    """The tower that is trained where none is given."""

    image_size: int = Field(32, ge=8, description="height and width that pictures are brought to")
    patch_size: int = Field(
        8, ge=2, description="height and width of a patch; a picture gives one vector a patch"
    )
    layers: int = Field(4, ge=1, description="layers")
    dim: int = Field(96, ge=8, description="width")
    heads: int = Field(4, ge=1, description="attention heads")
    learns: Literal["captions", "words"] = Field(
        "captions",
        description="captions: told from others' (contrastive) · words: a caption's words are named (supervised)",
    )
    space: int = Field(64, ge=4, description="width of the space in which pictures and captions meet")
    loop: TowerLoop = Field(default_factory=TowerLoop, description="steps, batch, optimizer")

    @model_validator(mode="after")
    def _fits(self) -> TowerConfig:
        if self.image_size % self.patch_size or self.dim % self.heads:
            raise ValueError("image_size is a multiple of patch_size, and dim of heads")
        return self

    def image(self) -> ImageConfig:
        """Describe the tower: the form of a ViT, so that it can be written as one."""
        stack = StackConfig(
            layers=self.layers,
            dim=self.dim,
            heads=self.heads,
            ffn_dim=4 * self.dim,
            context=(self.image_size // self.patch_size) ** 2 + 1,
            attends="bidirectional",
            position="learned",
            norm="layer",
            norm_bias=True,
            norm_eps=1e-6,
            qk_norm=None,
            qkv_bias=True,
            out_bias=True,
            ffn="gelu",
            ffn_bias=True,
        )
        return ImageConfig(image_size=self.image_size, patch_size=self.patch_size, stack=stack)


def train_tower(
    config: TowerConfig,
    pictures: Sequence[Image],
    captions: Sequence[Caption],
    tokenizer: Tokenizer,
    *,
    seed: int = 0,
    progress: Progress,
) -> ImageEncoder:
    """Train a tower on pictures with captions; questions about them are left aside.

    Raises:
        DataError: if there are too few different captions.
        TrainError: if training cannot go on.
    """
    told = [one for one in captions if one.prompt == CAPTION_PROMPT] or list(captions)
    pixels = _open(pictures, {one.picture for one in told}, config.image_size)
    pairs = [Pair(one.picture, _ids(tokenizer, one.text)) for one in told if one.picture in pixels]
    if len({pair.ids for pair in pairs}) < LEAST_PAIRS:
        raise DataError(
            f"{len(pairs)} captions are too few to train a tower on.",
            "Give more, or name a tower with --vision.",
        )
    torch.manual_seed(seed)
    progress({"kind": "note", "text": f"training a tower on {len(pairs):,} captions"})
    batches = PairBatches(pairs, pixels, min(config.loop.batch_tokens, len(pairs)), seed)
    if config.learns == "words":
        namer = _Namer(config.image(), {id for pair in pairs for id in pair.ids})
        fit(namer, batches, _naming_loss, config.loop, progress=progress)
        return namer.tower.eval()
    towers = _towers(config, tokenizer.vocab_size, max(len(pair.ids) for pair in pairs))
    fit(towers, batches, _loss, config.loop, progress=progress)
    tower = ImageEncoder(config.image())
    own = {name: value for name, value in towers.image.state_dict().items() if name != "projection.weight"}
    tower.load_state_dict(own)
    return tower.eval()


class _Namer(nn.Module):
    """A tower with a score for each word that captions hold, from the mean of what its patches see."""

    def __init__(self, config: ImageConfig, words: set[int]) -> None:
        super().__init__()
        self.tower = ImageEncoder(config)
        self.words = sorted(words)
        self.norm = nn.LayerNorm(config.stack.dim)
        self.names = nn.Linear(config.stack.dim, len(words))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.names(self.norm(self.tower(images).hidden[:, 1:].mean(1)))
        return scores


def _naming_loss(model: nn.Module, batch: PairBatch) -> Loss:
    """Cross-entropy of a caption's different words, all equally likely."""
    assert isinstance(model, _Namer)
    places = torch.searchsorted(torch.tensor(model.words, device=batch.ids.device), batch.ids)
    said = torch.zeros(len(batch.ids), len(model.words) + 1, device=batch.ids.device)
    said.scatter_(1, places.masked_fill(~batch.mask, len(model.words)), 1.0)
    wanted = said[:, :-1] / said[:, :-1].sum(1, keepdim=True)
    scores = model(_normal(batch.pixels))
    total = F.cross_entropy(scores, wanted, reduction="sum")
    return Loss(total, len(scores), {"loss": (total.detach(), len(scores))})


def _towers(config: TowerConfig, vocab: int, longest: int) -> TwoTowers:
    image = config.image().model_copy(update={"projection": config.space})
    text = decoder(
        layers=2, dim=config.dim, heads=config.heads, context=max(longest, 8), vocab_size=vocab + 1
    )
    text = text.model_copy(update={"predicts": False})
    return TwoTowers(
        TowersConfig(image=image, text=TextTowerConfig(text=text, end_id=vocab, projection=config.space))
    )


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return (*tokenizer.encode(text)[:63], tokenizer.vocab_size)  # an end that no text holds


def _open(pictures: Sequence[Image], wanted: set[int], size: int) -> dict[int, NDArray[np.uint8]]:
    """Open the pictures that captions speak of; damaged ones were told of already."""
    found = {}
    for number in sorted(wanted):
        try:
            found[number] = pictures[number].square(size)
        except DataError:
            continue
    return found


def _loss(model: nn.Module, batch: PairBatch) -> Loss:
    """Compare pictures with texts, both as small towers see them."""
    assert isinstance(model, TwoTowers)
    return contrastive_loss(model(_normal(batch.pixels), batch.ids, batch.mask), batch.ids)


def _normal(pixels: Tensor) -> Tensor:
    """Bring ``(batch, height, width, 3)`` uint8 to ``(batch, 3, height, width)``, as the tower will be shown pictures."""
    mean, std = (
        torch.tensor(value, device=pixels.device)[:, None, None] for value in (COLOUR_MEAN, COLOUR_STD)
    )
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
