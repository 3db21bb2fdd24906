"""The verbs that look after things: inspect, runs, recipes, doctor.

They read and never change anything, except the page that ``inspect --text`` writes.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import show
from stockpot.cli.grammar import COMPUTES, Common, verb
from stockpot.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from stockpot.data.records import Record

__all__ = ["doctor", "inspect", "recipes", "runs"]

PANEL = "Manage"
SCREEN = 2_000  # characters of one text that inspect prints
COLUMNS = ("run", "stage", "status", "step", "loss", "started", "minutes")


# --- recipes ---


@verb("recipes", panel=PANEL, without=COMPUTES)
def recipes(
    flags: Common,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one (> my.toml).")] = None,
) -> None:
    """List the recipes that come with stockpot, or print one."""
    from stockpot.config import find_recipe, read_recipe, shipped_recipes

    if name is not None:
        path = find_recipe(name)
        text = path.read_text(encoding="utf-8")
        show.result(
            flags, text.rstrip("\n"), {"name": path.stem, "settings": read_recipe(path), "text": text}
        )
        return
    found = [_recipe_row(name, path) for name, path in shipped_recipes().items()]
    text = show.table(["recipe", "stages", "command"], [list(row.values()) for row in found])
    show.result(flags, text if found else "No recipes are shipped.", found)


def _recipe_row(name: str, path: Path) -> dict[str, Any]:
    from stockpot.cli.identify import identify

    facts = identify(path).facts
    return {"name": name, "stages": facts["stages"], "command": facts["command"]}


# --- runs ---


@verb("runs", panel=PANEL, without=COMPUTES)
def runs(
    flags: Common,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders of runs, or runs to compare; by default runs."),
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the runs' metrics as TensorBoard events to DIR.")
    ] = None,
) -> None:
    """List runs; name two or more runs to compare them."""
    from stockpot.run import is_run

    given = folders or [Path("runs")]
    missing = [path for path in given if not path.is_dir()]
    if missing and folders:
        raise ConfigError(
            f"{missing[0]}: there is no such folder.", "Name a run, or a folder that holds runs."
        )
    paths = [path for folder in given for path in _runs_under(folder)]
    if tensorboard is not None:
        _write_events(paths, tensorboard)
    if len(given) > 1 and all(map(is_run, given)):
        _compare(flags, given)
        return
    found = [_run_row(path) for path in paths]
    text = show.table(COLUMNS, [[row[name] for name in COLUMNS] for row in found])
    show.result(flags, text if found else f"There are no runs in {', '.join(map(str, given))}.", found)


def _write_events(runs: list[Path], folder: Path) -> None:
    """Write each run's metrics to its own folder of TensorBoard events, laid out as the runs are."""
    from stockpot.curves import Board, read_rows

    places = [path.resolve() for path in runs]
    above = os.path.commonpath([place.parent for place in places]) if places else ""
    for place in places:
        Board(folder / place.relative_to(above), read_rows(place / "metrics.jsonl")).close()


def _runs_under(folder: Path, depth: int = 3) -> list[Path]:
    """Find the runs in a folder, and the runs inside runs (a cook holds its stages)."""
    from stockpot.run import is_run

    if not folder.is_dir():
        return []
    here = [folder] if is_run(folder) else []
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    skipped = ("checkpoints", "model", "samples", "evals")
    deeper = [run for path in inner if path.name not in skipped for run in _runs_under(path, depth - 1)]
    return here + deeper if depth else here


def _run_row(path: Path) -> dict[str, Any]:
    from stockpot.cli.identify import last_metrics
    from stockpot.run import Run

    try:
        run = Run.open(path)
    except CheckpointError:  # one bad folder must not hide the others; `inspect` says what is wrong with it
        return dict.fromkeys(COLUMNS) | {"run": str(path), "stage": "?", "status": "damaged", "started": "?"}
    last = last_metrics(path)
    seconds = run.manifest.get("seconds")
    return {
        "run": str(path),
        "stage": run.manifest["stage"],
        "status": run.status,
        "step": last.get("step"),
        "loss": next((last[name] for name in ("val/loss", "train/loss", "loss") if name in last), None),
        "started": str(run.manifest.get("started", ""))[:16].replace("T", " "),
        "minutes": None if seconds is None else round(seconds / 60, 1),
    }


