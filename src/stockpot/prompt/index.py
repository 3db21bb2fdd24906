"""An index of documents: passages with vectors and words, found by both, kept up to date with the files.

``index.json`` says which version of each file is alive and which encoder made the vectors; rows of other versions are never
shown. One process writes at a time. A file that cannot be read is skipped and reported; the rest is indexed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.device import pick_device, pick_dtype
from stockpot.durable import LOCK, fingerprint, half_name, lock_folder, write_atomically
from stockpot.errors import ConfigError, DataError
from stockpot.generate.engine import Engine
from stockpot.home import without_tilde
from stockpot.prompt.chunks import Passage, cut
from stockpot.prompt.documents import find_documents, other_kinds, read_document
from stockpot.prompt.store import Row, Store
from stockpot.weights.adapter import checksums
from stockpot.weights.store import load

__all__ = ["Hit", "Index", "IndexConfig", "IndexReport", "index"]

How: TypeAlias = Literal["hybrid", "vectors", "words"]
Rerank: TypeAlias = Callable[[str, Sequence[str]], Sequence[float]]
Progress: TypeAlias = Callable[[dict[str, Any]], None]
FILE, FORM = "index.json", 1
FUSION = 60  # Cormack et al. 2009, "Reciprocal rank fusion", SIGIR
WAIT_S = 30.0
AT_ONCE = 2_048  # passages that are embedded and added together
KINDS_TOLD = 6  # endings of files that are not read


class IndexConfig(Settings):
    """How documents are indexed."""

    encoder: str = Field("minilm", description="the model that makes vectors")
    chunk_tokens: int = Field(224, ge=16, description="most tokens of a passage, by the encoder's tokenizer")
    overlap_tokens: int = Field(32, ge=0, description="tokens repeated from the passage before")
    store: str | None = Field(
        None, description="where passages are kept, such as s3://bucket/index; none: in the index's folder"
    )


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        text, title, place, path: what it says and where it stands.
        score: fused score; the larger, the better.
        ranks: its rank by "vectors" and by "words", from 1, where it was found by them.
    """

    text: str
    title: str
    place: str
    path: str
    score: float
    ranks: dict[str, int]


def _told(passages: int) -> str:
    return f"{passages:,} passage{'' if passages == 1 else 's'}"


