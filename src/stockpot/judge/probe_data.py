"""Annotated text for probing: passages of words, and labelled spans of them.

Reads CoNLL-U and JSON lines of several forms (one sentence, one document, a pronoun with two names, spans with labels)
into one shape, `Passage`. What a label means is the data's business; nothing here knows a model or a tokenizer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stockpot.data.files import entries, find
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import DataError
from stockpot.judge.probe_formats import (
    constituents_of,
    coreference_pairs,
    dependencies,
    entities_of,
    pronoun_pairs,
    roles_of,
    tags_of,
    word_offsets,
)
from stockpot.village import Village

__all__ = ["PIPELINE", "Passage", "Target", "read_passages", "split_passages"]

PIPELINE = ("pos", "constituents", "dependencies", "entities", "roles", "coreference")
"""The order in which the classical pipeline does these tasks."""

_VILLAGE = re.compile(r"village(:\d+)?")
PASSAGE_WORDS = 60  # of a document's sentences read together, so that a pronoun meets its name
Span = tuple[int, int]


class Target(NamedTuple):
    """One labelled span or pair of spans; spans are words ``[start, end)`` of the passage."""

    first: Span
    second: Span | None
    label: str


@dataclass(frozen=True)
class Passage:
    """A stretch of text that a model reads at once.

    Attributes:
        text: as written.
        words: the characters ``[start, end)`` of each word.
        targets: task → what is labelled.
        group: the document it comes from; training and test share none.
    """

    text: str
    words: tuple[Span, ...]
    targets: Mapping[str, tuple[Target, ...]]
    group: str


def read_passages(sources: Sequence[str | Path], *, limit: int, seed: int = 0) -> list[Passage]:
    """Read annotated files, drawing at most ``limit`` passages in all, evenly from the files.

    Args:
        sources: ``.conllu`` files, or JSON lines with ``tokens`` and layers (``upos``, ``xpos``, ``head`` and ``deprel``,
            ``constituents``, ``srl``, ``ner``), ``sentences`` with ``entities`` and ``coref``, GAP's ``Text`` and
            ``Pronoun``, or ``text`` and ``targets``; packed or not. ``village[:SEED]``: the village's own parses.
        limit: passages.
        seed: of the draw.

    Raises:
        DataError: if a file cannot be read or holds no annotation we know.
    """
    own = [source for source in map(str, sources) if _VILLAGE.fullmatch(source)]
    files = [path for source in sources if str(source) not in own for path in find(source)]
    share = -(-limit // max(1, len(files) + len(own)))
    chosen: list[Passage] = []
    for source in own:
        village = Village(int(source.partition(":")[2] or 0))
        for record in village.parses(limit=share):
            chosen += _document(record, source)
    for path in files:
        found = list(_of_file(path))
        if not found:
            raise DataError(
                f"{path}: there is no annotated sentence in it.", "See docs/probing.md for forms."
            )
        rng = random.Random(f"{seed}/{path.name}")
        chosen += found if len(found) <= share else rng.sample(found, share)
    return chosen[:limit]


def split_passages(
    passages: Sequence[Passage], *, test_share: float = 0.25, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Divide passages into training and test, whole documents at a time; returns their numbers.

    Raises:
        DataError: if there is only one document.
    """
    groups = sorted({passage.group for passage in passages})
    if len(groups) < 2:
        raise DataError(
            "All annotated passages come from one document.",
            "Give data with several documents, so that training and test share none.",
        )
    random.Random(seed).shuffle(groups)
    sizes = dict.fromkeys(groups, 0)
    for passage in passages:
        sizes[passage.group] += 1
    wanted, test = test_share * len(passages), set[str]()
    for group in groups[:-1]:
        if sum(sizes[name] for name in test) >= wanted:
            break
        test.add(group)
    numbers = range(len(passages))
    return [n for n in numbers if passages[n].group not in test], [
        n for n in numbers if passages[n].group in test
    ]


# --- files ---


def _of_file(path: Path) -> Iterator[Passage]:
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    left_out: list[str] = []
    config, report = ReadConfig(max_bad_share=0.0), ReadReport()
    for entry in entries(path, max_ratio=config.max_unpack_ratio, left_out=left_out):
        if name.endswith((".conllu", ".conll")):
            with entry.open() as file:
                yield from _conllu(file.read().decode("utf-8", errors="replace"), str(path))
            continue
        for where, raw in read_entry(entry, config, report):
            if not isinstance(raw, dict):
                raise DataError(f"{where}: not a JSON object.", "Annotated data has one object a line.")
            yield from _of_record(raw, where)
    if report.problems:
        raise report.problems[0]


def _of_record(raw: dict[str, Any], where: str) -> Iterator[Passage]:
    readers: list[tuple[str, Callable[[dict[str, Any], str], Iterator[Passage]]]] = [
        ("sentences", _document),
        ("Pronoun", _pronoun),
        ("targets", _edges),
        ("tokens", _sentence),
    ]
    for key, reader in readers:
        if key in raw:
            try:
                yield from reader(raw, where)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise DataError(
                    f"{where}: the annotation does not fit ({type(error).__name__}: {error}).",
                    "Spans are [start, end) over tokens; layers have one value a token.",
                ) from None
            return
    raise DataError(
        f"{where}: no annotation (found: {', '.join(list(raw)[:6])}).",
        "A record needs tokens, sentences, targets, or GAP's fields.",
    )


