"""Ask a model the questions of some tasks and report scores one can trust.

Every figure has its number of items, its 95 % interval and, where guessing has a meaning, the score of guessing; beside the sharp
measures stand continuous ones. What was not judged is counted and told of. All model calls go through `Engine`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stockpot import durable
from stockpot.bundle import Bundle
from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.judge.asking import Cache, ask_all, model_fingerprint
from stockpot.judge.bigbench import is_bigbench, open_bigbench
from stockpot.judge.contamination import clean_rows, find_overlap, training_texts
from stockpot.judge.metrics import Estimate, in_figures, in_words, mcnemar, paired_difference
from stockpot.judge.opening import open_task
from stockpot.judge.programs import check_running, run_programs
from stockpot.judge.requests import Asked, ask_item, check_head
from stockpot.judge.scoring import TWINS, Answer, Row, estimate, judge_item, rows_of
from stockpot.judge.taskfiles import Judging, shipped_tasks
from stockpot.judge.tasks import Item, Left, Task, Wording, load_task, village_tasks
from stockpot.weights.store import load

__all__ = ["Answer", "Report", "Row", "compare", "evaluate", "reading", "resolve"]

Progress = Callable[[dict[str, Any]], None]

SLOTS, CACHE_MIB = (
    64,
    1024,
)  # answers written at once: as many as fit, since weights are read once for all of them
PREFIX_MIB = 256  # prompts that were read to write, and are read again to score the right answers
FREE_KINDS = 100  # with more sorts of question than this, a figure for each would be noise
LOWER = ("brier", "perplexity", "bits_per_byte", "word_perplexity", "token_perplexity")


@dataclass
class Report:
    """Scores of one model on some tasks, with every answer behind them.

    Attributes:
        rows: figures of each task.
        kinds: the first figure of each sort of question within a task.
        left: task → items that were not judged because they do not fit this model.
        bad: task → records that are no items.
        seen: task → items of which at least half stands in the training text, where that was looked for.
        remarks: sentences about the figures.
    """

    model: str
    wording: str
    rows: list[Row] = field(default_factory=list)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    kinds: list[Row] = field(default_factory=list)
    left: dict[str, list[Left]] = field(default_factory=dict)
    bad: dict[str, list[Left]] = field(default_factory=dict)
    seen: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        width = max([28, *(len(row.task) for row in self.rows)])
        wide = max([15, *(len(row.metric) for row in self.rows)])
        lines = [
            f"{'task':<{width}} {'measure':<{wide}} {'score':>9}  {'95 % interval':<20} {'chance':>6} {'n':>5} {'step':>6}"
        ]
        for row in self.rows:
            e = row.estimate
            chance = "-" if e.chance is None else f"{e.chance:.2f}"
            step = "-" if row.metric in (*TWINS, *LOWER) else f"{e.resolution:.3f}"
            score = f"{in_figures(e.value):>9}  {e.interval:<20}"
            lines.append(f"{row.task:<{width}} {row.metric:<{wide}} {score} {chance:>6} {e.n:>5} {step:>6}")
        return "\n".join([*lines, *self.not_judged(), *self.remarks])

    def not_judged(self) -> list[str]:
        """Say what has no part in the figures, a line each."""
        lines = []
        for what, found in (("do not fit this model", self.left), ("are no items", self.bad)):
            for task, some in found.items():
                if some:
                    noun = "1 of its records" if len(some) == 1 else f"{len(some)} of its records"
                    lines.append(f"{task}: {noun} {what} and left out, the first: {some[0].why}")
        return lines

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
            "rows": [_plain(row) for row in self.rows],
            "kinds": [_plain(row) for row in self.kinds],
            "left": {task: [asdict(one) for one in some] for task, some in self.left.items()},
            "bad": {task: [asdict(one) for one in some] for task, some in self.bad.items()},
            "seen": self.seen,
            "remarks": self.remarks,
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
            return cls(
                saved["model"],
                saved["wording"],
                [_row_of(row) for row in saved["rows"]],
                {task: [_answer_of(one) for one in many] for task, many in saved["answers"].items()},
                saved["fingerprints"],
                [_row_of(row) for row in saved["kinds"]],
                {task: [Left(**one) for one in some] for task, some in saved["left"].items()},
                {task: [Left(**one) for one in some] for task, some in saved["bad"].items()},
                saved["seen"],
                saved["remarks"],
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a whole report: {error}.", "Run the evaluation again.") from error


def evaluate(
    model: str | Path | Bundle,
    tasks: Sequence[str | Task] = ("village",),
    judging: Judging | None = None,
    *,
    limit: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Score a model on tasks.

    Args:
        model: a bundle or anything `load` takes.
        tasks: `Task`s; names of shipped task files; paths of task files (TOML) or of JSON lines; ``"village"``,
            ``"village/KIND"``; ``"bigbench:NAME"`` or the path of a ``task.json``.
        judging: what is asked, and how.
        limit: items per task, in the place of ``judging.limit``.
        cache: a folder in which answers are kept by their content, so that a second run, or one after a kill, asks
            only what is new; None: nothing is kept.
        progress: receives events: how far, and the time left.

    Raises:
        ConfigError: if a task is wrong, two different ones have one name, or code would have to be run without leave or
            confinement.
        DataError: if a task's data cannot be read or holds no item.
        GenerationError: if the model has no head that could answer.
    """
    judging = judging or Judging()
    if limit is not None:
        judging = Judging(**judging.model_dump() | {"limit": limit})
    opened = _once(resolve(tasks, judging))
    programs = [task.scorer for task in opened if task.scorer.kind == "code"]
    if any(one.samples > 1 and one.temperature == 0 for one in programs):
        raise ConfigError("Programs drawn at temperature 0 are all the same.", "Give --temperature 0.8.")
    if programs:
        check_running(judging.run_code)
    bundle = model if isinstance(model, Bundle) else load(model)
    name = str(bundle.source or "model")
    check_head(bundle, name)
    report = Report(model=name, wording=judging.wording or ("plain" if bundle.template is None else "chat"))
    path = None if cache is None else Path(cache) / "answers.jsonl"
    kept = Cache(path, model_fingerprint(bundle) if path is not None else "")
    engine = Engine(bundle, slots=SLOTS, cache_mib=CACHE_MIB, prefix_mib=PREFIX_MIB)
    for task in opened:
        _judge_task(engine, task, judging, kept, report, progress)
    if len(report.answers) > 1 and all(task.scorer.kind == "both" for task in opened):
        every = [answer for answers in report.answers.values() for answer in answers]
        report.rows += rows_of("all", every, opened[0].scorer)
    if judging.against:
        _look_for_items(report, judging.against, bundle)
    return report


