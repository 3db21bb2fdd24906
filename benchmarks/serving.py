"""Measure the server under streaming clients, beside llama.cpp's own server on the same file.

    .venv/bin/python benchmarks/serving.py [--clients 1 8 32 64] [--tokens 32] [--rounds 2] [--peer PYTHON] [--out FILE]

Both servers run with the same number of threads and the same weights (SmolLM2's GGUF file), one after the other in turn, so that
a busy machine hurts them alike. Every client opens a connection, asks for a greedy chat answer as a stream and reads it to the
end. Reported: tokens of all clients per second, seconds to the first token (median and 99th percentile), seconds between tokens
(the same), streams that failed or did not end with [DONE], and how the server's memory grows over ``--steady`` further requests.
PYTHON is an interpreter that has ``llama-cpp-python[server]``; without it only ours is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from stockpot.weights.known import pull

MODEL = "smollm2"
ASK = "Tell me a long story about a baker, a goose and the number {}."


@dataclass
class Stream:
    """What one client saw: when its pieces came, in seconds since it asked, and whether its stream was whole."""

    times: list[float] = field(default_factory=list)
    is_whole: bool = False


class Server:
    """One server in a process of its own."""

    def __init__(self, name: str, command: list[str], port: int, threads: int) -> None:
        self.name, self.port = name, port
        env = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5) as reply:
                    self.model = json.load(reply)["data"][0]["id"]
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} did not start: {' '.join(command)}") from None
                time.sleep(0.2)

    @property
    def mib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)


async def ask(server: Server, number: int, tokens: int) -> Stream:
    """Ask once and read the stream."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": ASK.format(number)}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    data, found = json.dumps(body).encode(), Stream()
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{server.port}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                found.is_whole = bool(found.times)
            elif line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                found.times.append(time.perf_counter() - began)
        writer.close()
    except (OSError, ValueError, KeyError, IndexError):
        found.is_whole = False
    return found


async def crowd(server: Server, clients: int, tokens: int, first: int) -> tuple[float, list[Stream]]:
    """Let clients ask at once; return the seconds until all had their answer, and what they saw."""
    began = time.perf_counter()
    found = await asyncio.gather(*(ask(server, first + number, tokens) for number in range(clients)))
    return time.perf_counter() - began, found


def row(name: str, clients: int, rounds: list[tuple[float, list[Stream]]]) -> str:
    """Write one line of the table."""
    rates = [sum(len(one.times) for one in seen) / seconds for seconds, seen in rounds]
    streams = [one for _, seen in rounds for one in seen]
    waits = [one.times[0] for one in streams if one.times]
    gaps = [
        later - sooner for one in streams for sooner, later in zip(one.times, one.times[1:], strict=False)
    ]
    lost = sum(not one.is_whole for one in streams)
    spread = f"{statistics.median(rates):.1f} ({min(rates):.1f}–{max(rates):.1f})"
    return f"| {clients} | {name} | {spread} | {both(waits)} | {both(gaps)} | {lost} of {len(streams)} |"


def both(values: list[float]) -> str:
    """Write the median and the 99th percentile."""
    if len(values) < 2:
        return " / ".join(f"{one:.3f}" for one in values) or "–"
    ordered = sorted(values)
    return f"{statistics.median(values):.3f} / {ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]:.3f}"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=None, help="answers that ours writes at once")
    parser.add_argument("--steady", type=int, default=300, help="requests over which memory is watched")
    parser.add_argument("--peer", help="a Python with llama-cpp-python[server]")
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    options = parser.parse_args()
    place = pull(MODEL)
    file = next(place.rglob("*.gguf")) if place.is_dir() else place
    port = free_port()
    slots = [] if options.slots is None else ["--set", f"slots={options.slots}"]
    command = [sys.executable, "-m", "stockpot", "serve", MODEL, "--port", str(port), *slots]
    servers = [Server("stockpot", command, port, options.threads)]
    if options.peer:
        port, threads = free_port(), str(options.threads)
        command = [options.peer, "-m", "llama_cpp.server", "--model", str(file), "--port", str(port)]
        command += ["--n_threads", threads, "--n_threads_batch", threads, "--n_ctx", "2048"]
        command += ["--interrupt_requests", "false"]  # by default a new request cuts off the one under way
        servers.append(Server("llama.cpp", command, port, options.threads))
    lines = [
        f"{platform.machine()}, {options.threads} threads, {file.name}, {options.tokens} tokens an answer, greedy,"
        f" {options.rounds} rounds in turn.",
        "",
        "| clients | server | tokens/s (spread) | to the first token, s (p50 / p99) | between tokens, s (p50 / p99) | lost |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    try:
        for server in servers:
            asyncio.run(crowd(server, 1, 8, 0))
        for clients in options.clients:
            seen: dict[str, list[tuple[float, list[Stream]]]] = {server.name: [] for server in servers}
            for turn in range(options.rounds):
                for server in servers:
                    seen[server.name].append(asyncio.run(crowd(server, clients, options.tokens, 1000 * turn)))
            lines += [row(name, clients, rounds) for name, rounds in seen.items()]
            print("\n".join(lines[-len(servers) :]), flush=True)
        lines += ["", steady(servers[0], options.steady, options.tokens)] if options.steady else []
    finally:
        for server in servers:
            server.stop()
    print("\n".join(lines))
    if options.out:
        with options.out.open("a", encoding="utf-8") as out:
            out.write("\n".join(lines) + "\n")


def steady(server: Server, requests: int, tokens: int) -> str:
    """Ask on with eight clients and say how memory grew; the first tenth may fill caches."""
    marks = []
    for number in range(0, requests + requests // 10, 8):
        asyncio.run(crowd(server, 8, tokens, 100_000 + number))
        marks.append(server.mib)
    start, end = marks[max(0, len(marks) // 11)], marks[-1]
    return (
        f"Memory of ours: {start:.0f} MiB, {end:.0f} MiB {requests} requests later ({end / start - 1:+.1%})."
    )


if __name__ == "__main__":
    main()
