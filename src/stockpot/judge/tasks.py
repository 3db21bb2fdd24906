"""What is asked: items with exact answers, and where they come from.

A `Task` is a name, a version and a list of `Item`s. This file reads items and checks them; it never runs a model. How an
item becomes a prompt is the wording's business (`PLAIN`, `CHAT`), so that the same item can be put to a base model and to
a chat model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from stockpot.data.files import entries
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import DataError
from stockpot.text.chat import Message
from stockpot.village import Village

__all__ = ["Item", "Task", "Wording", "load_task", "village_tasks", "word_item"]

Wording = Literal["plain", "chat"]


@dataclass(frozen=True)
class Item:
    """One question with one right answer.

    Attributes:
        id: unique within its task.
        question: what is asked, without any template.
        answer: the right answer.
        choices: the answers to choose from, the right one among them; empty for free answers.
        kind: what sort of question it is; scores are also reported per kind.
        held_out: what of the item was kept from training, as its source says.
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    kind: str = ""
    held_out: str = "none"

    @property
    def chance(self) -> float:
        """What guessing scores: one over the number of choices, 0 for free answers."""
        return 1 / len(self.choices) if self.choices else 0.0


@dataclass(frozen=True)
class Task:
    """A named, versioned list of items."""

    name: str
    version: str
    items: tuple[Item, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of name, version and every item: equal fingerprints mean the same questions."""
        text = json.dumps([self.name, self.version, [vars(item) for item in self.items]], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def word_item(item: Item, wording: Wording) -> str | list[Message]:
    """Put an item into words: a question/answer page for base models, a user message for chat models."""
    if wording == "chat":
        return [Message("user", item.question)]
    return f"Question: {item.question}\nAnswer:"


def village_tasks(
    *, seed: int = 0, limit: int | None = None, kinds: Iterable[str] | None = None
) -> list[Task]:
    """Make one task per kind of village question.

    Args:
        seed: the village's seed.
        limit: items per kind.
        kinds: which kinds; all when None.
    """
    village = Village(seed=seed)
    names = village.question_kinds if kinds is None else tuple(kinds)
    tasks = []
    for kind in names:
        records = islice(village.questions("val", kind=kind), limit)
        items = tuple(_item(record, f"village:{kind}#{i}") for i, record in enumerate(records))
        tasks.append(Task(f"village/{kind}", f"{village.version}-seed{seed}", items))
    return tasks


def load_task(path: str | Path, *, limit: int | None = None) -> Task:
    """Read a task from records with ``question``, ``answer`` and, for multiple choice, ``choices``.

    Choices are a list of texts with the answer among them, or label → text with the answer's label.

    Any file of records will do, packed or not: JSON lines, a JSON list, CSV, parquet.

    Raises:
        DataError: if the file cannot be read or a record is not an item; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file of questions.", "Check the path; `village` is built in."
        )
    report, config = ReadReport(), ReadConfig(max_bad_share=0)
    records = (
        pair
        for entry in entries(path, max_ratio=config.max_unpack_ratio, left_out=report.left_out)
        for pair in read_entry(entry, config, report)
    )
    items = tuple(_item(_mapping(record, where), where) for where, record in islice(records, limit))
    report.judge(config)
    if not items:
        raise DataError(f"{path} holds no items.", 'Put one {"question", "answer"} object on each line.')
    return Task(path.name.split(".")[0], "file", items)


def _mapping(record: object, where: str) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a {type(record).__name__}, not an object.", "Put one object on each line.")
    return record


def _item(record: Mapping[str, Any], where: str) -> Item:
    question, answer = record.get("question"), record.get("answer")
    choices = record.get("choices") or ()
    if isinstance(choices, Mapping):  # label → text, and the answer is a label
        answer, choices = choices.get(str(answer)), tuple(choices.values())
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(
            f'{where}: an item needs "question" and "answer" as text (found: {", ".join(record) or "nothing"}).',
            'Example: {"question": "What is 2 + 2?", "answer": "4"}.',
        )
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f'{where}: "choices" must be a list of texts.')
    if len(choices) == 1 or len(set(choices)) < len(choices):
        wrong = "one choice is no choice" if len(choices) == 1 else "a choice stands there twice"
        raise DataError(f"{where}: {wrong}.", "Give at least two choices, each once.")
    if choices and answer not in choices:
        raise DataError(f'{where}: the answer "{answer}" is not among the choices.', "Add it to the choices.")
    return Item(
        id=str(record.get("id", where)),
        question=question,
        answer=answer,
        choices=tuple(choices),
        kind=str(record.get("kind", "")),
        held_out=str(record.get("held_out", "none")),
    )
