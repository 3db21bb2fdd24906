"""A run's metrics: one JSON object a line, and, on request, TensorBoard events made from them.

``metrics.jsonl`` is the record; the events can be made anew from it at any time. The ``tensorboard`` package is an
optional part, imported only here, and nothing is sent anywhere.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stockpot.durable import write_atomically
from stockpot.errors import ConfigError

__all__ = ["Board", "as_number", "cut_rows", "read_rows"]


def as_number(value: Any) -> Any:
    """Turn a metric into JSON: whole numbers stay whole, what is not finite becomes null."""
    if isinstance(value, (bool, int, str)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the logged rows; a line torn by kill -9 is passed over."""
    if not path.exists():
        return
    for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield row


def cut_rows(path: Path, step: int) -> None:
    """Drop the rows after ``step`` and any torn line."""
    if path.exists():
        kept = [json.dumps(row) + "\n" for row in read_rows(path) if row["step"] <= step]
        write_atomically(path, "".join(kept))


class Board:
    """A folder of TensorBoard events, begun anew.

    Args:
        folder: events in it are removed first, so that no step appears twice after a resume; nothing else is.
        rows: what was logged before, each with its ``"step"``.

    Raises:
        ConfigError: if the ``tensorboard`` package is absent.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        try:
            from tensorboard.summary import Writer  # type: ignore[import-untyped]
        except ImportError:
            raise ConfigError(
                "TensorBoard events need a package that is not here.", "pip install 'stockpot[tensorboard]'"
            ) from None
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = Writer(str(folder))
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add one logged row; what is no number is left out."""
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, float(value), row["step"])

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