@dataclass
class IndexReport:
    """What an update did."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    unchanged: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    other_kinds: dict[str, int] = field(default_factory=dict)
    passages: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = f"{len(self.added)} added, {len(self.changed)} changed, {len(self.removed)} removed"
        lines = [f"{counts}, {self.unchanged} unchanged; {_told(self.passages)} in {self.seconds:.1f} s"]
        lines += [f"skipped {path}: {reason}" for path, reason in self.skipped.items()]
        if self.other_kinds:
            named = [f"{count} {ending}" for ending, count in self.other_kinds.items()]
            told = ", ".join(named[:KINDS_TOLD]) + (", …" if len(named) > KINDS_TOLD else "")
            lines.append(f"of kinds that are not read: {told}")
        return "\n".join(lines)


class Index:
    """Passages of documents that can be searched; open one with `Index.open`, make one with `index`."""

    def __init__(self, folder: Path, facts: dict[str, Any], encoder: Bundle) -> None:
        self.folder, self._facts = folder, facts
        self._engine = Engine(encoder)
        self.store = Store(facts["settings"]["store"] or str(folder / "store"), encoder.model.config.dim)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        encoder: str | Path | Bundle | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Index:
        """Open an index.

        Args:
            folder: that `index` made.
            encoder: the model that makes vectors; None: the one the index names.
            device: where it computes; None: the fastest present.
            dtype: its number type; None: the one that is fast there.

        Raises:
            DataError: if it is no index, damaged, or was made with another encoder.
        """
        folder = Path(folder)
        facts = _facts(folder)
        if facts is None:
            raise DataError(f"{folder} is no index.", "Make one: stockpot index PATH… --out DIR.")
        bundle = _encoder(facts["settings"]["encoder"] if encoder is None else encoder, device, dtype)
        if _identity(bundle) != facts["encoder"]:
            raise DataError(
                f"{folder} was made with the encoder {facts['settings']['encoder']}; this is another one.",
                "Use that encoder, or build a new index: vectors of two encoders cannot be compared.",
            )
        return cls(folder, facts, bundle)

    @property
    def encoder(self) -> Bundle:
        """The model that makes vectors."""
        return self._engine.bundle

    @property
    def settings(self) -> IndexConfig:
        """How it was made."""
        return IndexConfig(**self._facts["settings"])

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """What is indexed: path → its checksum, version and number of passages."""
        return dict(self._facts["files"])

    @property
    def passages(self) -> int:
        """Number of passages alive."""
        return sum(one["passages"] for one in self._facts["files"].values())

    def search(
        self, question: str, k: int = 4, *, how: How = "hybrid", rerank: Rerank | None = None
    ) -> list[Hit]:
        """Find the passages that fit a question best, the best first.

        ``hybrid`` fuses the ranks of both ways: a passage's score is the sum of 1 / (60 + rank).

        Args:
            question: plain words.
            k: how many.
            how: by both, by vectors alone, or by words alone (BM25).
            rerank: rates the ``4 · k`` best anew: question and texts to numbers, larger is better.
        """
        deep = max(4 * k, 32)
        alive = {one["version"] for one in self._facts["files"].values()}
        ways: dict[str, list[Row]] = {}
        if how != "words":
            (vector,) = self._vectors([question])
            ways["vectors"] = self.store.by_vector(vector, deep)
        if how != "vectors":
            ways["words"] = self.store.by_text(question, deep)
        hits = _fused(ways, alive)
        if rerank is not None and hits:
            best = hits[: 4 * k]
            rated = rerank(question, [hit.text for hit in best])
            hits = [hit for _, hit in sorted(zip(rated, best, strict=True), key=lambda pair: -pair[0])]
        return hits[:k]

    # --- writing ---

    def update(self, paths: Iterable[str | Path], progress: Progress | None = None) -> IndexReport:
        """Bring the index up to date: new and changed files are read, those that are gone are forgotten.

        Only files below ``paths`` are looked at; a file of the index below them that no longer exists is removed.

        Raises:
            DataError: if another process goes on writing.
        """
        begun, report = time.monotonic(), IndexReport()
        given = [without_tilde(path).resolve() for path in paths]
        lock = _lock(self.folder)
        try:
            self._facts = _facts(self.folder) or self._facts  # what another writer has added meanwhile
            found = {str(path.resolve()): path for path in find_documents(given)}
            gone = [name for name in self._facts["files"] if name not in found and _below(name, given)]
            files = {name: one for name, one in self._facts["files"].items() if name not in gone}
            report.removed, report.other_kinds = gone, other_kinds(given)
            self._read(found, files, report, progress or (lambda event: None))
            self._facts = self._facts | {"files": files, "skipped": report.skipped}
            write_atomically(self.folder / FILE, json.dumps(self._facts, indent=1, ensure_ascii=False))
            alive = {one["version"] for one in files.values()}
            self.store.drop(
                self.store.versions() - alive
            )  # replaced, removed, and left by an interrupted update
            self.store.refresh()
        finally:
            lock.release()
        report.passages, report.seconds = self.passages, time.monotonic() - begun
        return report

    def _read(
        self,
        found: dict[str, Path],
        files: dict[str, dict[str, Any]],
        report: IndexReport,
        progress: Progress,
    ) -> None:
        """Read new and changed files and add their passages; their versions come alive when ``index.json`` is written."""
        waiting: list[tuple[str, str, Passage]] = []
        for number, (name, path) in enumerate(found.items(), 1):
            if (shown := os.fsencode(name).decode("utf-8", "replace")) != name:
                report.skipped[shown] = "its name is not UTF-8"
                continue
            known = files.get(name)
            checksum = str(fingerprint(path)["sha256"])
            if known is not None and known["sha256"] == checksum:
                report.unchanged += 1
                continue
            version = hashlib.sha256(f"{name}\n{checksum}\n{time.time_ns()}".encode()).hexdigest()[:32]
            try:
                passages = self._cut(path)
            except DataError as error:
                report.skipped[name] = error.what.removeprefix(f"{path}: ")
                files.pop(name, None)
                continue
            (report.added if known is None else report.changed).append(name)
            files[name] = {"sha256": checksum, "version": version, "passages": len(passages)}
            waiting += [(name, version, one) for one in passages]
            progress(
                {"kind": "note", "text": f"{number} of {len(found)}: {path.name}, {_told(len(passages))}"}
            )
            if len(waiting) >= AT_ONCE:
                self._add(waiting)
                waiting = []
        self._add(waiting)

    def _cut(self, path: Path) -> list[Passage]:
        settings = self._facts["settings"]
        tokenizer = self._engine.bundle.tokenizer
        return cut(
            read_document(path),
            lambda texts: [len(ids) for ids in tokenizer.encode_batch(list(texts))],
            tokens=settings["chunk_tokens"],
            overlap=settings["overlap_tokens"],
        )

    def _add(self, waiting: Sequence[tuple[str, str, Passage]]) -> None:
        if not waiting:
            return
        texts = [f"{one.title}\n{one.text}" if one.title else one.text for _, _, one in waiting]
        rows = [
            {
                "id": f"{version}-{number}",
                "version": version,
                "path": name,
                "title": one.title,
                "place": one.place,
                "text": text,
            }
            for number, ((name, version, one), text) in enumerate(zip(waiting, texts, strict=True))
        ]
        self.store.add(rows, self._vectors(texts))

    def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        made: NDArray[np.float32] = self._engine.embed(texts).numpy()
        return made


def index(
    paths: Sequence[str | Path] | str | Path,
    out: str | Path,
    config: IndexConfig | None = None,
    *,
    encoder: Bundle | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> tuple[Index, IndexReport]:
    """Index documents in a new folder, or bring an index that is there up to date.

    Args:
        paths: files and folders: text, Markdown, HTML, PDF, Word, CSV, JSON lines.
        out: the index's folder.
        config: encoder, sizes and store; an index that is there keeps its own.
        encoder: an open encoder, instead of the one ``config`` names.
        device: where the encoder computes; None: the fastest present.
        dtype: its number type; None: the one that is fast there.
        progress: hears one event a file.

    Raises:
        ConfigError: if the settings are not those the index was made with.
        DataError: if there is nothing to read, or the index is damaged or of another encoder.
    """
    folder, config = Path(out), config or IndexConfig()
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    find_documents(listed)
    if _facts(folder) is None:
        _refuse_full(folder)
        encoder = encoder or _encoder(config.encoder, device, dtype)
        most = (encoder.embedding.most_tokens if encoder.embedding else None) or encoder.context
        if config.chunk_tokens > most:
            raise ConfigError(
                f"chunk_tokens = {config.chunk_tokens}, but {config.encoder} reads {most} tokens at most.",
                "Choose shorter passages.",
            )
        _begin(folder, config, encoder)
    opened = Index.open(folder, encoder=encoder, device=device, dtype=dtype)
    kept = opened.settings
    if differs := [name for name in config.model_fields_set if getattr(config, name) != getattr(kept, name)]:
        raise ConfigError(
            f"{folder} was made with {differs[0]} = {getattr(kept, differs[0])}.",
            "Leave the setting out, or build a new index in another folder.",
        )
    return opened, opened.update(listed, progress)


# --- parts ---


def _fused(ways: dict[str, list[Row]], alive: set[str]) -> list[Hit]:
    """Join ranked rows by reciprocal rank fusion; rows of versions that are not alive do not count."""
    scores: dict[str, float] = {}
    ranks: dict[str, dict[str, int]] = {}
    rows: dict[str, Row] = {}
    for way, found in ways.items():
        living = (row for row in found if row["version"] in alive)
        for rank, row in enumerate(living, 1):
            rows[row["id"]] = row
            scores[row["id"]] = scores.get(row["id"], 0.0) + 1 / (FUSION + rank)
            ranks.setdefault(row["id"], {})[way] = rank
    order = sorted(scores, key=lambda id: (-scores[id], rows[id]["path"], id))  # versions are drawn anew
    return [
        Hit(rows[id]["text"], rows[id]["title"], rows[id]["place"], rows[id]["path"], scores[id], ranks[id])
        for id in order
    ]


def _encoder(ref: str | Path | Bundle, device: str | None, dtype: str | None) -> Bundle:
    """Open an encoder in the type of numbers that is fast here; vectors stay as near as rounding lets them."""
    if isinstance(ref, Bundle):
        return ref
    place = pick_device(device)
    return load(ref, device=place, dtype=pick_dtype(place, dtype))


def _identity(bundle: Bundle) -> dict[str, Any]:
    """Say what makes two encoders the same: their weights' checksums, or, without files, their numbers."""
    if bundle.source is not None:
        weights = checksums(bundle.source)
    else:
        weights = [
            hashlib.sha256(bundle.model.embed.weight.detach().float().cpu().numpy().tobytes()).hexdigest()
        ]
    how = None if bundle.embedding is None else asdict(bundle.embedding)
    return {"weights": weights, "tokenizer": bundle.tokenizer.fingerprint, "embedding": how}


