"""The model card: the README of a folder, for whoever finds it without its history.

It says what the model is, how to open it, which runs, data and models it was made from, which figures the run
has (with n and interval where there are any), and under which licence it came. Everything is read from what lies beside the
model; what is not known is said to be unknown. Paths of this machine are shortened to their last name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stockpot.bundle import Bundle
from stockpot.durable import HALF
from stockpot.errors import CheckpointError
from stockpot.gguf_directory import is_gguf, read_directory
from stockpot.run import Run, is_run
from stockpot.weights.folder import inside

__all__ = ["model_card"]

LARGEST = 1 << 20  # of a file that is quoted
MOST_ANCESTORS = 16
MOST_FIGURES = 40
FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
PATHS = re.compile(r'(?<=")/(?:[^"/]*/)*([^"/]+)/?(?=")')  # in a recipe


@dataclass(frozen=True)
class _Origin:
    """One thing that a model was made from: a run, or a model that came from elsewhere."""

    name: str
    run: Run | None = None
    licence: str | None = None
    card: str = ""


def model_card(bundle: Bundle, folder: Path, *, family: str) -> str:
    """Write the README of a model folder.

    Args:
        bundle: the model; what it was read from tells its history.
        folder: where the card will be. A checkpoint's card is short: its run lies around it.
        family: the ``model_type`` it is written as.
    """
    around = _run_of(folder)
    origins = [] if around else _origins(bundle.source)
    licences = {one.name: one.licence for one in origins if one.licence}
    parts = [_front(bundle, family, licences), *_what(bundle, family, folder, origins), *_use(bundle)]
    if around is not None:
        parts += [f"A checkpoint of the run `{around.path.name}`, whose folder says where it comes from."]
    else:
        parts += [*_history(origins), *_figures(origins[0].run if origins else None, bundle.source)]
        parts += _licence(licences)
        parts += _quoted(origins)
    return "\n\n".join(parts) + "\n"


# --- where it comes from ---


def _run_of(path: Path) -> Run | None:
    """Return the run that a path is, or is a checkpoint of."""
    path = path.absolute()
    for place in (path, path.parent, path.parent.parent):
        if is_run(place):
            with suppress(CheckpointError):
                return Run.open(place)
    return None


def _origins(source: Path | None) -> list[_Origin]:
    """Follow a model back: the run it was read from, its parent, and so on, as far as they are still there."""
    found: list[_Origin] = []
    seen: set[Path] = set()
    while source is not None and len(found) < MOST_ANCESTORS:
        run = _run_of(source)
        place = (run.path if run else source).resolve()
        if place in seen or not place.exists():
            break
        seen.add(place)
        found.append(_Origin(place.name, run) if run else _foreign(place))
        parent = (run.manifest.get("parent") or {}).get("path") if run else None
        source = Path(parent) if isinstance(parent, str) else None
    return found


def _foreign(place: Path) -> _Origin:
    """Describe a model that no run here made, from its card or its GGUF metadata."""
    if place.is_file():
        if not is_gguf(place):
            return _Origin(place.name)
        with suppress(CheckpointError):
            values = read_directory(place).values
            licence = values.get("general.license")
            return _Origin(place.name, licence=licence if isinstance(licence, str) else _known(place))
        return _Origin(place.name)
    card = _small_text(place, "README.md")
    front = FRONT.match(card)
    named = LICENCE.search(front[1]) if front else None
    return _Origin(place.name, licence=named[1] if named else _known(place), card=FRONT.sub("", card).strip())


def _known(place: Path) -> str | None:
    """Return the licence of a model that stockpot fetched itself."""
    from stockpot.weights.known import KNOWN, place_of

    return next((one.licence for one in KNOWN.values() if place_of(one).resolve() == place), None)


def _small_text(folder: Path, name: str) -> str:
    """Read a text beside a model, if it is there, small, and no link to elsewhere."""
    with suppress(CheckpointError, OSError):
        path = inside(folder, name)
        if path.is_file() and path.stat().st_size <= LARGEST:
            return path.read_bytes().decode(errors="replace").replace("\r\n", "\n")
    return ""


# --- the parts ---


def _front(bundle: Bundle, family: str, licences: Mapping[str, str]) -> str:
    """Write what the hub reads."""
    config = bundle.model.config
    kinds = {
        "decoder": "text-generation",
        "encoder": "fill-mask" if config.predicts else "feature-extraction",
        "encoder_decoder": "text2text-generation",
    }
    lines = [
        f"library_name: {'stockpot' if family == 'stockpot' else 'transformers'}",
        f"pipeline_tag: {_task(bundle) or kinds[config.shape]}",
        "tags: [stockpot]",
    ]
    if len(set(licences.values())) == 1:
        lines.append(f"license: {next(iter(licences.values())).lower()}")
    return "\n".join(["---", *lines, "---"])


def _task(bundle: Bundle) -> str | None:
    """Name the task of a model that is made for one thing only, as the hub calls it."""
    if bundle.embedding is not None:
        return "sentence-similarity"
    return "text-classification" if bundle.model.config.value_head else None


def _what(bundle: Bundle, family: str, folder: Path, origins: Sequence[_Origin]) -> list[str]:
    config = bundle.model.config
    shape = config.shape.replace("_", "-")
    dtype = str(bundle.model.embed.weight.dtype).removeprefix("torch.")
    talks = "It holds conversations." if bundle.template is not None else "It continues or fills in text."
    if bundle.embedding is not None:
        talks = "It turns a sentence into one vector."
    elif config.value_head:
        talks = "It rates answers."
    opens = (
        "Only stockpot opens it: it has parts that transformers does not know."
        if family == "stockpot"
        else f"It is written as `{family}`, which transformers opens."
    )
    return [
        f"# {folder.absolute().name.removeprefix(HALF) if not origins else origins[0].name}",
        f"{'An' if shape.startswith('e') else 'A'} {shape} with {config.parameters():,} parameters:"
        f" {config.main.layers} layers, width {config.main.dim}, context {config.context},"
        f" vocabulary {config.vocab_size:,}, {dtype}. {talks} {opens}",
    ]


def _use(bundle: Bundle) -> list[str]:
    if bundle.model.config.value_head:
        rates = "stockpot rank MODEL --data prompts.jsonl --reward PATH"
        return ["## Use", "It rates the answers of other models:", f"```bash\n{rates}\n```"]
    if bundle.embedding is not None or bundle.model.config.shape == "encoder":
        line = 'vectors = engine.embed(["A sentence."])'
    elif bundle.template is not None:
        line = 'reply, = engine.generate([[sp.Message("user", "Hello!")]])'
    else:
        line = 'text, = engine.generate(["Once upon a time"])'
    code = ["import stockpot as sp", "", 'engine = sp.Engine(sp.load("PATH"))', line]
    return ["## Use", "\n".join(["```python", *code, "```"])]


def _history(origins: Sequence[_Origin]) -> list[str]:
    if not origins:
        return ["## Where it comes from", "Not recorded: it was written from a program, not from a run."]
    lines = []
    for number, one in enumerate(origins):
        step = "Made by" if number == 0 else "which started from"
        lines.append(f"{number + 1}. {step} {_told(one)}")
    parts = ["## Where it comes from", "\n".join(lines)]
    recipe = _small_text(origins[0].run.path, "recipe.toml") if origins[0].run else ""
    if recipe:
        text = PATHS.sub(r"\1", "\n".join(line for line in recipe.splitlines() if not line.startswith("#")))
        parts.append(
            f"<details><summary>Its settings</summary>\n\n```toml\n{text.strip()}\n```\n\n</details>"
        )
    return parts


def _told(origin: _Origin) -> str:
    """Say what one origin is, in a line."""
    if origin.run is None:
        return f"`{origin.name}`, a model from elsewhere" + (f" ({origin.licence})" if origin.licence else "")
    said = origin.run.manifest
    tokens, versions = _table(said, "tokens"), _table(said, "versions")
    facts = [f"status {origin.run.status}", f"seed {said.get('seed')}"]
    if isinstance(tokens.get("train"), int):
        facts.append(f"{tokens['train']:,} tokens to learn from")
    if versions.get("stockpot"):
        facts.append(f"stockpot {versions['stockpot']}, torch {versions.get('torch')}")
    data = [_data(one) for one in said.get("data") or () if isinstance(one, dict)]
    return (
        f"the run `{origin.name}` (`{said.get('stage')}`, {str(said.get('started'))[:10]}): {'; '.join(facts)};"
        f" data: {', '.join(data) or 'not recorded'}"
    )


def _table(manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


def _data(one: Mapping[str, Any]) -> str:
    """Name a source of data; of a file, its last name, size and the beginning of its hash."""
    path = str(one.get("path"))
    if not isinstance(one.get("bytes"), int):
        return f"`{path if not path.startswith('/') else Path(path).name}`"
    return f"`{Path(path).name}` ({one['bytes']:,} bytes, sha256 {str(one.get('sha256'))[:12]}…)"


def _figures(run: Run | None, source: Path | None) -> list[str]:
    """Make a table of what the run measured, if it measured anything."""
    if run is None or source is None:
        return []
    rows = [*_validation(run, source), *_scores(run, source)][:MOST_FIGURES]
    if not rows:
        return ["## Figures", "The run holds none."]
    lines = ["| what | value | 95 % interval | n |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return ["## Figures", "\n".join(lines)]


def _validation(run: Run, source: Path) -> list[list[str]]:
    """Return what validation said at the checkpoint's step; one pass over fixed data, so without an interval."""
    digits = source.name.removeprefix("step-")
    if not digits.isdigit():
        return []
    row = next((row for row in run.rows() if row["step"] == int(digits) and _held_out(row)), {})
    tokens = _table(run.manifest, "tokens")
    n = f"{tokens['validation']:,} tokens" if isinstance(tokens.get("validation"), int) else "–"
    return [[f"{name}, step {digits}", f"{row[name]:.4g}", "–", n] for name in _held_out(row)]


