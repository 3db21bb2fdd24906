"""The verbs that study models: probe, emergence, three-kinds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, Model, verb

if TYPE_CHECKING:
    from stockpot.judge.probe_states import StackName

__all__ = ["emergence", "probe", "three_kinds"]

PANEL = "Judge"


@verb("probe", panel=PANEL)
def probe(  # noqa: PLR0913 - one parameter a flag
    flags: Common,
    model: Model,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Annotated text: CoNLL-U, JSON lines or village (the default); may be repeated.",
        ),
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="all|N,N…", help="Layers to probe; 0 is the embeddings.")
    ] = "all",
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="pos, dependencies …; by default all the data has."),
    ] = None,
    limit: Annotated[int, typer.Option(min=8, help="Passages, evenly from the files.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1, help="Initial weights of each probe.")] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training passages.")] = 10,
    stack: Annotated[
        str | None, typer.Option(metavar="encoder|decoder", help="Which half of an encoder-decoder.")
    ] = None,
    mdl: Annotated[
        bool, typer.Option("--mdl", help="Also measure the length of the labels' online code.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write probe.json and the charts there.")
    ] = None,
) -> None:
    """Find out what a model's layers know: where each task is solved, with controls and certainty."""
    if stack not in (None, "encoder", "decoder"):
        raise typer.BadParameter(f"{stack!r} is not encoder or decoder.", param_hint="--stack")
    from stockpot.judge.probe import ProbeConfig
    from stockpot.judge.probe import probe as study
    from stockpot.weights.store import load

    with show.progress(flags) as progress:
        progress({"kind": "stage", "name": f"probe {model}"})
        report = study(
            load(model, device=flags.device, dtype=flags.dtype),
            data or "village",
            layers=layers,
            tasks=tasks,
            limit=limit,
            stack=cast("StackName | None", stack),
            config=ProbeConfig(seeds=seeds, epochs=epochs),
            mdl=mdl,
            seed=flags.seed or 0,
            progress=progress,
        )
    report.model = model
    if out is not None:
        report.save(out)
    show.result(flags, str(report), report.to_dict())


@verb("emergence", panel=PANEL, without=("dtype",))
def emergence(  # noqa: PLR0913 - one parameter a flag
    flags: Common,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models of rising compute; none: a family is trained in --out."),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME|FILE",
            help="codes, columns, sums, sums/3 … or records; may be repeated. A family learns these only.",
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.05, help="For training the family, on this machine.")
    ] = 30.0,
    items: Annotated[int, typer.Option(min=10, help="Questions of each task.")] = 1000,
    published: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Read results from JSON files instead; may be repeated."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Sizes trained at the same time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Train the sizes on a Ray cluster (HOST:PORT, auto)."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the family in --out.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the family, emergence.json and charts go.")
    ] = None,
) -> None:
    """See whether what emerges with size is the model's or the metric's: four metrics of the same outputs against compute."""
    from stockpot.stages.emergence import EmergenceConfig
    from stockpot.stages.emergence import emergence as study

    config = EmergenceConfig(
        minutes=minutes, seed=flags.seed or 0, device=flags.device, workers=workers, ray=ray
    )
    with show.progress(flags) as progress:
        found = study(
            models or (),
            task=tasks,
            out=out,
            config=config,
            published=published or (),
            items=items,
            resume=resume,
            progress=progress,
        )
    show.result(flags, str(found), found.to_dict())


@verb("three-kinds", panel=PANEL, without=("dtype",))
def three_kinds(  # noqa: PLR0913 - one parameter a flag
    flags: Common,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Text that all three learn from; by default the village."),
    ] = None,
    pairs: Annotated[
        str, typer.Option(metavar="village|FILE", help="Sentences to rewrite, or pairs to translate.")
    ] = "village",
    fields: Annotated[
        str, typer.Option(metavar="KEY,KEY", help="What the two sides of a pair are called in that file.")
    ] = "prompt,completion",
    similarity: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Sentence pairs with their relatedness, to compare vectors on."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.05, help="For everything, on this machine.")] = 20.0,
    seeds: Annotated[int, typer.Option(min=1, help="Times everything is done, from new weights.")] = 3,
    items: Annotated[int, typer.Option(min=10, help="Questions of each sort.")] = 200,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write three-kinds.json there.")
    ] = None,
) -> None:
    """Compare an encoder, a decoder and an encoder-decoder trained on the same text with equal arithmetic."""
    keys = [key.strip() for key in fields.split(",")]
    if len(keys) != 2 or not all(keys):
        raise typer.BadParameter(f"{fields!r} is not two keys with a comma between.", param_hint="--fields")
    from stockpot.stages.three_kinds import ThreeKindsConfig
    from stockpot.stages.three_kinds import three_kinds as study

    config = ThreeKindsConfig(
        data=tuple(data or ("village",)),
        pairs=pairs,
        fields=(keys[0], keys[1]),
        similarity=similarity,
        minutes=minutes,
        seeds=seeds,
        items=items,
        seed=flags.seed or 0,
        device=flags.device,
    )
    with show.progress(flags) as progress:
        found = study(config, out=out, progress=progress)
    show.result(flags, str(found), found.to_dict())
