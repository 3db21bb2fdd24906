"""Which tensor goes into which file when a model is written in several, and the index that tells.

The names and the index are those of ``transformers``. A shard takes tensors in order until the next would make
it too large; a tensor larger than that gets a file of its own. Nothing here touches a tensor.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from stockpot.errors import CheckpointError, ConfigError
from stockpot.weights.family import Part
from stockpot.weights.folder import INDEX, SINGLE, read_json
from stockpot.weights.tensors import stored_shapes

__all__ = ["Shard", "index_of", "most_bytes", "old_weights", "plan"]

SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class Shard:
    """One file of a model: its name, the names of its tensors, and their bytes together."""

    file: str
    names: frozenset[str]
    bytes: int


def most_bytes(max_shard_gib: float | None) -> int | None:
    """Turn the size a user names into bytes.

    Raises:
        ConfigError: if it is not above zero.
    """
    if max_shard_gib is None:
        return None
    if not max_shard_gib > 0 or max_shard_gib == float("inf"):
        raise ConfigError(f"max_shard_gib is {max_shard_gib}; expected a size above 0, in GiB.")
    return max(int(max_shard_gib * 2**30), 1)


def plan(
    parts: Sequence[Part], shapes: Mapping[str, torch.Size], widths: Mapping[str, int], most: int | None
) -> list[Shard]:
    """Divide a model's tensors among files.

    Args:
        parts: where a family stores every tensor.
        shapes: of our parameters.
        widths: bytes of one number of each parameter.
        most: bytes of tensors a file may hold; None: one file for all.
    """
    groups: list[list[str]] = [[]]
    sizes = [0]
    for part in parts:
        for name, shape in stored_shapes(part, shapes[part.ours]).items():
            size = prod(shape) * widths[part.ours]
            if most is not None and groups[-1] and sizes[-1] + size > most:
                groups.append([])
                sizes.append(0)
            groups[-1].append(name)
            sizes[-1] += size
    if len(groups) == 1:
        return [Shard(SINGLE, frozenset(groups[0]), sizes[0])]
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    return [
        Shard(name, frozenset(group), size) for name, group, size in zip(names, groups, sizes, strict=True)
    ]


def index_of(shards: Sequence[Shard]) -> bytes:
    """Write the index of several files: which tensor lies where."""
    places = {name: shard.file for shard in shards for name in shard.names}
    content = {
        "metadata": {"total_size": sum(shard.bytes for shard in shards)},
        "weight_map": dict(sorted(places.items())),
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def old_weights(folder: Path) -> set[str]:
    """Name the weight files that a folder's model consists of now, its index included."""
    found = {name for name in (SINGLE, INDEX) if (folder / name).exists()}
    try:
        places = read_json(folder, INDEX, missing={}).get("weight_map", {})
    except CheckpointError:  # a damaged index is replaced like any other
        return found
    named = places.values() if isinstance(places, dict) else ()
    return found | {name for name in named if isinstance(name, str) and SHARD.fullmatch(name)}
