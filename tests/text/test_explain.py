"""The reading copy of byte-pair encoding equals the engine; the comparison says what is true."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stockpot.errors import TokenizerError
from stockpot.text import KINDS, Tokenizer
from stockpot.text.explain import compare, compare_tokenizers, encode_by_hand, trace_merges, with_typos

Trained = dict[str, Tokenizer]


@pytest.mark.parametrize("kind", ["bpe", "byte-bpe"])
def test_merging_by_hand_gives_the_engines_ids(
    kind: str, tokenizers: Trained, mutants: Callable[[int, int], list[str]]
) -> None:
    tokenizer = tokenizers[kind]
    for text in [*mutants(31, 400), "attenttionn"]:
        assert encode_by_hand(tokenizer, text) == tokenizer.encode(text)


def test_a_trace_shows_a_word_being_built() -> None:
    tokenizer = Tokenizer.train(["attention attend nation"] * 4, kind="bpe", vocab_size=35)
    (trace,) = trace_merges(tokenizer, "attenttionn")
    assert trace.characters == tuple("attenttionn")
    assert "".join(trace.tokens) == "attenttionn"
    for before, after in zip(
        [trace.characters, *(m.tokens for m in trace.merges)], trace.merges, strict=False
    ):
        assert len(after.tokens) == len(before) - 1
        assert after.left + after.right in after.tokens
        assert tokenizer.merges[after.rank] == (after.left, after.right)
    lines = str(trace).splitlines()
    assert lines[0] == "a t t e n t t i o n n"
    assert lines[-1].endswith(" ".join(trace.tokens))
    assert [tokenizer.token_to_id(token) for token in trace.tokens] == tokenizer.encode("attenttionn")


def test_each_word_has_its_own_trace(tokenizers: Trained) -> None:
    traces = trace_merges(tokenizers["bpe"], "the cat 42")
    assert ["".join(trace.tokens) for trace in traces] == ["the", "▁cat", "▁", "4", "2"]


def test_other_kinds_have_no_merges(tokenizers: Trained) -> None:
    for kind in ("word", "unigram", "wordpiece", "char", "byte", "ngram"):
        with pytest.raises(TokenizerError, match="has no merges"):
            trace_merges(tokenizers[kind], "a")


def test_typos_change_some_longer_words_and_repeat() -> None:
    texts = ["attention is all you need " * 50]
    once, again = with_typos(texts, share=0.5), with_typos(texts, share=0.5)
    assert once == again != texts
    pairs = list(zip(once[0].split(), texts[0].split(), strict=True))
    assert all(a == b for a, b in pairs if len(b) < 4)
    assert 20 < sum(a != b for a, b in pairs) < 80
    assert with_typos(texts, share=0.0) == texts


def test_the_comparison_of_all_kinds(corpus: list[str]) -> None:
    rows = {
        row["tokenizer"]: row for row in compare_tokenizers(corpus[:50], held_out=corpus[50:], vocab_size=400)
    }
    assert list(rows) == list(KINDS)
    assert rows["byte"]["bytes_per_token"] == 1.0
    assert rows["byte"]["unknown_with_typos"] == rows["byte-bpe"]["unknown_with_typos"] == 0
    assert rows["word"]["unknown_with_typos"] > 0.01 > rows["word"]["unknown"]
    assert rows["byte-bpe"]["bytes_per_token"] > rows["char"]["bytes_per_token"] > 1
    assert rows["char"]["tokens_per_word"] > rows["bpe"]["tokens_per_word"]
    for kind in ("byte-bpe", "byte", "bpe", "unigram", "char", "ngram"):
        assert rows[kind]["round_trip"] == 1.0
    assert rows["word"]["round_trip"] == rows["wordpiece"]["round_trip"] == 0.0


def test_comparing_on_nothing_is_an_error(tokenizers: Trained) -> None:
    with pytest.raises(TokenizerError, match="no held-out text"):
        compare(tokenizers, [""])
