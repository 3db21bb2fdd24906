"""Who is let in, and who is not: browsers that were tricked, strangers, and requests that are too large or too slow."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from stockpot.errors import ServeError
from stockpot.serve.guard import SECURITY
from stockpot.serve.running import new_token, prepare, serve, watchful
from stockpot.serve.settings import ServeConfig

BODY = {"messages": [{"role": "user", "content": "the cat"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"
CUT = "A client read nothing of its answer for 5 s; it was cut off."


def raw(server, data, *, ends=True):
    """Send bytes and return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as link:
        link.sendall(data)
        if ends:
            link.shutdown(socket.SHUT_WR)
        found = b""
        try:
            while piece := link.recv(65536):
                found += piece
        except ConnectionResetError:
            pass
        return found


def head(*lines):
    return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "LocalHost:8000", "localhost.", "[::1]:9", "[::1]"]
)
def test_our_own_names_are_known(server, host):
    assert server.get("/v1/models", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "me@localhost",
        "10.0.0.1",
        "",
        "[",
    ],
)
def test_other_names_are_refused_since_they_may_be_rebound(server, host):
    status, found = server.get("/v1/models", {"Host": host})
    assert (status, found["error"]["code"]) == (421, "unknown_host")


def test_names_can_be_allowed(bundle, run_server):
    with run_server({"tiny": bundle}, hosts=("pot.example",)) as one:
        assert one.get("/health", {"Host": "pot.example:99"})[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_requests_of_other_sites_are_refused(server, headers):
    assert server.post(CHAT, BODY, headers)[0] == 403
    assert server.get("/v1/models", headers)[0] == 403


def test_our_own_page_may_ask(server):
    host = f"localhost:{server.port}"
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    assert server.post(CHAT, BODY, headers)[0] == 200


def test_a_preflight_allows_nothing(server):
    asks = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = server.send("OPTIONS", CHAT, headers=asks)
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_only_json_is_taken(server, kind):
    status, found = server.post(CHAT, BODY, {"Content-Type": kind})
    assert (status, found["error"]["code"]) == (415, "unsupported_media_type")


def test_compressed_bodies_are_not_taken(server):
    assert server.post(CHAT, BODY, {"Content-Encoding": "gzip"})[0] == 415


def test_every_answer_protects_browsers(server):
    for path, headers in (("/health", {}), ("/nothing", {}), ("/v1/models", {"Host": "evil.example"})):
        _, found, _ = server.send("GET", path, headers=headers)
        assert SECURITY.items() <= found.items()
        assert "unsafe" not in found["content-security-policy"]
        assert "server" not in found


def test_a_token_is_asked_for(bundle, run_server):
    token = new_token()
    with run_server({"tiny": bundle}, token=token) as one:
        assert one.get("/health")[0] == 200
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": token},
            {"Authorization": f"Basic {token}"},
            {"Authorization": "Bearer \xe9"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/nothing"):
                status, found = one.get(path, headers)
                assert (status, found["error"]["code"]) == (401, "invalid_api_key")
        assert one.get(f"/v1/models?token={token}&api_key={token}")[0] == 401
        assert one.get("/v1/models", {"Authorization": f"Bearer {token}"})[0] == 200


def test_an_open_address_needs_a_token(bundle):
    with pytest.raises(ServeError, match="no token"):
        serve({"tiny": bundle}, ServeConfig(host="0.0.0.0", port=0))
    with pytest.raises(ServeError, match="at least 16"):
        serve({"tiny": bundle}, ServeConfig(port=0), token="short")


def test_a_port_in_use_is_told(server, bundle):
    with pytest.raises(ServeError, match=r"--port 0"):
        prepare({"tiny": bundle}, ServeConfig(port=server.port))


@pytest.mark.parametrize("length", ["2000000", "99999999999", "1" * 40])
def test_a_large_body_is_refused_before_it_is_sent(server, length):
    found = raw(server, head("Content-Type: application/json", f"Content-Length: {length}"), ends=False)
    assert b" 413 " in found.splitlines()[0] or b" 400 " in found.splitlines()[0]


def test_a_large_body_that_is_sent_anyway_gets_its_answer(server):
    status, _, body = server.send("POST", CHAT, b"x" * 3_000_000)
    assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")


def test_a_large_body_of_unknown_length_is_cut(server):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    start = head("Content-Type: application/json", "Transfer-Encoding: chunked")
    assert b" 413 " in raw(server, start + chunk * 20).splitlines()[0]


def test_a_large_head_is_refused(server):
    assert server.send("GET", "/v1/models", headers={"X-Large": "x" * 33_000})[0] in (400, 431)
    many = {f"X-{number}": "x" * 100 for number in range(90)} | {"X-Large": "x" * 26_000}
    assert server.send("GET", "/v1/models", headers=many)[0] in (400, 431)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
        b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        head("Content-Length: 5", "Transfer-Encoding: chunked", "Content-Type: application/json")
        + b"0\r\n\r\n",
        head("Content-Length: -1", "Content-Type: application/json"),
        head("Content-Length: 5", "Content-Length: 6", "Content-Type: application/json") + b"{}   ",
        head("Transfer-Encoding: chunked", "Content-Type: application/json") + b"zz\r\n",
        head("Content-Type: application/json", "Content-Length: 2") + b"{}" + b"\x00" * 100,
        head("Upgrade: websocket", "Connection: Upgrade", "Content-Type: application/json"),
    ],
)
def test_malformed_requests_get_an_error_and_harm_nobody(server, data):
    found = raw(server, data)
    assert not found or b" 4" in found.splitlines()[0][:13]
    assert b"root:" not in found
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"messages": 3}',
        b"[" * 200_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"max_tokens": ' + b"9" * 5_000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}',
        b'{"model": "\\udfff", "messages": [{"role": "user", "content": "x"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": "\\ud800", "max_tokens": 1}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    ],
)
def test_bad_bodies_are_bad_requests(server, body):
    status, headers, found = server.send("POST", CHAT, body, {"Content-Type": "application/json"})
    assert status in (400, 404, 200 if b"stop" in body else 400)
    assert headers["content-type"] == "application/json"
    assert status == 200 or json.loads(found)["error"]["message"]


