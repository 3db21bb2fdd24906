"""Likelihoods, vectors and gaps: equal to what the definition gives one text at a time."""

from __future__ import annotations

import math

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate import likelihood
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer

PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " ran"),
    ("one two", " three four five six"),
    ("the cat", "😀"),
    ("far", " away"),
    ("the cat", " ran"),
]


def by_definition(bundle, prompt, completion):
    asked, said = bundle.encode(prompt), bundle.tokenizer.encode(completion)
    with torch.inference_mode():
        if bundle.model.config.shape == "encoder_decoder":
            logits = bundle.model(
                torch.tensor([[bundle.start_id, *said[:-1]]]), source=torch.tensor([asked])
            ).logits[0]
        else:
            logits = bundle.model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
    log_probs = logits.log_softmax(-1)
    total = sum(float(log_probs[i, id]) for i, id in enumerate(said))
    return total, len(said), bool((log_probs.argmax(-1) == torch.tensor(said)).all())


@pytest.mark.parametrize("shape", ["bundle", "seq2seq"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 4096])
def test_scores_are_those_of_the_definition(shape, batch_tokens, request, monkeypatch):
    monkeypatch.setattr("stockpot.generate.likelihood.BATCH_TOKENS", batch_tokens)
    monkeypatch.setattr("stockpot.generate.scoring.BATCH_TOKENS", batch_tokens)
    bundle = request.getfixturevalue(shape)
    for pair, score in zip(PAIRS, Engine(bundle).score(PAIRS), strict=True):
        total, tokens, is_greedy = by_definition(bundle, *pair)
        assert score.log_prob == pytest.approx(total, abs=1e-4)
        assert (score.tokens, score.is_greedy) == (tokens, is_greedy)
        assert score.bytes == len(pair[1].encode())


def test_logits_are_computed_in_parts_when_they_are_many(bundle, monkeypatch):
    whole = Engine(bundle).score(PAIRS)
    monkeypatch.setattr("stockpot.generate.likelihood.LOGIT_NUMBERS", 1)
    parts = Engine(bundle).score(PAIRS)
    assert [one.log_prob for one in parts] == pytest.approx([one.log_prob for one in whole], abs=1e-4)


def test_what_greedy_decoding_writes_is_greedy(bundle):
    engine = Engine(bundle)
    found = engine.generate(["the cat"], Sampling(temperature=0, max_tokens=6, min_tokens=6))[0]
    right, wrong = engine.score(
        [("the cat", found.ids), ("the cat", (*found.ids[:-1], (found.ids[-1] + 1) % 300))]
    )
    assert right.is_greedy and not wrong.is_greedy
    assert right.log_prob > wrong.log_prob


def test_probabilities_of_all_continuations_sum_to_one(bundle):
    every = [("far", [id]) for id in range(bundle.model.config.vocab_size)]
    assert sum(math.exp(score.log_prob) for score in Engine(bundle).score(every)) == pytest.approx(
        1, abs=1e-4
    )


@pytest.mark.parametrize("row_tokens", [512, 0])
def test_a_shared_prompt_is_read_once(bundle, row_tokens, monkeypatch):
    monkeypatch.setattr(likelihood, "TREE_TOKENS", row_tokens)
    rows = []
    handle = bundle.model.register_forward_pre_hook(lambda _, args: rows.append(tuple(args[0].shape)))
    Engine(bundle).score(
        [("the cat sat", " on"), ("the cat sat", " far away"), ("the cat sat", " two three")]
    )
    handle.remove()
    asked = len(bundle.encode("the cat sat"))
    if row_tokens:  # the completions stand behind it as branches, each without its last token
        said = sum(len(bundle.tokenizer.encode(text)) - 1 for text in (" on", " far away", " two three"))
        assert rows == [(1, asked + said)]
    else:
        assert rows[0] == (1, asked)
        assert rows[1][0] == 2 and len(rows) == 2  # " on" is one token: nothing is left to be read


@pytest.mark.parametrize("row_tokens", [512, 0])
def test_what_rows_begin_with_is_read_once_wherever_the_prompts_end(bundle, row_tokens, monkeypatch):
    monkeypatch.setattr(likelihood, "TREE_TOKENS", row_tokens)
    same = tuple(range(3, 15))
    pairs = [  # two wordings of a prompt; two sentences that part late; a prompt that is another's row
        ((*same, 20), (21, 22, 23)),
        ((*same, 24), (21, 22, 23)),
        ((1,), (*same, 20)),
        ((1,), (*same, 30, 31)),
        ((1, *same), (30,)),
    ]
    wanted = [Engine(bundle).score([pair])[0] for pair in pairs]
    read = []
    handle = bundle.model.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    found = Engine(bundle, prefix_mib=0).score(pairs)
    handle.remove()
    for one, other in zip(found, wanted, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)
        assert one.gap == pytest.approx(other.gap, abs=1e-4)
        assert one.is_greedy == other.is_greedy == (one.gap > 0)
    assert sum(read) < sum(len(prompt) + len(completion) for prompt, completion in pairs) - 30


