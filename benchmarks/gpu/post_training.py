"""Measure a step of instruction tuning, DPO, PPO and GRPO on one GPU, through the stages that users call.

    python benchmarks/gpu/post_training.py MODEL [--steps 20] [--only TASK …] [--out FILE]

MODEL is a run or model folder, such as that of `stockpot convert smollm2 FOLDER`, or `random`: 124 million random weights, whose
steps take as long. Data are the village's. Reported: the median of the logged speeds after the first two lines, the peak
of memory, and the seconds of all. What FILE holds already is not measured again. ``--device cpu random-tiny`` runs
the script, not more.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kept import Kept

import stockpot as sp
from stockpot.device import describe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    is_tiny = options.model == "random-tiny"
    if options.model.startswith("random"):
        options.model = str(_random(Path(tempfile.mkdtemp()) / "model", is_tiny=is_tiny))
    loop = {
        "steps": options.steps,
        "log_every": 1,
        "dtype": "bfloat16",
        "batch_tokens": 1024 if is_tiny else 16_384,
    }
    loop |= {"validate_every": options.steps, "checkpoint_every": options.steps}  # neither is a step's time
    few = loop | {"steps": min(8, options.steps)}
    pairs = {"data": "village:preferences:0:2000", "val_pairs": 50, "drift_prompts": 0}
    count = 8 if is_tiny else 64
    asked = {"data": "village:prompts:0:500", "reward": "village", "max_tokens": 64}
    model = {"model": options.model, "device": options.device}
    tuned = model | {"data": "village:chats:0:4000", "loop": loop}
    jobs: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
        "sft": (sp.sft, lambda: sp.SFTConfig(**tuned)),
        "dpo": (sp.dpo, lambda: sp.DPOConfig(**model, **pairs, loop=loop)),
        "ppo": (sp.ppo, lambda: sp.PPOConfig(**model, **asked, prompts=count, loop=few)),
        "grpo": (sp.grpo, lambda: sp.GRPOConfig(**model, **asked, prompts=count // 8, samples=8, loop=few)),
        "sft, adapters": (sp.sft, lambda: sp.SFTConfig(**tuned, adapter={"rank": 16})),
        "sft, adapters, base in int8": (
            sp.sft,
            lambda: sp.SFTConfig(**tuned, adapter={"rank": 16, "frozen": "int8"}),
        ),
        "sft, adapters, base in nf4": (
            sp.sft,
            lambda: sp.SFTConfig(**tuned, adapter={"rank": 16, "frozen": "nf4"}),
        ),
    }
    kept = Kept(options.out, machine=describe(torch.device(options.device)))
    for name, (stage, config) in jobs.items():
        if (not options.only or name in options.only) and kept.lacks(task=name):
            try:
                kept.add(**_measured(stage, config(), options.device))
            except Exception as error:  # noqa: BLE001 - a task that cannot run is a row of the table
                kept.add(error=f"{type(error).__name__}: {error}"[-400:])


def _measured(stage: Callable[..., Any], config: Any, device: str) -> dict[str, Any]:
    is_card = device == "cuda"
    if is_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = stage(config, out=Path(folder) / "run")
        speeds = [value for _, value in run.series("tokens_per_s")][2:]
        times = [value for _, value in run.series("time_s")]
        losses = [value for _, value in run.series("train/loss")]
    steps = [later - earlier for earlier, later in itertools.pairwise(times)][1:]
    return {
        "tokens_per_s": statistics.median(speeds),
        "step_s": statistics.median(steps),
        "mean_step_s": statistics.fmean(steps),  # with the writing of answers, where there is some
        "losses": [losses[0], losses[-1]] if losses else None,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if is_card else None,
        "seconds": time.perf_counter() - began,
    }


def _random(folder: Path, *, is_tiny: bool) -> Path:
    """Write a model of 124 million weights, most of them random, with a tokenizer of the village's text."""
    tokenizer = sp.Tokenizer.train(sp.read_texts("village:documents:0:2000"), vocab_size=4096)
    shape = {"layers": 12, "dim": 768, "heads": 12, "context": 1024}
    if is_tiny:
        shape = {"layers": 2, "dim": 64, "heads": 2, "context": 256}
    model = sp.Transformer(sp.decoder(vocab_size=tokenizer.vocab_size, **shape))
    return sp.save(folder, sp.Bundle(model, tokenizer, sp.ChatTemplate.of(tokenizer)))


if __name__ == "__main__":
    main()
