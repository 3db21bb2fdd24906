"""Adapter folders: a few megabytes beside a base model, in the form that PEFT writes and reads.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, and, when we wrote it, the tokenizer, the chat
template, and the checksum of the base's weights, so that an adapter is never put on another model. Where a family
stores in one matrix what has several adapters, they are written as one of larger rank. A base is looked for on this
machine only: reading an adapter never goes to the network.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot.durable import fingerprint
from stockpot.errors import CheckpointError
from stockpot.gguf_directory import is_gguf
from stockpot.model.adapters import (
    LoRA,
    Rows,
    Update,
    add_updates,
    round_matrices,
    settings_of,
    shapes_of,
    updates_of,
)
from stockpot.model.frozen import KINDS, Kind
from stockpot.model.transformer import Transformer
from stockpot.weights.family import NUMBER, Part, setting, short
from stockpot.weights.folder import find_folder, inside, read_json, weight_files
from stockpot.weights.tensors import Shelf, mixed_rows, save_tensors, sorted_rows

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "adapter_files",
    "add_adapter",
    "base_of",
    "checksums",
    "frozen_kind",
    "is_adapter",
    "read_updates",
    "reference",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
UNREAD = {  # settings of PEFT that change what is computed, and the value that we can read
    "use_dora": False,
    "bias": "none",
    "modules_to_save": None,
    "layer_replication": None,
    "use_qalora": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
}
BASE_STAYS = (
    None,
    True,
    False,
    "gaussian",
    "orthogonal",
    "eva",
)  # other ways to begin (pissa, olora …) change the base, too
PLAIN = re.compile(r"[\w.-]+")  # a pattern that is a layer's name


@dataclass(frozen=True)
class _Place:
    """Where a matrix of a file stands in ours, and in which order the file keeps its rows."""

    layer: str
    rows: Rows
    mixed_heads: int


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").exists()


# --- reading ---


def base_of(folder: Path) -> Path:
    """Find the model an adapter belongs to, a folder or a GGUF file, and check that it is as when the adapter was trained.

    Raises:
        CheckpointError: if it is not on this machine, or its weights have changed.
    """
    values = read_json(folder, CONFIG)
    ours = setting(values, "stockpot", dict, default={})
    named = [setting(ours, "base", str, ""), setting(values, "base_model_name_or_path", str, "")]
    near = [os.path.normpath(folder / name) for name in (setting(ours, "near", str, ""),) if name]
    there = (Path(name) for name in (*named, *near) if name)
    found = next((path for path in there if path.is_dir() or is_gguf(path)), None)
    if found is None:
        raise CheckpointError(
            f"{folder}: the adapter's base model {named[1] or named[0] or '(not named)'!r} is not here.",
            f"Name its folder or .gguf file in {CONFIG}: base_model_name_or_path.",
        )
    base = find_folder(found) if found.is_dir() else found
    wanted = ours.get("sha256")
    if isinstance(wanted, list) and wanted != checksums(base):
        raise CheckpointError(
            f"{base} is not the model that {folder} was trained on: its weights have changed.",
            "Use the base it was trained on, or train the adapter again.",
        )
    return base


def frozen_kind(folder: Path) -> Kind | None:
    """Tell in how many bits the base's matrices were held while an adapter was trained; None: not rounded.

    Raises:
        CheckpointError: if it is a kind that we do not know.
    """
    values = read_json(folder, CONFIG)
    found = setting(setting(values, "stockpot", dict, default={}), "frozen", str, "")
    if found and found not in KINDS:
        raise CheckpointError(
            f"{folder}: the adapter was trained beside matrices held as {short(found)}, which is not known.",
            f"Known: {', '.join(KINDS)}.",
        )
    return next((kind for kind in KINDS if kind == found), None)


def add_adapter(model: Transformer, folder: Path, parts: Sequence[Part]) -> None:
    """Add an adapter to its base; in place.

    A base whose matrices were rounded in training is rounded alike first: the adapter has learned beside them, and has
    made good some of what the rounding cost.

    Args:
        model: the base.
        folder: an adapter folder.
        parts: where the base's family stores every tensor.

    Raises:
        CheckpointError: as `read_updates`.
    """
    updates, kind = read_updates(folder, parts, shapes_of(model)), frozen_kind(folder)
    if kind is not None:
        round_matrices(model, kind)
    add_updates(model, updates)


def read_updates(folder: Path, parts: Sequence[Part], shapes: Mapping[str, torch.Size]) -> list[Update]:
    """Read an adapter as changes of our weights.

    Args:
        folder: an adapter folder.
        parts: where the base's family stores every tensor.
        shapes: of our parameters.

    Raises:
        CheckpointError: if it is damaged, of another kind, or does not fit the model.
    """
    values = read_json(folder, CONFIG)
    _refuse_other_kinds(values, folder)
    shelf = Shelf([inside(folder, WEIGHTS)]) if (folder / WEIGHTS).is_file() else None
    if shelf is None:
        raise CheckpointError(f"{folder} holds no {WEIGHTS}.", "Copy the folder again.")
    places = _places(parts, shapes)
    names = {name.removeprefix(PREFIX).removesuffix(end) for name in shelf.entries for end in (DOWN, UP)}
    layers = sorted(name for name in names if not name.endswith((DOWN, UP)))
    strange = [name for name in shelf.entries if not name.endswith((DOWN, UP))]
    strange += [layer for layer in layers if layer not in places]
    if strange:
        raise CheckpointError(
            f"{folder}: {len(strange)} tensors of the adapter have no place in its base ({strange[0]} …).",
            "Adapter and base must belong together; only plain LoRA is read.",
        )
    with shelf.open() as files:
        return [_update(layer, places[layer], files.tensor, shelf, values, folder) for layer in layers]


def _update(
    layer: str,
    place: _Place,
    tensor: Callable[[str], Tensor],
    shelf: Shelf,
    values: Mapping[str, Any],
    folder: Path,
) -> Update:
    pair = [PREFIX + layer + end for end in (DOWN, UP)]
    if absent := [name for name in pair if name not in shelf.entries]:
        raise CheckpointError(f"{folder}: {absent[0]} is missing.", "Copy the folder again.")
    down, up = (tensor(name).float() for name in pair)
    rank = down.shape[0]
    if down.ndim != 2 or up.ndim != 2 or up.shape != (place.rows.stop - place.rows.start, rank) or not rank:
        raise CheckpointError(
            f"{folder}: {layer} has adapter matrices {tuple(down.shape)} and {tuple(up.shape)}.",
            "Adapter and base must belong together.",
        )
    if not bool(down.isfinite().all() and up.isfinite().all()):
        raise CheckpointError(f"{folder}: {layer} holds NaN or infinity.", "Use an earlier checkpoint.")
    if place.mixed_heads:
        up = sorted_rows(up, place.mixed_heads)
    return Update(place.layer, place.rows, down, up, _scale(values, layer, rank, folder))


def _scale(values: Mapping[str, Any], layer: str, rank: int, folder: Path) -> float:
    """Work out the factor of one layer's update, as PEFT does."""
    pattern = setting(values, "alpha_pattern", dict, default={})
    if strange := [key for key in pattern if not PLAIN.fullmatch(key)]:
        raise CheckpointError(
            f"{folder}: alpha_pattern holds the regular expression {short(strange[0])}, which is not read.",
            "Merge the adapter into its base where it was made.",
        )
    key = next((key for key in pattern if layer == key or layer.endswith(f".{key}")), None)
    alpha = setting(values, "lora_alpha", NUMBER, 8) if key is None else setting(pattern, key, NUMBER)
    if not math.isfinite(alpha):
        raise CheckpointError(f"{folder}: the alpha of {layer} is {alpha}.", "Copy the folder again.")
    return float(alpha / (rank**0.5 if setting(values, "use_rslora", bool, default=False) else rank))


