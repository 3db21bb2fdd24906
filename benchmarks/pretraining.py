"""Measure pretraining speed against nanoGPT: the same architecture, data and optimizer, on this machine's CPU.

    .venv/bin/python benchmarks/pretraining.py --nanogpt PATH [--sizes 1m 10m 30m] [--rounds 6] [--out FILE]

PATH is a clone of github.com/karpathy/nanoGPT; without it only our own speed is measured. Every contestant is a process of
its own; they train in turn, a few seconds each, round after round, so that a busy machine hurts them alike. `--clock cpu`
counts the seconds of the processor that a step takes, on one thread, in place of those on the wall: for a machine that
others use at the same time. Ours runs through
`stockpot.train.loop.fit`. nanoGPT's loop is that of its train.py for a CPU: AdamW, clipping, the loss read each step.
Reported: median step, spread over the rounds, ratio to the median of each peer, and the share of the measured limit of
matrix products in the machine's faster number type (operations counted as in Chowdhery et al. 2022, appendix B). The
bfloat16 peer, and ours in float32, take part only where the processor multiplies bfloat16 faster than float32.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import math
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from stockpot.data.batch import Batch
from stockpot.device import describe, has_fast_bf16, peak_flops, pick_dtype
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss

SIZES: dict[str, dict[str, int]] = {
    "1m": {"layers": 4, "dim": 128, "heads": 4, "context": 64, "vocab_size": 65, "batch": 12},
    "10m": {"layers": 6, "dim": 384, "heads": 6, "context": 256, "vocab_size": 65, "batch": 8},
    "30m": {"layers": 8, "dim": 512, "heads": 8, "context": 256, "vocab_size": 8192, "batch": 8},
}
GPT = {"position": "learned", "norm": "layer", "qk_norm": None, "ffn": "gelu", "kv_heads": None}
OURS, OWN, FLOAT32 = "stockpot", "stockpot, its default architecture and optimizer", "stockpot float32"
CPU = torch.device("cpu")
PEERS: dict[str, dict[str, bool]] = {"nanoGPT (as published)": {}, "nanoGPT compiled": {"compiled": True}}
NAMES = [OURS, OWN]
if has_fast_bf16(CPU):
    NAMES.append(FLOAT32)
    PEERS |= {"nanoGPT bf16": {"bf16": True}, "nanoGPT bf16, compiled": {"bf16": True, "compiled": True}}
LR, BETAS, DECAY = 1e-3, (0.9, 0.99), 0.1  # nanoGPT's config/train_shakespeare_char.py
SECONDS = 2.5  # of each contestant in a round
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    options = parser.parse_args()
    if options.clock == "cpu":
        options.threads = 1
    torch.set_num_threads(options.threads)
    report = (
        f"{datetime.date.today()}, {describe(CPU)['processor']}, {options.threads} threads, torch {torch.__version__},"
        f" {_name(pick_dtype(CPU))} is the faster type, {options.rounds} rounds, {options.clock} seconds.\n"
    )
    for size in options.sizes:
        report += "\n" + _table(size, *_race(size, options))
    print(report)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(report)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- the race ---


def _race(size: str, options: argparse.Namespace) -> tuple[dict[str, list[list[float]]], list[float]]:
    """Let all contestants train in turn; return the seconds of their steps by round, and the limit by round."""
    names = NAMES + (list(PEERS) if options.nanogpt else [])
    if options.only:
        names = [name for name in names if any(word in name for word in options.only)]
    context = mp.get_context("spawn")
    lines: dict[str, Connection] = {}
    workers = []
    for name in names:
        lines[name], end = context.Pipe()
        arguments = (end, name, SIZES[size], options.nanogpt, options.threads, options.clock)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
        workers[-1].start()
        lines[name].recv()  # warm
        print(f"{size}: {name} is warm", file=sys.stderr, flush=True)
    seconds: dict[str, list[list[float]]] = {name: [] for name in names}
    limits = []
    for _ in range(options.rounds):
        peak_flops.cache_clear()
        limits.append(peak_flops(CPU, pick_dtype(CPU)))
        for name, line in lines.items():
            line.send(SECONDS)
            seconds[name].append(line.recv())
        print(f"{size}: round {len(limits)} of {options.rounds}", file=sys.stderr, flush=True)
    for worker in workers:
        worker.kill()
    return seconds, limits


def _work(
    line: Connection, name: str, sizes: dict[str, int], nanogpt: Path | None, threads: int, clock: str
) -> None:
    """Train in a process of its own whenever the line asks for some seconds of it."""
    now = CLOCKS[clock]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name in PEERS:
        assert nanogpt is not None
        steps = _nanogpt(sizes, nanogpt, **PEERS[name])
        _deal(line, lambda: next(steps), now)
    else:
        config = LoopConfig(steps=10**9, batch_tokens=sizes["batch"] * sizes["context"])
        choices: dict[str, Any] = {}
        if name != OWN:
            choices = GPT
            config = config.model_copy(
                update={
                    "dtype": "float32" if name == FLOAT32 else None,
                    "optimizer": "adamw",
                    "lr": LR,
                    "beta1": BETAS[0],
                    "beta2": BETAS[1],
                    "eps": 1e-8,
                    "weight_decay": DECAY,
                }
            )
        stack = {key: value for key, value in sizes.items() if key != "batch"}
        fit(Transformer(decoder(**stack, **choices)), _Batches(line, sizes, now), next_token_loss, config)


def _deal(line: Connection, step: Callable[[], object], now: Callable[[], float]) -> None:
    """Warm up, then step for as long as the line asks and send the seconds of each step."""
    for _ in range(3):
        step()
    line.send(True)
    while True:
        left, taken = line.recv(), []
        while sum(taken) < left or len(taken) < 2:
            began = now()
            step()
            taken.append(now() - began)
        line.send(taken)


class _Batches:
    """Batches for `fit`; what passes between asking for one and asking for the next is a step."""

    def __init__(self, line: Connection, sizes: dict[str, int], now: Callable[[], float]) -> None:
        self.line, self.sizes, self.now = line, sizes, now

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(3):
            yield self._batch()
        self.line.send(True)
        while True:
            left, taken = self.line.recv(), []
            began = self.now()
            while sum(taken) < left or len(taken) < 2:
                yield self._batch()
                ended = self.now()
                taken.append(ended - began)
                began = ended
            self.line.send(taken)

    def _batch(self) -> Batch:
        shape = (self.sizes["batch"], self.sizes["context"])
        return Batch(*(torch.randint(self.sizes["vocab_size"], shape) for _ in range(2)))


def _nanogpt(
    sizes: dict[str, int], folder: Path, *, compiled: bool = False, bf16: bool = False
) -> Iterator[float]:
    """Take steps as nanoGPT's train.py does on a CPU."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    names = {
        "block_size": "context",
        "vocab_size": "vocab_size",
        "n_layer": "layers",
        "n_head": "heads",
        "n_embd": "dim",
    }
    with contextlib.redirect_stdout(io.StringIO()):
        gpt = nanogpt.GPT(
            nanogpt.GPTConfig(**{ours: sizes[own] for ours, own in names.items()}, dropout=0.0, bias=False)
        )
        optimizer = gpt.configure_optimizers(DECAY, LR, BETAS, "cpu")
    run = torch.compile(gpt) if compiled else gpt
    shape = (sizes["batch"], sizes["context"])
    while True:
        ids, labels = (torch.randint(sizes["vocab_size"], shape) for _ in range(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            _, loss = run(ids, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield loss.item()


# --- the report ---


def _table(size: str, seconds: dict[str, list[list[float]]], limits: list[float]) -> str:
    sizes = SIZES[size]
    tokens = sizes["batch"] * sizes["context"]
    stack = {key: value for key, value in sizes.items() if key != "batch"}
    config = decoder(**stack, **GPT)
    limit = statistics.median(limits)
    lines = [
        f"### {size}: {config.parameters() / 1e6:.1f}M parameters, {sizes}; limit {limit / 1e9:.0f} GFLOP/s\n",
        "| | tokens/s | step ms, median | rounds: lowest–highest | share of the limit | ours is |",
        "|---|---|---|---|---|---|",
    ]
    ours = [statistics.median(round_) for round_ in seconds.get(OURS, [])]
    for name, rounds in seconds.items():
        medians = [statistics.median(round_) for round_ in rounds]
        middle = statistics.median(medians)
        flops = (decoder(**stack) if name == OWN else config).flops_per_token() * tokens / middle
        ratio = "–"
        if ours and name != OURS:
            ratios = [theirs / own for theirs, own in zip(medians, ours, strict=True)]
            ratio = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(
            f"| {name} | {tokens / middle:,.0f} | {middle * 1e3:.1f} | {min(medians) * 1e3:.1f}–{max(medians) * 1e3:.1f} "
            f"| {flops / limit:.0%} | {ratio} |"
        )
    spread = statistics.stdev(limits) / limit if len(limits) > 1 else math.nan
    return "\n".join(lines) + f"\n\nThe limit varied by {spread:.0%} (standard deviation) between rounds.\n"


if __name__ == "__main__":
    main()
