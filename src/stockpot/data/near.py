"""Which documents are nearly the same as an earlier one, found by MinHash signatures.

A signature of a document's shingles of words is cut into bands; two documents that share a band are near. The bands seen so far
lie in a file, so that memory does not grow with the corpus. The first of several near documents stays, so what is left
depends on the order of the documents alone.

Sources: Broder 1997, "On the resemblance and containment of documents"; the signatures and the choice of bands are datasketch's.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import ConfigError, DataError

__all__ = ["Seen", "band_keys"]

SHINGLE = 5  # words
PERMUTATIONS = 128
CACHE_KIB = 65_536


def band_keys(words: Sequence[str], *, threshold: float) -> list[int]:
    """Give the keys of a document's bands: two documents are near if they share one.

    Args:
        words: of the document.
        threshold: Jaccard similarity of shingles from which most pairs are found, in (0, 1).

    Raises:
        ConfigError: if datasketch is not installed.
    """
    library = _datasketch()
    signs = library.MinHash(num_perm=PERMUTATIONS, seed=1)
    lowered = [word.lower() for word in words]
    shingles = {" ".join(lowered[i : i + SHINGLE]) for i in range(max(1, len(lowered) - SHINGLE + 1))}
    signs.update_batch([one.encode("utf-8", "surrogatepass") for one in sorted(shingles)])
    values: NDArray[np.uint64] = np.asarray(signs.hashvalues, "<u8")
    bands, rows = _bands(threshold)
    return [_key(number, values[number * rows : (number + 1) * rows].tobytes()) for number in range(bands)]


def _key(band: int, part: bytes) -> int:
    digest = hashlib.blake2b(part, digest_size=8, salt=band.to_bytes(16, "little")).digest()
    return int.from_bytes(digest, "little", signed=True)


_chosen: dict[float, tuple[int, int]] = {}


def _bands(threshold: float) -> tuple[int, int]:
    """Choose bands and rows, as datasketch weighs wrong finds against missed ones."""
    if threshold not in _chosen:
        index = _datasketch().MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        _chosen[threshold] = int(index.b), int(index.r)
    return _chosen[threshold]


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise ConfigError(
            "Near-duplicates are found with datasketch, which is not installed.",
            "Install it: pip install 'stockpot[prepare]', or turn the search off: near = none.",
        ) from None
    return datasketch


class Seen:
    """The bands of the documents so far, in a file that is there for the length of a block."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.unlink(missing_ok=True)
        self._base = sqlite3.connect(file, isolation_level=None)
        for line in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "temp_store=MEMORY"):
            self._base.execute(f"PRAGMA {line}")
        self._base.execute("CREATE TABLE bands (key INTEGER PRIMARY KEY) WITHOUT ROWID")
        self._base.execute("BEGIN")

    def __enter__(self) -> Seen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._base.close()
        self.file.unlink(missing_ok=True)

    def is_new(self, keys: Sequence[int]) -> bool:
        """Tell whether no earlier document shares a band, and then remember this one's.

        Raises:
            DataError: if the disk is full.
        """
        marks = ",".join("?" * len(keys))
        try:
            if self._base.execute(f"SELECT 1 FROM bands WHERE key IN ({marks}) LIMIT 1", keys).fetchone():
                return False
            self._base.executemany("INSERT OR IGNORE INTO bands VALUES (?)", [(key,) for key in keys])
        except sqlite3.OperationalError as error:
            raise DataError(
                f"{self.file}: {error}.", "Free some space and run the same command again."
            ) from None
        return True
