"""What people said about answers: pairs, votes, thumbs and the prompts that wait to be compared, in one SQLite file.

A vote that was acknowledged is on the disk (WAL, synchronous=FULL) and stays whole whatever happens to the process. Several
processes may write. A repeated id does not double; what is deleted is overwritten. `stockpot dpo --data` reads the file as it is
(`data.votes`). It draws no answer and knows no web.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stockpot.data.survey import agreement_of
from stockpot.data.votes import VOTES, record_of
from stockpot.errors import ServeError

__all__ = ["DiskFullError", "Feedback", "Pair", "Side", "Thumb", "Vote", "now", "prompt_id"]

FORM = 1
Side = Literal["a", "b"]
Prompt = Sequence[Mapping[str, str]]
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS prompts (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL, source TEXT NOT NULL,
  answer TEXT, model TEXT, sampling TEXT, created TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS pairs (
  id TEXT PRIMARY KEY, asked TEXT NOT NULL, prompt TEXT NOT NULL, answer_a TEXT NOT NULL, answer_b TEXT NOT NULL,
  model_a TEXT NOT NULL, model_b TEXT NOT NULL, sampling_a TEXT NOT NULL, sampling_b TEXT NOT NULL, source TEXT NOT NULL,
  created TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS pairs_models ON pairs (model_a, model_b);
CREATE TABLE IF NOT EXISTS votes (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, pair TEXT NOT NULL REFERENCES pairs (id),
  choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'skip')), left_side TEXT NOT NULL CHECK (left_side IN ('a', 'b')),
  annotator TEXT NOT NULL, why TEXT, created TEXT NOT NULL, UNIQUE (pair, annotator));
CREATE TABLE IF NOT EXISTS thumbs (
  id TEXT PRIMARY KEY, prompt TEXT NOT NULL, answer TEXT NOT NULL, model TEXT NOT NULL, sampling TEXT NOT NULL,
  is_up INTEGER NOT NULL, annotator TEXT NOT NULL, created TEXT NOT NULL);
"""


class DiskFullError(ServeError):
    """The disk is full: nothing was written, and nothing may be acknowledged."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, with where they come from; ``a`` and ``b`` say nothing of how they are shown."""

    id: str
    asked: str
    prompt: Prompt
    answers: tuple[str, str]
    models: tuple[str, str]
    sampling: tuple[Mapping[str, Any], Mapping[str, Any]]
    source: str


@dataclass(frozen=True)
class Vote:
    """One person's word on a pair: which answer is better, ``"tie"`` or ``"skip"``."""

    id: str
    pair: str
    choice: str
    annotator: str
    why: str | None = None


@dataclass(frozen=True)
class Thumb:
    """One person's word on a single answer of a chat."""

    id: str
    prompt: Prompt
    answer: str
    model: str
    sampling: Mapping[str, Any]
    is_up: bool
    annotator: str


