"""Set soft prompts against the best of 88 ways of asking by hand, on a real model and real items; and against PEFT for speed.

    .venv/bin/python benchmarks/prompting.py MODEL --task sentiment --data FILE [--examples FILE] [--limit 400]
        [--seeds 0 1 2] [--steps 150] [--length 20] [--rounds 5] [--out FILE]

MODEL is a Hugging Face folder that both sides open, such as that of `stockpot convert smollm2 FOLDER`. By hand means: every
wording of the task, in each of the four ways of choosing a label; the best of these 88 is picked on the very questions that are
asked, which favours it. The soft prompt stands before that wording, is trained on examples that are not asked, and its label is
chosen plainly. Gains are paired over the items (bootstrap), and over seeds (Student). PEFT's prompt tuning computes the same
rows with as many vectors, as it comes and in bfloat16; both train in turn, round after round, and real tokens are counted.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

import stockpot as sp
from stockpot.data.batch import IGNORED, Batch
from stockpot.device import describe
from stockpot.generate.engine import Engine
from stockpot.judge.metrics import paired_difference, student
from stockpot.judge.prompts import WordingScore, ask_wording, prompts
from stockpot.model.soft import attach_soft
from stockpot.prompt.shots import Paper
from stockpot.prompt.soft import start_vectors
from stockpot.prompt.training import AnswerBatches, answer_pairs
from stockpot.stages.tune_prompt import PromptLoop, PromptTuningConfig
from stockpot.train.loop import fit
from stockpot.train.losses import next_token_loss

CPU = torch.device("cpu")
ROWS, STEPS = 8, 6  # examples of a micro-batch; steps of a round, a micro-batch each


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--task", default="sentiment")
    parser.add_argument("--data", required=True)
    parser.add_argument("--examples")
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: speed alone")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison of speed; 0: none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    questions = sp.Questions(
        task=options.task, data=options.data, examples=options.examples, limit=options.limit
    )
    _tell(
        f"{datetime.date.today()}, {describe(CPU)['processor']}, {options.threads} threads, torch {torch.__version__}, "
        f"{options.task}, {Path(options.data).name}, {options.length} vectors, {options.steps} steps.\n",
        options,
    )
    if options.seeds:
        _gains(questions, options)
    if options.rounds:
        _speeds(questions, options)


def _tell(text: str, options: argparse.Namespace) -> None:
    print(text, flush=True)
    if options.out is not None:
        with options.out.open("a", encoding="utf-8") as out:
            out.write(text + "\n")


# --- what it brings ---


def _gains(questions: sp.Questions, options: argparse.Namespace) -> None:
    by_hand = prompts(sp.load(options.model), questions).scores
    every = {(one.wording, way): one.accuracy[way] for one in by_hand for way in one.accuracy}
    (wording, way), best = max(every.items(), key=lambda pair: pair[1].value)
    middle = statistics.median(one.value for one in every.values())
    hits = next(one.right[way] for one in by_hand if one.wording == wording)
    _tell(
        f"By hand, {len(every)} ways of asking {best.n} items: median {middle:.3f}, best {best.value:.3f} "
        f"[{best.low:.3f}, {best.high:.3f}] ({wording}, {way}).\n\n"
        "| seed | soft prompt, accuracy | minus the best by hand, paired | trained in, s |\n"
        "|---:|---:|---:|---:|",
        options,
    )
    gains = []
    for seed in options.seeds:
        score, seconds = _tuned(questions, wording, seed, options)
        soft, gain = score.accuracy["plain"], paired_difference(hits, score.right["plain"])
        gains.append(gain.value)
        _tell(
            f"| {seed} | {soft.value:.3f} [{soft.low:.3f}, {soft.high:.3f}] | {gain.value:+.3f} "
            f"[{gain.low:+.3f}, {gain.high:+.3f}] | {seconds:.0f} |",
            options,
        )
    mean, half = student(gains)
    _tell(f"\nOver seeds: {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}].\n", options)


def _tuned(
    questions: sp.Questions, wording: str, seed: int, options: argparse.Namespace
) -> tuple[WordingScore, float]:
    """Tune a soft prompt before one wording and ask with it; returns the seconds of training, validation left out."""
    asked = questions.model_copy(update={"wordings": (wording,)})
    config = PromptTuningConfig(
        model=options.model,
        questions=asked,
        length=options.length,
        loop=PromptLoop(steps=options.steps),
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        run = sp.tune_prompt(config, out=Path(folder) / "run")
        worn = sp.load(options.model, adapters=[run.path])
        seconds = run.last("tokens") / statistics.median(speed for _, speed in run.series("tokens_per_s"))
    asking, pool = asked.open()
    score = ask_wording(Engine(worn, slots=16), asking, wording, pool, [[] for _ in pool.questions])
    return score, seconds


# --- what a step takes ---


def _speeds(questions: sp.Questions, options: argparse.Namespace) -> None:
    bundle = sp.load(options.model, device="cpu", dtype="float32")
    asking, pool = questions.open()
    paper = Paper(asking, next(iter(asking.wordings)), bundle, room=16)
    pairs = answer_pairs(paper, pool.examples[:200])
    plain = list(islice(iter(AnswerBatches(bundle, pairs, ROWS)), STEPS))
    attach_soft(bundle.model, start_vectors(bundle, options.length, "vocabulary"))
    worn = sp.Bundle(
        bundle.model,
        bundle.tokenizer,
        soft=tuple(range(len(bundle.tokenizer), len(bundle.tokenizer) + options.length)),
    )
    ours = list(islice(iter(AnswerBatches(worn, pairs, ROWS)), STEPS))
    tokens = sum(batch.tokens for batch in ours)
    loop = PromptLoop(steps=STEPS, batch_tokens=1, log_every=STEPS, divergence_factor=None)
    contestants = {
        "stockpot": lambda: fit(worn.model, ours, next_token_loss, loop),
        "PEFT (as it comes)": _peer(plain, None, options),
        "PEFT, bfloat16 autocast": _peer(plain, torch.bfloat16, options),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds + 1):
        for name, train in contestants.items():
            began = time.perf_counter()
            train()
            if number:  # the first prepares kernels
                seconds[name].append(time.perf_counter() - began)
    lines = ["| | tokens/s, median [lowest, highest] | ratio to stockpot |", "|---|---:|---:|"]
    for name, times in seconds.items():
        rates = [tokens / one for one in times]
        ratios = [own / one for own, one in zip(seconds["stockpot"], times, strict=True)]
        lines.append(
            f"| {name} | {statistics.median(rates):,.0f} [{min(rates):,.0f}, {max(rates):,.0f}] "
            f"| {statistics.median(ratios):.2f} |"
        )
    _tell(f"Speed: steps of {ROWS} examples, {tokens:,} tokens a round.\n\n" + "\n".join(lines), options)


def _peer(batches: list[Batch], dtype: torch.dtype | None, options: argparse.Namespace) -> Callable[[], Any]:
    from peft import PromptTuningConfig as Config
    from peft import TaskType, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = get_peft_model(
        base, Config(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=options.length)
    ).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01)

    shifted = [_shifted(batch) for batch in batches]

    def train() -> None:
        for inputs in shifted:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return train


def _shifted(batch: Batch) -> dict[str, torch.Tensor]:
    """Give a batch as transformers takes it, which shifts labels itself: the target of position t stands at t + 1."""
    labels = pad(batch.labels, (1, 0), value=IGNORED)
    mask = torch.ones_like(batch.ids) if batch.attention_mask is None else batch.attention_mask.long()
    return {
        "input_ids": torch.where(labels == IGNORED, pad(batch.ids, (0, 1)), labels),
        "attention_mask": pad(mask, (1, 0), value=1),
        "labels": labels,
    }


if __name__ == "__main__":
    main()
