"""Set a small aligned model against a base model at least four times its size, on the village, judged by its exact taste.

    .venv/bin/python benchmarks/small_against_large.py --out runs/small-large [--seeds 0 1 2] [--steps 600] [--small 3]
        [--large 5]

For each seed: one tokenizer; a small and a large base model, pretrained on the same text for the same steps; the small one is
then tuned on conversations, its own answers are compared by the villagers, a reward model is trained on these comparisons, and
DPO and PPO start from the tuned model, as in the village's recipe. All answer the same prompts, which no training has seen.
A base model, which holds no conversations, is asked on a page of questions and answers, and its answer ends with the line. A
folder that is there already is used as it is, so the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import stockpot as sp
from stockpot.judge.metrics import mean_estimate
from stockpot.run import Run
from stockpot.stages.contest import Contest, contest
from stockpot.stages.rewards import reward_from

PROMPTS = 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="of pretraining, 4,096 tokens each")
    parser.add_argument("--small", type=int, default=3, help="layers of the small model")
    parser.add_argument("--large", type=int, default=5, help="layers of the large model")
    options = parser.parse_args()
    contests = [_one(seed, options.out / f"seed-{seed}", options) for seed in options.seeds]
    print(_report(contests, options))


def _one(seed: int, folder: Path, options: argparse.Namespace) -> Contest:
    """Make the models of one seed and let them answer."""
    file = folder / "contest.json"
    if file.is_file():
        return Contest.from_json(file.read_text(encoding="utf-8"))
    small, large = (
        _stage(folder / f"base-{depth}", sp.pretrain, _base(folder, depth, seed, options.steps))
        for depth in (options.small, options.large)
    )
    loop = sp.LoopConfig(steps=options.steps // 3, batch_tokens=4096)
    tuned = _stage(
        folder / "sft", sp.sft, sp.SFTConfig(model=small, data="village:chats", loop=loop, seed=seed)
    )
    recipe = {"model": tuned, "seed": seed}
    compared = folder / "ranked" / "comparisons.jsonl"
    if not compared.is_file():
        sp.rank(_configured(sp.RankConfig, "rank", recipe), out=compared.parent)
    recipe |= {"data": (str(compared),)}
    rated = _stage(folder / "reward", sp.reward, _configured(sp.RewardConfig, "reward", recipe))
    direct = _stage(folder / "dpo", sp.dpo, _configured(sp.DPOConfig, "dpo", recipe))
    learned = _stage(
        folder / "ppo",
        sp.ppo,
        _configured(sp.PPOConfig, "ppo", {"model": tuned, "seed": seed, "reward": (rated,)}),
    )
    models = {
        "large base": large,
        "small base": small,
        "small tuned": tuned,
        "small DPO": direct,
        "small PPO": learned,
    }
    judge = reward_from("village", device=torch.device("cpu"))
    found = contest(
        models, {"gold": judge}, ("village:prompts/val",), limit=PROMPTS, max_tokens=48, seed=seed
    )
    file.write_text(found.to_json(), encoding="utf-8")
    return found


def _base(folder: Path, depth: int, seed: int, steps: int) -> Any:
    tokenizer = folder / "tokenizer"
    if not tokenizer.exists():
        sp.train_tokenizer(sp.TokenizerConfig(data="village", vocab_size=2048), out=tokenizer)
    loop = sp.LoopConfig(steps=steps, batch_tokens=4096)
    return sp.PretrainConfig(
        data="village", tokenizer=str(tokenizer), size=depth, context=256, loop=loop, seed=seed
    )


def _configured(config: Callable[..., Any], table: str, own: dict[str, Any]) -> Any:
    """Take the village recipe's settings of a stage."""
    from stockpot.config import build

    return build(config, table=table, recipe_files=["village"], sets=(), flags=own)


def _stage(folder: Path, stage: Callable[..., Any], config: Any) -> str:
    if not (folder / "manifest.json").is_file() or Run.open(folder).manifest["status"] != "done":
        print(f"{folder} …", file=sys.stderr, flush=True)
        stage(config, out=folder, resume=(folder / "manifest.json").is_file())
    return str(folder)


def _report(contests: Sequence[Contest], options: argparse.Namespace) -> str:
    parameters = {
        name: Run.open(options.out / f"seed-{options.seeds[0]}" / folder).manifest["parameters"]
        for name, folder in (("small", f"base-{options.small}"), ("large", f"base-{options.large}"))
    }
    lines = [
        f"Small: {parameters['small'] / 1e6:.2f} M parameters; large: {parameters['large'] / 1e6:.2f} M, "
        f"{parameters['large'] / parameters['small']:.1f} times as many. Seeds: {', '.join(map(str, options.seeds))}.\n",
        "| | mean rating, 0 to 3 | wins against the large base model | seed by seed |",
        "|---|---:|---:|---|",
    ]
    for place, name in enumerate(one.model for one in contests[0].entries):
        entries = [found.entries[place] for found in contests]
        ratings = [value for one in entries for value in one.ratings["gold"]]
        wins = [found.win_rate(one, "gold") for found, one in zip(contests, entries, strict=True)]
        pooled = mean_estimate(
            [value for found, one in zip(contests, entries, strict=True) for value in found.wins(one, "gold")]
        )
        lines.append(
            f"| {name} | {mean_estimate(ratings).value:.2f} | {pooled.value:.0%} [{pooled.low:.0%}, {pooled.high:.0%}] "
            f"n={pooled.n} | {' · '.join(f'{one.value:.0%}' for one in wins)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
