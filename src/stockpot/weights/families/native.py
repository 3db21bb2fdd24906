"""Our own form, for models that no other family can hold: our settings and our names, as they are.

``model_type`` is ``"stockpot"``; other programs will not open such a folder, and its config says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import ModelConfig
from stockpot.model.outline import outline
from stockpot.weights.family import Family, Part, setting

__all__ = ["NATIVE"]

NOTE = "This model has parts that transformers does not know. Open it with stockpot."


def read(values: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read our own settings."""
    try:
        return ModelConfig(**setting(values, "model", dict))
    except ConfigError as error:
        raise CheckpointError(
            f"config.json: the model's settings are wrong: {error.what}",
            "It may come from another version of stockpot; write it again from its run.",
        ) from error


def write(config: ModelConfig) -> dict[str, Any]:
    """Write our own settings, and a note for whoever opens the file elsewhere."""
    return {
        "model_type": "stockpot",
        "vocab_size": config.vocab_size,
        "note": NOTE,
        "model": config.model_dump(mode="json"),
    }


def parts(config: ModelConfig) -> list[Part]:
    """List every tensor under its own name."""
    return [Part(name, (name,)) for name, _ in outline(config).named_parameters()]


NATIVE = Family("stockpot", read=read, write=write, parts=parts)
