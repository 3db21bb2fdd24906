"""Answers that must follow a JSON schema do, whatever the model would rather write."""

from __future__ import annotations

import json
import sys

import pytest

from stockpot.errors import ConfigError, GenerationError
from stockpot.generate.constrain import Constraints
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
KINDS = {
    "greedy": {"temperature": 0},
    "drawn": {"seed": 3},
    "hot": {"seed": 4, "temperature": 3.0},
    "filtered": {"seed": 5, "top_k": 3},
    "guessing": {"temperature": 0, "lookup": 8},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_follows_its_schema(bundle, kind):
    answers = Engine(bundle).generate(
        ["the cat", "one two"], Sampling(json_schema=PERSON, max_tokens=80, n=2, **KINDS[kind])
    )
    for answer in answers:
        assert answer.finish_reason == "stop"
        jsonschema.validate(json.loads(answer.text), PERSON)


def test_the_answer_ends_with_the_json(bundle):
    answer = Engine(bundle).generate(["the cat"], Sampling(json_schema=PERSON, max_tokens=80))[0]
    assert answer.text.endswith("}")
    assert json.dumps(json.loads(answer.text), ensure_ascii=False) == answer.text  # no needless blanks


def test_what_could_go_on_ends_where_the_model_ends_it(bundle):
    bias = dict.fromkeys(bundle.stop_ids, 1000.0)
    settings = Sampling(json_schema={"type": "integer"}, temperature=0, max_tokens=30, logit_bias=bias)
    answer = Engine(bundle).generate(["the cat"], settings)[0]
    assert answer.finish_reason == "stop"
    assert str(int(answer.text)) == answer.text
    assert answer.ids[-1] in bundle.stop_ids


def test_requests_with_and_without_a_schema_run_together(bundle):
    free = Sampling(temperature=0, max_tokens=20)
    bound = Sampling(temperature=0, max_tokens=80, json_schema={"enum": ["yes", "no"]})
    wanted = Engine(bundle).generate(["one two"], free)[0].text
    engine = Engine(bundle)
    numbers = [engine.submit(Request("one two", free)), engine.submit(Request("one two", bound))]
    texts = dict.fromkeys(numbers, "")
    while engine.pending:
        for chunk in engine.step():
            texts[chunk.request] += chunk.text
    assert texts[numbers[0]] == wanted
    assert texts[numbers[1]] in ('"yes"', '"no"')


def test_the_own_constraint_of_a_request_holds_as_well(bundle):
    import torch

    allowed = torch.ones(bundle.model.config.vocab_size, dtype=torch.bool)
    allowed[[id for id in range(len(bundle.tokenizer)) if "y" in bundle.tokenizer.id_to_token(id)]] = False
    engine = Engine(bundle)
    request = Request("one", Sampling(json_schema={"enum": ["yes", "no"]}), allowed=lambda ids: allowed)
    engine.submit(request)
    text = ""
    while engine.pending:
        text += "".join(chunk.text for chunk in engine.step())
    assert text == '"no"'


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "nonsense"}, "cannot be followed"),
        ({"type": "object", "properties": 3}, "cannot be followed"),
        ({"enum": ["x" * 70_000]}, "at most 65,536"),
    ],
)
def test_a_bad_schema_is_refused_before_any_work(bundle, schema, words):
    engine = Engine(bundle)
    with pytest.raises(GenerationError, match=words):
        engine.submit(Request("the cat", Sampling(json_schema=schema)))
    assert engine.pending == 0


class GivesUp:
    """A matcher that reports an error after some tokens, as llguidance does when its fuel is used up."""

    def __init__(self, matcher, tokens, *, at_mask):
        self.matcher, self.left, self.at_mask, self.is_broken = matcher, tokens, at_mask, False

    def is_error(self):
        return self.is_broken

    def get_error(self):
        return "out of fuel"

    def is_stopped(self):
        return self.matcher.is_stopped()

    def compute_bitmask(self):
        self.is_broken = self.is_broken or (self.at_mask and self.left <= 0)
        return self.matcher.compute_bitmask()

    def consume_token(self, id):
        self.left -= 1
        self.is_broken = not self.at_mask and self.left <= 0
        return self.matcher.consume_token(id)


@pytest.mark.parametrize("at_mask", [True, False])
def test_a_schema_that_gives_up_harms_its_own_request_only(bundle, at_mask):
    wanted = Engine(bundle).generate(["one two"], Sampling(temperature=0, max_tokens=20))[0]
    engine = Engine(bundle)
    engine._constraints = Constraints(bundle)
    follow = engine._constraints.follow

    def giving_up(schema):
        constraint = follow(schema)
        constraint._matcher = GivesUp(constraint._matcher, 3, at_mask=at_mask)
        return constraint

    engine._constraints.follow = giving_up
    free = engine.submit(Request("one two", Sampling(temperature=0, max_tokens=20)))
    bound = engine.submit(Request("one two", Sampling(json_schema=PERSON, max_tokens=80)))
    chunks = {free: [], bound: []}
    while engine.pending:
        for chunk in engine.step():
            chunks[chunk.request].append(chunk)
    assert "".join(chunk.text for chunk in chunks[free]) == wanted.text
    assert chunks[bound][-1].finish_reason == "error"
    assert "out of fuel" in str(chunks[bound][-1].error)
    for ask in (engine.generate, lambda given, how: list(engine.stream(given[0], how))):
        with pytest.raises(GenerationError, match="out of fuel"):
            ask(["one two"], Sampling(json_schema=PERSON, max_tokens=80))
    assert engine.pending == 0


def test_a_schema_nested_too_deeply_is_refused(bundle):
    schema = {}
    for _ in range(100_000):
        schema = {"items": schema}
    with pytest.raises(GenerationError, match="deeply"):
        Engine(bundle).submit(Request("the cat", Sampling.model_construct(json_schema=schema)))


def test_without_the_package_the_user_is_told_what_to_install(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GenerationError, match="llguidance") as caught:
        Engine(bundle).generate(["the cat"], Sampling(json_schema=PERSON))
    assert "stockpot[constrain]" in str(caught.value)


def test_beams_do_not_know_schemas():
    with pytest.raises(ConfigError, match="json_schema"):
        Sampling(beams=2, json_schema=PERSON)