def _compare(flags: Common, paths: list[Path]) -> None:
    """Put runs side by side: the settings in which they differ, and their last metrics."""
    from stockpot.cli.identify import last_metrics
    from stockpot.run import Run

    settings = [_settings(path) for path in paths]
    metrics = [last_metrics(path) for path in paths]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    different = [key for key in keys if len({repr(one.get(key)) for one in settings}) > 1]
    names = list(dict.fromkeys(name for one in metrics for name in one))
    rows: list[list[Any]] = [["status", *(Run.open(path).status for path in paths)]]
    rows += [[key, *(one.get(key) for one in settings)] for key in different]
    rows += [[name, *(one.get(name) for one in metrics)] for name in names]
    text = show.table(["", *map(str, paths)], [[row[0], *map(show.cell, row[1:])] for row in rows])
    value = [
        {"run": str(path), "differs": {key: one.get(key) for key in different}, "metrics": last}
        for path, one, last in zip(paths, settings, metrics, strict=True)
    ]
    show.result(flags, text, value)


def _settings(run: Path) -> dict[str, Any]:
    """Read a run's settings, dotted key → value."""
    from stockpot.config import flatten, read_recipe

    return flatten(read_recipe(run / "recipe.toml"))


# --- doctor ---


@verb("doctor", panel=PANEL, without=COMPUTES)
def doctor(flags: Common) -> None:
    """Say what this machine and installation have: versions, cores, memory, bf16, optional parts, disk."""
    from stockpot import origin

    disk = shutil.disk_usage(Path.cwd())
    facts: dict[str, Any] = {
        "versions": origin.versions("transformers"),
        "hardware": origin.hardware() | _torch_facts(),
        "disk": {"folder": str(Path.cwd()), "free": show.size(disk.free), "of": show.size(disk.total)},
        "compiled kernels": _kernels(),
        "optional parts": _optional_parts(),
    }
    text = "\n\n".join(f"{title}\n{show.facts(group)}" for title, group in facts.items())
    show.result(flags, text, facts)


OPTIONAL = {
    "rag": ("lancedb", "pyarrow", "pypdf", "docx"),
    "data": ("pyarrow", "zstandard", "bs4"),
    "hub": ("huggingface_hub", "datasets"),
    "images": ("PIL",),
    "diffusion": ("diffusers", "PIL"),
    "tensorboard": ("tensorboard",),
    "serve": ("fastapi", "uvicorn", "llguidance"),
    "prepare": ("datasketch", "fsspec"),
    "ray": ("ray",),
    "vllm": ("vllm",),
    "constrain": ("llguidance",),
    "lm-eval": ("lm_eval",),
}


def _kernels() -> dict[str, str]:
    """Say whether this machine's own kernels can be made; where they are not there yet, they are made now."""
    from stockpot.native.build import library, reason, text_library, training_library

    why = reason()
    return {
        name: "present" if made() is not None else f"absent: {why}; results are the same, slower"
        for name, made in (
            ("inference", library),
            ("reading", text_library),
            ("training", training_library),
        )
    }


def _optional_parts() -> dict[str, str]:
    from importlib.util import find_spec

    parts = {}
    for extra, modules in OPTIONAL.items():
        absent = [name for name in modules if find_spec(name) is None]
        parts[extra] = (
            f"absent ({', '.join(absent)}): pip install 'stockpot[{extra}]'" if absent else "present"
        )
    return parts


def _torch_facts() -> dict[str, Any]:
    from stockpot import device

    shown = ("device", "threads", "fast_bf16", "accelerator", "accelerator_gib")
    found = device.describe()
    return {name: found[name] for name in shown if name in found}


# --- inspect ---


