"""A model's weights for another program in this process: the names and forms of a folder, without the folder.

An output matrix that is the embedding goes twice, and the config says so: a program that packs its matrices (vLLM's build for
CPUs) would keep the first one it was given. Reads and writes no weights; the one file it writes is ``config.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stockpot.errors import CheckpointError
from stockpot.model.adapters import merged_weights
from stockpot.model.config import ModelConfig
from stockpot.model.transformer import Transformer
from stockpot.weights.families import NATIVE, family_of
from stockpot.weights.soft import refuse_soft
from stockpot.weights.tensors import as_stored
from stockpot.weights.writing import write_all

__all__ = ["save_outline", "stored_weights"]

EMBED, HEAD = "embed.weight", "head.weight"


def save_outline(path: str | os.PathLike[str], model: Transformer, *, family: str | None = None) -> Path:
    """Write ``config.json`` alone, for a program that is given the weights otherwise.

    Args:
        path: the folder.
        model: the network.
        family: a ``model_type`` to prefer where several can hold the model.

    Raises:
        CheckpointError: if only stockpot knows a model of this shape, or it wears a soft prompt or eyes.
    """
    refuse_soft(model, "be handed to another program")
    config = _untied(model)
    known = family_of(config, family)
    if known is NATIVE:
        raise CheckpointError(
            "No other program knows a model of this shape.",
            "Use one that transformers opens, such as Qwen3's.",
        )
    values = {**known.write(config), "dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    write_all(Path(path), {"config.json": (json.dumps(values, indent=2) + "\n").encode()})
    return Path(path)


def stored_weights(
    model: Transformer, dtype: torch.dtype, *, family: str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Give the weights under the names and in the form in which a folder holds them, adapters merged, one by one.

    Args:
        model: the network; it stays as it is.
        dtype: of what is given.
        family: a ``model_type`` to prefer where several can hold the model.
    """
    config = _untied(model)
    parts = {part.ours: part for part in family_of(config, family).parts(config)}
    for name, weight in merged_weights(model):
        for ours in (EMBED, HEAD) if name == EMBED and HEAD in parts and model.head is None else (name,):
            for stored, tensor in as_stored(parts[ours], weight):
                yield stored, tensor.to(dtype)


def _untied(model: Transformer) -> ModelConfig:
    return model.config.model_copy(update={"tied": False})
