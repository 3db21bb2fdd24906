"""Time one layer and the loss in training on one GPU, with and without each of our kernels, and say where it differs.

    python benchmarks/gpu/layer_variants.py [--size 350m] [--rows 64] [--only WORD …] [--out FILE]

A layer of the size, in bfloat16 with narrow states, compiled as training compiles it, goes forth and back over random states;
so does the output matrix with its loss. Reported: the median of ten turns in milliseconds (ways one after the other, so
compare neighbours), memory, the largest relative distance of a slope from that in float32 without our kernels, and the longest
kernels. On a CPU (``--device cpu --size tiny``, ``TRITON_INTERPRET=1``) times mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from kept import Kept
from torch import Tensor
from training import SIZES, VOCABULARY

from stockpot.device import describe, synchronize
from stockpot.model.attention import View
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.fused import linear_cross_entropy

Patches = dict[str, Any]
Pass = Callable[[], list[Tensor]]
NO: dict[str, Patches] = {
    "norms": {"stockpot.model.norms.trains_on_gpu": lambda _: False},
    "heads": {"stockpot.model.attention.trains_on_gpu": lambda _: False},
    "SwiGLU": {"stockpot.model.layers.trains_on_gpu": lambda _: False},
    "kernel": {"stockpot.train.fused._judges_in_place": lambda *_: False},
    "sums in products": {"stockpot.train.fused._adds_in_product": lambda *_: False},
}
PLAIN: dict[str, Patches] = {
    "layer": NO["norms"] | NO["heads"] | NO["SwiGLU"],
    "loss": NO["kernel"] | NO["sums in products"],
}
WAYS: dict[str, dict[str, Patches]] = {
    "layer": {"ours": {}, **{f"no {name}": NO[name] for name in ("norms", "heads", "SwiGLU")}},
    "loss": {
        "ours": {},
        "no sums in products": NO["sums in products"],
        "chunks of 2 GiB": {"stockpot.train.fused.CHUNK_BYTES_GPU": 2 << 30},
    },
}
TURNS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="350m")
    parser.add_argument("--rows", type=int, help="none: as the size says")
    parser.add_argument("--only", nargs="+", help="ways whose names contain one of these words")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    sizes = dict(SIZES[options.size])
    rows, _ = options.rows or sizes["rows"], sizes.pop("step_rows")
    sizes |= {"layers": 1}
    del sizes["rows"]
    kept = Kept(options.out, machine=describe(device))
    for part, make in (("layer", layer), ("loss", loss)):
        exact = slopes_of(make(sizes, 1, device, torch.float32), patches=PLAIN[part], device=device)
        for way, patches in (WAYS[part] | {"torch": PLAIN[part]}).items():
            if options.only and not any(word in f"{part} {way}" for word in options.only):
                continue
            key = {"size": options.size, "rows": rows, "part": part, "way": way}
            if kept.lacks(**key):
                made = slopes_of(make(sizes, 1, device, torch.bfloat16), patches=patches, device=device)
                found = timed(make(sizes, rows, device, torch.bfloat16), patches=patches, device=device)
                kept.add(**key, distance=distance(made, exact), **found)


def layer(sizes: dict[str, int], rows: int, device: torch.device, dtype: torch.dtype) -> Pass:
    """Return what takes a compiled layer forth and back, and returns its slopes."""
    model = made(sizes, device)
    stack = model.decoder
    block = stack.layers[0]
    if dtype != torch.float32:
        block.compile()
    generator = torch.Generator(device).manual_seed(1)
    shape = (rows, sizes["context"], sizes["dim"])
    x, slope = (torch.randn(shape, generator=generator, device=device).to(dtype) for _ in range(2))
    x.requires_grad_()
    angles = stack._angles[False].rows((0, sizes["context"]), x, sizes["context"], dtype)[None, :, None]
    weights = list(block.parameters())

    def go() -> list[Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            out = block(x, View(causal=True, rotary=angles))
        return list(torch.autograd.grad(out, [x, *weights], slope.to(out.dtype)))

    return go


def loss(sizes: dict[str, int], rows: int, device: torch.device, dtype: torch.dtype) -> Pass:
    """Return what takes the output matrix and its loss forth and back, and returns the slopes."""
    model = made(sizes, device)
    generator = torch.Generator(device).manual_seed(1)
    shape = (rows, sizes["context"])
    x = torch.randn((*shape, sizes["dim"]), generator=generator, device=device).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, shape, generator=generator, device=device)

    def go() -> list[Tensor]:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            found = linear_cross_entropy(x, model.output_weight, labels, counted=labels.numel())
        return list(torch.autograd.grad(found.total, [x, model.output_weight]))

    return go


def made(sizes: dict[str, int], device: torch.device) -> Transformer:
    torch.manual_seed(0)
    with device:
        return Transformer(decoder(vocab_size=VOCABULARY, zero_init=False, **sizes))


@contextmanager
def patched(patches: Patches) -> Iterator[None]:
    """Run in another way."""
    torch._dynamo.reset()
    with ExitStack() as stack:
        for target, value in patches.items():
            stack.enter_context(mock.patch(target, value))
        yield


def slopes_of(go: Pass, *, patches: Patches, device: torch.device) -> list[Tensor]:
    with patched(patches):
        found = [one.float() for one in go()]
    synchronize(device)
    return found


def distance(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, exact, strict=True))


def timed(go: Pass, *, patches: Patches, device: torch.device) -> dict[str, Any]:
    is_card = device.type == "cuda"
    if is_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with patched(patches):
        for _ in range(2):
            go()
        taken = []
        for _ in range(TURNS):
            synchronize(device)
            began = time.perf_counter()
            go()
            synchronize(device)
            taken.append((time.perf_counter() - began) * 1e3)
        kernels = kernels_of(go) if is_card else []
    return {
        "ms": statistics.median(taken),
        "spread": max(taken) / min(taken),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if is_card else None,
        "kernels": kernels,
    }


def kernels_of(go: Pass) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        go()
        synchronize(torch.device("cuda"))
    found = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
    return [f"{one.self_device_time_total:.0f} us | {one.count} | {one.key[:100]}" for one in found[:24]]


if __name__ == "__main__":
    main()