def _refuse_other_kinds(values: Mapping[str, Any], folder: Path) -> None:
    if values.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder}: the adapter is of the kind {short(values.get('peft_type'))}; only LORA is read.",
            "Merge it into its base where it was made.",
        )
    begun = values.get("init_lora_weights")
    if begun not in BASE_STAYS:
        raise CheckpointError(
            f"{folder}: the adapter was begun by {short(begun)}, which also changed the base's weights.",
            "Save it as plain LoRA where it was made: save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )
    for name, plain in UNREAD.items():
        if values.get(name) not in (None, plain):
            raise CheckpointError(
                f"{folder}: the adapter has {name} = {short(values[name])}, which is not read.",
                "Merge it into its base where it was made.",
            )


def _places(parts: Sequence[Part], shapes: Mapping[str, torch.Size]) -> dict[str, _Place]:
    """Map every matrix of the family's files to rows of ours."""
    found: dict[str, _Place] = {}
    for part in parts:
        if not part.ours.endswith(".weight") or len(shapes[part.ours]) != 2:
            continue
        start = 0
        for name, rows in zip(part.theirs, part.rows or (shapes[part.ours][0],), strict=True):
            place = _Place(part.ours.removesuffix(".weight"), Rows(start, start + rows), part.mixed_heads)
            found[name.removesuffix(".weight")] = place
            start += rows
    return found


# --- writing ---


def adapter_files(
    model: Transformer, parts: Sequence[Part], *, base: Path, folder: Path
) -> dict[str, bytes | Callable[[Path], None]]:
    """Make the files of an adapter folder: name → content, or what writes it.

    Args:
        model: with adapters attached.
        parts: where the base's family stores every tensor.
        base: the base's folder or GGUF file.
        folder: where the files will be, from where the base is looked for when both have moved.

    Raises:
        CheckpointError: if an adapter holds NaN or infinity.
    """
    updates = updates_of(model)
    shapes = shapes_of(model)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, place in _places(parts, shapes).items():
        inside_ = [u for u in updates if u.layer == place.layer and _overlap(u.rows, place.rows)]
        if not inside_:
            continue
        down = torch.cat([u.down for u in inside_]).cpu()
        up = torch.zeros(place.rows.stop - place.rows.start, down.shape[0])
        column = 0
        for u in inside_:
            at = u.rows.start - place.rows.start
            up[at : at + u.up.shape[0], column : column + u.up.shape[1]] = u.up.cpu()
            column += u.up.shape[1]
        if place.mixed_heads:
            up = mixed_rows(up, place.mixed_heads).contiguous()
        tensors[PREFIX + name + DOWN], tensors[PREFIX + name + UP] = down.contiguous(), up
        ranks[name] = down.shape[0]
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"The adapter is not written: {len(broken)} tensors hold NaN or infinity ({broken[0]} …).",
            "Training went wrong; lower the learning rate and go on from the last checkpoint.",
        )
    lora = settings_of(model)
    values = _config(ranks, lora) | reference(base, folder)
    if lora.frozen is not None:
        values["stockpot"]["frozen"] = lora.frozen
    values["fan_in_fan_out"] = any(part.transposed for part in parts)
    return {
        CONFIG: (json.dumps(values, indent=2) + "\n").encode(),
        WEIGHTS: lambda path: save_tensors(tensors, path),
    }