def _held_out(row: Mapping[str, Any]) -> list[str]:
    return [name for name, value in row.items() if name.startswith("val/") and _is_number(value)]


def _scores(run: Run, source: Path) -> list[list[str]]:
    """Return the scores of evaluations that lie in the run, and of those beside it that judged this model."""
    reports = sorted(run.path.glob("evals/**/*.json"))
    found = [_rows(path, None) for path in reports]
    found += [
        _rows(path, source.resolve()) for path in sorted(run.path.parent.glob("evaluate/*/report.json"))
    ]
    return [row for rows in found for row in rows]


def _rows(path: Path, judged: Path | None) -> list[list[str]]:
    """Read estimates from a file: a report of tasks, or names with an estimate each."""
    try:
        saved = json.loads(path.read_bytes()) if path.stat().st_size < 64 * LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(saved, dict):
        return []
    if judged is not None and Path(str(saved.get("model"))).resolve() != judged:
        return []
    listed = saved["rows"] if isinstance(saved.get("rows"), list) else []
    named = [(f"{one.get('task')}, {one.get('metric')}", one) for one in listed if _is(one)]
    named += [(f"{path.stem}, {name}", one) for name, one in saved.items() if _is(one)]
    return [
        [name, f"{one['value']:.3f}", f"{one['low']:.3f} – {one['high']:.3f}", f"{one['n']:,}"]
        for name, one in named
    ]


def _is(one: Any) -> bool:
    """Tell an estimate with its interval from anything else."""
    return isinstance(one, dict) and all(_is_number(one.get(name)) for name in ("value", "low", "high", "n"))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _licence(licences: Mapping[str, str]) -> list[str]:
    if not licences:
        note = "None is stated. The licences of the data and of the models it was made from decide; name yours here."
    else:
        named = ", ".join(f"{licence} (`{name}`)" for name, licence in licences.items())
        note = f"What it was made from names {named}. Whoever passes the model on must keep to that, and to the data's."
    return ["## Licence", note]


def _quoted(origins: Sequence[_Origin]) -> list[str]:
    """Pass on the card of the model that all began with."""
    card = origins[-1].card if origins else ""
    if not card:
        return []
    quote = "\n".join(f"> {line}".rstrip() for line in card.splitlines())
    return [f"## The card of `{origins[-1].name}`", quote]
