"""SentencePiece files: the ids that the sentencepiece library gives, and damaged files told."""

from __future__ import annotations

import io
import json
import random

import pytest

from stockpot.errors import TokenizerError
from stockpot.text import Tokenizer
from stockpot.text.sentencepiece import is_sentencepiece, read_sentencepiece

TEXTS = [
    "The cat sat on the mat and the dog ran far away.",
    "One two three four five, six; seven!",
    "Größe über Straßen — naïve café №5 ½",
    "日本語のテキスト と 한국어",
    "aaaa aaaaa aaaaaaa abab ababab",
    "x = y + 1\n\tif  z:   pass",
    "ﬁne ﬂuff Ｆｕｌｌ ①②",
]
AS_IS = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
BYTES = {"byte_fallback": True, "character_coverage": 0.98}
RUNS = ["<h1>", "\n\n", "\n", "▁▁", "▁▁▁", "<sep>"]
MODELS = {  # the shapes that families use, and what else the format has
    "unigram": {"model_type": "unigram", "vocab_size": 150},
    "unigram with bytes": {"model_type": "unigram", "vocab_size": 420, **BYTES},
    "unigram with a user's symbols": {
        "model_type": "unigram", "vocab_size": 160, "user_defined_symbols": ["<sep>", "[X]"], "control_symbols": ["<ctl>"],
        "pad_id": 3,
    },
    "unigram, lower case": {"model_type": "unigram", "vocab_size": 140, "normalization_rule_name": "nmt_nfkc_cf"},
    "unigram like T5's": {"model_type": "unigram", "vocab_size": 150, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "bpe": {"model_type": "bpe", "vocab_size": 200},
    "bpe like Llama's": {"model_type": "bpe", "vocab_size": 480, **AS_IS, **BYTES},
    "bpe like Gemma's": {
        "model_type": "bpe", "vocab_size": 480, **AS_IS, **BYTES, "add_dummy_prefix": False, "user_defined_symbols": RUNS,
    },
    "bpe with a user's symbols": {"model_type": "bpe", "vocab_size": 200, "user_defined_symbols": ["<sep>", "[X]"]},
    "bpe, nfkc": {"model_type": "bpe", "vocab_size": 200, "normalization_rule_name": "nfkc", "bos_id": -1},
    "characters": {"model_type": "char", "vocab_size": 120},
}  # fmt: skip
PARTS = [
    *"abx日本한é☃½ß1.", " ", "  ", "\n", "\t", "\r\n", "the", "cat", "e\u0301", "ﬁ", "Ｆ", "①", "😀", "👩\u200d👩\u200d👧", "23",
    "<s>", "</s>", "<sep>", "[X]", "<0x41>", "<unk>", "<ctl>", "<h1>", "▁", "\u200b", "\u00a0", "\x00", "İ", "क्षि",
]  # fmt: skip


def trained(**choices):
    library = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=file,
        minloglevel=2,
        hard_vocab_limit=False,
        **choices,
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    made = {}

    def model(name):
        if name not in made:
            made[name] = trained(**MODELS[name])
        return made[name]

    return model


def some_texts(seed, count):
    dice = random.Random(seed)
    yield from ["", " ", "  ", " a", "a ", "  a  b  ", *TEXTS]
    for _ in range(count):
        yield "".join(dice.choice(PARTS) for _ in range(dice.randint(1, 12)))


@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_ids_equal_those_of_the_library(name, model):
    """Every kind of model, on texts with all that normalising touches and with spellings of special pieces."""
    library = pytest.importorskip("sentencepiece")
    theirs = library.SentencePieceProcessor(model_proto=model(name))
    ours = Tokenizer.of(*read_sentencepiece(model(name)))
    assert ours.vocab_size == len(theirs)
    for text in some_texts(seed=1, count=400):
        expected = theirs.encode(text)
        assert ours.encode(text) == expected, text
        if theirs.unk_id() not in expected:  # the library shows unknown text as ⁇
            assert ours.decode(expected) == theirs.decode(expected), text


@pytest.mark.golden
def test_roles_are_those_of_the_file(model):
    ours = Tokenizer.of(*read_sentencepiece(model("unigram like T5's")))
    assert (ours.pad_id, ours.eos_id, ours.unk_id, ours.bos_id) == (0, 1, 2, None)
    ours = Tokenizer.of(*read_sentencepiece(model("unigram with a user's symbols")))
    assert (ours.unk_id, ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 2, 3)
    assert "<ctl>" in ours.special_ids
    assert "<sep>" not in ours.special_ids


@pytest.mark.golden
def test_a_file_and_its_folder_are_opened_by_their_content(model, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model("bpe like Llama's"))
    (tmp_path / "other.bin").write_bytes(model("bpe like Llama's"))
    size = Tokenizer.load(tmp_path / "other.bin").vocab_size
    added = {str(size): {"content": "<pad>", "special": True}, "1": {"content": "<s>", "special": True}}
    config = {"add_bos_token": True, "pad_token": "<pad>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.pad_id, tokenizer.vocab_size, tokenizer.adds_bos) == (size, size + 1, True)
    tokenizer.save(tmp_path / "again")
    again = Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.adds_bos


@pytest.mark.golden
def test_t5s_sentinels_stand_behind_the_file(model, tmp_path):
    (tmp_path / "spiece.model").write_bytes(model("unigram like T5's"))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    end = tokenizer.vocab_size
    assert tokenizer.sentinel_ids == [end - 1, end - 2, end - 3]


# --- files that are wrong; made by hand, so that no library is needed ---


def varint(value):
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def field(number, content):
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text, kind=1):
    return field(1, field(1, text.encode()) + b"\x15\x00\x00\x80\xbf" + field(3, kind))


GOOD = (
    piece("<unk>", 2)
    + piece("<s>", 3)
    + piece("▁")
    + piece("a")
    + piece("b")
    + piece("ab")
    + field(2, field(3, 2))
)


def test_a_file_made_by_hand_is_read():
    assert is_sentencepiece(GOOD)
    tokenizer = Tokenizer.of(*read_sentencepiece(GOOD))
    assert tokenizer.encode("ab a") == [2, 5, 2, 3]
    assert tokenizer.decode([2, 5, 2, 3]) == "ab a"
    assert tokenizer.encode("<s>") == [2, 0]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (GOOD[:-3], "cut short|pieces"),
        (GOOD + field(1, b"\x0a\x7fx"), "cut short"),
        (GOOD + piece("a"), "twice"),
        (GOOD + piece("c", 5), "not used"),
        (GOOD + piece("c", 9), "unknown kind"),
        (GOOD + piece("", 1), "impossible piece"),
        (GOOD + field(2, field(3, 3)), "whole words"),
        (GOOD + field(2, field(3, 77)), "unknown kind"),
        (GOOD + field(2, field(24, 1)), "behind words"),
        (GOOD + field(3, field(5, 0)), "spaces as they are"),
        (GOOD + field(2, field(35, 1)), "bytes"),
        (GOOD + piece("<unk2>", 2), "unknown text"),
        (GOOD + b"\x0b", "unknown type"),
        (GOOD + field(1, field(1, b"\xff")), "UTF-8"),
        (GOOD + b"\x08" + b"\xff" * 20, "damaged"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(data, told, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(TokenizerError, match=told) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_mutated_files_are_refused_or_read():
    dice = random.Random(0)
    refused = 0
    for _ in range(500):
        data = bytearray(GOOD)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        try:
            tokenizer = Tokenizer.of(*read_sentencepiece(bytes(data)))
            tokenizer.decode(tokenizer.encode("ab <s> c"))
        except TokenizerError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 150
