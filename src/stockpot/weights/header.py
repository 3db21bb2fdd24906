"""What a weights file is, and whether its directory can be believed, before a byte of it is used.

A file is recognised by its first bytes, never by its name. The directory of a safetensors file is checked
whole (length, JSON, dtypes, dimensions, offsets, gaps, overlaps) before anything is allocated for its
tensors. Nothing here reads a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stockpot.errors import CheckpointError

__all__ = ["SAFE", "Entry", "check_safetensors", "kind_of", "refuse_unless_safetensors"]

FileKind = Literal["safetensors", "gguf", "pickle", "json", "empty", "unknown"]

LARGEST_HEADER = 100 * 2**20  # the format's own limit
LARGEST_RANK = 16
WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
SAFE = "Get the file again, or write it again from its source."


@dataclass(frozen=True)
class Entry:
    """One tensor of a file's directory; ``start`` and ``end`` count bytes from the beginning of the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def kind_of(path: Path) -> FileKind:
    """Say what a file is, from its content.

    A zip archive or anything that begins like a pickle counts as one: that is how torch writes ``.bin`` and
    ``.pt`` files.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "empty"
    # First, since a directory of 0x0480 bytes would look like the beginning of a pickle.
    if head[4:9] == b"\x00\x00\x00\x00{":
        return "safetensors"
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and head[1:2] <= b"\x05"):
        return "pickle"
    # Old tar-based torch files and protocol 0 pickles begin with text of their own.
    if head[:1] in b"(c]}" and b"\n" in head:
        return "pickle"
    return "json" if head.lstrip()[:1] == b"{" else "unknown"


def refuse_unless_safetensors(path: Path) -> None:
    """Refuse a file that is not a safetensors file, saying what it is instead.

    Raises:
        CheckpointError: naming the file and what it was recognised as.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        return
    if kind == "pickle":
        raise CheckpointError(
            f"{path} is a pickle, which can run code when it is read; only safetensors files are read.",
            "Get the model's safetensors version, or convert it where it came from.",
        )
    names = {"gguf": "a GGUF file", "json": "a JSON file", "empty": "empty", "unknown": "not a weights file"}
    raise CheckpointError(f"{path} is {names[kind]}; a safetensors file was expected.", SAFE)


def check_safetensors(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Check a safetensors file's directory; return its tensors by name, and its free-form notes.

    Raises:
        CheckpointError: if the file is something else, cut short, or its directory contradicts itself or the
        file's size.
    """
    try:
        refuse_unless_safetensors(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            header, data_size = _read_header(file, size, path)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions."
        ) from error
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to texts.", SAFE)
    entries = {name: _entry(name, value, data_size, path) for name, value in header.items()}
    _check_layout(entries, data_size, path)
    return entries, notes


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed directory and the number of data bytes behind it."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(LARGEST_HEADER, size - 8):
        raise CheckpointError(
            f"{path}: its directory claims {length:,} bytes, but the file has {size:,}.", SAFE
        )
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its directory cannot be read: {error}.", SAFE) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its directory is not an object.", SAFE)
    return header, size - 8 - length


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _entry(name: str, value: Any, data_size: int, path: Path) -> Entry:
    """Check one tensor's line of the directory."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: {name!r} needs dtype, shape and data_offsets.", SAFE)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise CheckpointError(
            f"{path}: {name!r} has the unknown dtype {dtype!r}.", f"Known: {', '.join(WIDTHS)}."
        )
    if not _are_sizes(shape) or len(shape) > LARGEST_RANK:
        raise CheckpointError(f"{path}: {name!r} has the impossible shape {str(shape)[:80]}.", SAFE)
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        raise CheckpointError(f"{path}: {name!r} lies outside the file's {data_size:,} bytes of data.", SAFE)
    if prod(shape) * WIDTHS[dtype] != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{path}: {name!r} {tuple(shape)} of {dtype} does not fill {offsets[1] - offsets[0]:,} bytes.",
            SAFE,
        )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**62 for value in values)


def _check_layout(entries: Mapping[str, Entry], data_size: int, path: Path) -> None:
    """Refuse overlaps and gaps: every data byte belongs to exactly one tensor."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            fault = "overlaps the tensor before it" if entry.start < at else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: {name!r} {fault} (starts at byte {entry.start:,}, expected {at:,}).", SAFE
            )
        at = entry.end
    if at != data_size:
        raise CheckpointError(
            f"{path}: {data_size - at:,} bytes after the last tensor belong to nothing.", SAFE
        )
