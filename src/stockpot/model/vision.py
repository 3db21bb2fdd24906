"""Images in: a patch encoder, and the pair of towers that puts images and texts into one space.

An image becomes a row of patches, each a token of the same :class:`Stack` that reads text; in front of them stands one
learned token that gathers the whole. Nothing here opens a file or knows how an image is resized.
Source: Dosovitskiy et al. 2020, arXiv:2010.11929 (ViT); Radford et al. 2021, arXiv:2103.00020 (CLIP).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.model.config import ModelConfig, StackConfig
from stockpot.model.norms import make_norm
from stockpot.model.stack import Stack
from stockpot.model.transformer import Transformer

__all__ = [
    "ImageConfig",
    "ImageEncoder",
    "ImageOutput",
    "TextTower",
    "TextTowerConfig",
    "TowersConfig",
    "TwoTowers",
]

Images = Float[Tensor, "batch channels height width"]
Vectors = Float[Tensor, "batch space"]


class ImageConfig(Settings):
    """What an image encoder is made of."""

    image_size: int = Field(224, ge=1, description="height and width of an image, pixels")
    patch_size: int = Field(16, ge=1, description="height and width of a patch, pixels")
    channels: int = Field(3, ge=1, description="colours of a pixel")
    patch_bias: bool = Field(True, description="the patches' projection has a bias")
    stack: StackConfig = Field(description="the layers; bidirectional, with learned positions")
    pool_norm: bool = Field(False, description="a norm of its own on the gathering token (CLIP)")
    pooler: bool = Field(False, description="a dense layer and tanh on the gathering token (ViT)")
    classes: int = Field(0, ge=0, description="classes to tell apart; 0 = none")
    projection: int = Field(0, ge=0, description="width of the space shared with texts; 0 = none")

    @model_validator(mode="after")
    def _fits(self) -> ImageConfig:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        stack = self.stack
        if stack.attends != "bidirectional" or stack.cross or stack.position != "learned":
            raise ValueError(
                "an image's stack is bidirectional, without cross-attention, with learned positions"
            )
        if stack.context != self.patches + 1:
            raise ValueError(
                f"{self.patches} patches and one token more need a context of {self.patches + 1}, not {stack.context}"
            )
        return self

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    def parameters(self) -> int:
        """Count all parameters without building the encoder."""
        dim = self.stack.dim
        patch = self.channels * self.patch_size**2 * dim + dim * self.patch_bias
        heads = self.stack.norm_parameters * self.pool_norm + dim * (dim + 1) * self.pooler
        heads += (dim + 1) * self.classes + dim * self.projection
        return patch + dim + self.stack.parameters() + heads


class ImageOutput(NamedTuple):
    """What an image encoder returns.

    Attributes:
        hidden: final states ``(batch, 1 + patches, dim)``, the gathering token first.
        pooled: the whole image ``(batch, dim)``.
        embedding: in the space shared with texts ``(batch, projection)``; without one, ``pooled``.
        scores: one a class ``(batch, classes)``; ``(batch, 0)`` without classes.
    """

    hidden: Tensor
    pooled: Tensor
    embedding: Tensor
    scores: Tensor


class ImageEncoder(nn.Module):
    """Patches through a stack of layers."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.stack.dim
        self.patches = nn.Conv2d(
            config.channels,
            dim,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.patch_bias,
        )
        self.first = nn.Parameter(torch.empty(dim))
        self.stack = Stack(config.stack)
        self.pool_norm = make_norm(config.stack) if config.pool_norm else None
        self.pooler = nn.Linear(dim, dim) if config.pooler else None
        self.classifier = nn.Linear(dim, config.classes) if config.classes else None
        self.projection = nn.Linear(dim, config.projection, bias=False) if config.projection else None
        _start(self, dim)
        nn.init.normal_(self.first, std=dim**-0.5)

    def forward(self, images: Images) -> ImageOutput:
        """Read images, normalised as the encoder was trained with.

        Raises:
            ValueError: if they have another size or number of channels.
        """
        config = self.config
        wanted = (config.channels, config.image_size, config.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise ValueError(f"images are {tuple(images.shape[1:])}; this encoder reads {wanted}")
        patches = (
            self.patches(images.to(self.first.dtype)).flatten(2).transpose(1, 2)
        )  # (batch, patches, dim)
        first = self.first.expand(len(images), 1, -1)
        hidden = self.stack(torch.cat((first, patches), dim=1))
        pooled = hidden[:, 0]
        scores = pooled[:, :0] if self.classifier is None else self.classifier(pooled)
        if self.pool_norm is not None:
            pooled = self.pool_norm(pooled)
        if self.pooler is not None:
            pooled = torch.tanh(self.pooler(pooled))
        embedding = pooled if self.projection is None else self.projection(pooled)
        return ImageOutput(hidden, pooled, embedding, scores)


class TextTowerConfig(Settings):
    """A text encoder beside an image encoder: a causal stack, read where the text ends."""

    text: ModelConfig = Field(description="the network; it makes no logits")
    end_id: int | None = Field(
        None, description="the id a text ends with; None = the largest id of each text"
    )
    projection: int = Field(0, ge=0, description="width of the space shared with images; 0 = none")

    def parameters(self) -> int:
        """Count all parameters without building the tower."""
        return self.text.parameters() + self.text.dim * self.projection


class TextTower(nn.Module):
    """A text as one vector."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.text = Transformer(config.text)
        self.projection = (
            nn.Linear(config.text.dim, config.projection, bias=False) if config.projection else None
        )
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=config.text.dim**-0.5)

    def forward(
        self, ids: Int[Tensor, "batch seq"], attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Vectors]:
        """Return the hidden states ``(batch, seq, dim)`` and one vector a text ``(batch, projection or dim)``.

        ``attention_mask`` is as :meth:`Transformer.forward` takes it. What stands behind the end of a text changes
        nothing, since the stack looks back only.
        """
        hidden = self.text(ids, attention_mask=attention_mask, last=0).hidden
        end = self.config.end_id
        place = ids.argmax(dim=-1) if end is None else (ids == end).int().argmax(dim=-1)  # the first of them
        pooled = hidden[torch.arange(len(ids), device=ids.device), place]
        return hidden, pooled if self.projection is None else self.projection(pooled)


class TowersConfig(Settings):
    """An image encoder and a text encoder that meet in one space."""

    image: ImageConfig = Field(description="the image encoder")
    text: TextTowerConfig = Field(description="the text encoder")

    @model_validator(mode="after")
    def _meets(self) -> TowersConfig:
        if not self.image.projection or self.image.projection != self.text.projection:
            raise ValueError(
                f"the towers meet in one space, not in widths {self.image.projection} and {self.text.projection}"
            )
        return self

    def parameters(self) -> int:
        """Count all parameters without building the model."""
        return self.image.parameters() + self.text.parameters() + 1


class TwoTowers(nn.Module):
    """Images and texts as vectors of length 1, compared by their product."""

    def __init__(self, config: TowersConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageEncoder(config.image)
        self.text = TextTower(config.text)
        self.scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))  # §2.5 of the paper

    def embed_images(self, images: Images) -> Vectors:
        """Return images as vectors of length 1."""
        return F.normalize(self.image(images).embedding, dim=-1)

    def embed_texts(self, ids: Int[Tensor, "batch seq"], attention_mask: Tensor | None = None) -> Vectors:
        """Return texts as vectors of length 1."""
        return F.normalize(self.text(ids, attention_mask)[1], dim=-1)

    def forward(
        self, images: Images, ids: Int[Tensor, "texts seq"], attention_mask: Tensor | None = None
    ) -> Float[Tensor, "images texts"]:
        """Score every image against every text."""
        scores = self.embed_images(images) @ self.embed_texts(ids, attention_mask).T
        return scores * self.scale.exp()


def _start(model: nn.Module, dim: int) -> None:
    """Give weights their first values; as in :mod:`stockpot.model.initial`, but every branch starts alive."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            nn.init.normal_(module.weight, std=inputs**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=dim**-0.5)
