"""What an objective is, and what objectives share.

An objective is a function from `Rows` to a `Batch`, with the room it leaves for documents. Here are its type,
the shape of two-stack batches and the special tokens it asks for; the objectives themselves are in ``corrupt``
and ``spans``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.data.batch import IGNORED, Batch
from stockpot.data.pack import Rows
from stockpot.errors import TokenizerError

if TYPE_CHECKING:
    from stockpot.text.tokenizer import Tokenizer

__all__ = [
    "Objective",
    "Padded",
    "bare",
    "choose",
    "pad_of",
    "padded",
    "sequence_to_sequence",
    "special_of",
    "start_of",
    "tensor",
]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Objective:
    """How batches are made.

    Args:
        name: one word, for messages and saved states.
        make: turns rows into a batch.
        pad_id: fills what is left of a row.
        room: how many tokens of a document fit a row, given the context.
        alone: each row must be one piece of one document.
    """

    name: str
    make: Callable[[Rows], Batch]
    pad_id: int = 0
    room: Callable[[int], int] = lambda context: context
    alone: bool = False


Padded = tuple[Ints, Mask]
"""Rows of different length in one array, and which of its places are real; both ``(rows, longest)``."""


def sequence_to_sequence(
    source: Padded, target: Padded, start: int, pad_id: int, labels: Ints | None = None
) -> Batch:
    """Make a batch for an encoder and a decoder.

    The decoder reads ``start``, then the target one step behind its labels: the target itself, or ``labels``
    of its shape where not all of it counts.
    """
    written, real = target
    ids = np.full_like(written, pad_id)
    ids[:, 0] = start
    ids[:, 1:] = np.where(real[:, 1:], written[:, :-1], pad_id)
    return Batch(
        ids=tensor(ids),
        labels=tensor(np.where(real, written if labels is None else labels, IGNORED)),
        attention_mask=torch.from_numpy(real),
        source=tensor(np.where(source[1], source[0], pad_id)),
        source_mask=torch.from_numpy(source[1]),
    )


def padded(rows: Sequence[Ints]) -> Padded:
    """Put rows into one array, with 0 after the shorter ones."""
    lengths = np.array([len(row) for row in rows])
    real = np.arange(max(1, int(lengths.max())))[None, :] < lengths[:, None]
    out = np.zeros(real.shape, np.int64)
    out[real] = np.concatenate(rows)
    return out, real


def choose(uniform: NDArray[np.float64], may: Mask, wanted: Ints) -> Mask:
    """Choose ``wanted[r]`` places of row r among those that ``may`` be chosen, by their random numbers.

    Shapes: uniform (in [0, 1)) and may ``(rows, seq)``, wanted ``(rows,)``, not more than there are.
    """
    keys = np.where(may, uniform, 2.0)
    limit = np.take_along_axis(np.sort(keys, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
    return may & (keys <= limit) & (wanted > 0)[:, None]


def bare(ids: Ints, tokenizer: Tokenizer) -> Ints:
    """Leave out the tokens that begin and end a document."""
    first = len(ids) > 0 and ids[0] == tokenizer.bos_id
    last = len(ids) > first and ids[-1] == tokenizer.eos_id
    return ids[int(first) : len(ids) - int(last)]


def tensor(array: Ints) -> Tensor:
    """Wrap an array, without a copy."""
    return torch.from_numpy(array)


def pad_of(tokenizer: Tokenizer | None) -> int:
    """Give the id that fills rows: padding, else the end token, else 0."""
    if tokenizer is None:
        return 0
    return next((i for i in (tokenizer.pad_id, tokenizer.eos_id) if i is not None), 0)


def start_of(tokenizer: Tokenizer) -> int:
    """Choose what a decoder reads first: the beginning token, or padding as T5 does."""
    found = next((i for i in (tokenizer.bos_id, tokenizer.pad_id) if i is not None), None)
    return special_of(tokenizer, "bos") if found is None else found


def special_of(tokenizer: Tokenizer, role: str) -> int:
    """Give the id of a special token.

    Raises:
        TokenizerError: if the tokenizer has none for this role.
    """
    found: int | None = getattr(tokenizer, f"{role}_id")
    if found is None:
        raise TokenizerError(
            f"This objective needs the special token {role}, and the tokenizer has none.",
            f'Train it with special_tokens that include "<|{role}|>".',
        )
    return found
