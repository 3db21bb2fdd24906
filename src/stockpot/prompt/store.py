"""Where passages are kept: a LanceDB table with their vectors and a full-text index, on disk or at a remote address.

The only file that knows LanceDB. Rows carry the version of the file they came from; which versions are alive is the index's
business, so that a half-finished change shows nothing. Queries are plain words to the full-text engine, never its syntax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import ConfigError, DataError

__all__ = ["Row", "Store"]

TABLE = "passages"
INDEXED_FROM = 20_000  # rows from which vectors get an index; below, all are compared
PROBED = 0.1  # share of an index's lists that a query looks into
COLUMNS = ("id", "version", "path", "title", "place", "text")

Row = dict[str, Any]


class Store:
    """A table of passages.

    Args:
        uri: a folder, or anything LanceDB connects to, such as ``s3://bucket/index``.
        dim: numbers of a vector.

    Raises:
        ConfigError: if LanceDB is not installed.
        DataError: if there is a table that cannot be read.
    """

    def __init__(self, uri: str, dim: int) -> None:
        try:
            import lancedb
            import pyarrow as pa
        except ImportError as error:
            raise ConfigError(
                f"Indexes need a package that is not here ({error.name}).", "pip install 'stockpot[rag]'"
            ) from None
        self.uri, self.dim = uri, dim
        self._schema = pa.schema(
            [*((name, pa.string()) for name in COLUMNS), ("vector", pa.list_(pa.float32(), dim))]
        )
        try:
            self._db = lancedb.connect(uri)
            self._table = self._db.create_table(TABLE, schema=self._schema, exist_ok=True)
            self._count = self._table.count_rows()
            held = self._table.schema
        except Exception as error:
            raise DataError(
                f"{uri}: the store cannot be read ({_line(error)}).",
                "Restore it, or build the index again elsewhere.",
            ) from error
        if not held.equals(self._schema):
            raise DataError(
                f"{uri}: the store holds other columns or vectors than an index of {dim} numbers.",
                "Build the index again elsewhere.",
            )

    def __len__(self) -> int:
        return self._count

    def add(self, rows: Sequence[Row], vectors: NDArray[np.float32]) -> None:
        """Add rows with their vectors ``(rows, dim)``; all of them or, if the process dies, none."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns = {name: [row[name] for row in rows] for name in COLUMNS}
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, self.dim)
        self._table.add(pa.table(columns, schema=self._schema))
        self._count += len(rows)

    def drop(self, versions: Iterable[str]) -> None:
        """Delete the rows of some versions."""
        names = sorted(set(versions))
        for start in range(0, len(names), 500):
            listed = ", ".join(
                f"'{name}'" for name in names[start : start + 500]
            )  # hex digits: nothing to escape
            self._table.delete(f"version IN ({listed})")
        if names:
            self._count = self._table.count_rows()

    def versions(self) -> set[str]:
        """Give the versions that have rows."""
        column = self._table.search().select(["version"]).limit(max(1, self._count)).to_arrow()["version"]
        return set(column.to_pylist()) if self._count else set()

    def refresh(self) -> None:
        """Bring the indexes up to date after changes."""
        from lancedb.index import FTS, IvfFlat

        if not self._count:
            return
        known = {name for index in self._table.list_indices() for name in index.columns}
        if "text" not in known:
            self._table.create_index(
                "text", config=FTS(language="English", stem=True, remove_stop_words=True)
            )
        if "vector" not in known and self._count >= INDEXED_FROM:
            self._table.create_index("vector", config=IvfFlat(distance_type="cosine"))
        self._table.optimize()

    def by_vector(self, vector: NDArray[np.float32], limit: int) -> list[Row]:
        """Give the rows nearest to a vector by cosine, the nearest first, with ``"score"`` (1 = the same)."""
        if not self._count:
            return []
        query: Any = self._table.search(vector)
        query = query.distance_type("cosine").nprobes(max(20, int(PROBED * self._count**0.5)))
        found = query.limit(limit).select([*COLUMNS, "_distance"]).to_list()
        return [row | {"score": 1 - row.pop("_distance")} for row in found]

    def by_text(self, words: str, limit: int) -> list[Row]:
        """Give the rows that hold the words, best first by BM25, with ``"score"``."""
        from lancedb.query import MatchQuery

        if not self._count or not words.strip():
            return []
        plain: Any = MatchQuery  # its optional fields look required to a type checker
        query = self._table.search(plain(words, "text"), query_type="fts")
        found = query.limit(limit).select([*COLUMNS, "_score"]).to_list()
        return [row | {"score": row.pop("_score")} for row in found]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
