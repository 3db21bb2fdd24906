"""The verbs that judge: eval, contest, compare-tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, verb
from stockpot.errors import ConfigError

if TYPE_CHECKING:
    from stockpot.judge.tasks import Wording

__all__ = ["compare_tokenizers", "contest", "evaluate"]

PANEL = "Judge"


@verb("eval", panel=PANEL)
def evaluate(
    flags: Common,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="Runs, checkpoints, Hugging Face folders, GGUF files or known names."
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="NAME|FILE", help="village, village/KIND or a JSON-lines file; may be repeated."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Questions per task.")] = 100,
    wording: Annotated[
        str | None,
        typer.Option(
            metavar="plain|chat", help="How questions are put; by default as the model was trained."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 24,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write a report a model into this folder.")
    ] = None,
) -> None:
    """Score models on questions with exact answers, with 95 % intervals and the score of guessing.

    Two models and more are compared with the first, question by question.
    """
    if wording not in (None, "plain", "chat"):
        raise typer.BadParameter(f"{wording!r} is not plain or chat.", param_hint="--wording")
    from stockpot.judge.harness import compare
    from stockpot.judge.harness import evaluate as ask
    from stockpot.weights.store import load

    reports = []
    with show.progress(flags) as progress:
        for model in models:
            progress({"kind": "stage", "name": f"eval {model}"})
            bundle = load(model, device=flags.device, dtype=flags.dtype)
            report = ask(
                bundle,
                tasks or ["village"],
                limit=limit,
                wording=cast("Wording | None", wording),
                max_tokens=max_tokens,
                progress=progress,
            )
            report.model = model
            reports.append(report)
            if out is not None:
                report.save(out if len(models) == 1 else out / model.strip("/").replace("/", "-"))
    differences = [compare(reports[0], other) for other in reports[1:]]
    text = [f"{report.model}\n{report}" for report in reports]
    for other, rows in zip(reports[1:], differences, strict=True):
        text.append(f"{other.model} minus {reports[0].model}, the same questions\n{_difference(rows)}")
    show.result(flags, "\n\n".join(text), _document(reports, differences))


def _difference(rows: list[Any]) -> str:
    headers = ["task", "metric", "difference", "95 % interval", "n"]
    shown = [
        [row.task, row.metric, f"{e.value:+.3f}", f"{e.low:+.3f} to {e.high:+.3f}", e.n]
        for row in rows
        for e in [row.estimate]
    ]
    return show.table(headers, shown)


def _document(reports: list[Any], differences: list[Any]) -> list[dict[str, Any]]:
    value = [report.to_dict() for report in reports]
    for one, rows in zip(value[1:], differences, strict=True):
        one["minus_first"] = rows
    return value


@verb("contest", panel=PANEL)
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
            progress=progress,
        )
    if out is not None:
        write_atomically(out, found.to_json())
    headers, *rows = found.table()
    show.result(flags, show.table(headers, rows), found.rows())


@verb("compare-tokenizers", panel=PANEL)
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
    from stockpot.text.kinds import KINDS
    from stockpot.text.tokenizer import Tokenizer

    names = [name.strip() for name in kinds.split(",") if name.strip()] if kinds is not None else list(KINDS)
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
