"""Folders of a person: where stockpot keeps what it fetched once, and what ``~`` in a path stands for."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["home", "without_tilde"]


def home() -> Path:
    """Return the folder that ``STOCKPOT_HOME`` names, else one in the cache; it need not exist yet."""
    named = os.environ.get("STOCKPOT_HOME")
    if named:
        return without_tilde(named).absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "stockpot"


def without_tilde(path: str | os.PathLike[str]) -> Path:
    """Put a person's folder in place of ``~`` or ``~name``; without such a person a name may begin so, and stays."""
    path = Path(path)
    with contextlib.suppress(RuntimeError):
        path = path.expanduser()
    return path
