"""The verb ledger: what each ingredient added to the same model on the same questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, verb

__all__ = ["ledger"]

MODELS, ASKED = "Further models", "What is asked"


@verb("ledger", panel="Judge")
def ledger(  # noqa: PLR0913 - one parameter a flag
    flags: Common,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL|COOK", help="A cook's folder, such as runs/village, or a base model."),
    ],
    questions: Annotated[
        list[str] | None,
        typer.Option(
            "--questions",
            metavar="PATH|NAME",
            help="Questions in JSON lines, a shipped task, village or village/KIND; may be repeated.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each.", rich_help_panel=ASKED)
    ] = None,
    examples: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Questions with answers that may be shown.", rich_help_panel=ASKED),
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="What passages are retrieved from; may be repeated.", rich_help_panel=ASKED
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH", help="What the n-gram model counts; may be repeated.", rich_help_panel=ASKED
        ),
    ] = None,
    tuned: Annotated[
        str | None, typer.Option(metavar="MODEL", help="After instruction tuning.", rich_help_panel=MODELS)
    ] = None,
    dpo: Annotated[
        str | None, typer.Option(metavar="MODEL", help="After DPO.", rich_help_panel=MODELS)
    ] = None,
    rlhf: Annotated[
        str | None, typer.Option(metavar="MODEL", help="After PPO or GRPO.", rich_help_panel=MODELS)
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for the table, the chart and every answer.")
    ] = Path("runs/ledger"),
) -> None:
    """Add ingredients one by one and say what each added, with interval and cost, on the same questions.

    Random model, n-gram, base, parameters, data, wording, few-shot, chain of thought, retrieval, tuning, DPO, RLHF.

    What does not apply is skipped with its reason.
    """
    from stockpot.config import build
    from stockpot.stages.ledger import LedgerConfig
    from stockpot.stages.ledger import ledger as keep

    lists = {"questions": questions, "documents": documents, "text": text}
    given: dict[str, object] = {name: tuple(some) if some else None for name, some in lists.items()}
    given |= {"limit": limit, "examples": examples, "tuned": tuned, "dpo": dpo, "rlhf": rlhf}
    given |= {"device": flags.device, "dtype": flags.dtype, "seed": flags.seed}
    config = build(LedgerConfig, flags={name: one for name, one in given.items() if one is not None})
    with show.progress(flags) as progress:
        found = keep(model, config, out=out, progress=progress)
    show.result(flags, str(found), found.to_dict())