@verb("inspect", panel=PANEL, without=("seed",))
def inspect(
    flags: Common,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Anything: data, tokenizer, model, run, recipe.")
    ],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="PATH", help="Show data as this tokenizer (or model) reads it.")
    ] = None,
    records: Annotated[int, typer.Option(min=1, help="How many of the first records of data to show.")] = 3,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Draw what a model sees in this text; show how a tokenizer cuts it."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page that --text writes.")] = Path(
        "look.html"
    ),
) -> None:
    """Say what a path is, from its contents, and show what is in it."""
    from stockpot.cli.identify import identify

    found = identify(path, records=records)
    if text is not None:
        _trace(flags, path, text) if found.kind == "tokenizer" else _draw(flags, path, text, out)
        return
    readings = _read_with(tokenizer, found.records) if tokenizer is not None else []
    plain = [_plain_record(one) for one in found.records]
    shown = [show.facts({"this is": found.kind, "path": found.path, **found.facts})]
    shown += [show.reading(one) for one in readings] or [
        show.facts(_for_a_screen(_turns(one))) for one in plain
    ]
    value = {"kind": found.kind, "path": path, **found.facts, "records": plain, "readings": readings}
    show.result(
        flags, "\n\n".join(shown), {name: one for name, one in value.items() if one not in (None, [])}
    )


def _plain_record(record: Record) -> dict[str, Any]:
    value = dataclasses.asdict(record)
    return {name: one for name, one in value.items() if one is not None and name != "where"}


def _turns(record: dict[str, Any]) -> dict[str, Any]:
    """Lay a conversation out turn by turn; other records stay as they are."""
    said = record.get("messages") or record.get("prompt")
    if not isinstance(said, (list, tuple)):
        return record
    turns = {f"{one['role']} {number}": one["content"] for number, one in enumerate(said, 1)}
    return turns | {name: value for name, value in record.items() if value is not said}


def _for_a_screen(record: dict[str, Any]) -> dict[str, Any]:
    """Cut long texts, saying how much is left out."""
    return {
        name: f"{value[:SCREEN]} … ({len(value) - SCREEN:,} characters more; --json shows all)"
        if isinstance(value, str) and len(value) > SCREEN
        else value
        for name, value in record.items()
    }


def _trace(flags: Common, path: str, text: str) -> None:
    """Show how a tokenizer cuts a text: its tokens and, if it merges pairs, each merge in order."""
    from stockpot.text.explain import trace_merges
    from stockpot.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    ids = tokenizer.encode(text)
    pieces = [tokenizer.id_to_token(one) for one in ids]
    traces = trace_merges(tokenizer, text) if tokenizer.kind in ("bpe", "byte-bpe") else []
    shown = [show.table(["id", "token"], [[one, piece] for one, piece in zip(ids, pieces, strict=True)])]
    shown += [str(trace) for trace in traces]
    show.result(flags, "\n\n".join(shown), {"ids": ids, "tokens": pieces, "merges": traces})


def _draw(flags: Common, path: str, text: str, out: Path) -> None:
    """Write the page that shows what a model sees in a text."""
    from stockpot.durable import write_atomically
    from stockpot.judge.look import look
    from stockpot.weights.store import load

    bundle = load(path, device=flags.device, dtype=flags.dtype)
    write_atomically(out, look(bundle, text))
    show.result(flags, str(out), {"page": str(out)})


def _read_with(ref: str, records: list[Record]) -> list[list[dict[str, Any]]]:
    """Encode records as training would: pieces of text, their tokens and whether they count in the loss."""
    from stockpot.data.encode import encode_record
    from stockpot.run import Run, is_run
    from stockpot.text.chat import ChatTemplate
    from stockpot.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(Run.open(ref).model_path if is_run(ref) else ref)
    template = ChatTemplate.of(tokenizer)
    readings = []
    for record in records:
        encoded = encode_record(record, tokenizer, template)
        runs = groupby(
            zip(encoded.ids.tolist(), encoded.counted.tolist(), strict=True), key=lambda pair: pair[1]
        )
        grouped = [(counts, [token for token, _ in run]) for counts, run in runs]
        readings.append(
            [{"text": tokenizer.decode(ids), "tokens": len(ids), "counts": counts} for counts, ids in grouped]
        )
    return readings
