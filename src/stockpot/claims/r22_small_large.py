"""Row 22: a small aligned model is preferred to a base model four times its size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from stockpot.claims.claim import Claim, Finding, Material, above
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
    wins = []
    for cook, seed in zip(material.cooks, material.seeds, strict=False):
        small, large = Run.open(cook / "pretrain"), _large(cook, seed, material)
        found = contest(
            {"large": str(large.path), "small": str(cook / "dpo")},
            {"gold": "village"},
            "village:prompts/val",
            limit=PROMPTS,
            max_tokens=48,
            seed=seed,
        )
        wins.append(found.win_rate(found.entries[1], "gold").value)
        material.told.append(f"Seed {seed}: large {_told(large)}; the small one's base {_told(small)}.")
    return [above("win rate of the small aligned model, villagers' exact taste", wins, 0.5, n=PROMPTS)]


def _told(run: Run) -> str:
    size, loss = run.manifest["parameters"], run.last("val/bits_per_byte")
    return f"{size / 1e6:.2f} million parameters, {run.last('tokens') / 1e6:.1f} million tokens, {loss:.3f} bits a byte"


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
    "On cooks of ten minutes. Of the small model's 410 wins 113 are “I do not know.”, which the larger one never says; of "
    "its other answers the villagers prefer 77, 74 and 71 %, many for being a sentence where the base model gives a bare "
    "word. Judged anew by the taste of version 5, which wants a sentence to speak of whom was asked about, the same models' "
    "wins are 0.73 [0.65, 0.80]. On cooks of three minutes it was not so: 0.47 [0.26, 0.68], seed by seed 56, 46 and 39 %. "
    "After 300 steps of pretraining for both, DPO's answers were preferred in 76 % [74, 78] and PPO's in 61 % [59, 62] of "
    "900 cases, mostly for saying that they do not know (`benchmarks/results/post-training.md`).",
)
