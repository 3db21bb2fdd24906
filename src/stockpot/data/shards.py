"""Tokenised documents on disk: written once, memory-mapped ever after.

A folder of shards is ``00000.bin`` (ids, little-endian uint16 or uint32, document after document),
``00000.json`` (the documents' lengths) and so on, and an ``index.json`` with the tokenizer's fingerprint and
every file's SHA-256, written last. What a shard holds depends on the texts alone: any number of processes, or
a run continued after kill -9, write the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockpot import durable
from stockpot.data.encode import encode_texts
from stockpot.data.store import TokenStore, id_type
from stockpot.errors import DataError
from stockpot.text.tokenizer import Tokenizer
from stockpot.workers import in_order

__all__ = ["REPORT", "is_shards", "open_shards", "write_shards"]

INDEX, REPORT = "index.json", "report.json"  # the report is of who made the texts
FORMAT = "stockpot-shards-1"
_AGAIN = "Free some space and run the same command again: finished shards are kept."


@dataclass(frozen=True)
class _Job:
    """One shard to be written: its place and its texts."""

    folder: Path
    number: int
    texts: list[str]
    key: str


def write_shards(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    folder: str | os.PathLike[str],
    *,
    shard_mib: int = 32,
    workers: int = 1,
    ray: str | None = None,
    done: Callable[[int], None] | None = None,
) -> Path:
    """Encode texts into shards; whole shards that an earlier, interrupted call has left are kept.

    Args:
        texts: documents, read once, as a stream.
        tokenizer: turns them into ids.
        folder: where to; it must be new, empty or hold shards.
        shard_mib: text in a shard; decides the shards, so keep it when continuing.
        workers: processes that encode; more than one must be started from a guarded main module.
        ray: address of a Ray cluster whose workers encode instead; all must see the folder.
        done: called with each finished shard's documents.

    Raises:
        DataError: if there is no text, the folder holds something else or is in use, or the disk is full.
        ConfigError: if the Ray cluster is out of reach.
    """
    folder = Path(folder)
    with _only_writer(folder), _full_disk(folder):
        durable.clean(folder)
        jobs = _jobs(texts, tokenizer, folder, shard_mib << 20)
        written: list[dict[str, Any]] = []
        for summary in in_order(_shard, jobs, shared=tokenizer, workers=workers, ray=ray):
            written.append(summary)
            if done is not None:
                done(summary["documents"])
        if not sum(summary["documents"] for summary in written):
            raise DataError("There is no text to write shards of.", "Give files with text in them.")
        for path in _own_files(folder):
            if int(path.stem) >= len(written):
                path.unlink()
        durable.write_atomically(folder / INDEX, _dump(_index(written, tokenizer)))
    return folder


def is_shards(folder: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a finished folder of shards."""
    try:
        with (Path(folder) / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(200)
    except OSError:
        return False


def open_shards(
    folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None, *, verify: bool = True
) -> TokenStore:
    """Open a folder of shards; ids stay on the disk until they are needed.

    Args:
        folder: what `write_shards` wrote.
        tokenizer: must be the one the shards were written with; None: not checked.
        verify: compare every file with its SHA-256 (about a second for each gigabyte), not only its size.

    Raises:
        DataError: if the shards are unfinished, damaged or of another tokenizer.
    """
    folder = Path(folder)
    index = _read_index(folder)
    if tokenizer is not None and index["tokenizer"] != tokenizer.fingerprint:
        raise DataError(
            f"{folder}: these shards were written with another tokenizer "
            f"({str(index['tokenizer'])[:12]}, not {tokenizer.fingerprint[:12]}).",
            "Open them with their own tokenizer, or write them anew.",
        )
    digest = hashlib.sha256(str(index["tokenizer"]).encode())
    parts, lengths = [], []
    try:
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        for number, said in enumerate(index["shards"]):
            parts.append(_open_ids(folder / f"{number:05d}.bin", said, dtype, verify))
            lengths.append(_open_lengths(folder / f"{number:05d}.json", said))
            digest.update(f"{said['sha256']}{said['lengths_sha256']}".encode())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(folder / INDEX, f"it lacks or garbles a field ({error})") from None
    return TokenStore(
        parts=parts,
        part=np.repeat(np.arange(len(parts), dtype=np.int32), [len(one) for one in lengths]),
        start=np.concatenate([np.cumsum(one) - one for one in lengths]),
        lengths=np.concatenate(lengths),
        fingerprint=digest.hexdigest(),
    )


# --- writing ---


def _jobs(texts: Iterable[str], tokenizer: Tokenizer, folder: Path, size: int) -> Iterator[_Job]:
    """Cut the stream of texts into shards by the length of the text, before anything is encoded."""
    group: list[str] = []
    held, number = 0, 0
    digest = _digest(tokenizer)
    for text in texts:
        data = text.encode("utf-8", errors="surrogatepass")  # whether it is text, the tokenizer says
        group.append(text)
        held += len(data)
        digest.update(len(data).to_bytes(8, "little") + data)
        if held >= size:
            yield _Job(folder, number, group, digest.hexdigest())
            group, held, number, digest = [], 0, number + 1, _digest(tokenizer)
    if group:
        yield _Job(folder, number, group, digest.hexdigest())


def _digest(tokenizer: Tokenizer) -> Any:
    return hashlib.sha256(f"{FORMAT} {tokenizer.fingerprint}".encode())


def _shard(job: _Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write a shard, or recognise one that is finished; returns its summary."""
    return _finished(job) or _write(job, tokenizer)


def _write(job: _Job, tokenizer: Tokenizer) -> dict[str, Any]:
    """Encode one shard; its lengths are written last and make it whole."""
    dtype = id_type(tokenizer.vocab_size)
    path = job.folder / f"{job.number:05d}.bin"
    (job.folder / INDEX).unlink(missing_ok=True)  # from now on it would not be true
    half = durable.half_name(path).with_suffix(f".{os.getpid()}")
    digest = hashlib.sha256()
    lengths: list[int] = []
    with _full_disk(job.folder):
        try:
            with half.open("wb") as file:
                for ids in encode_texts(job.texts, tokenizer):
                    data = ids.astype(dtype).tobytes()
                    digest.update(data)
                    file.write(data)
                    lengths.append(len(ids))
                file.flush()
                os.fsync(file.fileno())
            half.replace(path)
        except BaseException:
            half.unlink(missing_ok=True)
            raise
        facts = {"key": job.key, "sha256": digest.hexdigest(), "lengths": lengths}
        text = _dump(facts)
        durable.write_atomically(path.with_suffix(".json"), text)
    return _summary(facts, text.encode())


def _finished(job: _Job) -> dict[str, Any] | None:
    """Recognise a shard that was made of the same texts with the same tokenizer, and is whole."""
    path = job.folder / f"{job.number:05d}.bin"
    try:
        text = path.with_suffix(".json").read_bytes()
        facts = json.loads(text)
        if facts["key"] != job.key or _sha256(path) != facts["sha256"]:
            return None
        return _summary(facts, text)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _summary(facts: dict[str, Any], text: bytes) -> dict[str, Any]:
    return {
        "documents": len(facts["lengths"]),
        "tokens": sum(facts["lengths"]),
        "sha256": facts["sha256"],
        "lengths_sha256": hashlib.sha256(text).hexdigest(),
    }


def _index(written: list[dict[str, Any]], tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "dtype": id_type(tokenizer.vocab_size).name,
        "documents": sum(summary["documents"] for summary in written),
        "tokens": sum(summary["tokens"] for summary in written),
        "shards": written,
    }


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _own_files(folder: Path) -> list[Path]:
    return [
        path for ending in ("bin", "json") for path in folder.glob(f"[0-9][0-9][0-9][0-9][0-9]*.{ending}")
    ]


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: the folder cannot be made ({error.strerror}).", "Choose another."
        ) from None
    own = {path.name for path in _own_files(folder)} | {INDEX, REPORT}
    strange = sorted(p.name for p in folder.iterdir() if p.name not in own and not p.name.startswith("."))
    if strange:
        raise DataError(
            f"{folder}: the folder holds other files ({', '.join(strange[:3])}).", "Choose a new one."
        )
    try:
        lock = durable.lock_folder(folder)
    except BlockingIOError:
        raise DataError(f"{folder}: another process is writing shards here.", "Wait for it.") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(f"{folder}: the disk is full.", _AGAIN) from None


# --- reading ---


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        more = " They were not finished." if any(folder.glob("[0-9]*.bin")) else ""
        raise DataError(f"{folder}: there are no shards here (no {INDEX}).{more}", "Write them first.")
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != FORMAT:
            raise _damaged(path, f"its format is {str(index['format'])[:40]}, not {FORMAT}")
        if not (isinstance(index["shards"], list) and index["shards"]):
            raise _damaged(path, "it lists no shards")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, f"it cannot be read ({type(error).__name__})") from None
    return dict(index)


def _open_ids(path: Path, said: dict[str, Any], dtype: np.dtype[Any], verify: bool) -> NDArray[np.integer]:
    if not path.is_file():
        raise _damaged(path, "it is missing")
    size, expected = path.stat().st_size, int(said["tokens"]) * dtype.itemsize
    if size != expected:
        raise _damaged(path, f"it has {size} bytes, not {expected}")
    if verify and _sha256(path) != said["sha256"]:
        raise _damaged(path, "it has changed since it was written")
    return np.memmap(path, dtype, mode="r") if size else np.zeros(0, dtype)


def _open_lengths(path: Path, said: dict[str, Any]) -> NDArray[np.int64]:
    try:
        text = path.read_bytes()
    except OSError:
        raise _damaged(path, "it is missing") from None
    if hashlib.sha256(text).hexdigest() != said["lengths_sha256"]:
        raise _damaged(path, "it has changed since it was written")
    lengths = np.asarray(json.loads(text)["lengths"], np.int64)
    if len(lengths) != said["documents"] or lengths.sum() != said["tokens"]:
        raise _damaged(path, "its lengths do not add up to the index")
    return lengths


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: this shard file is damaged: {why}.", "Write the shards anew.")
