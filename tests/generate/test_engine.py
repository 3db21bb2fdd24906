"""The engine: alone or in company, streamed or not, with a cache or without, the answers are the same."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.live import Live
from stockpot.generate.request import Request, Sampling
from stockpot.generate.together import complete
from stockpot.text.chat import Message

PROMPTS = [
    "the cat",
    "one two three four five",
    "é",
    "who is there? the dog and the cat and the mat",
    "far",
    "two",
]
GREEDY = Sampling(temperature=0, max_tokens=24)


def without_cache(bundle, prompt, tokens=24):
    """Greedy decoding as the definition says: run everything again for each token."""
    ids, written = bundle.encode(prompt), []
    with torch.inference_mode():
        while len(written) < tokens and (not written or written[-1] not in bundle.stop_ids):
            if bundle.model.config.shape == "encoder_decoder":
                out = bundle.model(torch.tensor([[bundle.start_id, *written]]), source=torch.tensor([ids]))
            else:
                out = bundle.model(torch.tensor([ids + written]))
            written.append(int(out.logits[0, -1].argmax()))
    return tuple(written)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"position": "learned"},
        {"position": "sinusoidal", "norm": "layer"},
        {"position": "alibi"},
        {"position": "relative"},
        {"window": (4, None)},
        {"attention_softcap": 5.0},
    ],
)
def test_greedy_with_cache_is_greedy_without(choices, make_bundle):
    bundle = make_bundle(**choices)
    found = Engine(bundle, slots=3).generate(PROMPTS, GREEDY)
    assert [one.ids for one in found] == [without_cache(bundle, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("closes", [False, True])
def test_a_stream_that_ends_takes_nothing_from_others(closes, make_bundle):
    engine = Engine(make_bundle(), slots=3)
    (alone,) = engine.generate(["far"], GREEDY)
    stream = engine.stream("the cat", Sampling(temperature=0, max_tokens=6))
    next(stream)
    number = engine.submit(Request("far", GREEDY))
    if closes:
        next(stream), next(stream)
        stream.close()
    else:
        assert list(stream)[-1].finish_reason is not None
    found, is_done = [], False
    while not is_done:
        for chunk in engine.step():
            assert chunk.request == number
            found += chunk.ids
            is_done = chunk.finish_reason is not None
    assert tuple(found) == alone.ids


def test_an_encoder_decoder_reads_a_source_and_writes(seq2seq):
    found = Engine(seq2seq, slots=3).generate(PROMPTS, GREEDY)
    assert [one.ids for one in found] == [without_cache(seq2seq, prompt) for prompt in PROMPTS]


def test_batched_is_alone(engine):
    alone = [engine.generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    assert engine.generate(PROMPTS, GREEDY) == alone


def test_a_seed_gives_the_same_text_in_any_company(bundle):
    settings = Sampling(temperature=0.9, top_p=0.95, seed=7, n=2, max_tokens=20)
    alone = [one for prompt in PROMPTS for one in Engine(bundle, slots=1).generate([prompt], settings)]
    together = Engine(bundle, slots=5).generate(PROMPTS, settings)
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert together[0].ids != together[1].ids


def test_without_a_seed_answers_differ_and_the_global_generator_is_left_alone(engine):
    before = torch.get_rng_state()
    first, second = engine.generate(["the cat", "the cat"], Sampling(max_tokens=30))
    assert first.ids != second.ids
    assert torch.equal(torch.get_rng_state(), before)


def test_requests_that_arrive_while_others_are_written_change_nothing(bundle):
    alone = {prompt: Engine(bundle).generate([prompt], GREEDY)[0].ids for prompt in PROMPTS}
    engine, found, numbers = Engine(bundle, slots=3), {}, {}
    waiting = list(PROMPTS)
    while waiting or engine.pending:
        if waiting:
            prompt = waiting.pop(0)
            numbers[engine.submit(Request(prompt, GREEDY))] = prompt
        for _ in range(3):
            for chunk in engine.step():
                found.setdefault(numbers[chunk.request], []).extend(chunk.ids)
    assert {prompt: tuple(ids) for prompt, ids in found.items()} == alone


def test_a_long_prompt_is_read_in_pieces(bundle, monkeypatch):
    prompt = "the cat sat on the mat and the dog ran far away one two three"
    whole = Engine(bundle).generate([prompt, "far"], GREEDY)
    monkeypatch.setattr("stockpot.generate.scheduler.BESIDE_TOKENS", 5)
    engine = Engine(bundle)
    short = engine.submit(Request("far", GREEDY))
    engine.step()
    long = engine.submit(Request(prompt, GREEDY))
    found = {short: [], long: []}
    steps = 0
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request].extend(chunk.ids)
        steps += 1
    assert steps > 24  # the long one began some steps later
    assert tuple(found[long]) == whole[0].ids
    assert tuple(found[short])[-20:] == whole[1].ids[-20:]


def test_a_stream_is_the_completion_in_pieces(engine):
    settings = Sampling(seed=3, max_tokens=40, logprobs=0)
    whole = engine.generate(["the cat"], settings)[0]
    chunks = list(engine.stream("the cat", settings))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert tuple(id for chunk in chunks for id in chunk.ids) == whole.ids
    assert tuple(value for chunk in chunks for value in chunk.log_probs) == whole.log_probs
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert all(chunk.text for chunk in chunks[:-1])


def test_the_text_is_what_the_ids_spell(engine, bundle):
    for one in engine.generate(PROMPTS, Sampling(seed=1, max_tokens=40)):
        body = [id for id in one.ids if id not in bundle.stop_ids]
        assert one.text == bundle.tokenizer.decode(body, skip_special=True)


def test_leaving_a_stream_frees_its_slot(engine):
    stream = engine.stream("the cat", Sampling(max_tokens=60, min_tokens=60))
    next(stream)
    assert engine.pending == 1
    stream.close()
    assert engine.pending == 0


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("victim", [0, 1, 2, 4, 5])
def test_cancel_frees_the_slot_and_leaves_the_others_alone(bundle, steps, victim):
    settings = Sampling(temperature=0, max_tokens=16, min_tokens=16)
    alone = [Engine(bundle).generate([prompt], settings)[0].ids for prompt in PROMPTS]
    engine = Engine(bundle, slots=3)
    numbers = [engine.submit(Request(prompt, settings)) for prompt in PROMPTS]
    found = {number: [] for number in numbers}

    def step():
        for chunk in engine.step():
            found[chunk.request].extend(chunk.ids)

    for _ in range(steps):
        step()
    engine.cancel(numbers[victim])
    assert engine.pending == len(PROMPTS) - 1
    written = len(found[numbers[victim]])
    while engine.pending:
        step()
    assert len(found[numbers[victim]]) == written
    for index, number in enumerate(numbers):
        if index != victim:
            assert tuple(found[number]) == alone[index]


def test_cancelling_while_a_prompt_is_half_read(bundle):
    settings = Sampling(temperature=0, max_tokens=16, min_tokens=16)
    prompts = ["the cat", "far", "the cat sat on the mat and the dog ran far away"]
    alone = [Engine(bundle).generate([prompt], settings)[0].ids for prompt in prompts]
    for victim in range(3):
        engine = Engine(bundle, slots=3, read_tokens=4)
        numbers = [engine.submit(Request(prompt, settings)) for prompt in prompts]
        found = {number: [] for number in numbers}
        for step in range(60):
            for chunk in engine.step():
                found[chunk.request].extend(chunk.ids)
            if step == 3:
                engine.cancel(numbers[victim])
        assert engine.pending == 0
        for index, number in enumerate(numbers):
            assert index == victim or tuple(found[number]) == alone[index]


def test_cancelling_what_has_ended_or_never_was_is_harmless(engine):
    before = engine.generate(["far"], GREEDY)
    engine.cancel(1)
    engine.cancel(999)
    assert engine.pending == 0
    assert engine.generate(["far"], GREEDY) == before


def test_chunks_of_others_wait_for_their_owner(engine):
    number = engine.submit(Request("the cat", GREEDY))
    alone = Engine(engine.bundle).generate(["the cat"], GREEDY)[0]
    engine.generate(["one two three"], Sampling(temperature=0, max_tokens=40, min_tokens=40))
    chunks = engine.step()
    while engine.pending:
        chunks += engine.step()
    assert {chunk.request for chunk in chunks} == {number}
    assert tuple(id for chunk in chunks for id in chunk.ids) == alone.ids


def test_copies_of_one_prompt_are_read_once(bundle):
    calls = []
    handle = bundle.model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(tuple(args[0].shape)), with_kwargs=True
    )
    found = Engine(bundle, slots=4).generate(
        ["the cat sat"], Sampling(n=4, seed=0, max_tokens=3, min_tokens=3)
    )
    handle.remove()
    assert calls[0] == (1, len(bundle.encode("the cat sat")))
    assert calls[1:] == [(4, 1), (4, 1)]
    assert len({one.ids for one in found}) > 1


# --- ends ---


def test_a_stop_text_across_tokens_ends_the_text_before_it(engine):
    whole = engine.generate(["the cat"], Sampling(temperature=0, max_tokens=24, min_tokens=24))[0]
    stop = whole.text[6:9]
    found = engine.generate(["the cat"], Sampling(temperature=0, max_tokens=24, min_tokens=24, stop=(stop,)))[
        0
    ]
    assert found.finish_reason == "stop"
    assert found.text == whole.text[: whole.text.find(stop)]
    assert len(found.ids) < 24


def test_max_tokens_ends_with_length(engine):
    found = engine.generate(["the cat"], Sampling(temperature=0, max_tokens=3, min_tokens=3))[0]
    assert (found.tokens, found.finish_reason) == (3, "length")


def test_the_context_ends_with_length(engine, bundle):
    prompt = [1] * (bundle.context - 4)
    found = engine.generate([prompt], Sampling(temperature=0, max_tokens=50, min_tokens=50))[0]
    assert (found.tokens, found.finish_reason, found.prompt_tokens) == (4, "length", bundle.context - 4)


def test_an_ending_id_ends_with_stop_and_is_not_text(engine, bundle):
    eos = bundle.tokenizer.eos_id
    found = engine.generate(["the cat"], Sampling(temperature=0, logit_bias={eos: 1e4}))[0]
    assert (found.ids, found.text, found.finish_reason) == ((eos,), "", "stop")


def test_min_tokens_keeps_endings_away(engine, bundle):
    eos = bundle.tokenizer.eos_id
    found = engine.generate(
        ["the cat"], Sampling(temperature=0, logit_bias={eos: 1e4}, min_tokens=5, max_tokens=9)
    )[0]
    assert found.ids[-1] == eos and found.tokens == 6


# --- what changes the logits ---


def test_a_constraint_is_obeyed_and_ends_where_nothing_is_allowed(bundle):
    wanted = bundle.tokenizer.encode("one two")

    def allowed(ids):
        mask = torch.zeros(bundle.model.config.vocab_size, dtype=torch.bool)
        if len(ids) < len(wanted):
            mask[wanted[len(ids)]] = True
        return mask

    engine = Engine(bundle)
    engine.submit(Request("the", Sampling(seed=0), allowed=allowed))
    chunks = []
    while engine.pending:
        chunks += engine.step()
    assert "".join(chunk.text for chunk in chunks) == "one two"
    assert chunks[-1].finish_reason == "stop"


def test_a_presence_penalty_forbids_repeating(engine):
    found = engine.generate(
        ["the cat"], Sampling(temperature=0, presence_penalty=1e4, max_tokens=30, min_tokens=30)
    )[0]
    assert len(set(found.ids)) == 30


def test_a_repetition_penalty_avoids_the_prompt_too(engine, bundle):
    found = engine.generate(
        ["the cat"], Sampling(temperature=0, repetition_penalty=1e4, max_tokens=20, min_tokens=20)
    )[0]
    assert not set(found.ids) & set(bundle.encode("the cat"))
    assert len(set(found.ids)) == 20


@pytest.mark.parametrize("beams", [None, 2])
def test_a_repetition_penalty_leaves_a_source_alone(seq2seq, beams):
    source = seq2seq.encode("the cat")
    wants = Sampling(
        temperature=0, max_tokens=1, logit_bias={source[0]: 1000.0}, repetition_penalty=1e6, beams=beams
    )
    assert Engine(seq2seq).generate([source], wants)[0].ids == (source[0],)


def test_penalties_concern_their_own_request_only(engine):
    plain = engine.generate(["far"], Sampling(temperature=0, max_tokens=20, min_tokens=20))[0]
    numbers = [
        engine.submit(
            Request("far", Sampling(temperature=0, max_tokens=20, min_tokens=20, presence_penalty=strength))
        )
        for strength in (1e4, None)
    ]
    found = {number: [] for number in numbers}
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request].extend(chunk.ids)
    assert tuple(found[numbers[1]]) == plain.ids
    assert len(set(found[numbers[0]])) == 20


def test_log_probabilities_are_the_models_own(engine, bundle):
    settings = Sampling(temperature=0.5, top_k=3, seed=2, logprobs=4, max_tokens=6, min_tokens=6)
    found = engine.generate(["the cat"], settings)[0]
    ids = bundle.encode("the cat")
    with torch.inference_mode():
        logits = bundle.model(torch.tensor([ids + list(found.ids)])).logits[0]
    expected = logits.log_softmax(-1)[len(ids) - 1 : -1]
    for step, id in enumerate(found.ids):
        assert found.log_probs[step] == pytest.approx(float(expected[step, id]), abs=1e-4)
        assert [id for id, _ in found.alternatives[step]] == expected[step].topk(4).indices.tolist()


def test_log_probabilities_only_for_those_who_ask(engine):
    asked = engine.submit(Request("far", Sampling(temperature=0, max_tokens=3, min_tokens=3, logprobs=0)))
    engine.submit(Request("two", Sampling(temperature=0, max_tokens=3, min_tokens=3)))
    while engine.pending:
        for chunk in engine.step():
            assert len(chunk.log_probs) == (len(chunk.ids) if chunk.request == asked else 0)


# --- what comes in ---


def test_conversations_go_through_the_template(engine, bundle):
    chat = [Message("user", "who is there?")]
    expected = bundle.template.encode(chat, bundle.tokenizer, add_generation_prompt=True).ids.tolist()
    assert engine.generate([chat], GREEDY) == engine.generate([expected], GREEDY)


def test_defaults_come_with_the_model(bundle, tokenizer):
    own = Bundle(bundle.model, tokenizer, generation={"do_sample": False, "eos_token_id": [5, 6]})
    assert Engine(own).defaults().is_greedy
    assert {5, 6} <= own.stop_ids


def test_a_model_in_training_is_asked_without_dropout_and_trains_on(make_bundle):
    bundle = make_bundle(dropout=0.5)
    calm = Engine(bundle).generate(["the cat"], GREEDY)
    bundle.model.train()
    assert Engine(bundle).generate(["the cat"], GREEDY) == calm
    assert bundle.model.training


def test_a_growing_cache_keeps_what_it_holds(bundle):
    engine = Engine(bundle, slots=6)
    alone = [engine.generate([prompt], GREEDY)[0].ids for prompt in PROMPTS]
    engine = Engine(bundle, slots=6)
    numbers, found = [], {}
    for prompt in PROMPTS:  # one more row each time
        numbers.append(engine.submit(Request(prompt, GREEDY)))
        found[numbers[-1]] = []
        for chunk in engine.step():
            found[chunk.request].extend(chunk.ids)
    while engine.pending:
        for chunk in engine.step():
            found[chunk.request].extend(chunk.ids)
    assert [tuple(found[number]) for number in numbers] == alone


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([], "empty"),
        ([1] * 96, "96 tokens"),
        ([999_999], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
    ],
)
def test_prompts_that_cannot_be_answered_are_refused(engine, prompt, told):
    with pytest.raises(GenerationError, match=told):
        engine.generate([prompt], GREEDY)
    assert engine.pending == 0


def test_messages_need_a_template(bundle, tokenizer):
    with pytest.raises(GenerationError, match="no chat template"):
        Engine(Bundle(bundle.model, tokenizer)).generate([[Message("user", "hi")]], GREEDY)


def test_an_encoder_cannot_write(encoder):
    with pytest.raises(GenerationError, match="cannot write"):
        Engine(encoder).generate(["the cat"], GREEDY)


def test_only_one_drawn_completion_can_be_streamed(engine):
    for settings in (Sampling(n=2), Sampling(beams=2)):
        with pytest.raises(GenerationError, match="streamed"):
            engine.stream("the cat", settings)


def test_a_bias_outside_the_vocabulary_is_refused(engine):
    with pytest.raises(GenerationError, match="logit_bias"):
        engine.generate(["the cat"], Sampling(logit_bias={10**6: 1.0}))


def test_a_bare_text_instead_of_a_list_is_a_mistake(engine):
    with pytest.raises(TypeError, match="list"):
        engine.generate("the cat", GREEDY)


def test_no_prompts_give_no_answers(engine):
    assert engine.generate([], GREEDY) == []


def test_special_tokens_in_a_prompt_stay_text(bundle):
    ids = bundle.encode("a<|eos|>b")
    assert bundle.tokenizer.eos_id not in ids
    assert ids[0] == bundle.tokenizer.bos_id


def test_the_cache_stays_within_its_memory_and_all_are_answered(make_bundle):
    bundle = make_bundle(context=160, layers=4, dim=64, kv_heads=4)
    lengths = [150, 5, 8, 90, 3, 4, 60, 2]
    found = []
    for mib in (None, 1):  # 1 MiB: 512 tokens
        engine = Engine(bundle, slots=8, cache_mib=mib)
        numbers = [
            engine.submit(Request(f"the cat {i}", Sampling(temperature=0, max_tokens=length)))
            for i, length in enumerate(lengths)
        ]
        ids = dict.fromkeys(numbers, ())
        largest = 0
        while engine.pending:
            for chunk in engine.step():
                ids[chunk.request] += chunk.ids
            cache = engine._scheduler._rows.cache
            largest = max(largest, cache.batch * cache.capacity)
        found.append((ids, largest))
    assert found[0][0] == found[1][0]
    assert found[1][1] <= 512 < found[0][1]


def test_a_completion_too_long_for_the_memory_is_written_alone(make_bundle):
    bundle = make_bundle(context=8192)
    engine = Engine(bundle, slots=4, cache_mib=1)
    long = engine.submit(Request("the cat", Sampling(temperature=0, max_tokens=8000)))
    short = engine.submit(Request("a dog", Sampling(temperature=0, max_tokens=3)))
    assert {chunk.request for _ in range(5) for chunk in engine.step()} == {long}
    engine.cancel(long)
    chunks = [chunk for _ in range(6) for chunk in engine.step()]
    assert {chunk.request for chunk in chunks} == {short}
    assert engine.pending == 0


@pytest.mark.parametrize("beams", [None, 2])
def test_an_end_that_the_model_has_no_id_for_is_no_end(make_bundle, beams):
    plain = make_bundle()
    last = plain.model.config.vocab_size - 1
    odd = dataclasses.replace(plain, generation={"eos_token_id": [last + 1000, -1]})
    assert odd.stop_ids == plain.stop_ids
    sampling = Sampling(temperature=0, max_tokens=9, min_tokens=4, beams=beams, logit_bias={last: 3.0})
    (found,), (wanted,) = (Engine(one).generate(["the cat"], sampling) for one in (odd, plain))
    assert found == wanted


def test_who_fails_takes_nothing_from_others(bundle, monkeypatch):
    """A prompt of `generate` fails before somebody else's turn in a step; what that one wrote is not lost."""
    engine = Engine(bundle, slots=3)
    (alone,) = engine.generate(["far"], GREEDY)
    accept, found = Live.accept, []

    def breaking(self, id, *more):
        if self.prompt == failing and len(self.ids) == 6:
            self.failure = GenerationError("no more")
        return accept(self, id, *more)

    monkeypatch.setattr(Live, "accept", breaking)
    failing = bundle.encode("the cat sat on the mat")
    engine.submit(Request("two", Sampling(temperature=0, max_tokens=3)))  # its row goes to who came last
    number = engine.submit(Request("far", GREEDY))
    with pytest.raises(GenerationError, match="no more"):
        engine.generate([failing], Sampling(temperature=0, max_tokens=24, min_tokens=24))
    while engine.pending:
        found += [id for chunk in engine.step() if chunk.request == number for id in chunk.ids]
    assert tuple(found) == alone.ids


