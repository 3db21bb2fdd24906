"""Files elsewhere: ``s3://``, ``gs://``, ``https://`` and whatever else fsspec knows, brought here one at a time.

A file is copied to a temporary folder, read as any other, and deleted; so archives and packed files work, and the disk holds
one at a time. Nothing is fetched unless a source names a scheme.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from stockpot.data.reading import shown
from stockpot.errors import DataError

__all__ = ["fetched", "find_remote", "is_remote"]

_SCHEME = re.compile(r"(?!hf://)[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_remote(source: object) -> bool:
    """Tell whether a source names a scheme that fsspec is asked about."""
    return isinstance(source, str) and _SCHEME.match(source) is not None


def find_remote(source: str) -> list[str]:
    """List the files that a URL, a folder's URL or a pattern names, in the order of their names.

    Raises:
        DataError: if there are none, or they cannot be listed.
    """
    files, path = _open(source)
    try:
        if any(sign in path for sign in "*?["):
            found = sorted(str(one) for one in files.glob(path) if not files.isdir(one))
        elif files.isdir(path):
            found = sorted(str(one) for one in files.find(path))
        else:
            found = [path] if files.exists(path) else []
    except Exception as error:  # noqa: BLE001 - each file system raises errors of its own
        raise _unreadable(source, error) from None
    if not found:
        raise DataError(f"{source}: there is no such file.", "Check the address.")
    return [str(files.unstrip_protocol(one)) for one in found]


@contextlib.contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Copy a file here for the length of a block; it keeps its name.

    Raises:
        DataError: if it cannot be read.
    """
    files, path = _open(url)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / (PurePosixPath(path).name or "file")
        try:
            files.get_file(path, str(here))
        except Exception as error:  # noqa: BLE001 - as above
            raise _unreadable(url, error) from None
        yield here


def _open(source: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise DataError(
            f"{source}: files elsewhere need a package.", "Install it: pip install 'stockpot[prepare]'"
        ) from None
    try:
        files, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise _unreadable(source, error) from None
    return files, str(path)


def _unreadable(source: str, error: Exception) -> DataError:
    reason = shown(" ".join(str(error).split()) or type(error).__name__, 200)
    return DataError(
        f"{source}: cannot be read ({reason}).", "Check the address, the network and your rights."
    )
