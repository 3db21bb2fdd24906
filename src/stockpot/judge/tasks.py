"""What is asked: items with known answers, how they are scored, and where the village's and a plain file's come from.

A `Task` is a name, a version, a scorer and a list of `Item`s. This file makes and checks items; it never runs a model. Tasks in
TOML are read in `taskfiles`, BIG-bench's in `bigbench`; all of them end here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import Field, field_validator, model_validator

from stockpot.config import Settings
from stockpot.data.files import entries
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import DataError
from stockpot.text.chat import Message
from stockpot.village import Village

__all__ = [
    "Extraction",
    "Item",
    "Left",
    "Scorer",
    "Task",
    "Wording",
    "distinct",
    "evenly",
    "gather",
    "load_task",
    "records_of",
    "village_tasks",
    "word_item",
]

Wording = Literal["plain", "chat"]
Measure: TypeAlias = Literal[
    "acc", "acc_norm", "acc_bytes", "acc_pmi", "grade", "right_mass", "margin", "brier", "log_prob"
]
ScorerKind: TypeAlias = Literal["both", "choices", "word", "text", "write", "code"]
MOST_READ = 200_000

T = TypeVar("T")


def _regex(pattern: str) -> str:
    """Refuse a pattern that is none when it is written, not when answers are judged by it."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


class Extraction(Settings):
    """What of a written answer counts."""

    kind: Literal["all", "line", "number", "choice", "regex"] = Field(
        "all",
        description="all of it · its first line · the number it gives · the choice named first · a regex",
    )
    pattern: str = Field("", description="regex: its first group that matched counts, else the whole match")
    which: int = Field(0, description="which match: 0 the first, -1 the last")

    _is_regex = field_validator("pattern")(_regex)


class Scorer(Settings):
    """How answers to a task are asked for and judged.

    Kinds: *choices*: the likeliest completion; *word*: one completion that greedy decoding should write; *text*: how well a text
    is predicted; *write*: an answer is written and compared; *code*: a program is written and run; *both*: the
    village's way, an answer is written and, where there are choices, the likeliest is found too.
    """

    kind: ScorerKind = Field("both", description="how items are scored")
    measures: tuple[Measure, ...] = Field(
        (), description="choices: which figures are reported; none: acc and acc_norm"
    )
    pmi: bool = Field(
        False, description="choices: also ask how likely each is without the question (Holtzman et al. 2021)"
    )
    without: str = Field("Answer:", description="what stands before a choice when the question does not")
    until: tuple[str, ...] = Field(("\n",), description="write, code: texts that end an answer")
    max_tokens: int = Field(24, ge=1, description="write, code: longest answer")
    extract: dict[str, Extraction] = Field(
        default_factory=dict, description="write: measure → what of an answer counts; none: exact match"
    )
    ignore: tuple[str, ...] = Field((), description="write: patterns that are removed on both sides")
    ignore_case: bool = Field(True, description="write: compare in lower case")
    tolerance: float | None = Field(None, gt=0, description="write: numbers may be off by this share")
    samples: int = Field(1, ge=1, description="code: programs drawn for each problem; pass@k needs k of them")
    temperature: float = Field(0.0, ge=0, description="code: of the drawn programs")
    timeout_s: float = Field(6.0, gt=0, description="code: longest time a program may run")

    @field_validator("ignore")
    @classmethod
    def _are_regexes(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_regex, patterns))

    @model_validator(mode="after")
    def _can_measure(self) -> Scorer:
        if "acc_pmi" in self.measures and not self.pmi:
            raise ValueError("measures names acc_pmi, which needs pmi = true")
        return self


