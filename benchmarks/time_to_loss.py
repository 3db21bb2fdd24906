"""Measure how long a small decoder takes to reach a loss on tiny Shakespeare, character by character, on a CPU.

    .venv/bin/python benchmarks/time_to_loss.py tinyshakespeare.txt.gz --nanogpt PATH --nanochat PATH [--steps 300 800]

PATHs are clones of github.com/karpathy/nanoGPT and github.com/karpathy/nanochat; a peer without a path is left out. Everyone
trains a decoder of 4 layers, 128 wide, on the first nine tenths of the text, in a process of its own, one after another,
``--rounds`` times over:

* nanoGPT: the settings its README gives for a CPU (2000 steps of 12 x 64 characters, AdamW, cosine).
* nanochat: its architecture, Muon + AdamW and schedules as in its base_train.py, compiled; 16 x 128 characters a step.
* ours: the default architecture and the default settings of the loop, 16 x 64 characters a step.

What is timed is training alone: not evaluation, and not what compiling costs (the peers compile, ours does not). The loss is
in nats per character over the whole last tenth of the text, in windows of the contestant's context.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gzip
import io
import math
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot.data.batch import Batch
from stockpot.device import describe
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss

LAYERS, DIM, HEADS = 4, 128, 4
NANOGPT_STEPS = 2000
CONTEXT = 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="tiny Shakespeare, plain or gzip")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--nanochat", type=Path, help="a clone of nanochat")
    parser.add_argument("--nanochat-steps", type=int, nargs="*", default=[500], help="lengths of its runs")
    parser.add_argument("--steps", type=int, nargs="*", default=[300, 800], help="lengths of our runs")
    parser.add_argument("--set", nargs="*", default=[], help="settings of our loop, as name=value")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    options = parser.parse_args()
    entries: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    if options.nanogpt:
        entries.append(("nanoGPT", _nanogpt, (options.nanogpt,)))
    if options.nanochat:
        entries += [
            (f"nanochat, {n} steps", _nanochat, (options.nanochat, n)) for n in options.nanochat_steps
        ]
    entries += [(f"stockpot, {n} steps", _ours, (n, options.set)) for n in options.steps]
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name, *_ in entries}
    for _ in range(options.rounds):
        for name, run, arguments in entries:
            found[name].append(_alone(run, options, arguments))
            print(name, *(f"{value:.4g}" for value in found[name][-1]), file=sys.stderr, flush=True)
    report = _table(found, options)
    print(report)
    if options.out:
        with options.out.open("a", encoding="utf-8") as file:
            file.write(report)


def _alone(
    run: Callable[..., Any], options: argparse.Namespace, arguments: tuple[Any, ...]
) -> tuple[float, float, int]:
    """Train in a process of its own; return the seconds, the loss and the characters read."""
    context = mp.get_context("spawn")
    line, end = context.Pipe()
    worker = context.Process(target=_work, args=(end, run, options.text, options.threads, arguments))
    worker.start()
    end.close()
    result: tuple[float, float, int] = line.recv()
    worker.join()
    return result


def _work(
    line: Connection, run: Callable[..., Any], text: Path, threads: int, arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(1337)
    raw = text.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    characters = raw.decode()
    index = {one: number for number, one in enumerate(sorted(set(characters)))}
    ids = torch.tensor([index[one] for one in characters])
    cut = int(0.9 * len(ids))
    seconds, model, context, read = run(ids[:cut], len(index), *arguments)
    line.send((seconds, _loss(model, ids[cut:], context), read))


@torch.inference_mode()
def _loss(logits: Callable[[Tensor], Tensor], ids: Tensor, context: int) -> float:
    """Average the nats of every character after the first, in windows of ``context``."""
    total = 0.0
    whole = (len(ids) - 1) // context * context
    rows = list(ids[:whole].view(-1, context).split(64))
    wanted = list(ids[1 : whole + 1].view(-1, context).split(64))
    if whole < len(ids) - 1:
        rows.append(ids[None, whole:-1])
        wanted.append(ids[None, whole + 1 :])
    for row, label in zip(rows, wanted, strict=True):
        scores = logits(row).float()
        total += torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), label.flatten(), reduction="sum"
        ).item()
    return total / (len(ids) - 1)


def _draw(ids: Tensor, rows: int, context: int) -> tuple[Tensor, Tensor]:
    """Cut random windows, as nanoGPT does."""
    starts = torch.randint(len(ids) - context - 1, (rows,)).tolist()
    return (
        torch.stack([ids[start : start + context] for start in starts]),
        torch.stack([ids[start + 1 : start + context + 1] for start in starts]),
    )


# --- contestants: (training ids, vocabulary, ...) -> (seconds, ids -> logits, context, characters read) ---


def _ours(
    ids: Tensor, vocab: int, steps: int, settings: list[str]
) -> tuple[float, Callable[..., Tensor], int, int]:
    values = dict(setting.split("=", 1) for setting in settings)
    config = LoopConfig(**{"steps": steps, "batch_tokens": 1024, **values})  # type: ignore[arg-type]
    context = 64
    model = Transformer(decoder(layers=LAYERS, dim=DIM, context=context, vocab_size=vocab))
    rows = config.batch_tokens // context

    def batches() -> Iterator[Batch]:
        while True:
            yield Batch(*_draw(ids, rows, context))

    began = time.perf_counter()
    fit(model, batches(), next_token_loss, config)
    seconds = time.perf_counter() - began
    model.eval()
    return seconds, lambda row: model(row).logits, context, steps * rows * context


def _nanogpt(ids: Tensor, vocab: int, folder: Path) -> tuple[float, Callable[..., Tensor], int, int]:
    """Train as `train.py config/train_shakespeare_char.py` with the flags its README gives for a CPU."""
    sys.path.insert(0, str(folder))
    import model as nanogpt

    context, rows, lr, least, warmup = 64, 12, 1e-3, 1e-4, 100
    with contextlib.redirect_stdout(io.StringIO()):
        gpt = nanogpt.GPT(
            nanogpt.GPTConfig(
                block_size=context,
                vocab_size=vocab,
                n_layer=LAYERS,
                n_head=HEADS,
                n_embd=DIM,
                dropout=0.0,
                bias=False,
            )
        )
        optimizer = gpt.configure_optimizers(0.1, lr, (0.9, 0.99), "cpu")
    began = time.perf_counter()
    for step in range(NANOGPT_STEPS):
        share = (step - warmup) / (NANOGPT_STEPS - warmup)
        now = lr * (step + 1) / (warmup + 1) if step < warmup else None
        for group in optimizer.param_groups:
            group["lr"] = now or least + 0.5 * (1 + math.cos(math.pi * share)) * (lr - least)
        _, loss = gpt(*_draw(ids, rows, context))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
    seconds = time.perf_counter() - began
    gpt.eval()
    return seconds, lambda row: gpt(row, row)[0], context, NANOGPT_STEPS * rows * context


def _nanochat(
    ids: Tensor, vocab: int, folder: Path, steps: int
) -> tuple[float, Callable[..., Tensor], int, int]:
    """Train with nanochat's model, optimizer and schedules; its rates are taken as they are, unscaled for the batch."""
    sys.path.insert(0, str(folder))
    os.environ.setdefault("NANOCHAT_BASE_DIR", "/nonexistent")
    from nanochat.gpt import GPT, GPTConfig

    rows = 16
    with contextlib.redirect_stdout(io.StringIO()):
        gpt = GPT(
            GPTConfig(
                sequence_len=CONTEXT,
                vocab_size=vocab,
                n_layer=LAYERS,
                n_head=HEADS,
                n_kv_head=HEADS,
                n_embd=DIM,
                window_pattern="L",
            )
        )
        gpt.init_weights()
        optimizer = gpt.setup_optimizer(unembedding_lr=0.008, embedding_lr=0.3, matrix_lr=0.02, scalar_lr=0.5)
    run = torch.compile(gpt, dynamic=False)
    start = {name: value.clone() for name, value in gpt.state_dict().items()}
    warm = int(min(40, steps // 10))
    down = round(0.65 * steps)

    def step(number: int) -> None:
        loss = run(*_draw(ids, rows, CONTEXT))
        loss.backward()
        factor = min((number + 1) / warm, 1.0, 0.05 + 0.95 * (steps - number) / down)
        early, late = min(1.0, number / 400), max(0.0, (number - steps + down) / down)
        momentum = (1 - early) * 0.85 + early * 0.97
        if late:
            momentum = min(momentum, 0.97 * (1 - late) + 0.90 * late)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if group["kind"] == "muon":
                group["momentum"] = momentum
        optimizer.step()
        gpt.zero_grad(set_to_none=True)
        loss.item()

    for number in range(2):  # compiles
        step(number)
    gpt.load_state_dict(start)
    optimizer.state.clear()
    began = time.perf_counter()
    for number in range(steps):
        step(number)
    seconds = time.perf_counter() - began
    return seconds, lambda row: gpt(row), CONTEXT, steps * rows * CONTEXT


# --- the report ---


def _table(found: dict[str, list[tuple[float, float, int]]], options: argparse.Namespace) -> str:
    lines = [
        f"{datetime.date.today()}, {describe(torch.device('cpu'))['processor']}, {options.threads} threads,"
        f" torch {torch.__version__}, {options.rounds} rounds; settings of ours: {options.set or 'defaults'}\n",
        "| | seconds, median (lowest–highest) | nats per character | characters a second |",
        "|---|---|---|---|",
    ]
    for name, runs in found.items():
        times, losses = [run[0] for run in runs], [run[1] for run in runs]
        middle = statistics.median(times)
        lines.append(
            f"| {name} | {middle:.1f} ({min(times):.1f}–{max(times):.1f}) | {statistics.median(losses):.3f} "
            f"({min(losses):.3f}–{max(losses):.3f}) | {runs[0][2] / middle:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
