"""The routes, as the official client uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import openai
import pytest

from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.text.chat import Message

ASKED = [{"role": "user", "content": "the cat"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as one:
        yield one


def greedy(bundle, prompt, **choices):
    (reply,) = Engine(bundle).generate([prompt], Sampling(temperature=0.0, **choices))
    return reply


def test_models_are_listed_and_described(client):
    assert [one.id for one in client.models.list()] == ["tiny", "base", "vectors"]
    assert client.models.retrieve("tiny").owned_by == "stockpot"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody/else")
    assert error.value.code == "model_not_found"


def test_a_chat_is_what_the_engine_writes(client, bundle):
    found = client.chat.completions.create(model="tiny", messages=ASKED, temperature=0, max_tokens=20)
    right = greedy(bundle, [Message("user", "the cat")], max_tokens=20)
    assert found.choices[0].message.content == right.text
    assert found.choices[0].finish_reason == right.finish_reason
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (right.prompt_tokens, right.tokens)
    assert found.usage.total_tokens == right.prompt_tokens + right.tokens


def test_parts_of_text_are_joined(client):
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(messages=ASKED, **asked)
    split = client.chat.completions.create(messages=[{"role": "user", "content": parts}], **asked)
    assert split.choices[0].message.content == whole.choices[0].message.content


def test_a_stream_says_the_same_and_ends_with_usage(client):
    asked = {"model": "tiny", "messages": ASKED, "seed": 3, "n": 2, "max_tokens": 12}
    whole = client.chat.completions.create(**asked)
    texts, reasons, last = ["", ""], [None, None], None
    options = {"include_usage": True}
    for last in client.chat.completions.create(**asked, stream=True, stream_options=options):
        for choice in last.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert last.choices == [] and last.usage == whole.usage


def test_only_the_first_piece_of_a_choice_names_the_role(client):
    pieces = client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=6, seed=1, stream=True)
    roles = [piece.choices[0].delta.role for piece in pieces]
    assert roles[0] == "assistant" and set(roles[1:]) <= {None}


def test_a_seed_repeats_an_answer(client):
    asked = {"model": "tiny", "messages": ASKED, "seed": -5, "max_tokens": 16}
    texts = {client.chat.completions.create(**asked).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(client):
    asked = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 20}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    stop = whole[5:7]
    found = client.chat.completions.create(**asked, stop=[stop], logprobs=True).choices[0]
    assert found.message.content == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"


def test_log_probabilities_belong_to_the_text(client, bundle):
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_tokens=20, logprobs=True, top_logprobs=3
    ).choices[0]
    right = greedy(bundle, [Message("user", "the cat")], max_tokens=20, logprobs=3)
    told = found.logprobs.content
    assert bytes(byte for one in told for byte in one.bytes).decode(errors="replace") == found.message.content
    assert [one.logprob for one in told] == pytest.approx(right.log_probs[: len(told)])
    assert all(len(one.top_logprobs) == 3 for one in told)
    assert told[0].top_logprobs[0].logprob == pytest.approx(told[0].logprob)


def test_streamed_log_probabilities_are_the_same(client):
    asked = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 20, "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0].logprobs.content
    pieces = client.chat.completions.create(**asked, stream=True)
    told = [one for piece in pieces for one in (piece.choices[0].logprobs.content or [])]
    assert told == whole


def test_penalties_and_biases_reach_the_engine(client, bundle):
    prompt = [Message("user", "the cat")]
    told = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_tokens=20, frequency_penalty=2, presence_penalty=2
    )
    right = greedy(bundle, prompt, max_tokens=20, frequency_penalty=2.0, presence_penalty=2.0)
    assert told.choices[0].message.content == right.text
    id = bundle.tokenizer.encode("mat")[0]
    biased = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_tokens=3, logit_bias={str(id): 100}
    )
    right = greedy(bundle, prompt, max_tokens=3, logit_bias={id: 100.0})
    assert biased.choices[0].message.content == right.text


def test_an_answer_follows_a_schema(client):
    form = {"type": "json_schema", "json_schema": {"name": "digit", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=60, response_format=form, seed=0
    ).choices[0]
    assert found.finish_reason == "stop"
    assert 0 <= json.loads(found.message.content)["n"] <= 9


def test_an_answer_can_be_any_json_object(client):
    found = client.chat.completions.create(
        model="tiny", messages=ASKED, max_tokens=10, response_format={"type": "json_object"}, seed=0
    ).choices[0]
    assert found.message.content.startswith("{")


def test_completions_continue_texts(client, bundle):
    right = greedy(bundle, "the cat", max_tokens=12)
    found = client.completions.create(model="tiny", prompt="the cat", temperature=0, max_tokens=12)
    assert found.choices[0].text == right.text
    both = client.completions.create(
        model="tiny", prompt=["the cat", "the cat"], temperature=0, max_tokens=12, echo=True
    )
    assert [one.index for one in both.choices] == [0, 1]
    assert both.choices[0].text == "the cat" + right.text
    ids = client.completions.create(
        model="tiny", prompt=bundle.encode("the cat"), temperature=0, max_tokens=12
    )
    assert both.choices[1].text == "the cat" + ids.choices[0].text
    pieces = client.completions.create(
        model="tiny", prompt="the cat", temperature=0, max_tokens=12, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == right.text


def test_completions_tell_log_probabilities(client):
    found = client.completions.create(
        model="tiny", prompt="the cat", temperature=0, max_tokens=6, logprobs=2
    ).choices[0]
    assert len(found.logprobs.tokens) == len(found.logprobs.token_logprobs) == len(found.logprobs.text_offset)
    assert all(1 <= len(one) <= 2 for one in found.logprobs.top_logprobs)
    pieces = client.completions.create(
        model="tiny", prompt="the cat", temperature=0, max_tokens=6, logprobs=2, stream=True
    )
    told = [place for piece in pieces for place in piece.choices[0].logprobs.text_offset]
    assert told == found.logprobs.text_offset and told[-1] > 0


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_answer_in_which_numbers_end_is_an_error_and_no_text(make, run_server, path):
    broken, calls = make(), []

    def break_later(*_):
        calls.append(1)
        if len(calls) == 2:
            broken.model.decoder.norm.weight.data.fill_(float("nan"))

    broken.model.register_forward_pre_hook(break_later)
    asked = {"prompt": "the", "logprobs": 2}
    if path != "completions":
        asked = {"messages": [{"role": "user", "content": "a"}], "logprobs": True}
    asked |= {"max_tokens": 4, "temperature": 0, "logit_bias": {"3": -100}}
    with run_server({"broken": broken}) as one:
        _, _, body = one.send("POST", f"/v1/{path}", asked | {"stream": True})
        pieces = [line.removeprefix("data: ") for line in body.decode().split("\n\n")]
        first, *_, last, done, _ = pieces
        assert json.loads(first)["choices"] and done == "[DONE]"
        assert "no numbers" in json.loads(last)["error"]["message"]
        status, found = one.post(f"/v1/{path}", asked)
        assert (status, found["error"]["type"]) == (500, "server_error")


@pytest.mark.parametrize("is_chat", [True, False])
def test_log_probabilities_without_bound_are_still_json(make, run_server, is_chat):
    """JSON knows no infinity; OpenAI's least log-probability stands for whatever lies below it."""
    sure = make()
    sure.model.decoder.norm.weight.data.mul_(1e6)
    path, asked = "/v1/completions", {"prompt": "the", "logprobs": 2}
    if is_chat:
        path = "/v1/chat/completions"
        asked = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2}
    with run_server({"sure": sure}) as one:
        status, found = one.post(path, asked | {"max_tokens": 2, "temperature": 0})
    assert status == 200
    told = found["choices"][0]["logprobs"]
    if is_chat:
        others = [[other["logprob"] for other in token["top_logprobs"]] for token in told["content"]]
    else:
        others = [list(one.values()) for one in told["top_logprobs"]]
    assert len(others) == 2 and all(max(values) == 0.0 for values in others)  # ids spelled alike are one
    assert {value for values in others for value in values} == {-9999.0, 0.0}


