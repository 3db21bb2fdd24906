"""The verbs about asking well: prompts, ladder, index, ask."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, Model, verb
from stockpot.errors import ConfigError

if TYPE_CHECKING:
    from stockpot.bundle import Bundle
    from stockpot.generate.engine import Engine
    from stockpot.generate.request import Sampling
    from stockpot.prompt.answering import SourcedAnswer
    from stockpot.prompt.items import Questions

__all__ = ["Asking", "ask", "index", "ladder", "prompts"]

SHOTS, ITEMS, CURVE = "Examples before the question", "What is asked", "By number of examples"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking(Common):
    """Flags of the verbs that ask the items of a task."""

    task: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="nli, sentiment, sums, lecture, or a task file in TOML.",
            rich_help_panel=ITEMS,
        ),
    ] = "nli"
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Items to ask; by default the task's own, from the village.",
            rich_help_panel=ITEMS,
        ),
    ] = None
    examples: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Items to show or train on; by default those that are not asked.",
            rich_help_panel=ITEMS,
        ),
    ] = None
    wording: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this wording; may be repeated.", rich_help_panel=ITEMS),
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="At most so many items.", rich_help_panel=ITEMS)] = 50
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt as a user's message.", rich_help_panel=ITEMS)
    ] = False

    def questions(self) -> Questions:
        """Check the flags."""
        from stockpot.config import build
        from stockpot.prompt.items import Questions

        names = ("task", "data", "examples", "limit", "chat", "seed")
        given = {name: getattr(self, name) for name in names}
        return build(Questions, flags=given | {"wordings": tuple(self.wording) if self.wording else None})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting(Asking):
    """Flags of `prompts`."""

    curve: Annotated[
        str | None,
        typer.Option(
            metavar="K,K…",
            help="Instead: accuracy by number of examples (0,1,2,4,8,16), with right, random and wrong labels.",
            rich_help_panel=CURVE,
        ),
    ] = None
    draws: Annotated[
        int, typer.Option(min=1, help="How often the examples are drawn.", rich_help_panel=CURVE)
    ] = 3
    lr: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="RATE",
            help="Also take the same examples as gradient steps of this learning rate.",
            rich_help_panel=CURVE,
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For curve.json and curve.svg.", rich_help_panel=CURVE),
    ] = None


@verb("prompts", panel="Judge", flags=Prompting)
def prompts(
    flags: Prompting,
    model: Model,
    k: Annotated[int, typer.Option("--shots", "-k", min=0, help="Examples.", rich_help_panel=SHOTS)] = 0,
    select: Annotated[
        str | None, typer.Option(metavar="WAY", help="balanced, random or similar.", rich_help_panel=SHOTS)
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="WAY", help="gold, random, flipped or none.", rich_help_panel=SHOTS)
    ] = None,
    order: Annotated[
        str | None, typer.Option(metavar="WAY", help="drawn or similar-last.", rich_help_panel=SHOTS)
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Finds similar examples, such as minilm.", rich_help_panel=SHOTS),
    ] = None,
) -> None:
    """Ask the same items in many wordings: the right answer's probability in each, and how often it is chosen."""
    from stockpot.config import build
    from stockpot.judge.prompts import prompts as ask
    from stockpot.prompt.shots import Shots
    from stockpot.weights.store import load

    questions = flags.questions()
    given = {"k": k, "select": select, "labels": labels, "order": order, "seed": flags.seed}
    shots = build(Shots, flags=given)
    bundle = load(model, device=flags.device, dtype=flags.dtype)
    if flags.curve is not None:
        _curve(flags, model, bundle, questions)
        return
    with show.progress(flags) as progress:
        report = ask(bundle, questions, shots=shots, encoder=encoder, progress=progress)
    report.model = model
    show.result(flags, str(report), report.to_dict())


def _curve(flags: Prompting, model: str, bundle: Bundle, questions: Questions) -> None:
    """Ask with more and more examples, and leave a chart if a folder is named."""
    from stockpot.durable import write_atomically
    from stockpot.judge.shots import shots_curve
    from stockpot.stages.report import curve_chart

    parts = [one.strip() for one in (flags.curve or "").split(",")]
    if not all(one.isdecimal() for one in parts):
        raise ConfigError(
            f"--curve {flags.curve} is no list of numbers.", "Write it like --curve 0,1,2,4,8,16."
        )
    with show.progress(flags) as progress:
        numbers = sorted({int(one) for one in parts})
        found = shots_curve(bundle, questions, ks=numbers, draws=flags.draws, lr=flags.lr, progress=progress)
    found.model = model
    if flags.out is not None:
        flags.out.mkdir(parents=True, exist_ok=True)
        found.save(flags.out / "curve.json")
        title = f"{found.task}, wording {found.wording}: accuracy by number of examples"
        chart = curve_chart(found.series(), x="examples", y="accuracy", title=title)
        write_atomically(flags.out / "curve.svg", chart)
    show.result(flags, str(found), found.to_dict())


