"""Two hosts, one of which dies: an elastic run must go on from its newest checkpoint, nothing repeated and nothing skipped.

Two network namespaces stand for the hosts, each with an address of its own and a cable between them (needs root and
iproute2). Both run torchrun's elastic agent and meet by address. When enough steps are done, every process of the second
host is killed with signal 9, behind a cut cable, so that nothing says goodbye. The first host's agent starts again with what is
left. The run's metrics are then held against those of an undisturbed run by one process.

    .venv/bin/python benchmarks/hosts.py --out /tmp/hosts --write benchmarks/results/hosts.json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HOSTS = {"pot-a": "10.77.0.1", "pot-b": "10.77.0.2"}
PORT = 29431


def ip(*words: str, check: bool = True) -> str:
    ran = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and ran.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {ran.stderr.strip()}")
    return ran.stdout


def build_network() -> None:
    """Make two hosts and a cable."""
    take_down_network()
    for name in HOSTS:
        ip("netns", "add", name)
    ip("link", "add", "pot0", "netns", "pot-a", "type", "veth", "peer", "name", "pot0", "netns", "pot-b")
    for name, address in HOSTS.items():
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "pot0")
        ip("-n", name, "link", "set", "pot0", "up")
        ip("-n", name, "link", "set", "lo", "up")


def take_down_network() -> None:
    for name in HOSTS:
        kill_host(name)
        ip("netns", "del", name, check=False)


def kill_host(name: str) -> None:
    for pid in ip("netns", "pids", name, check=False).split():
        os.kill(int(pid), signal.SIGKILL)


def start(name: str, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    first = next(iter(HOSTS.values()))
    torchrun = [
        *("-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{PORT}", "--rdzv-id", "pot"),
        *("--rdzv-conf", f"is_host={int(HOSTS[name] == first)},last_call_timeout=8,join_timeout=120"),
        *("--local-addr", HOSTS[name], "-m", "stockpot", *words),
    ]
    env = os.environ | {"GLOO_SOCKET_IFNAME": "pot0", "OMP_NUM_THREADS": "1"}
    command = ["ip", "netns", "exec", name, sys.executable, *torchrun]
    return subprocess.Popen(command, env=env, stdout=log.open("wb"), stderr=subprocess.STDOUT)


def rows(run: Path) -> list[dict[str, float]]:
    try:
        text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # being written
            continue
        if "train/loss" in row:
            found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--kill-after", type=int, default=25)
    parser.add_argument("--kind", default="fsdp", choices=["ddp", "fsdp"])
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True)
    python = [sys.executable, "-m", "stockpot"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    corpus, tokenizer = "village:0:2000", str(out / "tok")
    make = ["train-tokenizer", "--data", corpus, "--vocab-size", "512", "--out", tokenizer]
    subprocess.run([*python, *make], check=True, **quiet)
    sets = {
        "context": 64,
        "val_tokens": 2048,
        "loop.batch_tokens": 1024,
        "loop.log_every": 1,
        "loop.dtype": "float32",
    }
    sets |= {
        "loop.checkpoint_every": 10,
        "loop.parallel.timeout_s": 15,
        "loop.keep": 3,
        "loop.optimizer": "adamw",
        "loop.eps": 1e-3,
    }
    words = [
        "pretrain",
        "--data",
        corpus,
        "--tokenizer",
        tokenizer,
        "--size",
        "2",
        "--steps",
        str(options.steps),
    ]
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    subprocess.run([*python, *words, "--out", str(out / "alone")], check=True, **quiet)
    alone = rows(out / "alone")

    run = out / "run"
    words += ["--set", f"loop.parallel.kind={options.kind}", "--out", str(run), "--resume"]
    build_network()
    try:
        hosts = {name: start(name, words, out / f"{name}.log") for name in HOSTS}
        deadline = time.monotonic() + 180
        while len(rows(run)) < options.kill_after:
            if time.monotonic() > deadline or hosts["pot-a"].poll() is not None:
                raise SystemExit(f"the run did not start: see {out}/*.log")
            time.sleep(0.05)
        killed_at = int(rows(run)[-1]["step"])
        started = time.monotonic()
        ip("-n", "pot-b", "link", "set", "pot0", "down")  # no farewell reaches the first host
        kill_host("pot-b")
        before = len(rows(run))
        while True:
            now = rows(run)
            if (
                len(now) < before
                or (now and now[-1]["step"] > killed_at + 10)
                or hosts["pot-a"].poll() is not None
            ):
                break
            before = len(now)
            time.sleep(0.05)
        pause_s = time.monotonic() - started
        code = hosts["pot-a"].wait(timeout=300)
    finally:
        take_down_network()

    found = rows(run)
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    steps = [int(row["step"]) for row in found]
    errors = [abs(a["train/loss"] / b["train/loss"] - 1) for a, b in zip(found, alone, strict=False)]
    verdict = {
        "kind": options.kind,
        "exit code of the first host": code,
        "steps": options.steps,
        "host killed at step": killed_at,
        "went on from step": [one["step"] for one in manifest.get("resumed", [])],
        "seconds until training went on": round(pause_s, 1),
        "every step once and in order": steps == list(range(1, options.steps + 1)),
        "tokens as undisturbed": [r["tokens"] for r in found] == [r["tokens"] for r in alone],
        "largest relative difference of a step's loss": max(errors),
        "status": manifest["status"],
    }
    print(json.dumps(verdict, indent=1))
    if options.write:
        options.write.write_text(json.dumps(verdict, indent=1) + "\n", encoding="utf-8")
    good = verdict["every step once and in order"] and verdict["tokens as undisturbed"] and max(errors) < 1e-4
    raise SystemExit(0 if good and code == 0 else 1)


if __name__ == "__main__":
    main()
