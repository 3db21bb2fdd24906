"""Every error a user of stockpot can meet.

    StockpotError
    ├── ConfigError       a setting, recipe or flag is wrong
    ├── DataError         a corpus, record or shard is wrong
    ├── TokenizerError    a tokenizer cannot be trained, read or used
    ├── CheckpointError   a model file, checkpoint or run folder is wrong
    ├── TrainError        training cannot go on (divergence, full disk)
    ├── GenerationError   a request to the engine is wrong
    └── ServeError        the server cannot start or answer

Each says what happened and what to do about it. Programming mistakes stay ``ValueError`` and ``TypeError``.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GenerationError",
    "ServeError",
    "StockpotError",
    "TokenizerError",
    "TrainError",
]


class StockpotError(Exception):
    """A known error: what happened, and what to do.

    Args:
        what: one line saying what was found, where, and what was expected.
        todo: one line saying how to go on; may be empty when ``what`` already says it.
    """

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(what, todo)
        self.what = what
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.what} {self.todo}".strip()


class ConfigError(StockpotError):
    """A setting, recipe or flag is wrong."""


class DataError(StockpotError):
    """A corpus, record or shard is wrong."""


class TokenizerError(StockpotError):
    """A tokenizer cannot be trained, read or used."""


class CheckpointError(StockpotError):
    """A model file, checkpoint or run folder is wrong."""


class TrainError(StockpotError):
    """Training cannot go on."""


class GenerationError(StockpotError):
    """A request to the engine is wrong."""


class ServeError(StockpotError):
    """The server cannot start or answer."""