@verb("ladder", panel="Judge", flags=Asking)
def ladder(
    flags: Asking,
    model: Model,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder for the table, the chart and the run.")
    ],
    kinds: Annotated[
        str | None,
        typer.Option(
            help="Rungs, separated by commas: wordings, shots, steps, retrieval, soft, prefix, lora."
        ),
    ] = None,
    k: Annotated[int | None, typer.Option("--shots", "-k", min=1, help="Examples.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps of what is trained.")] = None,
    length: Annotated[
        int | None, typer.Option(min=1, help="Vectors of the soft prompt, and of the prefix in each layer.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Finds similar examples, such as minilm.")
    ] = None,
) -> None:
    """Every kind of prompting on the same items: accuracy, interval, tokens, trained parameters, seconds."""
    from stockpot.config import build
    from stockpot.stages.ladder import LadderConfig
    from stockpot.stages.ladder import ladder as climb

    named = None if kinds is None else tuple(name.strip() for name in kinds.split(",") if name.strip())
    given = {"kinds": named, "k": k, "steps": steps, "length": length, "encoder": encoder}
    given |= {"device": flags.device, "dtype": flags.dtype}
    config = build(LadderConfig, flags=given).model_copy(update={"questions": flags.questions()})
    with show.progress(flags) as progress:
        found = climb(model, config, out=out, progress=progress)
    show.result(flags, str(found), found.to_dict())


# --- documents ---

STEPS = "Steps before the answer"
Way: TypeAlias = Literal["direct", "zero-shot", "few-shot", "least-to-most"]


@verb("index", panel="Use", without=("seed",))
def index(
    flags: Common,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH", help="Files and folders: text, Markdown, HTML, PDF, Word, CSV, JSON lines."
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The index's folder; one that is there is brought up to date.")
    ],
    encoder: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Makes the vectors; by default minilm.")
    ] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Longest passage, in tokens.")] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URI", help="Where passages are kept, such as s3://bucket/index.")
    ] = None,
) -> None:
    """Index documents, so that `ask` can find passages in them; only what has changed is read again."""
    from stockpot.config import build
    from stockpot.prompt.index import IndexConfig
    from stockpot.prompt.index import index as make

    given = {"encoder": encoder, "chunk_tokens": chunk_tokens, "store": store}
    config = build(IndexConfig, flags=given)
    with show.progress(flags) as progress:
        _, report = make(list(paths), out, config, device=flags.device, dtype=flags.dtype, progress=progress)
    show.result(flags, str(report), dataclasses.asdict(report))


@verb("ask", panel="Use")
def ask(
    flags: Common,
    model: Model,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="Plain words.")],
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Answer from this index's passages.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Passages shown to the model.")] = 4,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also answer without the index, side by side.")
    ] = False,
    steps: Annotated[
        Way | None,
        typer.Option(
            metavar="WAY", help="direct, zero-shot, few-shot or least-to-most.", rich_help_panel=STEPS
        ),
    ] = None,
    votes: Annotated[
        int, typer.Option(min=1, help="Draw this many thoughts and count.", rich_help_panel=STEPS)
    ] = 1,
) -> None:
    """Answer a question: from an index with numbered sources, or step by step."""
    if (steps is not None or votes > 1) and index is not None:
        named = "--steps" if steps is not None else "--votes"
        raise typer.BadParameter("steps and an index do not go together.", param_hint=named)
    if compare and index is None:
        raise typer.BadParameter("it needs an index.", param_hint="--compare")
    from stockpot.generate.engine import Engine
    from stockpot.weights.store import load

    opened = None
    if index is not None:
        from stockpot.prompt.index import Index

        opened = Index.open(index, device=flags.device, dtype=flags.dtype)
    engine = Engine(load(model, device=flags.device, dtype=flags.dtype))
    if steps is not None or votes > 1:
        _thoughts(flags, engine, question, steps or "zero-shot", votes)
        return
    from stockpot.prompt.answering import ask as answer

    reply = answer(question, engine=engine, index=opened, k=k)
    closed = answer(question, engine=engine) if compare else None
    value = dataclasses.asdict(reply) | ({"closed_book": closed.text} if closed else {})
    show.result(flags, show.harmless(_shown(reply, closed)), value)


def _shown(reply: SourcedAnswer, closed: SourcedAnswer | None) -> str:
    lines = [f"closed book: {closed}", f"open book:   {reply}"] if closed else [str(reply)]
    for number, hit in enumerate(reply.sources, 1):
        mark = "*" if number in reply.cited else " "
        where = ", ".join(part for part in (Path(hit.path).name, hit.place) if part)
        lines += ["", f"{mark}[{number}] {where}", f"    {_short(hit.text)}"]
    if reply.cited and not reply.is_cited_by_model:
        lines += ["", "The numbers were found by comparing words; the model wrote none."]
    if reply.left_out:
        lines += ["", f"{reply.left_out} passages did not fit the model and were left out."]
    return "\n".join(lines)


def _short(text: str) -> str:
    line = "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))
    return line if len(line) <= 200 else line[:199] + "…"


def _thoughts(flags: Common, engine: Engine, question: str, way: Way, votes: int) -> None:
    from stockpot.prompt.items import load_pool
    from stockpot.prompt.steps import self_consistency, think
    from stockpot.prompt.wordings import find_asking

    worked: Any = ()
    if way == "few-shot":
        pool = load_pool(find_asking("sums"), "village:steps", limit=1)
        worked = [(one.fields["question"], one.worked, one.answer) for one in pool.examples[:4]]
    if votes == 1:
        (thought,) = think(engine, [question], way=way, examples=worked)
        shown = [thought.steps, f"answer: {thought.answer or 'none found'}"]
        show.result(flags, "\n\n".join(one for one in shown if one), dataclasses.asdict(thought))
        return
    sampling = _drawn(flags)
    found = self_consistency(engine, question, votes, way=way, examples=worked, sampling=sampling)
    rows = [[answer, count] for answer, count in found.counts.items()]
    text = f"{show.table(['answer', 'votes'], rows)}\n\nanswer: {found.answer or 'none found'}"
    show.result(flags, text, dataclasses.asdict(found))


def _drawn(flags: Common) -> Sampling:
    from stockpot.generate.request import Sampling

    return Sampling(temperature=0.7, max_tokens=160, seed=flags.seed or 0)
