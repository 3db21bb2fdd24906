"""Row 22: a small aligned model is preferred to a base model four times its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from stockpot.claims.claim import Claim, Finding, Material, above, below
from stockpot.claims.material import trained
from stockpot.run import Run
from stockpot.stages.contest import contest
from stockpot.stages.pretrain import PretrainConfig, pretrain
from stockpot.stages.sizes import DEPTHS, sized
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig

PROMPTS, TIMES, STEP_TOKENS = 200, 4, 4096


def measure(material: Material) -> Sequence[Finding]:
    """Pretrain a larger base model, compare how well it predicts text, and let both answer, judged by the villagers."""
    wins, sizes, losses = [], [], []
    for cook, seed in zip(material.cooks, material.seeds, strict=False):
        large = _large(cook, seed, material)
        found = contest(
            {"large": str(large.path), "small": str(cook / "dpo")},
            {"gold": "village"},
            "village:prompts/val",
            limit=PROMPTS,
            max_tokens=48,
            seed=seed,
        )
        wins.append(found.win_rate(found.entries[1], "gold").value)
        small = Run.open(cook / "pretrain")
        sizes.append(large.manifest["parameters"] / small.manifest["parameters"])
        losses.append(large.last("val/bits_per_byte") - small.last("val/bits_per_byte"))
        seen = f"{large.last('tokens'):,.0f} tokens, the small one's base {small.last('tokens'):,.0f}"
        material.told.append(f"Seed {seed}: the large model was trained on {seen}.")
    return [
        above("win rate of the small aligned model, villagers' exact taste", wins, 0.5, n=PROMPTS),
        above("times as many parameters in the large base model", sizes, TIMES - 0.001),
        below("bits a byte on held-out text: large base minus the small one's base", losses, 0.0),
    ]


def _large(cook: Path, seed: int, material: Material) -> Run:
    tokenizer, small = cook / "tokenizer", Run.open(cook / "pretrain")
    least = TIMES * small.manifest["parameters"]
    vocab_size = Tokenizer.load(tokenizer).vocab_size
    depth = next(
        one for one in DEPTHS if sized(one, vocab_size=vocab_size, context=256).parameters() >= least
    )
    steps = math.ceil(small.last("tokens") / STEP_TOKENS)
    config = PretrainConfig(
        tokenizer=str(tokenizer),
        size=depth,
        loop=LoopConfig(steps=steps, batch_tokens=STEP_TOKENS),
        seed=seed,
    )
    folder = material.out / f"large-{seed}"
    return trained(pretrain, config, folder, material)


CLAIM = Claim(
    22,
    "small-large",
    "A small aligned model is preferred to a base model at least four times its size",
    "1.3B InstructGPT is preferred to 175B GPT-3 (Ouyang et al. 2022, arXiv:2203.02155)",
    "each cook's DPO model against a base model of at least four times its parameters, pretrained on as many tokens of the same "
    "text as the small one's base; the base model is asked on a page of questions and answers",
    measure,
    "It costs four times the cooks' pretraining. Apart from cooks, with 1.72 and 7.01 million "
    "parameters pretrained for 300 steps each on three seeds, the villagers prefer DPO's answers in 76 % [74, 78] and PPO's in "
    "61 % [59, 62] of 900 cases, mostly for saying that they do not know (`benchmarks/results/post-training.md`).",
)
