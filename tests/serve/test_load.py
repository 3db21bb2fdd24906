"""Many at once: the same answers as alone, turns, refusals instead of failures, and places freed by who leaves."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

import pytest

from stockpot.generate.request import Sampling
from stockpot.serve.service import Service
from stockpot.serve.settings import ServeConfig
from stockpot.text.chat import Message

CHAT = "/v1/chat/completions"
STEP_S = 0.02


def body(words="the cat", **more):
    return {"messages": [{"role": "user", "content": words}], "max_tokens": 8} | more


def text_of(found):
    return found["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def slow(make):
    """Make a model that takes its time for every token."""
    return make(delay_s=STEP_S, context=1024)


def pending(server):
    return server.service._worker.run("slow", lambda engine: engine.pending).result()


def test_bounds_and_compiling_reach_the_engine(slow, monkeypatch):
    given = {}
    monkeypatch.setattr("stockpot.serve.worker.Engine", lambda _, **how: given.update(how))
    config = ServeConfig(slots=3, cache_mib=7, prefix_mib=5, compiles=True)
    Service({}, config)._worker._new_engine(slow)
    assert given == {"slots": 3, "cache_mib": 7, "prefix_mib": 5, "compiles": True, "read_tokens": 512}


def test_answers_given_together_equal_those_given_alone(server):
    asked = [body(f"the cat {'sat on ' * (i % 7)}{i}", temperature=0, max_tokens=16) for i in range(24)]
    alone = [text_of(server.post(CHAT, one)[1]) for one in asked]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(lambda one: text_of(server.post(CHAT, one)[1]), asked))
    assert together == alone
    assert len(set(alone)) > 3


def test_too_many_are_refused_not_dropped(slow, run_server):
    with run_server({"slow": slow}, slots=2, queue=6) as one, ThreadPoolExecutor(48) as pool:
        replies = list(pool.map(lambda _: one.send("POST", CHAT, body()), range(48)))
        assert {status for status, _, _ in replies} == {200, 429}
        for status, headers, found in replies:
            if status == 429:
                assert 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(found)["error"]["code"] == "rate_limit_exceeded"
        assert sum(status == 200 for status, _, _ in replies) >= 8
        assert one.post(CHAT, body())[0] == 200


def test_a_client_with_one_request_does_not_wait_behind_one_with_many(slow, run_server):
    done = []

    def ask(server, key):
        server.post(CHAT, body(), {"Authorization": f"Bearer {key}"})
        done.append(key)

    with run_server({"slow": slow}, slots=1) as one, ThreadPoolExecutor(8) as pool:
        for number in range(6):
            pool.submit(ask, one, "many")
            one.until(lambda number=number: one.service.open_answers > number or done)
        pool.submit(ask, one, "one")
    assert done.index("one") <= 3


def unread(server, number):
    """Ask for a long stream, each event of some kilobytes, with little room for it."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    link.connect(("127.0.0.1", server.port))
    asked = body(f"the cat {number}", max_tokens=900, stream=True, logprobs=True, top_logprobs=20)
    data = json.dumps(asked | {"logit_bias": {"3": -100, "10": -100}}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return link


def seconds_beside(server, links, *, are_read):
    """Time short answers, the quickest of five, while long streams are read or left to pile up."""
    stop = threading.Event()

    def read(link):
        while not stop.is_set() and link.recv(65536):
            pass

    readers = [threading.Thread(target=read, args=(link,)) for link in links if are_read]
    for one in readers:
        one.start()
    server.until(lambda: server.service.metrics.tokens > 0)
    took = []
    for _ in range(5):
        begun = time.monotonic()
        assert server.post(CHAT, body())[0] == 200
        took.append(time.monotonic() - begun)
    stop.set()
    for one in readers:
        one.join()
    return min(took)


def test_clients_that_do_not_read_hold_up_others_no_more_than_those_that_do(slow, run_server):
    took = {}
    for are_read in (True, False):
        with run_server({"slow": slow}, slots=16) as one:
            links = [unread(one, number) for number in range(10)]
            took[are_read] = seconds_beside(one, links, are_read=are_read)
            for link in links:
                link.close()
    assert took[False] < 2 * took[True] + 0.3  # who is held up waits for `stall_s`, 20 seconds


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_frees_the_place(slow, run_server, stream):
    with run_server({"slow": slow}, slots=1) as one:
        link = socket.create_connection(("127.0.0.1", one.port))
        data = json.dumps(body(max_tokens=1000, stream=stream, logit_bias={"3": -100, "10": -100})).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        one.until(lambda: one.service.metrics.tokens > 2)
        assert pending(one) == 1
        begun = time.monotonic()
        link.close()
        one.until(lambda: one.service.open_answers == 0)  # a thousand tokens would take longer than that
        one.until(lambda: pending(one) == 0)
        assert time.monotonic() - begun < 1.0  # a step takes 20 ms
        assert one.post(CHAT, body())[0] == 200


def test_who_leaves_before_the_first_token_of_a_stream_leaves_no_error(slow, run_server, caplog):
    with run_server({"slow": slow}, slots=1) as one:
        asked = {"max_tokens": 1000, "stream": True, "logit_bias": {"3": -100, "10": -100}}
        data = json.dumps(body(**asked)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        first, second = (socket.create_connection(("127.0.0.1", one.port)) for _ in range(2))
        for number, link in enumerate((first, second), 1):
            link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            one.until(lambda wanted=number: one.service.open_answers == wanted)
        second.close()  # which still waits for its place
        one.until(lambda: one.service.metrics.under_way == 1)
        first.close()
        one.until(lambda: one.service.metrics.under_way == 0)
        assert 'status="500"' not in one.service.metrics.text({})
    assert not caplog.records


def test_a_stop_ends_streams_and_refuses_who_waits(slow, run_server):
    frames, waited = [], []
    with run_server({"slow": slow}, slots=1, grace_s=0.3) as one:
        link = HTTPConnection("127.0.0.1", one.port, timeout=60)
        asked = body(max_tokens=1000, stream=True, logit_bias={"3": -100, "10": -100})
        link.request("POST", CHAT, json.dumps(asked), {"Content-Type": "application/json"})
        reply = link.getresponse()
        waiting = threading.Thread(target=lambda: waited.append(one.post(CHAT, body())))
        waiting.start()
        one.until(lambda: one.service.open_answers == 2)
        one.server.handle_exit(15, None)
        frames = reply.read().decode().strip().split("\n\n")
        waiting.join()
        link.close()
    assert frames[-1] == "data: [DONE]"
    assert json.loads(frames[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert 3 < len(frames) < 1000
    assert waited[0][0] == 503 and waited[0][1]["error"]["code"] == "unavailable"


def test_a_step_that_fails_ends_its_answers_and_the_next_works(make, run_server):
    broken = make()
    fails = [True]

    def break_once(*_):
        if fails.pop() if fails else False:
            raise RuntimeError("no memory")

    broken.model.register_forward_pre_hook(break_once)
    with run_server({"broken": broken}) as one:
        status, found = one.post(CHAT, body())
        assert status == 500 and "memory" not in found["error"]["message"]
        assert one.post(CHAT, body())[0] == 200


def test_a_failure_on_the_way_is_told_in_the_stream(make, run_server):
    broken, calls = make(), []

    def break_later(*_):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("no memory")

    broken.model.register_forward_pre_hook(break_later)
    with run_server({"broken": broken}) as one:
        asked = body(stream=True, max_tokens=50, logit_bias={"3": -100, "10": -100})
        status, _, found = one.send("POST", CHAT, asked)
        assert status == 200 and found.endswith(b"data: [DONE]\n\n")
        assert json.loads(found.split(b"\n\n")[-3][6:])["error"]["type"] == "server_error"


def test_a_deadline_cuts_an_answer(slow, run_server):
    with run_server({"slow": slow}, timeout_s=0.5) as one:
        _, found = one.post(CHAT, body(max_tokens=1000, logit_bias={"3": -100, "10": -100}))
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] < 1000


def test_who_waits_too_long_is_told_to_come_again(slow, run_server):
    with run_server({"slow": slow}, slots=1, timeout_s=0.7) as one, ThreadPoolExecutor(3) as pool:
        asked = body(max_tokens=1000, logit_bias={"3": -100, "10": -100})
        found = sorted(status for status, _ in pool.map(lambda _: one.post(CHAT, asked), range(3)))
        assert found[0] == 200 and found[-1] == 503
        assert one.service.open_answers == 0


def test_the_longest_answer_is_bounded(server, bundle, run_server):
    with run_server({"tiny": bundle}, max_tokens=4) as one:
        _, found = one.post(CHAT, body(max_tokens=200))
        assert found["usage"]["completion_tokens"] <= 4
        asked = one.service.chat("tiny", [Message("user", "the cat")], Sampling(max_tokens=200))
        (written,) = asyncio.run_coroutine_threadsafe(asked, one.service._loop).result(60)  # by any route
        assert written.tokens <= 4


def test_models_come_and_go(server, make):
    server.service.add("more", make(seed=5))
    assert server.post(CHAT, body(model="more"))[0] == 200
    server.service.remove("more")
    assert server.post(CHAT, body(model="more"))[0] == 404
