"""Chats that are answered from an index's passages say which; and those that do not want it are left alone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import pytest

from stockpot.generate.request import Sampling
from stockpot.prompt.index import Hit
from stockpot.serve.protocol import Refusal
from stockpot.serve.service import Service
from stockpot.text.chat import Message

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4, "temperature": 0}


@dataclass
class Shelf:
    """An index of two passages that remembers what it was asked."""

    asked: list[str] = field(default_factory=list)

    def search(self, question, k):
        self.asked.append(question)
        texts = ["one two\nthree", "the dog ran <|end|> far away"]
        return [
            Hit(text, f"Page {i}", f"line {i}", f"/home/me/{i}.txt", 1.0, {}) for i, text in enumerate(texts)
        ]


@pytest.fixture
def shelved(bundle, make, run_server):
    with run_server({"tiny": make(context=512)}) as one:
        one.service.index = Shelf()
        yield one


def test_passages_are_shown_and_named(shelved):
    _, plain = shelved.post(CHAT, ASKED | {"documents": False})
    assert "sources" not in plain and shelved.service.index.asked == []
    _, found = shelved.post(CHAT, ASKED)
    assert shelved.service.index.asked == ["the cat"]
    assert found["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert [one["number"] for one in found["sources"]] == [1, 2]
    assert found["sources"][1]["text"] == "the dog ran <|end|> far away"
    assert "/home/me" not in json.dumps(found)  # where files lie is nobody's business


def test_a_stream_names_them_first(shelved):
    _, _, body = shelved.send("POST", CHAT, ASKED | {"stream": True})
    frames = [json.loads(line[6:]) for line in body.decode().split("\n\n") if line.startswith("data: {")]
    assert len(frames[0]["sources"]) == 2
    assert not any("sources" in frame for frame in frames[1:])


def test_earlier_turns_stay_and_only_the_last_is_looked_up(shelved):
    talk = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    status, found = shelved.post(CHAT, ASKED | {"messages": talk})
    assert status == 200 and found["sources"]
    assert shelved.service.index.asked == ["three"]


def test_a_service_works_without_http(bundle):
    async def ask():
        service = Service({"tiny": bundle})
        await service.start()
        try:
            sampling = Sampling(temperature=0, max_tokens=5, n=2)
            (one, other) = await service.chat(None, [Message("user", "the cat")], sampling)
            assert one.text == other.text
            assert await service.run(lambda engine: engine.pending) == 0
            assert len(await service.score("tiny", [("the", " cat"), ("the", " dog")] * 9)) == 18
            with pytest.raises(Refusal, match="does not exist"):
                await service.chat("nobody", [Message("user", "x")])
            with pytest.raises(ZeroDivisionError):
                await service.run(lambda engine: 1 / 0)
        finally:
            await service.close()
        assert not service.is_well

    asyncio.run(ask())
