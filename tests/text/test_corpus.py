"""The fast path for corpora gives the engine's ids, whatever the text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from stockpot.errors import TokenizerError
from stockpot.text import KINDS, Tokenizer
from stockpot.text.bytepairs import LONGEST, WordMerger
from stockpot.text.corpus import cut_rule
from stockpot.text.kinds import BYTE_LETTERS
from stockpot.text.pieces import (
    CUT_RULES,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    WORD_PATTERN,
    PieceTable,
    as_blocks,
    parts,
)

Mutants = Callable[[int, int], list[str]]


def _engine_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    engine = Engine.from_str(tokenizer.to_json())
    engine.encode_special_tokens = True
    return [encoding.ids for encoding in engine.encode_batch(texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_hostile_texts_equal_the_engines(
    kind: str, tokenizers: dict[str, Tokenizer], mutants: Mutants
) -> None:
    texts = mutants(1, 4000)
    ours = tokenizers[kind].encode_batch(texts)
    assert [row.tolist() for row in ours] == _engine_ids(tokenizers[kind], texts)
    assert all(row.dtype == np.int32 for row in ours)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_fast_path(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    assert cut_rule(json.loads(tokenizers[kind].to_json())) is not None


def _trained(pre_tokenizer: object, corpus: list[str]) -> Tokenizer:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizer
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    engine.train_from_iterator(corpus, trainer)
    engine.add_special_tokens(["<|endoftext|>"])
    engine.add_tokens(["<think>"])
    return Tokenizer(engine.to_str())


_PLAIN_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
FOREIGN = {
    "gpt2": _GPT2,
    "gpt2 pattern": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated"), _PLAIN_BYTES]
    ),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "smollm grouped": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), _GPT2]),
    "llama3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"), _PLAIN_BYTES]
    ),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated"), _PLAIN_BYTES]),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_ids_of_foreign_tokenizers_equal_the_engines(name: str, corpus: list[str], mutants: Mutants) -> None:
    tokenizer = _trained(FOREIGN[name], corpus)
    texts = [*mutants(2, 3000), "a <think> b", "<think", "<think>\n\n<think>", "<|endoftext|>"]
    assert cut_rule(json.loads(tokenizer.to_json())) is not None
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == _engine_ids(tokenizer, texts)


def test_a_tokenizer_with_unknown_splitting_goes_through_the_engine(
    corpus: list[str], mutants: Mutants
) -> None:
    tokenizer = _trained(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), _GPT2]), corpus)
    assert cut_rule(json.loads(tokenizer.to_json())) is None
    texts = mutants(3, 300)
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == _engine_ids(tokenizer, texts)


def test_a_normalizer_closes_the_fast_path(tokenizers: dict[str, Tokenizer]) -> None:
    engine = Engine.from_str(tokenizers["byte-bpe"].to_json())
    engine.normalizer = normalizers.NFKC()
    assert cut_rule(json.loads(engine.to_str())) is None


def test_texts_do_not_touch_each_other(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-bpe"]
    texts = ["", "atten", "tion", "", " ", " ", "\n", "\n", "1", "2", ""]
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == [tokenizer.encode(t) for t in texts]
    assert tokenizer.encode_batch([]) == []


def test_forgetting_changes_no_id(
    tokenizers: dict[str, Tokenizer], mutants: Mutants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockpot.text.corpus._REMEMBERED", 50)
    monkeypatch.setattr("stockpot.text.pieces.BLOCK_BYTES", 500)
    tokenizer = Tokenizer(tokenizers["byte-bpe"].to_json())
    texts = mutants(4, 500)
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == _engine_ids(tokenizer, texts)


@pytest.mark.parametrize("kind", ["byte-bpe", "wordpiece"])
def test_a_long_text_is_encoded_in_parts(
    kind: str, tokenizers: dict[str, Tokenizer], mutants: Mutants, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stockpot.text.pieces._PART_BYTES", 40)
    tokenizer = Tokenizer(tokenizers[kind].to_json())
    texts = ["".join(mutants(seed, 40)) for seed in range(30)] + [
        "a" * 5000,
        "",
        "短い",
        "한" * 500 + " b" * 50,
    ]
    rule = cut_rule(json.loads(tokenizer.to_json()))
    assert rule is not None
    cut = [list(parts(text.encode(), rule)) for text in texts]
    assert sum(map(len, cut)) > 5 * len(texts)
    assert ["".join(part.decode() for part in found) for found in cut] == texts
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == _engine_ids(tokenizer, texts)


def test_special_spellings_count_only_when_allowed(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-bpe"]
    special = tokenizer.special_ids["<|user|>"]
    (plain,), (allowed,) = (
        tokenizer.encode_batch(["<|user|>"], allow_special=flag) for flag in (False, True)
    )
    assert special not in plain
    assert allowed.tolist() == [special]


def test_a_lone_surrogate_is_named(tokenizers: dict[str, Tokenizer]) -> None:
    for call in (tokenizers["byte-bpe"].encode, lambda text: tokenizers["byte-bpe"].encode_batch([text])):
        with pytest.raises(TokenizerError, match=r"U\+D800.*position 2"):
            call("ab\ud800")


def test_pieces_put_together_are_the_text(mutants: Mutants) -> None:
    for rule in CUT_RULES.values():
        pieces: list[bytes] = []
        table = PieceTable(rule, pieces.extend)
        texts = mutants(5, 400)
        for block in as_blocks(map(str.encode, texts), size=300):
            numbers, bounds = table.number(block)
            for text, start, end in zip(block, bounds[:-1], bounds[1:], strict=True):
                assert b"".join(pieces[number] for number in numbers[start:end]) == text


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["byte-bpe", "bpe", "char", "byte"])
def test_words_merged_together_have_the_engines_ids(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    spec = json.loads(tokenizers[kind].to_json())
    merger = WordMerger.of(spec)
    assert merger is not None
    choose = random.Random(8)
    letters = bytes(set(merger.known) - {0x20}).decode()
    words = ["".join(choose.choices(letters, k=choose.randrange(1, LONGEST))) for _ in range(300)]
    words += ["a" * LONGEST, "aa", "".join(choose.choices("atinoe", k=60)), "attenttionn", "a"]
    assert all(merger.can_take(word.encode()) for word in words)
    ids, counts = merger.encode([word.encode() for word in words])
    model = Engine.from_str(json.dumps(spec)).model
    expected = [[token.id for token in model.tokenize(_spelled(word, kind))] for word in words]
    assert [row.tolist() for row in np.split(ids, np.cumsum(counts)[:-1])] == expected


def _spelled(word: str, kind: str) -> str:
    return "".join(BYTE_LETTERS[byte] for byte in word.encode()) if kind in ("byte-bpe", "byte") else word


@pytest.mark.parametrize("text", [b"a" * (LONGEST + 1), "é".encode(), b"caf\xc3"])
def test_what_is_long_or_not_ascii_is_left_to_the_engine(
    text: bytes, tokenizers: dict[str, Tokenizer]
) -> None:
    merger = WordMerger.of(json.loads(tokenizers["byte-bpe"].to_json()))
    assert merger is not None and not merger.can_take(text)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "word", "ngram"])
def test_models_that_do_not_merge_are_left_to_the_engine(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    assert WordMerger.of(json.loads(tokenizers[kind].to_json())) is None


def test_a_letter_the_model_lacks_is_left_to_the_engine() -> None:
    tokenizer = Tokenizer.train(["abab abba"], kind="bpe", vocab_size=20)
    texts = ["abba zab", "zz z", "ab\n"]
    assert [row.tolist() for row in tokenizer.encode_batch(texts)] == _engine_ids(tokenizer, texts)


def test_many_pieces_of_one_block_get_their_own_numbers() -> None:
    pieces: list[bytes] = []
    table = PieceTable(CUT_RULES[WORD_PATTERN], pieces.extend)
    text = " ".join(
        f"{a}{b}{c}x" for a in "abcdefghijklmnopqrst" for b in "abcdefghijklmnopqrst" for c in "abcdefghij"
    )
    numbers, _ = table.number([text.encode()])
    assert len(set(numbers.tolist())) == 4000 == table.size
    again, _ = table.number([text.encode()])
    assert (again == numbers).all()
