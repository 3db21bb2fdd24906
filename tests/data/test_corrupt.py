from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data.batch import IGNORED
from stockpot.data.corrupt import causal, masked, objective, prefix, sentence_pairs
from stockpot.data.encode import encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.records import ChatRecord, CompletionRecord, TextRecord
from stockpot.data.spans import sentinels, span_masks, spans
from stockpot.errors import ConfigError, DataError, TokenizerError
from stockpot.text import Tokenizer
from stockpot.text.chat import DEFAULT_TEMPLATE, Message

CONFIG = LoaderConfig(context=64, micro_batch=16, epochs=1)


def batches(store, aim, **changes):
    return list(Loader(store, CONFIG.model_copy(update=changes), aim))


def kept(row, mask):
    return row[mask > 0].tolist()


# --- causal and masked ---


def test_causal_batches_predict_the_next_token_of_the_same_document(store, tokenizer):
    for batch in batches(store, causal(tokenizer)):
        counted = batch.labels[:, :-1] != IGNORED
        same = batch.attention_mask[:, :-1] == batch.attention_mask[:, 1:]
        inside = counted & same
        assert (batch.labels[:, :-1][inside] == batch.ids[:, 1:][inside]).all()
        assert (batch.labels[batch.ids == tokenizer.eos_id] == IGNORED).all()
        assert batch.ids.dtype == batch.labels.dtype == torch.int64


def test_masking_hides_fifteen_in_a_hundred_in_the_right_proportions(store, tokenizer):
    special = torch.tensor(list(tokenizer.special_ids.values()))
    counts = {"chosen": 0, "ordinary": 0, "mask": 0, "random": 0, "same": 0}
    for seed in range(8):
        config = CONFIG.model_copy(update={"seed": seed})
        for batch in Loader(store, config, masked(tokenizer)):
            chosen = batch.labels != IGNORED
            original = torch.where(chosen, batch.labels, batch.ids)
            ordinary = (batch.attention_mask > 0) & ~torch.isin(original, special)
            assert not (chosen & ~ordinary).any(), "special tokens and padding are never touched"
            counts["chosen"] += int(chosen.sum())
            counts["ordinary"] += int(ordinary.sum())
            counts["mask"] += int((batch.ids[chosen] == tokenizer.mask_id).sum())
            counts["same"] += int((batch.ids[chosen] == batch.labels[chosen]).sum())
            changed = chosen & (batch.ids != tokenizer.mask_id) & (batch.ids != batch.labels)
            counts["random"] += int(changed.sum())
            assert not torch.isin(batch.ids[changed], special).any()
            wanted = (ordinary.sum(1) * 0.15).round().clamp(min=1)
            assert (chosen.sum(1) - wanted).abs().max() <= 1
    share = {name: count / counts["chosen"] for name, count in counts.items()}
    spread = 4 * (0.25 / counts["chosen"]) ** 0.5  # four standard deviations at most
    assert counts["chosen"] / counts["ordinary"] == pytest.approx(0.15, abs=0.003)
    assert share["mask"] == pytest.approx(0.8, abs=spread)
    assert share["same"] == pytest.approx(0.1, abs=spread)
    assert share["random"] == pytest.approx(0.1, abs=spread)


def test_a_masked_document_stands_between_the_tokens_an_encoder_is_asked_with(store, tokenizer):
    framed = []
    for batch in batches(store, masked(tokenizer)):
        plain = torch.where(batch.labels != IGNORED, batch.labels, batch.ids)
        assert not torch.isin(plain, torch.tensor([tokenizer.bos_id, tokenizer.eos_id])).any()
        framed += [int((plain == one).sum()) for one in (tokenizer.cls_id, tokenizer.sep_id)]
    usual = [batch.ids for batch in batches(store, causal(tokenizer))]
    marks = (tokenizer.bos_id, tokenizer.eos_id)
    assert framed == [int((ids == one).sum()) for ids in usual for one in marks]
    assert sum(framed) > 0


@pytest.mark.parametrize("name", ["masked", "pairs", "span", "prefix"])
def test_a_row_is_corrupted_alike_in_whatever_batch_it_stands(store, tokenizer, name):
    aim = objective(name, tokenizer)
    wide = [row for batch in batches(store, aim, micro_batch=64, pack="alone") for row in rows_of(batch)]
    again = [row for batch in batches(store, aim, micro_batch=64, pack="alone") for row in rows_of(batch)]
    assert wide == again
    if not aim.alone:
        packed = [row for batch in batches(store, aim, micro_batch=5) for row in rows_of(batch)]
        assert packed == [row for batch in batches(store, aim, micro_batch=7) for row in rows_of(batch)]
        other = [row for batch in batches(store, aim, micro_batch=5, seed=1) for row in rows_of(batch)]
        assert packed != other


def rows_of(batch):
    return [(tuple(i), tuple(x)) for i, x in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True)]


# --- pairs ---


