"""Measure what clients that leave, do not read, or come for an hour cost the others.

    .venv/bin/python benchmarks/serving_abuse.py leave [--model smollm2] [--times 40]
    .venv/bin/python benchmarks/serving_abuse.py slow [--model smollm2] [--beside 12]
    .venv/bin/python benchmarks/serving_abuse.py hour [--model smollm2] [--minutes 60] [--pause 3]

``leave``: a client closes its connection amid a long stream; seconds until the server's gauge of open answers says none.
``slow``: a client asks for short answers beside clients that read their long streams, and beside as many that read nothing and
forty that send a request byte by byte. ``hour``: mixed use (chats, streams, clients that leave, answers of a form, vectors,
looking inside, documents added and forgotten, pairs drawn and voted on, bad requests); memory of the process by the minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

CHAT = "/v1/chat/completions"
STORY = [{"role": "user", "content": "Tell me a long story about a baker and a goose."}]
WORDS = (
    "the",
    "baker",
    "sold",
    "bread",
    "to",
    "a",
    "goose",
    "near",
    "river",
    "mill",
    "and",
    "asked",
    "when",
    "rain",
    "came",
)


class Client:
    """Plain requests to one server."""

    def __init__(self, port: int) -> None:
        self.port, self.counts = port, Counter[int]()

    def ask(self, method: str, path: str, body: object = None, kind: str = "application/json") -> object:
        """Return the JSON or text of an answer; a refusal counts as one."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, data, {"content-type": kind} if data else {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                status, told = reply.status, reply.read()
        except urllib.error.HTTPError as error:
            with error:
                status, told = error.code, error.read()
        self.counts[status] += 1
        with contextlib.suppress(ValueError):
            return json.loads(told)
        return told.decode()

    def gauge(self, name: str) -> float:
        lines = str(self.ask("GET", "/metrics")).splitlines()
        return next(float(one.split()[1]) for one in lines if one.startswith(f"stockpot_{name} "))

    def open(self, body: dict, *, buffer: int | None = None) -> socket.socket:
        """Send a request and return its connection, unread."""
        link = socket.socket()
        if buffer is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        link.connect(("127.0.0.1", self.port))
        data = json.dumps(body).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        link.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return link