def _look_for_items(report: Report, against: Sequence[str], bundle: Bundle) -> None:
    """Say which items stand in the training text, and how the model does on the others."""
    named = {
        f"{task}\n{answer.item.id}": answer for task, answers in report.answers.items() for answer in answers
    }
    items = [replace(answer.item, id=key) for key, answer in named.items()]
    overlap = find_overlap(items, training_texts(against, bundle.tokenizer))
    report.remarks.append(str(overlap))
    for task, answers in report.answers.items():
        report.seen[task] = [key.partition("\n")[2] for key in overlap.seen if key.startswith(f"{task}\n")]
        metric = next((row.metric for row in report.rows if row.task == task), None)
        if metric is not None and report.seen[task]:
            report.kinds += clean_rows(task, answers, report.seen[task], metric)
            for row in report.kinds[-2:]:
                report.remarks.append(f"{row.task}: {row.metric} {row.estimate}")


def resolve(tasks: Sequence[str | Task], judging: Judging) -> Iterator[Task]:
    """Open tasks by whatever names them; errors as in `evaluate`."""
    limit = judging.limit
    for task in tasks:
        if isinstance(task, Task):
            yield task
        elif task == "village" or task.startswith("village/"):
            kinds = [task.removeprefix("village/")] if "/" in task else None
            yield from _as_wanted(village_tasks(limit=limit or 100, kinds=kinds), judging)
        elif is_bigbench(task):
            yield from _as_wanted(open_bigbench(task, judging.data, limit=limit), judging)
        elif task in shipped_tasks() or task.endswith(".toml"):
            yield open_task(task, judging)
        elif not Path(task).exists():
            near = get_close_matches(task, ["village", *shipped_tasks()], n=1)
            raise ConfigError(
                f"{task}: there is no such task, neither a shipped name nor a file of questions.",
                f"{f'Did you mean {near[0]}? ' if near else ''}`stockpot eval --list` shows the shipped ones; "
                "`village` is built in.",
            )
        else:
            yield from _as_wanted([load_task(task, limit=limit)], judging)


def _once(tasks: Iterable[Task]) -> list[Task]:
    """Keep one of equal tasks, and refuse different ones of the same name: a report knows them by it."""
    found: dict[str, Task] = {}
    for task in tasks:
        known = found.setdefault(task.name, task)
        if known is not task and known.fingerprint != task.fingerprint:
            raise ConfigError(
                f"Two different tasks are called {task.name}.",
                "Give their files names of their own, or judge one after the other.",
            )
    return list(found.values())


def _as_wanted(tasks: Iterable[Task], judging: Judging) -> Iterator[Task]:
    for task in tasks:
        yield Task(task.name, task.version, task.items, judging.scorer(task.scorer), task.bad)


