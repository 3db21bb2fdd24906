"""Hidden states of every layer, computed once and kept in a file that is mapped into memory.

Decides how all kinds of model are read: one pass a batch under ``model.watch()``, the tokens of the text alone (none of its
frame), each layer normalised token by token and then unit by unit, so that layers compare and no outlying unit rules.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError, DataError
from stockpot.generate.inputs import batches_by_length, pad, reading_only
from stockpot.judge.probe_data import Passage

__all__ = ["Reader", "StackName", "States", "compute_states", "depth_of"]

StackName = Literal["encoder", "decoder"]
BATCH_TOKENS = 2048
Span = tuple[int, int]


@dataclass
class States:
    """What a model made of the passages.

    Attributes:
        values: ``(tokens, layers, dim)`` float16, zero mean and unit variance in each layer and unit.
        starts: row of each passage's first token, and the number of rows ``(passages + 1,)``.
        words: of each passage, the tokens ``[start, end)`` of its words, from its own first token; None: the passage is
            longer than the model's context and was left out.
        layers: which layers; 0 is the embeddings.
        left_out: passages longer than the context.
    """

    values: NDArray[np.float16]
    starts: NDArray[np.int64]
    words: list[tuple[Span | None, ...] | None]
    layers: tuple[int, ...]
    left_out: int


class Reader:
    """Reads texts with one stack of a model and gives the states of all its layers."""

    def __init__(self, bundle: Bundle, stack: StackName | None = None) -> None:
        config = bundle.model.config
        self.bundle = bundle
        self.stack: StackName = stack or ("decoder" if config.shape == "decoder" else "encoder")
        found = config.encoder if self.stack == "encoder" else config.decoder
        if found is None:
            raise ConfigError(f"This {config.shape} has no {self.stack}.", f"Leave out stack={self.stack!r}.")
        self.depth, self.dim, self.heads = found.layers, found.dim, found.heads
        self.context = found.context
        self.start = bundle.start_id if config.shape == "encoder_decoder" else None

    def frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that stand before and behind a text where this stack reads it."""
        first, last = self.bundle.frame
        if self.stack == "decoder" and self.start is not None:
            return [self.start], []
        return [*self.bundle.soft, *first], list(last)

    def read(self, rows: Sequence[Sequence[int]]) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor | None]:
        """Run framed rows of ids.

        Returns the states of every layer, embeddings first ``(batch, seq, dim)``, the attention of every layer
        ``(batch, heads, seq, seq)``, the ids, and which of them are real.
        """
        model = self.bundle.model
        ids, real = pad(rows, model.device)
        with reading_only(model), model.watch() as seen:
            if self.bundle.model.config.shape != "encoder_decoder":
                model(ids, attention_mask=real, last=0)
            elif self.stack == "encoder":
                model.encode(ids, real)
            else:  # the decoder writes the text that its encoder has read
                source = [[*self.bundle.frame[0], *row[1:], *self.bundle.frame[1]] for row in rows]
                read, read_real = pad(source, model.device)
                model(ids, source=read, source_mask=read_real, attention_mask=real, last=0)
        trace = seen.encoder if self.stack == "encoder" else seen.decoder
        return trace.hidden, trace.attention, ids, real


def depth_of(bundle: Bundle, stack: StackName | None = None) -> int:
    """Return the number of layers that would be probed, the embeddings not counted."""
    return Reader(bundle, stack).depth


def compute_states(
    bundle: Bundle,
    passages: Sequence[Passage],
    folder: Path,
    *,
    layers: Sequence[int],
    stack: StackName | None = None,
) -> States:
    """Read all passages once and keep what each layer says in ``folder/states.f16``.

    Args:
        bundle: an encoder, a decoder or an encoder-decoder.
        passages: texts with their words.
        folder: where the file goes; the caller removes it.
        layers: numbers of layers, 0 for the embeddings.
        stack: of an encoder-decoder: its encoder (the default) or its decoder.

    Raises:
        ConfigError: if the model has no such stack, or the disk has no room.
        DataError: if every passage is longer than the context.
    """
    reader = Reader(bundle, stack)
    before, after = reader.frame()
    coded: list[list[int] | None] = []
    words: list[tuple[Span | None, ...] | None] = []
    for passage in passages:
        ids, offsets = bundle.tokenizer.encode_with_offsets(passage.text)
        fits = 0 < len(ids) <= reader.context - len(before) - len(after)
        coded.append(ids if fits else None)
        words.append(_tokens_of_words(passage.words, offsets) if fits else None)
    lengths = np.array([0 if ids is None else len(ids) for ids in coded])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    if not starts[-1]:
        raise DataError(
            f"Every passage is longer than the model's context of {reader.context} tokens.",
            "Give shorter passages.",
        )
    values = _room(folder / "states.f16", (int(starts[-1]), len(layers), reader.dim))
    kept = [number for number, ids in enumerate(coded) if ids is not None]
    for batch in batches_by_length([int(lengths[number]) for number in kept], BATCH_TOKENS):
        numbers = [kept[index] for index in batch]
        rows = [[*before, *(coded[number] or ()), *after] for number in numbers]
        hidden = reader.read(rows)[0]
        stacked = torch.stack([hidden[layer] for layer in layers], dim=2).float()  # (batch, seq, layers, dim)
        stacked = torch.nn.functional.layer_norm(stacked, stacked.shape[-1:])
        for row, number in enumerate(numbers):
            at, size = len(before), int(lengths[number])
            values[starts[number] : starts[number + 1]] = stacked[row, at : at + size].half().cpu().numpy()
    _standardise(values)
    return States(values, starts, words, tuple(layers), len(passages) - len(kept))


def _tokens_of_words(words: Sequence[Span], offsets: Sequence[Span]) -> tuple[Span | None, ...]:
    """Find the tokens ``[start, end)`` that overlap each word; None for a word the tokenizer drops."""
    found: list[Span | None] = []
    low = 0
    for start, end in words:
        while low < len(offsets) and offsets[low][1] <= start:
            low += 1
        high = low
        while high < len(offsets) and offsets[high][0] < end:
            high += 1
        found.append((low, high) if high > low else None)
    return tuple(found)


def _room(path: Path, shape: tuple[int, int, int]) -> NDArray[np.float16]:
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise ConfigError(
            f"The states need {needed / 2**30:.1f} GiB, and {path.parent} has {free / 2**30:.1f} GiB left.",
            "Probe fewer layers or passages.",
        )
    return np.memmap(path, dtype=np.float16, mode="w+", shape=shape)


def _standardise(values: NDArray[np.float16], rows: int = 2048) -> None:
    """Bring each unit of each layer to zero mean and unit variance, in place.

    No label is looked at; means are over all passages.
    """
    total = np.zeros(values.shape[1:], np.float64)
    square = np.zeros_like(total)
    chunks = [slice(at, at + rows) for at in range(0, values.shape[0], rows)]
    for chunk in chunks:
        part = values[chunk].astype(np.float32)
        total += part.sum(0, dtype=np.float64)
        square += np.square(part).sum(0, dtype=np.float64)
    mean = total / values.shape[0]
    spread = np.sqrt(np.maximum(square / values.shape[0] - mean**2, 1e-8))
    low, high = mean.astype(np.float32), spread.astype(np.float32)
    for chunk in chunks:
        values[chunk] = np.clip((values[chunk].astype(np.float32) - low) / high, -100, 100)
