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

__all__ = ["AnswerBatches", "Pair", "answer_batch", "answer_pairs"]

Pair = tuple[Prompt, str]


def answer_pairs(paper: Paper, items: Sequence[Item]) -> list[Pair]:
    """Put items, without examples, into the form that is trained on."""
    prompts = paper.prompts(items, [[] for _ in items])
    return [(prompt, paper.answer(item.answer)) for prompt, item in zip(prompts, items, strict=True)]


def answer_batch(bundle: Bundle, pairs: Sequence[Pair]) -> Batch:
    """Encode prompts with their answers side by side, padded on the right; labels on the answers only.

    Raises:
        GenerationError: if a pair does not fit the context.
    """
    rows, labels = [], []
    for number, (prompt, answer) in enumerate(pairs):
        before, after = prompt_ids(bundle, prompt), completion_ids(bundle, answer)
        whole = [*before, *after]
        if len(whole) > bundle.context:
            raise GenerationError(
                f"Pair {number} has {len(whole)} tokens; this model takes {bundle.context}.",
                "Leave long items out.",
            )
        rows.append(whole[:-1])  # the last token is only a target
        labels.append([*[IGNORED] * (len(before) - 1), *after])
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    wanted = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in labels])
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return Batch(ids, wanted, attention_mask=None if bool(real.all()) else real)


class AnswerBatches:
    """Batches of pairs without end, shuffled anew in each pass; a place in it can be kept and taken up again.

    Args:
        bundle: encodes them.
        pairs: prompts and answers.
        size: pairs of a batch.
        seed: of the order.
    """

    def __init__(self, bundle: Bundle, pairs: Sequence[Pair], size: int, seed: int = 0) -> None:
        self._bundle, self._pairs, self._size, self._seed = bundle, pairs, size, seed
        self._given = 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            each = -(-len(self._pairs) // self._size)
            turn, place = divmod(self._given, each)
            order = list(range(len(self._pairs)))
            random.Random(f"{self._seed}:{turn}").shuffle(order)
            chosen = order[place * self._size : (place + 1) * self._size]
            self._given += 1
            yield answer_batch(self._bundle, [self._pairs[index] for index in chosen])

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self._given = int(state["given"])
