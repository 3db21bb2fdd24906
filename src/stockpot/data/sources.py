"""Where records come from: files, directories, archives, the hub and the village.

Opens every source as one stream of checked records of one kind. It decides nothing about tokens, and it never
goes to a network unless a source names a scheme (``hf://``, ``s3://`` …).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stockpot import durable
from stockpot.data.exports import unfold
from stockpot.data.files import entries, find
from stockpot.data.formats import Raw, read_entry
from stockpot.data.hub import stream
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.records import FIELD_NAMES, Record, parse_record, text_of
from stockpot.data.remote import fetched, find_remote, is_remote
from stockpot.data.shards import INDEX, is_shards
from stockpot.data.votes import fingerprint_votes, is_votes
from stockpot.errors import DataError

__all__ = ["Source", "fingerprint_sources", "read_records", "read_texts"]

Source = str | os.PathLike[str]
Parse = Callable[[object, str], Record]
_HUB = "hf://"
_VILLAGE_RECORDS = {  # unless the source says how many
    "documents": 100_000,
    "chats": 20_000,
    "preferences": 4_000,
    "prompts": 4_000,
    "translations": 20_000,
    "programs": 5_000,
}
_VILLAGE = f"village[:{'|'.join(_VILLAGE_RECORDS)}][/val][:SEED[:COUNT]]"


def read_records(
    sources: Source | Sequence[Source],
    config: ReadConfig | None = None,
    *,
    report: ReadReport | None = None,
    parse: Parse = parse_record,
) -> Iterator[Record]:
    """Stream the records of all sources, which must be of one kind.

    Args:
        sources: files, directories, patterns (``corpus/**/*.txt``), ``hf://owner/name[/config][@split]``,
            what fsspec reads (``s3://…``, ``https://…``),
            ``village[:PART][/val][:SEED[:COUNT]]``, a part being documents, chats, preferences, prompts, translations or
            programs; ``/val``: what is kept from training.
        config: how to read them.
        report: counts what was read and what was not; None: only the log tells.
        parse: checks a line, such as `parse_asked` where prompts need no answer.

    Raises:
        DataError: if a source is missing or empty, kinds are mixed, or too many records are bad.
    """
    first: Record | None = None
    for record in _read(sources, config or ReadConfig(), report or ReadReport(), parse):
        first = first or record
        if record.kind != first.kind:
            raise DataError(
                f"{record.where}: a {record.kind} record among {first.kind} records "
                f"(the first is {first.where}).",
                "Use data of one kind at a time.",
            )
        yield record


def read_texts(
    sources: Source | Sequence[Source], config: ReadConfig | None = None, *, report: ReadReport | None = None
) -> Iterator[str]:
    """Stream the text of all records, of whatever kind: what a tokenizer is trained on.

    Raises:
        DataError: as `read_records`, but kinds may be mixed.
    """
    for record in _read(sources, config or ReadConfig(), report or ReadReport()):
        yield text_of(record)


def fingerprint_sources(sources: Source | Sequence[Source]) -> list[dict[str, Any]]:
    """Describe sources for a manifest: ``{"path", "bytes", "sha256"}`` of each file; the rest by name.

    Shards answer with their index, which holds the sums of all their files; a database of votes with what it says, since a
    server that writes to it keeps the newest votes in another file.

    Raises:
        DataError: if a file is missing.
    """
    found: list[dict[str, Any]] = []
    for source in _listed(sources):
        if _is_village(source):
            from stockpot.village import VILLAGE_VERSION

            part, split, seed, count = _parse_village(str(source))
            mark = "/val" if split == "val" else ""
            found.append({"path": f"village:{part}{mark}:{seed}:{count}", "version": VILLAGE_VERSION})
        elif _is_hub(source) or is_remote(source):
            found.append({"path": str(source)})
        elif is_shards(source):
            found.append(durable.fingerprint(Path(source) / INDEX) | {"path": str(source)})
        else:
            found.extend(
                fingerprint_votes(path) if is_votes(path) else durable.fingerprint(path)
                for path in find(source)
            )
    return found


def _listed(sources: Source | Sequence[Source]) -> list[Source]:
    listed: list[Source] = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not listed:
        raise DataError("No data was named.", "Name a file, a directory, a pattern or a data set.")
    return listed


def _read(
    sources: Source | Sequence[Source], config: ReadConfig, report: ReadReport, parse: Parse = parse_record
) -> Iterator[Record]:
    named = _listed(sources)
    for source in named:
        if _is_village(source):
            yield from _checked(str(source), _village(str(source)), config, report, parse)
        elif _is_hub(source):
            yield from _checked(str(source), _hub(str(source)), config, report, parse)
        elif is_remote(source):
            for url in find_remote(str(source)):
                with fetched(url) as path:
                    yield from _of_file(path, config, report, parse, url)
        else:
            for path in find(source):
                yield from _of_file(path, config, report, parse)
    report.judge(config)
    report.tell()
    if not report.records:
        names = ", ".join(map(str, named))[:200]
        raise DataError(f"There is no record in {names}: the data is empty.", "Give files with text in them.")


def _of_file(
    path: Path, config: ReadConfig, report: ReadReport, parse: Parse, called: str | None = None
) -> Iterator[Record]:
    ratio = config.max_unpack_ratio
    for entry in entries(path, max_ratio=ratio, left_out=report.left_out, called=called):
        yield from _checked(entry.name, read_entry(entry, config, report), config, report, parse)


def _checked(
    name: str, raw: Iterator[Raw], config: ReadConfig, report: ReadReport, parse: Parse
) -> Iterator[Record]:
    """Check each raw record; refuse bad ones, within the limit."""
    before = report.records + report.bad
    report.files += 1
    for place, entry in raw:
        try:
            records = [parse(value, where) for where, value in unfold(place, entry)]
        except DataError as error:
            report.reject(error, config)
            continue
        report.records += len(records)
        yield from records
    if report.records + report.bad == before:
        report.empty.append(name)


# --- the hub ---


def _is_hub(source: Source) -> bool:
    return isinstance(source, str) and source.startswith(_HUB)


def _hub(source: str) -> Iterator[Raw]:
    """Stream a data set of the Hugging Face hub."""
    name, _, split = source.removeprefix(_HUB).partition("@")
    parts = name.strip("/").split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise DataError(f"{source}: expected hf://OWNER/NAME, hf://OWNER/NAME/CONFIG, or either with @SPLIT.")
    config = parts[2] if len(parts) > 2 else None
    for number, row in enumerate(stream(source, "/".join(parts[:2]), config, split or "train"), 1):
        fields = {key: cell for key, cell in row.items() if key in FIELD_NAMES and cell is not None}
        yield f"{source}:{number}", fields or row


# --- the village ---


def _is_village(source: Source) -> bool:
    return isinstance(source, str) and (source == "village" or source.startswith("village:"))


def _village(source: str) -> Iterator[Raw]:
    """Tell the records of a generated village."""
    from stockpot.village import Village

    part, split, seed, count = _parse_village(source)
    village = Village(seed=seed)
    records: Iterator[dict[str, Any]] = getattr(village, part)(split, count)
    for number, record in enumerate(records, 1):
        yield f"{source}:{number}", record


def _parse_village(source: str) -> tuple[str, str, int, int]:
    """Read the name of a part of the village as part, split, seed and count."""
    words = source.split(":")[1:]
    part, slash, split = words[0].partition("/") if words else ("", "", "")
    if part in _VILLAGE_RECORDS:
        words.pop(0)
    else:
        part, slash, split = "documents", "", ""
    if len(words) > 2 or not all(word.isdecimal() for word in words) or (slash and split != "val"):
        raise DataError(f"{source}: expected {_VILLAGE}.", "Example: village:chats:7:20000")
    seed = int(words[0]) if words else 0
    count = int(words[1]) if len(words) > 1 else _VILLAGE_RECORDS[part]
    return part, split or "train", seed, count
