"""Measure instruction tuning, DPO and GRPO against TRL: the same model, records and step, on this machine's CPU.

    .venv/bin/python benchmarks/post_training.py MODEL [--tasks sft sft-lora dpo dpo-lora grpo] [--rounds 3]
        [--chats FILE] [--pairs FILE] [--out FILE]

MODEL is a Hugging Face folder that both sides open, such as that of `stockpot convert smollm2 FOLDER`. Every contestant is a
process of its own; they train in turn, some seconds each, round after round, so that a busy machine hurts them alike. Ours runs
through `stockpot.train.loop.fit` with the batches and losses of the stages; TRL through its trainers. Rates and lengths are
the same, and so is what is counted: real tokens of conversations (padding does not count), comparisons (the reference's part
is included on both sides), answers drawn and learned from. Peak memory is that of the process, libraries included.

Ours is measured as it comes, and with the settings that take the least memory (`loop.moments=bfloat16` and
`loop.parallel.recompute=true`). TRL is measured as it comes (bfloat16 autocast, activations computed twice to save memory),
with activations kept, and with weights in bfloat16, in which small updates are lost.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import multiprocessing as mp
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from stockpot.data.sources import read_records
from stockpot.device import describe
from stockpot.model.adapters import LoRA

OURS = "stockpot"
OWN: dict[str, dict[str, Any]] = {
    OURS: {},
    "stockpot, least memory": {"moments": "bfloat16", "parallel": {"recompute": True}},
}
PEERS: dict[str, dict[str, Any]] = {
    "TRL (as it comes)": {},
    "TRL, activations kept": {"gradient_checkpointing": False},
    "TRL, bfloat16 weights": {"gradient_checkpointing": False, "dtype": torch.bfloat16},
}
UNITS = {"sft": "tokens", "dpo": "comparisons", "grpo": "answers"}
RECORDS, ROWS, PAIRS = 400, 8, 8  # records in all; conversations and comparisons of a step
PROMPTS, SAMPLES, ANSWER = 2, 8, 48  # of a GRPO step; tokens of an answer
CONTEXT = 512
RANK, TARGETS = 8, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LR, BETA, KL = 1e-5, 0.1, 0.04
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["sft", "sft-lora", "dpo", "dpo-lora", "grpo"])
    parser.add_argument("--only", nargs="+", help="contestants whose names contain one of these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each contestant in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--chats", default="village:chats", help="conversations")
    parser.add_argument("--pairs", default="village:preferences", help="comparisons")
    parser.add_argument("--out", type=Path, help="append the tables to this Markdown file")
    options = parser.parse_args()
    _tell(
        f"{datetime.date.today()}, {describe(CPU)['processor']}, {options.threads} threads, torch {torch.__version__}, "
        f"{options.rounds} rounds.\n",
        options.out,
    )
    with tempfile.TemporaryDirectory() as folder:
        _write_records(Path(folder), options)
        for task in options.tasks:
            _tell(_table(task, *_race(task, Path(folder), options)), options.out)


def _tell(text: str, file: Path | None) -> None:
    """Print a part of the report, and append it to a file at once: a later task may fail."""
    print(text, flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            out.write(text + "\n")


# --- the records, written once for both sides ---


def _write_records(folder: Path, options: argparse.Namespace) -> None:
    """Write conversations of one turn, comparisons and prompts in the form that TRL and stockpot both read."""

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    files: dict[str, list[dict[str, Any]]] = {"sft": [], "dpo": [], "grpo": []}
    for record in read_records(options.chats):
        asked, answered = record.messages[:2] if hasattr(record, "messages") else _turn(record)
        files["sft"].append(
            {"prompt": said("user", asked.content), "completion": said("assistant", answered.content)}
        )
    for record in read_records(options.pairs):
        if isinstance(record.prompt, str) and not record.tie:
            sides = {name: said("assistant", str(getattr(record, name))) for name in ("chosen", "rejected")}
            files["dpo"].append({"prompt": said("user", record.prompt)} | sides)
    files["grpo"] = [{"prompt": one["prompt"]} for one in files["dpo"]]
    for name, records in files.items():
        short = [one for one in records if len(json.dumps(one)) < 2 * CONTEXT][
            :RECORDS
        ]  # leaves room for the longest
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in short), encoding="utf-8"
        )


def _turn(record: Any) -> tuple[Any, Any]:
    from stockpot.data.records import as_messages

    prompt, completion = as_messages(record.prompt), record.completion
    return prompt[-1], type(prompt[-1])("assistant", completion)


# --- the race ---


def _race(
    task: str, folder: Path, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float], dict[str, float]]:
    """Let all contestants train in turn; return units a second by round, steps' seconds, and peak GiB."""
    names = [*OWN, *PEERS]
    if options.only:
        names = [name for name in names if any(word in name for word in options.only)]
    context = mp.get_context("spawn")
    lines: dict[str, Connection] = {}
    workers = []
    for name in names:
        lines[name], end = context.Pipe()
        arguments = (end, name, task, folder, options.model, options.threads)
        workers.append(context.Process(target=_work, args=arguments, daemon=True))
        workers[-1].start()
        end.close()  # so that a contestant that fails ends the race
        lines[name].recv()  # warm
        print(f"{task}: {name} is warm", file=sys.stderr, flush=True)
    speeds: dict[str, list[float]] = {name: [] for name in names}
    steps: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name, line in lines.items():
            line.send(options.seconds)
            taken = line.recv()
            speeds[name].append(sum(units for _, units in taken) / sum(seconds for seconds, _ in taken))
            steps[name] += [seconds for seconds, _ in taken]
        print(f"{task}: round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    peaks = {}
    for name, line in lines.items():
        line.send(None)
        peaks[name] = line.recv()
    for worker in workers:
        worker.kill()
    return speeds, {name: statistics.median(taken) for name, taken in steps.items()}, peaks


class _Gate:
    """Lets steps through for as long as the line asks, and tells the seconds and the units of each."""

    def __init__(self, line: Connection) -> None:
        self.line, self.left, self.taken = line, 0.0, list[tuple[float, float]]()
        self.steps, self.began, self.units = 0, 0.0, 0.0

    def step_ends(self) -> None:
        """Count a step, and wait for the next turn if this one is over."""
        self.steps += 1
        if self.steps == 1:
            self.line.send(True)
        elif self.steps > 1:
            self.taken.append((time.perf_counter() - self.began, self.units))
        if sum(seconds for seconds, _ in self.taken) >= self.left:
            if self.taken:
                self.line.send(self.taken)
            self.left = self.line.recv()
            if self.left is None:
                self.line.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
                time.sleep(3600)  # until the end of the race
            self.taken = []
        self.began, self.units = time.perf_counter(), 0.0


def _work(line: Connection, name: str, task: str, folder: Path, model: Path, threads: int) -> None:
    """Train in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind, _, adapter = task.partition("-")
    run = _ours if name in OWN else _trl
    run(
        _Gate(line),
        kind,
        bool(adapter),
        folder / f"{kind}.jsonl",
        model,
        **(OWN | PEERS)[name],
    )


# --- stockpot ---


def _ours(gate: _Gate, kind: str, has_adapter: bool, records: Path, model: Path, **choices: Any) -> None:
    from stockpot.stages.assemble import GentleLoop, adapt, open_to_tune
    from stockpot.train.loop import fit

    bundle = open_to_tune(str(model), None, verb=kind)
    loop = GentleLoop(
        steps=10**6, lr=LR, schedule="constant", log_every=10**6, divergence_factor=None, **choices
    )
    adapter = LoRA(rank=RANK) if has_adapter else None
    adapt(bundle.model, adapter, loop, CPU)
    make = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[kind]
    batches, loss_fn, tokens = make(bundle, records, gate, loop, adapter)
    fit(bundle.model, batches, loss_fn, loop.model_copy(update={"batch_tokens": tokens}))


def _counted(batches: Any, gate: _Gate, units: Any, tokens: int) -> Iterator[Any]:
    """Pass batches on; a step has ended when `Feed` asks for more than it holds."""
    taken = 0
    for batch in batches:
        yield batch
        gate.units += units(batch)
        taken += batch.tokens
        ends = getattr(batch, "ends_step", None)
        if ends or (ends is None and taken + batch.tokens / 2 >= tokens):
            gate.step_ends()
            taken = 0


def _sft(bundle: Any, records: Path, gate: _Gate, loop: Any, adapter: Any) -> tuple[Any, Any, int]:
    from stockpot.data.corpus import open_corpus
    from stockpot.data.corrupt import causal
    from stockpot.data.loader import Loader, LoaderConfig
    from stockpot.data.reading import ReadConfig
    from stockpot.stages.assemble import ROW_TOKENS, micro_batch_for, tokens_at_once
    from stockpot.train.losses import next_token_loss

    store = open_corpus(
        (str(records),), bundle.tokenizer, bundle.template, reading=ReadConfig(), context=CONTEXT
    )
    tokens = ROWS * store.tokens // store.documents
    row = min(CONTEXT, max(ROW_TOKENS, int(store.lengths.max())))
    sized = loop.model_copy(update={"batch_tokens": max(1, round(tokens / row)) * row})  # which `Feed` takes
    at_once = tokens_at_once(sized, bundle.model.config, CPU, adapter, weighs=False)
    rows, _ = micro_batch_for(sized.batch_tokens, row, at_once)
    loader = Loader(store, LoaderConfig(context=row, micro_batch=rows), causal(bundle.tokenizer))
    return _counted(loader, gate, lambda batch: batch.tokens, tokens), next_token_loss, tokens


def _dpo(bundle: Any, records: Path, gate: _Gate, loop: Any, adapter: Any) -> tuple[Any, Any, int]:
    from functools import partial

    from stockpot.data.pairs import PairLoader, encode_pairs
    from stockpot.stages.assemble import tokens_at_once
    from stockpot.stages.comparisons import autocast
    from stockpot.train.log_probs import label_log_probs
    from stockpot.train.preference import PreferenceConfig, preference_loss

    pairs = encode_pairs(read_records(str(records)), bundle.tokenizer, bundle.template, context=2 * CONTEXT)
    tokens = PAIRS * pairs.tokens // len(pairs)
    at_once = tokens_at_once(
        loop.model_copy(update={"batch_tokens": tokens}), bundle.model.config, CPU, adapter
    )

    def referred() -> Iterator[Any]:
        for batch in PairLoader(pairs, tokens=at_once):
            with torch.inference_mode(), autocast(CPU, loop):
                batch.reference = label_log_probs(bundle.model, batch.texts).per_answer(batch.texts)[0]
            batch.reference = batch.reference.clone()
            yield batch

    loss = partial(preference_loss, config=PreferenceConfig(beta=BETA))
    return _counted(referred(), gate, lambda batch: len(batch.chance), tokens), loss, tokens


def _grpo(bundle: Any, records: Path, gate: _Gate, loop: Any, adapter: Any) -> tuple[Any, Any, int]:
    from functools import partial

    from stockpot.stages.assemble import silent, tokens_at_once
    from stockpot.stages.comparisons import autocast
    from stockpot.stages.drift import open_reference
    from stockpot.stages.ppo import GRPOConfig
    from stockpot.stages.prompts import read_prompts
    from stockpot.train.rollouts import Rollouts

    config = GRPOConfig(prompts=PROMPTS, samples=SAMPLES, max_tokens=ANSWER, kl_coef=KL, stop_kl=None)
    rollouts = Rollouts(
        bundle,
        bundle.model,
        read_prompts((_plain_prompts(records),), bundle, ANSWER, silent),
        lambda replies: [-len(one.text) / 100 for one in replies],
        config,
        reference=partial(open_reference, bundle),  # read anew in each phase, as the stage does
        tokens=tokens_at_once(loop, bundle.model.config, CPU, adapter),
        autocast=partial(autocast, CPU, loop),
    )
    return _counted(rollouts, gate, lambda batch: int(batch.texts.answers.max()) + 1, 1), rollouts.loss, 1


def _plain_prompts(records: Path) -> str:
    """Write prompts as texts, which is how `read_prompts` takes what has no answer."""
    lines = [
        json.loads(line)["prompt"][0]["content"] for line in records.read_text(encoding="utf-8").splitlines()
    ]
    file = records.with_name(f"plain-{os.getpid()}.jsonl")
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    return str(file)


# --- TRL ---


def _trl(gate: _Gate, kind: str, has_adapter: bool, records: Path, model: Path, **choices: Any) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(model, dtype=choices.pop("dtype", torch.float32))
    lines = records.read_text(encoding="utf-8").splitlines()
    dataset = Dataset.from_list([json.loads(line) for line in lines])

    class Turns(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if kind == "dpo":
                gate.units += PAIRS
            if kind == "grpo":
                gate.units += PROMPTS * SAMPLES
            gate.step_ends()

    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        trainer = _trainer(kind, has_adapter, network, tokenizer, dataset, out, choices)
        if kind == "sft":
            trainer.data_collator = _counting(trainer.data_collator, gate)
        trainer.add_callback(Turns())
        trainer.train()


def _counting(collate: Any, gate: _Gate) -> Any:
    def counted(rows: Any) -> Any:
        batch = collate(rows)
        gate.units += int(batch["attention_mask"].sum())
        return batch

    return counted


def _trainer(
    kind: str,
    has_adapter: bool,
    network: Any,
    tokenizer: Any,
    dataset: Any,
    out: str,
    choices: dict[str, Any],
) -> Any:
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS) if has_adapter else None
    common: dict[str, Any] = {
        "output_dir": out,
        "max_steps": 10**6,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **choices,
    }
    both = {"train_dataset": dataset, "processing_class": tokenizer, "peft_config": adapter}
    if kind == "sft":
        return SFTTrainer(
            network, SFTConfig(per_device_train_batch_size=ROWS, max_length=CONTEXT, **common), **both
        )
    if kind == "dpo":
        return DPOTrainer(
            network,
            None,
            DPOConfig(per_device_train_batch_size=PAIRS, max_length=2 * CONTEXT, beta=BETA, **common),
            **both,
        )
    config = GRPOConfig(
        per_device_train_batch_size=PROMPTS * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=ANSWER,
        beta=KL,
        **common,
    )
    return GRPOTrainer(network, _shorter, config, **both)


def _shorter(completions: Any, **_: Any) -> list[float]:
    return [-len(one[0]["content"]) / 100 for one in completions]


# --- the report ---


def _table(
    task: str, speeds: dict[str, list[float]], steps: dict[str, float], peaks: dict[str, float]
) -> str:
    unit = UNITS[task.partition("-")[0]]
    lines = [
        f"### {task}\n",
        f"| | {unit}/s | rounds: lowest–highest | step s, median | peak GiB | ours is | ours takes |",
        "|---|---:|---|---:|---:|---|---:|",
    ]
    for name, rounds in speeds.items():
        ratio, share = "–", "–"
        if OURS in speeds and name != OURS:
            ratios = [own / theirs for own, theirs in zip(speeds[OURS], rounds, strict=True)]
            ratio = f"{statistics.median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
            share = f"{peaks[OURS] / peaks[name]:.0%} of its memory"
        lines.append(
            f"| {name} | {statistics.median(rounds):,.1f} | {min(rounds):,.1f}–{max(rounds):,.1f} | {steps[name]:.2f} "
            f"| {peaks[name]:.2f} | {ratio} | {share} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
