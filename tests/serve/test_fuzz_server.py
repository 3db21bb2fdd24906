"""Requests that nobody would write on purpose: never a failure of the server, always an error that can be read."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from copy import deepcopy
from http.client import HTTPConnection, RemoteDisconnected

import pytest
from pages import page_server

SEEDS = [
    (
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "the cat"}]},
            ],
            "max_tokens": 3,
            "temperature": 0.7,
            "top_p": 0.9,
            "n": 1,
            "stop": ["x"],
            "seed": 1,
            "logprobs": True,
            "top_logprobs": 2,
            "logit_bias": {"5": 1.0},
            "response_format": {"type": "json_object"},
            "stream": False,
            "stream_options": {"include_usage": True},
            "presence_penalty": 0.1,
        },
    ),
    ("/v1/completions", {"prompt": ["the cat", "a dog"], "max_tokens": 2, "echo": True, "best_of": 1}),
    ("/v1/completions", {"prompt": [5, 6, 7], "logprobs": 1, "max_tokens": 2, "suffix": None}),
    ("/v1/embeddings", {"model": "vectors", "input": ["the cat", "x"], "encoding_format": "base64"}),
]
ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"), "", " ",
    "x", "\x00", "\ud800", "😀" * 50, "x" * 5000, "<|end|>", "null", "user", [], [[]], {}, {"": ""}, {"type": "text"},
    [1, "a", None], ["x"] * 70, [[1, 2], [3]], {"type": "json_schema", "json_schema": {"schema": {"pattern": "("}}},
]  # fmt: skip


def places(value, path=()):
    """Yield the path of every value inside."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def mutated(dice, body):
    """Return a body with a few values replaced, taken out or added, or its bytes damaged."""
    value = deepcopy(body)
    for _ in range(dice.randint(1, 3)):
        path = dice.choice([one for one in places(value) if one])
        place = value
        for key in path[:-1]:
            place = place[key]
        kind = dice.random()
        if kind < 0.6:
            place[path[-1]] = deepcopy(dice.choice(ODD))
        elif kind < 0.8:
            del place[path[-1]]
        elif isinstance(place, dict):
            place[dice.choice(["extra", "model", "tools", "user", "\ud800"])] = deepcopy(dice.choice(ODD))
        if not value:
            break
    data = bytearray(json.dumps(value).encode())
    if dice.random() < 0.15:
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(data))
            data[at : at + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
            if not data:
                break
    return bytes(data)


def ask(link, path, data):
    link.request("POST", path, data, {"Content-Type": "application/json"})
    reply = link.getresponse()
    return reply.status, reply.read()


def fuzz(server, count, seed):
    dice, link = random.Random(seed), HTTPConnection("127.0.0.1", server.port, timeout=120)
    counts: dict[int, int] = {}
    breaks = 0
    for number in range(count):
        path, body = dice.choice(SEEDS)
        data = mutated(dice, body)
        try:
            status, found = ask(link, path, data)
        except (ConnectionError, RemoteDisconnected):  # a machine that slept lets connections go
            breaks += 1
            link.close()
            status, found = ask(link, path, data)
        counts[status] = counts.get(status, 0) + 1
        assert status < 500, (number, path, data, found)
        if status != 200:
            assert json.loads(found)["error"]["message"], (number, path, data, found)
        elif not found.startswith(b"data: "):
            json.loads(found, parse_constant=pytest.fail)  # neither NaN nor infinity
    link.close()
    assert breaks < 5
    return counts


@pytest.fixture(scope="module")
def bounded(bundle, make, run_server):
    with run_server({"tiny": bundle, "vectors": make("encoder")}, max_tokens=4) as one:
        yield one


def test_mutated_requests_are_answered_or_refused(bounded):
    counts = fuzz(bounded, 120, seed=0)
    assert counts[200] > 5 and counts[400] > 25


@pytest.mark.slow
def test_ten_thousand_mutated_requests(bounded):
    counts = fuzz(bounded, 10_000, seed=1)
    assert set(counts) <= {200, 400, 404}
    assert bounded.get("/health")[0] == 200


def schemathesis(address, folder):
    """Let schemathesis ask every route of a server's own schema for what it finds odd."""
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json", "--checks", checks]
    command += ["--max-examples", "100", "--seed", "1"]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)  # it leaves a folder there


@pytest.mark.slow
def test_schemathesis_finds_nothing(bounded, tmp_path):
    found = schemathesis(bounded.address, tmp_path)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]


@pytest.mark.slow
def test_schemathesis_finds_nothing_in_the_pages_routes(make, tmp_path):
    models = {"tiny": make(seed=1), "reads": make("encoder")}
    with page_server(models, tmp_path, refs={"tiny": str(tmp_path / "tiny")}) as one:
        found = schemathesis(one.address, tmp_path)
        assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
        assert one.get("/health") == {"status": "ok"}
