"""A vote becomes a better model in one sitting: votes through the page's own API, training by its button, old against new, blind.

The votes are cast by the village's exact taste, so that the truth of every comparison is known. Everything else goes the way a
person's clicks go: prompts are queued, pairs are drawn blind, votes are posted, the training job is started over HTTP, and the
win rate is the one the page shows, on prompts that were not voted on.

    python benchmarks/votes.py runs/village/sft --votes 100 400 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from stockpot.village import Village


class Page:
    """The page's API, as the page calls it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, method: str, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, method=method, headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            return json.load(reply)

    def vote(self, prompts: list[str], models: tuple[str, str], rater, name: str, tokens: int) -> list[int]:
        """Queue prompts and vote on a pair of each; return how many were left, tie, right."""
        lines = "\n".join(json.dumps({"prompt": one, "completion": ""}) for one in prompts)
        self.ask("POST", "/v1/compare/prompts", {"text": lines, "source": "village"})
        cast = [0, 0, 0]
        sampling = {"temperature": 1.0, "max_tokens": tokens}
        while True:
            asked = {"rater": name, "models": models, "sampling": sampling}
            pair = self.ask("POST", "/v1/compare/next", asked)["pair"]
            if pair is None:
                return cast
            question = pair["prompt"][-1]["content"]
            left, right = rater(question, pair["left"]), rater(question, pair["right"])
            if left != left:  # a prompt of the other split, which this rater does not know
                choice = "skip"
            else:
                choice = "left" if left > right else "right" if right > left else "tie"
                cast[("left", "tie", "right").index(choice)] += 1
            vote = {"id": uuid.uuid4().hex, "pair": pair["id"], "rater": name, "choice": choice}
            self.ask("POST", "/v1/compare/votes", vote)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def sitting(model: str, votes: int, seed: int, arguments: argparse.Namespace) -> dict:
    """Vote, train, compare; return what came of it."""
    village = Village(0)
    start = seed * arguments.most
    asked = [one["prompt"] for one in village.prompts("train", votes, start=start)]
    held_out = [
        one["prompt"] for one in village.prompts("val", arguments.judged, start=seed * arguments.judged)
    ]
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "stockpot", "serve", f"old={model}", "--port", str(port)]
        command += ["--feedback", str(Path(folder) / "feedback.db")]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            page = Page(f"http://127.0.0.1:{port}")
            wait_for(page)
            begun = time.monotonic()
            rate = village.rater("train", votes, start=start)
            cast = page.vote(asked, ("old", "old"), rate, "the village", arguments.tokens)
            voted = time.monotonic()
            settings = {
                "model": "old",
                "passes": arguments.passes,
                "lr": arguments.lr,
                "rank": arguments.rank,
                "beta": arguments.beta,
            }
            page.ask("POST", "/v1/training", settings)
            while (job := page.ask("GET", "/v1/training"))["state"] in ("running", "loading"):
                time.sleep(0.5)
            if job["state"] != "done":
                raise SystemExit(job["error"])
            trained = time.monotonic()
            judge = village.rater("val", arguments.judged, start=seed * arguments.judged)
            page.vote(held_out, ("old", job["name"]), judge, "the judge", arguments.tokens)
            summary = page.ask("GET", f"/v1/compare/summary?first=old&second={job['name']}")
        finally:
            server.terminate()
            server.wait()
    accuracy = job["curves"].get("val/accuracy", [[0, float("nan")]])[-1][1]
    return {
        "votes": votes, "seed": seed, "ties": cast[1], "voting_s": voted - begun, "training_s": trained - voted,
        "accuracy": accuracy, "wins": summary["wins"],
    }  # fmt: skip


def wait_for(page: Page) -> None:
    for _ in range(600):
        try:
            page.ask("GET", "/health")
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a village model that was instruction-tuned, such as runs/village/sft")
    parser.add_argument("--votes", type=int, nargs="+", default=[100, 400])
    parser.add_argument(
        "--judged", type=int, default=300, help="held-out prompts, each a comparison of old and new"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--passes", type=float, default=3.0)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    arguments = parser.parse_args()
    arguments.most = max(arguments.votes)
    print(
        "| votes | seed | ties | voting | training | held-out votes told apart | new model wins (95 % interval) |"
    )
    print("|---:|---:|---:|---:|---:|---:|---|")
    for votes in arguments.votes:
        for seed in range(arguments.seeds):
            one = sitting(arguments.model, votes, seed, arguments)
            wins, times = one["wins"], f"{one['voting_s']:.0f} s | {one['training_s']:.0f} s"
            print(
                f"| {votes} | {seed} | {one['ties']} | {times} | {one['accuracy']:.0%} | "
                f"{wins['value']:.1%} ({wins['low']:.1%}–{wins['high']:.1%}), n = {wins['n']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
