"""Which files a source names, and how their bytes are read without harm.

Decides what is opened: regular files only, each directory once, archives in place (nothing is ever unpacked
to the disk), and unpacking stops where it looks like a bomb. What a container is (gzip, zstd, zip, parquet,
SQLite) is read from its first bytes. It does not know what a record is.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from stockpot.data.reading import shown
from stockpot.data.unpack import Budget, Guarded, unpacked
from stockpot.data.votes import MAGIC
from stockpot.errors import DataError
from stockpot.home import without_tilde

__all__ = ["FORMS", "Entry", "Form", "Window", "entries", "find", "numbered_lines"]

Form = Literal["text", "lines", "json", "csv", "tsv", "parquet", "html", "votes"]

FORMS: dict[str, Form] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
}
"""The endings of file names that are read, and how."""

_PACKED = (".gz", ".zst", ".zip")
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One stream of records: a file or a member of an archive."""

    name: str
    form: Form
    open: Callable[[], contextlib.AbstractContextManager[BinaryIO]] = field(repr=False)


def find(source: str | os.PathLike[str]) -> list[Path]:
    """List the files that a path, a directory or a pattern names, in the order of their names.

    A directory gives the files inside it, at any depth, whose ending is known; hidden ones and links to
    directories are passed over.

    Raises:
        DataError: if there are none.
    """
    path = without_tilde(source)
    if _exists(path):
        found = _inside(path) if path.is_dir() else [path]
        if not found:
            known = " ".join(sorted({*FORMS, *_PACKED}))
            raise DataError(
                f"{path}: there is no file to read in this directory.", f"Files that are read: {known}."
            )
        return found
    if not any(sign in str(path) for sign in "*?["):
        raise DataError(f"{path}: there is no such file or directory.", "Check the path.")
    names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    matches = [Path(name) for name in sorted(names)]
    found = [file for match in matches for file in (_inside(match) if match.is_dir() else [match])]
    if not found:
        raise DataError(f"{path}: no file matches this pattern.", "Check the path.")
    return list(dict.fromkeys(found))


def entries(path: Path, *, max_ratio: int, left_out: list[str], called: str | None = None) -> Iterator[Entry]:
    """Open a file far enough to list its streams; more than one only in a zip.

    Args:
        path: a file.
        max_ratio: unpacked bytes allowed for each packed byte, once 64 MiB are unpacked.
        left_out: names of members that are not read are added here.
        called: what it is called in messages, such as the address it came from; None: its path.

    Raises:
        DataError: if it is not a regular file, or its container is damaged.
    """
    with _opened(path) as file:
        magic = file.read(len(MAGIC))
        size = os.fstat(file.fileno()).st_size
    name = called or str(path)
    budget = Budget(name, size, max_ratio)
    if magic[:4] == b"PK\x03\x04" or (path.suffix == ".zip" and size):
        yield from _members(path, name, budget, left_out)
        return
    yield Entry(name, _form(path.name, magic), lambda: _stream(path, name, budget))


