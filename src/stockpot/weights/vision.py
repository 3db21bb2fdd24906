"""Read and write image encoders and the towers of CLIP, as folders that transformers opens.

They are networks alone: images come as tensors, normalised as the encoder was trained with. What is checked before
anything is allocated is what :mod:`stockpot.weights.store` checks for language models.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from stockpot.device import pick_device
from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.outline import outline_of
from stockpot.model.vision import ImageEncoder, TextTower, TwoTowers
from stockpot.weights.families import VISION
from stockpot.weights.family import VisionFamily, short
from stockpot.weights.folder import SINGLE, find_folder, read_json, weight_files
from stockpot.weights.header import SAFE
from stockpot.weights.tensors import Shelf, check_parts, read_parts, write_parts
from stockpot.weights.writing import write_all

__all__ = ["load_vision", "save_vision"]

Network = ImageEncoder | TextTower | TwoTowers


def load_vision(
    ref: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Network:
    """Open an image encoder (ViT, CLIP's image tower), CLIP's text tower, or both towers.

    Args:
        ref: a Hugging Face folder or a hub id.
        device: where to put it; None takes an accelerator if there is one, else the CPU.
        dtype: None keeps what the file has.

    Raises:
        CheckpointError: if it is missing, damaged, unsafe or of a kind that is not read.
    """
    folder = find_folder(ref)
    values = read_json(folder, "config.json")
    family = VISION.get(str(values.get("model_type")))
    if family is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {short(values.get('model_type'))}, no image model that is read.",
            f"Known: {', '.join(VISION)}.",
        )
    shelf = Shelf(*weight_files(folder), spell=family.spell)
    try:
        config = family.read(values, shelf.entries.keys())
    except (ConfigError, ValueError, TypeError, ArithmeticError) as error:
        what = error.what if isinstance(error, ConfigError) else str(error)
        raise CheckpointError(f"{folder / 'config.json'}: {what[:500]}", "Get config.json again.") from error
    if config.parameters() > 2 * shelf.numbers:
        raise CheckpointError(
            f"{folder}: config.json describes {config.parameters():,} parameters, the weights hold {shelf.numbers:,}.",
            SAFE,
        )
    parts = family.parts(config)
    network: Network = outline_of(lambda: family.kind(config))
    shapes = {name: param.shape for name, param in network.named_parameters()}
    check_parts(shelf, parts, shapes, family.ignored, folder)
    params = read_parts(shelf, parts, shapes, device=pick_device(device), dtype=dtype, where=folder)
    network.load_state_dict(params, strict=True, assign=True)
    return network.requires_grad_(True).eval()


def save_vision(path: str | os.PathLike[str], network: Network) -> Path:
    """Write an image encoder or towers as a folder that :func:`load_vision` and transformers open.

    Raises:
        CheckpointError: if it holds NaN or infinity, or no family has such a network.
    """
    folder = Path(path)
    family = _family_of(network)
    params = {name: param.detach() for name, param in network.named_parameters()}
    parts = family.parts(network.config)
    assert {part.ours for part in parts} == set(params), "a family must list every parameter"
    dtype = str(next(iter(params.values())).dtype).removeprefix("torch.")
    values = {**family.write(network.config), "dtype": dtype}
    settings = (json.dumps(values, indent=2) + "\n").encode()
    write_all(folder, {"config.json": settings, SINGLE: partial(write_parts, parts=parts, params=params)})
    return folder


def _family_of(network: Network) -> VisionFamily:
    """Find the family that gives the network's settings back."""
    for family in VISION.values():
        if isinstance(network, family.kind):
            names = {name for part in family.parts(network.config) for name in part.theirs}
            with suppress(CheckpointError, ConfigError, ValueError):
                if family.read(family.write(network.config), names) == network.config:
                    return family
    raise CheckpointError(
        "The network is not written: no family that transformers knows has these parts.",
        "Build it as a ViT or a CLIP, or keep its state with torch.",
    )
