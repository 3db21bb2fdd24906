"""From raw text to an aligned chat assistant: every ingredient implemented, usable alone, and measured.

The names below are the public interface. Each is imported from its room when it is first used, so that
``import stockpot`` stays fast and does not load torch. This file decides what is public and does nothing
else.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PLACES = {
    "Bundle": "stockpot.bundle",
    "CheckpointError": "stockpot.errors",
    "Chunk": "stockpot.generate.request",
    "Completion": "stockpot.generate.request",
    "ConfigError": "stockpot.errors",
    "DataError": "stockpot.errors",
    "Engine": "stockpot.generate.engine",
    "GenerationError": "stockpot.errors",
    "Message": "stockpot.text.chat",
    "Sampling": "stockpot.generate.request",
    "Score": "stockpot.generate.request",
    "ServeError": "stockpot.errors",
    "StockpotError": "stockpot.errors",
    "Tokenizer": "stockpot.text.tokenizer",
    "TokenizerError": "stockpot.errors",
    "TrainError": "stockpot.errors",
    "decoder": "stockpot.model.config",
    "encoder": "stockpot.model.config",
    "encoder_decoder": "stockpot.model.config",
    "load": "stockpot.weights.store",
    "save": "stockpot.weights.store",
}

try:
    __version__ = version("stockpot")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    """Import a public name from its room when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'stockpot' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