def numbered_lines(file: BinaryIO, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield ``(number, byte offset, line)`` with numbers from 1; a line longer than ``limit`` bytes is None.

    Memory stays below the limit, whatever the file holds.
    """
    number, offset = 0, 0
    while line := file.readline(limit + 1):
        number += 1
        start = offset
        offset += len(line)
        if len(line) <= limit or line.endswith(b"\n"):
            yield number, start, line
            continue
        while rest := file.readline(_BUFFER):
            offset += len(rest)
            if rest.endswith(b"\n"):
                break
        yield number, start, None


class Window:
    """A few megabytes of a file, moving forward; knows the line and the byte it stands at."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held, self._at, self._ended = b"", 0, False
        self.line, self.offset = 1, 0

    @property
    def size(self) -> int:
        """Bytes in view."""
        return len(self._held) - self._at

    def fill(self, count: int) -> bool:
        """Bring ``count`` bytes into view, or what is left; tell whether there are any."""
        while self.size < count and not self._ended:
            block = self._file.read(max(_BUFFER, count - self.size))
            self._ended = not block
            self._held, self._at = self._held[self._at :] + block, 0
        return self.size > 0

    def take(self, count: int) -> bytes:
        """Give the next bytes and move past them."""
        taken = self._held[self._at : self._at + count]
        self._at += len(taken)
        self.offset += len(taken)
        self.line += taken.count(b"\n")
        return taken

    def search(self, what: re.Pattern[bytes], within: int) -> tuple[int, int] | None:
        """Tell before how many bytes ``what`` begins and ends in the next ``within`` bytes; None: it is not there."""
        found = what.search(self._held, self._at, self._at + within)
        return None if found is None else (found.start() - self._at, found.end() - self._at)

    def last_line(self, within: int) -> int:
        """Tell how many bytes whole lines fill in the next ``within`` bytes; 0: not one line ends there."""
        return max(0, self._held.rfind(b"\n", self._at, self._at + within) + 1 - self._at)

    def first_line(self, limit: int) -> int:
        """Tell how long the next line is, its end included, bringing it into view; 0: more than ``limit``."""
        searched = 0
        while (
            (end := self._held.find(b"\n", self._at + searched)) < 0
            and not self._ended
            and self.size <= limit
        ):
            searched = self.size
            self.fill(min(2 * self.size, limit + 1))
        length = self.size if end < 0 else end + 1 - self._at
        return length if length <= limit else 0

    def skip_line(self) -> None:
        """Move past the next line without holding it."""
        while (end := self._held.find(b"\n", self._at)) < 0 and not self._ended:
            self.take(self.size)
            self.fill(_BUFFER)
        self.take(self.size if end < 0 else end + 1 - self._at)


# --- finding ---


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(
                f"{path}: the link leads back to itself.", "Remove it or name the file."
            ) from None
        if path.is_symlink():
            raise DataError(f"{path}: the link leads nowhere.", "Remove it or name the file.") from None
        return False
    except ValueError:  # a NUL in the name
        return False
    return True


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for where, folders, names in os.walk(folder, followlinks=False, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(where)
        if "index.json" in names and any(name.endswith(".bin") for name in names):
            raise DataError(
                f"{here}: these are tokenised shards, not records.",
                "Name their folder alone, where shards are taken.",
            )
        found += [here / name for name in names if not name.startswith(".") and _is_known(name)]
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: the directory cannot be read ({error.strerror}).") from None


def _ending(name: str) -> str:
    """Give the ending that tells the form: ``.jsonl`` of ``a.jsonl.gz``."""
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix in (".gz", ".zst") else path.suffix


def _is_known(name: str) -> bool:
    ending = _ending(name)
    return ending in FORMS or ending == ".zip"


def _form(name: str, magic: bytes = b"") -> Form:
    """Tell the form from the ending; a name without a known one is plain text."""
    if magic[:4] == b"PAR1":
        return "parquet"
    if magic == MAGIC:
        return "votes"
    return FORMS.get(_ending(name), "text")


# --- opening ---


def _opened(path: Path) -> io.BufferedReader:
    """Open a regular file; anything that could block or never end is refused."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataError(f"{path}: the file cannot be opened ({error.strerror}).") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{path}: this is not a regular file (a pipe, a device or the like).", "Name a file.")
    return os.fdopen(handle, "rb")


@contextlib.contextmanager
def _stream(path: Path, name: str, budget: Budget) -> Iterator[BinaryIO]:
    with _opened(path) as file, unpacked(file, name, budget) as stream:
        yield stream


# --- zip ---


def _members(path: Path, called: str, budget: Budget, left_out: list[str]) -> Iterator[Entry]:
    """List the members of a zip that can be read, by name; they are streamed, never extracted."""
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            members = sorted(archive.infolist(), key=lambda info: info.filename)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise DataError(
            f"{called}: the zip is damaged ({shown(str(error), 120)}).", "Fetch or write the file again."
        ) from None
    for info in members:
        name = f"{called}!{shown(info.filename, 200)}"
        hidden = any(part.startswith((".", "__MACOSX")) for part in info.filename.split("/"))
        if info.is_dir():
            continue
        if hidden or not _is_known(info.filename) or info.filename.lower().endswith(".zip"):
            left_out.append(name)
            continue
        yield Entry(name, _form(info.filename), _opener(path, info, name, budget))


def _opener(
    path: Path, info: zipfile.ZipInfo, name: str, budget: Budget
) -> Callable[[], contextlib.AbstractContextManager[BinaryIO]]:
    @contextlib.contextmanager
    def open_member() -> Iterator[BinaryIO]:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            try:
                member = archive.open(info)
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError) as error:
                raise DataError(f"{name}: the member cannot be read ({shown(str(error), 120)}).") from None
            with member:
                stream = io.BufferedReader(Guarded(member, name, budget), _BUFFER)
                with unpacked(stream, name, budget) as inner:
                    yield inner

    return open_member
