"""Tune a small chat model on real conversations, then on real comparisons, with low-rank adapters; measure each before and after.

    .venv/bin/python benchmarks/real_chat.py MODEL --chats chats.jsonl --pairs pairs.jsonl --out runs/real-chat
        [--tune 400] [--compare 250] [--validate 100] [--held-out 150] [--prompts 80] [--rank 8] [--rates 1e-4 3e-4] [--seed 0]

The files are shuffled once and cut: conversations to tune on, comparisons for DPO, other comparisons for the judge (a reward
model) and for choosing among DPO's learning rates, and records that nothing is trained on or chosen by: no prompt of theirs is
in the other parts. Measured on these: nats a token of the known answers, comparisons told apart, and answers to the prompts,
rated by the judge. A folder that is there already is used as it is.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import stockpot as sp
from stockpot.data.records import PreferenceRecord, Record, asked_of
from stockpot.data.sources import read_records
from stockpot.judge.metrics import Estimate, mean_estimate, paired_difference, proportion
from stockpot.model.adapters import LoRA
from stockpot.run import Run
from stockpot.stages.contest import contest

PARTS = ("chats", "pairs", "judge", "val-pairs", "held-chats", "held-pairs")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--chats", required=True)
    parser.add_argument("--pairs", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", type=int, default=400, help="conversations, about once each")
    parser.add_argument(
        "--compare", type=int, default=250, help="comparisons of DPO, and as many of the judge"
    )
    parser.add_argument("--validate", type=int, default=100, help="comparisons that choose the rate of DPO")
    parser.add_argument("--held-out", type=int, default=150, help="records of each kind")
    parser.add_argument("--prompts", type=int, default=80, help="answered and rated")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4], help="of DPO; one is chosen")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    files = cut(options)
    runs = train(options, files)
    print(report(options, files, runs))


def cut(options: argparse.Namespace) -> dict[str, Path]:
    """Write the parts as files; no prompt that is measured is trained on."""
    folder = options.out / "data"
    files = {name: folder / f"{name}.jsonl" for name in PARTS}
    if all(file.is_file() for file in files.values()):
        return files
    chats, pairs = (_shuffled(source, options.seed) for source in (options.chats, options.pairs))
    held = [dict(list(side.items())[: options.held_out]) for side in (chats, pairs)]
    free_chats, free_pairs = (
        [line for prompt, line in side.items() if prompt not in held[0] and prompt not in held[1]]
        for side in (chats, pairs)
    )
    parts = (
        free_chats[: options.tune],
        free_pairs[: options.compare],
        free_pairs[options.compare : 2 * options.compare],
        free_pairs[2 * options.compare : 2 * options.compare + options.validate],
        list(held[0].values()),
        list(held[1].values()),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in zip(PARTS, parts, strict=True):
        files[name].write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return files


def _shuffled(source: str, seed: int) -> dict[str, dict[str, Any]]:
    """Give one line for each prompt, in the order of the seed."""
    lines = {prompt: line for record in read_records(source) for prompt, line in [_line(record)]}
    return {prompt: lines[prompt] for prompt in random.Random(seed).sample(sorted(lines), len(lines))}


def _line(record: Record) -> tuple[str, dict[str, Any]]:
    messages, answer = asked_of(record)
    said = [{"role": one.role, "content": one.content} for one in messages]
    if isinstance(record, PreferenceRecord):
        rest = {"chosen": record.chosen, "rejected": record.rejected}
    else:
        rest = {"completion": answer}
    return json.dumps(said), {"prompt": said} | rest


def train(options: argparse.Namespace, files: dict[str, Path]) -> dict[str, str]:
    """Tune, train the judge on its own comparisons, and learn from the others; returns model → what `load` takes."""
    adapter = LoRA(rank=options.rank)
    few = {"batch_tokens": 1024, "validate_every": 10_000, "checkpoint_every": 10_000}
    steps = max(1, sum(map(len, files["chats"].read_text(encoding="utf-8").splitlines())) // 4 // 1024)
    loop = few | {"steps": steps, "lr": 2e-4, "optimizer": "adamw", "weight_decay": 0.0}
    tuned = _stage(
        options.out / "sft",
        sp.sft,
        sp.SFTConfig(
            model=options.model, data=str(files["chats"]), adapter=adapter, loop=loop, seed=options.seed
        ),
    )
    compared = {"adapter": adapter, "seed": options.seed, "passes": 2}
    own = {"data": str(files["judge"]), "val_data": (str(files["held-pairs"]),), "loop": few | {"lr": 1e-4}}
    judge = _stage(options.out / "judge", sp.reward, sp.RewardConfig(model=options.model, **own, **compared))
    tried = {}
    for rate in options.rates:
        own = {"data": str(files["pairs"]), "val_data": (str(files["val-pairs"]),), "drift_prompts": 0}
        config = sp.DPOConfig(model=tuned, loop=few | {"lr": rate}, **own, **compared)
        tried[rate] = _stage(options.out / f"dpo-{rate:g}", sp.dpo, config)
    losses = {rate: Run.open(folder).last("val/loss") for rate, folder in tried.items()}
    print(f"DPO's loss on the comparisons that choose, by learning rate: {losses}\n")
    return {
        "before": options.model,
        "SFT": tuned,
        "DPO": tried[min(losses, key=losses.__getitem__)],
        "judge": judge,
    }


def _stage(folder: Path, stage: Callable[..., Any], config: Any) -> str:
    if not (folder / "manifest.json").is_file() or Run.open(folder).manifest["status"] != "done":
        print(f"{folder} …", file=sys.stderr, flush=True)
        stage(config, out=folder, resume=(folder / "manifest.json").is_file())
    return str(folder)


def report(options: argparse.Namespace, files: dict[str, Path], runs: dict[str, str]) -> str:
    """Measure all models on what nothing was trained on."""
    names = ("before", "SFT", "DPO")
    losses = {name: _nats(runs[name], files["held-chats"]) for name in names}
    scores = {name: _log_probs(runs[name], files["held-pairs"]) for name in names}
    prompts = options.out / "data" / "prompts.jsonl"
    lines = files["held-pairs"].read_text(encoding="utf-8").splitlines()[: options.prompts]
    prompts.write_text(
        "".join(json.dumps({"prompt": json.loads(line)["prompt"]}) + "\n" for line in lines), encoding="utf-8"
    )
    found = contest(
        {name: runs[name] for name in names},
        {"judge": runs["judge"]},
        str(prompts),
        max_tokens=64,
        seed=options.seed,
    )
    (options.out / "contest.json").write_text(found.to_json(), encoding="utf-8")
    told = [
        "| | nats a token of held-out answers | against before, paired | chosen is more probable | "
        "wins against before | KL, nats | tokens |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for entry in found.entries:
        name = entry.model
        gain = "–" if name == "before" else _said(paired_difference(losses["before"], losses[name]), "+.3f")
        wins = "–" if name == "before" else _said(found.win_rate(entry, "judge"), ".1%")
        right = _share_of([chosen > rejected for chosen, rejected in scores[name]])
        kl = "–" if entry.kl is None else f"{entry.kl.value:.2f}"
        told.append(
            f"| {name} | {_said(mean_estimate(losses[name]), '.3f')} | {gain} | {_said(right, '.1%')} | {wins} | {kl} | "
            f"{entry.length.value:.1f} |"
        )
    margin = [  # how much more DPO has raised the chosen answer than the rejected one
        (chosen - before_chosen) - (rejected - before_rejected) > 0
        for (chosen, rejected), (before_chosen, before_rejected) in zip(
            scores["DPO"], scores["SFT"], strict=True
        )
    ]
    judge = Run.open(runs["judge"]).manifest.get("accuracy")
    told_apart = _said(_share_of(margin), ".1%")
    said = (
        f"DPO's own margin tells {told_apart} of the held-out comparisons apart, the judge {_share(judge)}."
    )
    last = found.win_rate(found.entries[2], "judge", against=found.entries[1])
    return "\n".join([*told, "", f"{said} DPO wins against SFT: {_said(last, '.1%')}."])


def _nats(model: str, file: Path) -> list[float]:
    engine = sp.Engine(sp.load(model))
    asked = [asked_of(record) for record in read_records(str(file))]
    scores = engine.score([(list(messages), answer or "") for messages, answer in asked])
    return [-one.log_prob / one.tokens for one in scores]


def _log_probs(model: str, file: Path) -> list[tuple[float, float]]:
    """Give the log-probabilities, in nats, of the chosen and the rejected answer of every comparison."""
    engine = sp.Engine(sp.load(model))
    asked = [(list(asked_of(one)[0]), one) for one in read_records(str(file))]
    chosen, rejected = (
        engine.score([(messages, getattr(one, side)) for messages, one in asked])
        for side in ("chosen", "rejected")
    )
    return [(a.log_prob, b.log_prob) for a, b in zip(chosen, rejected, strict=True)]


def _share_of(found: list[bool]) -> Estimate:
    return proportion(sum(found), len(found))


def _said(one: Estimate, how: str) -> str:
    return f"{one.value:{how}} [{one.low:{how}}, {one.high:{how}}] n={one.n}"


def _share(one: dict[str, Any] | None) -> str:
    return "–" if one is None else f"{one['value']:.1%} [{one['low']:.1%}, {one['high']:.1%}] n={one['n']}"


if __name__ == "__main__":
    main()