def test_pairs_are_two_parts_of_one_text_or_of_two(store, tokenizer):
    documents = [store.read(d).tolist()[1:-1] for d in range(store.documents)]
    whole = {tuple(document[i : i + 6]) for document in documents for i in range(len(document) - 5)}
    follows, strangers = 0, 0
    for batch in batches(store, sentence_pairs(tokenizer), seed=3):
        ids = torch.where(batch.labels != IGNORED, batch.labels, batch.ids)
        for row, mask, segments, label in zip(
            ids, batch.attention_mask, batch.segments, batch.pair_labels, strict=True
        ):
            tokens = kept(row, mask)
            assert len(tokens) <= 64
            assert tokens[0] == tokenizer.cls_id
            assert tokens[-1] == tokenizer.sep_id
            seam_at = tokens.index(tokenizer.sep_id)
            a, b = tokens[1:seam_at], tokens[seam_at + 1 : -1]
            assert len(a) > 0
            assert len(b) > 0
            assert kept(segments, mask) == [0] * (len(a) + 2) + [1] * (len(b) + 1)
            assert (segments[mask == 0] == 0).all()
            seam = tuple(a[-3:] + b[:3])
            if label == 0:
                follows += 1
                assert len(seam) < 6 or seam in whole
            else:
                strangers += 1
    total = follows + strangers
    assert strangers / total == pytest.approx(0.5, abs=4 * (0.25 / total) ** 0.5 + 0.1)


def test_the_first_part_of_a_pair_ends_with_a_sentence(store, tokenizer):
    ends = 0
    total = 0
    for batch in batches(store, sentence_pairs(tokenizer)):
        ids = torch.where(batch.labels != IGNORED, batch.labels, batch.ids)
        for row in ids.tolist():
            a = row[1 : row.index(tokenizer.sep_id)]
            ends += tokenizer.decode(a).endswith(".")
            total += 1
    assert ends / total > 0.8, "only pieces without a whole sentence are cut elsewhere"


def test_pairs_need_two_documents(tokenizer):
    single = encode([TextRecord("Stir. " * 200)], tokenizer)
    with pytest.raises(DataError, match="at least two documents"):
        batches(single, sentence_pairs(tokenizer))


# --- spans ---


def test_source_and_target_of_a_span_batch_hold_the_text_between_them(store, tokenizer):
    marks = sentinels(tokenizer).tolist()
    frame = {tokenizer.bos_id, tokenizer.eos_id}
    texts = [[t for t in store.read(d).tolist() if t not in frame] for d in range(store.documents)]
    whole = "|".join(" ".join(map(str, text)) for text in texts)
    for batch in batches(store, spans(tokenizer)):
        assert batch.source.shape[1] <= 64
        assert batch.ids.shape[1] <= 64
        assert batch.ids[:, 0].tolist() == [tokenizer.bos_id] * len(batch.ids)
        assert (batch.labels[~batch.attention_mask] == IGNORED).all()
        for row in range(len(batch.ids)):
            source = kept(batch.source[row], batch.source_mask[row])
            target = kept(batch.labels[row], batch.attention_mask[row])
            assert kept(batch.ids[row], batch.attention_mask[row])[1:] == target[:-1]
            assert source[-1] == target[-1] == tokenizer.eos_id
            assert joined(source[:-1], target[:-1], marks) in whole


def joined(source, target, marks) -> str:
    """Put the spans of the target back into the source."""
    out = []
    for token in source:
        if token in marks:
            begin = target.index(token) + 1
            end = next(i for i in range(begin, len(target)) if target[i] in marks)
            out += target[begin:end]
        else:
            out.append(token)
    return " ".join(map(str, out))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 600), st.integers(0, 10))
def test_spans_alternate_with_what_stays(length, seed):
    lengths = np.array([length, 37, 0, 1, 2])
    masks = span_masks(lengths, 0.15, 3.0, [np.random.default_rng(seed + i) for i in range(5)])
    alone = span_masks(lengths[:1], 0.15, 3.0, [np.random.default_rng(seed)])
    gone = masks[0, :length]
    assert (gone == alone[0, :length]).all(), "whatever rows stand beside it"
    assert not masks[0, length:].any()
    assert not masks[2:4].any()
    assert masks[4, :2].tolist() == [False, True]
    if length < 2:
        assert not gone.any()
        return
    wanted = min(max(round(length * 0.15), 1), length - 1)
    assert gone.sum() == wanted
    assert not gone[0]
    assert gone[-1]
    begins = int((gone & ~np.concatenate([[False], gone[:-1]])).sum())
    assert begins == min(max(round(wanted / 3), 1), length - wanted)


def test_the_room_of_a_span_row_fills_its_context(tokenizer):
    aim = spans(tokenizer)
    for context in (8, 16, 64, 100):
        room = aim.room(context)
        missing = min(max(round(room * 0.15), 1), room - 1)
        count = max(round(missing / 3), 1)
        assert context - 1 <= room - missing + count + 1 <= context
    assert aim.room(100) > 100


def test_missing_sentinels_are_told_with_a_remedy(tokenizer, store):
    plain = Tokenizer.train(["soup and salt"] * 9, vocab_size=280)
    with pytest.raises(TokenizerError, match=r"needs sentinel tokens.* --set sentinels=100"):
        spans(plain)
    with pytest.raises(TokenizerError, match="needs 29 sentinels; the tokenizer has 20"):
        Loader(store, LoaderConfig(context=512), spans(tokenizer))


