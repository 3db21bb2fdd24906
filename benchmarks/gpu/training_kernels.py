"""Time our kernels of a training step one by one on a GPU, cut in several ways, beside what its memory can do.

    python benchmarks/gpu/training_kernels.py [--size 350m] [--rows 64] [--only WORD …] [--out FILE]

Each kernel runs over tensors as a micro-batch of the size has them. Reported: the median of twenty runs in microseconds, and
the bytes that have to be moved once over that time; ``copy`` moves as many and does nothing else. On a CPU (``--device cpu
--size tiny``, ``TRITON_INTERPRET=1``) times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from kept import Kept
from torch import Tensor
from training import SIZES, VOCABULARY

from stockpot.device import describe, synchronize
from stockpot.model.config import decoder
from stockpot.native import triton_heads, triton_loss, triton_muon, triton_norms, triton_swiglu

RUNS = 20
CUTS: dict[str, tuple[dict[str, int], ...]] = {
    "norm, back": ({"PROGRAMS": 512}, {"PROGRAMS": 2048}, {"PROGRAMS": 4096}),
    "heads, there": tuple({"TILE": t, "WARPS": w, "SHARE": s} for t, w, s in ((4096, 8, 8), (1024, 2, 32))),
    "heads, back": tuple(
        {"TILE": t, "WARPS": w, "SHARE": s}
        for t, w, s in (
            (2048, 4, 8),
            (2048, 4, 32),
            (4096, 8, 8),
            (4096, 4, 16),
            (1024, 4, 16),
            (1024, 2, 32),
        )
    ),
    "SwiGLU, back": ({"BLOCK": 512}, {"BLOCK": 2048}),
    "loss": tuple(
        {"MOST_THREADS": n, "TOGETHER": k}
        for n, k in ((1024, 8), (1024, 32), (512, 8), (512, 16), (512, 32), (256, 16), (256, 32))
    ),
    "Muon, momentum": ({"BLOCK": 2048}, {"BLOCK": 8192}),
    "Muon, weights": ({"BLOCK": 2048}, {"BLOCK": 8192}),
}


class Case(NamedTuple):
    """A kernel: what runs it, the bytes that it has to move, and the module whose constants cut it."""

    run: Callable[[], Any]
    bytes: int
    module: Any = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="350m")
    parser.add_argument("--rows", type=int, help="none: as the size says")
    parser.add_argument("--only", nargs="+", help="kernels whose names contain one of these words")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows = options.rows or SIZES[options.size]["rows"]
    kept = Kept(options.out, machine=describe(device))
    torch.manual_seed(0)
    with device:
        for name, case in cases(options.size, rows):
            if options.only and not any(word in name for word in options.only):
                continue
            for cut in ({}, *CUTS.get(name, ())):
                key = {"size": options.size, "rows": rows, "kernel": name, "cut": cut}
                if kept.lacks(**key):
                    kept.add(**key, **timed(case, cut, device))


def cases(size: str, rows: int) -> Iterator[tuple[str, Case]]:
    """Make a kernel's tensors when its turn has come."""
    sizes = {key: value for key, value in SIZES[size].items() if key not in ("rows", "step_rows")}
    config = decoder(vocab_size=VOCABULARY, **sizes).decoder
    tokens, dim, half = rows * sizes["context"], config.dim, torch.bfloat16
    states = torch.randn(3, tokens, dim).to(half)
    target = torch.empty_like(states)
    yield "copy", Case(lambda: target.copy_(states), 2 * moved(states))
    del target
    gain = torch.rand(dim)
    yield (
        "norm, back",
        Case(
            lambda: triton_norms.norm_slopes(*states, gain, 1e-6, half), moved(states) * 4 // 3, triton_norms
        ),
    )
    del states
    heads, kv_heads, width = config.heads, config.key_heads, config.head_width
    flat = torch.randn(rows, sizes["context"], (heads + 2 * kv_heads) * width).to(half)
    turned = torch.rand(1, sizes["context"], 1, width // 2)
    angles = torch.cat((turned.cos(), turned.cos(), -turned.sin(), turned.sin()), -1).to(half)
    gains = (torch.rand(width), torch.rand(width))
    slopes = [
        torch.randn(rows, sizes["context"], n, width).to(half).transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    ]
    both = moved(*slopes[:2])
    yield (
        "heads, there",
        Case(
            lambda: triton_heads.placed_heads(flat, *gains, angles, heads, kv_heads, 1e-6),
            2 * both,
            triton_heads,
        ),
    )
    yield (
        "heads, back",
        Case(
            lambda: triton_heads.head_slopes(flat, *gains, angles, *slopes, 1e-6),
            both + 2 * moved(flat),
            triton_heads,
        ),
    )
    del flat, slopes
    wide, slope = (
        torch.randn(tokens, 2 * config.ffn_width).to(half),
        torch.randn(tokens, config.ffn_width).to(half),
    )
    yield (
        "SwiGLU, back",
        Case(lambda: triton_swiglu.swiglu_slopes(wide, slope), 2 * moved(wide) + moved(slope), triton_swiglu),
    )
    del wide, slope
    count = min(tokens, (1 << 29) // VOCABULARY)
    logits, labels = torch.randn(count, VOCABULARY).to(half), torch.randint(0, VOCABULARY, (count,))
    yield (
        "loss",
        Case(
            lambda: triton_loss.judge(logits, labels, z_loss=0.0, needs_slope=True),
            2 * moved(logits),
            triton_loss,
        ),
    )
    del logits, labels
    weights = list(torch.randn(config.layers, config.ffn_width, dim).unbind())
    momenta, unit = (
        torch.randn(config.layers, config.ffn_width, dim),
        torch.empty(len(weights), *weights[0].shape, dtype=half),
    )
    yield (
        "Muon, momentum",
        Case(
            lambda: triton_muon.gather(weights, momenta, unit, keep=0.95, margin=1.02),
            5 * moved(momenta) + moved(unit),
            triton_muon,
        ),
    )
    yield (
        "Muon, weights",
        Case(
            lambda: triton_muon.apply(weights, unit, keep=1.0, step=0.0),
            2 * moved(momenta) + moved(unit),
            triton_muon,
        ),
    )


def moved(*tensors: Tensor) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def timed(case: Case, cut: dict[str, int], device: torch.device) -> dict[str, float]:
    with ExitStack() as stack:
        for name, value in cut.items():
            stack.enter_context(mock.patch.object(case.module, name, value))
        taken = [once(case.run, device) for _ in range(RUNS + 3 if device.type == "cuda" else 1)][-RUNS:]
    us = statistics.median(taken)
    return {"us": us, "spread": max(taken) / min(taken), "tb_per_s": case.bytes / us / 1e6}


def once(run: Callable[[], Any], device: torch.device) -> float:
    """Return microseconds of the card's own time."""
    if device.type != "cuda":
        began = time.perf_counter()
        run()
        synchronize(device)
        return (time.perf_counter() - began) * 1e6
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) * 1e3


if __name__ == "__main__":
    main()