@dataclass(frozen=True)
class Item:
    """One question with a known answer.

    Attributes:
        id: unique within its task.
        question: what is asked, without any template.
        answer: the right answer.
        choices: the answers to choose from; empty for free answers.
        kind: what sort of question it is; scores are also reported per kind.
        held_out: what of the item was kept from training, as its source says.
        prompt: the exact text before the answer; None: the wording makes one of the question.
        contexts: a text before each choice, where they differ; then ``prompt`` is not used.
        lead: what stands between prompt and answer.
        right: what each choice is worth, 0–1; empty: 1 for the answer's text, 0 for others.
        answers: further right answers, for free answers.
        facts: what the scorer needs besides (tests of a program).
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    kind: str = ""
    held_out: str = "none"
    prompt: str | None = None
    contexts: tuple[str, ...] = ()
    lead: str = " "
    right: tuple[float, ...] = ()
    answers: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worth(self) -> tuple[float, ...]:
        """What each choice is worth."""
        return self.right or tuple(float(choice == self.answer) for choice in self.choices)

    @property
    def chance(self) -> float:
        """What guessing scores: the mean worth of a choice, 0 for free answers."""
        return sum(self.worth) / len(self.choices) if self.choices else 0.0


@dataclass(frozen=True)
class Left:
    """An item that is not judged, and why."""

    where: str
    why: str


@dataclass(frozen=True)
class Task:
    """A named, versioned list of items and how they are scored.

    Attributes:
        bad: records that are no items; they are counted and reported.
    """

    name: str
    version: str
    items: tuple[Item, ...]
    scorer: Scorer = field(default_factory=Scorer)
    bad: tuple[Left, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Hash of name, version, scorer and every item: equal fingerprints mean the same questions, scored alike."""
        parts = [self.name, self.version, self.scorer.model_dump(), [vars(item) for item in self.items]]
        text = json.dumps(parts, ensure_ascii=False, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def word_item(item: Item, wording: Wording) -> str | list[Message]:
    """Put an item into words: its own prompt, else a question/answer page for base models, a user message for chat models."""
    if wording == "chat":
        return [Message("user", item.question if item.prompt is None else item.prompt)]
    return f"Question: {item.question}\nAnswer:" if item.prompt is None else item.prompt


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

    Choices are a list of texts with the answer among them, or label → text with the answer's label. Records that are no
    items are counted in ``bad`` and told of in the report.

    Any file of records will do, packed or not: JSON lines, a JSON list, CSV, parquet.

    Raises:
        DataError: if the file cannot be read or holds no item; names file and line.
    """
    path = Path(path)
    items, bad = gather(_item, records_of(path), path)
    ids = distinct([item.id for item in items])
    named = [replace(item, id=id) for item, id in zip(items, ids, strict=True)]
    return Task(path.name.split(".")[0], "file", tuple(evenly(named, limit)), bad=bad)


def records_of(path: Path) -> Iterator[tuple[str, object]]:
    """Stream the raw records of a file as ``(file:line, record)``; a line that cannot be read is an error in their place.

    Raises:
        DataError: if there is no such file, or it is unreadable as a whole.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file of questions.", "Check the path; `village` is built in."
        )
    report, config = ReadReport(), ReadConfig(max_bad_share=1)
    for entry in entries(path, max_ratio=config.max_unpack_ratio, left_out=report.left_out):
        for pair in islice(read_entry(entry, config, report), MOST_READ):
            while report.problems:
                yield _unreadable(report.problems.pop(0))
            yield pair
        while report.problems:
            yield _unreadable(report.problems.pop(0))


def _unreadable(error: DataError) -> tuple[str, object]:
    return "", error


Maker = Callable[[Mapping[str, Any], str], Item]


def gather(
    make: Maker, records: Iterable[tuple[str, object]], source: Path | str
) -> tuple[list[Item], tuple[Left, ...]]:
    """Make items of records; those that are none are told of.

    Raises:
        DataError: if there is no item at all; tells of the first bad record.
    """
    items: list[Item] = []
    bad: list[Left] = []
    for where, record in records:
        try:
            if isinstance(record, DataError):
                raise record
            if not isinstance(record, Mapping):
                raise DataError(
                    f"{where}: a {type(record).__name__}, not an object.", "Put one object on each line."
                )
            items.append(make(record, where))
        except DataError as error:
            bad.append(Left(where or error.what.split(": ")[0], str(error)))
    if not items and bad:
        raise DataError(f"{source} holds no item that can be asked ({len(bad)} are bad). {bad[0].why}")
    if not items:
        raise DataError(f"{source} holds no items.", 'Put one {"question", "answer"} object on each line.')
    return items, tuple(bad)


def distinct(ids: Iterable[str]) -> list[str]:
    """Put numbers behind ids that are there more than once: answers of two models are paired by them.

    >>> distinct(["a", "b", "a"])
    ['a', 'b', 'a (2)']
    """
    seen: Counter[str] = Counter()
    found = []
    for id in ids:
        seen[id] += 1
        found.append(id if seen[id] == 1 else f"{id} ({seen[id]})")
    return found


def evenly(items: Sequence[T], limit: int | None) -> list[T]:
    """Take a number of items, evenly spaced: files are often sorted by kind, and the first ones would be of one kind.

    >>> evenly(range(10), 4)
    [0, 2, 5, 7]
    """
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


def _item(record: Mapping[str, Any], where: str) -> Item:
    question, answer = record.get("question"), record.get("answer")
    choices = record.get("choices") or ()
    if isinstance(choices, Mapping):  # label → text, and the answer is a label
        answer, choices = choices.get(str(answer)), tuple(choices.values())
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(
            f'{where}: an item needs "question" and "answer" as text (found: {", ".join(map(str, record)) or "nothing"}).',
            'Example: {"question": "What is 2 + 2?", "answer": "4"}.',
        )
    if not isinstance(choices, list | tuple) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f'{where}: "choices" must be a list of texts.')
    if "choices" in record and not choices:
        raise DataError(f"{where}: the choices are empty.", "Leave the field out for free answers.")
    if len(choices) == 1 or len(set(choices)) < len(choices):
        wrong = "one choice is no choice" if len(choices) == 1 else "a choice stands there twice"
        raise DataError(f"{where}: {wrong}.", "Give at least two choices, each once.")
    if choices and answer not in choices:
        raise DataError(f'{where}: the answer "{answer}" is not among the choices.', "Add it to the choices.")
    return Item(
        id=str(record.get("id", Path(where).name)),
        question=question,
        answer=answer,
        choices=tuple(choices),
        kind=str(record.get("kind", "")),
        held_out=str(record.get("held_out", "none")),
    )
