"""The state beside a checkpoint's model: written without code in it, read back as plain tensors and numbers.

Knows the file and the random streams. What belongs into the state is the loop's business.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import torch

from stockpot.errors import CheckpointError

__all__ = ["random_state", "read_state", "set_random_state", "write_state"]

FILE = Path("state") / "training.pt"
VERSION = 1


def write_state(folder: Path, content: dict[str, Any]) -> None:
    """Write tensors, numbers, text and containers of them into a checkpoint folder."""
    file = folder / FILE
    file.parent.mkdir()
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
