"""Further parts of a cook's report: where models come from, ladder and ledger, what layers know, where the model looked.

Figures come from the stages' own files; only the attention picture runs the model, on one question.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from stockpot.durable import fingerprint
from stockpot.errors import StockpotError
from stockpot.judge.drawing import COLOURS, INK, svg
from stockpot.judge.look import read
from stockpot.run import Run
from stockpot.stages.ledger_book import Ledger
from stockpot.weights.store import load

__all__ = ["attention_chart", "ladder_chart", "ledger_figures", "lineage", "lineage_chart", "probe_charts"]

Chart = tuple[str, str, str]
ASKED = 8  # questions whose replies of every line are shown
MOST_TOKENS = 24  # of the text in the attention picture


def ledger_figures(book: Ledger) -> dict[str, Any]:
    """Give the ledger's lines, and every line's replies to some questions, one of each kind."""
    value = book.to_dict()
    shown: dict[str, dict[str, Any]] = {}
    for question in book.questions:
        shown.setdefault(question["kind"], question)
    samples = [
        {
            "question": one["question"],
            "answer": one["answer"],
            "replies": [{"line": name, "reply": reply} for name, reply in one["replies"].items()],
        }
        for one in list(shown.values())[:ASKED]
    ]
    return {"lines": value["lines"], "about": book.about(), "samples": samples}


def ladder_chart(folder: Path, found: Mapping[str, Any]) -> Chart:
    """Show every kind of prompting on the base model, and say what the best one gained."""
    first, *others = found["rungs"]
    best = max(others, key=lambda rung: rung["gain"]["value"], default=first)
    gain, n = best["gain"], first["accuracy"]["n"]
    text = (
        f"The base model answers the same {n} items of “{found['task']}” ({found['source']}) in every way, "
        f"with 95 % intervals. Always saying the commonest label scores {found['commonest'] or 0:.2f}. "
        f"Most gained against {first['name']}: {best['name']}, {gain['value']:+.2f} "
        f"({gain['low']:+.2f} to {gain['high']:+.2f}, paired)."
    )
    return "Kinds of prompting", (folder / "ladder.svg").read_text(encoding="utf-8"), text


# --- lineage ---


def lineage(folder: Path, stages: Mapping[str, Run]) -> list[dict[str, Any]]:
    """Say of each model which one it began as, and on which data it was trained, with their hashes."""
    told = []
    for name, run in stages.items():
        manifest = run.manifest
        parent = manifest.get("parent") or {}
        told.append(
            {
                "name": name,
                "model": str(fingerprint(run.model_path)["sha256"])[:12],
                "parent": Path(parent["path"]).name if parent else None,
                "parent_model": (parent.get("fingerprint") or "")[:12] or None,
                "data": [
                    {
                        "path": _short(one["path"], folder),
                        "hash": (one.get("sha256") or "")[:12] or f"version {one.get('version', '?')}",
                    }
                    for one in manifest.get("data", [])
                ],
                "seed": manifest.get("seed"),
                "commit": (manifest.get("git") or {}).get("commit"),
            }
        )
    return told


def _short(path: str, folder: Path) -> str:
    return path.removeprefix(f"{folder}/")


def lineage_chart(told: list[dict[str, Any]]) -> str:
    """Draw the models as boxes, each joined to the one it began as; returns SVG."""
    depth: dict[str, int] = {}
    for one in told:
        depth[one["name"]] = depth.get(one["parent"] or "", -1) + 1
    rows: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for one in told:
        column = depth[one["name"]]
        places[one["name"]] = (column, rows.get(column, 0))
        rows[column] = rows.get(column, 0) + 1
    boxes = [
        {
            "x": places[one["name"]][0],
            "y": places[one["name"]][1],
            "name": one["name"],
            "hash": one["model"] or "",
        }
        for one in told
    ]
    lines = [
        {"x": places[one["parent"]][0], "y": places[one["parent"]][1], "x2": x, "y2": y}
        for one in told
        if one["parent"] in places
        for x, y in [places[one["name"]]]
    ]
    across = alt.X("x:Q", axis=None, scale=alt.Scale(domain=[-0.4, max(x for x, _ in places.values()) + 0.4]))
    down = alt.Y("y:Q", axis=None, scale=alt.Scale(domain=[max(y for _, y in places.values()) + 0.6, -0.6]))
    joined = (
        alt.Chart(alt.InlineData(values=lines))
        .mark_rule(color=INK)
        .encode(x=across, y=down, x2="x2:Q", y2="y2:Q")
    )
    base = alt.Chart(alt.InlineData(values=boxes)).encode(x=across, y=down)
    dots = base.mark_circle(size=160, color=COLOURS[0], opacity=1)
    names = base.mark_text(dy=-14, color=INK, fontSize=13, fontWeight="bold").encode(text="name:N")
    hashes = base.mark_text(dy=18, color=INK, fontSize=10).encode(text="hash:N")
    title = "Lineage: " + "; ".join(f"{one['name']} from {one['parent'] or 'fresh weights'}" for one in told)
    layers = [joined, dots, names, hashes] if lines else [dots, names, hashes]
    return svg(alt.layer(*layers).properties(width=560, height=70 * max(rows.values())), title)


# --- inside ---


def attention_chart(model: Path, text: str) -> Chart | None:
    """Draw where every head of a model looks while it reads a text; None if the text does not fit."""
    try:
        seen = read(load(model, device="cpu", dtype="float32"), text)
    except StockpotError:
        return None
    tokens = [one.text for one in seen.tokens][:MOST_TOKENS]
    labels = [f"{place} {token.strip() or '␣'}" for place, token in enumerate(tokens)]
    rows = [
        {
            "from": labels[a],
            "to": labels[b],
            "weight": round(float(seen.attention[layer, head, a, b]), 4),
            "head": f"layer {layer + 1}, head {head + 1}",
        }
        for layer in range(seen.attention.shape[0])
        for head in range(seen.attention.shape[1])
        for a in range(len(labels))
        for b in range(a + 1)
    ]
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect()
        .encode(
            x=alt.X("to:N", sort=labels, title=None),
            y=alt.Y("from:N", sort=labels, title=None),
            color=alt.Color(
                "weight:Q", scale=alt.Scale(range=["#2f7ed811", "#2f7ed8"], domain=[0, 1]), legend=None
            ),
            facet=alt.Facet("head:N", columns=3, title=None),
        )
        .properties(width=170, height=170)
    )
    said = (
        f"Rows are the tokens that look, columns those looked at, of “{text}”; darker is more. look.html has every head "
        "with its numbers."
    )
    return (
        "Where the base model looks",
        svg(chart, "Attention of every layer and head of the base model"),
        said,
    )


def probe_charts(folder: Path) -> list[Chart]:
    """Show what a probe of the base model found, if there is one."""
    file = folder / "probe.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    drawn = (folder / "scores.svg").read_text(encoding="utf-8")
    text = (
        f"Small probes read grammar and reference off the states of layers 0 to n "
        f"({sum(found['passages'].values())} passages of the village's parses). {found['sentence']}"
    )
    return [("What the layers know", drawn, text)]
