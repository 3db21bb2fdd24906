"""Try ways of running a written token's layers on one GPU, and say which is right and how long each takes.

    python benchmarks/gpu/decode_variants.py [--size 1.5b] [--rows 1 64] [--only WAY …] [--search] [--out FILE]

A step of one token a row is recorded as a CUDA graph over random weights in bfloat16, 256 positions, and played. Each way's
logits are compared with those of the same model in float32: it counts as right if it errs at most one and a half times as much as
torch's own operations in bfloat16. Reported: milliseconds, the share of the memory bandwidth that reading the weights and what
is attended to would take, and the longest kernels. On a CPU (``--device cpu --size tiny``, ``TRITON_INTERPRET=1`` for our
kernels) nothing is recorded, and times mean nothing.

Ways; for several rows only those with a star:
    compiled *             layers that torch compiles
    own *                  ours (``stockpot.native.triton_token``): five kernels a layer; for several rows attention, between two
                           halves of a layer that torch compiles
    own, early             each kernel is launched while the one before still runs: what ``Engine`` does
    own, cut …             products and attention cut in other ways (``--search``), one after the other, kept where faster
    own, tried products *  and torch tries out kernels for the products
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from decoding import SIZES
from kept import Kept
from torch import Tensor

from stockpot.device import describe
from stockpot.generate.recorded import _Step
from stockpot.model import stack
from stockpot.model.attention import View
from stockpot.model.cache import KVCache, SlotCache
from stockpot.model.config import decoder
from stockpot.model.token_layers import Together, compiled_halves, token_layers
from stockpot.model.transformer import Transformer
from stockpot.native import triton_token
from stockpot.native.triton_token import Choice
from stockpot.stages.machines import MACHINES

POSITIONS, HELD = 256, 190
TURNS, PLAYS = 5, 10
ALONE = {"coordinate_descent_tuning": True}
Layer = Callable[[Any, Tensor, View, SlotCache], Tensor]


class Way(NamedTuple):
    """How the layers are run: by what stands for a compiled layer, or by what stands for our kernels."""

    run: Layer | None = None
    token_layers: Callable[..., Any] = lambda *_: None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1.5b")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--only", nargs="+", choices=WAYS, help="these ways")
    parser.add_argument("--search", action="store_true", help="for one row, cut products in other ways, too")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a JSON file; what it holds already is not measured again")
    options = parser.parse_args()
    device = torch.device(options.device)
    card = torch.cuda.get_device_properties(device).name if device.type == "cuda" else "cpu"
    bandwidth = next((m.memory_gb_s * 1e9 for name, m in MACHINES.items() if name in card), None)
    kept = Kept(options.out, machine=describe(device), bandwidth=bandwidth)
    torch.manual_seed(0)
    config = decoder(
        context=1024,
        vocab_size=50_304 if device.type == "cuda" else 300,
        zero_init=False,
        **SIZES[options.size],
    )
    with device:
        model = Transformer(config).to(torch.bfloat16).eval()
    for rows in options.rows:
        bench: Bench | None = None
        for name, make in WAYS.items():
            ways = MANY_WAYS if rows > 1 else ("own, early",) if options.search else ALONE_WAYS
            if name not in ways or (options.only and name not in options.only):
                continue
            if not kept.lacks(size=options.size, rows=rows, way=name):
                continue
            if bench is None:
                bench = Bench(model, rows, bandwidth)
                print({"plain": bench.plain_error}, flush=True)
            began = time.perf_counter()
            try:
                found = bench.measure(make(bench))
            except Exception as error:  # noqa: BLE001 - a way that cannot run is a row of the table
                kept.add(error=f"{type(error).__name__}: {error}"[-400:])
                if device.type == "cuda":
                    torch.cuda.synchronize()  # a card that has failed says so here, and the next call goes on with the rest
            else:
                kept.add(**found, seconds=time.perf_counter() - began)
            torch._dynamo.reset()
        if options.search and rows == 1:
            search(bench or Bench(model, rows, bandwidth), kept, options.size)


class Bench:
    """A model with a prompt read, and what its next step ought to be."""

    def __init__(self, model: Transformer, rows: int, bandwidth: float | None) -> None:
        self.model, self.rows, self.device = model, rows, model.device
        vocab = model.config.vocab_size
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(0, vocab, (rows, HELD + 1), generator=generator).to(self.device)
        self.next = ids[:, -1:]
        with torch.inference_mode():
            exact = copy.deepcopy(model).float()
            cache = self.read(exact, ids[:, :-1])
            self.exact = exact(self.next, cache=cache, last=1).logits[:, -1]
            del exact, cache
            self.cache = self.read(model, ids[:, :-1])
            plain = _Step(model, self.cache, rows, POSITIONS, compiles=False)
            plain.put(self.next)
            ours, stack.token_layers = stack.token_layers, lambda *_: None
            self.plain_error = self.error(plain.run())
            stack.token_layers = ours
        weights = 2 * model.config.parameters()
        part = model.config.main
        kept = 2 * 2 * part.layers * part.key_heads * part.head_width * (HELD + 1)
        self.limit_ms = None if bandwidth is None else (weights + rows * kept) / bandwidth * 1e3

    def read(self, model: Transformer, ids: Tensor) -> KVCache:
        """Read a prompt into a new cache."""
        cache = model.new_cache(self.rows, POSITIONS + 8)
        for first in range(0, self.rows, 8):
            model(ids[first : first + 8], cache=cache.rows(first, min(first + 8, self.rows)), last=0)
        return cache

    def error(self, logits: Tensor) -> float:
        """Return the norm of the error, relative to that of the logits."""
        return float((logits.float() - self.exact).norm() / self.exact.norm())

    @torch.inference_mode()
    def measure(self, way: Way, *, profiles: bool = True) -> dict[str, Any]:
        """Record a step whose layers go that way; check it and time it."""
        before = stack._compiled_layer, stack.token_layers
        stack._compiled_layer, stack.token_layers = lambda *, alone: way.run, way.token_layers  # type: ignore[assignment]
        try:
            step = _Step(self.model, self.cache, self.rows, POSITIONS, compiles=True)
            if self.device.type != "cuda":
                self.rewind()
                step.put(self.next)
                began = time.perf_counter()
                error = self.error(step.run())
                return self.row(error, (time.perf_counter() - began) * 1e3)
            self.rewind()
            step.record(torch.cuda.graph_pool_handle())
        finally:
            stack._compiled_layer, stack.token_layers = before
        self.rewind()
        error = self.error(step.play(self.next).clone())
        times = []
        for _ in range(TURNS + 1):
            self.rewind()
            times.append(elapsed_ms(lambda: step.play(self.next), PLAYS))
        self.rewind()
        kernels = longest_kernels(lambda: step.play(self.next)) if profiles else []
        return self.row(error, statistics.median(times[1:])) | {
            "spread": max(times[1:]) / min(times[1:]),
            "kernels": kernels,
        }

    def rewind(self) -> None:
        """Let every row hold the prompt again."""
        self.cache.lengths.fill_(HELD)

    def row(self, error: float, ms: float) -> dict[str, Any]:
        """Return the figures of a way."""
        share = None if self.limit_ms is None else self.limit_ms / ms
        is_right = error <= 1.5 * self.plain_error
        return {
            "ms": ms,
            "limit_ms": self.limit_ms,
            "share": share,
            "error": error,
            "is_right": is_right,
            "plain_error": self.plain_error,
        }


# --- ways ---


def compiled(_: Bench, **options: Any) -> Way:
    """Let torch compile a whole layer."""
    return Way(torch.compile(stack.run_layer, dynamic=False, options=options or None))


def own(
    *, early: bool = True, choices: dict[str, Any] | None = None, **options: Any
) -> Callable[[Bench], Way]:
    """Run layers in our kernels, with other settings than theirs, or those of several rows with other options of torch's."""

    def make(_: Bench) -> Way:
        def layers(config: Any, found: Any, x: Tensor) -> Any:
            made = token_layers(config, found, x)
            if made is None:
                raise ValueError("our kernels do not know this kind of layer")
            if isinstance(made, Together):
                made.halves = compiled_halves(**options) if x.is_cuda else made.halves
                return made
            chosen = dict(choices or {})
            triton_token.ALONE = chosen.pop("attention", ALONE_CUT)
            made.early = made.early and early
            made.choices = made.choices | {name: Choice(*cut) for name, cut in chosen.items()}
            return made

        return Way(token_layers=layers)

    return make


