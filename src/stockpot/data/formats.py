"""From bytes to raw records: text, JSON lines, JSON, tables, web pages and databases of votes.

Each reader is a stream: memory is bounded by one record, and a record that cannot be read is reported with
``file:line`` while the rest goes on. What the fields mean is decided in ``records``.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from stockpot.data.files import Entry, Window, numbered_lines
from stockpot.data.html import page_text
from stockpot.data.reading import ReadConfig, ReadReport, shown
from stockpot.data.records import FIELD_NAMES
from stockpot.data.votes import read_votes
from stockpot.errors import DataError

__all__ = ["Raw", "read_entry"]

Raw = tuple[str, object]
"""Where a record stands (``file:line``), and what it holds."""

_BLOCK = 1 << 20
_INVALID = re.compile("[\ud800-\udfff]")  # also what surrogateescape makes of bytes that are not UTF-8
_BOM = re.compile(codecs.BOM_UTF8)
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_TABLE_ROWS = 256


def read_entry(entry: Entry, config: ReadConfig, report: ReadReport) -> Iterator[Raw]:
    """Yield the raw records of one stream.

    Raises:
        DataError: if the stream as a whole cannot be read, or its text is not UTF-8 and that is to be strict.
    """
    reader = _Reader(entry.name, config, report)
    read: dict[str, Callable[[BinaryIO], Iterator[Raw]]] = {
        "text": reader.text,
        "lines": reader.lines,
        "json": reader.json,
        "csv": lambda file: reader.table(file, ","),
        "tsv": lambda file: reader.table(file, "\t"),
        "parquet": reader.parquet,
        "html": reader.html,
        "votes": reader.votes,
    }
    with entry.open() as file:
        yield from read[entry.form](file)


def _separator(text: str | None) -> tuple[re.Pattern[bytes] | None, int, bytes]:
    """Return what finds a separator, the most bytes it takes, and what of it may stand before what is found.

    A line end of the separator is found as CRLF, too, unless the separator itself says which it is.
    """
    if not text:
        return None, 0, b""
    lines = [re.escape(line.encode()) for line in ([text] if "\r" in text else text.split("\n"))]
    first, *rest = lines
    # The search for a fixed first byte is many times faster than one for a byte that may be there.
    start, rest = (b"\n" + rest[0], rest[1:]) if not first and rest else (first, rest)
    before = b"\r" if start.startswith(b"\n") else b""
    return re.compile(rb"\r?\n".join([start, *rest])), len(text.encode()) + len(lines) - 1, before


class _Reader:
    """Read one stream under one policy."""

    def __init__(self, name: str, config: ReadConfig, report: ReadReport) -> None:
        self._name, self._config, self._report = name, config, report

    # --- text ---

    def text(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield the documents of a text file."""
        for line, offset, document in self._documents(Window(file)):
            text = self._whole(document, offset, line)
            if text is not None and text.strip():
                yield self._at(line), {"text": text}

    def _documents(self, window: Window) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(line, byte offset, document)``; a document that is too long is cut after a line."""
        most = min(self._config.max_document_bytes, self._config.max_line_bytes)
        cut, widest, before = _separator(self._config.separator)
        ahead = most + max(1, widest)  # a byte more than a document tells whether it ends here
        window.fill(ahead)
        window.take(3 if window.search(_BOM, 3) == (0, 3) else 0)
        while window.fill(ahead):
            line, offset = window.line, window.offset
            found = window.search(cut, ahead) if cut is not None else None
            if found is not None and found[0] <= most:
                yield line, offset, window.take(found[0]).removesuffix(before)
                window.take(found[1] - found[0])
            elif window.size <= most:
                yield line, offset, window.take(window.size)
            elif (end := window.last_line(most) or window.first_line(self._config.max_line_bytes)) > 0:
                yield line, offset, window.take(end)
            else:
                self._reject(line, self._too_long)
                window.skip_line()

    def html(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield the readable text of a page."""
        page = file.read(self._config.max_line_bytes + 1)
        if len(page) > self._config.max_line_bytes:
            return self._reject(1, self._too_long)
        text = self._whole(page.removeprefix(codecs.BOM_UTF8), 0, 1)
        if text is not None and (read := page_text(text)):
            yield self._at(1), {"text": read}
        return None

    def _whole(self, data: bytes, offset: int, line: int) -> str | None:
        """Decode a document or line, or apply the policy: None leaves it out."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            match self._config.encoding_errors:
                case "strict":
                    raise self._not_utf8(offset, error, line) from None
                case "replace":
                    self._report.replaced += 1
                    return data.decode("utf-8", errors="replace")
                case "skip":
                    self._report.skipped += 1
        return None

    # --- JSON ---

    def lines(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield one value a line; blank lines are passed over."""
        for line, offset, data in numbered_lines(file, self._config.max_line_bytes):
            if data is None:
                self._reject(line, self._too_long)
                continue
            text = self._escaped(data.removeprefix(codecs.BOM_UTF8) if line == 1 else data, offset, line)
            if not text.strip():
                continue
            try:
                value = self._settled(json.loads(text))
            except (ValueError, RecursionError) as error:
                self._reject(line, _not_json(error))
                continue
            if value is not None:
                yield self._at(line), value

    def json(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield the values of lists, or those that follow one another; the file is never held whole.

        Raises:
            DataError: if a value is not JSON, or the file ends inside a list: what follows would be lost.
        """
        text = _Text(file, self._decoder())
        in_list = False
        while text.more():
            if text.skip("]" if in_list else "["):
                in_list = not in_list
                continue
            line = text.line
            try:
                value = self._settled(text.value(self._config.max_line_bytes))
            except OverflowError:
                raise self._torn(line, self._too_long) from None
            except (ValueError, RecursionError) as error:
                raise self._torn(line, _not_json(error)) from None
            if value is not None:
                yield self._at(line), value
            text.skip(",")
        if in_list:
            raise self._torn(text.line, "the file ends inside a list")

    def _escaped(self, data: bytes, offset: int, line: int) -> str:
        """Decode strictly, or keep bytes that are not UTF-8 as lone surrogates for ``_settled`` to find."""
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self._config.encoding_errors == "strict":
                raise self._not_utf8(offset, error, line) from None
            return data.decode("utf-8", errors="surrogateescape")

    def _decoder(self) -> Callable[[bytes, bool], str]:
        strict = self._config.encoding_errors == "strict"
        decoder = codecs.getincrementaldecoder("utf-8")(errors="strict" if strict else "surrogateescape")
        seen = 0

        def decode(data: bytes, final: bool) -> str:
            nonlocal seen
            waiting = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final)
            except UnicodeDecodeError as error:
                raise self._not_utf8(seen - waiting, error) from None
            seen += len(data)
            return text

        return decode

    def _settled(self, value: object) -> object:
        """Apply the policy to a value with invalid text in it: mend it, or leave it out (None)."""
        policy = self._config.encoding_errors
        if policy == "strict" or not _has_invalid(value):
            return value
        if policy == "skip":
            self._report.skipped += 1
            return None
        self._report.replaced += 1
        return _mended(value)

    # --- tables ---

    def table(self, file: BinaryIO, delimiter: str) -> Iterator[Raw]:
        """Yield the rows of a table whose first row names the columns."""
        csv.field_size_limit(self._config.max_line_bytes)  # process-wide; the module's own limit is 128 kB
        rows = csv.reader(self._table_lines(file), delimiter=delimiter, strict=True)
        names = self._header(rows)
        while names:
            line = rows.line_num + 1
            try:
                row = next(rows, None)
            except csv.Error as error:
                self._reject(line, f"this row cannot be read ({shown(str(error))})")
                continue
            if row is None:
                return
            if row and len(row) != len(names):
                self._reject(line, f"{len(row)} cells under {len(names)} column names")
            elif row:
                value = self._settled(dict(zip(names, row, strict=True)))
                if value is not None:
                    yield self._at(line), value

    def _header(self, rows: Iterator[list[str]]) -> list[str]:
        try:
            names = [name.strip() for name in next(rows, [])]
        except csv.Error as error:
            raise DataError(f"{self._at(1)}: the first row cannot be read ({shown(str(error))}).") from None
        if names and not FIELD_NAMES & set(names):
            found = shown(", ".join(names))
            raise DataError(
                f"{self._at(1)}: the first row must name the columns (found: {found}).",
                'A table of documents has a column "text".',
            )
        if len(set(names)) < len(names):
            raise DataError(f"{self._at(1)}: a column name stands twice.")
        return names

    def _table_lines(self, file: BinaryIO) -> Iterator[str]:
        for line, offset, data in numbered_lines(file, self._config.max_line_bytes):
            if data is None:
                self._reject(line, self._too_long)
                yield "\n"
            else:
                data = data.removeprefix(codecs.BOM_UTF8) if line == 1 else data
                yield self._escaped(data, offset, line)

    def votes(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield the comparisons of a database of votes, which is opened by its name: SQLite needs the files beside it."""
        del file
        for number, record in read_votes(self._name):
            yield self._at(number), record

    def parquet(self, file: BinaryIO) -> Iterator[Raw]:
        """Yield the rows of a parquet file; columns that no record has are not loaded."""
        try:
            import pyarrow as arrow
            from pyarrow import parquet
        except ImportError:
            raise DataError(
                f"{self._name}: parquet needs a package.", "Install it: pip install 'stockpot[data]'"
            ) from None
        try:
            source = _seekable(file, self._config.max_line_bytes)
            table = parquet.ParquetFile(source, page_checksum_verification=True)
            names = [name for name in table.schema_arrow.names if name in FIELD_NAMES]
            if not names:
                found = shown(", ".join(table.schema_arrow.names))
                raise DataError(
                    f"{self._name}: no column is known (found: {found}).", 'Expected: a column "text".'
                )
            number = 0
            for batch in table.iter_batches(batch_size=_TABLE_ROWS, columns=names):
                for row in self._rows(batch, number):
                    number += 1
                    if row is not None:
                        yield self._at(number), row
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self._name}: this parquet file is damaged ({_short(error)}).") from None

    def _rows(self, batch: Any, before: int) -> Iterator[dict[str, Any] | None]:
        """Yield a batch's rows; one whose text is not UTF-8 stops the reading, or is None and counted."""
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:  # nothing was yielded yet: look at one row after the other
            pass
        for index in range(len(batch)):
            try:
                (row,) = batch.slice(index, 1).to_pylist()
            except UnicodeDecodeError as error:
                if self._config.encoding_errors == "strict":
                    raise self._not_utf8(0, error, before + index + 1) from None
                row = self._settled(_escaped_cells(batch.slice(index, 1)))
            yield row

    # --- complaints ---

    def _at(self, line: int) -> str:
        return f"{self._name}:{line}"

    def _reject(self, line: int, why: str) -> None:
        self._report.reject(DataError(f"{self._at(line)}: {why}."), self._config)

    def _torn(self, line: int, why: str) -> DataError:
        return DataError(
            f"{self._at(line)}: {why}, and nothing tells where the next record begins.",
            "Mend the file, or fetch it again; in JSON lines a bad record can be left out.",
        )

    @property
    def _too_long(self) -> str:
        limit = self._config.max_line_bytes
        size = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit} bytes"
        return f"longer than {size} (setting reading.max_line_bytes)"

    def _not_utf8(self, offset: int, error: UnicodeDecodeError, line: int | None = None) -> DataError:
        byte = error.object[error.start]
        place = self._name if line is None else self._at(line)
        utf16 = offset + error.start == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        return DataError(
            f"{place}: byte {offset + error.start} (0x{byte:02x}) is not UTF-8."
            + (" The file looks like UTF-16." if utf16 else ""),
            "Convert the file to UTF-8, or set reading.encoding_errors to replace or skip.",
        )


