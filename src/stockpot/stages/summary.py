"""What a cook's report says: gathers figures from the stages' folders and chooses what to show.

Every figure comes from a run's own files; nothing is measured here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stockpot import origin
from stockpot.judge.harness import Report, Row, compare
from stockpot.origin import as_typed
from stockpot.run import Run
from stockpot.stages.contest import Contest
from stockpot.stages.ledger_book import Ledger
from stockpot.stages.report import curve_chart, score_chart, write_report
from stockpot.stages.report_parts import (
    attention_chart,
    ladder_chart,
    ledger_figures,
    lineage,
    lineage_chart,
    probe_charts,
)
from stockpot.stages.verdict import alignment_charts, alignment_figures, reading
from stockpot.text.tokenizer import Tokenizer

__all__ = ["summarise"]

SAMPLES_PER_TASK = 1


def summarise(
    folder: Path,
    state: Mapping[str, Mapping[str, Any]],
    reports: Mapping[str, Report],
    contest: Contest | None,
    *,
    seed: int,
) -> Path:
    """Write ``report.html`` and ``report.json`` for a finished cook; return the page's path.

    Args:
        folder: of the cook, with the stages' folders in it.
        state: stage → its seconds, and whether it is part of this cook.
        reports: ``base`` and ``tuned``, and the aligned models if there are any, on the same questions.
        contest: between the tuned and the aligned models; None: nothing was aligned.
        seed: of the cook.
    """
    state = {name: one for name, one in state.items() if one.get("status") != "left out"}
    names = ("pretrain", "sft") if contest is None else ("pretrain", "sft", "reward", "dpo", "ppo")
    runs = {name: Run.open(folder / name) for name in names}
    before_and_after = (reports["base"], reports["tuned"])
    gains = [row for row in compare(*before_and_after) if row.metric == "exact gain"]
    scores = [
        {"task": row.task, "metric": row.metric, "model": model, **asdict(row.estimate)}
        for model, report in reports.items()
        for row in report.rows
        if row.metric in ("exact", "choice")
    ]
    models = lineage(folder, runs)
    samples = _samples(before_and_after)
    figures: dict[str, Any] = {
        "title": "What came out of the pot",
        "summary": _summary(runs, state, before_and_after),
        "created": origin.now(),
        "stages": _stages(folder, state, runs, reports),
        "scores": scores,
        "gains": [
            {"task": row.task, **asdict(row.estimate), "reading": reading(row.estimate)} for row in gains
        ],
        "samples": samples,
        "tokenizer": _tokenizer(folder / "tokenizer", before_and_after),
        "alignment": None if contest is None else alignment_figures(folder, contest, reports),
        "ladder": None,
        "ledger": None,
        "lineage": models,
        "again": f"stockpot cook --recipe {folder / 'settled.toml'} --out NEW",
        "environment": {"seed": seed, **_flat(origin.hardware()), **origin.versions()},
    }
    charts = _charts(runs, scores)
    if "ladder" in state and (folder / "ladder" / "ladder.json").is_file():
        figures["ladder"] = json.loads((folder / "ladder" / "ladder.json").read_text(encoding="utf-8"))
        charts.append(ladder_chart(folder / "ladder", figures["ladder"]))
    if contest is not None:
        charts += alignment_charts(folder, contest)
    drawn = {"lineage": lineage_chart(models)}
    if (folder / "ledger" / "ledger.json").is_file() and "ledger" in state:
        book = Ledger.load(folder / "ledger" / "ledger.json")
        figures["ledger"], drawn["ledger"] = ledger_figures(book), book.chart()
        charts += probe_charts(folder / "ledger")
    looked = attention_chart(folder / "pretrain", samples[0]["question"]) if samples else None
    return write_report(folder, figures, [*charts, *([looked] if looked else [])], drawn)


def _summary(
    runs: Mapping[str, Run], state: Mapping[str, Mapping[str, Any]], reports: tuple[Report, Report]
) -> str:
    minutes = sum(one.get("seconds", 0.0) for one in state.values()) / 60
    before, after = (_overall(report) for report in reports)
    parameters = runs["pretrain"].manifest["parameters"]
    return (
        f"A decoder of {parameters / 1e6:.1f} million parameters was trained from nothing and tuned on conversations; all "
        f"stages took {minutes:.1f} minutes. Asked the same {after.estimate.n} questions, it gave the exact answer to "
        f"{before.estimate.value:.0%} before instruction tuning and to {after.estimate.value:.0%} after."
    )


def _overall(report: Report) -> Row:
    return next((row for row in report.rows if (row.task, row.metric) == ("all", "exact")), report.rows[0])


def _stages(
    folder: Path,
    state: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Run],
    reports: Mapping[str, Report],
) -> list[dict[str, Any]]:
    tokenizer = Tokenizer.load(folder / "tokenizer")
    asked = _overall(reports["tuned"]).estimate.n
    results = {
        "tokenizer": f"{tokenizer.vocab_size:,} tokens, kind {tokenizer.kind}",
        "pretrain": f"{runs['pretrain'].last('val/bits_per_byte'):.3f} bits per byte on held-out text",
    }
    if "ladder" in state:
        results["ladder"] = "every kind of prompting on the base model, the same items each time"
    results["sft"] = f"{runs['sft'].last('val/loss'):.3f} nats per answer token on held-out conversations"
    if "rank" in state and (ranked := folder / "rank" / "rank.json").is_file():
        found = json.loads(ranked.read_text(encoding="utf-8"))
        results["rank"] = f"{found['pairs']:,} comparisons of its own answers to {found['prompts']:,} prompts"
        if "reward" in runs and not str(runs["reward"].manifest["data"][0]["path"]).startswith(
            str(ranked.parent)
        ):
            results["rank"] += ", too few to learn from: those that the settings name were read"
    if "ppo" in runs:
        first, last = (runs["ppo"].series("train/reward")[place][1] for place in (0, -1))
        results |= {
            "reward": f"{_told_apart(runs['reward'])} of held-out comparisons told apart",
            "dpo": f"{_told_apart(runs['dpo'])} of held-out comparisons told apart",
            "ppo": f"reward from {first:+.2f} to {last:+.2f}" + _stopped(runs["ppo"]),
            "contest": "answers of three models to the same prompts, rated by the same judges",
        }
    results["evaluate"] = f"{asked} questions to each of {len(reports)} models"
    if "ledger" in state:
        results["ledger"] = "the same questions with one ingredient more in each line"
    recipe: list[Path | str] = ["--recipe", folder / "recipe.toml"]
    new = ["--out", "NEW"]
    words: dict[str, list[Path | str]] = {
        "tokenizer": ["train-tokenizer", *recipe, *new],
        "rank": ["rank", folder / "sft", *recipe, *new],
        "contest": ["cook", *recipe, *new],
        "ladder": ["cook", *recipe, *new],
        "ledger": ["ledger", folder, *new],
        "evaluate": ["eval", *(folder / one for one in runs if one != "reward")],
    }
    return [
        {
            "name": name,
            "seconds": state[name]["seconds"],
            "result": result,
            "command": as_typed(
                "stockpot", *words.get(name, [name, "--recipe", folder / name / "recipe.toml", *new])
            ),
        }
        for name, result in results.items()
    ]


def _stopped(run: Run) -> str:
    return (
        ""
        if run.status == "done"
        else f"; it broke off, and the checkpoint of step {run.model_step} is judged"
    )


def _told_apart(run: Run) -> str:
    accuracy = run.manifest.get("accuracy")
    return "none" if accuracy is None else f"{accuracy['value']:.0%}"


def _samples(reports: tuple[Report, Report]) -> list[dict[str, str]]:
    """Pair the answers to each task's first questions that fitted both models."""
    chosen = []
    for task, before in reports[0].answers.items():
        after = {one.item.id: one for one in reports[1].answers[task]}
        pairs = [(one, after[one.item.id]) for one in before if one.item.id in after]
        for base, tuned in pairs[:SAMPLES_PER_TASK]:
            item = base.item
            chosen.append(
                {"question": item.question, "base": base.reply, "tuned": tuned.reply, "answer": item.answer}
            )
    return chosen