def _judge_task(
    engine: Engine, task: Task, judging: Judging, cache: Cache, report: Report, progress: Progress | None
) -> None:
    """Ask one task's items and add what came of it to a report."""
    default: Wording = "plain" if engine.bundle.template is None or task.scorer.kind != "both" else "chat"
    wording = judging.wording or default
    asked: list[Asked] = []
    left: list[Left] = []
    for item in task.items:
        one = ask_item(engine.bundle, item, task.scorer, wording)
        left.append(one) if isinstance(one, Left) else asked.append(one)
    report.left[task.name], report.bad[task.name] = left, list(task.bad)
    report.fingerprints[task.name] = task.fingerprint
    if not asked:
        raise GenerationError(
            f"{task.name}: none of its {len(left)} items fits this model; the first: {left[0].why}.",
            "Judge a model with a longer context, or ask shorter questions.",
        )
    outcomes = ask_all(engine, asked, task.scorer, cache, seed=judging.seed, progress=progress)
    if task.scorer.kind == "code":
        answers = run_programs([one.item for one in asked], outcomes, task.scorer, progress)
    else:
        answers = [
            judge_item(one.item, outcome, task.scorer, one.sizes)
            for one, outcome in zip(asked, outcomes, strict=True)
        ]
    report.answers[task.name] = answers
    rows = rows_of(task.name, answers, task.scorer)
    report.rows += rows
    report.kinds += _kinds(task.name, answers, rows)
    if progress is not None:
        progress({"kind": "note", "text": f"{task.name}: {rows[0].metric} {rows[0].estimate}"})


def _kinds(task: str, answers: Sequence[Answer], rows: Sequence[Row]) -> list[Row]:
    """Estimate a task's first figure for each sort of question, where there are several."""
    metric = rows[0].metric
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        if metric in answer.scores:
            groups.setdefault(answer.item.kind, []).append(answer)
    if not 2 <= len(groups) <= FREE_KINDS:
        return []
    return [Row(f"{task}/{kind}", metric, estimate(metric, some)) for kind, some in sorted(groups.items())]


# --- two models ---


def compare(before: Report, after: Report) -> list[Row]:
    """Estimate, task by task, how much the later model gained on the same items.

    The interval is that of a paired bootstrap; measures that are right or wrong also have McNemar's exact probability.
    Items that only one of the two was asked are left out.

    Raises:
        ValueError: if a shared task's items differ between the reports.
    """
    rows = []
    for task in before.answers:
        if task not in after.answers:
            continue
        if before.fingerprints[task] != after.fingerprints[task]:
            raise ValueError(f"{task} holds other items in the second report")
        second = {answer.item.id: answer for answer in after.answers[task]}
        pairs = [(one, second[one.item.id]) for one in before.answers[task] if one.item.id in second]
        for name in dict.fromkeys(name for one, _ in pairs for name in one.scores):
            both = [
                (a.scores[name], b.scores[name]) for a, b in pairs if name in a.scores and name in b.scores
            ]
            if both:
                rows.append(Row(task, f"{name} gain", *_gain(name, both)))
    return rows


def _gain(name: str, both: Sequence[tuple[float, float]]) -> tuple[Estimate, float | None]:
    first, second = [a for a, _ in both], [b for _, b in both]
    gain = paired_difference(first, second)
    if name in TWINS or not all(value in (0.0, 1.0) for pair in both for value in pair):
        return gain, None
    return gain, mcnemar([value == 1.0 for value in first], [value == 1.0 for value in second])


def reading(row: Row) -> str:
    """Say in words what a row of `compare` allows to say."""
    said = in_words(row.estimate, row.p)
    if row.metric.removesuffix(" gain") in LOWER and said != "inside the noise":
        return "worse" if said == "better" else "better"
    return said


# --- JSON ---


def _plain(row: Row) -> dict[str, Any]:
    value = {
        "task": row.task,
        "metric": row.metric,
        **asdict(row.estimate),
        "resolution": row.estimate.resolution,
    }
    return value if row.p is None else {**value, "p": row.p}


def _row_of(saved: dict[str, Any]) -> Row:
    del saved["resolution"]
    task, metric, p = saved.pop("task"), saved.pop("metric"), saved.pop("p", None)
    return Row(task, metric, Estimate(**saved), p)


def _answer_of(saved: dict[str, Any]) -> Answer:
    item = saved.pop("item")
    lists = {name: tuple(item[name]) for name in ("choices", "contexts", "right", "answers")}
    return Answer(Item(**{**item, **lists}), **{**saved, "log_probs": tuple(saved["log_probs"])})
