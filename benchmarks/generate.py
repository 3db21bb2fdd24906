"""Measure how fast tokens are written, against transformers on the same weights.

    .venv/bin/python benchmarks/generate.py [--sizes 1m 10m] [--rounds 5] [--tokens 128] [--out FILE]

A decoder with random weights is written to a folder; stockpot and transformers both open it and write greedily in turn, round
after round, so that a busy machine hurts them alike. Before that their ids are compared. Reported: median tokens per second
over the rounds, their spread, and the median of the rounds' ratios. transformers is asked as its documentation says:
``generate`` with its default cache, sixteen prompts of one length as one batch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, save

SIZES: dict[str, dict[str, int]] = {
    "1m": {"layers": 4, "dim": 128, "vocab_size": 2048},
    "3m": {"layers": 6, "dim": 192, "vocab_size": 4096},
    "10m": {"layers": 8, "dim": 288, "heads": 4, "vocab_size": 8192},
    "30m": {"layers": 10, "dim": 448, "vocab_size": 8192},
}
PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1m", "3m", "10m"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [
        f"{platform.machine()}, {options.threads} threads, torch {torch.__version__}, {options.rounds} rounds of"
        f" {options.tokens} tokens, float32, greedy.",
        "",
        "| parameters | streams | stockpot tokens/s (spread) | drawn, top-p 0.9 | transformers tokens/s (spread) | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            make_model(Path(folder), SIZES[size])
            lines += [row(Path(folder), streams, options) for streams in options.streams]
    report = "\n".join(lines) + "\n"
    print(report)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write("\n" + report)


def make_model(folder: Path, sizes: dict[str, int]) -> None:
    """Write a random decoder of the default kind."""
    torch.manual_seed(0)
    model = Transformer(decoder(context=512, zero_init=False, **sizes))
    save(folder, Bundle(model, Tokenizer.train(["the cat sat on the mat. "] * 20, vocab_size=300)))


def row(folder: Path, streams: int, options: argparse.Namespace) -> str:
    """Race the contestants and put the outcome into one line of a table."""
    bundle = load(folder)
    prompts = torch.randint(300, (streams, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    engine = Engine(bundle, slots=streams, prefix_mib=0)
    fixed: dict[str, Any] = {"max_tokens": options.tokens, "min_tokens": options.tokens}
    greedy, drawn = Sampling(temperature=0, **fixed), Sampling(top_p=0.9, seed=0, **fixed)
    theirs = peer(folder, prompts, options.tokens, sorted(bundle.stop_ids))
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: [one.ids for one in engine.generate(prompts, greedy)],
        "drawn": lambda: engine.generate(prompts, drawn),
    }
    if theirs is not None:
        contestants["theirs"] = theirs
        same = statistics.mean(
            a == b
            for x, y in zip(contestants["ours"](), theirs(), strict=True)
            for a, b in zip(x, y, strict=True)
        )
        print(f"{streams} streams: {same:.1%} of the greedy ids are equal")
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            speeds[name].append(streams * options.tokens / (time.perf_counter() - start))
    ratio = "–"
    if theirs is not None:
        ratio = (
            f"{statistics.median(a / b for a, b in zip(speeds['ours'], speeds['theirs'], strict=True)):.1f}×"
        )
    cells = [told(speeds[name]) if name in speeds else "–" for name in ("ours", "drawn", "theirs")]
    parameters = f"{bundle.model.config.parameters() / 1e6:.1f} M"
    return f"| {parameters} | {streams} | {' | '.join(cells)} | {ratio} |"


def told(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f})"


def peer(
    folder: Path, prompts: list[list[int]], tokens: int, stop_ids: list[int]
) -> Callable[[], Any] | None:
    """Return what makes transformers write the same, or None where it is not installed."""
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        print("transformers is not installed; only stockpot is measured")
        return None
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(prompts)

    def run() -> list[tuple[int, ...]]:
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=0,
            eos_token_id=stop_ids,
        )
        return [tuple(one) for one in found[:, PROMPT:].tolist()]

    return run


if __name__ == "__main__":
    main()
