"""Compare `stockpot eval` with lm-evaluation-harness: same model, items and prompts; choices picked, accuracies, speed.

    .venv/bin/python benchmarks/judging.py --model FOLDER --data FOLDER --items 200 --tasks arc_easy,piqa,svamp

The model is a Hugging Face folder (`stockpot convert smollm2 FOLDER`), the data a folder with files named like the tasks. Each
item is written once in the form it has on the hub, and both sides read that file. lm-eval's own task definitions are used;
only the place of the data is changed. The items are judged in rounds, one side after the other within each, so that a busy
machine hurts both alike; opening models and files does not count, nor, for lm-eval, making its requests. lm-eval runs with
batches of 16, its fastest setting here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import stockpot as sp
from stockpot.judge.harness import evaluate
from stockpot.judge.opening import open_task
from stockpot.judge.taskfiles import Judging, find_task
from stockpot.judge.tasks import evenly, records_of
from stockpot.model.quantized import quantize

Record = dict[str, Any]


# --- the hub's form of each data set ---


def lettered(record: Record) -> Record:
    """Choices as text and label, the right one by its label."""
    return {
        "question": record["question"],
        "question_stem": record["question"],
        "choices": {"text": list(record["choices"].values()), "label": list(record["choices"])},
        "answerKey": record["answer"],
    }


def piqa(record: Record) -> Record:
    first, second = record["choices"].values()
    return {"goal": record["question"], "sol1": first, "sol2": second, "label": int(record["answer"]) - 1}


def winogrande(record: Record) -> Record:
    one, two = (
        text.removesuffix("Answer format: option1/option2").strip() for text in record["choices"].values()
    )
    return {"sentence": record["question"], "option1": one, "option2": two, "answer": record["answer"]}


def blimp(record: Record) -> Record:
    return {"sentence_good": record["good"], "sentence_bad": record["bad"]}


def entailment(record: Record) -> Record:
    order = ["entailment", "neutral", "contradiction"]
    return {
        "premise": record["premise"],
        "hypothesis": record["hypothesis"],
        "label": order.index(record["label"]),
    }


def rte(record: Record) -> Record:
    label = ["entailment", "not_entailment"].index(record["label"])
    return {"sentence1": record["premise"], "sentence2": record["hypothesis"], "label": label}


def mmlu(record: Record) -> Record:
    return {**record, "answer": int(record["answer"])}


def truthfulqa(record: Record) -> Record:
    choices = [record["best"], *record["incorrect"]]
    labels = [1] + [0] * len(record["incorrect"])
    return {"question": record["question"], "mc1_targets": {"choices": choices, "labels": labels}}


def solved(record: Record) -> Record:
    """Give a word problem as GSM8K writes it."""
    return {"question": record["question"], "answer": f"#### {float(record['answer']):g}"}


def same(record: Record) -> Record:
    return record


@dataclass(frozen=True)
class Pairing:
    """One of our tasks and lm-eval's file of the same."""

    theirs: str
    convert: Callable[[Record], Record] = same
    changes: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = False


PAIRINGS = {
    "arc_easy": Pairing("arc/arc_easy.yaml", lettered),
    "arc_challenge": Pairing("arc/arc_challenge.yaml", lettered),
    "openbookqa": Pairing("openbookqa/openbookqa.yaml", lettered),
    "commonsense_qa": Pairing("commonsense_qa/default.yaml", lettered),
    "piqa": Pairing("piqa/piqa.yaml", piqa),
    "winogrande": Pairing("winogrande/default.yaml", winogrande),
    "blimp": Pairing("blimp/_template_yaml", blimp),
    "lambada_openai": Pairing("lambada/lambada_openai.yaml"),
    "sst2": Pairing("glue/sst2/default.yaml"),
    "rte": Pairing("glue/rte/default.yaml", rte),
    "anli": Pairing("anli/anli_r1.yaml", entailment),
    "truthfulqa_mc1": Pairing("truthfulqa/truthfulqa_mc1.yaml", truthfulqa),
    "mmlu": Pairing("mmlu/default/_default_template_yaml", mmlu),
    "gsm8k": Pairing("gsm8k/gsm8k.yaml", writes=True),
    "svamp": Pairing(
        "gsm8k/gsm8k.yaml",
        solved,
        {
            "num_fewshot": 0,
            "generation_kwargs": {"until": ["Question:", "\n\n"], "max_gen_toks": 32, "do_sample": False},
        },
        writes=True,
    ),
}


