"""What a GGUF file holds, and whether its directory can be believed, before a byte of it is used.

Reads the metadata and the list of tensors of a GGUF file (versions 2 and 3, little-endian) and checks every
length, count, dimension, offset, overlap and the alignment against the file's size before anything is
allocated for them. Arrays stay in the file's bytes until somebody asks for them. Nothing here reads a tensor
or knows what a key means.

Source of the layout: the GGUF specification, github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from stockpot.errors import CheckpointError

__all__ = ["TENSOR_TYPES", "Array", "GGUFTensor", "GGUFile", "TensorType", "is_gguf", "read_directory"]

MAGIC = b"GGUF"
SAFE = "Get the file again, or write it again from its source."
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

LARGEST_KEY = 1 << 16
LARGEST_STRING = 1 << 24
LARGEST_DIRECTORY = 1 << 28
LARGEST_NAME = 64  # of a tensor; ggml's own limit
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_ITEMS = 1 << 22  # of all arrays together
LARGEST_ALIGNMENT = 1 << 20
MOST_NUMBERS = 1 << 48  # in one tensor
AT_ONCE = 1 << 20


@dataclass(frozen=True)
class TensorType:
    """How numbers are stored: ``size`` bytes hold a block of ``block`` numbers."""

    number: int
    name: str
    block: int
    size: int


TENSOR_TYPES = {
    number: TensorType(number, *rest)
    for number, rest in {
        0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
        2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
        10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    }.items()
}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the directory.

    Attributes:
        shape: as torch has it: rows first, the numbers of a row last.
        start: byte of the file at which it begins.
        size: bytes it takes.
    """

    name: str
    kind: TensorType
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class Array:
    """An array of the metadata, decoded only when it is asked for; its bytes have been checked."""

    kind: int
    count: int
    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return self.count

    def texts(self) -> list[str]:
        """Return the texts of an array of strings.

        Raises:
            ValueError: if it holds numbers, or a text that is not UTF-8.
        """
        if self.kind != STRING:
            raise ValueError("holds numbers, not texts")
        found, at, data, length = [], 0, self.data, struct.Struct("<Q").unpack_from
        for _ in range(self.count):
            end = at + 8 + length(data, at)[0]
            found.append(data[at + 8 : end])
            at = end
        joined = b"\0".join(found)
        if joined.count(0) == self.count - 1:  # the usual case: all are decoded at once
            return joined.decode().split("\0")
        return [one.decode() for one in found]

    def numbers(self) -> tuple[Any, ...]:
        """Return the numbers of an array of numbers.

        Raises:
            ValueError: if it holds texts.
        """
        if self.kind == STRING:
            raise ValueError("holds texts, not numbers")
        return struct.unpack(f"<{self.count}{NUMBERS[self.kind]}", self.data)


