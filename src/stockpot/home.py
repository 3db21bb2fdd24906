"""Where stockpot keeps what it fetched once: the folder that ``STOCKPOT_HOME`` names, else one in the cache."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["home"]


def home() -> Path:
    """Return the folder; it need not exist yet."""
    named = os.environ.get("STOCKPOT_HOME")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "stockpot"
