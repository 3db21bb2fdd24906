"""The state beside a checkpoint's model: written without code in it, read back as plain tensors and numbers.

Knows the files and the random streams. What belongs into the state is the loop's business. Of a split model, every process
writes its parts with torch's distributed checkpoints, as safetensors: any number of processes can read them.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from stockpot.errors import CheckpointError

__all__ = [
    "has_parts",
    "random_state",
    "read_parts",
    "read_state",
    "set_random_state",
    "write_parts",
    "write_state",
]

FILE, PARTS = Path("state") / "training.pt", Path("state") / "parts"
VERSION = 1


def write_state(folder: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, text and containers of them into a checkpoint folder."""
    file = folder / FILE
    file.parent.mkdir(exist_ok=True)  # others may be writing their parts already
    try:
        torch.save({"version": VERSION, **content}, file)
    except (
        RuntimeError
    ) as error:  # torch's own writer tells a full disk as a place in the file it did not expect
        if shutil.disk_usage(file.parent).free > file.stat().st_size:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error


def read_state(folder: Path) -> dict[str, Any]:
    """Read the state of a checkpoint, onto the CPU; anything but tensors and plain values is refused.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    file = folder / FILE
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds a model but no training state ({FILE}).",
            "Start a new run from this model instead.",
        ) from None
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} cannot be read ({reason}).",
            "Delete this checkpoint; --resume then takes the one before.",
        ) from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise CheckpointError(
            f"{file} was written by another version of stockpot.", "Resume with the version that wrote it."
        )
    return content


# --- the parts of a split model ---


def write_parts(folder: Path, tensors: dict[str, Tensor], group: ProcessGroup | None = None) -> None:
    """Write every process's part of named tensors into a checkpoint folder; all processes must come here.

    ``group``: by which they agree, where the usual one is in use meanwhile.

    A scalar is written as a row of one, since a part has a first dimension.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    held = {name: one.reshape(1) if one.ndim == 0 else one for name, one in tensors.items() if one.numel()}
    writer = HuggingFaceStorageWriter(str(folder / PARTS), save_distributed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own calls
        save_parts(held, storage_writer=writer, process_group=group)


def has_parts(folder: Path) -> bool:
    """Tell whether a checkpoint was written by the processes of a split model."""
    return (folder / PARTS).is_dir()


def read_parts(folder: Path, into: dict[str, Tensor], *, alone: bool) -> None:
    """Read named tensors, or this process's part of each, from the parts that any number of processes wrote.

    Args:
        folder: the checkpoint.
        into: is filled in place.
        alone: read by this process without the others.

    Raises:
        CheckpointError: if a part is missing or cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_parts

    rows = {name: one.view(1) if one.ndim == 0 else one for name, one in into.items() if one.numel()}
    reader = HuggingFaceStorageReader(str(folder / PARTS))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_parts(rows, storage_reader=reader, no_dist=alone)
    except (Exception, CheckpointException) as error:  # noqa: BLE001 - torch wraps whatever a reader raises
        reason = " ".join(str(error).split())[-200:]
        raise CheckpointError(
            f"{folder / PARTS}: a part of the training state is missing or cannot be read ({reason}).",
            "Delete this checkpoint; --resume then takes the one before.",
        ) from None


# --- random streams ---


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of Python's and torch's global generators, and of the device's."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set the generators to a saved state; a device that had none saved is left alone."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