@dataclass(frozen=True)
class GGUFile:
    """The checked directory of a GGUF file.

    Attributes:
        path: the file.
        values: the metadata: numbers, truth values, texts and :class:`Array`.
        tensors: by name, in the order of the file.
    """

    path: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is a GGUF file, from its content."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_directory(path: str | os.PathLike[str]) -> GGUFile:
    """Read and check the directory of a GGUF file.

    Raises:
        CheckpointError: if it is something else, cut short, or its directory contradicts itself or the file's
        size; names the file and the field.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _Reader(file, path).directory()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error


class _Reader:
    """Reads a file's beginning piece by piece, and never more than the directory needs."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._size = os.fstat(file.fileno()).st_size
        self._data = b""
        self._base = 0  # byte of the file at which _data begins
        self._at = 0
        self._items = 0
        self._place = "its first bytes"

    def directory(self) -> GGUFile:
        if self._take(4) != MAGIC:
            raise self._wrong("is not a GGUF file")
        version = self._number("I")
        if version not in (2, 3):
            known = "versions 2 and 3 are read"
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3)
            raise self._wrong(
                f"is a big-endian GGUF file; {known}" if swapped else f"is GGUF {version}; {known}"
            )
        tensors, keys = self._number("Q"), self._number("Q")
        # A tensor takes at least 33 bytes here, a key 14: what cannot be there is refused at once.
        if tensors > min(MOST_TENSORS, self._size // 33) or keys > min(MOST_KEYS, self._size // 13):
            raise self._wrong(f"claims {tensors:,} tensors and {keys:,} keys in {self._size:,} bytes")
        values = self._values(keys)
        alignment = values.get("general.alignment", 32)
        if (
            type(alignment) is not int
            or not 1 <= alignment <= LARGEST_ALIGNMENT
            or alignment & (alignment - 1)
        ):
            raise self._wrong(f"has the impossible alignment {alignment!r}")
        entries = [self._entry() for _ in range(tensors)]
        start = -(-self._base_at() // alignment) * alignment
        return GGUFile(self._path, values, self._placed(entries, start, alignment))

    def _values(self, keys: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for number in range(keys):
            self._place = f"key {number + 1}"
            key = self._text(LARGEST_KEY)
            if key in values:
                raise self._wrong(f"has the key {key[:80]!r} twice")
            self._place = f"{key[:80]!r}"
            values[key] = self._value(self._number("I"))
        return values

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._text(LARGEST_STRING)
        if kind == ARRAY:
            return self._array()
        if kind not in NUMBERS:
            raise self._wrong(f"{self._place} has the unknown type {kind}")
        return self._number(NUMBERS[kind])

    def _array(self) -> Array:
        kind, count = self._number("I"), self._number("Q")
        self._items += count
        if self._items > MOST_ITEMS:
            raise self._wrong(f"{self._place} claims {count:,} items; at most {MOST_ITEMS:,} are read")
        if kind == STRING:
            return Array(kind, count, self._strings(count))
        if kind not in NUMBERS:
            raise self._wrong(f"{self._place} is an array of the unknown type {kind}")
        return Array(kind, count, self._take(count * struct.calcsize(f"<{NUMBERS[kind]}")))

    def _strings(self, count: int) -> bytes:
        """Return the bytes of ``count`` strings, having walked over each."""
        parts: list[bytes] = []
        length = struct.Struct("<Q").unpack_from
        left = count
        while left:
            data, at = self._data, self._at
            while left and at + 8 <= len(data) and (end := at + 8 + length(data, at)[0]) <= len(data):
                at = end
                left -= 1
            parts.append(data[self._at : at])
            self._at = at
            if left:  # the next one is not in memory yet: fetch it whole, or find that it cannot be there
                self._need(8)
                self._need(8 + self._sane(length(self._data, self._at)[0]))
        return b"".join(parts)

    def _sane(self, length: int) -> int:
        if length > LARGEST_STRING:
            raise self._wrong(f"{self._place} claims a text of {length:,} bytes")
        return length

    def _entry(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        self._place = "the list of tensors"
        name = self._text(LARGEST_NAME)
        self._place = f"{name!r}"
        rank = self._number("I")
        if not 1 <= rank <= 4:
            raise self._wrong(f"{name!r} has {rank} dimensions")
        dims = tuple(self._number("Q") for _ in range(rank))
        if any(not 1 <= one < MOST_NUMBERS for one in dims) or prod(dims) >= MOST_NUMBERS:
            raise self._wrong(f"{name!r} has the impossible shape {dims}")
        kind, offset = self._number("I"), self._number("Q")
        if kind not in TENSOR_TYPES:
            raise self._wrong(f"{name!r} has the type {kind}, which is not read")
        if dims[0] % TENSOR_TYPES[kind].block:
            raise self._wrong(f"{name!r} has rows of {dims[0]}, no whole blocks of {TENSOR_TYPES[kind].name}")
        return name, TENSOR_TYPES[kind], tuple(reversed(dims)), offset

    def _placed(
        self, entries: list[tuple[str, TensorType, tuple[int, ...], int]], start: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        """Check that the tensors fill the file one after another."""
        found: dict[str, GGUFTensor] = {}
        for name, kind, shape, offset in entries:
            if name in found:
                raise self._wrong(f"has the tensor {name!r} twice")
            size = prod(shape) // kind.block * kind.size
            if offset % alignment or offset + size > self._size - start:
                raise self._wrong(f"{name!r} does not lie inside the file's {self._size:,} bytes")
            found[name] = GGUFTensor(name, kind, shape, start + offset, size)
        end = start
        for one in sorted(found.values(), key=lambda one: one.start):
            if not 0 <= one.start - end < alignment:
                fault = "overlaps the tensor before it" if one.start < end else "leaves a gap before it"
                raise self._wrong(f"{one.name!r} {fault} (starts at byte {one.start:,}, expected {end:,})")
            end = one.start + one.size
        if found and self._size - end >= alignment:
            raise self._wrong(f"{self._size - end:,} bytes after the last tensor belong to nothing")
        return found

    # --- bytes ---

    def _base_at(self) -> int:
        return self._base + self._at

    def _need(self, count: int) -> None:
        """Make sure that ``count`` more bytes are in memory."""
        have = len(self._data) - self._at
        if count <= have:
            return
        if self._base_at() + count > self._size:
            raise self._wrong(f"ends inside {self._place}: it is cut short, or its directory is damaged")
        if self._base_at() + count > LARGEST_DIRECTORY:
            raise self._wrong(f"has a directory of more than {LARGEST_DIRECTORY >> 20} MiB")
        more = self._file.read(max(count - have, AT_ONCE))
        self._base += self._at
        self._data, self._at = self._data[self._at :] + more, 0
        if len(self._data) < count:
            raise self._wrong("became shorter while it was read")

    def _take(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._data[self._at - count : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]

    def _text(self, most: int) -> str:
        length = self._number("Q")
        if length > most:
            raise self._wrong(f"{self._place} claims a text of {length:,} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._wrong(f"{self._place} is not UTF-8") from None

    def _wrong(self, what: str) -> CheckpointError:
        verbs = ("is ", "has ", "claims ", "ends ", "became ")
        return CheckpointError(f"{self._path}{' ' if what.startswith(verbs) else ': '}{what}.", SAFE)
