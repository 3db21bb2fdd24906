"""Documents: which files paths name, and what readable parts each has.

Text, Markdown, HTML, CSV and JSON lines are read by the same readers as training data; PDF and Word in a child process
(`papers`). A part knows where it stands, so that a passage can be cited. Hidden files, and links that lead out of the
folder, are passed over.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stockpot.data.files import FORMS, entries
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import DataError
from stockpot.home import without_tilde
from stockpot.prompt.papers import PaperError, read_paper

__all__ = ["Part", "find_documents", "other_kinds", "read_document"]

PAPERS = (".pdf", ".docx")
PACKED = (".gz", ".zst")
TABLES = {".csv": ",", ".tsv": "\t"}
TITLES = ("title", "heading", "name")
IDS = ("pid", "id", "_id")
_FENCED = re.compile(r"(?ms)^ {0,3}(`{3,}|~{3,})[^`\n]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)")
_HEADING = re.compile(r"(?m)^(#{1,6})[ \t]+(.+?)[ \t]*#*$")


@dataclass(frozen=True)
class Part:
    """A readable part of a document.

    Attributes:
        text: its words.
        title: the heading it stands under, or a record's title; may be empty.
        place: where in the document: a page, a line, a record's id; may be empty.
    """

    text: str
    title: str = ""
    place: str = ""


def find_documents(paths: Iterable[str | Path]) -> list[Path]:
    """List the documents that paths name: files, and all readable files inside folders, at any depth.

    Raises:
        DataError: if a path does not exist, or there is nothing to read.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = without_tilde(given)
        if path.is_dir():
            found |= dict.fromkeys(_inside(path))
        elif path.is_file():
            found[path] = None
        else:
            raise DataError(f"{path}: there is no such file or folder.", "Check the path.")
    if not found:
        known = " ".join(sorted({*FORMS, *PAPERS}))
        raise DataError(
            "There is no document to read.", f"Files that are read: {known}, also packed with .gz."
        )
    return list(found)


def other_kinds(paths: Iterable[str | Path]) -> dict[str, int]:
    """Count the files inside folders that are of no kind that is read, by how their names end; the commonest come first."""
    folders = [path for path in map(without_tilde, paths) if path.is_dir()]
    others = {path for folder in folders for path in _visible(folder) if _form(path) is None}
    return dict(Counter(path.suffix.lower() or path.name for path in sorted(others)).most_common())


def _inside(folder: Path) -> Iterator[Path]:
    return (path for path in _visible(folder) if _form(path) is not None)


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files inside a folder, without hidden ones and links that lead out of it."""
    home = folder.resolve()
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and path.is_file() and path.resolve().is_relative_to(home):
                yield path


def _form(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in PACKED:
        suffix = path.with_suffix("").suffix.lower()
        return FORMS.get(suffix)
    return "paper" if suffix in PAPERS else FORMS.get(suffix)


def read_document(path: Path) -> list[Part]:
    """Read a document's parts, in their order; halves of characters (lone surrogates) become �.

    Raises:
        DataError: if it cannot be read: damaged, encrypted, not UTF-8, too large, or of no known form.
    """
    return [
        Part(_whole(one.text), _whole(one.title), _whole(one.place)) for one in _parts_of(path, _form(path))
    ]


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts_of(path: Path, form: str | None) -> list[Part]:
    if form == "paper":
        try:
            return [Part(text, title=place, place=place) for place, text in read_paper(path) if text.strip()]
        except PaperError as error:
            raise DataError(f"{path}: {error}.", "Mend the file, or leave it out.") from None
    if form is None:
        raise DataError(f"{path}: files of this kind are not read.", f"Known: {' '.join([*FORMS, *PAPERS])}.")
    if path.suffix.lower() in TABLES:
        return _table(path, TABLES[path.suffix.lower()])
    report, config = ReadReport(), ReadConfig()
    parts: list[Part] = []
    is_markdown = any(suffix.lower() in (".md", ".markdown") for suffix in path.suffixes)
    for entry in entries(path, max_ratio=config.max_unpack_ratio, left_out=report.left_out):
        for where, record in read_entry(entry, config, report):
            parts += _parts(record, where, form, is_markdown=is_markdown)
    report.judge(config)
    return parts


def _parts(record: object, where: str, form: str, *, is_markdown: bool) -> list[Part]:
    if isinstance(record, str):
        return [Part(record, place=_line(where))]
    if not isinstance(record, Mapping):
        return []
    if form in ("text", "html"):
        text = str(record.get("text", ""))
        return list(_sections(text)) if is_markdown else [Part(text)]
    title = next((str(record[name]) for name in TITLES if record.get(name)), "")
    place = next((str(record[name]) for name in IDS if record.get(name) not in (None, "")), _line(where))
    found = record.get("text")
    text = found if isinstance(found, str) else ""
    if not isinstance(found, str):  # a table's row: every cell by its column's name
        cells = (
            (name, value) for name, value in record.items() if name not in IDS and value not in (None, "")
        )
        text = "; ".join(f"{name}: {value}" for name, value in cells if isinstance(value, str | int | float))
    return [Part(text, title, place)] if text.strip() else []


def _table(path: Path, separator: str) -> list[Part]:
    """Read a table whose first row names the columns, whatever they are; each row is a part."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter=separator, restkey="more")
            found = [(rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: the table cannot be read ({error}).", "Write it as UTF-8 CSV.") from None
    return [
        part for number, row in found for part in _parts(row, f"{path}:{number}", "csv", is_markdown=False)
    ]


def _line(where: str) -> str:
    number = where.rpartition(":")[2]
    return f"line {number}" if number.isdigit() else where


def _sections(text: str) -> Iterator[Part]:
    """Cut Markdown at its headings, of which code holds none; a part's title names the headings above it."""
    above: list[tuple[int, str]] = []
    start, title = 0, ""
    for heading in _HEADING.finditer(_FENCED.sub(lambda code: " " * len(code[0]), text)):
        if text[start : heading.start()].strip():
            yield Part(text[start : heading.start()].strip(), title, title)
        depth = len(heading[1])
        above = [one for one in above if one[0] < depth] + [(depth, heading[2])]
        title = " › ".join(name for _, name in above)
        start = heading.end()
    if text[start:].strip():
        yield Part(text[start:].strip(), title, title)