def test_pairs_are_joined_only_where_that_leaves_less_to_be_read():
    few, many = tuple(range(100)), tuple(range(200, 400))
    pairs = [((*many, *few[:50], 7), (1, 2)), ((*many, *few[:50], 7), (1, 3)), ((*many, 8, *few), (1,))]
    trees = likelihood.grow_trees(pairs)
    assert sorted(len(tree.trunk) for tree in trees) == [252, 301]  # what all share is read once anyway
    assert [len(tree.trunk) for tree in likelihood.grow_trees(pairs[:2], whole_prompts=True)] == [251]


@pytest.mark.parametrize(
    ("pair", "told"), [(("", ""), "empty"), (("a", ""), "empty completion"), (("far", "a " * 200), "context")]
)
def test_pairs_that_cannot_be_scored_are_refused(bundle, pair, told):
    with pytest.raises(GenerationError, match=told):
        Engine(bundle).score([pair])


def test_an_encoder_scores_no_texts(encoder):
    with pytest.raises(GenerationError, match="encoder"):
        Engine(encoder).score([("a", "b")])


# --- vectors ---


@pytest.mark.parametrize("shape", ["bundle", "encoder", "seq2seq"])
@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_a_text_has_the_same_vector_in_any_batch(shape, pool, request):
    engine = Engine(request.getfixturevalue(shape))
    texts = ["the cat sat on the mat", "far", "one two three"]
    together = engine.embed(texts, pool)
    assert together.shape == (3, 32) and together.dtype == torch.float32
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row], engine.embed([text], pool)[0], atol=1e-5, rtol=1e-4)


def test_the_mean_is_that_of_the_hidden_states(encoder):
    ids = encoder.encode("the cat")
    assert (ids[0], ids[-1]) == (encoder.tokenizer.cls_id, encoder.tokenizer.sep_id)
    with torch.inference_mode():
        hidden = encoder.model(torch.tensor([ids])).hidden[0]
    torch.testing.assert_close(Engine(encoder).embed(["the cat"])[0], hidden.mean(0), atol=1e-5, rtol=1e-4)


def test_a_long_text_is_cut_to_the_context(encoder):
    assert Engine(encoder).embed(["the cat " * 200]).isfinite().all()


def test_an_unknown_pooling_is_a_mistake(encoder):
    with pytest.raises(ValueError, match="pool"):
        Engine(encoder).embed(["a"], "max")


# --- gaps ---


def test_gaps_get_their_likeliest_tokens(encoder):
    tokenizer = encoder.tokenizer
    gaps = Engine(encoder).fill("the <|mask|> sat on the<|mask|>.", top=3)
    assert [len(gap) for gap in gaps] == [3, 3]
    ids = [
        tokenizer.cls_id,
        *tokenizer.encode("the"),
        tokenizer.mask_id,
        *tokenizer.encode(" sat on the"),
        tokenizer.mask_id,
        *tokenizer.encode("."),
        tokenizer.sep_id,
    ]
    with torch.inference_mode():
        expected = encoder.model(torch.tensor([ids])).logits[0].softmax(-1)
    for gap, place in zip(gaps, [i for i, id in enumerate(ids) if id == tokenizer.mask_id], strict=True):
        best = expected[place].topk(3)
        assert [one.id for one in gap] == best.indices.tolist()
        assert [one.probability for one in gap] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert gaps[0][0].text.count("<|mask|>") == 1  # the other gap is still open


def test_a_text_without_a_gap_is_refused(encoder):
    with pytest.raises(GenerationError, match="no gap"):
        Engine(encoder).fill("the cat")


def test_a_decoder_fills_no_gaps(bundle):
    with pytest.raises(GenerationError, match="encoder"):
        Engine(bundle).fill("the <|mask|>")


@pytest.mark.parametrize("kind", ["learned", "rope", "alibi", "relative", "none", "sinusoidal"])
def test_several_completions_in_one_row_are_scored_as_each_alone(kind, bundle, monkeypatch):
    torch.manual_seed(0)
    size = bundle.tokenizer.vocab_size
    model = Transformer(
        decoder(layers=2, dim=32, heads=2, context=64, vocab_size=size, position=kind, zero_init=False)
    ).eval()
    engine = Engine(Bundle(model, bundle.tokenizer), prefix_mib=0)
    pairs = [
        ([1, 2, 3], (4, 5, 6)),
        ([1, 2, 3], (4, 7)),
        ([1, 2, 3], (8,)),
        ([9, 8, 7, 6, 5], (4, 3)),
        ([2], (1, 2, 3, 4, 5)),
    ]
    together = engine.score(pairs)
    monkeypatch.setattr(likelihood, "ROW_TOKENS", 0)
    for one, other, (prompt, completion) in zip(together, engine.score(pairs), pairs, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
        by_hand = sum(float(logits[len(prompt) - 1 + i, id]) for i, id in enumerate(completion))
        assert one.log_prob == pytest.approx(by_hand, abs=1e-4)
        assert other.log_prob == pytest.approx(by_hand, abs=1e-4)
        assert one.is_greedy == other.is_greedy
