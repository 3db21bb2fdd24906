"""Try ways of running a written token's layers on one GPU, and say which is right and how long each takes.

    python benchmarks/gpu/decode_variants.py [--size 1.5b] [--rows 1 64] [--only WORD …] [--out FILE]

A step of one token a row is recorded as a CUDA graph over random weights in bfloat16, 256 positions, and played. Each way's
logits are compared with those of the same model in float32: it counts as right if it errs at most one and a half times as much as
torch's own operations in bfloat16. Reported: milliseconds, the share of the memory bandwidth that reading the weights and what
is attended to would take, and the longest kernels. On a CPU (``--device cpu --size tiny``, ``TRITON_INTERPRET=1`` for our
kernels) nothing is recorded, and times mean nothing.

Ways; for several rows only those with a star, and there with torch's usual products:
    compiled *       what ``Engine(compiles=True)`` does today
    own              a layer as five kernels of ``decode_kernels.py``, cut as a short search found best
    own, early       and each is launched while the one before still runs
    own attention *  that file's attention, between two halves of a layer that torch compiled
    sums             attention written as sums, which torch's compiler makes kernels of
    compiled, early  as today, with torch's own kernels launched early
    own attention, tried products *  and torch tries out kernels for the products
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from decoding import SIZES
from kept import Kept
from torch import Tensor

from stockpot.device import describe
from stockpot.generate.recorded import _Step
from stockpot.model import attention, stack
from stockpot.model.attention import View
from stockpot.model.cache import KVCache, SlotCache
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.machines import MACHINES

POSITIONS, HELD = 256, 190
TURNS, PLAYS = 5, 10
MOST_NUMBERS = 300  # of the matrix in a thread's registers, which are 255
ALONE = {"coordinate_descent_tuning": True}
Layer = Callable[[Any, Tensor, View, SlotCache], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1.5b")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--only", nargs="+", help="ways whose names contain one of these words")
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
            is_asked = not options.only or any(word in name for word in options.only)
            if not is_asked or name not in (ALONE_WAYS if rows == 1 else MANY_WAYS):
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
            self.plain_error = self.error(plain.run())
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
    def measure(self, run: Layer) -> dict[str, Any]:
        """Record a step whose layers go through ``run``; check it and time it."""
        before, stack._compiled_layer = stack._compiled_layer, lambda *, alone: run  # type: ignore[assignment]
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
            stack._compiled_layer = before
        self.rewind()
        error = self.error(step.play(self.next).clone())
        times = []
        for _ in range(TURNS + 1):
            self.rewind()
            times.append(elapsed_ms(lambda: step.play(self.next), PLAYS))
        self.rewind()
        kernels = longest_kernels(lambda: step.play(self.next))
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


def compiled(_: Bench, **options: Any) -> Layer:
    """Let torch compile a whole layer."""
    return torch.compile(stack.run_layer, dynamic=False, options=options or None)


def own(bench: Bench, *, early: bool) -> Layer:
    """Run a layer in five kernels, cut as a search finds best."""
    from decode_kernels import Choice, Layers, suits

    layers = list(bench.model.decoder.layers)
    if not suits(layers[0], bench.rows):
        raise ValueError("our kernels do not know this kind of layer")
    if bench.device.type != "cuda":
        return Layers()
    best: dict[str, Choice] = {}
    tried = [Choice(outputs, warps) for outputs in (2, 4, 8, 16) for warps in (2, 4, 8)]
    for name in ("qkv", "out", "up", "down"):
        inputs = layers[0].ffn.down.in_features if name == "down" else layers[0].ffn.up.in_features
        fits = [choice for choice in tried if choice.outputs * inputs / (32 * choice.warps) <= MOST_NUMBERS]
        times = {choice: all_layers_ms(layers, name, choice, early=early) for choice in fits}
        best[name] = min(times, key=times.__getitem__)
        print(
            {"product": name, "choice": best[name], "us_a_layer": 1e3 * times[best[name]] / len(layers)},
            flush=True,
        )
    return Layers(best, early=early)


def all_layers_ms(layers: list[Any], name: str, choice: Any, *, early: bool) -> float:
    """Time one product of every layer, one after the other: together they are larger than the card's cache."""
    from decode_kernels import Layers

    run = Layers({name: choice}, early=early)
    weights = {
        "qkv": lambda layer: layer.attention.qkv.weight,
        "out": lambda layer: layer.attention.out.weight,
        "up": lambda layer: layer.ffn.up.weight,
        "down": lambda layer: layer.ffn.down.weight,
    }[name]
    x = torch.randn(1, 1, weights(layers[0]).shape[1], dtype=torch.bfloat16, device="cuda")

    def go() -> None:
        for layer in layers:
            norm = {"qkv": layer.attention_norm, "up": layer.ffn_norm}.get(name)
            added = (
                x[..., : weights(layer).shape[0]]
                if name in ("out", "down") and x.shape[-1] >= weights(layer).shape[0]
                else None
            )
            run.product(name, x, weights(layer), norm=norm, gated=name == "up", added=added)

    go()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        go()
    elapsed_ms(graph.replay, 2)
    return elapsed_ms(graph.replay, 5)


