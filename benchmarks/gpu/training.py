"""Measure pretraining on one GPU: tokens a second, share of the peak (MFU), memory, beside nanoGPT and nanochat.

    python benchmarks/gpu/training.py [--nanogpt PATH] [--nanochat PATH] [--sizes 124m 350m 1.5b] [--seconds 20]
        [--rows 64] [--accumulate 1] [--out FILE]

PATHs are clones of github.com/karpathy/nanoGPT and nanochat. Every contestant is a process of its own and has the card to
itself; they take turns, two rounds. All train a model of the size on random ids in bfloat16, compiled, with the largest
micro-batch of powers of two that fits, and the optimizer each comes with. MFU counts operations as in Chowdhery et al. 2022,
appendix B, for each contestant's own model, over the data sheet's dense bfloat16 peak; the measured peak of matrix
products stands beside it. Reported: the median step after the first four.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from stockpot.data.batch import Batch
from stockpot.device import describe, peak_flops
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.stages.machines import MACHINES
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss
from stockpot.train.parallel import ParallelConfig

SIZES: dict[str, dict[str, int]] = {
    "124m": {"layers": 12, "dim": 768, "heads": 12, "context": 1024},
    "350m": {"layers": 24, "dim": 1024, "heads": 16, "context": 1024},
    "1.5b": {"layers": 48, "dim": 1600, "heads": 25, "context": 1024},
}
VOCABULARY = 50_304
OURS: dict[str, dict[str, Any]] = {
    "stockpot, plain": {},
    "stockpot, narrow states": {"narrow": True},
    "stockpot, narrow states, AdamW": {"narrow": True, "optimizer": "adamw"},
    "stockpot, narrow states, 8-bit products": {"narrow": True, "fp8": True},
    "stockpot, packed documents, mask": {"documents": True},
    "stockpot, packed documents, FlexAttention": {"documents": True, "flex": True},
    "stockpot, layers recomputed": {"recompute": True},
}
WARM, LEAST = 4, 6  # steps that do not count, and those that do at least


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--nanochat", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each contestant in a round")
    parser.add_argument("--rows", type=int, default=64, help="the largest micro-batch tried")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step, as large as fit")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    options = parser.parse_args()
    device = torch.device("cuda")
    names = [*OURS, *(["nanoGPT"] if options.nanogpt else []), *(["nanochat"] if options.nanochat else [])]
    if options.only:
        names = [name for name in names if any(word in name for word in options.only)]
    card = torch.cuda.get_device_properties(device).name
    sheet = next((m.flops for name, m in MACHINES.items() if name in card), None)
    peak = peak_flops(device, torch.bfloat16)
    figures: dict[str, Any] = {
        "machine": describe(device),
        "peak_measured": peak,
        "peak_data_sheet": sheet,
        "rows": [],
    }
    for size in options.sizes:
        for number in range(options.rounds):
            for name in names:
                found = _alone(name, size, options)
                if "flops" in found and sheet:
                    found["mfu"] = found["tokens_per_s"] * found["flops"] / sheet
                figures["rows"].append({"size": size, "round": number, "name": name, **found})
                print(json.dumps(figures["rows"][-1]), flush=True)
                if options.out:
                    options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


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
    rows = options.rows
    while rows:
        try:
            line.send(_measured(name, dict(SIZES[size]), rows, options))
            return
        except torch.OutOfMemoryError:
            rows //= 2
        except Exception as error:  # noqa: BLE001 - a contestant that cannot run is a row of the table
            line.send({"error": f"{type(error).__name__}: {error}"[:300]})
            return
        gc.collect()  # what did not fit is gone only now
        torch.cuda.empty_cache()
    line.send({"error": "not even one row fits"})


def _measured(name: str, sizes: dict[str, int], rows: int, options: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    count = options.accumulate
    if name in OURS:
        seconds, flops = _ours(sizes, rows, count, options.seconds, **OURS[name])
    elif name == "nanoGPT":
        seconds, flops = _timed(*_nanogpt(sizes, rows, count, options.nanogpt), options.seconds)
    else:
        seconds, flops = _timed(*_nanochat(sizes, rows, count, options.nanochat), options.seconds)
    tokens = rows * count * sizes["context"]
    return {
        "rows": rows,
        "steps": len(seconds),
        "tokens_per_s": tokens / statistics.median(seconds),
        "flops": flops,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def _ours(  # noqa: PLR0913 - the settings of a contestant
    sizes: dict[str, int],
    rows: int,
    accumulate: int,
    seconds: float,
    *,
    documents: bool = False,
    flex: bool = False,
    recompute: bool = False,
    narrow: bool = False,
    fp8: bool = False,
    optimizer: Literal["muon", "adamw"] = "muon",
) -> tuple[list[float], float]:
    model = Transformer(decoder(vocab_size=VOCABULARY, **sizes)).cuda()
    context, taken = sizes["context"], []

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        began = time.perf_counter()
        while not taken or sum(taken[WARM:]) < seconds or len(taken) < WARM + LEAST:
            for _ in range(accumulate):
                ids = torch.randint(0, VOCABULARY, (rows, context + 1), generator=generator)
                mask = None
                if documents:  # about four in a row
                    ends = torch.rand((rows, context), generator=generator) < 4 / context
                    mask = ends.cumsum(1) + 1
                yield Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), attention_mask=mask)
            torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
            began = time.perf_counter()

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
    fit(model, batches(), next_token_loss, loop)
    return taken[WARM:], model.config.flops_per_token(context)


def _timed(step: Callable[[], None], flops: float, seconds: float) -> tuple[list[float], float]:
    taken: list[float] = []
    while sum(taken[WARM:]) < seconds or len(taken) < WARM + LEAST:
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return taken[WARM:], flops


def _nanogpt(
    sizes: dict[str, int], rows: int, accumulate: int, path: Path
) -> tuple[Callable[[], None], float]:
    sys.path.insert(0, str(path))
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
    model = GPT(config).cuda()
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cuda")
    compiled = torch.compile(model)
    ids = torch.randint(0, VOCABULARY, (rows, sizes["context"] + 1), device="cuda")
    cast = torch.autocast("cuda", torch.bfloat16)

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
    sizes: dict[str, int], rows: int, accumulate: int, path: Path
) -> tuple[Callable[[], None], float]:
    sys.path.insert(0, str(path))
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
    model.to_empty(device="cuda")
    model.init_weights()
    made = (getattr(model, "setup_optimizer", None) or model.setup_optimizers)()
    optimizers = made if isinstance(made, (list, tuple)) else [made]
    compiled = torch.compile(model, dynamic=False)
    ids = torch.randint(0, VOCABULARY, (rows, sizes["context"] + 1), device="cuda")

    def step() -> None:  # it casts to bfloat16 by itself
        for _ in range(accumulate):
            (compiled(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) / accumulate).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step, float(model.estimate_flops())


if __name__ == "__main__":
    main()
