"""Pictures in front of a language model: a tower's grid of features, projected to the width of its tokens.

A picture's vectors stand behind the vocabulary, as a soft prompt's do: ids ``vocab, vocab + 1, …`` mean them, so that whatever
takes ids (cache, batches, beams, scores) takes pictures anywhere in a text, and no logit belongs to them. The model
computes what ``prefix=vectors`` computes. Equal pictures get equal ids, so that a beginning read before is found again.
Nothing here opens a file.
Source: Tsimpoukelli et al. 2021, arXiv:2106.13884 (Frozen), §3; Eichenberg et al. 2021, arXiv:2112.05253 (MAGMA), §3.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Literal
from weakref import finalize

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.errors import GenerationError
from stockpot.model.linear import Linear
from stockpot.model.soft import SoftEmbedding
from stockpot.model.transformer import Transformer
from stockpot.model.vision import ImageConfig, ImageEncoder

__all__ = [
    "ImageEmbedding",
    "ImageReader",
    "PictureIds",
    "ReaderConfig",
    "attach_sight",
    "detach_sight",
    "sight_of",
]

MOST_BYTES = 1 << 30  # of pictures' vectors that are kept
_LOOKING = Lock()  # a server reads prompts in one thread and writes in another


class ReaderConfig(Settings):
    """How a picture becomes vectors of a language model's width."""

    image: ImageConfig = Field(description="the tower")
    dim: int = Field(ge=1, description="width of the language model")
    layers: Literal[1, 2] = Field(1, description="of the projector: a matrix, or two with GELU between")
    mean: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="of the colours, subtracted")
    std: tuple[float, float, float] = Field((0.5, 0.5, 0.5), description="of the colours, divided by")

    @property
    def grid(self) -> int:
        """Vectors of a picture: one a patch."""
        return self.image.patches


class ImageReader(nn.Module):
    """A tower that sees and a projector that says it in vectors of a language model.

    Args:
        config: sizes.
        tower: the image encoder.
        std: what a projected number spreads by at first, like the model's token vectors.
    """

    def __init__(self, config: ReaderConfig, tower: ImageEncoder, *, std: float = 0.02) -> None:
        super().__init__()
        self.config = config
        self.tower = tower
        width, dim = config.image.stack.dim, config.dim
        self.norm = nn.LayerNorm(width)
        self.middle = Linear(width, dim) if config.layers == 2 else None
        self.out = Linear(width if self.middle is None else dim, dim)
        for layer in (self.middle, self.out):
            if layer is not None:
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.out.weight.mul_(std)

    def features(
        self, pixels: UInt8[Tensor, "images height width colours"]
    ) -> Float[Tensor, "images grid features"]:
        """Look at pictures through the tower; the gathering token is left out."""
        place = self.out.weight.device
        mean, std = (
            torch.tensor(value, device=place)[:, None, None] for value in (self.config.mean, self.config.std)
        )
        normal = (pixels.to(place).permute(0, 3, 1, 2).float() / 255 - mean) / std
        hidden: Tensor = self.tower(normal).hidden
        return hidden[:, 1:]

    def project(self, features: Float[Tensor, "images grid features"]) -> Float[Tensor, "images grid dim"]:
        """Bring features to the model's width."""
        x = self.norm(features)
        if self.middle is not None:
            x = F.gelu(self.middle(x))
        out: Tensor = self.out(x)
        return out


class PictureIds(list[int]):
    """Ids of which some mean pictures. As long as the list lives, no other picture takes their places."""

    __slots__ = ("__weakref__",)


