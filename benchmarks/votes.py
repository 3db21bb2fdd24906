"""A vote becomes a better model in one sitting: votes through the page's own API, training by its button, old against new, blind.

The votes are cast by the village's exact taste, so that the truth of every comparison is known. Everything else goes the way a
person's clicks go: prompts are queued, pairs are drawn blind, votes are posted, the training job is started over HTTP, and the
win rate is the one the page shows, on prompts that were not voted on.

    .venv/bin/python benchmarks/votes.py runs/village/sft --votes 100 400 --seeds 3
"""

from __future__ import annotations

import argparse
import contextlib
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

    def vote(self, prompts: list[str], models: tuple[str, str], rater, name: str, arguments) -> list[int]:
        """Queue prompts and vote on a pair of each; return how many were left, tie, right."""
        lines = "\n".join(json.dumps({"prompt": one, "completion": ""}) for one in prompts)
        self.ask("POST", "/v1/compare/prompts", {"text": lines, "source": "village"})
        cast = [0, 0, 0]
        sampling = {"temperature": arguments.temperature, "max_tokens": arguments.tokens}
        while True:
            asked = {"rater": name, "models": models, "sampling": sampling}
            told = self.ask("POST", "/v1/compare/next", asked)
            if (pair := told["pair"]) is None:
                if told["is_left"]:  # only equal answers came out for a while
                    continue
                return cast
            question = pair["prompt"][-1]["content"]
            left, right = rater(question, pair["left"]), rater(question, pair["right"])
            choice = "left" if left > right else "right" if right > left else "tie"
            cast[("left", "tie", "right").index(choice)] += 1
            vote = {"id": uuid.uuid4().hex, "pair": pair["id"], "rater": name, "choice": choice}
            self.ask("POST", "/v1/compare/votes", vote)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@contextlib.contextmanager
def serving(models: dict[str, str], feedback: Path):
    """Run `stockpot serve` until the block ends."""
    port = free_port()
    named = [f"{name}={ref}" for name, ref in models.items()]
    command = [
        sys.executable,
        "-m",
        "stockpot",
        "serve",
        *named,
        "--port",
        str(port),
        "--feedback",
        str(feedback),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        page = Page(f"http://127.0.0.1:{port}")
        wait_for(page)
        yield page
    finally:
        server.terminate()
        server.wait()


def sitting(model: str, votes: int, seed: int, arguments: argparse.Namespace) -> dict:
    """Vote, train, compare; return what came of it."""
    village = Village(0)
    start, judged = seed * max(arguments.votes), arguments.judged
    asked = [one["prompt"] for one in village.prompts("train", votes, start=start)]
    held_out = [one["prompt"] for one in village.prompts("val", judged, start=seed * judged)]
    with tempfile.TemporaryDirectory() as folder:
        with serving({"old": model}, Path(folder) / "feedback.db") as page:
            begun = time.monotonic()
            rate = village.rater("train", votes, start=start)
            cast = page.vote(asked, ("old", "old"), rate, "the village", arguments)
            voted = time.monotonic()
            names = ("passes", "lr", "rank", "beta")
            page.ask(
                "POST", "/v1/training", {"model": "old"} | {name: getattr(arguments, name) for name in names}
            )
            while (job := page.ask("GET", "/v1/training"))["state"] in ("running", "loading"):
                time.sleep(0.5)
            if job["state"] != "done":
                raise SystemExit(job["error"])
            trained = time.monotonic()
        new = Path(folder) / "feedback-files" / "trained" / job["name"]
        with serving(
            {"old": model, "new": str(new)}, Path(folder) / "judged.db"
        ) as page:  # held-out prompts alone
            judge = village.rater("val", judged, start=seed * judged)
            page.vote(held_out, ("old", "new"), judge, "the judge", arguments)
            wins = page.ask("GET", "/v1/compare/summary?first=old&second=new")["wins"]
    accuracy = job["curves"].get("val/accuracy", [[0, float("nan")]])[-1][1]
    times = {"voting_s": voted - begun, "training_s": trained - voted}
    return times | {"cast": cast, "accuracy": accuracy, "wins": wins}


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
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=48, help="longest answer")
    arguments = parser.parse_args()
    print(
        "| prompts | seed | votes (ties) | voting | training | held-out votes told apart | new model wins (95 % interval) |"
    )
    print("|---:|---:|---:|---:|---:|---:|---|")
    for votes in arguments.votes:
        for seed in range(arguments.seeds):
            one = sitting(arguments.model, votes, seed, arguments)
            wins, times = one["wins"], f"{one['voting_s']:.0f} s | {one['training_s']:.0f} s"
            print(
                f"| {votes} | {seed} | {sum(one['cast'])} ({one['cast'][1]}) | {times} | {one['accuracy']:.0%} | "
                f"{wins['value']:.1%} ({wins['low']:.1%}–{wins['high']:.1%}), n = {wins['n']} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