# --- JSON values in a stream ---


class _Text:
    """Decoded text, of which one JSON value at a time is held."""

    def __init__(self, file: BinaryIO, decode: Callable[[bytes, bool], str]) -> None:
        self._file, self._decode = file, decode
        self._held, self._at, self._ended = "", 0, False
        self._parse = json.JSONDecoder().raw_decode
        self.line = 1

    def more(self) -> bool:
        """Pass over blanks; tell whether anything is left."""
        while True:
            blank = _BLANK.match(self._held, self._at)
            self._advance(blank.end() if blank else self._at)
            if self._at < len(self._held) or self._ended:
                return self._at < len(self._held)
            self._fetch(_BLOCK)

    def skip(self, sign: str) -> bool:
        """Pass over ``sign`` if it comes next."""
        found = self.more() and self._held.startswith(sign, self._at)
        self._advance(self._at + found)
        return found

    def value(self, limit: int) -> object:
        """Parse the next value, fetching twice as much each time it is not complete.

        Raises:
            ValueError: if it is not JSON.
            OverflowError: if it is longer than ``limit`` characters.
        """
        while True:
            try:
                value, end = self._parse(self._held, self._at)
            except ValueError:
                if self._ended:
                    raise
                if len(self._held) - self._at > limit:
                    raise OverflowError from None
            else:
                if end - self._at > limit:
                    raise OverflowError
                if end < len(self._held) or self._ended:  # a number might go on in the next block
                    self._advance(end)
                    return value
            self._fetch(max(_BLOCK, len(self._held) - self._at))

    def _advance(self, to: int) -> None:
        self.line += self._held.count("\n", self._at, to)
        self._at = to

    def _fetch(self, count: int) -> None:
        block = self._file.read(count)
        self._ended = not block
        self._held = self._held[self._at :] + self._decode(block, self._ended)
        self._at = 0


