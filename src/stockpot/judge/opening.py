"""From a task file to items: records are found in a file, a folder or on the hub, and put into words.

Templates run in the sandbox of `text.sandbox`: shipped ones in this process, a stranger's in a child that can be killed. Records
that are no items are counted and told of; the rest goes on. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from stockpot.config import build
from stockpot.data.files import find
from stockpot.data.hub import stream
from stockpot.errors import ConfigError, DataError
from stockpot.home import without_tilde
from stockpot.judge.readings import READINGS, Fields, described, gold_of, options_of
from stockpot.judge.taskfiles import Hub, Judging, TaskFile, find_task, shipped_tasks
from stockpot.judge.tasks import Item, Left, Task, distinct, evenly, records_of
from stockpot.text.sandbox import Renderer, TemplateRefusedError, Worker, compile_template

__all__ = ["find_data", "open_task"]

AT_ONCE = 64  # renderings in one call of the child process

Records = Iterator[tuple[str, object]]


def open_task(ref: str | Path | TaskFile, wanted: Judging | None = None) -> Task:
    """Read a task file's items.

    Raises:
        ConfigError: if the task file is wrong, or nothing says where its data is.
        DataError: if the data cannot be read or holds no item.
    """
    wanted = wanted or Judging()
    file = ref if isinstance(ref, TaskFile) else find_task(ref)
    shots = file.shots if wanted.shots is None else wanted.shots
    with _Texts(file) as texts:
        shown = _examples(file, wanted, shots, texts)
        source, records = _records(file, wanted.data, None if file.hub is None else file.hub.split)
        made, bad = _read(file, records)
        made = evenly(made, wanted.limit)
        cases = [one.values for _, one in made]
        prompts = [
            (prompt, head + shown + prompt)
            for head, prompt in zip(
                texts.render(file.head, cases, "head"),
                texts.render(file.prompt, cases, "prompt"),
                strict=True,
            )
        ]
    items: list[Item] = []
    for (where, one), (bare, prompt) in zip(made, prompts, strict=True):
        try:
            items.append(_item(file, replace(one, question=one.question or bare), prompt, where))
        except DataError as error:
            bad.append(Left(where, str(error)))
    if not items:
        first = f" {bad[0].why}" if bad else ""
        raise DataError(f"{source} holds no item of {file.name} ({len(bad)} records are bad).{first}")
    version = file.version if shots == file.shots else f"{file.version}, {shots} examples"
    return Task(file.name, version, tuple(items), wanted.scorer(file.scorer), tuple(bad))


def _read(file: TaskFile, records: Records) -> tuple[list[tuple[str, Fields]], list[Left]]:
    made: list[tuple[str, Fields]] = []
    bad: list[Left] = []
    for where, record in records:
        try:
            one = _fields(file, record, where)
        except DataError as error:
            bad.append(Left(where or error.what.split(": ")[0], str(error)))
            continue
        if _is_asked(file, one.id):
            made.append((where, one))
    ids = distinct(one.id or Path(where).name for where, one in made)
    return [(where, replace(one, id=id)) for (where, one), id in zip(made, ids, strict=True)], bad


def _is_asked(file: TaskFile, id: str) -> bool:
    if id in file.example_ids:
        return False
    number = int(id) if id.isdecimal() else None
    if number is None:
        return True
    low, high = file.first_id, file.last_id
    return (low is None or number >= low) and (high is None or number <= high)


def _item(file: TaskFile, one: Fields, prompt: str, where: str) -> Item:
    common: dict[str, Any] = {
        "id": one.id,
        "question": one.question,
        "kind": one.kind,
        "prompt": prompt,
        "lead": file.lead,
        "facts": one.facts,
    }
    if file.scorer.kind != "choices":
        return Item(answer=one.answer, answers=one.answers, choices=one.choices, **common)
    texts, right = _worth(file, one, where)
    best = right.index(max(right))
    contexts = tuple(prompt + text for text in one.contexts)
    return Item(answer=texts[best], choices=texts, contexts=contexts, right=right, **common)


def _worth(file: TaskFile, one: Fields, where: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Give the completions to choose among, and what each is worth."""
    texts = file.choices or one.choices
    right = one.right or gold_of(one.gold, texts, file.labels or one.labels, file.spellings, where)
    if len(right) != len(texts):
        raise DataError(f"{where}: {len(right)} values for {len(texts)} choices.")
    if not max(right) > 0:
        raise DataError(f"{where}: no choice is right.")
    return tuple(texts), right


# --- fields ---


def _fields(file: TaskFile, record: object, where: str) -> Fields:
    """Find what a task needs in a record."""
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a {type(record).__name__}, not an object.", "Put one object on each line.")
    if file.reading is not None:
        return READINGS[file.reading](record, where)
    values: dict[str, Any] = {}
    for name, names in file.fields.items():
        found = _first(record, (name, *names))
        if found is None:
            raise DataError(
                f"{where}: {name!r} is missing (found: {described(record)}).",
                f"The task {file.name} reads it from {' or '.join(dict.fromkeys((name, *names)))}.",
            )
        values[name] = found
    options, labels = options_of(record, file.options, file.columns, where)
    if options:
        values["options"] = list(options)
    gold = _first(record, file.gold)
    if file.gold and gold is None:
        raise DataError(f"{where}: there is no {' or '.join(file.gold)}.", "Every item needs its answer.")
    kind = _first(record, file.kind)
    return Fields(
        values=values,
        choices=options,
        labels=labels,
        gold=gold,
        answer=_plain(gold),
        kind="" if kind is None else str(kind),
        id=str(record.get("id", "") or ""),
    )