def _overlap(one: Rows, other: Rows) -> bool:
    return one.start < other.stop and other.start < one.stop


def _config(ranks: Mapping[str, int], lora: LoRA) -> dict[str, Any]:
    """Spell the settings as PEFT does; matrices that hold several adapters have a rank of their own."""
    rank = Counter(ranks.values()).most_common(1)[0][0] if ranks else lora.rank
    scale_of = {r: lora.scale * (r**0.5 if lora.rslora else r) for r in {rank, *ranks.values()}}
    ends = {name.rpartition(".")[2]: own for name, own in ranks.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _plain(scale_of[rank]),
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": sorted(ends),
        "rank_pattern": {end: own for end, own in sorted(ends.items()) if own != rank},
        "alpha_pattern": {end: _plain(scale_of[own]) for end, own in sorted(ends.items()) if own != rank},
        "bias": "none",
        "modules_to_save": None,
        "inference_mode": True,
    }


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def reference(base: Path, folder: Path) -> dict[str, Any]:
    """Say which model the adapter belongs to."""
    near = os.path.relpath(base, folder)
    return {
        "base_model_name_or_path": str(base),
        "stockpot": {"base": str(base), "near": near, "sha256": checksums(base)},
    }


_KNOWN: dict[tuple[str, int, int], str] = {}


def checksums(base: Path) -> list[str]:
    """Give the checksums of a base's weights; of an adapter on a base, its own and the base's."""
    if is_adapter(base):
        return [_sum(base / WEIGHTS), *checksums(base_of(base))]
    return [_sum(file) for file in ([base] if base.is_file() else weight_files(base)[0])]


def _sum(file: Path) -> str:
    """Hash a file once, as long as it stays as it is."""
    facts = file.stat()
    key = (str(file.resolve()), facts.st_size, facts.st_mtime_ns)
    if key not in _KNOWN:
        _KNOWN[key] = str(fingerprint(file)["sha256"])
    return _KNOWN[key]
