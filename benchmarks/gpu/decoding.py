"""Measure how fast one GPU writes: tokens a second for 1 and 64 answers at once, beside what reading the weights allows.

    python benchmarks/gpu/decoding.py [--sizes 1.5b 124m 350m] [--tokens 128] [--rounds 3] [--out FILE]

Models have random weights in bfloat16; answers are greedy, after a prompt of 128 tokens, through the engine that chat and
server use. The limit is the data sheet's memory bandwidth over the bytes that a step must read: the weights once, and every
answer's keys and values. Reading the prompt is measured apart. What FILE holds already is not measured again.
``--device cpu --sizes tiny`` runs the script, not more.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from kept import Kept

from stockpot.bundle import Bundle
from stockpot.device import describe, synchronize
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.machines import MACHINES
from stockpot.text.tokenizer import Tokenizer

SIZES: dict[str, dict[str, int]] = {
    "1.5b": {"layers": 48, "dim": 1600, "heads": 25},
    "124m": {"layers": 12, "dim": 768, "heads": 12},
    "350m": {"layers": 24, "dim": 1024, "heads": 16},
    "tiny": {"layers": 2, "dim": 64, "heads": 4},
}
PROMPT = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES)[:3])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compiled", nargs="+", type=int, default=[1, 0], help="1: layers compiled · 0: not")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    card = torch.cuda.get_device_properties(device).name if device.type == "cuda" else "cpu"
    bandwidth = next((m.memory_gb_s * 1e9 for name, m in MACHINES.items() if name in card), None)
    kept = Kept(options.out, machine=describe(device), bandwidth=bandwidth)
    tokenizer = Tokenizer.train(["the cat sat on the mat. "] * 20, vocab_size=300)
    bundles: dict[str, Bundle] = {}
    for compiles, size, streams in itertools.product(options.compiled, options.sizes, options.streams):
        if not kept.lacks(size=size, streams=streams, compiled=bool(compiles)):
            continue
        if size not in bundles:
            torch.manual_seed(0)
            config = decoder(context=1024, vocab_size=50_304, zero_init=False, **SIZES[size])
            with device:
                bundles[size] = Bundle(Transformer(config).to(torch.bfloat16).eval(), tokenizer)
        try:
            kept.add(**_row(bundles[size], streams, options, bandwidth, compiles=bool(compiles)))
        except Exception as error:  # noqa: BLE001 - what cannot run is a row of the table
            kept.add(error=f"{type(error).__name__}: {error}"[-400:])


def _row(
    bundle: Bundle,
    streams: int,
    options: argparse.Namespace,
    bandwidth: float | None,
    *,
    compiles: bool,
) -> dict[str, Any]:
    rates, reading = [], []
    began = time.perf_counter()
    engine = Engine(bundle, slots=streams, prefix_mib=0, compiles=compiles)
    for number in range(options.rounds + 1):
        prompts = [[(7 * i + j + number) % 290 for j in range(PROMPT)] for i in range(streams)]
        first = _seconds(engine, prompts, 1)
        whole = _seconds(engine, prompts, options.tokens)
        if number:  # the first prepares kernels and records steps
            reading.append(streams * PROMPT / first)
            rates.append(streams * (options.tokens - 1) / max(whole - first, 1e-9))
    stack = bundle.model.config.main
    weights = 2 * bundle.model.config.parameters()
    kept = 2 * 2 * stack.layers * stack.key_heads * stack.head_width * (PROMPT + options.tokens / 2)
    limit = None if bandwidth is None else streams * bandwidth / (weights + streams * kept)
    rate = statistics.median(rates)
    return {
        "tokens_per_s": rate,
        "limit": limit,
        "share": None if limit is None else rate / limit,
        "prompt_tokens_per_s": statistics.median(reading),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30
        if bundle.model.device.type == "cuda"
        else None,
        "seconds": time.perf_counter() - began,
    }


def _seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    synchronize(engine.bundle.model.device)
    began = time.perf_counter()
    made = engine.generate(prompts, Sampling(max_tokens=tokens, temperature=0.0))
    synchronize(engine.bundle.model.device)
    assert all(one.tokens <= tokens for one in made)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
