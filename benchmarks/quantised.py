"""Measure how fast a quantised model reads and writes, against llama.cpp and transformers on the same weights.

    .venv/bin/python benchmarks/quantised.py MODEL [--gguf FILE ...] [--streams 1 16] [--rounds 3] [--out FILE]

MODEL is anything stockpot opens (smollm2). Each --gguf file is run by llama.cpp (package llama-cpp-python, called at its lowest
level, the likeliest id taken by numpy) in a process of its own: it keeps the matrix unit's tiles set up for good, which others in
the same process do not. All write greedily after random prompts of 128 ids, 128 new ones, in turn round after
round, so that a busy machine hurts them alike. Reported: median tokens per second of reading and of writing, the spread, the
weights read for one token, and what share of the memory's measured speed that is.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stockpot.device import describe
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.native.calls import kernels
from stockpot.weights.store import load

PROMPT, NEW = 128, 128
Speeds = tuple[float, float]  # tokens per second: reading, writing


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--gguf", nargs="*", default=[])
    parser.add_argument("--kinds", nargs="*", default=["int8", "int4"])
    parser.add_argument("--transformers", type=Path, help="a folder that transformers opens too")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bundles = {kind: load(options.model, quantize=kind) for kind in options.kinds}
    vocab = next(iter(bundles.values())).model.config.vocab_size
    prompts = torch.randint(
        vocab, (max(options.streams), PROMPT), generator=torch.Generator().manual_seed(1)
    ).tolist()
    lines = []
    for streams in options.streams:
        part = prompts[:streams]
        racers: dict[str, Callable[[], Speeds]] = {
            f"stockpot {kind}": ours(bundle, part) for kind, bundle in bundles.items()
        }
        racers |= {
            f"llama.cpp {Path(path).stem}": apart(path, part, options.threads) for path in options.gguf
        }
        if options.transformers:
            racers["transformers float32"] = theirs(options.transformers, part)
        lines += race(racers, streams, bundles, options)
    facts = describe(torch.device("cpu"))
    head = [
        f"{facts['processor']}, kernels {next(iter(bundles.values())).model.kernel}, {options.threads} threads,"
        f" {options.rounds} rounds, prompt {PROMPT}, {NEW} new tokens, greedy.",
        "",
        "| streams | | reading, tokens/s (spread) | writing, tokens/s (spread) | MB a token | share of memory speed |",
        "|---|---|---|---|---|---|",
    ]
    report = "\n".join(head + lines) + "\n"
    print(report)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write("\n" + report)


def race(
    racers: dict[str, Callable[[], Speeds]], streams: int, bundles: dict[str, Any], options: Any
) -> list[str]:
    found: dict[str, list[Speeds]] = {name: [] for name in racers}
    memory = []
    for number in range(options.rounds + 1):
        for name, racer in racers.items():
            speeds = racer()
            if number:  # the first round warms up
                found[name].append(speeds)
        memory.append(memory_speed(options.threads))
    lines = []
    for name, speeds in found.items():
        read, written = zip(*speeds, strict=True)
        kind = name.removeprefix("stockpot ")
        cells = ["", ""]
        if kind in bundles:
            size = bundles[kind].model.weight_bytes
            share = size * statistics.median(written) / streams / max(memory)
            cells = [
                f"{size / 1e6:.1f}",
                f"{share:.0%} of {max(memory) / 1e9:.1f} GB/s" if streams == 1 else "",
            ]
        lines.append(f"| {streams} | {name} | {told(read)} | {told(written)} | {' | '.join(cells)} |")
    return lines


def told(speeds: tuple[float, ...]) -> str:
    return f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f})"


def memory_speed(threads: int) -> float:
    """Read 256 MB a few times; bytes per second of the best time."""
    found = kernels()
    if found is None:
        return float("nan")
    block = torch.ones(256 << 20, dtype=torch.uint8)
    best = 0.0
    for _ in range(4):
        start = time.perf_counter()
        found.read(block.data_ptr(), block.nbytes, threads)
        best = max(best, block.nbytes / (time.perf_counter() - start))
    return best


def ours(bundle: Any, prompts: list[list[int]]) -> Callable[[], Speeds]:
    engine = Engine(bundle, slots=len(prompts), prefix_mib=0)

    def run() -> Speeds:
        times = []
        for tokens in (1, NEW):
            start = time.perf_counter()
            engine.generate(prompts, Sampling(temperature=0, max_tokens=tokens, min_tokens=tokens))
            times.append(time.perf_counter() - start)
        return len(prompts) * PROMPT / times[0], len(prompts) * (NEW - 1) / (times[1] - times[0])

    return run


def theirs(folder: Path, prompts: list[list[int]]) -> Callable[[], Speeds]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(prompts)

    def run() -> Speeds:
        times = []
        for tokens in (1, NEW // 4):  # a quarter: it is slow
            start = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                pad_token_id=0,
            )
            times.append(time.perf_counter() - start)
        return len(prompts) * PROMPT / times[0], len(prompts) * (NEW // 4 - 1) / (times[1] - times[0])

    return run


def apart(path: str, prompts: list[list[int]], threads: int) -> Callable[[], Speeds]:
    """Return what makes llama.cpp read and write in its own process."""
    context = mp.get_context("spawn")
    line, end = context.Pipe()
    context.Process(target=_answer, args=(end, path, prompts, threads), daemon=True).start()

    def run() -> Speeds:
        line.send(None)
        speeds: Speeds = line.recv()
        return speeds

    return run


def _answer(line: Connection, path: str, prompts: list[list[int]], threads: int) -> None:
    run = llama(path, prompts, threads)
    with contextlib.suppress(EOFError):  # the other side has ended
        while True:
            line.recv()
            line.send(run())


def llama(path: str, prompts: list[list[int]], threads: int) -> Callable[[], Speeds]:
    """Return what makes llama.cpp read and write the same."""
    import llama_cpp as lib

    lib.llama_backend_init()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    streams = len(prompts)
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = (PROMPT + NEW) * streams, 2048, streams
    settings.n_threads = settings.n_threads_batch = threads
    context = lib.llama_init_from_model(model, settings)
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(PROMPT * streams, 0, 1)

    def fill(tokens: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(tokens)
        for at, (id, place, stream, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = id, place, 1
            batch.seq_id[at][0], batch.logits[at] = stream, wanted

    def best(at: int) -> int:
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, at), (vocab,))
        return int(logits.argmax())

    def run() -> Speeds:
        _ = quiet  # llama.cpp calls it, so it must live as long
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        fill([(id, i, s, i == PROMPT - 1) for s, ids in enumerate(prompts) for i, id in enumerate(ids)])
        start = time.perf_counter()
        assert lib.llama_decode(context, batch) == 0
        ids = [best((s + 1) * PROMPT - 1) for s in range(streams)]
        middle = time.perf_counter()
        for step in range(NEW - 1):
            fill([(id, PROMPT + step, s, True) for s, id in enumerate(ids)])
            assert lib.llama_decode(context, batch) == 0
            ids = [best(s) for s in range(streams)]
        end = time.perf_counter()
        return streams * PROMPT / (middle - start), streams * (NEW - 1) / (end - middle)

    return run


if __name__ == "__main__":
    main()