def _has_invalid(value: object) -> bool:
    match value:
        case str():
            return not value.isascii() and _INVALID.search(value) is not None
        case list():
            return any(map(_has_invalid, value))
        case dict():
            return any(_has_invalid(key) or _has_invalid(item) for key, item in value.items())
    return False


def _mended(value: Any) -> Any:
    match value:
        case str():
            return _INVALID.sub("\ufffd", value)
        case list():
            return [_mended(item) for item in value]
        case dict():
            return {_mended(key): _mended(item) for key, item in value.items()}
    return value


def _not_json(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg}, character {error.pos + 1})"
    return f"not JSON ({_short(error)})"


def _short(error: Exception) -> str:
    return shown(" ".join(str(error).split()), 120)


def _escaped_cells(row: Any) -> dict[str, Any]:
    """Read the text cells of a one-row table, with bytes that are not UTF-8 as lone surrogates."""
    cells = {
        name: row.column(name)[0] for name in row.schema.names if str(row.schema.field(name).type) == "string"
    }
    found = {name: cell.as_buffer() for name, cell in cells.items() if cell.is_valid}
    return {name: data.to_pybytes().decode("utf-8", errors="surrogateescape") for name, data in found.items()}


def _seekable(file: BinaryIO, limit: int) -> Any:
    """Give parquet a file it can jump in; a member of an archive is held in memory if it is small."""
    import io

    if file.seekable():
        return file
    data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError("too large to be read inside an archive")
    return io.BytesIO(data)
