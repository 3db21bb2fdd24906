"""Items to be asked: fields and the right answer, from the village or from a file, split into examples and questions.

What is shown as an example, or trained on, is never asked. Nothing here runs a model or knows a wording.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from stockpot.config import Settings
from stockpot.data.files import entries
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import ConfigError, DataError
from stockpot.prompt.wordings import Asking, find_asking
from stockpot.village import Village
from stockpot.village.dice import Dice, Side
from stockpot.village.entailment import draw_pair
from stockpot.village.reviews import draw_review
from stockpot.village.sums import sum_problem

__all__ = ["Item", "Pool", "Questions", "load_pool"]

EXAMPLES = 1_000  # of the village, from which examples are drawn
MOST_READ = 200_000


class Questions(Settings):
    """What is asked, in which wordings, and how many items."""

    task: str = Field(
        "nli", description="a shipped task (nli · sentiment · sums · lecture) or a task file in TOML"
    )
    data: str | None = Field(None, description="a file of items; none: what the task names")
    examples: str | None = Field(
        None, description="a file of items to show or to train on; none: those that are not asked"
    )
    wordings: tuple[str, ...] | None = Field(None, description="names of those to use; none: all")
    limit: int = Field(100, ge=1, description="most items that are asked")
    chat: bool = Field(False, description="put each prompt as a user's message")
    seed: int = Field(0, ge=0, description="of the order in which a file's items are taken")

    @classmethod
    def of(cls, given: Questions | str | Path) -> Questions:
        """Let a task's name or file stand for all its items."""
        return given if isinstance(given, Questions) else cls(task=str(given))

    def open(self) -> tuple[Asking, Pool]:
        """Read the task and its items; errors as in `find_asking` and `load_pool`."""
        asking = find_asking(self.task).select(self.wordings)
        pool = load_pool(asking, self.data, examples=self.examples, limit=self.limit, seed=self.seed)
        return asking, pool


@dataclass(frozen=True)
class Item:
    """One thing to be asked.

    Attributes:
        id: where it comes from.
        fields: what the wordings speak of.
        answer: the right label, or the right free answer.
        worked: the steps that lead to the answer, where the source has them.
    """

    id: str
    fields: Mapping[str, str]
    answer: str
    worked: str = ""

    @property
    def key(self) -> str:
        """What makes two items the same question."""
        return "\n".join(self.fields[name] for name in sorted(self.fields))


@dataclass(frozen=True)
class Pool:
    """Items of one task.

    Attributes:
        questions: what is asked.
        examples: what may be shown or trained on; none of the questions.
        labels: the labels to choose among, in the order of the task; empty for free answers.
        source: what the items came from.
    """

    questions: tuple[Item, ...]
    examples: tuple[Item, ...]
    labels: tuple[str, ...]
    source: str

    @property
    def chance(self) -> float | None:
        """What guessing scores; None for free answers."""
        return 1 / len(self.labels) if self.labels else None

    @property
    def commonest(self) -> float | None:
        """What always giving the commonest label scores; None for free answers."""
        if not self.labels:
            return None
        return max(Counter(item.answer for item in self.questions).values()) / len(self.questions)


def load_pool(
    asking: Asking,
    data: str | Path | None = None,
    *,
    examples: str | Path | None = None,
    limit: int = 100,
    seed: int = 0,
) -> Pool:
    """Gather a task's items: ``limit`` questions, and the rest as examples.

    Args:
        asking: the task.
        data: a file of records, ``village:KIND``, or None for what the task names (its own items, else its source).
        examples: another source for the examples; None: the rest of ``data``, or the village's training side.
        limit: most questions.
        seed: of the order in which a file's items are taken.

    Raises:
        ConfigError: if nothing says where items come from.
        DataError: if a record is not an item of this task; names file and line.
    """
    if data is None and asking.items:
        found = [_item(asking, record, f"{asking.name}:{i}") for i, record in enumerate(asking.items, 1)]
        questions, rest, source = found[:limit], found[limit:], asking.name
    else:
        source = str(data or asking.source or "")
        if not source:
            raise ConfigError(f"The task {asking.name} has no items.", "Name a file of records with --data.")
        if source.startswith("village:"):
            questions = list(islice(_village(asking, source, "val"), limit))
            rest = [] if examples else list(islice(_village(asking, source, "train"), EXAMPLES))
        else:
            found = _from_file(asking, source)
            random.Random(seed).shuffle(found)
            questions, rest = found[:limit], found[limit:]
    if examples is not None:
        rest = (
            list(_village(asking, str(examples), "train"))
            if str(examples).startswith("village:")
            else _from_file(asking, examples)
        )
        random.Random(seed).shuffle(rest)
    asked = {item.key for item in questions}
    rest = [item for item in {item.key: item for item in rest}.values() if item.key not in asked]
    labels = _labels(asking, [*questions, *rest])
    strange = next((item for item in questions if labels and item.answer not in labels), None)
    if strange is not None:
        raise DataError(
            f"{strange.id}: the answer {strange.answer!r} is not among the candidates {', '.join(labels)}.",
            "Leave the item out, or add the label to candidates in the task file.",
        )
    return Pool(tuple(questions), tuple(rest), labels, source)


