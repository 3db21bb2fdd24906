"""tiktoken rank files: the ids that tiktoken gives, and files that do not say enough told."""

from __future__ import annotations

import base64
import random
from dataclasses import replace

import pytest

from stockpot.errors import TokenizerError
from stockpot.text import Tokenizer, ranks
from stockpot.text.ranks import ENCODINGS, is_ranks, read_ranks

PARTS = [
    *"ab日한é☃½/.", " ", "  ", "\n", "\t", "\r\n", "the", "cat", "Cat", "CAT", "e\u0301", "😀", "1", "23", "4567", "!?", "'S",
    "'ll", "'re", "İ", "ǅ", "\u00a0", "<|endoftext|>",
]  # fmt: skip
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def learned(corpus):
    """Learn ranks: bytes of every token in order."""
    tokenizer = Tokenizer.train(corpus, vocab_size=600, special_tokens=[])
    return [tokenizer.token_bytes(number) for number in range(tokenizer.vocab_size)]


def written(tokens):
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def their_pattern(count):
    """Take the published pattern out of tiktoken, without the ranks that it would download."""
    public = pytest.importorskip("tiktoken_ext.openai_public")
    if count == 50_256:
        return public.r50k_pat_str
    name = {100_256: "cl100k_base", 199_998: "o200k_base"}[count]
    kept, public.load_tiktoken_bpe = public.load_tiktoken_bpe, lambda *_, **__: {}
    try:
        return getattr(public, name)()["pat_str"]
    finally:
        public.load_tiktoken_bpe = kept


@pytest.mark.golden
@pytest.mark.parametrize("count", [50_256, 100_256, 199_998])
def test_ids_equal_those_of_tiktoken(count, learned):
    tiktoken = pytest.importorskip("tiktoken")
    theirs = tiktoken.Encoding(
        "x",
        pat_str=their_pattern(count),
        mergeable_ranks={token: rank for rank, token in enumerate(learned)},
        special_tokens={END: len(learned)},
    )
    encoding = replace(ENCODINGS[count], special={END: len(learned)}, roles={"eos": END})
    ours = Tokenizer.of(*read_ranks(written(learned), encoding))
    assert ours.eos_id == len(learned)
    dice = random.Random(0)
    for _ in range(1_000):
        text = "".join(dice.choice(PARTS) for _ in range(dice.randint(1, 12)))
        ids = ours.encode(text)
        assert ids == theirs.encode(text, disallowed_special=()), text
        assert ours.decode(ids) == text


def test_the_number_of_ranks_tells_the_encoding(learned, tmp_path, monkeypatch):
    (tmp_path / "x.tiktoken").write_bytes(written(learned))
    count = len(learned)
    with pytest.raises(TokenizerError, match=f"{count} ranks does not say how text is cut"):
        Tokenizer.load(tmp_path / "x.tiktoken")
    known = replace(ENCODINGS[50_256], special={END: count + 3}, roles={"eos": END})
    monkeypatch.setitem(ranks.ENCODINGS, count, known)
    tokenizer = Tokenizer.load(tmp_path / "x.tiktoken")
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (count + 3, count + 4)
    assert tokenizer.encode(END, allow_special=True) == [count + 3]
    assert count + 1 not in tokenizer.encode(f"the <|unused_{count + 1}|>")


def test_the_known_special_tokens_have_the_published_ids():
    assert ENCODINGS[128_000].special["<|eot_id|>"] == 128_009
    assert ENCODINGS[128_000].special["<|start_header_id|>"] == 128_006
    assert len(ENCODINGS[128_000].special) == 256
    assert max(ENCODINGS[128_000].special.values()) == 128_255
    assert ENCODINGS[100_256].special["<|endofprompt|>"] == 100_276


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data + b"!!! 600\n", "damaged in line"),
        (lambda data: data + b"YWJj\n", "damaged in line"),
        (lambda data: data + b"YWJjZGVm 700\n", "leaves ranks out"),
        (lambda data: data.partition(b"\n")[2], "leaves ranks out"),
        (lambda data: data + b"YWJjZGVmZ 600\n", "damaged in line"),
    ],
)
def test_a_damaged_file_is_told(change, told, learned, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(change(written(learned)))
    assert is_ranks(written(learned))
    with pytest.raises(TokenizerError, match=told) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
