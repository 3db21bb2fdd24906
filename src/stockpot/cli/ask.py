"""The verbs about asking well: prompts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, verb

if TYPE_CHECKING:
    from stockpot.prompt.items import Questions

__all__ = ["Asking", "prompts"]

SHOTS, ITEMS = "Examples before the question", "What is asked"
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a checkpoint, a Hugging Face folder, a GGUF file or a known name (smollm2).",
    ),
]


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
    limit: Annotated[int, typer.Option(min=1, help="Most items.", rich_help_panel=ITEMS)] = 50
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


@verb("prompts", panel="Judge", flags=Asking)
def prompts(
    flags: Asking,
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
    """Ask the same items in many wordings: the right answer's probability in each, and who chooses right."""
    from stockpot.config import build
    from stockpot.judge.prompts import prompts as ask
    from stockpot.prompt.shots import Shots
    from stockpot.weights.store import load

    questions = flags.questions()
    given = {"k": k, "select": select, "labels": labels, "order": order, "seed": flags.seed}
    shots = build(Shots, flags=given)
    bundle = load(model, device=flags.device, dtype=flags.dtype)
    with show.progress(flags) as progress:
        report = ask(bundle, questions, shots=shots, encoder=encoder, progress=progress)
    report.model = model
    show.result(flags, str(report), report.to_dict())