# --- both sides ---


@dataclass
class Side:
    """What one side did: the choice (or text) of each item, whether it is right, seconds and processor seconds a round."""

    picked: list[Any] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def our_round(bundle: sp.Bundle, name: str, file: Path, examples: Path | None, side: Side) -> None:
    task = open_task(
        name, Judging(data=str(file), limit=None, examples=None if examples is None else str(examples))
    )
    if name == "svamp":
        task = open_task(
            find_task(name).model_copy(update={"scorer": task.scorer.model_copy(update={"max_tokens": 32})}),
            Judging(data=str(file), limit=None),
        )
    start, worked = time.perf_counter(), time.process_time()
    report = evaluate(bundle, [task])
    side.seconds.append(time.perf_counter() - start)
    side.cpu.append(time.process_time() - worked)
    for answer in report.answers[task.name]:
        if PAIRINGS[name].writes:
            side.picked.append(answer.reply.strip())
            side.right.append(answer.scores.get("flexible", answer.scores.get("exact", 0.0)))
        else:
            side.picked.append(
                max(range(len(answer.log_probs)), key=lambda i: answer.log_probs[i])
                if answer.item.choices
                else answer.scores["acc"]
            )
            side.right.append(answer.scores["acc"])


class Stopwatch:
    """Counts the seconds that lm-eval's model works: reading files and making tasks do not count."""

    def __init__(self, model: Any) -> None:
        self.seconds = self.cpu = 0.0
        for name in ("loglikelihood", "generate_until"):
            setattr(model, name, self._timed(getattr(model, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **named: Any) -> Any:
            start, worked = time.perf_counter(), time.process_time()
            try:
                return call(*args, **named)
            finally:
                self.seconds += time.perf_counter() - start
                self.cpu += time.process_time() - worked

        return timed


def their_round(model: Any, name: str, file: Path, examples: Path | None, side: Side, folder: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    pairing = PAIRINGS[name]
    include = Path(lm_eval.__file__).parent / "tasks" / pairing.theirs
    files = {"test": str(file)} | ({} if examples is None else {"train": str(examples)})
    changes = {
        "include": str(include),
        "task": f"parity_{name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": None if examples is None else "train",
        "fewshot_split": None if examples is None else "train",
        "validation_split": None,
        "test_split": "test",
        **({"fewshot_config": {"sampler": "first_n"}} if examples is not None else {}),
        **pairing.changes,
    }
    if (
        name == "mmlu"
    ):  # the description of a subject stands in a file of its own; the items here are of one subject each
        changes["description"] = ""
        changes["doc_to_text"] = (
            "The following are multiple choice questions (with answers) about {{subject.replace('_', ' ')}}.\n\n"
            + (
                "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:"
            )
        )
    (folder / f"parity_{name}.yaml").write_text(json.dumps(changes), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    model.watch.seconds = model.watch.cpu = 0.0
    found = lm_eval.simple_evaluate(
        model=model, tasks=[f"parity_{name}"], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    side.seconds.append(model.watch.seconds)
    side.cpu.append(model.watch.cpu)
    samples = found["samples"][f"parity_{name}"]
    wanted = [one for one in samples if one.get("filter") in (None, "none", "flexible-extract")]
    for one in sorted(wanted, key=lambda one: one["doc_id"]):
        if pairing.writes:
            side.picked.append(one["resps"][0][0].strip())
            side.right.append(float(one["exact_match"]))
        else:
            values = [float(pair[0]) for pair in one["filtered_resps"]] if name != "lambada_openai" else None
            side.picked.append(
                float(one["acc"]) if values is None else max(range(len(values)), key=lambda i: values[i])
            )
            side.right.append(float(one["acc"]))


def rounds(name: str, data: Path, items: int, count: int, folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """Write the items of each round in the hub's form; yield the file, and that of the examples."""
    from stockpot.judge.opening import find_data

    found = evenly([record for _, record in records_of(find_data(name, data))], items)
    converted = [PAIRINGS[name].convert(record) for record in found]
    examples = None
    if find_task(name).shots:
        examples = folder / f"{name}_examples.jsonl"
        shown = [record for _, record in records_of(next(data.glob(f"{name}_train*")))][
            : find_task(name).shots
        ]
        examples.write_text("".join(json.dumps(one) + "\n" for one in shown), encoding="utf-8")
    for number in range(count):
        file = folder / f"{name}_{number}.jsonl"
        part = converted[number * items // count : (number + 1) * items // count]
        file.write_text("".join(json.dumps(one) + "\n" for one in part), encoding="utf-8")
        yield file, examples


def compare(name: str, ours: Side, theirs: Side) -> dict[str, Any]:
    same_choice = sum(a == b for a, b in zip(ours.picked, theirs.picked, strict=True))
    n = len(ours.picked)
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return {
        "task": name,
        "n": n,
        "same": same_choice / n,
        "ours": sum(ours.right) / n,
        "theirs": sum(theirs.right) / n,
        "ours_items_s": n / sum(ours.seconds),
        "theirs_items_s": n / sum(theirs.seconds),
        "times": statistics.median(ratios),
        "cpu": sum(theirs.cpu) / sum(ours.cpu),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="arc_easy,svamp")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=int, choices=(8, 4), help="round our side's weights; lm-eval's stay")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)
    from lm_eval.models.huggingface import HFLM

    bundle = sp.load(args.model, dtype=args.dtype)
    if args.bits:
        bundle = dataclasses.replace(bundle, model=quantize(bundle.model, args.bits))
    peer = HFLM(pretrained=args.model, dtype=args.dtype, batch_size=args.batch, device="cpu")
    peer.watch = Stopwatch(peer)
    print(
        f"{Path(args.model).name}, {args.dtype}{f' (ours {args.bits} bits)' if args.bits else ''}, {args.threads} threads, "
        f"lm-eval in batches of {args.batch}",
        flush=True,
    )
    print(
        "| task | items | same choice | accuracy ours / lm-eval | items/s ours / lm-eval | times (rounds) | processor time |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in args.tasks.split(","):
        ours, theirs = Side(), Side()
        with tempfile.TemporaryDirectory() as made:
            for number, (file, examples) in enumerate(
                rounds(name, args.data, args.items, args.rounds, Path(made))
            ):
                sides = [
                    partial(our_round, bundle, name, file, examples, ours),
                    partial(their_round, peer, name, file, examples, theirs, Path(made)),
                ]
                if number == 0:  # what the first call of all pays (pages, kernels) is nobody's speed
                    few = Path(made) / f"{name}_few.jsonl"
                    few.write_text(
                        "".join(file.read_text(encoding="utf-8").splitlines(keepends=True)[:4]),
                        encoding="utf-8",
                    )
                    our_round(bundle, name, few, examples, Side())
                    their_round(peer, name, few, examples, Side(), Path(made))
                for turn in sides if number % 2 == 0 else reversed(sides):
                    turn()
        row = compare(name, ours, theirs)
        print(
            f"| {name} | {row['n']} | {row['same']:.1%} | {row['ours']:.3f} / {row['theirs']:.3f} | "
            f"{row['ours_items_s']:.2f} / {row['theirs_items_s']:.2f} | {row['times']:.1f} "
            f"({row['lowest']:.1f}–{row['highest']:.1f}) | {row['cpu']:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
