"""From prompts with answers to training batches: what a model reads, and which tokens count.

Only the answer's tokens are labels, and labels are aligned here: ``labels[b, t]`` is the target of ``logits[b, t]``. Nothing
here steps.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from stockpot.bundle import Bundle
from stockpot.data.batch import IGNORED, Batch
from stockpot.errors import GenerationError
from stockpot.generate.inputs import completion_ids, prompt_ids
from stockpot.generate.request import Prompt
from stockpot.prompt.items import Item
from stockpot.prompt.shots import Paper

__all__ = ["AnswerBatches", "Pair", "answer_batch", "answer_batches", "answer_pairs"]

Pair = tuple[Prompt, str]
SORTED_BATCHES = 16  # among whose pairs those of like lengths are put together


def answer_pairs(paper: Paper, items: Sequence[Item]) -> list[Pair]:
    """Put items, without examples, into the form that is trained on."""
    prompts = paper.prompts(items, [[] for _ in items])
    return [(prompt, paper.answer(item.answer)) for prompt, item in zip(prompts, items, strict=True)]


def answer_batch(bundle: Bundle, pairs: Sequence[Pair]) -> Batch:
    """Encode prompts with their answers side by side, padded on the right; labels on the answers only.

    Raises:
        GenerationError: if a pair does not fit the context.
    """
    return _stacked(_encoded(bundle, pairs))


def _encoded(bundle: Bundle, pairs: Sequence[Pair]) -> list[tuple[list[int], list[int]]]:
    """Give the ids and labels of each pair."""
    rows = []
    for number, (prompt, answer) in enumerate(pairs):
        before, after = prompt_ids(bundle, prompt), completion_ids(bundle, answer)
        whole = [*before, *after]
        if len(whole) > bundle.context:
            raise GenerationError(
                f"Pair {number} has {len(whole)} tokens; this model takes {bundle.context}.",
                "Leave long items out.",
            )
        rows.append((whole[:-1], [*[IGNORED] * (len(before) - 1), *after]))  # the last token is only a target
    return rows


def _stacked(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row, _ in rows])
    wanted = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for _, row in rows])
    real = torch.arange(longest) < torch.tensor([len(row) for row, _ in rows])[:, None]
    return Batch(ids, wanted, attention_mask=None if bool(real.all()) else real)


def answer_batches(bundle: Bundle, pairs: Sequence[Pair], size: int) -> list[Batch]:
    """Encode pairs into batches of like lengths, for measuring; errors as in `answer_batch`."""
    rows = sorted(_encoded(bundle, pairs), key=lambda row: len(row[0]))
    return [_stacked(rows[i : i + size]) for i in range(0, len(rows), size)]


class AnswerBatches:
    """Batches of pairs without end, shuffled anew in each pass; a place in it can be kept and taken up again.

    Pairs of like lengths share a batch, so that hardly any padding is computed.

    Args:
        bundle: encodes them.
        pairs: prompts and answers.
        size: pairs of a batch.
        seed: of the order.

    Raises:
        GenerationError: if a pair does not fit the context.
    """

    def __init__(self, bundle: Bundle, pairs: Sequence[Pair], size: int, seed: int = 0) -> None:
        self._rows, self._size, self._seed = _encoded(bundle, pairs), size, seed
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:
        dealt: tuple[int, list[list[int]]] = (-1, [])
        while True:
            turn, place = divmod(self._given, -(-len(self._rows) // self._size))
            if dealt[0] != turn:
                dealt = turn, self._deal(turn)
            self._given += 1
            yield _stacked([self._rows[index] for index in dealt[1][place]])

    def _deal(self, turn: int) -> list[list[int]]:
        """Deal a pass: shuffle, sort so many batches' worth at a time by length, cut, and shuffle the batches."""
        dice = random.Random(f"{self._seed}:{turn}")
        order = dice.sample(range(len(self._rows)), len(self._rows))
        near = self._size * SORTED_BATCHES
        for start in range(0, len(order), near):
            order[start : start + near] = sorted(
                order[start : start + near], key=lambda index: len(self._rows[index][0])
            )
        dealt = [order[start : start + self._size] for start in range(0, len(order), self._size)]
        dice.shuffle(dealt)
        return dealt

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._given = int(state["given"])
