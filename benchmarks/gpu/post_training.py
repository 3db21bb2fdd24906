"""Measure a step of instruction tuning, DPO and PPO on one GPU, through the stages that users call.

    python benchmarks/gpu/post_training.py MODEL [--steps 20] [--out FILE]

MODEL is a run or model folder, such as that of `stockpot convert smollm2 FOLDER`, or `random`: 124 million random weights, whose
steps take as long. Data are the village's. Reported: the median of
the logged speeds after the first two lines, the peak of memory, and the seconds of all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import stockpot as sp
from stockpot.device import describe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.model == "random":
        options.model = str(_random(Path(tempfile.mkdtemp()) / "model"))
    loop = {"steps": options.steps, "log_every": 1, "dtype": "bfloat16", "batch_tokens": 16_384}
    loop |= {"validate_every": options.steps, "checkpoint_every": options.steps}  # neither is a step's time
    pairs = {"data": "village:preferences:0:2000", "val_pairs": 50, "drift_prompts": 0}
    asked = {"data": "village:prompts:0:500", "reward": "village", "max_tokens": 64, "prompts": 64}
    model = {"model": options.model, "device": "cuda"}
    jobs: dict[str, tuple[Callable[..., Any], Any]] = {
        "sft": (sp.sft, sp.SFTConfig(**model, data="village:chats:0:4000", loop=sp.LoopConfig(**loop))),
        "dpo": (sp.dpo, sp.DPOConfig(**model, **pairs, loop=sp.LoopConfig(**loop))),
        "ppo": (sp.ppo, sp.PPOConfig(**model, **asked, loop=sp.LoopConfig(**loop | {"steps": 8}))),
    }
    figures: dict[str, Any] = {"machine": describe(torch.device("cuda")), "rows": []}
    for name, (stage, config) in jobs.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = stage(config, out=Path(folder) / "run")
            speeds = [value for _, value in run.series("tokens_per_s")][2:]
            times = [value for _, value in run.series("time_s")]
        steps = [later - earlier for earlier, later in itertools.pairwise(times)][1:]
        row = {
            "task": name,
            "tokens_per_s": statistics.median(speeds),
            "step_s": statistics.median(steps),
            "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            "seconds": time.perf_counter() - began,
        }
        figures["rows"].append(row)
        print(json.dumps(row), flush=True)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _random(folder: Path) -> Path:
    """Write a model of 124 million weights, most of them random, with a tokenizer of the village's text."""
    tokenizer = sp.Tokenizer.train(sp.read_texts("village:documents:0:2000"), vocab_size=4096)
    shape = {"layers": 12, "dim": 768, "heads": 12, "context": 1024}
    model = sp.Transformer(sp.decoder(vocab_size=tokenizer.vocab_size, **shape))
    return sp.save(folder, sp.Bundle(model, tokenizer, sp.ChatTemplate.of(tokenizer)))


if __name__ == "__main__":
    main()