class ImageEmbedding(nn.Embedding):
    """An embedding with pictures behind its last id; its weight and that weight's name are kept.

    Args:
        embedding: the model's own.
        reader: makes a picture's vectors.
        scale: what the model multiplies embeddings by.
    """

    _kept: Tensor | None  # (room · grid, dim), a ring of pictures seen
    _numbers: dict[bytes, int]  # of the pictures in it, by their keys
    _next: int
    _in_use: Counter[int]  # a picture's number → lists that hold it
    _released: deque[set[int]]  # what lists held that are gone

    def __init__(self, embedding: nn.Embedding, reader: ImageReader, scale: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight = embedding.weight
        self.reader = reader
        self.scale = scale
        self._shown: Tensor | None = None  # (positions, dim), of the pictures of a training batch
        self.forget()

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Look up token vectors and, for ids behind the vocabulary, pictures' vectors."""
        known = self.num_embeddings
        vectors = self._kept if self._shown is None else self._shown
        if vectors is None:
            return F.embedding(ids, self.weight)
        found = F.embedding(ids.clamp(max=known - 1), self.weight)
        places = (ids - known).clamp(min=0) % len(vectors)
        seen = F.embedding(places, vectors) / self.scale
        return torch.where((ids >= known)[..., None], seen.to(found.dtype), found)

    @contextmanager
    def showing(self, features: Float[Tensor, "images grid features"]) -> Iterator[None]:
        """Let picture ``i`` be ids ``vocab + i · grid …`` for the length of a block, with gradients to the projector."""
        self._shown = self.reader.project(features).flatten(0, 1)
        try:
            yield
        finally:
            self._shown = None

    @torch.no_grad()
    def look(self, key: bytes, pixels: Callable[[], Tensor]) -> PictureIds:
        """Give the ids that mean a picture; it is looked at once, while it is in use or among the last that were seen.

        Args:
            key: tells pictures apart.
            pixels: opens it: ``(height, width, 3)`` uint8.

        Raises:
            GenerationError: if all the pictures that there is room for are in use.
        """
        grid = self.reader.config.grid
        with _LOOKING:
            if key not in self._numbers:
                self._see(key, pixels()[None])
            first = self.num_embeddings + self._numbers[key] * grid
            return self._hold(range(first, first + grid))

    def hold(self, ids: Iterable[int]) -> PictureIds:
        """Keep the pictures among ids for as long as the list that is returned lives.

        Raises:
            GenerationError: if one is forgotten already.
        """
        with _LOOKING:
            return self._hold(ids)

    def _hold(self, ids: Iterable[int]) -> PictureIds:
        held, known, grid = PictureIds(ids), self.num_embeddings, self.reader.config.grid
        numbers = {(id - known) // grid for id in held if id >= known}
        self._let_go()
        if not numbers:
            return held
        if not numbers <= set(self._numbers.values()):
            raise GenerationError(
                "A picture of the prompt is forgotten.", "Give the picture again, not its ids."
            )
        self._in_use.update(numbers)
        # A list may go in any thread, in the midst of a look too; it is counted off later.
        finalize(held, self._released.append, numbers).atexit = False
        return held

    def _let_go(self) -> None:
        """Count off what lists held that are gone."""
        while self._released:
            self._in_use.subtract(self._released.popleft())
            self._in_use = +self._in_use

    def _free(self) -> int:
        """Choose the next picture's number, such that the place it takes is of no picture in use."""
        assert self._kept is not None
        room = len(self._kept) // self.reader.config.grid
        self._let_go()
        taken = {number % room for number in self._in_use}
        for number in range(self._next, self._next + room):
            if number % room not in taken:
                return number
        raise GenerationError(
            f"{room:,} pictures are in use at once; there is room for no more.", "Ask about fewer at a time."
        )

    def _see(self, key: bytes, pixels: Tensor) -> None:
        """Keep a new picture's vectors; the one that stood in their place, which nobody uses, is forgotten."""
        self._reserve()
        number = self._free()
        assert self._kept is not None
        grid, room = self.reader.config.grid, len(self._kept) // self.reader.config.grid
        was_training = self.reader.training
        self.reader.eval()
        vectors = self.reader.project(self.reader.features(pixels))[0]
        self.reader.train(was_training)
        at = number % room * grid
        self._kept[at : at + grid] = vectors.to(self._kept)
        self._numbers = {one: old for one, old in self._numbers.items() if old % room != number % room}
        self._numbers[key] = number
        self._next = number + 1

    @property
    def known_ids(self) -> int:
        """How many ids mean something: the vocabulary, and the pictures seen."""
        return self.num_embeddings + self._next * self.reader.config.grid

    def forget(self) -> None:
        """Drop every picture seen; their ids mean nothing any more. Call it when the projector has changed."""
        self._kept, self._numbers, self._next = None, {}, 0
        self._in_use, self._released = Counter(), deque()

    def plain(self) -> nn.Embedding:
        """Give the embedding without pictures."""
        with torch.device("meta"):
            embedding = nn.Embedding(self.num_embeddings, self.embedding_dim)
        embedding.weight = self.weight
        return embedding

    def _reserve(self) -> None:
        """Make room for one picture more, up to a bound; from there on one that is not in use makes room."""
        each = self.reader.config.grid * self.embedding_dim
        most = max(16, MOST_BYTES // (4 * each))
        room = 0 if self._kept is None else len(self._kept) // self.reader.config.grid
        if self._next < room or room >= most:
            return
        size = min(most, max(16, 2 * room)) * self.reader.config.grid
        kept = torch.zeros(size, self.embedding_dim, device=self.weight.device)
        if self._kept is not None:
            kept[: len(self._kept)] = self._kept
        self._kept = kept


def attach_sight(model: Transformer, reader: ImageReader) -> None:
    """Give a model eyes, in place: ids behind its vocabulary may mean pictures. Nothing is frozen by it.

    Raises:
        ValueError: if it has eyes or a soft prompt already, or the widths differ.
    """
    if isinstance(model.embed, ImageEmbedding | SoftEmbedding):
        raise ValueError("the model has eyes or a soft prompt already")
    if reader.config.dim != model.config.dim:
        raise ValueError(f"vectors of {reader.config.dim} do not fit a model of width {model.config.dim}")
    reader.to(model.device)
    model.embed = ImageEmbedding(model.embed, reader, model.config.embedding_scale or 1.0)


def detach_sight(model: Transformer) -> None:
    """Take the eyes off, in place."""
    if isinstance(model.embed, ImageEmbedding):
        model.embed = model.embed.plain()


def sight_of(model: nn.Module) -> ImageEmbedding | None:
    """Give a model's eyes; None if it is blind."""
    embed = getattr(model, "embed", None)
    return embed if isinstance(embed, ImageEmbedding) else None
