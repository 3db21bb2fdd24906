"""The village: a generated corpus with exact ground truth, the same for the same seed everywhere.

`Village` is the door. It yields pretraining documents, instruction chats, comparisons and evaluation questions as plain
records, and keeps people, wordings and kinds of tasks apart for evaluation. It writes no file, knows no
tokenizer and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import count, islice
from math import nan
from typing import Any

from stockpot.errors import ConfigError
from stockpot.village.arithmetic import ARITHMETIC_KINDS, ArithmeticKind, draw_arithmetic
from stockpot.village.chats import CHAT_KINDS, draw_chat
from stockpot.village.dice import VILLAGE_VERSION, Dice, Side
from stockpot.village.documents import DOCUMENT_KINDS, draw_document
from stockpot.village.language import draw_translation
from stockpot.village.news import draw_news
from stockpot.village.parses import draw_parse
from stockpot.village.people import Employer, Person, World, draw_world
from stockpot.village.problem import Problem
from stockpot.village.programs import draw_program
from stockpot.village.questions import HELD_OUT_KINDS, KINDS, TRAINED_KINDS, draw_questions
from stockpot.village.scenes import Scene, draw_scene
from stockpot.village.tastes import Comparison, draw_asked, draw_comparison, rate

__all__ = ["HELD_OUT_KINDS", "KINDS", "TRAINED_KINDS", "VILLAGE_VERSION", "Employer", "Person", "Village"]


class Village:
    """An invented village: its people, and all that is written and asked about them.

    Equal settings give equal records on every machine, in any order and from any index on. Making a village
    is cheap: only the people and their employers are drawn before anything is asked for.

    Args:
        seed: which village.
        people: how many inhabitants, an even number from 20 to 400; more need a larger model to be learned.

    Raises:
        ConfigError: if the number of people is not possible.
    """

    version = VILLAGE_VERSION
    document_kinds = DOCUMENT_KINDS
    chat_kinds = CHAT_KINDS
    question_kinds = KINDS
    arithmetic_kinds = ARITHMETIC_KINDS

    def __init__(self, seed: int = 0, people: int = 200) -> None:
        self.seed = seed
        self.world: World = draw_world(seed, people)

    @property
    def people(self) -> tuple[Person, ...]:
        """Everybody."""
        return self.world.people

    def documents(
        self, split: str = "train", limit: int | None = None, *, start: int = 0, kind: str | None = None
    ) -> Iterator[dict[str, str]]:
        """Yield pretraining records ``{"text"}``, without end unless limited.

        Args:
            split: ``"train"`` or ``"val"``; no text is in both.
            limit: how many.
            start: index of the first; every index has its own record, so that shards can be made in parallel.
            kind: one of `document_kinds` only.

        Raises:
            ConfigError: if there is no such split or kind.
        """
        side, kind = _side(split), _known("document", kind, DOCUMENT_KINDS)
        dice = Dice(self.seed, f"documents/{side}")
        return ({"text": draw_document(self.world, dice.at(i), side, kind)} for i in _indices(start, limit))

    def chats(
        self, split: str = "train", limit: int | None = None, *, start: int = 0, kind: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield instruction records ``{"messages": [{"role", "content"}, …]}``, without end unless limited.

        Arguments and errors as for `documents`; ``kind`` is one of `chat_kinds`. Nobody asks about held-out
        people, and nothing is asked in wordings, or of kinds, that are kept for evaluation.
        """
        side, kind = _side(split), _known("chat", kind, CHAT_KINDS)
        dice = Dice(self.seed, f"chats/{side}")
        return (_chat(draw_chat(self.world, dice.at(i), side, kind)) for i in _indices(start, limit))

    def questions(
        self, split: str = "val", limit: int | None = None, *, kind: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield evaluation items, each question once, the kinds taking turns; without end unless limited.

        An item has ``id``, ``kind``, ``question``, ``choices`` (the answer among them), ``answer`` and
        ``held_out``: what of it training chats never show, ``"person"``, ``"template"`` (the wording),
        ``"task"`` (the kind), or ``"none"``.

        Args:
            split: ``"val"``, or ``"train"`` for items of which nothing is held out, made of training
                material.
            limit: how many.
            kind: one of `question_kinds` only; ``facts``, ``who`` and ``older`` come to an end.

        Raises:
            ConfigError: if there is no such split or kind.
        """
        side, kind = _side(split), _known("question", kind, KINDS)
        kinds = [kind] if kind else list(KINDS if side == "val" else TRAINED_KINDS)
        return islice(_take_turns(self.world, kinds, side), limit)

    def preferences(
        self, split: str = "train", limit: int | None = None, *, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield comparisons ``{"prompt", "chosen", "rejected", "margin", "source"}``, without end unless limited.

        Of two answers the better one by the villagers' exact taste (see `rater`) is chosen; equal ones are ties,
        ``{"tie": True}`` instead of a margin. Arguments and errors as for `documents`.
        """
        side = _side(split)
        dice = Dice(self.seed, f"preferences/{side}")
        return (_comparison(draw_comparison(self.world, dice.at(i), side)) for i in _indices(start, limit))

    def prompts(
        self, split: str = "train", limit: int | None = None, *, start: int = 0
    ) -> Iterator[dict[str, str]]:
        """Yield questions of the kind that `preferences` are about, with the answer that is liked best.

        Records are ``{"prompt", "completion"}``. Arguments and errors as for `documents`.
        """
        return (
            {"prompt": problem.question, "completion": problem.sentence}
            for problem in self._asked(_side(split), start, limit)
        )

    def arithmetic(
        self,
        split: str = "train",
        limit: int | None = None,
        *,
        start: int = 0,
        kind: ArithmeticKind = "columns",
        digits: int = 4,
    ) -> Iterator[dict[str, str]]:
        """Yield sums of long numbers, ``{"prompt": "4821&0375=", "completion": "4196"}``, without end unless limited.

        Args:
            split: as for `documents`, and so are ``limit`` and ``start``.
            limit: see above.
            start: see above.
            kind: ``"codes"``, two digits for each pair of letters, to be known by heart; ``"columns"``, addition without
                carrying; ``"sums"``, true addition, written from the ones on.
            digits: of each number (of codes: of the answer), 2 to 12.

        Raises:
            ConfigError: if there is no such split or kind, or the number of digits is not possible.
        """
        side, chosen = _side(split), _known("arithmetic", kind, ARITHMETIC_KINDS)
        if not 2 <= digits <= 12:
            raise ConfigError(f"Numbers of {digits} digits are not drawn.", "Ask for 2 to 12.")
        dice = Dice(self.seed, f"arithmetic/{side}/{chosen}/{digits}")
        return (
            {"prompt": asked, "completion": answer}
            for asked, answer in (
                draw_arithmetic(dice.at(i), side, kind, digits, self.seed) for i in _indices(start, limit)
            )
        )

    def parses(
        self, split: str = "train", limit: int | None = None, *, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield pairs of sentences with tags, dependencies, phrases, roles, entities and who is meant by "she".

        Records are documents as `stockpot.probe` reads them. Arguments and errors as for `documents`.
        """
        side = _side(split)
        dice = Dice(self.seed, f"parses/{side}")
        return (draw_parse(dice.at(i), side, f"village-{i}") for i in _indices(start, limit))

    def translations(
        self, split: str = "train", limit: int | None = None, *, start: int = 0
    ) -> Iterator[dict[str, str]]:
        """Yield sentences to put into or out of Ladlish, the second language, ``{"prompt", "completion"}``.

        Arguments and errors as for `documents`; no sentence is on both sides.
        """
        side = _side(split)
        dice = Dice(self.seed, f"translations/{side}")
        return (
            {"prompt": asked, "completion": answer}
            for asked, answer in (draw_translation(dice.at(i), side) for i in _indices(start, limit))
        )

    def programs(
        self, split: str = "train", limit: int | None = None, *, start: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Yield C functions to translate, with their Python and its tests.

        Keys: ``prompt``, ``completion``, ``kind``, ``held_out``, ``entry``, ``cases``, ``tests``. Half of ``"val"`` are kinds of
        functions that ``"train"`` never shows. Arguments and errors as for `documents`.
        """
        side = _side(split)
        dice = Dice(self.seed, f"programs/{side}")
        return (draw_program(dice.at(i), side) for i in _indices(start, limit))

    def rater(
        self, split: str = "train", limit: int = 5_000, *, start: int = 0
    ) -> Callable[[str, str], float]:
        """Give the villagers' exact taste: ``(prompt, reply) -> 0 … 3`` for the prompts of `prompts`.

        The function returns NaN for a prompt that is not among them.
        """
        known = {problem.question: problem for problem in self._asked(_side(split), start, limit)}

        def rating(prompt: str, reply: str) -> float:
            problem = known.get(prompt)
            return nan if problem is None else rate(problem, reply)

        return rating

    def _asked(self, side: Side, start: int, limit: int | None) -> Iterator[Problem]:
        dice = Dice(self.seed, f"prompts/{side}")
        return (draw_asked(self.world, dice.at(i), side) for i in _indices(start, limit))

    def scenes(self, split: str = "train", limit: int | None = None, *, start: int = 0) -> Iterator[Scene]:
        """Yield scenes of coloured shapes to paint (`stockpot.village.scenes.paint`), without end unless limited.

        In ``"val"`` half of them show a pair of colour and shape that ``"train"`` never shows. Arguments and errors as for
        `documents`.
        """
        side = _side(split)
        dice = Dice(self.seed, f"scenes/{side}")
        return (draw_scene(dice.at(i), side) for i in _indices(start, limit))

    def news(self) -> list[dict[str, Any]]:
        """Give facts newer than anything in the documents: ``id, date, text, question, answer, choices``."""
        return draw_news(self.world)


def _side(split: str) -> Side:
    if split == "train":
        return "train"
    if split == "val":
        return "val"
    raise ConfigError(f'The village has no split "{split}".', 'Use "train" or "val".')


def _known(what: str, kind: str | None, kinds: Sequence[str]) -> str | None:
    if kind is None or kind in kinds:
        return kind
    near = get_close_matches(kind, kinds, n=1)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    raise ConfigError(f'The village has no {what} of the kind "{kind}".{hint}', f"Kinds: {', '.join(kinds)}.")


def _indices(start: int, limit: int | None) -> Iterator[int]:
    return islice(count(start), limit)


def _chat(turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    messages = []
    for asked, answered in turns:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    return {"messages": messages}


def _comparison(drawn: Comparison) -> dict[str, Any]:
    record: dict[str, Any] = {"prompt": drawn.question, "chosen": drawn.chosen, "rejected": drawn.rejected}
    record |= {"margin": drawn.margin} if drawn.margin else {"tie": True}
    return record | {"source": "village"}


def _take_turns(world: World, kinds: Sequence[str], side: Side) -> Iterator[dict[str, Any]]:
    streams = {kind: enumerate(draw_questions(world, kind, side)) for kind in kinds}
    while streams:
        for kind in tuple(streams):
            drawn = next(streams[kind], None)
            if drawn is None:
                del streams[kind]
            else:
                yield _item(f"{kind}-{side}-{drawn[0]}", drawn[1])


def _item(name: str, problem: Problem) -> dict[str, Any]:
    return {
        "id": name,
        "kind": problem.kind,
        "question": problem.question,
        "choices": list(problem.choices),
        "answer": problem.answer,
        "held_out": problem.held_out,
    }
