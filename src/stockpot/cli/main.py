"""The ``stockpot`` program: gathers the verbs and starts.

Every import that costs time (torch, pydantic, the stages) happens inside the verb that needs it, so that
``--help`` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
from typing import Annotated

import typer

from stockpot.cli import (
    ask,
    claims,
    exchange,
    judge,
    ledger,
    make,
    manage,
    scale,
    serving,
    study,
    use,
)  # the verbs register themselves
from stockpot.cli.grammar import app

__all__ = [
    "app",
    "ask",
    "claims",
    "exchange",
    "judge",
    "ledger",
    "main",
    "make",
    "manage",
    "scale",
    "serving",
    "study",
    "use",
]


# When Python looks for garbage: nearly all that is made while modules and a model are read stays, and looking through it again
# and again took a fifth of the time to the first token.
GARBAGE = (50_000, 20, 50)
ORDER = ("Make", "Use", "Judge", "Manage")
app.registered_commands.sort(key=lambda one: ORDER.index(str(one.rich_help_panel)))


def _print_version(wanted: bool) -> None:
    if wanted:
        from stockpot import __version__

        print(f"stockpot {__version__}")
        raise typer.Exit


@app.callback()
def stockpot(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            help="Print the version and leave.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """From raw text to a model that answers: train, use and judge language models."""


def main() -> None:
    """Run the program with this process's arguments."""
    gc.set_threshold(*GARBAGE)
    atexit.register(gc.freeze)  # nor look through it all at the end, when all of it goes
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            # A terminal that cannot show a character shows "?" instead of ending the program.
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    asked = [one for one in app.registered_commands if one.name in sys.argv[1:2]]
    if asked:  # making ready the verbs that were not asked for takes longer than everything else here
        app.registered_commands = asked
    app()