def _tokenizer(folder: Path, reports: tuple[Report, Report]) -> dict[str, Any]:
    tokenizer = Tokenizer.load(folder)
    text = next(iter(reports[0].answers.values()))[0].item.question
    ids = tokenizer.encode(text)
    size = len(text.encode())
    sentence = f"One question, {size} bytes, becomes {len(ids)} tokens ({size / len(ids):.1f} bytes each)."
    return {"sentence": sentence, "pieces": [tokenizer.decode([i]) for i in ids]}


def _charts(runs: Mapping[str, Run], scores: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    charts = []
    for name, metric, heading, unit in (
        ("pretrain", "bits_per_byte", "Pretraining", "bits per byte"),
        ("sft", "loss", "Instruction tuning", "nats per answer token"),
    ):
        run = runs[name]
        curves = {"training": run.series(f"train/{metric}"), "validation": run.series(f"val/{metric}")}
        shown = {label: points for label, points in curves.items() if points}
        svg = curve_chart(shown, x="step", y=unit, title=f"{heading}: {unit} by step")
        charts.append(
            (heading, svg, f"Validation is text kept from training. Lower is better. Run: {run.path}.")
        )
    exact = [row for row in scores if row["metric"] == "exact"]
    svg = score_chart(exact, title="Exact answers by task and model")
    charts.append(
        ("Answers of each model", svg, "Exact match of greedy answers, with 95 % Wilson intervals.")
    )
    return charts


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}
