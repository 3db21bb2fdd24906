"""The verbs that judge: eval, eval-images, contest, compare-tokenizers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stockpot.cli import show
from stockpot.cli.grammar import COMPUTES, Common, verb
from stockpot.errors import ConfigError, GenerationError

if TYPE_CHECKING:
    from stockpot.judge.taskfiles import Judging
    from stockpot.judge.tasks import Wording

__all__ = ["compare_tokenizers", "contest", "evaluate", "evaluate_images"]

PANEL = "Judge"


ASKED = "What is asked, and how"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked(Common):
    """The flags of `eval` that say what is asked."""

    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A file, or a folder with a file named like the task; else the hub.",
            rich_help_panel=ASKED,
        ),
    ] = None
    limit: Annotated[
        int, typer.Option(min=1, help="Questions per task, evenly spaced.", rich_help_panel=ASKED)
    ] = 100
    ask_all: Annotated[
        bool, typer.Option("--all", help="All questions of each task.", rich_help_panel=ASKED)
    ] = False
    wording: Annotated[
        str | None,
        typer.Option(
            metavar="plain|chat",
            help="How questions are put; by default as written or as the model was trained.",
            rich_help_panel=ASKED,
        ),
    ] = None
    shots: Annotated[
        int | None, typer.Option(min=0, help="Examples before each question.", rich_help_panel=ASKED)
    ] = None
    examples: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where the examples come from.", rich_help_panel=ASKED),
    ] = None
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.", rich_help_panel=ASKED)
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Programs drawn for each problem (pass@k).", rich_help_panel=ASKED),
    ] = None
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the drawn programs.", rich_help_panel=ASKED)
    ] = None
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code", help="Run programs that the model writes, in a sandbox.", rich_help_panel=ASKED
        ),
    ] = False
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Training text or shards: report which items stand in it; may be repeated.",
            rich_help_panel=ASKED,
        ),
    ] = None
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Show the exact prompts and scoring of the first items; ask nothing.",
            rich_help_panel=ASKED,
        ),
    ] = False
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="lm-eval:TASK",
            help="Run a task of lm-evaluation-harness over this engine.",
            rich_help_panel=ASKED,
        ),
    ] = None
    list_tasks: Annotated[
        bool, typer.Option("--list", help="List the shipped tasks and end.", rich_help_panel=ASKED)
    ] = False


@verb("eval", panel=PANEL, flags=Asked)
def evaluate(
    flags: Asked,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Runs, checkpoints, Hugging Face folders, GGUF files or known names."
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME|FILE",
            help="A shipped task (--list shows them), village, village/KIND, bigbench:NAME, a task file in TOML, or "
            "questions in JSON lines; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write a report a model into this folder, and go on from what is there."
        ),
    ] = None,
) -> None:
    """Score models on questions with known answers, with 95 % intervals and the score of guessing.

    Two models and more are compared with the first, question by question; a difference inside the noise is called that.
    """
    if flags.wording not in (None, "plain", "chat"):
        raise typer.BadParameter(f"{flags.wording!r} is not plain or chat.", param_hint="--wording")
    if flags.list_tasks:
        return _list_tasks(flags)
    if not models:
        raise typer.BadParameter("name at least one model.", param_hint="MODEL")
    if flags.explain:
        return _explain(flags, models[0], tasks or ["village"])
    if flags.suite is not None:
        return _suite(flags, models, flags.suite, out)
    return _judge(flags, models, tasks or ["village"], out)


def _judging(flags: Asked) -> Judging:
    from stockpot.judge.taskfiles import Judging

    return Judging(
        data=flags.data,
        limit=None if flags.ask_all else flags.limit,
        shots=flags.shots,
        examples=flags.examples,
        wording=cast("Wording | None", flags.wording),
        max_tokens=flags.max_tokens,
        samples=flags.samples,
        temperature=flags.temperature,
        seed=flags.seed or 0,
        run_code=flags.run_code,
        against=tuple(flags.against or ()),
    )


def _list_tasks(flags: Common) -> None:
    from stockpot.judge.taskfiles import find_task, shipped_tasks

    rows = [
        [task.name, task.scorer.kind, task.shots, task.hub.path if task.hub else None, task.about]
        for task in map(find_task, shipped_tasks())
    ]
    show.result(flags, show.table(["task", "scored by", "examples", "hub", "about"], rows), rows)


def _explain(flags: Asked, model: str, tasks: list[str]) -> None:
    from stockpot.judge.explaining import explain
    from stockpot.judge.harness import resolve
    from stockpot.weights.store import load

    bundle, asked = load(model, device=flags.device, dtype=flags.dtype), _judging(flags)
    shown = [explain(bundle, task, asked.wording) for task in resolve(tasks, asked)]
    show.result(flags, "\n\n".join(shown), shown)


def _suite(flags: Asked, models: list[str], suite: str, out: Path | None) -> None:
    from stockpot.durable import write_atomically
    from stockpot.judge.suites import run_suite, table_of
    from stockpot.weights.store import load

    found = {}
    with show.progress(flags) as progress:
        for model in models:
            progress({"kind": "stage", "name": f"{suite} {model}"})
            bundle = load(model, device=flags.device, dtype=flags.dtype)
            found[model] = run_suite(
                bundle,
                suite,
                limit=None if flags.ask_all else flags.limit,
                shots=flags.shots,
                progress=progress,
            )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "lm-eval.json", json.dumps(found, indent=1, default=str))
    headers = ["model", "task", "measure", "score", "standard error", "n"]
    show.result(flags, show.table(headers, table_of(found)), found)


def _judge(flags: Asked, models: list[str], tasks: list[str], out: Path | None) -> None:
    from stockpot.judge.harness import compare
    from stockpot.judge.harness import evaluate as ask
    from stockpot.judge.page import write_page
    from stockpot.weights.store import load

    asked = _judging(flags)
    reports, failed = [], []
    with show.progress(flags) as progress:
        for model in models:
            progress({"kind": "stage", "name": f"eval {model}"})
            folder = (
                None if out is None else out if len(models) == 1 else out / model.strip("/").replace("/", "-")
            )
            try:
                bundle = load(model, device=flags.device, dtype=flags.dtype)
                report = ask(bundle, tasks, asked, cache=folder, progress=progress)
            except GenerationError as error:
                if len(models) == 1:
                    raise
                failed.append((model, error))  # the other models are judged all the same
                continue
            report.model = model
            reports.append(report)
            if folder is not None:
                report.save(folder)
                write_page(folder, report, reports[0] if len(reports) > 1 else None)
        if not reports:
            raise failed[0][1]
    differences = [compare(reports[0], other) for other in reports[1:]]
    text = [f"{report.model}\n{report}" for report in reports]
    for other, rows in zip(reports[1:], differences, strict=True):
        text.append(f"{other.model} minus {reports[0].model}, the same questions\n{_difference(rows)}")
    text += [f"{model} was not judged: {error}" for model, error in failed]
    show.result(flags, "\n\n".join(text), _document(reports, differences))
    if failed:
        raise typer.Exit(1)


def _difference(rows: list[Any]) -> str:
    from stockpot.judge.harness import reading

    headers = ["task", "measure", "difference", "95 % interval", "p (McNemar)", "n", "which is"]
    shown = [
        [
            row.task,
            row.metric.removesuffix(" gain"),
            f"{e.value:+.3f}",
            f"{e.low:+.3f} to {e.high:+.3f}" if e.has_interval else None,
            None if row.p is None else f"{row.p:.3g}",
            e.n,
            reading(row),
        ]
        for row in rows
        for e in [row.estimate]
    ]
    return show.table(headers, shown)


def _document(reports: list[Any], differences: list[Any]) -> list[dict[str, Any]]:
    from stockpot.judge.harness import reading

    value = [report.to_dict() for report in reports]
    for one, rows in zip(value[1:], differences, strict=True):
        one["minus_first"] = [
            {
                "task": row.task,
                "metric": row.metric,
                "estimate": row.estimate,
                "p": row.p,
                "reading": reading(row),
            }
            for row in rows
        ]
    return value


@verb("eval-images", panel=PANEL, without=("seed",))
def evaluate_images(
    flags: Common,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run of align-image.")],
    data: Annotated[
        str, typer.Option(metavar="PATH", help="village:scenes/val, or pictures with captions.")
    ] = "village:scenes/val",
    limit: Annotated[int, typer.Option(min=2, help="At most so many pictures.")] = 200,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in a conversation.")] = False,
    shown: Annotated[int, typer.Option("--show", min=0, help="Captions to show.")] = 5,
) -> None:
    """Score what a model says of pictures, and whether it follows them: it is asked about exchanged and blank ones, too."""
    from stockpot.judge.images import evaluate_images as ask
    from stockpot.weights.store import load

    with show.progress(flags) as progress:
        bundle = load(model, device=flags.device, dtype=flags.dtype)
        report = ask(bundle, data, limit=limit, chat=chat, progress=progress)
    report.model = model
    lines = [f"written: {one.written}\n   true: {one.truth}" for one in report.pictures[:shown]]
    show.result(flags, "\n".join([str(report), *lines]), report.to_dict())


@verb("contest", panel=PANEL, without=("dtype",))
def contest(
    flags: Common,
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Runs, checkpoints, model folders; compared with the first."),
    ],
    judges: Annotated[
        list[str],
        typer.Option(
            "--judge",
            metavar="RUN|FUNCTION",
            help="What rates answers: a reward model, exact, village, or FILE.py:FUNCTION; may be repeated.",
        ),
    ],
    data: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Prompts; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts.")] = 200,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write every answer and rating into this JSON file."),
    ] = None,
) -> None:
    """Let models answer the same prompts and have the answers rated: who wins, and how far each has moved.

    Answers are drawn at temperature 1. A tie is half a win; 50 % is no difference from the first model.
    """
    from stockpot.durable import write_atomically
    from stockpot.stages.contest import contest as judged

    with show.progress(flags) as progress:
        found = judged(
            {model: model for model in models},
            {judge: judge for judge in judges},
            data or ["village:prompts/val"],
            limit=limit,
            max_tokens=max_tokens,
            seed=flags.seed or 0,
            device=flags.device,
            progress=progress,
        )
    if out is not None:
        write_atomically(out, found.to_json())
    headers, *rows = found.table()
    show.result(flags, show.table(headers, rows), found.rows())


@verb("compare-tokenizers", panel=PANEL, without=COMPUTES)
def compare_tokenizers(
    flags: Common,
    data: Annotated[
        list[str], typer.Option(metavar="PATH", help="Text to train and test on; may be repeated.")
    ],
    kinds: Annotated[
        str | None, typer.Option(help="Kinds to compare, separated by commas; by default all.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(min=2, help="Vocabulary of the kinds that learn one.")] = 4096,
    tokenizers: Annotated[
        list[str] | None,
        typer.Option("--tokenizer", metavar="PATH", help="A finished tokenizer to compare as well."),
    ] = None,
    mib: Annotated[float, typer.Option(min=0.001, help="Read at most this much text, in MiB.")] = 16.0,
) -> None:
    """Train tokenizers of several kinds on the same text and compare them on text they have not seen.

    Every tenth document (of a single document: every tenth line) is kept for the comparison.
    """
    from stockpot.data.sources import read_texts
    from stockpot.text.explain import compare
    from stockpot.text.kinds import KINDS, kind_named
    from stockpot.text.tokenizer import Tokenizer

    names = [name.strip() for name in kinds.split(",") if name.strip()] if kinds is not None else list(KINDS)
    if not names and not tokenizers:
        raise ConfigError("--kinds names no kind of tokenizer.", f"Kinds: {', '.join(KINDS)}.")
    for name in names:
        kind_named(name)  # a wrong one is told of before the others are trained
    made = {path: Tokenizer.load(path) for path in tokenizers or ()}
    texts = list(_at_most(read_texts(data), int(mib * 2**20)))
    if len(texts) == 1:
        texts = texts[0].splitlines(keepends=True)
    held_out = texts[::10]
    train = [text for number, text in enumerate(texts) if number % 10]
    if not train:
        raise ConfigError(
            f"{', '.join(data)}: too little text to train on one part and test on another.",
            "Give a corpus with several documents or lines.",
        )
    with show.progress(flags) as progress:
        for name in names:
            progress({"kind": "stage", "name": f"train {name}"})
            made[name] = Tokenizer.train(train, kind=name, vocab_size=vocab_size)
        rows = compare(made, held_out)
    show.result(flags, show.table(list(rows[0]), [list(row.values()) for row in rows]), rows)


def _at_most(texts: Iterable[str], size: int) -> Iterator[str]:
    """Yield texts until ``size`` bytes are reached; at least one."""
    for text in texts:
        yield text
        size -= len(text.encode("utf-8", errors="replace"))
        if size <= 0:
            return
