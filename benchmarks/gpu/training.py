"""Measure pretraining on one GPU: tokens a second, share of the peak (MFU), memory, beside nanoGPT and nanochat.

    python benchmarks/gpu/training.py [--nanogpt PATH] [--nanochat PATH] [--sizes 1.5b 350m 124m] [--seconds 6]
        [--only WORD …] [--rows N] [--accumulate N] [--warm] [--out FILE]

PATHs are clones of github.com/karpathy/nanoGPT and nanochat. Every contestant is a process of its own and has the card to
itself. All train a model of the size on random ids in bfloat16, compiled, with as many tokens a step in the same micro-batches
(`SIZES`; half as many rows where they do not fit) and the optimizer each comes with. MFU counts operations as in Chowdhery et
al. 2022, appendix B, for each contestant's own model, over the data sheet's dense bfloat16 peak; the measured peak of matrix
products stands beside it. Our models share keys among two heads, as `stockpot pretrain` makes them, so that ours have fewer
weights: compare MFU, or ask for ``stockpot, as many weights``. Reported: the median step after the first ones, and the seconds
until they had been taken. ``--profile``: also the kernels of one more step of ours, longest first.

What FILE holds already is not measured again. ``--warm`` takes one step forth and back and measures nothing: torch keeps what it
compiled, and the peers compile for minutes. ``--device cpu --sizes tiny`` runs the script, not more.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch._inductor.config
from kept import Kept

from stockpot.data.batch import Batch
from stockpot.device import describe, peak_flops, synchronize
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.machines import MACHINES
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import Loss, next_token_loss
from stockpot.train.parallel import ParallelConfig

SIZES: dict[str, dict[str, int]] = {
    "1.5b": {"layers": 48, "dim": 1600, "heads": 25, "context": 1024, "rows": 16, "step_rows": 128},
    "350m": {"layers": 24, "dim": 1024, "heads": 16, "context": 1024, "rows": 32, "step_rows": 128},
    "124m": {"layers": 12, "dim": 768, "heads": 12, "context": 1024, "rows": 64, "step_rows": 256},
    "tiny": {"layers": 2, "dim": 128, "heads": 2, "context": 64, "rows": 4, "step_rows": 4},
}
VOCABULARY = 50_304
OURS: dict[str, dict[str, Any]] = {
    "stockpot, plain": {},
    "stockpot, narrow states": {"narrow": True},
    "stockpot, as many weights": {"narrow": True, "shares_keys": False},
    "stockpot, narrow states, heads of 128": {"narrow": True, "head_dim": 128},
    "stockpot, narrow states, AdamW": {"narrow": True, "optimizer": "adamw"},
    "stockpot, narrow states, 8-bit products": {"narrow": True, "fp8": True},
    "stockpot, packed documents, mask": {"documents": True},
    "stockpot, packed documents, FlexAttention": {"documents": True, "flex": True},
    "stockpot, layers recomputed": {"recompute": True},
}
PEERS = ("nanoGPT", "nanochat")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES)[:3])
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these words")
    parser.add_argument(
        "--names", nargs="+", choices=[*OURS, *PEERS], help="these contestants, in this order"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each contestant in a round")
    parser.add_argument("--first", type=int, default=3, help="steps that do not count")
    parser.add_argument("--least", type=int, default=5, help="steps that do, whatever they take")
    parser.add_argument("--rows", type=int, help="of a micro-batch; none: as the size says")
    parser.add_argument("--accumulate", type=int, help="micro-batches of a step; none: as the size says")
    parser.add_argument("--warm", action="store_true", help="compile only")
    parser.add_argument("--profile", action="store_true", help="print the kernels of a step of ours")
    parser.add_argument("--memory-share", type=float, help="of the card, that a contestant may take")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    here = {"nanoGPT": options.nanogpt, "nanochat": options.nanochat}
    names = options.names or [*OURS, *PEERS]
    names = [name for name in names if name in OURS or here[name]]
    if options.only:
        names = [name for name in names if any(word in name for word in options.only)]
    if options.warm:
        for size, name in itertools.product(options.sizes, names):
            began = time.perf_counter()
            found = _alone(name, size, options)
            print(json.dumps({"warmed": name, "size": size, **found, "seconds": time.perf_counter() - began}))
        return
    card = torch.cuda.get_device_properties(device).name if device.type == "cuda" else "cpu"
    sheet = next((m.flops for name, m in MACHINES.items() if name in card), None)
    facts = {"machine": describe(device), "peak_data_sheet": sheet}
    if device.type == "cuda":
        facts["peak_measured"] = peak_flops(device, torch.bfloat16)
        torch.cuda.empty_cache()
    kept = Kept(options.out, **facts)
    for number, size, name in itertools.product(range(options.rounds), options.sizes, names):
        if kept.lacks(size=size, round=number, name=name):
            found = _alone(name, size, options)
            if "flops" in found and sheet:
                found["mfu"] = found["tokens_per_s"] * found["flops"] / sheet
            kept.add(**found)


def _alone(name: str, size: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a contestant in a process of its own."""
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_work, args=(there, name, size, options))
    worker.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        found = {"error": "the process died"}
    worker.join()
    return found