def _plain(gold: object) -> str:
    if isinstance(gold, float) and gold.is_integer():
        return str(int(gold))
    return "" if gold is None else str(gold)


def _first(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


# --- where records come from ---


def _records(file: TaskFile, data: str | None, split: str | None) -> tuple[str, Iterator[tuple[str, object]]]:
    if data is None:
        if file.hub is None:
            raise ConfigError(f"The task {file.name} has no data of its own.", "Name a file with --data.")
        return _from_hub(file.hub, split)
    path = find_data(file.name, without_tilde(data))
    return str(path), records_of(path)


def find_data(name: str, folder: Path) -> Path:
    """Find a task's file in a folder of many; a file is taken as it is.

    It is named like the task, with at most a split behind the name, or like the family the task belongs to.

    Raises:
        DataError: if there is none.
    """
    if not folder.is_dir():
        return folder
    wanted = _bare(name)
    fitting = [
        path
        for path in find(folder)
        if (stem := _plain_name(path)) == wanted
        or (stem.startswith(wanted) and "train" not in stem)
        or (wanted.startswith(stem) and len(stem) > 3)
    ]
    if not fitting:
        raise DataError(
            f"{folder}: no file is named like the task {name}.",
            f"Name the file itself, or call it {name}.jsonl.",
        )
    return min(fitting, key=lambda path: (_plain_name(path) != wanted, len(path.name), path.name))


def _bare(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _plain_name(path: Path) -> str:
    return _bare(path.name.split(".")[0])


def _from_hub(hub: Hub, split: str | None) -> tuple[str, Iterator[tuple[str, object]]]:
    """Stream a data set of the hub; only where the user asked for no local file."""
    name = f"hf://{hub.path}{'/' + hub.config if hub.config else ''}@{split}"
    rows = enumerate(stream(name, hub.path, hub.config, split or hub.split), 1)
    return name, ((f"{name}:{number}", row) for number, row in rows)


# --- texts ---


class _Texts:
    """Renders a task's templates."""

    def __init__(self, file: TaskFile) -> None:
        self._file = file
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> _Texts:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def render(self, source: str, cases: Sequence[Mapping[str, Any]], where: str) -> list[str]:
        if not source:
            return [""] * len(cases)
        kept = "\n" if source.endswith("\n") else ""  # Jinja drops a line break at the very end
        try:
            ask = self._renderer(source)
            return [
                text + kept
                for start in range(0, len(cases), AT_ONCE)
                for text in ask([dict(case) for case in cases[start : start + AT_ONCE]])
            ]
        except TemplateRefusedError as error:
            raise ConfigError(
                f"The {where} of the task {self._file.name}: {error}.", "Mend the template; it is Jinja text."
            ) from None

    def _renderer(self, source: str) -> Renderer:
        if source in _shipped_texts():
            return compile_template(source)
        return self._workers.setdefault(source, Worker(source)).render


_TEXTS: set[str] = set()


def _shipped_texts() -> set[str]:
    if not _TEXTS:
        for path in shipped_tasks().values():
            task = build(TaskFile, recipe_files=[path])
            _TEXTS.update({task.prompt, task.head, task.target or ""})
    return _TEXTS


# --- examples ---


def _examples(file: TaskFile, wanted: Judging, shots: int, texts: _Texts) -> str:
    """Write the examples that stand before every question: the first ones of their source."""
    if not shots:
        return ""
    taken = [(where, _fields(file, record, where)) for where, record in islice(_shown(file, wanted), shots)]
    if len(taken) < shots:
        raise ConfigError(f"There are {len(taken)} examples for {file.name}, not {shots}.", "Ask for fewer.")
    questions = texts.render(file.prompt, [one.values for _, one in taken], "prompt")
    if file.target is not None:
        answers = texts.render(
            file.target, [{**one.values, "answer": one.answer} for _, one in taken], "target"
        )
    elif file.choices or taken[0][1].choices:
        answers = [
            choices[right.index(max(right))]
            for choices, right in (_worth(file, one, where) for where, one in taken)
        ]
    else:
        answers = [one.answer for _, one in taken]
    return "".join(
        f"{question}{file.lead}{answer}\n\n" for question, answer in zip(questions, answers, strict=True)
    )


def _shown(file: TaskFile, wanted: Judging) -> Records:
    """Find records to show: in a file, in the task file, in the data itself, beside it, or on the hub."""
    if wanted.examples is not None:
        return _records(file, wanted.examples, None)[1]
    if file.examples:
        return ((f"example {i} of {file.name}", one) for i, one in enumerate(file.examples, 1))
    if wanted.data is not None:
        path = without_tilde(wanted.data)
        if file.example_ids:
            return _with_ids(file, _records(file, wanted.data, None)[1])
        beside = path if path.is_dir() else path.parent
        if found := [one for one in find(beside) if _plain_name(one).startswith(f"{_bare(file.name)}train")]:
            return records_of(found[0])
    elif file.hub is not None and file.hub.examples is not None:
        records = _records(file, None, file.hub.examples)[1]
        return _with_ids(file, records) if file.example_ids else records
    raise ConfigError(
        f"{file.name} shows {file.shots or wanted.shots} examples, and nothing says where they come from.",
        "Name a file with --examples, or ask with --shots 0.",
    )


def _with_ids(file: TaskFile, records: Records) -> Records:
    for where, record in records:
        if isinstance(record, Mapping) and str(record.get("task_id", record.get("id"))) in file.example_ids:
            yield where, record