# --- prefix ---


def test_a_prefix_is_segment_zero_and_only_the_rest_counts(store, tokenizer):
    for batch in batches(store, prefix(tokenizer), micro_batch=4):
        for ids, labels, documents, segments in zip(
            batch.ids, batch.labels, batch.attention_mask, batch.segments, strict=True
        ):
            for number in range(1, int(documents.max()) + 1):
                inside = documents == number
                piece, seen = segments[inside].tolist(), labels[inside].tolist()
                beginning = piece.count(0)
                assert beginning >= 1
                assert piece == sorted(piece)
                assert seen[: beginning - 1] == [IGNORED] * (beginning - 1)
                assert seen[beginning - 1 : -1] == ids[inside].tolist()[beginning:]


def test_two_stacks_read_the_beginning_and_write_the_rest(store, tokenizer):
    whole = {tuple(store.read(d).tolist()) for d in range(store.documents)}
    seen = 0
    for batch in batches(store, prefix(tokenizer, two_stacks=True), context=256):
        for row in range(len(batch.ids)):
            source = kept(batch.source[row], batch.source_mask[row])
            target = kept(batch.labels[row], batch.attention_mask[row])
            assert kept(batch.ids[row], batch.attention_mask[row]) == [tokenizer.bos_id, *target[:-1]]
            seen += tuple(source + target) in whole
    assert seen == sum(len(document) <= 256 for document in whole)


def test_a_prompt_is_the_prefix_of_its_completion(tokenizer):
    records = [CompletionRecord("stir the pot", f" {i} times") for i in range(40)]
    store = encode(records, tokenizer)
    prompt = [tokenizer.bos_id, *tokenizer.encode("stir the pot")]
    for batch in batches(store, prefix(tokenizer, two_stacks=True)):
        for row in range(len(batch.ids)):
            assert kept(batch.source[row], batch.source_mask[row]) == prompt
            text = tokenizer.decode(kept(batch.labels[row], batch.attention_mask[row]))
            assert text.endswith(" times<|eos|>")
    for batch in batches(store, prefix(tokenizer), pack="alone"):
        assert (batch.segments[:, : len(prompt)] == 0).all()
        assert (batch.segments[:, len(prompt) :] == 1).all()


def test_of_a_conversation_two_stacks_learn_the_answers_only(tokenizer):
    turns = [("user", "one?"), ("assistant", "first"), ("user", "two?"), ("assistant", "second")]
    chat = ChatRecord(tuple(Message(role, text) for role, text in turns))
    store = encode([chat] * 8, tokenizer, DEFAULT_TEMPLATE)
    for batch in batches(store, prefix(tokenizer, two_stacks=True), context=256):
        for row in range(len(batch.ids)):
            read = tokenizer.decode(kept(batch.ids[row], batch.attention_mask[row]))
            assert "first<|end|><|user|>two?<|end|><|assistant|>second" in read, "the decoder sees every turn"
            learned = batch.labels[row][batch.labels[row] != IGNORED].tolist()
            assert tokenizer.decode(learned) == "first<|end|>second<|end|>"
            following = batch.ids[row, 1:][batch.labels[row, :-1] != IGNORED].tolist()
            assert following == learned[: len(following)], "each label is what the decoder reads next"


def test_of_a_piece_without_an_answer_two_stacks_learn_nothing(tokenizer):
    turns = [("user", "long " * 60), ("assistant", "short")]
    chat = ChatRecord(tuple(Message(role, text) for role, text in turns))
    store = encode([chat], tokenizer, DEFAULT_TEMPLATE, overlong="split")
    found = batches(store, prefix(tokenizer, two_stacks=True), context=32)
    learned = torch.cat([batch.labels[batch.labels != IGNORED] for batch in found])
    assert tokenizer.decode(learned.tolist()) == "short<|end|>"


# --- choosing ---


def test_objectives_are_chosen_by_name(tokenizer):
    for name in ("causal", "masked", "pairs", "span", "prefix"):
        assert objective(name, tokenizer).name == name
    assert objective("prefix", tokenizer, two_stacks=True).name == "prefix-two-stacks"
    with pytest.raises(ConfigError, match="no objective 'next'"):
        objective("next", tokenizer)


@pytest.mark.parametrize(("make", "role"), [(masked, "mask"), (sentence_pairs, "cls")])
def test_missing_special_tokens_are_named(make, role):
    bare = Tokenizer.train(["soup"] * 9, vocab_size=300, special_tokens=["<|eos|>"])
    with pytest.raises(TokenizerError, match=f"needs the special token {role}.*<|{role}|>"):
        make(bare)


def test_impossible_settings_are_refused(store, tokenizer):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        masked(tokenizer, rate=1.5)
    with pytest.raises(ConfigError, match="too short for this objective"):
        Loader(store, LoaderConfig(context=4), sentence_pairs(tokenizer))
