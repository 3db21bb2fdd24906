"""A tokenizer goes into the vocabulary section of a GGUF file and comes back the same, or is refused."""

from __future__ import annotations

import json
import struct

import pytest

from stockpot.errors import TokenizerError
from stockpot.gguf_directory import STRING, Array
from stockpot.text.kinds import KINDS
from stockpot.text.tokenizer import Tokenizer
from stockpot.text.vocabulary import _RULE_OF, RULES, read_vocabulary, write_vocabulary

TEXTS = ["the cat sat on the mat", "Der Hund läuft. 123 4567 it's", "  deux   chats\n\tnoirs 😀"] * 5


def as_read(values):
    """Return metadata as it looks after having been written to a file and read again."""
    return {name: as_array(value) if isinstance(value, list) else value for name, value in values.items()}


def as_array(items):
    if isinstance(items[0], str):
        data = b"".join(struct.pack("<Q", len(one.encode())) + one.encode() for one in items)
        return Array(STRING, len(items), data)
    return Array(5, len(items), struct.pack(f"<{len(items)}i", *items))


def values_of(tokenizer, size=None, template=None):
    size = size or tokenizer.vocab_size
    return write_vocabulary(
        tokenizer.to_json(), tokenizer.roles, size, adds_bos=tokenizer.adds_bos, template=template
    )


def foreign(rule, *, specials_first=False):
    """Make a tokenizer as other makers' files have them: with their rule, specials inside the vocabulary."""
    plain = Tokenizer.train(TEXTS, vocab_size=330, special_tokens=["</s>"])
    spec = json.loads(plain.to_json())
    if specials_first:
        moved = {token: number + 1 for token, number in spec["model"]["vocab"].items()}
        spec["model"]["vocab"] = {"</s>": 0, **moved}
        spec["added_tokens"][0]["id"] = 0
    spec["pre_tokenizer"] = RULES[rule]
    spec["model"]["ignore_merges"] = rule == "llama-bpe"
    return Tokenizer(json.dumps(spec))


@pytest.fixture(scope="module")
def tokenizer():
    found = Tokenizer.train(TEXTS, vocab_size=340)
    assert found.vocab_size == 311  # the corpus has no more pairs
    return found


def test_our_tokenizer_comes_back_the_same(tokenizer):
    source, config = read_vocabulary(as_read(values_of(tokenizer, size=400, template="{{ messages }}")))
    again = Tokenizer.of(source, config)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.roles.items() >= {(r, t) for r, t in tokenizer.roles.items() if r != "cls"}
    assert again.special_ids == tokenizer.special_ids
    assert again.adds_bos is True
    assert again.chat_template == "{{ messages }}"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("specials_first", [False, True])
def test_a_foreign_tokenizer_comes_back_the_same(rule, specials_first):
    tokenizer = foreign(rule, specials_first=specials_first)
    values = values_of(tokenizer)
    assert values["tokenizer.ggml.pre"] == rule
    again = Tokenizer.of(*read_vocabulary(as_read(values)))
    text = "  It's 12345 Katzen\n\n und </s> läuft 😀"
    assert again.encode(text) == tokenizer.encode(text)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.eos_id == tokenizer.eos_id
    assert again.adds_bos is False


@pytest.mark.parametrize("name", _RULE_OF)
def test_every_name_of_a_rule_is_read(name, tokenizer):
    values = as_read(values_of(tokenizer)) | {"tokenizer.ggml.pre": name}
    spec = json.loads(read_vocabulary(values)[0])
    assert spec["pre_tokenizer"] == RULES[_RULE_OF[name]]


def test_ids_without_a_token_get_placeholders_that_disappear_again(tokenizer):
    values = values_of(tokenizer, size=350)
    assert values["tokenizer.ggml.tokens"][345] == "[PAD345]"
    assert Tokenizer.of(*read_vocabulary(as_read(values))).vocab_size == tokenizer.vocab_size


def test_blocks_of_the_template_are_comments_in_the_file(tokenizer):
    template = "{%- generation -%}{{ m }}{%endgeneration%}{% generation %}x{%- endgeneration %}"
    values = values_of(tokenizer, template=template)
    shown = values["tokenizer.chat_template"]
    assert "{%- generation" not in shown
    assert "{#- generation -#}" in shown
    assert read_vocabulary(as_read(values))[1]["chat_template"] == template


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte-bpe"])
def test_a_kind_without_an_equal_there_is_refused(kind):
    tokenizer = Tokenizer.train(TEXTS, kind=kind, vocab_size=340)
    with pytest.raises(TokenizerError, match="no rule that cuts text the same way"):
        values_of(tokenizer)


def test_merges_that_are_ignored_here_but_not_there_are_refused():
    spec = json.loads(foreign("qwen2").to_json())
    spec["model"]["ignore_merges"] = True
    with pytest.raises(TokenizerError, match="no rule"):
        values_of(Tokenizer(json.dumps(spec)))


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(TokenizerError, match="end-of-document"):
        values_of(Tokenizer.train(TEXTS, vocab_size=300, special_tokens=["<|user|>"]))


BAD = {
    "no section": (lambda v: v.clear(), "model is None"),
    "another model": (lambda v: v.update({"tokenizer.ggml.model": "rwkv"}), "'rwkv'"),
    "another rule": (lambda v: v.update({"tokenizer.ggml.pre": "chameleon"}), "'chameleon'"),
    "no rule": (lambda v: v.pop("tokenizer.ggml.pre"), "pre is None"),
    "no tokens": (lambda v: v.pop("tokenizer.ggml.tokens"), "tokens is missing"),
    "tokens that are numbers": (lambda v: v.update({"tokenizer.ggml.tokens": as_array([1])}), "tokens"),
    "too few kinds": (lambda v: v.update({"tokenizer.ggml.token_type": as_array([1])}), "311 numbers"),
    "kinds that are a number": (lambda v: v.update({"tokenizer.ggml.token_type": 3}), "311 numbers"),
    "no merges": (lambda v: v.pop("tokenizer.ggml.merges"), "merges is missing"),
    "a merge of nothing": (lambda v: v.update({"tokenizer.ggml.merges": as_array(["q q"])}), "'q q'"),
    "a merge of three": (lambda v: v.update({"tokenizer.ggml.merges": as_array(["a b c"])}), "'a b c'"),
    "endless merges": (lambda v: v.update({"tokenizer.ggml.merges": as_array(["t h"] * 2000)}), "2,000"),
    "an end that is no token": (lambda v: v.update({"tokenizer.ggml.eos_token_id": 311}), "is 311"),
    "an end that is a text": (lambda v: v.update({"tokenizer.ggml.eos_token_id": "x"}), "is 'x'"),
    "a text that is none": (
        lambda v: v.update({"tokenizer.ggml.merges": Array(STRING, 1, struct.pack("<Q", 1) + b"\xff")}),
        "not UTF-8",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_section_that_contradicts_itself_is_refused(name, tokenizer):
    damage, says = BAD[name]
    values = as_read(values_of(tokenizer))
    damage(values)
    with pytest.raises(TokenizerError, match=says):
        read_vocabulary(values)


def test_a_token_listed_twice_is_refused(tokenizer):
    values = values_of(tokenizer)
    values["tokenizer.ggml.tokens"][5] = values["tokenizer.ggml.tokens"][6]
    with pytest.raises(TokenizerError, match="twice"):
        read_vocabulary(as_read(values))
