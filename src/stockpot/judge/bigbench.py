"""BIG-bench's JSON tasks, read as they are: a ``task.json``, a folder of them, or a zip.

Two scores of the benchmark are given: *multiple choice grade* (the worth of the likeliest choice) and *exact string match* of a
written answer. Choices that belong to the input are appended in the file's order, where BIG-bench shuffles them.

Source: the format is described in BIG-bench's docs/doc.md (Srivastava et al. 2022, arXiv:2206.04615).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stockpot.errors import ConfigError, DataError
from stockpot.home import without_tilde
from stockpot.judge.tasks import Extraction, Item, Scorer, Task, evenly, gather

__all__ = ["is_bigbench", "open_bigbench"]

PREFIX = "bigbench:"
SHOWN = 12  # names in a message
MOST_BYTES = 64 << 20
WRITTEN = "exact_str_match"


def is_bigbench(ref: str | Path) -> bool:
    """Say whether a task's name means one of BIG-bench: ``bigbench:NAME``, or the path of a ``task.json``."""
    return str(ref).startswith(PREFIX) or Path(ref).name == "task.json"


def open_bigbench(ref: str | Path, data: str | Path | None = None, *, limit: int | None = None) -> list[Task]:
    """Read a task: one for each of its two scores that it asks for.

    Args:
        ref: ``bigbench:NAME`` with ``data``, or the path of a ``task.json``.
        data: a folder or a zip of ``NAME/task.json``; a ``task.json`` itself.
        limit: most items, evenly spaced.

    Raises:
        DataError: if there is no such task, or it is not in BIG-bench's form.
    """
    name = str(ref).removeprefix(PREFIX)
    path = without_tilde(data if data is not None else ref)
    where, text = _find(name, path)
    try:
        whole = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}.") from None
    if not isinstance(whole, Mapping) or not isinstance(whole.get("examples"), list):
        raise DataError(f"{where} is no task of BIG-bench: it has no list of examples.")
    title = PREFIX + (name if str(ref).startswith(PREFIX) else str(whole.get("name", path.parent.name)))
    wanted = [str(one) for one in whole.get("metrics") or ()]
    has_choices = any(isinstance(one, Mapping) and one.get("target_scores") for one in whole["examples"])
    records = [(f"{where}: example {number}", one) for number, one in enumerate(whole["examples"], 1)]
    tasks = []
    if has_choices:
        items, bad = gather(lambda record, at: _graded(whole, record, at), records, where)
        scorer = Scorer(kind="choices", measures=("grade",))
        tasks.append(Task(title, "json", tuple(evenly(items, limit)), scorer, bad))
    if WRITTEN in wanted or not has_choices:
        items, bad = gather(lambda record, at: _written(whole, record, at), records, where)
        name = f"{title} (written)" if has_choices else title
        tasks.append(Task(name, "json", tuple(evenly(items, limit)), _writing(whole, where), bad))
    return tasks


def _writing(whole: Mapping[str, Any], where: str) -> Scorer:
    pattern = whole.get("output_regex")
    try:
        one = Extraction(kind="regex", pattern=str(pattern)) if pattern else Extraction(kind="line")
    except ConfigError as error:
        raise DataError(f"{where}: output_regex: {error.what}") from None
    stop = str(whole.get("stop_string") or "\n")
    return Scorer(kind="write", until=(stop,), max_tokens=64, extract={WRITTEN: one}, ignore_case=False)


def _find(name: str, path: Path) -> tuple[str, bytes]:
    """Read one task's bytes out of a file, a folder or a zip."""
    if path.is_dir():
        path = path / name / "task.json"
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file of BIG-bench.",
            "Name a task.json, its folder or a zip with --data.",
        )
    if not zipfile.is_zipfile(path):
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has more than {MOST_BYTES >> 20} MiB.")
        return str(path), path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = f"{name}/task.json"
        known = [one for one in archive.namelist() if one == inside or one.endswith(f"/{inside}")]
        if not known:
            names = [
                one.removesuffix("/task.json") for one in archive.namelist() if one.endswith("/task.json")
            ]
            like = [one for one in names if name in one]  # such as arithmetic, which is ten tasks
            said = "Of that name it has" if like else "It begins with"
            shown, more = (like or names)[:SHOWN], " …" if len(like or names) > SHOWN else "."
            raise DataError(f"{path} has no {inside}.", f"{said} {', '.join(shown)}{more}")
        if archive.getinfo(known[0]).file_size > MOST_BYTES:
            raise DataError(f"{path}: {known[0]} unpacks to more than {MOST_BYTES >> 20} MiB.")
        try:
            return f"{path}/{known[0]}", archive.read(known[0])
        except (zipfile.BadZipFile, RuntimeError) as error:  # torn; encrypted, or of a rare form
            raise DataError(f"{path}: {known[0]} cannot be unpacked: {error}.") from None


def _prompt(whole: Mapping[str, Any], record: Mapping[str, Any], where: str) -> str:
    if not isinstance(record.get("input"), str):
        raise DataError(f"{where}: there is no input.")
    scores = record.get("target_scores")
    shown = ""
    if isinstance(scores, Mapping) and whole.get("append_choices_to_input", True):
        before = str(whole.get("choice_prefix", "\n  choice: "))
        shown = "".join(before + str(choice) for choice in scores)
    return "".join(
        (
            str(whole.get("task_prefix", "")),
            str(whole.get("example_input_prefix", "\nQ: ")),
            record["input"],
            shown,
            str(whole.get("example_output_prefix", "\nA: ")),
        )
    )


def _graded(whole: Mapping[str, Any], record: Mapping[str, Any], where: str) -> Item:
    scores = record.get("target_scores")
    if not isinstance(scores, Mapping) or len(scores) < 2:
        raise DataError(f"{where}: there are no two choices (target_scores).")
    try:
        right = tuple(float(value) for value in scores.values())
    except (TypeError, ValueError):
        raise DataError(f"{where}: a choice's score is no number.") from None
    if not all(0 <= value <= 1 for value in right) or not any(right):
        raise DataError(f"{where}: the choices' scores are not between 0 and 1, or all are 0.")
    choices = tuple(map(str, scores))
    best = choices[right.index(max(right))]
    question = record["input"] if isinstance(record.get("input"), str) else ""
    prompt = _prompt(whole, record, where)
    return Item(where, question, best, choices, prompt=prompt, lead="", right=right)


def _written(whole: Mapping[str, Any], record: Mapping[str, Any], where: str) -> Item:
    target = record.get("target")
    scores = record.get("target_scores")
    if target is None and isinstance(scores, Mapping):
        target = [choice for choice, value in scores.items() if value == 1]
    targets = [target] if isinstance(target, str) else target
    if not isinstance(targets, list) or not targets or not all(isinstance(one, str) for one in targets):
        raise DataError(f"{where}: there is no target.")
    prompt = _prompt(whole, record, where)
    return Item(where, record["input"], targets[0], prompt=prompt, lead="", answers=tuple(targets[1:]))
