"""What is written is whole or absent.

The one place that knows how a file or folder gets onto the disk safely, how to tell later that it is still as
it was written, who may write, and how a full disk is told in one line. It knows nothing of runs or formats.

Source of the order (temporary name, fsync of the files, rename, fsync of the folder): POSIX.1-2017.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from stockpot.errors import TrainError

__all__ = [
    "FolderLock",
    "append",
    "clean",
    "discard",
    "empty_room",
    "fill_atomically",
    "fill_from",
    "fingerprint",
    "half_name",
    "is_locked",
    "is_sealed",
    "lock_folder",
    "one_line_when_full",
    "sync",
    "verify",
    "write_atomically",
    "write_json_lines",
]

CHECKSUMS = "checksums.json"
LOCK = ".lock"
HALF, OLD = ".half-", ".old-"  # what is being written or deleted; what is being replaced
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_json_lines(path: str | Path, rows: Iterable[Any]) -> None:
    """Write a file of JSON, one row a line, as :func:`write_atomically` does."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_atomically(path: str | Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, whatever happens."""
    path = Path(path)
    fresh = half_name(path)
    try:
        with fresh.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append(path: Path, line: str) -> None:
    """Append a line, or nothing: a full disk must not leave half a line before the next one."""
    data = line.encode("utf-8")
    with path.open("ab", buffering=0) as file:  # a buffer would be written again on closing
        size = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            os.truncate(path, size)
            raise


def half_name(path: Path) -> Path:
    """Name the temporary neighbour of ``path`` that ``clean`` will recognise."""
    return path.with_name(HALF + path.name)


# --- sealed folders ---


@contextlib.contextmanager
def fill_atomically(final: Path, **facts: Any) -> Iterator[Path]:
    """Yield an empty folder to fill; at the end it is sealed with checksums and takes the place of ``final``.

    On any error it disappears and ``final`` is as it was. ``facts`` are stored beside the checksums.
    """
    half = half_name(final)
    try:
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        yield half
        _seal(half, facts)
        _move_into_place(half, final)
    except BaseException:
        shutil.rmtree(half, ignore_errors=True)
        raise


def empty_room(final: Path) -> Path:
    """Make an empty folder beside ``final`` in which it is got ready; ``clean`` removes it after a crash."""
    room = half_name(final.with_name(f"ready-{final.name}"))
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir(parents=True)
    return room


def fill_from(room: Path, folder: Path) -> None:
    """Move everything in a room to an empty folder on the same disk, and remove the room."""
    for path in room.iterdir():
        path.rename(folder / path.name)
    room.rmdir()


def discard(room: Path) -> None:
    """Remove a room and what is left in it, if it is still there."""
    shutil.rmtree(room, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what a killed write left in ``folder``; put back a folder whose replacement never arrived."""
    for path in folder.glob(f"{OLD}*"):
        final = path.with_name(path.name.removeprefix(OLD))
        if final.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(final)
    for path in folder.glob(f"{HALF}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def is_sealed(folder: Path) -> bool:
    """Tell whether a folder says which checksums its files had."""
    return (folder / CHECKSUMS).is_file()


def verify(folder: Path, *, only: str = "*") -> str | None:
    """Say what is wrong with a sealed folder, or None if every file is as it was written.

    Args:
        folder: one that ``fill_atomically`` made.
        only: pattern of the files to look at.
    """
    sealed = _sealed(folder)
    if not sealed:
        return f"{CHECKSUMS} is missing or unreadable"
    for name, said in sealed.items():
        path = folder / name
        if not fnmatch(name, only):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != said["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {said['bytes']}"
        if _sha256(path) != said["sha256"]:
            return f"{name} has changed since it was written"
    return None


def fingerprint(path: str | Path) -> dict[str, Any]:
    """Describe a file, or a folder's files, as ``{"path", "bytes", "sha256"}``.

    A sealed folder answers from its checksums, without reading weights again; training state does not count.
    """
    path = Path(path)
    if path.is_file():
        return {"path": str(path), "bytes": path.stat().st_size, "sha256": _sha256(path)}
    sealed = _sealed(path) or {}
    names = [name for name in (sealed or _files(path)) if not name.startswith("state/") and name != CHECKSUMS]
    files = {name: sealed.get(name) or _describe(path / name) for name in sorted(names)}
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return {"path": str(path), "bytes": sum(file["bytes"] for file in files.values()), "sha256": digest}


def _sealed(folder: Path) -> dict[str, dict[str, Any]] | None:
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))[
            "files"
        ]
        whole = all({"bytes", "sha256"} <= set(said) for said in files.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return files if whole else None


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    files = {name: _describe(folder / name) for name in _files(folder)}
    for name in files:
        sync(folder / name)
    write_atomically(folder / CHECKSUMS, json.dumps(facts | {"files": files}, indent=1) + "\n")
    for inner in {(folder / name).parent for name in files}:
        sync(inner)


def _move_into_place(half: Path, final: Path) -> None:
    old = final.with_name(OLD + final.name)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    half.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Push a file or a folder's names to the disk."""
    if os.name == "nt":  # Windows opens no folder, and flushes a file only through its writing handle
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- one writer ---


FolderLock = BaseFileLock


def lock_folder(folder: Path) -> FolderLock:
    """Make this process the only writer of ``folder`` until the lock's ``release``.

    The system drops the lock when its owner dies, so that one left by kill -9 is free at once.

    Raises:
        BlockingIOError: if another process holds it.
        OSError: if the folder cannot be written to.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0.5)  # ``is_locked`` may hold it for a moment
    except Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, "in use", str(folder)) from None
    return lock


def is_locked(folder: Path) -> bool:
    """Tell whether a living process owns the folder."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that we may only read
        return False
    lock.release()
    return False


# --- a full disk ---


@contextlib.contextmanager
def one_line_when_full(path: Path, intact: Path | None = None) -> Iterator[None]:
    """Turn whatever a full disk raises into one ``TrainError`` naming the disk and what is still intact."""
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        free = shutil.disk_usage(path).free / 2**20
        safe = f" The checkpoint {intact} is intact." if intact else ""
        raise TrainError(
            f"The disk at {_mount(path)} is full ({free:.0f} MiB free) while writing to {path}.{safe}",
            "Free some space, then continue with --resume.",
        ) from error


def _is_full(error: BaseException) -> bool:
    """Libraries wrap the system's error, so its text counts as well as its number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    text = str(error)
    return any(words in text for words in ("No space left", "os error 28", "quota exceeded"))


def _mount(path: Path) -> Path:
    path = path.resolve()
    return next((parent for parent in (path, *path.parents) if parent.is_mount()), path)
