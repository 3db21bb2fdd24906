"""The verbs for what is larger than this machine's patience: prepare, plan, sweep.

Each merges its recipe, ``--set`` and flags into the settings of its stage and calls the stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import typer

from stockpot.cli import show
from stockpot.cli.grammar import COMPUTES, Making, Settling, verb
from stockpot.cli.make import Data
from stockpot.cli.maker import Maker, settle

__all__ = ["plan", "prepare", "sweep"]

Tokenizer = Annotated[str | None, typer.Option(metavar="PATH", help="A tokenizer or a model's folder.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")]
Ray = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="A Ray cluster (HOST:PORT, auto) does the work instead.")
]

Layout: TypeAlias = Literal["ddp", "fsdp", "tensor"]


@verb("prepare", panel="Make", flags=Making, without=COMPUTES)
def prepare(
    flags: Making,
    data: Data = None,
    tokenizer: Tokenizer = None,
    workers: Workers = None,
    ray: Ray = None,
) -> None:
    """Clean a corpus, leave out what is there twice, and write tokenised shards that pretrain reads.

    The same command goes on after an interruption.
    """
    from stockpot.stages.prepare import PrepareConfig
    from stockpot.stages.prepare import prepare as stage

    maker = Maker("prepare", "prepare", flags)
    own = {"data": data, "tokenizer": tokenizer, "workers": workers, "ray": ray}
    config = maker.settings(PrepareConfig, own)
    if flags.dry_run:
        maker.print_plan(config, f"shards of {config.shard_mib} MiB of text from {', '.join(config.data)}")
        return
    with show.progress(flags) as progress:
        found = stage(config, out=maker.out, progress=progress)
    show.result(flags, str(found), found)


@verb("plan", panel="Judge", flags=Settling, without=COMPUTES)
def plan(
    flags: Settling,
    size: Annotated[int | None, typer.Option(metavar="DEPTH", help="Layers; sets every other size.")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="N", help="To train on: 500M, 10B, 1T.")] = None,
    devices: Annotated[str | None, typer.Option(metavar="8xH100", help="Count and kind, or cpu.")] = None,
    layout: Annotated[
        Layout | None, typer.Option(help="One layout; else the simplest that fits is chosen.")
    ] = None,
    mfu: Annotated[float | None, typer.Option(help="Share of the peak that is reached, from 0 to 1.")] = None,
    check: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Hold a finished run beside it; may be repeated.")
    ] = None,
) -> None:
    """Say what pretraining takes on other machines: memory by part, layout, days, failures. Nothing is started."""
    from stockpot.stages.cluster import HEADERS, PlanConfig
    from stockpot.stages.cluster import plan as stage

    own = {"size": size, "tokens": tokens, "devices": devices, "parallel.kind": layout, "mfu": mfu}
    found = stage(settle(PlanConfig, "plan", flags, own), runs=check or ())
    text = show.facts(found.facts()) + "\n\n" + show.table(HEADERS, [one.row() for one in found.options])
    if found.checks:
        headers = ["run", "parameters", "planned", "tokens/s", "planned", "MFU"]
        rows = [
            [
                one.run,
                one.parameters,
                one.planned_parameters,
                one.tokens_per_s,
                one.planned_tokens_per_s,
                one.mfu,
            ]
            for one in found.checks
        ]
        text += "\n\n" + show.table(headers, rows)
    show.result(flags, text, found)


@verb("sweep", panel="Judge", flags=Making)
def sweep(
    flags: Making,
    data: Data = None,
    tokenizer: Tokenizer = None,
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="LxW", help="Layers x width; may be repeated.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Tokens to train on; may be repeated.")
    ] = None,
    kept: Annotated[
        str | None, typer.Option(metavar="LxW:N", help="A larger run that checks the prediction.")
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
) -> None:
    """Train many small models, fit a scaling law L(N, D), and check what it predicts on a larger one.

    The same command goes on after an interruption.
    """
    from stockpot.stages.sweep import SweepConfig
    from stockpot.stages.sweep import sweep as stage

    maker = Maker("sweep", "sweep", flags)
    own: dict[str, Any] = {"data": data, "tokenizer": tokenizer, "kept": kept, "workers": workers, "ray": ray}
    own |= {"sizes": sizes or None, "tokens": tokens or None}
    config = maker.settings(SweepConfig, own)
    if flags.dry_run:
        runs = ", ".join(f"{size}:{count}" for size, count in config.runs())
        maker.print_plan(config, f"{len(config.runs())} runs: {runs}")
        return
    with show.progress(flags) as progress:
        found = stage(config, out=Path(maker.out), progress=progress)
    show.result(flags, f"{found}\n{found.folder / 'report.md'}", found)
