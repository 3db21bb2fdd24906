"""The page of verdicts, ``docs/claims.md``: written from result files, never by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stockpot.claims import CLAIMS, WITHOUT_EFFECT
from stockpot.claims.claim import Claim, Finding, Result

__all__ = ["page_of", "read_results"]

HEAD = """# Claims and verdicts

<!-- Written by `stockpot claims --page docs/claims.md` from the files in benchmarks/results/claims/. Do not edit. -->

What the lecture and its sources say, tried in miniature on models made from nothing in ten minutes on two cores, or in
the minutes that stand there. Original figures are facts to compare with, not targets. An effect counts only if its whole 95 %
interval (Student's) over seeds, or over tasks where that stands there, lies beyond the bar. *Partly*: some of a claim's findings
pass. *Undecided*: one seed alone was tried. *Not computed*: a figure is no number. A claim that does not reproduce stands here
as such.

```bash
stockpot claims                                         # list
stockpot claims run retrieval dpo --cook runs/a --cook runs/b --cook runs/c
stockpot claims run --minutes 10 --seeds 3              # everything, cooking first: hours
```
"""


def read_results(folder: Path) -> dict[str, Result]:
    """Read all results of a folder; name → result."""
    return {path.stem: Result.load(path) for path in sorted(folder.glob("*.json"))}


def page_of(results: Mapping[str, Result]) -> str:
    """Write the page."""
    return "\n".join([HEAD, *_table(results), "", *_sections(results)]).rstrip() + "\n"


def _table(results: Mapping[str, Result]) -> Iterator[str]:
    yield "| row | claim | first finding here | verdict |\n|---:|---|---|---|"
    rows: dict[int, str] = {
        number: f"| {number} | {text} | no effect is claimed; held by `{tests}` | – |"
        for number, (text, tests) in WITHOUT_EFFECT.items()
    }
    for claim in CLAIMS:
        result = results.get(claim.name)
        if result is None:
            rows[claim.row] = f"| {claim.row} | [{claim.title}](#{claim.name}) | – | not run yet |"
            continue
        first = result.findings[0]
        told = f"{first.what}: {_figure(first)}"
        rows[claim.row] = f"| {claim.row} | [{claim.title}](#{claim.name}) | {told} | **{result.verdict}** |"
    yield from (rows[number] for number in sorted(rows))


def _sections(results: Mapping[str, Result]) -> Iterator[str]:
    for claim in CLAIMS:
        yield from _section(claim, results.get(claim.name))


def _section(claim: Claim, result: Result | None) -> Iterator[str]:
    yield f"## {claim.name}\n"
    yield f"**{claim.title}** (row {claim.row}).\n"
    yield f"*Original:* {claim.original}.\n"
    yield f"*Here:* {claim.miniature}.\n"
    if claim.remark:
        yield f"*To be read with it:* {claim.remark}\n"
    if result is None:
        yield "Not run yet.\n"
        return
    single = claim.over.removesuffix("s")
    yield f"| finding | mean [95 % interval over {claim.over}] | {single} by {single} | items | bar | passes |"
    yield "|---|---:|---|---:|---|---|"
    for one in result.findings:
        seeds = " · ".join(_number(value) for value in one.by_seed)
        yield f"| {one.what} | {_figure(one)} | {seeds} | {one.n or '–'} | {one.bar} | {'yes' if one.passes else 'no'} |"
    facts = result.facts
    cooks = facts.get("cooks") or []
    on = ""
    if cooks:
        sizes = ", ".join(map(_cook, cooks))
        on = f" Cooks: {sizes}."
    told = "".join(f" {one}" for one in facts.get("told", ()))
    yield (
        f"\n**{result.verdict}.** `stockpot claims run {claim.name}`, {facts['seconds']:g} s on {facts['cores']} "
        f"cores of {facts['cpu']}, "
        f"{facts['made'][:10]}, torch {facts['versions'].get('torch', '?')}.{on}{told}\n"
    )


def _cook(one: Mapping[str, Any]) -> str:
    shared = "" if one["seed"] == one["base_seed"] else f" (on the base model of seed {one['base_seed']})"
    return f"seed {one['seed']}{shared}: {one['parameters']:,} parameters, {one['minutes']} min"


def _figure(one: Finding) -> str:
    if one.bar == "holds each time":
        return "yes" if one.passes else "no"
    if not math.isfinite(one.value) or one.low == one.high:
        return _number(one.value)
    if not abs(one.low) < 1e300:
        return f"{_number(one.value)} [one seed]"
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]"


def _number(value: float) -> str:
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.3f}"
    return f"{value:.1e}"
