"""The tokenizer stage: settings reach the tokenizer and the reader; bad input gets one clear error and writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stockpot.data.reading import ReadConfig
from stockpot.errors import CheckpointError, DataError, TokenizerError
from stockpot.stages.tokenizer import TokenizerConfig, train_tokenizer
from stockpot.text import Tokenizer


def _train(folder: Path, data: bytes, **settings: Any) -> Tokenizer:
    (folder / "corpus.txt").write_bytes(data)
    config = TokenizerConfig(data=(str(folder / "corpus.txt"),), **settings)
    return Tokenizer.load(train_tokenizer(config, out=folder / "tokenizer"))


def test_every_setting_reaches_the_tokenizer(tmp_path: Path) -> None:
    text = b"soup soup soup stone \xe6\xb1\xa4"
    tokenizer = _train(
        tmp_path, text, kind="ngram", vocab_size=60, ngram=2, min_count=3, character_coverage=0.9
    )
    assert tokenizer.token_to_id("▁s") is not None  # three times; "ou" only twice inside words after a space
    assert tokenizer.token_to_id("ou") is None is tokenizer.token_to_id("e")  # "e" is among the rarest tenth


def test_text_that_is_not_utf8_follows_the_policy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus.txt:1: byte 4 \(0xff\)") as caught:
        _train(tmp_path, b"soup\xff")
    assert "reading.encoding_errors" in caught.value.todo
    assert not (tmp_path / "tokenizer").exists()
    tokenizer = _train(
        tmp_path, b"soup\xff" * 9, kind="char", vocab_size=30, reading=ReadConfig(encoding_errors="replace")
    )
    assert tokenizer.token_to_id("\ufffd") is not None


@pytest.mark.parametrize(
    ("settings", "least"), [({"kind": "byte-bpe"}, 267), ({"kind": "bpe"}, 20), ({"kind": "wordpiece"}, 29)]
)
def test_a_vocabulary_too_small_names_the_smallest_that_is_not(
    settings: dict[str, Any], least: int, tmp_path: Path
) -> None:
    text = b"abcdefgh " if settings["kind"] != "wordpiece" else b"abcdefghi"
    with pytest.raises(TokenizerError, match=f"at least {least}") as caught:
        _train(tmp_path, text, vocab_size=least - 1, **settings)
    assert not (tmp_path / "tokenizer").exists(), caught
    assert _train(tmp_path, text, vocab_size=least, **settings).vocab_size == least


@pytest.mark.parametrize("data", [b"", b" \n\n "])
def test_a_corpus_without_text_is_an_error(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        _train(tmp_path, data)
    assert not (tmp_path / "tokenizer").exists()


def test_a_tokenizer_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    first = _train(tmp_path, b"soup soup", kind="char", vocab_size=30)
    with pytest.raises(CheckpointError, match="already holds a tokenizer"):
        _train(tmp_path, b"stone", kind="char", vocab_size=30)
    assert Tokenizer.load(tmp_path / "tokenizer").fingerprint == first.fingerprint