def _work(line: Any, name: str, size: str, options: argparse.Namespace) -> None:
    sizes = dict(SIZES[size])
    preset, step_rows = sizes.pop("rows"), sizes.pop("step_rows")
    rows = options.rows or preset
    # Kernels that --warm tried out while others ran would be ill chosen: everybody tries out for himself, alone.
    torch._inductor.config.autotune_local_cache = False
    if options.memory_share and options.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(options.memory_share)
    while rows:
        try:
            line.send(_measured(name, sizes, rows, step_rows, options))
            return
        except torch.OutOfMemoryError:
            if options.warm:
                break
            rows //= 2
        except Exception as error:  # noqa: BLE001 - a contestant that cannot run is a row of the table
            line.send({"error": f"{type(error).__name__}: {error}"[-400:]})
            return
        gc.collect()  # what did not fit is gone only now
        torch.cuda.empty_cache()
    line.send({"error": "it does not fit"})


def _measured(
    name: str, sizes: dict[str, int], rows: int, step_rows: int, options: argparse.Namespace
) -> dict[str, Any]:
    torch.manual_seed(0)
    is_card = options.device == "cuda"
    if is_card:
        torch.cuda.reset_peak_memory_stats()
    count = options.accumulate or max(1, step_rows // rows)
    began = time.perf_counter()
    if name in OURS:
        taken, flops = _ours(sizes, rows, count, options, **OURS[name])
    else:
        make = _nanogpt if name == "nanoGPT" else _nanochat
        step, flops = make(sizes, rows, count, options)
        taken = _timed(step, options)
    counted = taken[options.first :]
    first = began + sum(taken[: options.first])
    tokens = rows * count * sizes["context"]
    return {
        "rows": rows,
        "accumulate": count,
        "steps": len(counted),
        "tokens_per_s": tokens / statistics.median(counted or taken),
        "spread": max(counted or taken) / min(counted or taken),
        "flops": flops,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if is_card else None,
        "warm_s": first - began,
        "seconds": time.perf_counter() - began,
    }


def _are_enough(taken: list[float], options: argparse.Namespace) -> bool:
    if options.warm:
        return len(taken) >= 1
    counted = taken[options.first :]
    return sum(counted) >= options.seconds and len(counted) >= options.least


def _ours(  # noqa: PLR0913 - the settings of a contestant
    sizes: dict[str, int],
    rows: int,
    accumulate: int,
    options: argparse.Namespace,
    *,
    documents: bool = False,
    flex: bool = False,
    recompute: bool = False,
    narrow: bool = False,
    head_dim: int | None = None,
    shares_keys: bool = True,
    fp8: bool = False,
    optimizer: Literal["muon", "adamw"] = "muon",
) -> tuple[list[float], float]:
    device = torch.device(options.device)
    if head_dim is not None:
        sizes = sizes | {"heads": max(1, sizes["dim"] // head_dim)}
    if not shares_keys:
        sizes = sizes | {"kv_heads": sizes["heads"]}
    with device:
        model = Transformer(decoder(vocab_size=VOCABULARY, **sizes))
    context = sizes["context"]
    accumulate = 1 if options.warm else accumulate
    loop = LoopConfig(
        steps=10**6,
        batch_tokens=rows * context * accumulate,
        dtype="bfloat16",
        compile=True,
        flex=flex,
        narrow_states=narrow,
        fp8=fp8,
        optimizer=optimizer,
        log_every=10**6,
        parallel=ParallelConfig(recompute=recompute),
    )
    watched = _Watched(accumulate, options)
    with contextlib.suppress(_Enough):
        fit(model, _Random(rows, context, documents=documents), watched, loop)
    return watched.taken, model.config.flops_per_token(context)


class _Random:
    """Batches of random ids without an end; they tell their place, so that the loop makes them ready ahead, as real ones."""

    def __init__(self, rows: int, context: int, *, documents: bool) -> None:
        self.rows, self.context, self.documents = rows, context, documents
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        shape = (self.rows, self.context + 1)
        ids = torch.randint(0, VOCABULARY, shape, generator=self.generator)
        mask = None
        if self.documents:  # about four in a row
            ends = torch.rand((self.rows, self.context), generator=self.generator) < 4 / self.context
            mask = ends.cumsum(1) + 1
        return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), attention_mask=mask)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Enough(Exception):
    """Enough steps have been timed."""


class _Watched:
    """The loss, which looks at the clock where a step begins."""

    def __init__(self, accumulate: int, options: argparse.Namespace) -> None:
        self.accumulate, self.options = accumulate, options
        self.device = torch.device(options.device)
        self.taken: list[float] = []
        self.calls, self.began = 0, time.perf_counter()
        self.profile: torch.profiler.profile | None = None

    def __call__(self, model: Any, batch: Batch) -> Loss:
        if self.calls % self.accumulate == 0:
            self._look()
        self.calls += 1
        return next_token_loss(model, batch)

    def _look(self) -> None:
        synchronize(self.device)
        if self.profile is not None:
            self.profile.stop()
            _print_kernels(self.profile)
            raise _Enough
        if self.calls:
            self.taken.append(time.perf_counter() - self.began)
        if _are_enough(self.taken, self.options):
            if not self.options.profile or self.device.type != "cuda":
                raise _Enough
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profile.start()
        self.began = time.perf_counter()


def _print_kernels(profile: torch.profiler.profile) -> None:
    found = sorted(profile.key_averages(), key=lambda one: -one.self_device_time_total)
    print(f"{sum(one.self_device_time_total for one in found) / 1e3:9.2f} ms in all", flush=True)
    for one in found[:45]:
        print(f"{one.self_device_time_total / 1e3:9.2f} ms {one.count:6} {one.key[:150]}", flush=True)


def _timed(step: Callable[[], None], options: argparse.Namespace) -> list[float]:
    device, taken = torch.device(options.device), []
    while not _are_enough(taken, options):
        synchronize(device)
        began = time.perf_counter()
        step()
        synchronize(device)
        taken.append(time.perf_counter() - began)
    return taken


def _nanogpt(
    sizes: dict[str, int], rows: int, accumulate: int, options: argparse.Namespace
) -> tuple[Callable[[], None], float]:
    sys.path.insert(0, str(options.nanogpt))
    device = torch.device(options.device)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        block_size=sizes["context"],
        vocab_size=VOCABULARY,
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_embd=sizes["dim"],
        dropout=0.0,
        bias=False,
    )
    with device:  # its own training script starts on the CPU, which takes longer and comes to the same
        model = GPT(config)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    compiled = torch.compile(model)
    ids = torch.randint(0, VOCABULARY, (rows, sizes["context"] + 1), device=device)
    cast = torch.autocast(device.type, torch.bfloat16)
    accumulate = 1 if options.warm else accumulate

    def step() -> None:
        for _ in range(accumulate):
            with cast:
                _, loss = compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
            (loss / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    weights = model.get_num_params()
    return step, 6.0 * weights + 12.0 * sizes["layers"] * sizes["dim"] * sizes["context"]


def _nanochat(
    sizes: dict[str, int], rows: int, accumulate: int, options: argparse.Namespace
) -> tuple[Callable[[], None], float]:
    sys.path.insert(0, str(options.nanochat))
    device = torch.device(options.device)
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    config = GPTConfig(
        sequence_len=sizes["context"],
        vocab_size=VOCABULARY,
        n_layer=sizes["layers"],
        n_head=sizes["heads"],
        n_kv_head=sizes["heads"],
        n_embd=sizes["dim"],
        window_pattern="L",  # its advice where FlashAttention 3 is not installed
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    made = (getattr(model, "setup_optimizer", None) or model.setup_optimizers)()
    optimizers = made if isinstance(made, (list, tuple)) else [made]
    compiled = torch.compile(model, dynamic=False)
    ids = torch.randint(0, VOCABULARY, (rows, sizes["context"] + 1), device=device)
    accumulate = 1 if options.warm else accumulate

    def step() -> None:  # it casts to bfloat16 by itself
        for _ in range(accumulate):
            (compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) / accumulate).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step, float(model.estimate_flops())


if __name__ == "__main__":
    main()
