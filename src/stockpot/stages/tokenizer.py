"""Train a tokenizer from a corpus and write it to a folder that other libraries open too."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from pydantic import Field, field_validator

from stockpot.config import Settings
from stockpot.data.reading import ReadConfig
from stockpot.data.sources import read_texts
from stockpot.errors import CheckpointError
from stockpot.stages.assemble import as_sources
from stockpot.text.tokenizer import SPECIAL_TOKENS, Tokenizer

__all__ = ["TokenizerConfig", "train_tokenizer"]


class TokenizerConfig(Settings):
    """How a tokenizer is trained."""

    data: tuple[str, ...] = Field(
        ("village",), description="files, folders, patterns, data-set ids, or village[:SEED]"
    )
    kind: str = Field(
        "byte-bpe", description="bpe · byte-bpe · wordpiece · unigram · char · byte · ngram · word"
    )
    vocab_size: int = Field(8192, ge=1, description="entries, special tokens included")
    documents: int | None = Field(None, ge=1, description="read only this many documents; none: all")
    sentinels: int = Field(
        0, ge=0, description="control tokens that stand for missing spans; the objective span needs about 100"
    )
    min_count: int = Field(1, ge=1, description="pairs, blocks and words seen less often are not learned")
    character_coverage: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of all characters that must be known (bpe, wordpiece, unigram, char, ngram)",
    )
    ngram: int = Field(3, ge=1, description="characters of a block, for kind ngram")
    reading: ReadConfig = Field(default_factory=ReadConfig, description="encoding, separators and limits")

    _sources = field_validator("data", mode="before")(as_sources)


def train_tokenizer(config: TokenizerConfig, *, out: str | Path) -> Path:
    """Train a tokenizer and write it to ``out``.

    Returns:
        The folder, which ``Tokenizer.load`` and the ``tokenizers`` library read.

    Raises:
        CheckpointError: if ``out`` holds something already.
        TokenizerError: if the corpus is empty or the vocabulary too small.
        DataError: if the corpus cannot be read.
    """
    out = Path(out)
    if out.is_file():
        raise CheckpointError(f"{out} is a file; a tokenizer is a folder.", "Choose another --out.")
    if (out / "tokenizer.json").exists():  # what was trained with it would be lost with it
        raise CheckpointError(f"{out}: already holds a tokenizer.", "Choose another --out.")
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out}: holds other files and no tokenizer.", "Choose another --out.")
    texts = islice(read_texts(config.data, config.reading), config.documents)
    tokenizer = Tokenizer.train(
        texts,
        kind=config.kind,
        vocab_size=config.vocab_size,
        special_tokens=(*SPECIAL_TOKENS, *(f"<|extra_{number}|>" for number in range(config.sentinels))),
        min_count=config.min_count,
        character_coverage=config.character_coverage,
        ngram=config.ngram,
    )
    tokenizer.save(out)
    return out