def test_threads_that_share_an_engine_get_what_each_would_alone(bundle):
    engine, texts = Engine(bundle), ["the cat", "one two three", "dogs ran far", "two"]
    asked = Sampling(temperature=0, max_tokens=24, min_tokens=24)
    written = [Engine(bundle).generate([text], asked)[0].text for text in texts]
    vector, score = Engine(bundle).embed(["the cat"]), Engine(bundle).score([("the", " cat")])

    def streamed(text):
        return "".join(chunk.text for chunk in engine.stream(text, asked))

    def all_of_it(number):
        found = [engine.generate([texts[number]], asked)[0].text, streamed(texts[number])]
        torch.testing.assert_close(engine.embed(["the cat"]), vector)
        assert engine.score([("the", " cat")])[0].log_prob == pytest.approx(score[0].log_prob, abs=1e-5)
        return found

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(all_of_it, [0, 1, 2, 3] * 3)):
            assert found == [written[number % 4]] * 2
    assert engine.pending == 0


@pytest.mark.parametrize("choices", [{"temperature": 0}, {"seed": 1, "top_p": 0.9}, {"beams": 2}])
@pytest.mark.parametrize("shape", ["decoder", "encoder_decoder"])
def test_nothing_is_drawn_from_what_are_no_numbers(make_bundle, shape, choices):
    broken = make_bundle(shape)
    broken.model.decoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="no numbers"):
        Engine(broken).generate(["the cat"], Sampling(max_tokens=4, **choices))


