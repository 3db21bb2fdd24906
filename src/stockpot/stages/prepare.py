"""Turn a raw corpus into tokenised shards: read, clean, leave out what is bad or nearly there twice, encode.

Cleaning and encoding are done by processes of this machine or by a Ray cluster; reading and the choice between near documents
by one process, in order, so that the shards are the same bytes however they are made, and after kill -9 as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stockpot.config import Settings
from stockpot.data.clean import CleanConfig, clean, fault, words_of
from stockpot.data.near import Seen, band_keys
from stockpot.data.reading import ReadConfig
from stockpot.data.shards import INDEX, REPORT, write_shards
from stockpot.data.sources import read_texts
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError, DataError
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.text.tokenizer import Tokenizer
from stockpot.workers import in_order, joined_ray

__all__ = ["PrepareConfig", "PrepareReport", "prepare"]

BATCH_BYTES = 1 << 20  # of text that a worker cleans at a time
NEAR = ".near.sqlite"


class PrepareConfig(Settings):
    """How a corpus becomes shards."""

    data: tuple[str, ...] = Field(
        ("village",),
        description="files, folders, patterns, URLs (s3://, https://), data-set ids, or village[:SEED]",
    )
    tokenizer: str | None = Field(None, description="folder of the tokenizer that encodes")
    reading: ReadConfig = Field(default_factory=ReadConfig, description="encoding, separators and limits")
    clean: CleanConfig = Field(
        default_factory=CleanConfig, description="what is left out, and in what form the rest is"
    )
    near: float | None = Field(
        0.8,
        gt=0,
        lt=1,
        description="similarity from which a document is left out as there already; none: none is",
    )
    shard_mib: int = Field(32, ge=1, description="text of a shard")
    workers: int = Field(1, ge=1, description="processes")
    ray: str | None = Field(
        None, description="address of a Ray cluster, or auto, whose workers do it instead"
    )

    _sources = field_validator("data", mode="before")(as_sources)


@dataclass
class PrepareReport:
    """What became of the documents."""

    folder: Path
    read: int = 0
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    left_out_share: float = 0.0  # of the text, not of the documents: one that is too long may be most of it
    tokens: int = 0
    shards: int = 0

    def __str__(self) -> str:
        reasons = ", ".join(f"{name} {count:,}" for name, count in self.left_out.items())
        reasons = f"{reasons} ({self.left_out_share:.1%} of the text)" if reasons else "nothing"
        shards = "1 shard" if self.shards == 1 else f"{self.shards:,} shards"
        return (
            f"{self.folder}: {self.tokens:,} tokens in {shards}; {self.kept:,} of {self.read:,} documents kept; "
            f"left out: {reasons}"
        )


def prepare(config: PrepareConfig, *, out: str | Path, progress: Progress | None = None) -> PrepareReport:
    """Write the shards of a corpus into ``out``; the same call goes on after an interruption.

    Raises:
        ConfigError: if there is no tokenizer, or Ray or a needed package is out of reach.
        DataError: if a source is missing or too bad, or the folder holds something else.
    """
    report = progress or silent
    if config.tokenizer is None:
        raise ConfigError("Shards need a tokenizer.", "Give one with --tokenizer.")
    tokenizer, out = Tokenizer.load(config.tokenizer), Path(out)
    if config.near is not None:
        band_keys(["a"], threshold=config.near)  # refuse early
    found, reasons = PrepareReport(out), Counter[str]()

    def told(documents: int) -> None:
        found.kept += documents
        report({"kind": "note", "text": f"{found.kept:,} documents in shards"})

    if config.ray is None:
        texts = _kept(config, found, reasons, out)
        write_shards(texts, tokenizer, out, shard_mib=config.shard_mib, workers=config.workers, done=told)
    else:
        with joined_ray(config.ray):
            texts = _kept(config, found, reasons, out)
            write_shards(texts, tokenizer, out, shard_mib=config.shard_mib, ray=config.ray, done=told)
    index = json.loads((out / INDEX).read_bytes())
    found.tokens, found.shards = index["tokens"], len(index["shards"])
    found.left_out = dict(sorted(reasons.items()))
    facts = asdict(found) | {"settings": config.model_dump(mode="json", exclude={"workers", "ray"})}
    del facts["folder"]
    write_atomically(out / REPORT, json.dumps(facts, indent=1) + "\n")
    return found


def _kept(config: PrepareConfig, found: PrepareReport, reasons: Counter[str], out: Path) -> Iterator[str]:
    """Yield the documents that stay, in order."""
    batches = _batches(read_texts(config.data, config.reading))
    judged = in_order(_judge, batches, shared=config, workers=config.workers, ray=config.ray)
    is_empty, read, left_out = True, 0, 0
    with Seen(out / NEAR) as seen:
        for documents in judged:
            for text, length, reason, keys in documents:
                found.read += 1
                read += length
                if reason is None and keys and not seen.is_new(keys):
                    reason = "near another"
                if reason is None:
                    is_empty = False
                    yield text
                else:
                    reasons[reason] += 1
                    left_out += length
    found.left_out_share = left_out / max(1, read)
    if is_empty and reasons:
        why = ", ".join(f"{name} {count:,}" for name, count in sorted(reasons.items()))
        raise DataError(
            f"None of the {found.read:,} documents is kept; left out: {why}.",
            "The settings clean.… say what is left out (--dry-run lists them); a file that holds many documents "
            "is cut by reading.separator.",
        )


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _judge(texts: list[str], config: PrepareConfig) -> list[tuple[str, int, str | None, list[int]]]:
    """Clean documents; returns of each its text, its first length, why it is left out, and the keys of what is near."""
    judged: list[tuple[str, int, str | None, list[int]]] = []
    for raw in texts:
        text = clean(raw) if config.clean.normalise else raw
        reason = fault(text, config.clean)
        near = config.near is not None and reason is None
        keys: list[Any] = band_keys(words_of(text), threshold=config.near) if near and config.near else []
        judged.append(("" if reason else text, len(raw), reason, keys))
    return judged
