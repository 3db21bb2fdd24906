"""Which folder a reference means, and which files in it may be opened.

A reference is a run, a checkpoint, a Hugging Face folder or a hub id; it is told apart by what is there,
never by its name. No file outside the folder is ever opened, whatever an index or a link in it says. Nothing
here reads a weight.
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stockpot.errors import CheckpointError
from stockpot.run import Run, is_run
from stockpot.weights.header import kind_of, refuse_unless_safetensors
from stockpot.weights.known import KNOWN

__all__ = ["INDEX", "SINGLE", "find_folder", "inside", "read_json", "read_list", "runs_in", "weight_files"]

ABSENT: dict[str, Any] = {}
LARGEST_JSON = 32 * 2**20
LONGEST_SHOWN = 80  # letters of a name in an error
MOST_NAMED = 5  # runs that an error names
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FILES = ["*.json", "*.safetensors", "*.jinja", "*.model"]
_KINDS = (
    f"Give a run, a checkpoint, a model folder, a GGUF file, a hub id or a known name ({', '.join(KNOWN)})."
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_folder(ref: str | os.PathLike[str]) -> Path:
    """Return the model folder that a reference means.

    Raises:
        CheckpointError: if there is none, or it is something else.
    """
    path = Path(ref)
    if path.is_dir():
        return _model_of(path)
    if path.exists():
        if kind_of(path) in ("unknown", "json"):
            raise CheckpointError(f"{path} is a file, and no model.", _KINDS)
        refuse_unless_safetensors(path)
        raise CheckpointError(
            f"{path} holds weights only; a model also needs config.json and tokenizer.json.",
            "Give the folder it belongs to.",
        )
    is_ours = path.parent.is_dir() or path.parts[:1] == ("runs",)  # a typing error must not go to a network
    if HUB_ID.fullmatch(os.fspath(ref)) and not is_ours:
        return _download(os.fspath(ref))
    meant = get_close_matches(os.fspath(ref), KNOWN, n=1)
    raise CheckpointError(
        f"{path} does not exist.",
        f"{_KINDS}{f' Did you mean {meant[0]}?' if meant else ''}",
    )


def _model_of(path: Path) -> Path:
    """Return a folder itself, or, for a run, the model it points to."""
    if not is_run(path):
        return path.resolve()
    model = Run.open(path).model_path.resolve()
    if not model.is_relative_to(path.resolve()):
        raise CheckpointError(
            f"{path}: its model points outside the run, to {model}.", "Name that folder itself."
        )
    return model


def _download(ref: str) -> Path:
    """Fetch a model from the hub, or find it among those fetched before."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{ref} does not exist here, and models are fetched from the hub with an extra package.",
            "Check the path, or: pip install 'stockpot[hub]'",
        ) from None
    try:
        return Path(snapshot_download(ref, allow_patterns=FILES, local_files_only=True)).resolve()
    except Exception:  # noqa: BLE001 - not fetched yet, in whatever words the library says so
        pass
    try:
        return Path(snapshot_download(ref, allow_patterns=FILES)).resolve()
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{ref} does not exist here and cannot be fetched from the hub: {reason}",
            "Check the name and the network, or give a folder.",
        ) from error


def inside(folder: Path, name: str) -> Path:
    """Return a file's path, and refuse one that leads out of its folder.

    The hub's own cache keeps a model's files in ``blobs`` beside ``snapshots``; links into it are allowed.

    Raises:
        CheckpointError: if the path leads elsewhere.
    """
    path = folder / name
    real, home = path.resolve(), folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(real.is_relative_to(one) for one in homes):
        raise CheckpointError(
            f"{path} leads outside its folder, to {real}.", "Copy the file into the folder."
        )
    return path


def read_json(folder: Path, name: str, *, missing: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object; ``missing`` is returned when there is no such file, and None makes that an error.

    Raises:
        CheckpointError: if it is missing, too large, or no object.
    """
    found = _read(folder, name, missing)
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / name} holds no JSON object.", "Copy the folder again.")
    return found


def read_list(folder: Path, name: str) -> list[Any] | None:
    """Read a JSON list; None when there is no such file.

    Raises:
        CheckpointError: if it is too large, or no list.
    """
    found = _read(folder, name, ABSENT)
    if found is ABSENT:
        return None
    if not isinstance(found, list):
        raise CheckpointError(f"{folder / name} holds no JSON list.", "Copy the folder again.")
    return found


def _read(folder: Path, name: str, missing: Any) -> Any:
    path = inside(folder, name)
    try:
        if missing is not None and not path.exists():
            return missing
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path} is no file.", "Copy the folder again.")
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(
                f"{path} is larger than {LARGEST_JSON >> 20} MiB.", "That is no settings file."
            )
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a model: it has no {name}.", _what_else(folder)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Copy the folder again.") from error


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Return a model's weight files, and for a sharded model which tensor lies in which file.

    Raises:
        CheckpointError: if there are none, the index is wrong, or they are of another kind.
    """
    if inside(folder, INDEX).exists():
        places = read_json(folder, INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(
                f"{folder / INDEX}: weight_map must map tensors to files.", "Copy it again."
            )
        names = sorted(set(places.values()))
        for name in names:
            if Path(name).name != name or name in ("", ".", ".."):
                raise CheckpointError(
                    f"{folder / INDEX} names the file {name[:80]!r}, not one beside it.", ""
                )
        beside = {file.name for file in folder.iterdir() if file.is_file()}
        absent = [
            name for name in names if name not in beside
        ]  # not asked of the system: a name may be one it cannot take
        if absent:
            raise CheckpointError(
                f"{folder}: {_printable(absent[0])} is missing ({len(absent)} in all).", "Copy it again."
            )
        return [inside(folder, name) for name in names], places
    if inside(folder, SINGLE).is_file():
        return [folder / SINGLE], None
    raise CheckpointError(f"{folder} holds no {SINGLE}.", _what_else(folder))


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]!r}"


def runs_in(folder: Path) -> list[str]:
    """Name the runs in a folder, the newest first: of a cook, the models it made last."""
    inner = [path for path in folder.iterdir() if is_run(path)] if folder.is_dir() else []
    return [path.name for path in sorted(inner, key=lambda path: (-path.stat().st_mtime, path.name))]


def _what_else(folder: Path) -> str:
    """Say what to do about a folder without safetensors weights, from what it holds instead."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_file() and path.stat().st_size > 0 and not path.is_symlink():
            kind = kind_of(path)
            if kind == "pickle":
                return f"{path.name} is a pickle, which can run code and is never read: get safetensors."
            if kind == "gguf":
                return f"It holds {path.name}, a GGUF file: name that file itself."
    if runs := runs_in(folder):
        more = " …" if len(runs) > MOST_NAMED else ""
        return f"It holds runs; name one of them, such as {', '.join(runs[:MOST_NAMED])}{more}."
    if (folder / "tokenizer.json").is_file():
        return "It is a tokenizer: a model is trained with it, stockpot pretrain --tokenizer."
    return "Give a folder with config.json, model.safetensors and tokenizer.json."
