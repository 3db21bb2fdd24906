"""Learning to speak of pictures: grids of features, batches of captions, and the losses.

Labels are aligned here, and only a caption's own tokens are labels: no picture and no prompt is ever learned. What
a frozen tower sees is computed once and kept on disk, mapped into memory.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stockpot.bundle import END_OF_TURN, Bundle
from stockpot.data.batch import IGNORED, Batch, ImageBatch
from stockpot.data.captions import Caption
from stockpot.errors import DataError
from stockpot.image import Image
from stockpot.model.sight import ImageReader, sight_of
from stockpot.text.chat import Message
from stockpot.train.losses import Loss, next_token_loss

__all__ = [
    "CaptionBatches",
    "Pair",
    "PairBatch",
    "PairBatches",
    "Row",
    "caption_rows",
    "contrastive_loss",
    "image_loss",
    "look_at_all",
]

AT_ONCE = 64  # pictures that go through a tower together
Grids = NDArray[np.float16]


def look_at_all(reader: ImageReader, pictures: Sequence[Image], file: Path) -> tuple[Grids, dict[int, str]]:
    """Compute every picture's grid of features, once, into a file that is mapped into memory.

    Returns the grids ``(images, grid, width)`` float16, and what is wrong with those that could not be read (zeros).
    """
    shape = (len(pictures), reader.config.grid, reader.config.image.stack.dim)
    grids: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float16, shape=shape
    )
    size, bad = reader.config.image.image_size, dict[int, str]()
    was_training = reader.training
    reader.eval()
    for start in range(0, len(pictures), AT_ONCE):
        pixels = np.full((min(AT_ONCE, len(pictures) - start), size, size, 3), 255, dtype=np.uint8)
        for number in range(len(pixels)):
            try:
                pixels[number] = pictures[start + number].square(size)
            except DataError as error:
                bad[start + number] = error.what
        with torch.inference_mode():
            seen = reader.features(torch.from_numpy(pixels))
        grids[start : start + len(pixels)] = seen.float().cpu().numpy()
    for number in bad:
        grids[number] = 0
    grids.flush()
    reader.train(was_training)
    return grids, bad


# --- captions ---


@dataclass(frozen=True)
class Row:
    """One text about one picture, encoded; the picture is ids ``vocab … vocab + grid - 1``."""

    picture: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def caption_rows(
    bundle: Bundle, captions: Sequence[Caption], grid: int, *, chat: bool = False
) -> tuple[list[Row], int]:
    """Encode captions: the picture, the prompt, then the text, which alone is learned, up to the token that ends it.

    Args:
        bundle: encodes; its model need not see yet.
        captions: what to learn.
        grid: vectors of a picture.
        chat: put picture and prompt as a user's message, and the text as the assistant's answer.

    Returns:
        the rows, and how many were left out because they exceed the context.
    """
    vocab, tokenizer = bundle.model.config.vocab_size, bundle.tokenizer
    here = tuple(range(vocab, vocab + grid))
    blank = Image(np.full((1, 1, 3), 255, dtype=np.uint8))
    end = tokenizer.token_to_id(END_OF_TURN) if chat else tokenizer.eos_id
    ends = () if (end := tokenizer.eos_id if end is None else end) is None else (end,)
    openings: dict[str, tuple[int, ...]] = {}
    rows, overlong = [], 0
    for one in captions:
        if one.prompt not in openings:
            if chat:
                assert bundle.template is not None  # the stage checks
                asked = [Message("user", [blank, one.prompt])]
                found = bundle.template.encode(
                    asked, tokenizer, add_generation_prompt=True, masked=False, look=lambda _: here
                )
                openings[one.prompt] = tuple(int(id) for id in found.ids)
            else:
                openings[one.prompt] = (*bundle.frame[0], *here, *tokenizer.encode(one.prompt))
        text = one.text if chat else f" {one.text.strip()}"
        row = Row(one.picture, openings[one.prompt], (*tokenizer.encode(text), *ends))
        if len(row.before) + len(row.after) > bundle.context:
            overlong += 1
        else:
            rows.append(row)
    return rows, overlong


class CaptionBatches:
    """Batches of captions without end, shuffled anew in each pass; a place in it can be kept and taken up again.

    Args:
        rows: encoded captions.
        grids: features of every picture.
        vocab: ids from here on mean pictures.
        size: captions of a batch.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[Row], grids: Grids, *, vocab: int, size: int, seed: int = 0) -> None:
        self._rows, self._grids, self._vocab, self._size, self._seed = rows, grids, vocab, size, seed
        self._given = 0
        self.shown = 0  # pictures in the batches given, each batch's own ones once

    def __iter__(self) -> Iterator[ImageBatch]:
        while True:
            each = -(-len(self._rows) // self._size)
            turn, place = divmod(self._given, each)
            order = list(range(len(self._rows)))
            random.Random(f"{self._seed}:{turn}").shuffle(order)
            self._given += 1
            yield self.batch([self._rows[i] for i in order[place * self._size : (place + 1) * self._size]])

    def once(self) -> list[ImageBatch]:
        """Make batches of all rows, in their order."""
        return [self.batch(self._rows[i : i + self._size]) for i in range(0, len(self._rows), self._size)]

    def batch(self, rows: Sequence[Row]) -> ImageBatch:
        """Put rows side by side, padded on the right, each picture once."""
        numbers = {picture: at for at, picture in enumerate(dict.fromkeys(row.picture for row in rows))}
        self.shown += len(numbers)
        grid = self._grids.shape[1]
        longest = max(len(row.before) + len(row.after) for row in rows) - 1
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        labels = torch.full((len(rows), longest), IGNORED)
        real = torch.zeros(len(rows), longest, dtype=torch.bool)
        for at, row in enumerate(rows):
            shift = numbers[row.picture] * grid
            before = [id + shift if id >= self._vocab else id for id in row.before]
            whole = [*before, *row.after][:-1]  # the last token is only a target
            ids[at, : len(whole)] = torch.tensor(whole)
            labels[at, len(before) - 1 : len(whole)] = torch.tensor(row.after)
            real[at, : len(whole)] = True
        features = torch.from_numpy(self._grids[list(numbers)].astype(np.float32))
        return ImageBatch(Batch(ids, labels, attention_mask=None if bool(real.all()) else real), features)

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._given = int(state["given"])


def image_loss(
    model: nn.Module, batch: ImageBatch, *, change: Callable[[Tensor], Tensor] | None = None
) -> Loss:
    """Predict the captions of pictures; metrics as for `next_token_loss`.

    Args:
        model: has eyes.
        batch: texts and features.
        change: of the features, for the swap test: what is said of other pictures, or of none?
    """
    sight = sight_of(model)
    assert sight is not None
    with sight.showing(batch.features if change is None else change(batch.features)):
        return next_token_loss(model, batch.texts)  # type: ignore[arg-type]


# --- two towers ---


@dataclass(frozen=True)
class Pair:
    """A picture and a text about it, encoded; equal texts have equal ids."""

    picture: int
    ids: tuple[int, ...]


@dataclass
class PairBatch:
    """Pictures ``(batch, height, width, 3)`` uint8 with their texts ``(batch, seq)``, padded with 0."""

    pixels: Tensor
    ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Pictures, of which a step takes so many."""
        return len(self.pixels)

    def to(self, device: torch.device | str) -> PairBatch:
        """Return a copy on ``device``."""
        return PairBatch(self.pixels.to(device), self.ids.to(device), self.mask.to(device))


class PairBatches:
    """Batches of pictures and texts without end, shuffled anew in each pass."""

    def __init__(
        self, pairs: Sequence[Pair], pixels: Mapping[int, NDArray[np.uint8]], size: int, seed: int = 0
    ) -> None:
        self._pairs, self._pixels, self._size, self._seed = pairs, pixels, size, seed

    def __iter__(self) -> Iterator[PairBatch]:
        turn = 0
        while True:
            order = list(self._pairs)
            random.Random(f"{self._seed}:{turn}").shuffle(order)
            for start in range(0, max(1, len(order) - self._size + 1), self._size):
                yield self._batch(order[start : start + self._size])
            turn += 1

    def _batch(self, pairs: Sequence[Pair]) -> PairBatch:
        longest = max(len(pair.ids) for pair in pairs)
        ids = torch.tensor([[*pair.ids, *[0] * (longest - len(pair.ids))] for pair in pairs])
        mask = torch.arange(longest) < torch.tensor([len(pair.ids) for pair in pairs])[:, None]
        pixels = np.stack([self._pixels[pair.picture] for pair in pairs])
        return PairBatch(torch.from_numpy(pixels), ids, mask)


def contrastive_loss(scores: Tensor, ids: Tensor) -> Loss:
    """Tell each picture's text from the others', and each text's picture; equal texts are all right.

    Args:
        scores: ``(batch, batch)``, pictures against texts.
        ids: the texts ``(batch, seq)``.

    Source: Radford et al. 2021, arXiv:2103.00020, figure 3.
    """
    same = (ids[:, None] == ids[None, :]).all(-1)
    wanted = same.float() / same.sum(1, keepdim=True)
    scores = scores.float()
    total = (
        F.cross_entropy(scores, wanted, reduction="sum") + F.cross_entropy(scores.T, wanted, reduction="sum")
    ) / 2
    correct = same[torch.arange(len(scores)), scores.argmax(1)].sum()
    return Loss(
        total, len(scores), {"loss": (total.detach(), len(scores)), "accuracy": (correct, len(scores))}
    )