def _passage(
    text: str | None, tokens: Sequence[str], targets: Mapping[str, Sequence[Any]], group: str, where: str
) -> Passage:
    """Make a passage, dropping nothing: a span outside the words is an error."""
    written, words = word_offsets(text, tokens)
    made: dict[str, tuple[Target, ...]] = {}
    for task, found in targets.items():
        for first, second, _ in found:
            for span in (first, second):
                if span is not None and not 0 <= span[0] < span[1] <= len(words):
                    raise DataError(
                        f"{where}: {task}: the span {list(span)} is outside the {len(words)} tokens.",
                        "Spans are [start, end) over tokens.",
                    )
        if found:
            made[task] = tuple(Target(first, second, str(label)) for first, second, label in found)
    return Passage(written, words, made, group)


def _layers(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the targets of one sentence's layers."""
    found = {
        "pos": tags_of(raw.get("xpos") or raw.get("upos") or ()),
        "dependencies": dependencies(raw.get("head") or (), raw.get("deprel") or ()),
        "constituents": constituents_of(raw),
        "roles": roles_of(raw.get("srl") or ()),
        "entities": entities_of(raw),
    }
    return {task: targets for task, targets in found.items() if targets}


def _sentence(raw: dict[str, Any], where: str) -> Iterator[Passage]:
    group = str(raw.get("doc") or raw.get("id") or where).rpartition("-")[0] or str(raw.get("id", where))
    if raw["tokens"]:
        yield _passage(raw.get("text"), raw["tokens"], _layers(raw), group, where)


def _document(raw: dict[str, Any], where: str) -> Iterator[Passage]:
    """Yield a document's sentences in passages of about `PASSAGE_WORDS` words."""
    sentences, at = raw["sentences"], 0
    rng = random.Random(str(raw.get("doc", where)))
    while at < len(sentences):
        first, count, words = sum(len(one["tokens"]) for one in sentences[:at]), 0, 0
        while at + count < len(sentences) and (
            not count or words + len(sentences[at + count]["tokens"]) <= PASSAGE_WORDS
        ):
            words += len(sentences[at + count]["tokens"])
            count += 1
        targets: dict[str, list[Any]] = {}
        base = 0
        for one in sentences[at : at + count]:
            for task, found in _layers(one).items():
                targets.setdefault(task, []).extend(_moved(found, base))
            base += len(one["tokens"])
        inside = (first, first + words)
        targets["entities"] = entities_of({"entities": raw.get("entities", ())}, inside)
        targets["coreference"] = coreference_pairs(raw.get("coref", ()), inside, rng)
        text = " ".join(one["text"] for one in sentences[at : at + count])
        tokens = [token for one in sentences[at : at + count] for token in one["tokens"]]
        if tokens:
            yield _passage(text, tokens, targets, str(raw.get("doc", where)), where)
        at += count


def _moved(targets: Sequence[Any], base: int) -> list[Any]:
    def move(span: Span | None) -> Span | None:
        return None if span is None else (span[0] + base, span[1] + base)

    return [(move(first), move(second), label) for first, second, label in targets]


def _pronoun(raw: dict[str, Any], where: str) -> Iterator[Passage]:
    tokens, targets = pronoun_pairs(raw)
    yield _passage(raw["Text"], tokens, {"coreference": targets}, str(raw.get("URL") or where), where)


def _edges(raw: dict[str, Any], where: str) -> Iterator[Passage]:
    """Yield a record of the edge-probing form: ``text`` in words, ``targets`` with ``span1``, ``span2``, ``label``."""
    tokens = raw.get("tokens") or str(raw["text"]).split()
    task = str(raw.get("task", "spans"))
    found = []
    for one in raw["targets"]:
        second = tuple(one["span2"]) if one.get("span2") is not None else None
        label = one["label"]
        found.append((tuple(one["span1"]), second, label[0] if isinstance(label, list) else label))
    group = str(raw.get("group") or raw.get("id") or where)
    yield _passage(None, tokens, {task: found}, group, where)


def _conllu(text: str, name: str) -> Iterator[Passage]:
    """Yield the sentences of a CoNLL-U file; ranges and empty nodes are no words."""
    group, written = name, None
    rows: list[list[str]] = []
    for number, line in enumerate([*text.splitlines(), ""], 1):
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip() in ("newdoc id", "sent_id"):
                group = value.strip().rpartition("-")[0] or value.strip()
            elif key.strip() == "text":
                written = value.strip()
        elif line.strip():
            columns = line.rstrip("\n").split("\t")
            if len(columns) != 10:
                raise DataError(
                    f"{name}:{number}: a row of CoNLL-U has 10 columns; this one has {len(columns)}.",
                    "Separate columns with tabs.",
                )
            if columns[0].isdigit():
                rows.append(columns)
        elif rows:
            raw = {
                "xpos": [row[4] if row[4] != "_" else row[3] for row in rows],
                "head": [int(row[6]) if row[6].isdigit() else 0 for row in rows],
                "deprel": [row[7] for row in rows],
            }
            yield _passage(written, [row[1] for row in rows], _layers(raw), group, f"{name}:{number}")
            rows, written = [], None
