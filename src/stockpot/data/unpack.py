"""Packed bytes made plain, under guard.

Unpacks gzip and zstd (told by their first bytes, not by a name), counts what comes out, stops where it looks
like a bomb, and turns every unpacker's error into ours. It opens no file.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from stockpot.data.reading import shown
from stockpot.errors import DataError

__all__ = ["Budget", "Guarded", "unpacked"]

_FREE_BYTES = 64 << 20  # unpacked before the ratio is looked at
_BUFFER = 1 << 20


@dataclass
class Budget:
    """How much may still come out of a file or archive."""

    name: str
    packed: int
    max_ratio: int
    unpacked: int = 0

    def spend(self, count: int) -> None:
        """Count bytes that came out.

        Raises:
            DataError: if they are too many for what went in.
        """
        self.unpacked += count
        if self.unpacked > _FREE_BYTES and self.unpacked > self.packed * self.max_ratio:
            raise DataError(
                f"{self.name}: {self.packed} packed bytes give more than {self.unpacked} unpacked ones: "
                "this looks like a decompression bomb.",
                "If the file is sound, raise reading.max_unpack_ratio.",
            )


@contextlib.contextmanager
def unpacked(stream: io.BufferedReader[Any], name: str, budget: Budget) -> Iterator[BinaryIO]:
    """Unpack gzip or zstd if the first bytes say so."""
    magic = stream.peek(4)[:4]
    if magic[:2] == b"\x1f\x8b":
        inner: Any = gzip.GzipFile(fileobj=stream)
    elif magic == b"\x28\xb5\x2f\xfd":
        inner = _zstd(stream, name)
    else:
        yield stream
        return
    with inner:
        yield io.BufferedReader(Guarded(inner, name, budget), _BUFFER)


def _zstd(file: io.BufferedReader[Any], name: str) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{name}: zstd needs a package.", "Install it: pip install 'stockpot[data]'"
        ) from None
    return _Zstd(file, zstandard.ZstdDecompressor().decompressobj)


class _Zstd(contextlib.AbstractContextManager["_Zstd"]):
    """Unpack zstd frame by frame, noticing a torn last one, which the package's own reader does not.

    A kilobyte goes in at a time, since four bytes may unpack to 128 KiB.
    """

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._file, self._new_frame = file, new_frame
        self._frame: Any = None
        self._packed = b""
        self._held = memoryview(b"")

    def __exit__(self, *error: object) -> None:
        self._held = memoryview(b"")

    def read(self, count: int) -> bytes:
        """Give up to ``count`` unpacked bytes; none at the end."""
        while not self._held:
            packed = self._packed or self._file.read(1024)
            if not packed and self._frame is None:
                return b""
            if not packed:
                raise EOFError("the last frame is torn")
            self._frame = self._frame or self._new_frame()
            self._held = memoryview(self._frame.decompress(packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        taken, self._held = self._held[:count], self._held[count:]
        return bytes(taken)


class Guarded(io.RawIOBase):
    """Read an unpacker, count what comes out, and turn its errors into ours."""

    def __init__(self, inner: Any, name: str, budget: Budget) -> None:
        self._inner, self._name, self._budget = inner, name, budget
        self._count = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with unpacked bytes; 0 at the end.

        Raises:
            DataError: if the packed data is damaged, or gives too much.
        """
        try:
            data = self._inner.read(len(buffer))
        except DataError:
            raise
        except Exception as error:
            if not is_damage(error):
                raise
            raise DataError(
                f"{self._name}: the packed data is damaged after {self._count} unpacked bytes ({shown(str(error), 120)}).",
                "Fetch or write the file again.",
            ) from None
        self._count += len(data)
        self._budget.spend(len(data))
        buffer[: len(data)] = data
        return len(data)


def is_damage(error: Exception) -> bool:
    """Unpackers raise what they like; zstandard's error is known by its name, as it may be absent."""
    kinds = (EOFError, OSError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
    return isinstance(error, kinds) or type(error).__name__ == "ZstdError"
