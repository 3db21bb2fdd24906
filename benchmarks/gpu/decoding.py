"""Measure how fast one GPU writes: tokens a second for 1 and 64 answers at once, beside what reading the weights allows.

    python benchmarks/gpu/decoding.py [--sizes 124m 350m 1.5b] [--tokens 128] [--rounds 3] [--out FILE]

Models have random weights in bfloat16; answers are greedy, after a prompt of 128 tokens, through the engine that chat and server
use. The limit is the data sheet's memory bandwidth over the bytes that a step must read: the weights once, and every
answer's keys and values. Reading the prompt is measured apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from stockpot.bundle import Bundle
from stockpot.device import describe
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.machines import MACHINES
from stockpot.text.tokenizer import Tokenizer

SIZES: dict[str, dict[str, int]] = {
    "124m": {"layers": 12, "dim": 768, "heads": 12},
    "350m": {"layers": 24, "dim": 1024, "heads": 16},
    "1.5b": {"layers": 48, "dim": 1600, "heads": 25},
}
PROMPT = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device("cuda")
    card = torch.cuda.get_device_properties(device).name
    bandwidth = next((m.memory_gb_s * 1e9 for name, m in MACHINES.items() if name in card), None)
    figures: dict[str, Any] = {"machine": describe(device), "bandwidth": bandwidth, "rows": []}
    tokenizer = Tokenizer.train(["the cat sat on the mat. "] * 20, vocab_size=300)
    for size in options.sizes:
        torch.manual_seed(0)
        config = decoder(context=1024, vocab_size=50_304, zero_init=False, **SIZES[size])
        model = Transformer(config).to(device, torch.bfloat16).eval()
        bundle = Bundle(model, tokenizer)
        for streams, compiles in itertools.product(options.streams, (False, True)):
            row = {"size": size, "streams": streams, "compiled": compiles}
            row |= _row(bundle, streams, options, bandwidth, compiles=compiles)
            figures["rows"].append(row)
            print(json.dumps(row), flush=True)
            if options.out:
                options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")
        del bundle, model
        torch.cuda.empty_cache()


def _row(
    bundle: Bundle, streams: int, options: argparse.Namespace, bandwidth: float | None, *, compiles: bool
) -> dict[str, Any]:
    rates, reading = [], []
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
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def _seconds(engine: Engine, prompts: list[list[int]], tokens: int) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    made = engine.generate(prompts, Sampling(max_tokens=tokens, temperature=0.0))
    torch.cuda.synchronize()
    assert all(one.tokens <= tokens for one in made)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