def own_attention(bench: Bench, **options: Any) -> Layer:
    """Put our attention between two halves of a layer that torch compiles."""
    from decode_kernels import attend, suits

    if not suits(bench.model.decoder.layers[0], bench.rows, attention_only=True):
        raise ValueError("our attention does not know this kind of layer")
    compiles = bench.device.type == "cuda"
    before = torch.compile(first_half, dynamic=False, options=options or None) if compiles else first_half
    after = torch.compile(second_half, dynamic=False, options=options or None) if compiles else second_half

    def run(layer: Any, x: Tensor, view: View, store: SlotCache) -> Tensor:
        return after(layer, x, attend(before(layer, x), layer, view, store))

    return run


def first_half(layer: Any, x: Tensor) -> Tensor:
    return layer.attention.qkv(layer.attention_norm(x))


def second_half(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = layer._join(x, layer.attention.out(mixed), layer.attention_post_norm)
    return layer._join(x, layer.ffn(layer.ffn_norm(x)), layer.ffn_post_norm)


def sums(bench: Bench) -> Layer:
    """Write attention out, so that torch's compiler sees sums."""

    def attend(
        queries: Tensor, keys: Tensor, values: Tensor, view: View, *, scale: float, dropout: float = 0.0
    ) -> Tensor:
        rows, heads, _, width = queries.shape
        queries = queries.view(rows, keys.shape[1], -1, 1, width).float() * scale
        scores = (queries * keys[:, :, None].float()).sum(-1)  # (rows, kv_heads, group, keys)
        if view.mask is not None:
            scores = scores + view.mask.float()  # the same for all heads
        weights = scores.softmax(-1)
        return (
            (weights[..., None] * values[:, :, None].float())
            .sum(-2)
            .view(rows, heads, 1, width)
            .to(values.dtype)
        )

    def run(layer: Any, x: Tensor, view: View, store: SlotCache) -> Tensor:
        before, attention.attend = attention.attend, attend
        try:
            return inner(layer, x, view, store)
        finally:
            attention.attend = before

    inner: Layer = compiled(bench, **ALONE) if bench.device.type == "cuda" else stack.run_layer
    return run


WAYS: dict[str, Callable[[Bench], Layer]] = {
    "compiled": lambda bench: compiled(bench, **(ALONE if bench.rows == 1 else {})),
    "own": lambda bench: own(bench, early=False),
    "own, early": lambda bench: own(bench, early=True),
    "own attention": lambda bench: own_attention(bench, **(ALONE if bench.rows == 1 else {})),
    "sums": sums,
    "compiled, early": lambda bench: compiled(bench, **ALONE, **{"triton.enable_pdl": True}),
    "own attention, tried products": lambda bench: own_attention(bench, max_autotune_gemm=True),
}
ALONE_WAYS = tuple(WAYS)[:-1]
MANY_WAYS = ("compiled", "own attention", "own attention, tried products")


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