@pytest.mark.parametrize("shape", ["decoder", "encoder"])
def test_a_model_of_which_nothing_is_a_number_is_told_as_damaged(make, run_server, shape):
    broken = make(shape)
    getattr(broken.model, shape).norm.weight.data.fill_(float("nan"))
    asked = [("embeddings", {"input": "the", "encoding_format": form}) for form in ("float", "base64")]
    if shape == "decoder":
        asked += [
            ("completions", {"prompt": "a", "temperature": 0, "stream": is_so}) for is_so in (True, False)
        ]
        asked += [("chat/completions", {"messages": [{"role": "user", "content": "a"}]})]
    with run_server({"broken": broken}) as one:
        for path, body in asked:
            status, found = one.post(f"/v1/{path}", body)
            assert (status, found["error"]["type"]) == (500, "server_error")
            assert "no numbers" in found["error"]["message"]


def test_vectors_are_the_engines(client, server):
    texts = ["the cat", "the dog ran far away"]
    right = Engine(server.service.models["vectors"].bundle).embed(texts).tolist()
    found = client.embeddings.create(model="vectors", input=texts)
    assert [one.embedding for one in found.data] == [pytest.approx(one, abs=1e-5) for one in right]
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert plain.data[1].embedding == pytest.approx(found.data[1].embedding, abs=1e-6)
    assert found.usage.prompt_tokens > 0


