"""A bundle turns what a person gives into what a model reads."""

from __future__ import annotations

import pytest

from stockpot.bundle import Bundle
from stockpot.data.encode import encode_record
from stockpot.data.records import TextRecord
from stockpot.errors import GenerationError
from stockpot.model.config import decoder, encoder, encoder_decoder
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate, Message
from stockpot.text.tokenizer import Tokenizer

SIZES = {"layers": 1, "dim": 16, "heads": 2, "context": 32}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the cat sat on the mat"] * 5, vocab_size=300)


def make(tokenizer, shape=decoder, **parts):
    return Bundle(Transformer(shape(vocab_size=tokenizer.vocab_size, **SIZES)), tokenizer, **parts)


def test_each_shape_frames_a_text_in_its_own_way(tokenizer):
    ids = tokenizer.encode("the cat")
    assert make(tokenizer).encode("the cat") == [tokenizer.bos_id, *ids]
    assert make(tokenizer, encoder).encode("the cat") == [tokenizer.cls_id, *ids, tokenizer.sep_id]
    assert make(tokenizer, encoder_decoder).encode("the cat") == [*ids, tokenizer.eos_id]


def test_it_shows_itself_in_a_line(tokenizer):
    found = make(tokenizer, encoder_decoder, template=ChatTemplate.of(tokenizer), family="t5")
    count = found.model.config.parameters()
    assert repr(found) == (
        f"Bundle(t5 encoder-decoder, {count:,} parameters, {tokenizer.vocab_size} ids, context 32, with a chat template)"
    )


def test_a_tokenizer_without_special_tokens_frames_nothing():
    plain = Tokenizer.train(["abc"] * 5, kind="byte", vocab_size=256, special_tokens=())
    assert make(plain).encode("abc") == plain.encode("abc")
    assert make(plain).stop_ids == frozenset()


def test_an_empty_text_is_the_beginning_alone(tokenizer):
    assert make(tokenizer).encode("") == [tokenizer.bos_id]


def test_messages_go_through_the_template_up_to_the_answer(tokenizer):
    template = ChatTemplate.of(tokenizer)
    ids = make(tokenizer, template=template).encode([Message("user", "the cat")])
    assert ids[-1] == tokenizer.token_to_id("<|assistant|>")
    assert all(type(id) is int for id in ids)


def test_messages_without_a_template_are_refused(tokenizer):
    with pytest.raises(GenerationError, match="no chat template"):
        make(tokenizer).encode([Message("user", "hi")])


def test_text_that_spells_a_special_token_stays_text(tokenizer):
    bundle = make(tokenizer, template=ChatTemplate.of(tokenizer))
    assert tokenizer.eos_id not in bundle.encode("<|eos|>")
    assert bundle.encode([Message("user", "<|eos|>")]).count(tokenizer.eos_id) == 0


def test_answers_end_at_the_end_of_a_document_or_turn(tokenizer):
    assert make(tokenizer).stop_ids == {tokenizer.eos_id, tokenizer.token_to_id("<|end|>")}
    assert make(tokenizer, generation={"eos_token_id": 7}).stop_ids >= {7}


def test_the_decoder_begins_with_what_the_model_names(tokenizer):
    assert make(tokenizer, encoder_decoder).start_id == tokenizer.bos_id
    named = make(tokenizer, encoder_decoder, generation={"decoder_start_token_id": 0})
    assert named.start_id == 0


def test_the_context_is_the_models(tokenizer):
    assert make(tokenizer).context == 32


@pytest.mark.parametrize("bos", ["<|bos|>", "<s>"])
def test_a_prompt_begins_as_the_documents_of_training_do(bos, tmp_path):
    own = Tokenizer.train(["the cat sat"] * 5, vocab_size=300, special_tokens=("<|pad|>", bos, "<|eos|>"))
    own.save(tmp_path)
    for tokenizer in (own, Tokenizer.load(tmp_path)):
        document = encode_record(TextRecord("the cat"), tokenizer).ids.tolist()
        assert make(tokenizer).encode("the cat") == document[:-1] == [own.bos_id, *own.encode("the cat")]


def test_where_the_maker_puts_nothing_in_front_neither_do_we():
    foreign = Tokenizer(
        Tokenizer.train(["the cat sat"] * 5, vocab_size=300, special_tokens=("<|endoftext|>",)).to_json(),
        roles={"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    )
    assert encode_record(TextRecord("the cat"), foreign).ids.tolist()[:-1] == foreign.encode("the cat")
    assert make(foreign).encode("the cat") == foreign.encode("the cat")