def now() -> str:
    """Tell the time as it is written down."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def prompt_id(prompt: Prompt) -> str:
    """Name a conversation by what it says."""
    return hashlib.sha256(_json(prompt).encode()).hexdigest()[:24]


class Feedback:
    """The file of votes.

    Args:
        path: the database; it is made where there is none.

    Raises:
        ServeError: if the file is something else, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._database.row_factory = sqlite3.Row
            # Asking a new one would lock out who makes it.
            if self.path.is_file() and self.path.stat().st_size:
                self._refuse_others()
            for pragma in (
                "trusted_schema = OFF",
                "synchronous = FULL",
                "foreign_keys = ON",
                "secure_delete = ON",
            ):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("PRAGMA journal_mode = WAL")
            with self._writing() as database:
                for statement in SCHEMA.split(";\n"):
                    database.execute(statement)
                database.execute("INSERT OR IGNORE INTO meta VALUES ('form', ?)", (str(FORM),))
                database.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (secrets.token_hex(16),))
                self._meta = dict(tuple(row) for row in database.execute("SELECT key, value FROM meta"))
        except (sqlite3.Error, OSError) as error:
            raise ServeError(
                f"{self.path}: this file cannot hold votes ({error}).",
                "Name another file with --feedback; this one was left as it is.",
            ) from None
        if self._meta["form"] != str(FORM):
            self.close()
            raise ServeError(
                f"{self.path} was written by another version (form {self._meta['form']}).", "Use that one."
            )

    def _refuse_others(self) -> None:
        """Leave the database of another program as it is."""
        found = self._database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        if found and not {"meta", "pairs", "votes"} <= {row["name"] for row in found}:
            self.close()
            raise ServeError(
                f"{self.path} is a database that holds something else.", "Name another file with --feedback."
            )

    def close(self) -> None:
        """Close the file; what was acknowledged is in it already."""
        self._database.close()

    # --- prompts ---

    def add_prompt(
        self, prompt: Prompt, source: str, answered: tuple[str, str, Mapping[str, Any]] | None = None
    ) -> bool:
        """Queue a conversation to be compared; one that waits already is not doubled: False.

        Args:
            prompt: messages, the last one the user's.
            source: where it comes from: a file, a chat, a thumb.
            answered: an answer that was given to it, its model and settings: it becomes one of the two sides.
        """
        row = (prompt_id(prompt), _json(prompt), source, *(answered[:2] if answered else (None, None)))
        sampling = _json(answered[2]) if answered else None
        with self._writing() as database:
            done = database.execute(
                "INSERT INTO prompts (id, prompt, source, answer, model, sampling, created) VALUES (?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                (*row, sampling, now()),
            )
            return done.rowcount > 0

    def next_prompt(self, models: Sequence[str], taken: Sequence[str] = ()) -> sqlite3.Row | None:
        """Give the first prompt in the queue of which these models have no pair yet; ``taken`` ones are passed over."""
        marks = ", ".join("?" * len(taken))
        return self._one(
            "SELECT * FROM prompts WHERE id NOT IN (SELECT asked FROM pairs WHERE "
            "(model_a = ? AND model_b = ?) OR (model_a = ? AND model_b = ?)) "
            f"AND id NOT IN ({marks}) ORDER BY number LIMIT 1",
            (models[0], models[1], models[1], models[0], *taken),
        )

    # --- pairs and votes ---

    def add_pair(self, pair: Pair) -> None:
        """Keep two answers, so that several people can compare the same ones."""
        values = (pair.id, pair.asked, _json(pair.prompt), *pair.answers, *pair.models)
        with self._writing() as database:
            database.execute(
                f"INSERT OR IGNORE INTO pairs VALUES ({', '.join('?' * 11)})",
                (*values, *map(_json, pair.sampling), pair.source, now()),
            )

    def next_pair(
        self, annotator: str, models: Sequence[str], taken: Sequence[str] = ()
    ) -> sqlite3.Row | None:
        """Give the pair of these models that a person has not seen, those that others have voted on first."""
        marks = ", ".join("?" * len(taken))
        return self._one(
            "SELECT pairs.*, (SELECT count(*) FROM votes WHERE votes.pair = pairs.id) AS seen FROM pairs WHERE "
            "((model_a = ? AND model_b = ?) OR (model_a = ? AND model_b = ?)) "
            "AND trim(answer_a) != trim(answer_b) AND id NOT IN (SELECT pair FROM votes WHERE annotator = ?) "
            f"AND id NOT IN ({marks}) ORDER BY seen = 0, rowid LIMIT 1",
            (models[0], models[1], models[1], models[0], annotator, *taken),
        )

    def left_side(self, pair: str, annotator: str) -> Side:
        """Choose which answer a person sees on the left: at random, but the same whenever they are asked."""
        toss = hashlib.sha256(f"{self._meta['salt']}\n{pair}\n{annotator}".encode()).digest()
        return "a" if toss[0] & 1 else "b"

    def add_vote(self, vote: Vote) -> bool:
        """Write a vote down; False if it is there already, whoever sent it again.

        Raises:
            ServeError: if there is no such pair, the same person has voted on it, or the id is another vote's.
            DiskFullError: if it could not be written.
        """
        left = self.left_side(vote.pair, vote.annotator)
        values = (vote.id, vote.pair, vote.choice, left, vote.annotator, vote.why, now())
        with self._writing() as database:
            known = database.execute("SELECT * FROM votes WHERE id = ?", (vote.id,)).fetchone()
            if known is not None:
                if (known["pair"], known["choice"], known["annotator"]) != (
                    vote.pair,
                    vote.choice,
                    vote.annotator,
                ):
                    raise ServeError(
                        f"The id {vote.id} belongs to another vote.", "Give each vote an id of its own."
                    )
                return False
            try:
                database.execute(
                    "INSERT INTO votes (id, pair, choice, left_side, annotator, why, created) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
            except sqlite3.IntegrityError as error:
                what = "has voted on this pair" if "UNIQUE" in str(error) else "was never shown such a pair"
                raise ServeError(
                    f"{vote.annotator} {what}.", "Undo the earlier vote, or ask for another pair."
                ) from None
        return True

    def remove_vote(self, id: str) -> sqlite3.Row | None:
        """Take a vote back and give what it was about; its bytes are overwritten, in the log too."""
        row = self._one(f"{VOTES} WHERE votes.id = ?", (id,))
        if row is not None:
            self._remove("DELETE FROM votes WHERE id = ?", (id,))
        return row

    # --- thumbs ---

    def add_thumb(self, thumb: Thumb) -> None:
        """Write a thumb down; its prompt waits to be compared, with this answer as one side."""
        row = (thumb.id, _json(thumb.prompt), thumb.answer, thumb.model, _json(thumb.sampling), thumb.is_up)
        with self._writing() as database:
            database.execute(
                "INSERT INTO thumbs VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET is_up = excluded.is_up",
                (*row, thumb.annotator, now()),
            )
        self.add_prompt(thumb.prompt, "thumb", (thumb.answer, thumb.model, thumb.sampling))

    def remove_thumb(self, id: str) -> bool:
        """Take a thumb back, and its prompt out of the queue, unless something was compared."""
        row = self._one("SELECT prompt FROM thumbs WHERE id = ?", (id,))
        if row is None:
            return False
        asked = hashlib.sha256(row["prompt"].encode()).hexdigest()[:24]
        self._remove("DELETE FROM thumbs WHERE id = ?", (id,))
        self._remove(
            "DELETE FROM prompts WHERE id = ? AND source = 'thumb' AND id NOT IN (SELECT asked FROM pairs)",
            (asked,),
        )
        return True

    # --- reading ---

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every vote that compares as a preference record, as training reads it."""
        rows = self._all(f"{VOTES} WHERE votes.choice != 'skip' ORDER BY votes.number")
        return (record_of(row) for row in rows)

    def votes_of(self, models: Sequence[str]) -> list[sqlite3.Row]:
        """Give the votes on pairs of two models."""
        where = "WHERE (model_a = ? AND model_b = ?) OR (model_a = ? AND model_b = ?)"
        return self._all(f"{VOTES} {where}", (models[0], models[1], models[1], models[0]))

    def counts(self, annotator: str | None = None) -> dict[str, int]:
        """Count what there is: comparisons, ties, skips, pairs, prompts, thumbs, and one person's votes."""
        row = self._one(
            "SELECT (SELECT count(*) FROM votes WHERE choice != 'skip') AS votes, "
            "(SELECT count(*) FROM votes WHERE choice = 'tie') AS ties, "
            "(SELECT count(*) FROM votes WHERE choice = 'skip') AS skips, "
            "(SELECT count(*) FROM pairs) AS pairs, (SELECT count(*) FROM prompts) AS prompts, "
            "(SELECT count(*) FROM thumbs) AS thumbs, (SELECT count(*) FROM votes WHERE annotator = ?) AS mine",
            (annotator or "",),
        )
        assert row is not None
        return dict(zip(row.keys(), row, strict=True))

    def agreement(self) -> dict[str, Any]:
        """Say how far people agree who compared the same pairs; skipped ones do not count."""
        units: dict[str, list[int]] = {}
        rows = self._all("SELECT pair, choice, annotator FROM votes WHERE choice != 'skip'")
        for row in rows:
            units.setdefault(row["pair"], []).append({"a": 1, "tie": 0, "b": -1}[row["choice"]])
        shared = [unit for unit in units.values() if len(unit) > 1]
        share, alpha = agreement_of(shared)
        raters = len({row["annotator"] for row in rows})
        return {"raters": raters, "pairs": len(shared), "agreement": share, "alpha": alpha}

    # --- the file ---

    def settle(self) -> None:
        """Move what the log holds into the file itself, for those who look at the file alone."""
        with self._lock:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _one(self, query: str, values: Sequence[Any] = ()) -> sqlite3.Row | None:
        with self._lock:
            row: sqlite3.Row | None = self._database.execute(query, values).fetchone()
            return row

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(query, values).fetchall()

    def _remove(self, query: str, values: Sequence[Any]) -> None:
        with self._writing() as database:
            database.execute(query, values)
        self.settle()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing, one writer at a time; the block's end is on the disk."""
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database
                self._database.execute("COMMIT")
            except BaseException as error:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and _is_full(error):
                    what = f"{self.path} could not be written, and nothing was ({error})."
                    raise DiskFullError(what, "Free some space and send it again.") from None
                raise


def _is_full(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
