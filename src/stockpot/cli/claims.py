"""The verb claims: list what is claimed, run it, write the page of verdicts."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import show
from stockpot.cli.grammar import COMPUTES, Common, verb
from stockpot.errors import ConfigError

if TYPE_CHECKING:
    from stockpot.claims import Claim

__all__ = ["claims"]


@verb("claims", panel="Judge", without=COMPUTES)
def claims(
    flags: Common,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="run NAME", help="Nothing: list them. run: try them, all or some."),
    ] = None,
    cooks: Annotated[
        list[Path] | None,
        typer.Option(
            "--cook", metavar="DIR", help="A finished cook, one a seed; may be repeated. None: cook first."
        ),
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Of each cook, and of each training that a claim does itself.")
    ] = 4.0,
    seeds: Annotated[int, typer.Option(min=1, help="Of what is drawn.")] = 3,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where claims leave their runs.")] = Path(
        "runs/claims"
    ),
    results: Annotated[Path, typer.Option(metavar="DIR", help="Where verdicts are kept.")] = Path(
        "benchmarks/results/claims"
    ),
    page: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the page of verdicts.")
    ] = None,
) -> None:
    """List the claims with their verdicts, or run them: the original figure, the miniature, the bar, the verdict."""
    from stockpot.claims.page import page_of, read_results
    from stockpot.durable import write_atomically

    if words and words[0] != "run":
        raise typer.BadParameter(f"{words[0]!r} is not run.", param_hint="claims")
    if words:
        folders = tuple(cooks or ())
        settings = {"minutes": minutes, "seeds": tuple(range(max(seeds, len(folders)) if folders else seeds))}
        _run(flags, _named(words[1:]), folders, out, results, settings)
    found = read_results(results)
    if page is not None:
        write_atomically(page, page_of(found))
    from stockpot.claims import CLAIMS

    rows = [
        [one.row, one.name, found[one.name].verdict if one.name in found else "not run yet", one.title]
        for one in CLAIMS
    ]
    text = show.table(["row", "claim", "verdict", "what it says"], rows)
    if not found:
        text += f"\n\nThere are no verdicts in {results} yet: `stockpot claims run` makes them, --results names another folder."
    show.result(flags, text, rows)


def _named(names: list[str]) -> list[Claim]:
    from stockpot.claims import CLAIMS

    known = {one.name: one for one in CLAIMS}
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise ConfigError(f'There is no claim "{name}".{hint}', f"Claims: {', '.join(known)}.")
    return [known[name] for name in names] or list(CLAIMS)


def _run(
    flags: Common,
    chosen: list[Claim],
    cooks: tuple[Path, ...],
    out: Path,
    results: Path,
    settings: dict[str, Any],
) -> None:
    from stockpot.claims import Material, run_claim
    from stockpot.claims.material import check_cooks, cooked, distinct_bases

    with show.progress(flags) as progress:
        folders = cooks
        if not cooks and any(claim.needs_cooks for claim in chosen):
            folders = cooked(out, settings["minutes"], settings["seeds"], progress)
        check_cooks(folders)
        for claim in chosen:
            progress({"kind": "stage", "name": f"claim {claim.name}"})
            used = distinct_bases(folders) if claim.on_base else folders
            material = Material(used, out, settings["minutes"], settings["seeds"], progress)
            result = run_claim(claim, material)
            result.save(results)
            progress({"kind": "note", "text": f"{claim.name}: {result.verdict}"})
