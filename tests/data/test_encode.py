from __future__ import annotations

import logging

import numpy as np
import pytest

from stockpot.data.corpus import open_corpus
from stockpot.data.encode import encode, encode_preference, encode_record, encode_texts
from stockpot.data.reading import ReadReport
from stockpot.data.records import ChatRecord, CompletionRecord, ImageRecord, PreferenceRecord, TextRecord
from stockpot.errors import DataError
from stockpot.text import Message, Tokenizer

ASK, SAY = Message("user", "stir the pot"), Message("assistant", "now")


def counted_text(tokenizer, encoded) -> str:
    return tokenizer.decode(encoded.ids[encoded.counted].tolist())


def test_a_text_stands_between_its_beginning_and_its_end(tokenizer):
    encoded = encode_record(TextRecord("stir"), tokenizer)
    assert encoded.ids.tolist() == [tokenizer.bos_id, *tokenizer.encode("stir"), tokenizer.eos_id]
    assert encoded.counted.all()


def test_special_spellings_in_text_stay_text(tokenizer):
    text = "<|eos|> <|assistant|> <|extra_3|>"
    ids = encode([TextRecord(text)], tokenizer).read(0).tolist()
    assert not set(ids[1:-1]) & set(tokenizer.special_ids.values())
    assert tokenizer.decode(ids[1:-1]) == text


def test_a_conversation_counts_where_the_assistant_speaks(tokenizer, template):
    record = ChatRecord((ASK, SAY, ASK, Message("assistant", "salt")))
    assert counted_text(tokenizer, encode_record(record, tokenizer, template)) == "now<|end|>salt<|end|>"


def test_a_completion_counts_without_its_prompt(tokenizer, template):
    record = CompletionRecord("stir", " the pot")
    plain = encode_record(record, tokenizer)
    assert counted_text(tokenizer, plain) == " the pot<|eos|>"
    prompt = [tokenizer.bos_id, *tokenizer.encode("stir")]
    assert plain.ids[: len(prompt)].tolist() == prompt, "as when the model is asked"
    chat = encode_record(record, tokenizer, template)
    assert counted_text(tokenizer, chat) == " the pot<|end|>"
    said = (Message("user", "stir"), Message("assistant", " the pot"))
    assert chat.ids.tolist() == list(template.encode(said, tokenizer).ids)


def test_earlier_turns_belong_to_the_prompt_of_a_completion(tokenizer, template):
    record = CompletionRecord((ASK, SAY, ASK), "salt")
    assert counted_text(tokenizer, encode_record(record, tokenizer, template)) == "salt<|end|>"


def test_only_the_answers_of_a_preference_count(tokenizer, template):
    record = PreferenceRecord("stir", "now", "salt the pot")
    chosen, rejected = encode_preference(record, tokenizer, template)
    assert counted_text(tokenizer, chosen) == "now<|end|>"
    assert counted_text(tokenizer, rejected) == "salt the pot<|end|>"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (ChatRecord((ASK,), "a.jsonl:7"), "a.jsonl:7: no token of this record counts."),
        (CompletionRecord("stir", "", "a.jsonl:7"), "a.jsonl:7: no token of this record counts."),
        (PreferenceRecord("p", "c", "r", where="a.jsonl:7"), "a.jsonl:7: preference records are not text"),
        (ImageRecord("i.png", "x", "a.jsonl:7"), "a.jsonl:7: image records are not text"),
    ],
)
def test_a_record_without_a_counted_token_is_refused_by_name(tokenizer, template, record, said):
    if isinstance(record, CompletionRecord):
        template = None
    with pytest.raises(DataError) as caught:
        encode([record], tokenizer, template)
    assert said in str(caught.value)


def test_conversations_need_a_template(tokenizer):
    with pytest.raises(DataError, match="7: messages need a chat template"):
        encode([ChatRecord((ASK, SAY), "a.jsonl:7")], tokenizer)
    with pytest.raises(DataError, match="a prompt of messages needs a chat template"):
        encode([CompletionRecord((ASK,), "now", "a.jsonl:7")], tokenizer)


def test_a_tokenizer_without_an_end_is_refused():
    bare = Tokenizer.train(["soup"] * 9, vocab_size=300, special_tokens=["<|unk|>"])
    with pytest.raises(DataError, match="no token that ends a document"):
        encode([TextRecord("soup")], bare)


def test_batches_of_texts_encode_like_single_ones(tokenizer):
    texts = [f"{'soup ' * (i % 7)}{i}" for i in range(10_000)]
    found = list(encode_texts(texts, tokenizer))
    assert len(found) == len(texts)
    for i in (0, 1, 4_095, 4_096, 9_999):
        assert found[i].tolist() == encode_record(TextRecord(texts[i]), tokenizer).ids.tolist()


def test_empty_texts_are_left_out_and_nothing_else_is_an_error(tokenizer):
    assert encode([TextRecord(""), TextRecord("soup")], tokenizer).documents == 1
    for records in ([], [TextRecord("")]):
        with pytest.raises(DataError, match="nothing to train on"):
            encode(records, tokenizer)


def test_long_texts_are_split_later_and_long_chats_are_cut(tokenizer, template, caplog):
    assert encode([TextRecord("soup " * 100)], tokenizer, context=16).tokens > 100
    long = ChatRecord((ASK, Message("assistant", "soup " * 100)), "a.jsonl:1")
    hopeless = ChatRecord((Message("user", "soup " * 100), SAY), "a.jsonl:2")
    report = ReadReport()
    with caplog.at_level(logging.WARNING):
        store = encode([long, hopeless], tokenizer, template, context=16, report=report)
    assert store.lengths.tolist() == [16]
    assert "1 records were left out: longer than 16 tokens (a.jsonl:2" in caplog.text
    assert "1 records were cut at 16 tokens (a.jsonl:1 …): how they end is not learned" in caplog.text
    assert (report.cut, report.overlong) == (1, 1)
    assert encode([long], tokenizer, template, context=16, overlong="split").tokens > 100
    with pytest.raises(DataError, match="All 1 records are longer than 16"):
        encode([long], tokenizer, template, context=16, overlong="drop")


def test_texts_and_chats_do_not_mix(tokenizer, template):
    with pytest.raises(DataError, match="2: a messages record among text records"):
        encode([TextRecord("soup"), ChatRecord((ASK, SAY), "a:2")], tokenizer, template)


def test_a_corpus_is_opened_by_name(tokenizer, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("stir the pot", encoding="utf-8")
    store = open_corpus(path, tokenizer)
    assert tokenizer.decode(np.asarray(store.read(0)).tolist()) == "<|bos|>stir the pot<|eos|>"