HARD = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{i}}}b.*$"} for i in range(1, 40)]}
DEEP: dict = {"type": "string"}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}


@pytest.mark.parametrize("schema", [HARD, DEEP, {"type": "nonsense"}, {"$ref": "http://evil.example/x"}])
def test_a_schema_that_cannot_be_compiled_in_time_is_refused(server, schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, found = server.post(CHAT, BODY | {"response_format": form})
    assert (status, found["error"]["param"]) == (400, "response_format")
    assert server.post(CHAT, BODY)[0] == 200


def test_who_stalls_is_cut_off(bundle, run_server):
    with run_server({"tiny": bundle}, stall_s=0.5) as one:
        assert raw(one, b"", ends=False) == b""
        assert raw(one, b"GET /health HTTP/1.1\r\nHost: local", ends=False) == b""
        late = head("Content-Type: application/json", "Content-Length: 100")
        assert b" 408 " in raw(one, late + b'{"mess', ends=False).splitlines()[0]
        again = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea"
        assert b" 200 " in raw(one, again, ends=False).splitlines()[0]


class Clock:
    """An event loop's clock that rings when it is told to."""

    def __init__(self):
        self.calls = []

    def call_later(self, after, function, *values):
        self.calls.append((function, values))
        return self

    def cancel(self):
        self.calls.clear()

    def ring(self):
        calls, self.calls = self.calls, []
        for function, values in calls:
            function(*values)


class Link:
    """A connection that only remembers what waits in it, and whether it was cut."""

    is_cut, waits = False, 3000

    def get_extra_info(self, name):
        return None

    def set_write_buffer_limits(self, high):
        pass

    def get_write_buffer_size(self):
        return self.waits

    def abort(self):
        self.is_cut = True


@pytest.mark.parametrize(("taken", "is_cut"), [((0,), True), ((1000, 0), True), ((1000, 1000), False)])
def test_who_reads_nothing_of_its_answer_is_cut_off_and_who_reads_slowly_is_not(taken, is_cut, caplog):
    clock, link = Clock(), Link()
    settings = uvicorn.Config(lambda *_: None, log_config=None, ws="none")
    one = watchful(5.0)(settings, ServerState(), {}, clock)
    one.connection_made(link)
    clock.calls.clear()
    one.pause_writing()
    for count in taken:
        assert not link.is_cut
        link.waits -= count
        clock.ring()
    assert link.is_cut == is_cut
    assert [record.getMessage() for record in caplog.records] == [CUT] * is_cut
    one.resume_writing()
    assert not clock.calls


def test_an_answer_that_nobody_reads_leaves_no_connection_behind(bundle, tmp_path):
    """Its rest is too little to stop the writer, and the server closes the connection behind it."""
    (tmp_path / "file.txt").write_bytes(b"x" * 60_000)
    server, listening = prepare({"tiny": bundle}, ServeConfig(port=0, stall_s=0.2), static=tmp_path)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # its connections inherit that
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            link.connect(listening.getsockname())
            link.sendall(b"GET /file.txt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            for wanted in (True, False):
                end = time.monotonic() + 20
                while bool(server.server_state.connections) != wanted:
                    assert time.monotonic() < end, "the connection is still there"
                    time.sleep(0.01)
    finally:
        server.handle_exit(15, None)
        thread.join()
        listening.close()


def test_many_idle_and_slow_connections_hold_up_nobody(server):
    links = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(260)]
    try:
        for link in links[:60]:
            link.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert all(server.post(CHAT, BODY)[0] == 200 for _ in range(5))
    finally:
        for link in links:
            link.close()