@contextlib.contextmanager
def serving(model: str, folder: Path) -> Iterator[Client]:
    """Run `stockpot serve` until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "stockpot", "serve", model, "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--feedback", str(folder / "feedback.db")], stdout=subprocess.DEVNULL
    )
    client = Client(port)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                client.ask("GET", "/health")
                break
            time.sleep(0.2)
        yield client
    finally:
        server.terminate()
        server.wait()


def leave(client: Client, options: argparse.Namespace) -> None:
    """Close streams and time the places they free."""
    took = []
    for _ in range(options.times):
        link = client.open({"messages": STORY, "max_tokens": 1000, "stream": True, "temperature": 0.7})
        while b"data: " not in link.recv(65536):
            pass
        link.recv(65536)
        begun = time.monotonic()
        link.close()
        while client.gauge("open_answers") > 0:
            time.sleep(0.005)
        took.append(time.monotonic() - begun)
    took.sort()
    worst = f"the longest {took[-1]:.3f} s"
    print(
        f"{len(took)} streams closed: a place is free after {statistics.median(took):.3f} s (median), {worst}."
    )


def slow(client: Client, options: argparse.Namespace) -> None:
    """Time short answers beside long streams that are read, and beside some that are not."""
    print("| beside | seconds for 16 tokens (median of 8) | longest |\n|---|---:|---:|")
    for name in ("nobody", "readers", "nobody reads", "nobody"):
        stop, links, threads = threading.Event(), [], []
        body = {"messages": STORY, "max_tokens": 2000, "stream": True, "logprobs": True, "top_logprobs": 20}
        for number in range(options.beside if name != "nobody" else 0):
            body["messages"] = [{"role": "user", "content": f"{STORY[0]['content']} {number}"}]
            links.append(client.open(body | {"logit_bias": {"2": -100}}, buffer=4096))
            if name == "readers":
                threads.append(threading.Thread(target=drain, args=(links[-1], stop)))
                threads[-1].start()
        drips = [dripping(client.port) for _ in range(40)] if name == "nobody reads" else []
        time.sleep(2)
        took = []
        for number in range(8):
            for one in drips:
                one.sendall(b"x")
            begun = time.monotonic()
            asked = [{"role": "user", "content": f"Name a colour and the number {number}."}]
            client.ask("POST", CHAT, {"messages": asked, "max_tokens": 16, "temperature": 0})
            took.append(time.monotonic() - begun)
        words = {
            "readers": f"{len(links)} that read",
            "nobody reads": f"{len(links)} that do not, 40 that drip",
        }
        print(f"| {words.get(name, name)} | {statistics.median(took):.2f} | {max(took):.2f} |", flush=True)
        stop.set()
        for one in [*links, *drips]:
            one.close()
        for thread in threads:
            thread.join()
        while client.gauge("open_answers") > 0:
            time.sleep(0.05)


def drain(link: socket.socket, stop: threading.Event) -> None:
    link.settimeout(0.5)
    while not stop.is_set():
        try:
            if not link.recv(65536):
                return
        except TimeoutError:
            continue
        except OSError:
            return


def dripping(port: int) -> socket.socket:
    link = socket.create_connection(("127.0.0.1", port))
    link.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".encode())
    return link


# --- an hour of everything ---


def hour(client: Client, options: argparse.Namespace) -> None:
    """Use everything in turn and watch the memory."""
    dice, begun, done, marks = random.Random(0), time.monotonic(), 0, []
    uses = (chat, stream, leaves, schema, vectors, look, documents, votes, wrong)
    print("| minute | uses | memory, MiB |\n|---:|---:|---:|", flush=True)
    while (minute := (time.monotonic() - begun) / 60) < options.minutes:
        uses[done % len(uses)](client, dice)
        done += 1
        if len(marks) <= minute:
            marks.append(client.gauge("resident_memory_bytes") / 2**20)
            print(f"| {len(marks) - 1} | {done} | {marks[-1]:.0f} |", flush=True)
        time.sleep(options.pause)
    client.counts[200] -= len(marks)
    half = marks[len(marks) // 2 :]
    if len(marks) < 4:
        raise SystemExit("Memory takes at least four minutes to judge.")
    start = statistics.median(half[: len(half) // 2])
    end = statistics.median(half[len(half) // 2 :])
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(client.counts.items()))
    print(
        f"\n{done} uses; answers by status: {counts}. Open answers at the end: {client.gauge('open_answers'):.0f}."
    )
    print(
        f"Median memory of the third quarter {start:.0f} MiB, of the last {end:.0f} MiB ({end / start - 1:+.1%})."
    )


def words(dice: random.Random, count: int) -> str:
    return " ".join(dice.choices(WORDS, k=count))


def chat(client: Client, dice: random.Random) -> None:
    asked = [{"role": "user", "content": words(dice, dice.randint(3, 120))}]
    client.ask(
        "POST", CHAT, {"messages": asked, "max_tokens": 16, "n": dice.randint(1, 2), "documents": False}
    )


def stream(client: Client, dice: random.Random) -> None:
    asked = [{"role": "user", "content": words(dice, 10)}]
    client.ask(
        "POST",
        CHAT,
        {"messages": asked, "max_tokens": 24, "stream": True, "logprobs": True, "top_logprobs": 5},
    )


def leaves(client: Client, dice: random.Random) -> None:
    body = {"messages": [{"role": "user", "content": words(dice, 20)}], "max_tokens": 500, "stream": True}
    link = client.open(body)
    link.recv(1000)
    link.close()


def schema(client: Client, dice: random.Random) -> None:
    names = {word: {"type": "integer", "maximum": 9, "minimum": 0} for word in dice.sample(WORDS, 2)}
    shape = {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": shape}}
    client.ask("POST", CHAT, {"messages": STORY, "max_tokens": 40, "response_format": form})


def vectors(client: Client, dice: random.Random) -> None:
    client.ask("POST", "/v1/embeddings", {"input": [words(dice, 30) for _ in range(4)]})


def look(client: Client, dice: random.Random) -> None:
    told = client.ask("POST", "/v1/look", {"text": words(dice, dice.randint(10, 60))})
    ids = [one["id"] for one in told["tokens"]]  # type: ignore[index,call-overload]
    client.ask("POST", "/v1/look/token", {"ids": ids, "place": len(ids) - 1})
    client.ask("POST", "/v1/look/continue", {"ids": ids, "max_tokens": 4})


def documents(client: Client, dice: random.Random) -> None:
    text = "\n\n".join(words(dice, 60) for _ in range(5)).encode()
    told = client.ask("POST", "/v1/documents?name=notes.md", text, "application/octet-stream")
    asked = [{"role": "user", "content": words(dice, 6)}]
    client.ask("POST", CHAT, {"messages": asked, "max_tokens": 8})
    client.ask("DELETE", f"/v1/documents/{told['id']}")  # type: ignore[index,call-overload]


def votes(client: Client, dice: random.Random) -> None:
    client.ask("POST", "/v1/compare/prompts", {"text": words(dice, 8)})
    name = str(client.ask("GET", "/v1/models")["data"][0]["id"])  # type: ignore[index,call-overload]
    asked = {"rater": "one", "models": [name, name], "sampling": {"max_tokens": 12, "temperature": 1.0}}
    pair = client.ask("POST", "/v1/compare/next", asked)["pair"]  # type: ignore[index,call-overload]
    if pair:
        vote = {"id": uuid.uuid4().hex, "pair": pair["id"], "rater": "one", "choice": "left"}
        client.ask("POST", "/v1/compare/votes", vote)


def wrong(client: Client, dice: random.Random) -> None:
    client.ask("POST", CHAT, {"messages": [{"role": "king", "content": words(dice, 5)}]})
    client.ask("POST", CHAT, dice.randbytes(200))
    client.ask("POST", CHAT, {"messages": [{"role": "user", "content": words(dice, 9000)}]})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["leave", "slow", "hour"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--times", type=int, default=40)
    parser.add_argument("--beside", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--pause", type=float, default=3.0, help="seconds between two uses")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as folder, serving(options.model, Path(folder)) as client:
        {"leave": leave, "slow": slow, "hour": hour}[options.what](client, options)


if __name__ == "__main__":
    main()
