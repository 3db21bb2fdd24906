"""Tokenizers of all kinds: round trips, special tokens, files, other libraries, clear errors."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from stockpot.errors import TokenizerError
from stockpot.text import KINDS, SPECIAL_TOKENS, Tokenizer
from stockpot.text.counts import count_words
from stockpot.text.pieces import WORD_PATTERN

Trained = dict[str, Tokenizer]
Mutants = Callable[[int, int], list[str]]


@pytest.mark.parametrize("kind", ["byte-bpe", "byte"])
def test_byte_kinds_give_back_any_text(kind: str, tokenizers: Trained, mutants: Mutants) -> None:
    tokenizer = tokenizers[kind]
    for text in mutants(11, 800):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_byte_bpe_gives_back_what_hypothesis_thinks_of(text: str) -> None:
    tokenizer = _small()
    assert tokenizer.decode(tokenizer.encode(text)) == text


_CACHE: list[Tokenizer] = []


def _small() -> Tokenizer:
    if not _CACHE:
        _CACHE.append(Tokenizer.train(["the cat sat on the mat"] * 3, vocab_size=300))
    return _CACHE[0]


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.is_lossless])
def test_lossless_kinds_give_back_the_corpus(kind: str, tokenizers: Trained, corpus: list[str]) -> None:
    tokenizer = tokenizers[kind]
    for text in corpus[:20]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_text_never_becomes_a_special_token(kind: str, tokenizers: Trained, mutants: Mutants) -> None:
    tokenizer = tokenizers[kind]
    special = set(tokenizer.special_ids.values()) - {tokenizer.unk_id}
    texts = [*SPECIAL_TOKENS, "".join(SPECIAL_TOKENS), " ".join(SPECIAL_TOKENS), *mutants(12, 300)]
    for text in texts:
        assert special.isdisjoint(tokenizer.encode(text))
    for row in tokenizer.encode_batch(texts):
        assert special.isdisjoint(row.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_reached_when_allowed(kind: str, tokenizers: Trained) -> None:
    tokenizer = tokenizers[kind]
    for token, number in tokenizer.special_ids.items():
        assert tokenizer.encode(token, allow_special=True) == [number]
        assert tokenizer.byte_lengths[number] == 0
    assert set(tokenizer.special_ids) == set(SPECIAL_TOKENS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_whole(
    kind: str, tokenizers: Trained, tmp_path: Path, corpus: list[str]
) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path / "tok")
    again = Tokenizer.load(tmp_path / "tok")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.kind == kind == tokenizer.kind
    assert (again.special_ids, again.roles) == (tokenizer.special_ids, tokenizer.roles)
    assert again.encode(corpus[0]) == tokenizer.encode(corpus[0])
    assert sorted(path.name for path in (tmp_path / "tok").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert Tokenizer.load(tmp_path / "tok" / "tokenizer.json").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_file_opens_in_the_tokenizers_library(
    kind: str, tokenizers: Trained, tmp_path: Path, corpus: list[str]
) -> None:
    tokenizers[kind].save(tmp_path)
    engine = Engine.from_file(str(tmp_path / "tokenizer.json"))
    for text in corpus[:10]:
        assert engine.encode(text).ids == tokenizers[kind].encode(text)


@pytest.mark.golden
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_opens_the_folder(
    kind: str, tokenizers: Trained, tmp_path: Path, corpus: list[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path, chat_template="{{ messages[0]['content'] }}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}), encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(corpus[0], add_special_tokens=False)["input_ids"] == tokenizer.encode(corpus[0])
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        assert getattr(theirs, f"{role}_token_id") == getattr(tokenizer, f"{role}_id")
    assert theirs.convert_tokens_to_ids("<|end|>") == tokenizer.special_ids["<|end|>"]
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"


@pytest.mark.golden
def test_byte_bpe_equals_the_reference_trainers(corpus: list[str]) -> None:
    engine = Engine(models.BPE())
    split = pre_tokenizers.Split(_regex(), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    engine.train_from_iterator(corpus, trainer)
    ours = Tokenizer.train(corpus, vocab_size=600 + len(SPECIAL_TOKENS))
    theirs = engine.get_vocab()
    assert {token: ours.token_to_id(token) for token in theirs} == theirs
    assert json.loads(ours.to_json())["model"]["merges"] == json.loads(engine.to_str())["model"]["merges"]


def _regex() -> object:
    from tokenizers import Regex

    return Regex(WORD_PATTERN)


@pytest.mark.golden
@pytest.mark.parametrize("part", [1 << 20, 30])
def test_word_counts_equal_the_engines(part: int, mutants: Mutants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockpot.text.pieces._PART_BYTES", part)
    splitter = pre_tokenizers.Split(_regex(), "isolated")
    texts = mutants(13, 2000)
    expected: dict[str, int] = {}
    for text in texts:
        for word, _ in splitter.pre_tokenize_str(text):
            expected[word] = expected.get(word, 0) + 1
    assert dict(count_words(texts)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic(kind: str, corpus: list[str], tokenizers: Trained) -> None:
    assert (
        Tokenizer.train(iter(corpus), kind=kind, vocab_size=700).fingerprint == tokenizers[kind].fingerprint
    )


def test_texts_are_read_once_as_a_stream() -> None:
    drawn = 0

    def stream() -> Iterator[str]:
        nonlocal drawn
        for number in range(2000):
            drawn += 1
            yield f"line {number % 7} of the stream"

    tokenizer = Tokenizer.train(stream(), vocab_size=300)
    assert drawn == 2000
    assert tokenizer.decode(tokenizer.encode("line 3")) == "line 3"


def test_an_endless_variety_of_words_is_bounded() -> None:
    choose = random.Random(3)
    texts = (
        " ".join(f"{choose.randrange(10**9):x}" for _ in range(50)) + " common words" for _ in range(400)
    )
    words = count_words(texts, max_words=2000)
    assert len(words) <= 2000
    assert words[" common"] == words[" words"] == 400


def test_a_very_long_word_is_counted_in_parts() -> None:
    assert max(map(len, count_words(["x" * 100_000]))) == 256


def test_roles_are_told_by_spelling() -> None:
    tokenizer = Tokenizer.train(
        ["a b c"], kind="word", vocab_size=20, special_tokens=["[PAD]", "[UNK]", "[CLS]", "</s>"]
    )
    found = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.eos_id]
    assert found == [tokenizer.special_ids[token] for token in ("[PAD]", "[UNK]", "[CLS]", "</s>")]
    assert tokenizer.bos_id is None is tokenizer.mask_id


def test_a_foreign_vocabulary_with_special_tokens_inside_is_guarded() -> None:
    # T5's way: "</s>" is a piece of the unigram model itself, so its spelling in a text would reach it.
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -4.0) for letter in "abs/<>")]
    engine = Engine(models.Unigram(pieces, unk_id=0))
    engine.add_special_tokens(["</s>", "<unk>"])
    tokenizer = Tokenizer(engine.to_str())
    end = tokenizer.special_ids["</s>"]
    assert end not in tokenizer.encode("a</s>b")
    assert all(end not in row for row in tokenizer.encode_batch(["a</s>b", "</s></s>"]))
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b" or len(tokenizer.encode("a</s>b")) == 6
    assert tokenizer.encode("</s>", allow_special=True) == [end]


def test_a_tokenizer_can_be_pickled(tokenizers: Trained) -> None:
    again = pickle.loads(pickle.dumps(tokenizers["byte-bpe"]))
    assert again.fingerprint == tokenizers["byte-bpe"].fingerprint
    assert again.encode("hello") == tokenizers["byte-bpe"].encode("hello")


def test_the_fingerprint_changes_with_the_vocabulary(corpus: list[str], tokenizers: Trained) -> None:
    assert Tokenizer.train(corpus, vocab_size=400).fingerprint != tokenizers["byte-bpe"].fingerprint


def test_token_bytes_put_together_are_the_text(tokenizers: Trained) -> None:
    tokenizer = tokenizers["byte-bpe"]
    ids = tokenizer.encode("Größe 東京 🙂\n")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "Größe 東京 🙂\n"
    assert isinstance(tokenizer.byte_lengths, np.ndarray)
    assert tokenizer.byte_lengths.shape == (tokenizer.vocab_size,)


def test_typos_are_unknown_words_and_known_subwords(tokenizers: Trained) -> None:
    word, subword = tokenizers["word"], tokenizers["bpe"]
    assert word.encode("attenttionn") == [word.unk_id]
    assert subword.unk_id not in subword.encode("attenttionn")


# Errors ----------------------------------------------------------------------------------------------------------


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(TokenizerError, match=r'no tokenizer kind "bytebpe".*Did you mean "byte-bpe"'):
        Tokenizer.train(["a"], kind="bytebpe")


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_corpus_is_an_error(texts: list[str]) -> None:
    with pytest.raises(TokenizerError, match="corpus is empty"):
        Tokenizer.train(texts)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char", "ngram"])
def test_a_vocabulary_smaller_than_the_alphabet_is_an_error(kind: str) -> None:
    alphabet = "".join(map(chr, range(0x4E00, 0x4E00 + 500)))
    with pytest.raises(TokenizerError, match="500 different characters"):
        Tokenizer.train([alphabet], kind=kind, vocab_size=300)


@pytest.mark.parametrize("kind", ["byte-bpe", "byte"])
def test_a_vocabulary_smaller_than_the_bytes_is_an_error(kind: str) -> None:
    with pytest.raises(TokenizerError, match="256 bytes"):
        Tokenizer.train(["a"], kind=kind, vocab_size=100)


def test_a_vocabulary_smaller_than_the_special_tokens_is_an_error() -> None:
    with pytest.raises(TokenizerError, match="no room beside the 11 special tokens"):
        Tokenizer.train(["a"], kind="word", vocab_size=10)


def test_character_coverage_drops_the_rarest() -> None:
    texts = ["aaaa bbbb " * 500 + "é"]
    full = Tokenizer.train(texts, kind="char", vocab_size=50)
    most = Tokenizer.train(texts, kind="char", vocab_size=50, character_coverage=0.999)
    assert full.unk_id not in full.encode("é")
    assert most.encode("é") == [most.unk_id]


def test_special_tokens_must_hold_the_unknown_one() -> None:
    with pytest.raises(TokenizerError, match="needs a special token for unknown text"):
        Tokenizer.train(["a"], kind="word", special_tokens=["<|eos|>"])
    with pytest.raises(TokenizerError, match="listed twice"):
        Tokenizer.train(["a"], special_tokens=["<|eos|>", "<|eos|>"])


def test_an_id_without_a_token_is_an_error(tokenizers: Trained) -> None:
    with pytest.raises(TokenizerError, match="no token with id 99999"):
        tokenizers["byte-bpe"].id_to_token(99999)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"model": 3}', b"\xff\xfe", b'{"version": "9"}', b"null"]
)
def test_a_damaged_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="There is no tokenizer at"):
        Tokenizer.load(tmp_path / "nothing")


def test_mutated_files_are_refused_or_read_never_more(tokenizers: Trained, tmp_path: Path) -> None:
    whole = tokenizers["bpe"].to_json().encode()
    choose = random.Random(5)
    file = tmp_path / "tokenizer.json"
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(choose.randrange(1, 6)):
            data[choose.randrange(len(data))] = choose.choice(b'{}[]",:0123456789abtrue\x00\xff')
        file.write_bytes(bytes(data[: choose.randrange(1, len(data))] if choose.random() < 0.3 else data))
        try:
            Tokenizer.load(file).encode("the cat")
        except TokenizerError as error:
            assert "\n" not in str(error)


def test_a_piece_is_what_an_id_adds_wherever_it_stands():
    tokenizer = Tokenizer.train(["the cat sat on the mat, naïve café 😀"] * 20, vocab_size=300)
    ids = tokenizer.encode("the naïve cat 😀 ç")
    known = [tokenizer.piece(id) for id in ids]
    assert None in known  # the bytes of a character
    for at, piece in enumerate(known):
        if piece is not None:
            before, after = tokenizer.decode(ids[:at]), tokenizer.decode(ids[: at + 1])
            assert after == before + piece
    assert tokenizer.piece(tokenizer.eos_id) == ""
    assert Tokenizer.train(["the cat"] * 20, kind="word", vocab_size=30).piece(20) is None