@pytest.mark.parametrize(
    "choices", [{"temperature": 0}, {"seed": 1, "logprobs": 2}, {"seed": 1, "lookup": 4}]
)
@pytest.mark.parametrize("shape", ["decoder", "encoder_decoder"])
def test_an_answer_ends_with_an_error_where_numbers_end(make_bundle, shape, choices):
    """States may outgrow their type on the way: what was written before stays, and nothing follows it."""
    broken = make_bundle(shape)
    engine = Engine(broken)
    engine.submit(Request("the cat", Sampling(max_tokens=40, min_tokens=40, **choices)))
    chunks = engine.step()
    while not any(chunk.ids for chunk in chunks):
        chunks = engine.step()
    assert [chunk.error for chunk in chunks] == [None]
    broken.model.decoder.norm.weight.data.fill_(float("nan"))
    (last,) = engine.step()
    assert (last.text, last.finish_reason) == ("", "error")
    assert "no numbers" in str(last.error)
    assert engine.pending == 0


@pytest.mark.parametrize("shape", ["decoder", "encoder_decoder"])
def test_a_score_that_is_no_number_is_told(make_bundle, shape):
    broken = make_bundle(shape)
    broken.model.decoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="no numbers"):
        Engine(broken).score([("the cat", " sat")])


def test_a_vector_that_is_not_finite_is_told(make_bundle):
    broken = make_bundle("encoder")
    broken.model.encoder.norm.weight.data.fill_(float("inf"))
    with pytest.raises(GenerationError, match="no numbers"):
        Engine(broken).embed(["the cat"])


@pytest.mark.parametrize(
    "greedy", [{"top_k": 1}, {"temperature": 0, "top_k": 50, "top_p": 0.5, "min_p": 0.1}]
)
def test_a_greedy_request_beside_one_that_draws_from_all_changes_neither(bundle, greedy):
    asked = [
        Request("the cat", Sampling(max_tokens=8, **greedy)),
        Request("two", Sampling(max_tokens=8, seed=1)),
    ]
    alone = [complete(Engine(bundle), [one])[0].ids for one in asked]
    assert [one.ids for one in complete(Engine(bundle), asked)] == alone


def test_a_request_that_is_refused_leaves_no_other_behind(engine):
    with pytest.raises(GenerationError, match="empty"):
        complete(engine, [Request("the cat"), Request([])])
    assert engine.pending == 0


def test_a_prompt_of_pictures_alone_has_no_id_to_be_penalised(bundle):
    request = Request(
        [400], Sampling(repetition_penalty=1.3)
    )  # behind the vocabulary, as those of pictures are
    live = Live.begin(1, request, [400], limit=1, stop_ids=frozenset(), text=None)
    logits = torch.randn(1, 360)
    before = logits.clone()
    live.adjust(logits)
    assert torch.equal(logits, before)
