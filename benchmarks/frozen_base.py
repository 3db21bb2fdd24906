"""Measure what a base of 8 or 4 bits costs and saves beside adapters: memory, seconds, held-out loss before and after.

    .venv/bin/python benchmarks/frozen_base.py MODEL --chats FILE [--steps 40] [--kinds none int8 nf4] [--out FILE]

Each kind is a process of its own, the same seed, records and steps; they run one after another, round after round. Weights are
counted as the bytes of all parameters and buffers once adapters are on; the peak is that of the process, libraries included.
With ``--dtype`` products run in a type of one's own choosing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stockpot.data.corpus import open_corpus
from stockpot.data.corrupt import causal
from stockpot.data.loader import FixedBatches, Loader, LoaderConfig
from stockpot.data.reading import ReadConfig
from stockpot.device import describe, seed_everything
from stockpot.model.adapters import LoRA, frozen_bytes
from stockpot.stages.assemble import GentleLoop, adapt, mean_metrics, open_to_tune
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss

CPU = torch.device("cpu")
ROW, HELD = 512, 0.1  # tokens of a row; share of the records that is held out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--chats", required=True, help="conversations")
    parser.add_argument("--kinds", nargs="+", default=["none", "int8", "nf4"])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-tokens", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the table to this Markdown file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a kind, in a process of its own
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    rows = []
    for kind in options.kinds:
        command = [sys.executable, __file__, *sys.argv[1:], "--one", kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{kind}: {rows[-1]}", file=sys.stderr, flush=True)
    table = _table(rows, options)
    print(table)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as out:
            out.write(table + "\n")


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    seed_everything(options.seed)
    bundle = open_to_tune(options.model, None, verb="sft")
    loop = GentleLoop(
        steps=options.steps,
        lr=options.lr,
        batch_tokens=options.batch_tokens,
        log_every=1,
        dtype=options.dtype,
    )
    adapter = LoRA(rank=options.rank, frozen=None if kind == "none" else kind)
    trained = adapt(bundle.model, adapter, loop, CPU)
    tensors = [*bundle.model.parameters(), *bundle.model.buffers()]
    store = open_corpus(
        (options.chats,), bundle.tokenizer, bundle.template, reading=ReadConfig(), context=ROW
    )
    train, held_out = store.split(HELD, seed=options.seed)
    settings = LoaderConfig(context=ROW, micro_batch=1, seed=options.seed)
    aim = causal(bundle.tokenizer)
    validate = partial(
        mean_metrics(FixedBatches(held_out, settings, aim, max_batches=40), next_token_loss), bundle.model
    )
    before = validate()["loss"]
    began = time.process_time()
    fit(bundle.model, Loader(train, settings, aim), next_token_loss, loop)
    seconds = (time.process_time() - began) / options.steps
    return {
        "kind": kind,
        "trained": trained,
        "matrices_mib": frozen_bytes(bundle.model) / 2**20,
        "weights_mib": sum(one.nbytes for one in tensors) / 2**20,
        "before": before,
        "after": validate()["loss"],
        "seconds": seconds,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def _table(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        f"{datetime.date.today()}, {describe(CPU)['processor']}, {options.threads} threads, torch {torch.__version__}, "
        f"rank {options.rank}, {options.steps} steps of {options.batch_tokens} tokens at {options.lr:g}, seed {options.seed}.\n",
        "| frozen | weights and adapters, MiB | held-out loss before | after | processor seconds a step | peak GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one['kind']} | {one['weights_mib']:,.0f} | {one['before']:.4f} | {one['after']:.4f} | {one['seconds']:.2f} "
        f"| {one['peak_gib']:.2f} |"
        for one in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