def search(bench: Bench, kept: Kept, size: str) -> None:
    """Cut one product after the other in other ways, and attention; keep a way that is faster."""
    best: dict[str, Any] = {}
    best_ms = float("inf")
    for name, tried in CUTS.items():
        for cut in tried:
            way = f"own, cut {name} {' '.join(map(str, cut))}"
            if not kept.lacks(size=size, rows=1, way=way):
                continue
            choices = best | {name: cut}
            try:
                found = bench.measure(own(choices=choices)(bench), profiles=False)
            except Exception as error:  # noqa: BLE001 - a way that cannot run is a row of the table
                kept.add(error=f"{type(error).__name__}: {error}"[-400:])
                continue
            kept.add(**found)
            if found["is_right"] and found["ms"] < best_ms:
                best, best_ms = choices, found["ms"]
    print({"best": best, "ms": best_ms}, flush=True)


ALONE_CUT = triton_token.ALONE
WAYS: dict[str, Callable[[Bench], Way]] = {
    "compiled": lambda bench: compiled(bench, **(ALONE if bench.rows == 1 else {})),
    "own": own(early=False),
    "own, early": own(),
    "own, tried products": own(max_autotune_gemm=True),
}
ALONE_WAYS = ("compiled", "own", "own, early")
MANY_WAYS = ("compiled", "own", "own, tried products")
CUTS: dict[str, tuple[tuple[int, int], ...]] = {
    "qkv": ((8, 4), (4, 4), (16, 4), (4, 2), (8, 2)),
    "up": ((2, 2), (1, 2), (4, 4), (4, 2), (2, 4)),
    "down": ((2, 2), (4, 4), (1, 1), (4, 2)),
    "out": ((8, 8), (4, 4), (2, 2), (8, 4)),
    "attention": ((32, 4), (32, 8), (16, 4)),
}


# --- time ---


def elapsed_ms(function: Callable[[], object], times: int) -> float:
    """Return the mean milliseconds of a call by the card's clock."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(times):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / times


def longest_kernels(function: Callable[[], object], count: int = 14) -> list[str]:
    """Return the kernels that took the most time in a call: name, microseconds in all, how many."""
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            function()
            torch.cuda.synchronize()
        found = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
        return [
            f"{one.key[:100]} | {one.self_device_time_total:.1f} us | {one.count}" for one in found[:count]
        ]
    except Exception as error:  # noqa: BLE001 - figures without a profile are figures
        return [f"no profile: {error}"[:200]]


if __name__ == "__main__":
    main()
