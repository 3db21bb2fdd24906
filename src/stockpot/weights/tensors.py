"""Tensors between files and parameters: joined or split as a family stores them, checked, and copied once.

Every name and shape is compared before anything is allocated; all that is wrong is told in one error. Files
are safetensors only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stockpot.errors import CheckpointError
from stockpot.weights.family import Part
from stockpot.weights.header import Entry, check_safetensors

__all__ = ["Shelf", "check_parts", "read_parts", "write_parts"]

SHOWN = 4  # names shown of each kind of fault
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shelf:
    """The tensors of one or more files, by name; directories are checked, nothing is read yet."""

    def __init__(self, files: Sequence[Path], places: Mapping[str, str] | None = None) -> None:
        self.entries: dict[str, Entry] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            for name, entry in check_safetensors(file)[0].items():
                if places is not None and places.get(name) != file.name:
                    continue
                self.entries[name], self._files[name] = entry, file
        absent = [name for name in places or () if name not in self.entries]
        if absent:
            raise CheckpointError(
                f"{files[0].parent}: the index promises {absent[0]!r}, but its file does not hold it"
                f" ({len(absent)} in all).",
                "Copy the folder again.",
            )

    @property
    def numbers(self) -> int:
        """How many numbers all tensors hold together."""
        return sum(torch.Size(entry.shape).numel() for entry in self.entries.values())

    @contextmanager
    def open(self) -> Iterator[_Reader]:
        """Open the files for reading."""
        yield _Reader(self._files)


class _Reader:
    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._open: dict[Path, safe_open] = {}

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, as a view of its file where the system allows."""
        file = self._files[name]
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: {name!r} cannot be read: {error}.", "Copy the file again."
            ) from error
        return tensor


def check_parts(
    shelf: Shelf, parts: Sequence[Part], shapes: Mapping[str, torch.Size], ignored: Sequence[str], where: Path
) -> None:
    """Compare every name, shape and dtype of a file with what a model needs.

    Raises:
        CheckpointError: naming what is missing, unexpected, of another shape, or of a dtype we do not compute
        with.
    """
    wanted = {
        name: shape for part in parts for name, shape in _stored_shapes(part, shapes[part.ours]).items()
    }
    missing = [name for name in wanted if name not in shelf.entries]
    unexpected = [name for name in shelf.entries if name not in wanted and not name.endswith(tuple(ignored))]
    shaped = [
        f"{name} {entry.shape} instead of {wanted[name]}"
        for name, entry in shelf.entries.items()
        if name in wanted and entry.shape != wanted[name]
    ]
    typed = [f"{n} ({e.dtype})" for n, e in shelf.entries.items() if n in wanted and e.dtype not in DTYPES]
    faults = {
        "missing": missing,
        "not expected": unexpected,
        "of another shape": shaped,
        "not readable": typed,
    }
    told = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(
            f"{where}: the weights do not fit config.json: tensors {'; '.join(told)}.",
            "Weights and config.json must come from the same model.",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")


def _stored_shapes(part: Part, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    if len(part.theirs) > 1:
        return {name: (rows, *shape[1:]) for name, rows in zip(part.theirs, part.rows, strict=True)}
    return {part.theirs[0]: tuple(reversed(shape)) if part.transposed else tuple(shape)}


def read_parts(
    shelf: Shelf,
    parts: Sequence[Part],
    shapes: Mapping[str, torch.Size],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    where: Path,
) -> dict[str, Tensor]:
    """Read our parameters; ``dtype=None`` keeps the file's.

    Raises:
        CheckpointError: if numbers are not finite; names the tensors.
    """
    found: dict[str, Tensor] = {}
    broken: list[str] = []
    with shelf.open() as files:
        for part in parts:
            kind = dtype or DTYPES[shelf.entries[part.theirs[0]].dtype]
            whole = torch.empty(shapes[part.ours], dtype=kind, device=device)
            start = 0
            for name in part.theirs:
                stored = files.tensor(name)
                if not bool(stored.isfinite().all()):
                    broken.append(name)
                piece = stored.T if part.transposed else stored
                whole[start : start + piece.shape[0]].copy_(piece)
                start += piece.shape[0]
            found[part.ours] = whole
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} tensors hold NaN or infinity ({_some(broken)}).",
            "The training that wrote them went wrong; use an earlier checkpoint.",
        )
    return found


def write_parts(path: Path, parts: Sequence[Part], params: Mapping[str, Tensor]) -> None:
    """Write parameters as one safetensors file.

    Raises:
        CheckpointError: if numbers are not finite; names the parameters.
    """
    stored: dict[str, Tensor] = {}
    broken: list[str] = []
    for part in parts:
        whole = params[part.ours].detach().cpu()
        if not bool(whole.isfinite().all()):
            broken.append(part.ours)
        if part.transposed:
            whole = whole.T
        start = 0
        for name, rows in zip(part.theirs, part.rows or (whole.shape[0],), strict=True):
            stored[name] = whole[start : start + rows].contiguous()
            start += rows
    if broken:
        raise CheckpointError(
            f"The model is not written: {len(broken)} tensors hold NaN or infinity ({_some(broken)}).",
            "Training went wrong; lower the learning rate and go on from the last checkpoint.",
        )
    save_file(stored, path, metadata={"format": "pt"})
