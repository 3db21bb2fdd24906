"""Ask a model the questions of some tasks and report scores with intervals.

Two readings of each item: *exact match* of a greedy answer, and, for items with choices, *choice accuracy* by
log-likelihood. Beside them stands a continuous twin, the log-probability of the right answer per token in nats, which
moves before either of the sharp scores does. All model calls go through `Engine`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stockpot import durable
from stockpot.bundle import Bundle
from stockpot.errors import DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling, Score
from stockpot.judge.metrics import (
    Estimate,
    exact_match,
    final_answer,
    mean_estimate,
    paired_difference,
    proportion,
)
from stockpot.judge.tasks import Item, Task, Wording, load_task, village_tasks, word_item
from stockpot.text.chat import Message
from stockpot.weights.store import load

__all__ = ["Answer", "Report", "Row", "compare", "evaluate"]

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Answer:
    """What a model did with one item.

    Attributes:
        reply: its greedy answer, cut at the first line break.
        is_exact: whether the reply matches the right answer.
        choice: the choice it finds likeliest, by log-probability per byte; None without choices.
        log_prob: log-probability of the right answer per token, nats.
        margin: log-probability per byte of the right choice minus that of the best wrong one, nats; None without choices.
    """

    item: Item
    reply: str
    is_exact: bool
    choice: str | None
    log_prob: float
    margin: float | None

    @property
    def is_chosen(self) -> bool | None:
        """Whether the likeliest choice is the right one."""
        return None if self.choice is None else self.choice == self.item.answer


@dataclass(frozen=True)
class Row:
    """One score of one task."""

    task: str
    metric: str
    estimate: Estimate


@dataclass
class Report:
    """Scores of one model on some tasks, with every answer behind them."""

    model: str
    wording: str
    rows: list[Row] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'task':<28} {'metric':<12} {'score':>7}  {'95 % interval':<16} {'chance':>6} {'n':>5}"]
        for row in self.rows:
            e = row.estimate
            chance = "-" if e.chance is None else f"{e.chance:.2f}"
            lines.append(
                f"{row.task:<28} {row.metric:<12} {e.value:>7.3f}  [{e.low:.3f}, {e.high:.3f}]   {chance:>6} {e.n:>5}"
            )
        return "\n".join(lines)

    def row(self, task: str, metric: str) -> Row:
        """Return the named score.

        Raises:
            KeyError: if the report has no such score.
        """
        for row in self.rows:
            if (row.task, row.metric) == (task, metric):
                return row
        raise KeyError(f"no {metric} of {task} in this report")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, ready for JSON."""
        return {
            "model": self.model,
            "wording": self.wording,
            "fingerprints": self.fingerprints,
            "rows": [{"task": r.task, "metric": r.metric, **asdict(r.estimate)} for r in self.rows],
            "answers": {task: [asdict(a) for a in answers] for task, answers in self.answers.items()},
        }

    def save(self, folder: str | Path) -> Path:
        """Write ``report.json`` into a folder, whole or not at all; return its path."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        durable.write_atomically(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read what `save` wrote.

        Raises:
            DataError: if the file is not a whole report.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            answers = {task: [_answer_of(one) for one in many] for task, many in saved["answers"].items()}
            report = cls(saved["model"], saved["wording"], [], answers, saved["fingerprints"])
            for row in saved["rows"]:
                report.rows.append(Row(row.pop("task"), row.pop("metric"), Estimate(**row)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a whole report: {error}.", "Run the evaluation again.") from error
        return report


def evaluate(
    model: str | Path | Bundle,
    tasks: Sequence[str | Task] = ("village",),
    *,
    limit: int | None = 100,
    wording: Wording | None = None,
    max_tokens: int = 24,
    progress: Progress | None = None,
) -> Report:
    """Score a model on tasks.

    Args:
        model: a bundle or anything `load` takes.
        tasks: `Task`s, paths of JSON-lines files, ``"village"`` or ``"village/KIND"``.
        limit: items per task; None for all of a file (a village kind needs a limit).
        wording: how items are put; by default ``"chat"`` for models with a chat template, else ``"plain"``.
        max_tokens: longest answer.
        progress: receives one event a task.
    """
    bundle = model if isinstance(model, Bundle) else load(model)
    wording = wording or ("plain" if bundle.template is None else "chat")
    report = Report(model=str(bundle.source or "model"), wording=wording)
    engine = Engine(bundle, slots=16)
    for task in _resolve(tasks, limit):
        answers = _answer(engine, task.items, wording, max_tokens)
        report.answers[task.name] = answers
        report.fingerprints[task.name] = task.fingerprint
        report.rows += _rows(task.name, answers)
        if progress is not None:
            progress({"kind": "note", "text": f"{task.name}: {report.rows[-1].estimate}"})
    if len(report.answers) > 1:
        report.rows += _rows("all", [answer for answers in report.answers.values() for answer in answers])
    return report


def compare(before: Report, after: Report) -> list[Row]:
    """Estimate, task by task, how much the later model gained on the same items (paired bootstrap).

    Raises:
        ValueError: if a shared task's items differ between the reports.
    """
    rows = []
    for task in before.answers:
        if task not in after.answers:
            continue
        if before.fingerprints[task] != after.fingerprints[task]:
            raise ValueError(f"{task} holds other items in the second report")
        pairs = list(zip(before.answers[task], after.answers[task], strict=True))
        gain = paired_difference([float(a.is_exact) for a, _ in pairs], [float(b.is_exact) for _, b in pairs])
        rows.append(Row(task, "exact gain", gain))
    return rows


def _answer_of(saved: dict[str, Any]) -> Answer:
    item = saved.pop("item")
    return Answer(Item(**{**item, "choices": tuple(item["choices"])}), **saved)


def _resolve(tasks: Sequence[str | Task], limit: int | None) -> Iterable[Task]:
    for task in tasks:
        if isinstance(task, Task):
            yield task
        elif task == "village":
            yield from village_tasks(limit=limit or 100)
        elif task.startswith("village/"):
            yield from village_tasks(limit=limit or 100, kinds=[task.removeprefix("village/")])
        else:
            yield load_task(task, limit=limit)


def _answer(engine: Engine, items: Sequence[Item], wording: Wording, max_tokens: int) -> list[Answer]:
    prompts = [word_item(item, wording) for item in items]
    for item, prompt in zip(items, prompts, strict=True):
        _check_fits(engine.bundle, item, prompt)
    replies = engine.generate(prompts, Sampling(temperature=0.0, max_tokens=max_tokens, stop=("\n",)))
    lead = " " if wording == "plain" else ""
    pairs, owners = [], []
    for index, item in enumerate(items):
        for choice in item.choices or (item.answer,):
            pairs.append((prompts[index], lead + choice))
            owners.append(index)
    scores: list[list[Score]] = [[] for _ in items]
    for owner, score in zip(owners, engine.score(pairs), strict=True):
        scores[owner].append(score)
    return [_judge(*parts) for parts in zip(items, (reply.text for reply in replies), scores, strict=True)]


def _check_fits(bundle: Bundle, item: Item, prompt: str | list[Message]) -> None:
    """Refuse a question that leaves no room for an answer, before any is asked.

    Raises:
        GenerationError: naming the item.
    """
    longest = max(
        (len(bundle.tokenizer.encode(choice)) for choice in item.choices or (item.answer,)), default=0
    )
    needed = len(bundle.encode(prompt)) + longest + 1
    if needed > bundle.context:
        raise GenerationError(
            f"{item.id}: question and answer take {needed} tokens; this model has room for {bundle.context}.",
            "Leave long questions out, or judge a model with a longer context.",
        )


def _judge(item: Item, reply: str, scores: Sequence[Score]) -> Answer:
    reply = reply.strip()
    is_exact = exact_match(final_answer(reply), item.answer)
    if not item.choices:
        return Answer(item, reply, is_exact, None, scores[0].log_prob / scores[0].tokens, None)
    per_byte = {c: s.log_prob / max(1, s.bytes) for c, s in zip(item.choices, scores, strict=True)}
    right = scores[item.choices.index(item.answer)]
    wrong = max(value for choice, value in per_byte.items() if choice != item.answer)
    best = max(per_byte, key=lambda choice: per_byte[choice])
    return Answer(item, reply, is_exact, best, right.log_prob / right.tokens, per_byte[item.answer] - wrong)


def _rows(task: str, answers: Sequence[Answer]) -> list[Row]:
    rows = [Row(task, "exact", proportion(sum(a.is_exact for a in answers), len(answers)))]
    chosen = [a for a in answers if a.choice is not None]
    if chosen:
        chance = sum(a.item.chance for a in chosen) / len(chosen)
        rows.append(
            Row(
                task, "choice", proportion(sum(bool(a.is_chosen) for a in chosen), len(chosen), chance=chance)
            )
        )
        rows.append(Row(task, "margin", mean_estimate([a.margin or 0.0 for a in chosen], chance=0.0)))
    rows.append(Row(task, "log_prob", mean_estimate([a.log_prob for a in answers])))
    return rows
