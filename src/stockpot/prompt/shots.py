"""Examples before the question: which, how many, in what order, and with which labels.

`Shots` says how they are chosen, `choose` chooses them, `Paper` puts them and the question into one prompt. Where a prompt
does not fit the model, examples are left out from the front, and the count is kept; the question is never cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import Field
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.errors import ConfigError, GenerationError
from stockpot.generate.request import Prompt
from stockpot.prompt.items import Item, Pool
from stockpot.prompt.wordings import Asking
from stockpot.text.chat import Message

__all__ = ["Labels", "Paper", "Shots", "Shown", "choose", "shown_answers"]

Labels: TypeAlias = Literal["gold", "random", "flipped", "none"]
Embed: TypeAlias = Callable[[Sequence[str]], Tensor]
SEPARATOR = "\n\n"
MOST_COMPARED = 1_000  # examples that are embedded to find the nearest


class Shots(Settings):
    """How examples are chosen."""

    k: int = Field(0, ge=0, description="how many examples stand before the question")
    select: Literal["balanced", "random", "similar"] = Field(
        "balanced",
        description="balanced: labels take turns · random · similar: nearest to the question, of 1,000",
    )
    labels: Labels = Field(
        "gold", description="shown with the examples: gold · random · flipped (always wrong) · none"
    )
    order: Literal["drawn", "similar-last"] = Field(
        "drawn", description="drawn: by the seed · similar-last: nearest to the question at the end"
    )
    seed: int = Field(0, ge=0, description="decides which examples and their order")


@dataclass(frozen=True)
class Shown:
    """An example with the answer that is shown for it; None: no answer is shown."""

    item: Item
    answer: str | None


def choose(
    pool: Pool, shots: Shots, questions: Sequence[Item], embed: Embed | None = None
) -> list[list[Shown]]:
    """Choose the examples of each question, in the order in which they will stand.

    Without ``similar`` all questions get the same examples, so that a model reads them once.

    Args:
        pool: whose examples are chosen from.
        shots: how.
        questions: what is asked.
        embed: texts to vectors ``(batch, dim)``; needed where similarity counts.

    Raises:
        ConfigError: if there are too few examples.
        ValueError: if similarity is wanted without ``embed``.
    """
    if shots.k == 0:
        return [[] for _ in questions]
    if len(pool.examples) < shots.k:
        raise ConfigError(
            f"{shots.k} examples are wanted, but {pool.source} leaves only {len(pool.examples)}.",
            "Ask for fewer, lower --limit, or name a file of examples.",
        )
    if shots.select != "similar" and shots.order == "drawn":
        same = _labelled(_drawn(pool, shots), pool, shots)
        return [same for _ in questions]
    if embed is None:
        raise ValueError("similar examples need a function that embeds texts")
    return _near(pool, shots, questions, embed)


def _drawn(pool: Pool, shots: Shots) -> list[Item]:
    dice = random.Random(shots.seed)
    shuffled = dice.sample(pool.examples, len(pool.examples))
    if shots.select == "random" or not pool.labels:
        return shuffled[: shots.k]
    by_label = {label: [item for item in shuffled if item.answer == label] for label in pool.labels}
    queues = [iter(items) for items in by_label.values() if items]
    taken: list[Item] = []
    while len(taken) < shots.k:
        before = len(taken)
        taken += [item for queue in queues if (item := next(queue, None)) is not None]
        if len(taken) == before:  # labels not among the candidates make up the rest
            raise ConfigError("There are too few examples with these labels.", "Ask for fewer examples.")
    return dice.sample(taken[: shots.k], shots.k)


def _near(pool: Pool, shots: Shots, questions: Sequence[Item], embed: Embed) -> list[list[Shown]]:
    """Rank by cosine similarity, of all examples or of those that were drawn."""
    among = _drawn(pool, shots)
    if shots.select == "similar":
        known = pool.examples
        among = (
            list(known)
            if len(known) <= MOST_COMPARED
            else random.Random(shots.seed).sample(known, MOST_COMPARED)
        )
    vectors = embed([item.key for item in (*among, *questions)])
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-9)
    nearness = vectors[len(among) :] @ vectors[: len(among)].T  # (questions, examples)
    order = nearness.topk(shots.k, dim=1).indices.tolist()
    dice = random.Random(shots.seed)
    chosen = []
    for row in order:
        items = [among[place] for place in reversed(row)]  # the nearest stands last
        if shots.order == "drawn":
            dice.shuffle(items)
        chosen.append(_labelled(items, pool, shots))
    return chosen


def _labelled(items: Sequence[Item], pool: Pool, shots: Shots) -> list[Shown]:
    answers = shown_answers([item.answer for item in items], pool.labels, shots.labels, shots.seed)
    return [Shown(item, answer) for item, answer in zip(items, answers, strict=True)]


def shown_answers(
    gold: Sequence[str], labels: Sequence[str], kind: Labels, seed: int = 0
) -> list[str | None]:
    """Give the answers to show: the right ones, drawn ones, always wrong ones, or none.

    >>> shown_answers(["up", "down"], ["up", "down"], "flipped")
    ['down', 'up']

    Source: Min et al. 2022, arXiv:2202.12837, §4: random labels are drawn from the label set.
    """
    dice = random.Random(seed + 1)
    if kind == "gold":
        return list(gold)
    if kind == "none":
        return [None for _ in gold]
    known = list(labels) or sorted(set(gold))
    if kind == "random":
        return [dice.choice(known) for _ in gold]
    wrong = [[one for one in known if one != right] for right in gold]
    return [dice.choice(others) if others else "0" for others in wrong]


# --- on paper ---


@dataclass
class Paper:
    """Puts examples and a question of one wording into a prompt that fits a model.

    Attributes:
        bundle: whose tokenizer, template and context count.
        chat: put the whole as a user's message; else as plain text.
        room: tokens kept free for the answer.
        left_out: examples that did not fit, over all prompts made so far.
    """

    asking: Asking
    wording: str
    bundle: Bundle
    chat: bool = False
    room: int = 8
    left_out: int = field(default=0, init=False)

    @property
    def lead(self) -> str:
        """What stands between the prompt and the answer; nothing where the answer is a message of its own."""
        return "" if self.chat else self.asking.wordings[self.wording].lead

    def answer(self, answer: str) -> str:
        """Spell an answer as the model is to write it, with what stands before it."""
        words = self.asking.words_of(self.wording) if self.asking.labels else {}
        return self.lead + words.get(answer, answer)

    def prompts(self, questions: Sequence[Item], shown: Sequence[Sequence[Shown]]) -> list[Prompt]:
        """Make one prompt a question.

        Raises:
            GenerationError: if a question does not fit even without examples.
        """
        texts = self._texts([one.item for row in shown for one in row] + list(questions))
        made = []
        for question, row in zip(questions, shown, strict=True):
            made.append(self._fit(question, texts[question.key], [self._example(one, texts) for one in row]))
        return made

    def _texts(self, items: Sequence[Item]) -> dict[str, str]:
        unique = {item.key: item for item in items}
        rendered = self.asking.render(self.wording, [item.fields for item in unique.values()])
        return dict(zip(unique, rendered, strict=True))

    def _example(self, shown: Shown, texts: dict[str, str]) -> str:
        text = texts[shown.item.key]
        if shown.answer is None:
            return text
        lead = self.asking.wordings[self.wording].lead
        words = self.asking.words_of(self.wording) if self.asking.labels else {}
        return text + lead + words.get(shown.answer, shown.answer)

    def _fit(self, question: Item, text: str, examples: list[str]) -> Prompt:
        for start in range(len(examples) + 1):
            prompt = self._whole(SEPARATOR.join([*examples[start:], text]))
            if len(self.bundle.encode(prompt)) + self.room <= self.bundle.context:
                self.left_out += start
                return prompt
        needed = len(self.bundle.encode(self._whole(text))) + self.room
        raise GenerationError(
            f"{question.id}: question and answer take {needed} tokens; this model has room for {self.bundle.context}.",
            "Leave long questions out, or use a model with a longer context.",
        )

    def _whole(self, text: str) -> str | list[Message]:
        return [Message("user", text)] if self.chat else text