def _facts(folder: Path) -> dict[str, Any] | None:
    """Read ``index.json``; None if there is none."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        IndexConfig(**facts["settings"])
        if facts["form"] != FORM or not all(
            {"version", "passages"} <= set(one) for one in facts["files"].values()
        ):
            raise ValueError("another form")
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(
            f"{path} is damaged ({error}).", "Restore it, or build the index again in another folder."
        ) from None
    return dict(facts)


def _begin(folder: Path, config: IndexConfig, encoder: Bundle) -> None:
    """Write the facts of an empty index, unless another process has just done so."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        if _facts(folder) is None:
            settings = config.model_dump(mode="json")
            facts = {
                "form": FORM,
                "settings": settings,
                "encoder": _identity(encoder),
                "files": {},
                "skipped": {},
            }
            write_atomically(folder / FILE, json.dumps(facts, indent=1))
    finally:
        lock.release()


def _refuse_full(folder: Path) -> None:
    ours = (LOCK, FILE, half_name(folder / FILE).name)  # of one who begins now, or died when it began
    if folder.is_file() or (folder.is_dir() and any(one.name not in ours for one in folder.iterdir())):
        raise DataError(f"{folder} holds something that is no index.", "Give a new or empty folder.")


def _below(name: str, given: Sequence[Path]) -> bool:
    return any(Path(name).is_relative_to(path) for path in given)


def _lock(folder: Path) -> Any:
    """Become the only writer, waiting for another one for a while."""
    until = time.monotonic() + WAIT_S
    while True:
        try:
            return lock_folder(folder)
        except BlockingIOError:
            if time.monotonic() > until:
                raise DataError(
                    f"{folder}: another process has been writing to this index for {WAIT_S:g} s.",
                    "Wait until it ends, then run this again.",
                ) from None
            time.sleep(0.2)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EROFS):
                raise DataError(f"{folder} cannot be written to.", "Check its permissions.") from None
            raise
