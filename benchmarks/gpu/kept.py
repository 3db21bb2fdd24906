"""Figures in a file, row by row, so that a sitting that is cut off keeps what it has and the next one goes on behind it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

__all__ = ["Kept"]


class Kept:
    """Rows of one benchmark, written to ``path`` as soon as each is there.

    A row that was begun and never ended, because the process died or was stopped, is tried once more when the file is opened
    again; the second time it counts as an error.

    Args:
        path: a JSON file; None: rows are printed only.
        facts: what holds for all rows, such as the machine.
    """

    def __init__(self, path: Path | None, **facts: Any) -> None:
        self.path = path
        self.figures: dict[str, Any] = {"rows": []}
        if path is not None and path.exists():
            self.figures = json.loads(path.read_text(encoding="utf-8"))
            begun, stopped = self.figures.pop("under_way", None), self.figures.setdefault("stopped", [])
            if begun in stopped:
                self.figures["rows"].append({**begun, "error": "it did not end, twice"})
            elif begun is not None:
                stopped.append(begun)
        self.figures.update(facts)
        self._write()

    def lacks(self, **key: Any) -> bool:
        """Tell whether there is no such row yet; from here on it is under way."""
        rows = self.figures["rows"]
        if any(all(row.get(name) == value for name, value in key.items()) for row in rows):
            return False
        self.figures["under_way"] = key
        self._write()
        return True

    def add(self, **found: Any) -> None:
        """Keep the row that is under way."""
        row = {**self.figures.pop("under_way", {}), **found, "at": time.strftime("%H:%M:%S")}
        self.figures["rows"].append(row)
        print(json.dumps({name: value for name, value in row.items() if name != "kernels"}), flush=True)
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        fresh = self.path.with_suffix(".part")
        fresh.write_text(json.dumps(self.figures, indent=1), encoding="utf-8")
        fresh.replace(self.path)
