"""What a path is, told from what it holds and never from its name.

The answer is a kind and facts about it, cheap to find: no weights are loaded, torch is not imported. How the
answer is shown is decided elsewhere.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stockpot.errors import ConfigError, StockpotError

if TYPE_CHECKING:
    from stockpot.data.records import Record

__all__ = ["Found", "identify"]

SMALL = 64 * 2**20  # a JSON or TOML file larger than this is data
LONGEST_SHOWN = 60  # characters of a token
RESULTS = (
    "contest",
    "emergence",
    "ladder",
    "ledger",
    "probe",
    "sweep",
    "three-kinds",
)  # each writes NAME.json


@dataclass
class Found:
    """What a path is.

    Attributes:
        kind: ``"run"``, ``"cook"``, ``"runs"``, ``"model"``, ``"adapter"``, ``"tokenizer"``, ``"recipe"``, ``"weights"``,
            ``"shards"``, ``"results"``, ``"data"`` or ``"unknown"``.
        path: where it was looked for.
        facts: name → value, in the order to show them.
        records: the first records of data.
    """

    kind: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def identify(ref: str | Path, *, records: int = 3) -> Found:
    """Say what ``ref`` is.

    Args:
        ref: a file or folder; or a source of data that is none, such as ``village:chats``.
        records: how many of the first records of data to read.

    Raises:
        ConfigError: if there is no such thing.
        StockpotError: if it is something that stockpot reads, but damaged.
    """
    from stockpot.weights.known import find_known

    path = find_known(ref) or Path(ref)
    if not path.exists():
        if str(ref).startswith(("village", "hf://")):
            return _data(str(ref), records)
        raise ConfigError(
            f"{path}: there is no such file or folder.", "Check the path; `stockpot runs` lists runs."
        )
    for look in (_run, _cook, _shards, _model, _adapter, _tokenizer, _weights, _recipe, _results):
        if found := look(path):
            return found
    return _runs(path) or _data(str(path), records)


# --- runs, models, tokenizers, recipes ---


def _run(path: Path) -> Found | None:
    from stockpot.run import Run, is_run

    if not is_run(path):
        return None
    run = Run.open(path)
    manifest = run.manifest
    parent = manifest.get("parent") or {}
    newest = run.latest_checkpoint()
    facts = {
        "stage": manifest["stage"],
        "status": run.status,
        "error": manifest.get("error"),
        "started": manifest.get("started"),
        "ended": manifest.get("ended"),
        "command": manifest.get("command"),
        "parent": parent.get("path"),
        "newest checkpoint": f"step {newest[0]}" if newest else None,
        "tokens": manifest.get("tokens") or None,
        "data": [one.get("path") for one in manifest.get("data", []) if isinstance(one, dict)] or None,
        **last_metrics(path),
    }
    model = path / "model"
    return Found("run", path, facts | {"model": str(model) if model.exists() else None})


def _cook(path: Path) -> Found | None:
    state = _json_file(path / "cook.json")
    if not isinstance(state, dict):
        return None
    from stockpot.weights.folder import runs_in

    stages = [name for name, one in state.items() if isinstance(one, dict) and one.get("status") == "done"]
    facts: dict[str, Any] = {"stages done": stages, "models": runs_in(path)}
    report, offered = path / "report.html", path / "offered"
    facts["report"] = str(report) if report.is_file() else None
    if offered.is_file():
        facts["to chat"] = shlex.join(
            ["stockpot", "chat", str(path / offered.read_text(encoding="utf-8").strip())]
        )
    return Found("cook", path, facts)


def _runs(path: Path) -> Found | None:
    """Recognise a folder that holds runs and is nothing else itself."""
    from stockpot.weights.folder import runs_in

    names = runs_in(path)
    return (
        Found("runs", path, {"runs": names, "more": shlex.join(["stockpot", "runs", str(path)])})
        if names
        else None
    )


def _results(path: Path) -> Found | None:
    """Recognise what a verb that judges or studies has written: a file of its name, or a report of scores."""
    made_by = next((name for name in RESULTS if isinstance(_json_file(path / f"{name}.json"), dict)), None)
    reports = [
        path / "report.json",
        *path.glob("*/report.json"),
    ]  # of one model; a folder for each of several
    if made_by is None and not any(map(_has_scores, reports)):
        return None
    facts = {"made by": f"stockpot {made_by or 'eval'}"}
    shown = {"to read": "*.html *.md */report.html", "charts": "*.svg", "figures": "*.json */report.json"}
    for name, patterns in shown.items():
        files = [file for pattern in patterns.split() for file in path.glob(pattern)]
        facts[name] = ", ".join(sorted(str(file.relative_to(path)) for file in files))
    return Found("results", path, {name: value for name, value in facts.items() if value})


def _has_scores(file: Path) -> bool:
    report = _json_file(file)
    return isinstance(report, dict) and {"model", "rows", "fingerprints"} <= set(report)


def last_metrics(path: Path) -> dict[str, float]:
    """Read the last logged value of each metric of a run."""
    from stockpot.curves import read_rows

    last: dict[str, float] = {}
    for row in read_rows(path / "metrics.jsonl"):
        last |= {name: value for name, value in row.items() if isinstance(value, (int, float))}
    return last


def _model(path: Path) -> Found | None:
    config = _json_file(path / "config.json")
    if not isinstance(config, dict) or not any(path.glob("*.safetensors")):
        return None
    from stockpot.weights.folder import weight_files

    names = weight_files(path)[0]
    shown = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    more = ("intermediate_size", "max_position_embeddings", "vocab_size", "tie_word_embeddings")
    facts: dict[str, Any] = {"family": config.get("model_type")}
    facts |= _weight_facts(names)
    facts["files of weights"] = len(names) if len(names) > 1 else None
    facts |= {name: config[name] for name in (*shown, *more) if name in config}
    facts["tokenizer"] = "present" if (path / "tokenizer.json").is_file() else "absent"
    facts["chat template"] = "present" if _has_template(path) else "absent"
    facts["vectors of texts"] = _pooling(path)
    return Found("model", path, {name: value for name, value in facts.items() if value is not None})


def _pooling(path: Path) -> str | None:
    """Say how a sentence encoder makes vectors; None for other models."""
    from stockpot.weights.sentences import read_embedding

    found = read_embedding(path)
    if found is None:
        return None
    words = {"mean": "the mean of all tokens", "cls": "the first token", "last": "the last token"}
    parts = [words[found.pool], "of length 1" if found.normalise else "of any length"]
    parts += [f"at most {found.most_tokens} tokens"] if found.most_tokens else []
    return ", ".join(parts + ([f"behind {found.prompt!r}"] if found.prompt else []))


def _adapter(path: Path) -> Found | None:
    config = _json_file(path / "adapter_config.json")
    if not isinstance(config, dict) or (path / "config.json").exists():
        return None
    shown = {"kind of adapter": "peft_type", "rank": "r", "alpha": "lora_alpha", "matrices": "target_modules"}
    facts: dict[str, Any] = {"base": config.get("base_model_name_or_path")}
    facts |= {name: config[key] for name, key in shown.items() if key in config}
    if (weights := path / "adapter_model.safetensors").is_file():
        facts |= _weight_facts([weights])
    return Found("adapter", path, facts)


def _has_template(path: Path) -> bool:
    settings = _json_file(path / "tokenizer_config.json")
    return (path / "chat_template.jinja").is_file() or (
        isinstance(settings, dict) and "chat_template" in settings
    )


def _weight_facts(files: list[Path]) -> dict[str, Any]:
    from stockpot.weights.header import check_safetensors

    tensors = [entry for file in files for entry in check_safetensors(file)[0].values()]
    dtypes = Counter(entry.dtype for entry in tensors)
    return {
        "parameters": sum(prod(entry.shape) for entry in tensors),
        "dtype": ", ".join(sorted(dtypes)),
        "tensors": len(tensors),
        "bytes": sum(file.stat().st_size for file in files),
    }


def _weights(path: Path) -> Found | None:
    if not path.is_file():
        return None
    from stockpot.weights.header import kind_of

    kind = kind_of(path)
    if kind == "safetensors":
        return Found("weights", path, {"format": "safetensors", **_weight_facts([path])})
    if kind == "gguf":
        return Found("model", path, _gguf_facts(path))
    if kind == "pickle" and not _is_packed_data(path):
        note = "a pickle can run code when it is read, so stockpot does not read it"
        return Found("weights", path, {"format": "pickle", "note": note, "bytes": path.stat().st_size})
    return None


def _gguf_facts(path: Path) -> dict[str, Any]:
    from stockpot.gguf_directory import Array, read_directory

    file = read_directory(path)
    name = file.values.get("general.architecture")
    numbers: Counter[str] = Counter()
    for one in file.tensors.values():
        numbers[one.kind.name] += one.numbers
    facts: dict[str, Any] = {"format": "GGUF", "family": name, "name": file.values.get("general.name")}
    facts |= {
        "parameters": numbers.total(),
        "numbers": ", ".join(
            f"{kind} {count / numbers.total():.0%}" for kind, count in numbers.most_common()
        ),
        "tensors": len(file.tensors),
        "bytes": path.stat().st_size,
    }
    shown = ("embedding_length", "block_count", "attention.head_count", "attention.head_count_kv")
    for key in (*shown, "feed_forward_length", "context_length"):
        facts[key] = file.values.get(f"{name}.{key}")
    tokens = file.values.get("tokenizer.ggml.tokens")
    facts["vocabulary"] = len(tokens) if isinstance(tokens, Array) else None
    facts["tokenizer"] = f"{file.values.get('tokenizer.ggml.model')}, {file.values.get('tokenizer.ggml.pre')}"
    facts["chat template"] = "present" if "tokenizer.chat_template" in file.values else "absent"
    return {key: value for key, value in facts.items() if value is not None}


def _is_packed_data(path: Path) -> bool:
    """Tell a zip of data from torch's zip of pickles."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def _tokenizer(path: Path) -> Found | None:
    file = path / "tokenizer.json" if path.is_dir() else path
    value = _json_file(file)
    if not (isinstance(value, dict) and isinstance(value.get("model"), dict) and "added_tokens" in value):
        return None
    from stockpot.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    sample = "Hello, world! 12 Kürbisse."
    ids = tokenizer.encode(sample)
    facts = {
        "kind of tokenizer": tokenizer.kind,
        "vocabulary": tokenizer.vocab_size,
        "special tokens": list(tokenizer.special_ids),
        "longest token": _shortened(tokenizer.decode([int(tokenizer.byte_lengths.argmax())])),
        "fingerprint": tokenizer.fingerprint,
        "example": f"{sample!r} → {[tokenizer.decode([i]) for i in ids]}",
    }
    return Found("tokenizer", path, facts)