def _labels(asking: Asking, items: list[Item]) -> tuple[str, ...]:
    if not asking.labels:
        return ()
    if asking.candidates is not None:
        return asking.candidates
    used = {item.answer for item in items}
    found = tuple(label for label in asking.labels if label in used)
    if len(found) < 2:
        raise DataError(
            f"All items of {asking.name} have the answer {', '.join(found)!r}; there is nothing to choose.",
            "Give more items, or name the labels with candidates = [...] in the task file.",
        )
    return found


# --- sources ---


def _from_file(asking: Asking, source: str | Path) -> list[Item]:
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of items.", "Check the path.")
    report, config = ReadReport(), ReadConfig(max_bad_share=0)
    records = (
        pair
        for entry in entries(path, max_ratio=config.max_unpack_ratio, left_out=report.left_out)
        for pair in read_entry(entry, config, report)
    )
    items = [_item(asking, record, where) for where, record in islice(records, MOST_READ)]
    report.judge(config)
    if not items:
        raise DataError(f"{path} holds no items.", "Put one JSON object on each line.")
    return list({item.key: item for item in items}.values())


def _item(asking: Asking, record: object, where: str) -> Item:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a {type(record).__name__}, not an object.", "Put one object on each line.")
    fields = {}
    for field, names in asking.fields.items():
        value = next((record[name] for name in (field, *names) if isinstance(record.get(name), str)), None)
        if value is None:
            raise DataError(
                f"{where}: {field!r} is missing (found: {', '.join(map(str, record)) or 'nothing'}).",
                f"The task {asking.name} reads it from {' or '.join(dict.fromkeys((field, *names)))}.",
            )
        fields[field] = value.strip()
    answer = next((record[name] for name in asking.answer if record.get(name) is not None), None)
    if answer is None:
        raise DataError(f"{where}: there is no {' or '.join(asking.answer)}.", "Every item needs its answer.")
    return Item(str(record.get("id", where)), fields, *_right(asking, answer, where))


def _right(asking: Asking, answer: Any, where: str) -> tuple[str, str]:
    """Give the right answer as a label or a text, and the steps before it."""
    if asking.labels:
        label = asking.label_of(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)
        if label is None:
            raise DataError(
                f"{where}: the answer {str(answer)!r} is none of the labels {', '.join(asking.labels)}.",
                "Add its spelling to [labels] in the task file.",
            )
        return label, ""
    if isinstance(answer, float) and answer.is_integer():
        answer = int(answer)
    worked, mark, final = str(answer).rpartition("####")  # as GSM8K writes solutions
    return (final.strip().replace(",", ""), worked.strip()) if mark else (str(answer).strip(), "")


def _village(asking: Asking, source: str, side: Side) -> Iterator[Item]:
    """Draw the village's items, each once; ``village:entailment``, ``reviews``, ``sums``, ``steps`` or ``chains``."""
    kind, _, seed = source.removeprefix("village:").partition(":")
    if kind not in _MAKERS or (seed and not seed.isdigit()):
        raise ConfigError(
            f"{source}: the village has no such items.",
            f"It has {', '.join('village:' + name for name in _MAKERS)}; a seed may follow.",
        )
    village = Village(seed=int(seed or 0))
    dice, seen = Dice(village.seed, f"prompting/{side}/{kind}"), set()
    for index in range(4 * EXAMPLES):
        record = _MAKERS[kind](village, dice.at(index), side)
        item = _item(asking, record, f"{kind}-{side}-{index}")
        if item.key not in seen:
            seen.add(item.key)
            yield Item(item.id, item.fields, item.answer, record.get("worked", ""))


def _pair(_: Village, dice: Dice, side: Side) -> dict[str, str]:
    pair = draw_pair(dice, side)
    return {"premise": pair.premise, "hypothesis": pair.hypothesis, "answer": pair.answer}


def _review(village: Village, dice: Dice, side: Side) -> dict[str, str]:
    review = draw_review(village.world, dice, side)
    return {"text": review.text, "answer": review.sentiment}


def _sum(steps: int) -> Any:
    def draw(_: Village, dice: Dice, side: Side) -> dict[str, str]:
        problem = sum_problem(dice, side, steps)
        worked = problem.worked.rpartition(" The answer is ")[0]
        return {"question": problem.question, "answer": problem.answer, "worked": worked}

    return draw


_MAKERS = {"entailment": _pair, "reviews": _review, "sums": _sum(1), "steps": _sum(2), "chains": _sum(3)}
