"""Tensors between files and parameters: joined or split as a family stores them, checked, and copied once.

Every name and shape is compared before anything is allocated; all that is wrong is told in one error. Files
are safetensors only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stockpot.errors import CheckpointError
from stockpot.weights.family import Part
from stockpot.weights.header import SAFE, Entry, check_safetensors

__all__ = [
    "Shelf",
    "check_parts",
    "mixed_rows",
    "read_parts",
    "save_tensors",
    "sorted_rows",
    "stored_shapes",
    "write_parts",
]

MAPPED_BYTES = 1 << 26  # read from open files before they are opened anew, which lets go of what was read
SHOWN = 4  # names shown of each kind of fault
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shelf:
    """The tensors of one or more files, by name; directories are checked, nothing is read yet.

    Args:
        files: safetensors files.
        places: which tensor lies in which file, if an index says so.
        spell: turns a name as it is stored into the one to use.
    """

    def __init__(
        self,
        files: Sequence[Path],
        places: Mapping[str, str] | None = None,
        spell: Callable[[str], str] = str,
    ) -> None:
        self.entries: dict[str, Entry] = {}
        self._places: dict[str, tuple[Path, str]] = {}
        stored: set[str] = set()
        for file in files:
            for name, entry in check_safetensors(file)[0].items():
                if places is not None and places.get(name) != file.name:
                    continue
                if (known := spell(name)) in self.entries:
                    raise CheckpointError(f"{file} holds {known!r} twice, the second time as {name!r}.", SAFE)
                self.entries[known], self._places[known] = entry, (file, name)
                stored.add(name)
        absent = [name for name in places or () if name not in stored]
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

    def stored_name(self, name: str) -> str:
        """Return a tensor's name as its file spells it."""
        return self._places[name][1]

    def usual_dtype(self, names: Iterable[str]) -> torch.dtype:
        """Return the type that most numbers of the named tensors have."""
        counts: Counter[str] = Counter()
        for name in names:
            counts[self.entries[name].dtype] += torch.Size(self.entries[name].shape).numel()
        return DTYPES[counts.most_common(1)[0][0]]

    def settle(self, copy: str, name: str) -> None:
        """Forget ``copy``, which repeats ``name``; where only the copy is there, it takes that name."""
        if copy in self.entries:
            entry, place = self.entries.pop(copy), self._places.pop(copy)
            self.entries.setdefault(name, entry)
            self._places.setdefault(name, place)

    def share(self, one: str, other: str) -> None:
        """Let a tensor stand under two names where a file holds it under one of them only."""
        for name, source in ((one, other), (other, one)):
            if name not in self.entries and source in self.entries:
                self.entries[name], self._places[name] = self.entries[source], self._places[source]

    def are_equal(self, one: str, other: str) -> bool:
        """Compare two tensors by their numbers."""
        if self.entries[one].shape != self.entries[other].shape:
            return False
        with self.open() as files:
            return torch.equal(files.tensor(one), files.tensor(other))

    @contextmanager
    def open(self) -> Iterator[_Reader]:
        """Open the files for reading."""
        yield _Reader(self._places)


class _Reader:
    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._places = places
        self._open: dict[Path, safe_open] = {}
        self._read = 0

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, as a view of its file where the system allows."""
        file, stored = self._places[name]
        if self._read > MAPPED_BYTES:
            self._open, self._read = {}, 0
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, framework="pt")
            tensor: Tensor = self._open[file].get_tensor(stored)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {stored!r} cannot be read: {error}.", SAFE) from error
        self._read += tensor.nbytes
        return tensor


def check_parts(
    shelf: Shelf, parts: Sequence[Part], shapes: Mapping[str, torch.Size], ignored: Sequence[str], where: Path
) -> None:
    """Compare every name, shape and dtype of a file with what a model needs.

    Raises:
        CheckpointError: naming what is missing, unexpected, of another shape, or of a dtype we do not compute
        with.
    """
    wanted = {name: shape for part in parts for name, shape in stored_shapes(part, shapes[part.ours]).items()}
    needed = {name: entry for name, entry in shelf.entries.items() if name in wanted}
    stored = shelf.stored_name
    missing = [name for name in wanted if name not in needed]
    unexpected = [
        stored(name) for name in shelf.entries if name not in wanted and not name.endswith(tuple(ignored))
    ]
    shaped = [
        f"{stored(name)} {entry.shape} instead of {wanted[name]}"
        for name, entry in needed.items()
        if entry.shape != wanted[name]
    ]
    typed = [f"{stored(name)} ({entry.dtype})" for name, entry in needed.items() if entry.dtype not in DTYPES]
    faults = {
        "missing": missing,
        "not expected": unexpected,
        "of another shape": shaped,
        "not readable": typed,
    }
    told = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(
            f"{where}: the weights do not fit config.json: tensors {'; '.join(told)}.",
            "Weights and config.json must come from the same model.",
        )


def some(names: Sequence[str]) -> str:
    """Show the first of some names, in one line whatever they hold."""
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in name) for name in names[:SHOWN]]
    return ", ".join(shown) + (" …" if len(names) > SHOWN else "")


def stored_shapes(part: Part, shape: torch.Size) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a file that make up one of our parameters, with their shapes."""
    if len(part.theirs) > 1:
        return {name: (rows, *shape[1:]) for name, rows in zip(part.theirs, part.rows, strict=True)}
    if part.transposed:
        return {part.theirs[0]: tuple(reversed(shape))}
    if part.lead:
        return {part.theirs[0]: (1,) * part.lead + tuple(shape) if part.lead > 0 else tuple(shape[1:])}
    return {part.theirs[0]: (shape[0] + part.skipped, *shape[1:])}


