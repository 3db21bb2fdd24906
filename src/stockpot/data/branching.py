"""Several answers to one text in one row, so that the text is computed once.

Decides how texts and the answers to them are laid out: the text, then each answer as a branch that sees the text and
itself. An answer begins with the last token of the text, which predicts its first token, so that every answer has all of
its labels to itself. It knows neither models nor what the answers are compared for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stockpot.data.batch import IGNORED, Batch
from stockpot.data.pack import best_fit

__all__ = ["Answer", "Span", "Tree", "branched", "tree_of"]

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What follows a text: ids ``(seq,)``, the last id of the text first, and which of them count ``(seq,)``."""

    ids: Ids
    counted: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """A text without its last id ``(seq,)``, and the answers to it."""

    trunk: Ids
    answers: tuple[Answer, ...]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return len(self.trunk) + sum(len(answer.ids) for answer in self.answers)


class Span(NamedTuple):
    """Where an answer stands in a batch: columns ``start … stop - 1`` of a row."""

    row: int
    start: int
    stop: int


def tree_of(prompt: Ids, answers: Sequence[Ids], counted: Sequence[Mask] | None = None) -> Tree:
    """Put answers behind a prompt.

    Args:
        prompt: at least one id.
        answers: what follows it.
        counted: which ids of each answer count; None: all.
    """
    last = prompt[-1:]
    masks = [np.ones(len(answer), np.bool_) for answer in answers] if counted is None else counted
    return Tree(
        prompt[:-1],
        tuple(
            Answer(
                np.concatenate((last, ids)).astype(np.int32),
                np.concatenate((np.zeros(len(last), np.bool_), mask)),
            )
            for ids, mask in zip(answers, masks, strict=True)
        ),
    )


def branched(trees: Sequence[Tree], pad_id: int = 0, *, alone: bool = False) -> tuple[Batch, list[Span]]:
    """Lay trees out in rows as long as the longest of them, several in a row where they fit.

    Args:
        trees: texts with their answers.
        pad_id: fills what is left of a row.
        alone: one tree a row, in the order given.

    Returns:
        the batch, and where each answer stands, in the order of the trees.
    """
    lengths = [tree.tokens for tree in trees]
    width = max(lengths)
    rows = [[index] for index in range(len(trees))] if alone else best_fit(lengths, width)
    first = np.cumsum([0, *(len(tree.answers) for tree in trees)])
    shape = (len(rows), width)
    ids, labels = np.full(shape, pad_id, np.int64), np.full(shape, IGNORED, np.int64)
    documents, branches = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
    numbers = np.full(shape, -1, np.int64)
    spans: list[Span] = [Span(0, 0, 0)] * int(first[-1])
    for row, indices in enumerate(rows):
        column = 0
        for document, index in enumerate(sorted(indices), 1):
            tree = trees[index]
            documents[row, column : column + tree.tokens] = document
            ids[row, column : column + len(tree.trunk)] = tree.trunk
            column += len(tree.trunk)
            for branch, answer in enumerate(tree.answers, 1):
                stop = column + len(answer.ids)
                ids[row, column:stop] = answer.ids
                labels[row, column : stop - 1] = np.where(answer.counted[1:], answer.ids[1:], IGNORED)
                branches[row, column:stop] = branch
                number = int(first[index]) + branch - 1
                numbers[row, column:stop] = number
                spans[number] = Span(row, column, stop)
                column = stop
    tensors = (torch.from_numpy(array) for array in (ids, labels, documents, branches, numbers))
    ids_, labels_, documents_, branches_, numbers_ = tensors
    batch = Batch(ids_, labels_, attention_mask=documents_, branches=branches_, answers=numbers_)
    return batch, spans