def test_many_texts_become_vectors_in_parts(client, server):
    texts = [f"the cat {'sat on ' * (i % 40)}" for i in range(60)]
    right = Engine(server.service.models["vectors"].bundle).embed(texts).tolist()
    found = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert [one.embedding for one in found.data] == [pytest.approx(one, abs=1e-4) for one in right]


def test_a_text_that_would_hold_up_others_is_not_embedded(make, run_server):
    with run_server({"long": make("encoder", context=4096)}) as one:
        status, found = one.post("/v1/embeddings", {"input": "the cat sat " * 1500})
        assert (status, found["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"n": 9}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_impossible_settings_are_named(server, given, param):
    status, found = server.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 2} | given)
    assert status == 400
    assert found["error"]["type"] == "invalid_request_error"
    assert found["error"]["param"] == param


def test_tools_may_be_offered_and_none_is_called(client):
    asked = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 8}
    plain = client.chat.completions.create(**asked).choices[0].message
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}):
        found = client.chat.completions.create(**asked, tools=TOOLS, **choice).choices[0].message
        assert (found.content, found.tool_calls) == (plain.content, None)


def test_pictures_are_refused_and_never_fetched(server):
    part = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    status, found = server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": [part]}]})
    assert (status, found["error"]["code"]) == (400, "unsupported_content")


def test_a_prompt_longer_than_the_context_is_told(client, server):
    for text in ("the cat " * 400, "x" * 400_000):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
        assert error.value.code == "context_length_exceeded"


def test_models_do_what_they_can(client):
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="base", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="does not write"):
        client.chat.completions.create(model="vectors", messages=ASKED)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4o", messages=ASKED)
    assert client.completions.create(model="base", prompt="the cat", max_tokens=2).choices[0].text


def test_an_absent_model_means_the_first(server):
    status, found = server.post("/v1/chat/completions", {"messages": ASKED, "max_tokens": 1})
    assert (status, found["model"]) == (200, "tiny")


def test_errors_of_routing_have_the_same_shape(server):
    wrong = [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/chat/completions", 405),
    ]
    for method, path, status in wrong:
        found, _, body = server.send(method, path, {} if method == "POST" else None)
        error = json.loads(body)["error"]
        assert found == status and f"{method} {path}" in error["message"]
        assert error["code"] == {404: "not_found", 405: "method_not_allowed"}[status]


def test_what_is_no_json_is_told_with_the_place(server):
    status, found = server.post("/v1/chat/completions", b'{"messages": [}')
    assert status == 400
    assert found["error"]["message"].startswith("The body is no JSON: ") and "14" in found["error"]["message"]
    status, found = server.post("/v1/embeddings", {"model": "vectors", "input": []})
    assert (status, found["error"]["param"]) == (400, "input")
    assert "empty list" in found["error"]["message"]


def test_metrics_count_what_was_done(server):
    server.post("/v1/completions", {"prompt": "the cat", "max_tokens": 3, "temperature": 0})
    _, headers, body = server.send("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    assert headers["content-type"].startswith("text/plain")
    assert float(lines['stockpot_http_requests_total{route="/v1/completions",status="200"}']) >= 1
    assert float(lines["stockpot_completion_tokens_total"]) >= 3
    assert float(lines['stockpot_time_to_first_token_seconds_bucket{le="+Inf"}']) >= 1


def test_the_schema_names_the_routes(server):
    status, found = server.get("/openapi.json")
    assert status == 200
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/embeddings"} <= set(found["paths"])


def test_the_llm_tool_talks_to_it(server, tmp_path):
    pytest.importorskip("llm")
    known = f"- model_id: pot\n  model_name: tiny\n  api_base: {server.address}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(known, encoding="utf-8")
    command = [sys.executable, "-m", "llm", "-m", "pot", "-o", "max_tokens", "12", "-o", "temperature", "0"]
    found = subprocess.run(
        [*command, "--key", "none", "the cat"],
        capture_output=True,
        text=True,
        env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
        check=True,
    )
    asked = {"messages": ASKED, "max_tokens": 12, "temperature": 0}
    text = server.post("/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"]
    assert found.stdout.strip() == text.strip()