def read_parts(
    shelf: Shelf,
    parts: Sequence[Part],
    shapes: Mapping[str, torch.Size],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    where: Path,
) -> dict[str, Tensor]:
    """Read our parameters; ``dtype=None`` keeps the type that most of the file's numbers have.

    Raises:
        CheckpointError: if numbers are not finite; names the tensors.
    """
    found: dict[str, Tensor] = {}
    broken: list[str] = []
    large: list[str] = []  # finite in the file, infinite in the type asked for
    kind = dtype or shelf.usual_dtype(name for part in parts for name in part.theirs)
    with shelf.open() as files:
        for part in parts:
            whole = torch.empty(shapes[part.ours], dtype=kind, device=device)
            start = 0
            for name in part.theirs:
                stored = files.tensor(name)
                piece = _to_ours(stored, part)
                place = whole[start : start + piece.shape[0]]
                place.copy_(piece)
                if not bool(stored.isfinite().all()):
                    broken.append(name)
                elif kind != stored.dtype and not bool(place.isfinite().all()):
                    large.append(name)
                start += piece.shape[0]
            found[part.ours] = whole
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} tensors hold NaN or infinity ({some(broken)}).",
            "The training that wrote them went wrong; use an earlier checkpoint.",
        )
    if large:
        raise CheckpointError(
            f"{where}: {len(large)} tensors hold numbers too large for"
            f" {str(kind).removeprefix('torch.')} ({some(large)}).",
            "Use float32 or bfloat16.",
        )
    return found


def _to_ours(stored: Tensor, part: Part) -> Tensor:
    """Turn a tensor as a family stores it into the form we use."""
    if part.lead:
        return stored[None] if part.lead < 0 else stored.reshape(stored.shape[part.lead :])
    if part.transposed:
        return stored.T
    if part.gain:
        return stored.float() + part.gain
    if part.mixed_heads:
        return sorted_rows(stored, part.mixed_heads)
    return stored[part.skipped :]


def _to_theirs(ours: Tensor, part: Part) -> Tensor:
    """Undo :func:`_to_ours`."""
    if part.lead:
        return ours[0] if part.lead < 0 else ours.reshape((1,) * part.lead + ours.shape)
    if part.transposed:
        return ours.T
    if part.gain:
        return (ours.float() - part.gain).to(ours.dtype)
    if part.mixed_heads:
        return mixed_rows(ours, part.mixed_heads)
    if part.skipped:
        return torch.cat((ours.new_zeros(part.skipped, *ours.shape[1:]), ours))
    return ours


def sorted_rows(stored: Tensor, heads: int) -> Tensor:
    """Put rows that stand head by head (its query, key, value) into all queries, all keys, all values."""
    return stored.reshape(heads, 3, -1, *stored.shape[1:]).transpose(0, 1).reshape(stored.shape)


def mixed_rows(ours: Tensor, heads: int) -> Tensor:
    """Undo :func:`sorted_rows`."""
    return ours.reshape(3, heads, -1, *ours.shape[1:]).transpose(0, 1).reshape(ours.shape)


def as_stored(part: Part, whole: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Turn one of our parameters into the tensors that a family stores, by name."""
    whole = _to_theirs(whole, part)
    if not part.rows:
        yield part.theirs[0], whole
        return
    yield from zip(part.theirs, torch.split(whole, list(part.rows)), strict=True)


def write_parts(
    path: Path, parts: Sequence[Part], params: Mapping[str, Tensor], names: Collection[str] | None = None
) -> None:
    """Write parameters as one safetensors file; ``names``: only those of its tensors.

    Raises:
        CheckpointError: if numbers are not finite; names the parameters.
    """
    stored: dict[str, Tensor] = {}
    broken: list[str] = []
    done: set[str] = set()  # one of our tensors may be stored twice, but a file shares no memory
    for part in parts:
        if names is not None and not any(name in names for name in part.theirs):
            continue
        whole = params[part.ours].detach().cpu()
        if not bool(whole.isfinite().all()):
            broken.append(part.ours)
        for name, tensor in as_stored(part, whole):
            if names is None or name in names:
                stored[name] = tensor.contiguous() if part.ours not in done else tensor.clone()
        done.add(part.ours)
    if broken:
        raise CheckpointError(
            f"The model is not written: {len(broken)} tensors hold NaN or infinity ({some(broken)}).",
            "Training went wrong; lower the learning rate and go on from the last checkpoint.",
        )
    save_tensors(stored, path)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that is as readable to others as any new file here; the library makes it its owner's alone."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)
