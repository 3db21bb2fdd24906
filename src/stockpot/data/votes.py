"""Votes in a database: the SQLite file that the comparison page writes, read where it lies as comparisons.

Names the table that `serve.feedback` writes and turns its rows into preference records, so that the file a person's click goes
into is the file that training reads. It only reads, beside a server that goes on writing; skipped pairs are no comparison.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stockpot.errors import DataError

__all__ = ["MAGIC", "VOTES", "fingerprint_votes", "is_votes", "read_votes", "record_of"]

MAGIC = b"SQLite format 3\0"
"""The first bytes of every such file."""

VOTES = """\
SELECT votes.number AS number, votes.id AS id, votes.pair AS pair, pairs.prompt, pairs.answer_a, pairs.answer_b,
       pairs.model_a, pairs.model_b, pairs.sampling_a, pairs.sampling_b, pairs.source,
       votes.choice, votes.left_side, votes.annotator, votes.why, votes.created
FROM votes JOIN pairs ON pairs.id = votes.pair"""
"""What a vote was about and how it went; ``a`` and ``b`` are the answers as they were made, not as they were shown."""


def read_votes(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(number, record)`` of each vote that compares, in the order they were cast.

    Raises:
        DataError: if the file is damaged, or no database of votes.
    """
    try:
        with contextlib.closing(_opened(Path(path))) as database:
            for row in database.execute(f"{VOTES} WHERE votes.choice != 'skip' ORDER BY votes.number"):
                yield row["number"], record_of(row)
    except (sqlite3.Error, ValueError, TypeError, RecursionError) as error:
        what = " ".join(str(error).split())[:120]
        todo = "Give the file that `stockpot serve --feedback` writes."
        raise DataError(f"{path}: this database cannot be read as votes ({what}).", todo) from None


def is_votes(path: str | Path) -> bool:
    """Tell by its first bytes whether a file is such a database."""
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def fingerprint_votes(path: str | Path) -> dict[str, Any]:
    """Describe the votes of a database: ``{"path", "votes", "bytes", "sha256"}``, of their JSON; errors as in ``read_votes``."""
    rows = [
        json.dumps([number, record], sort_keys=True).encode() + b"\n" for number, record in read_votes(path)
    ]
    digest = hashlib.sha256(b"".join(rows)).hexdigest()
    return {"path": str(path), "votes": len(rows), "bytes": sum(map(len, rows)), "sha256": digest}


def record_of(row: sqlite3.Row) -> dict[str, Any]:
    """Turn a row of ``VOTES`` into a preference record with all that is known of how it came about."""
    better, worse = ("b", "a") if row["choice"] == "b" else ("a", "b")
    left = row["left_side"]
    record: dict[str, Any] = {
        "prompt": json.loads(row["prompt"]),
        "chosen": row[f"answer_{better}"],
        "rejected": row[f"answer_{worse}"],
        "tie": row["choice"] == "tie",
        "annotator": row["annotator"],
        "created": row["created"],
        "source": row["source"],
        "chosen_model": row[f"model_{better}"],
        "rejected_model": row[f"model_{worse}"],
        "chosen_sampling": json.loads(row[f"sampling_{better}"]),
        "rejected_sampling": json.loads(row[f"sampling_{worse}"]),
        "chosen_side": "left" if left == better else "right",
        "why": row["why"],
        "vote": row["id"],
    }
    return {key: value for key, value in record.items() if value is not None}


def _opened(path: Path) -> sqlite3.Connection:
    """Open a database that others may be writing; nothing in it can run, and nothing is written."""
    place = quote(str(path.absolute()))
    try:
        return _connected(f"file:{place}?mode=ro")
    except sqlite3.OperationalError:  # a folder in which SQLite may not put its files beside the database
        return _connected(f"file:{place}?mode=ro&immutable=1")


def _connected(address: str) -> sqlite3.Connection:
    database = sqlite3.connect(address, uri=True, timeout=10, isolation_level=None)
    try:
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute("PRAGMA query_only = ON")
        database.execute("PRAGMA cell_size_check = ON")
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        database.close()
        raise
    return database