def _shortened(token: str) -> str:
    """Quote a token, as its blanks belong to it; a file may hold one of any length."""
    return repr(token if len(token) <= LONGEST_SHOWN else f"{token[:LONGEST_SHOWN]}…")


def _recipe(path: Path) -> Found | None:
    if not path.is_file() or path.stat().st_size > SMALL:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        tables = tomllib.loads(text)
    except (ValueError, RecursionError):
        return None
    stages = [name for name, value in tables.items() if isinstance(value, dict)]
    if not stages:
        return None
    first = text.lstrip().partition("\n")[0]
    facts = {
        "stages": stages,
        "base": tables.get("base"),
        "command": first[1:].strip() if first[:1] == "#" else None,
    }
    return Found("recipe", path, facts)


# --- data ---


def _shards(path: Path) -> Found | None:
    index = _json_file(path / "index.json")
    if not isinstance(index, dict) or "shards" not in index:
        return None
    shown = {name: value for name, value in index.items() if isinstance(value, (str, int, float))}
    return Found("shards", path, shown | {"shards": len(index["shards"])})


def _data(source: str, records: int) -> Found:
    from stockpot.data.sources import read_records

    path = Path(source)
    held = {"bytes": sum(_sizes(path))} if path.exists() else {}
    try:
        first = list(islice(read_records(source), records))
    except StockpotError as error:
        return Found("unknown", path, {"note": error.what, **held})
    kinds = Counter(one.kind for one in first)
    return Found("data", path, {"kind of records": ", ".join(kinds) or "none", **held}, first)


def _sizes(path: Path) -> Iterator[int]:
    files = path.rglob("*") if path.is_dir() else [path]
    return (file.stat().st_size for file in files if file.is_file())


def _json_file(path: Path) -> Any:
    if not path.is_file() or path.stat().st_size > SMALL:
        return None
    try:
        return _json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
