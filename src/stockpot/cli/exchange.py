"""The verbs that bring models in and out: pull, convert.

They name sources and targets; what a format is, and whether a download is whole, is decided in ``weights``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stockpot.cli import show
from stockpot.cli.grammar import COMPUTES, Common, verb
from stockpot.errors import CheckpointError

__all__ = ["convert", "pull"]

PANEL = "Manage"


@verb("pull", panel=PANEL, without=COMPUTES)
def pull(
    flags: Common,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A model that stockpot knows; without it: the list.")
    ] = None,
) -> None:
    """Fetch a known model once; then its name stands for it everywhere, offline too."""
    from stockpot.weights.known import KNOWN, place_of
    from stockpot.weights.known import pull as fetch

    if name is None:
        rows = [
            [one.name, one.about, f"{one.bytes / 1e6:.0f} MB", one.licence, place_of(one).exists()]
            for one in KNOWN.values()
        ]
        columns = ["name", "what", "size", "licence", "here"]
        shown = [[*row[:4], "yes" if row[4] else "no"] for row in rows]
        value = [dict(zip(columns, row, strict=True)) for row in rows]
        show.result(flags, show.table(columns, shown), value)
        return
    place = fetch(name, report=None if flags.quiet else _tell)
    show.result(flags, str(place), {"name": name, "path": str(place), "bytes": KNOWN[name].bytes})


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@verb("convert", panel=PANEL, without=("device", "seed"))
def convert(
    flags: Common,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a checkpoint, a model folder, a GGUF file or a known name."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a file NAME.gguf for llama.cpp.")],
    quantize: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="q8_0 or q4_0: 8 or 4 bits a weight, for .gguf files."),
    ] = None,
    max_shard_gib: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="For folders: the largest file of weights; more go into several."),
    ] = None,
) -> None:
    """Write a model in another form: a Hugging Face folder or a GGUF file. --dtype sets the numbers' type."""
    from stockpot.run import is_run
    from stockpot.weights.store import convert as write

    if is_run(out):  # its own model lies one level deeper
        raise CheckpointError(
            f"{out}: holds a run, which a second model would spoil.", "Choose a new folder."
        )
    place = write(model, out, quantize=quantize, dtype=flags.dtype, max_shard_gib=max_shard_gib)
    files = [place] if place.is_file() else sorted(file for file in place.iterdir() if file.is_file())
    sizes = {file.name: file.stat().st_size for file in files}
    value = {"path": str(place), "bytes": sum(sizes.values()), "files": sizes}
    show.result(flags, f"{place}  {show.size(sum(sizes.values()))}", value)
