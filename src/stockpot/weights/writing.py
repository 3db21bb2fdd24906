"""How the files of a model's folder get onto the disk together, and what they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stockpot.durable import half_name, sync
from stockpot.errors import CheckpointError
from stockpot.weights.folder import INDEX, SINGLE
from stockpot.weights.sentences import MODULES
from stockpot.weights.shards import old_weights

__all__ = ["Content", "write_all"]

Content = bytes | Callable[[Path], None]
"""What a file will hold, or what writes it."""


def write_all(folder: Path, files: Mapping[str, Content]) -> None:
    """Write all files under temporary names, then rename them: a full disk leaves the folder as it was."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; a model is a folder.", "Choose another path.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
    halves = {name: half_name(folder / name) for name in files}
    try:
        for name, content in files.items():
            if isinstance(content, bytes):
                halves[name].write_bytes(content)
            else:
                content(halves[name])
            sync(halves[name])
        stale = old_weights(folder) - set(files) if {SINGLE, INDEX} & set(files) else set()
        if INDEX in files:  # new shards must never be read by an old index
            (folder / INDEX).unlink(missing_ok=True)
        for name in files:
            halves[name].replace(folder / name)
        for name in sorted(stale, reverse=True):  # the index before what it names
            (folder / name).unlink(missing_ok=True)
        if "tokenizer.json" in files and MODULES not in files:
            (folder / MODULES).unlink(missing_ok=True)
    finally:
        for half in halves.values():
            half.unlink(missing_ok=True)
    sync(folder)
