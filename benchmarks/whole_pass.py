"""Measure what one call of the kernels for all layers is worth, beside the same model run in torch, layer by layer.

    .venv/bin/python benchmarks/whole_pass.py MODEL [MODEL …] [--dtypes float32 bfloat16 float16] [--answers 1 8 64] [--rounds 4]

Answers are drawn, all of the same length, by the same engine with 64 slots; within each round one way comes after the other.
The rate is that of all answers together, prompts included; the ratio is the median of the rounds', lowest and highest behind it.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import stockpot as sp
from stockpot.model.native_stack import layer_by_layer

PROMPT = "When was Mara born?"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--answers", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=40, help="of each answer")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| model | numbers | answers at once | one call, tokens/s | layer by layer | times (rounds) |")
    print("|---|---|---:|---:|---:|---|", flush=True)
    for model in args.models:
        for dtype in args.dtypes:
            engine = sp.Engine(sp.load(model, dtype=dtype), slots=64)
            for answers in args.answers:
                print(row(model, dtype, engine, answers, args.tokens, args.rounds), flush=True)


def row(model: str, dtype: str, engine: sp.Engine, answers: int, tokens: int, rounds: int) -> str:
    """Time both ways in turn and return their line of the table."""
    ours, usual = [], []
    rate(engine, answers, tokens)  # the first call may compile the kernels
    for _ in range(rounds):
        ours.append(rate(engine, answers, tokens))
        with layer_by_layer():
            usual.append(rate(engine, answers, tokens))
    times = [a / b for a, b in zip(ours, usual, strict=True)]
    return (
        f"| {model} | {dtype} | {answers} | {statistics.median(ours):,.0f} | {statistics.median(usual):,.0f} "
        f"| {statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f}) |"
    )


def rate(engine: sp.Engine, answers: int, tokens: int) -> float:
    """Return how many tokens a second were written."""
    sampling = sp.Sampling(max_tokens=tokens, min_tokens=tokens, temperature=1.0)
    start = time.perf_counter()
    found = engine.generate([PROMPT] * answers, sampling)
    return sum(len(one.ids) for one in found) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
