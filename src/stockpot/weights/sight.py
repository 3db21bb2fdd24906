"""Eyes on disk: a folder beside a language model, with the tower, the projector and what was added to the model.

``adapter_config.json`` says ``STOCKPOT_IMAGE`` and names the model and its checksum; ``adapter_model.safetensors`` holds the
projector and bottleneck adapters under our own names; ``vision/`` is the tower, a folder that transformers opens; ``lora/`` is
an adapter in PEFT's form; ``base/`` is the language model itself where all of it was trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.bottleneck import (
    Bottleneck,
    attach_bottlenecks,
    bottleneck_weights,
    settings_of_bottlenecks,
)
from stockpot.model.sight import ImageReader, ReaderConfig, attach_sight, sight_of
from stockpot.model.vision import ImageEncoder, TwoTowers
from stockpot.weights.adapter import CONFIG, WEIGHTS, base_of, checksums, reference
from stockpot.weights.folder import inside, read_json
from stockpot.weights.tensors import Shelf, save_tensors
from stockpot.weights.vision import load_vision, save_vision
from stockpot.weights.writing import write_all

__all__ = ["LORA", "OWN_BASE", "add_sight", "image_tower", "is_sight", "save_sight"]

KIND = "STOCKPOT_IMAGE"
TOWER, LORA, OWN_BASE = "vision", "lora", "base"


class _Eyes(Settings):
    """What of a reader its tower does not say, and which adapters are on the model."""

    layers: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bottleneck: Bottleneck | None = None


def is_sight(folder: Path) -> bool:
    """Tell whether a folder holds eyes."""
    return (folder / CONFIG).is_file() and read_json(folder, CONFIG).get("peft_type") == KIND


def image_tower(ref: str | Path) -> ImageEncoder:
    """Open an image encoder, or CLIP's two towers and keep the one that sees.

    Raises:
        CheckpointError: as `load_vision`; also for a text tower.
    """
    found = load_vision(ref, device="cpu", dtype=torch.float32)
    tower = found.image if isinstance(found, TwoTowers) else found
    if not isinstance(tower, ImageEncoder):
        raise CheckpointError(
            f"{ref} reads texts, not pictures.", "Name a ViT, CLIP's image tower, or both towers."
        )
    return tower


def save_sight(
    folder: Path,
    model: nn.Module,
    *,
    base: Path,
    is_own_base: bool = False,
    text: dict[str, bytes | Callable[[Path], None]] | None = None,
) -> Path:
    """Write a model's eyes and bottleneck adapters.

    Args:
        folder: where to.
        model: has eyes.
        base: the language model's folder.
        is_own_base: it lies in ``folder`` itself and moves with it.
        text: files of the text side, written beside.

    Raises:
        CheckpointError: if something holds NaN or infinity.
    """
    sight = sight_of(model)
    assert sight is not None
    reader = sight.reader
    tensors = {name: value.detach().cpu().contiguous() for name, value in _own_weights(model).items()}
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise CheckpointError(
            f"The eyes are not written: {broken[0]} holds NaN or infinity.", "Lower the learning rate."
        )
    eyes = _Eyes(
        layers=reader.config.layers,
        mean=reader.config.mean,
        std=reader.config.std,
        bottleneck=settings_of_bottlenecks(model),
    )
    save_vision(folder / TOWER, reader.tower)
    values: dict[str, Any] = {"peft_type": KIND, "inference_mode": True} | reference(base, folder)
    if is_own_base:  # found from the folder alone, wherever it goes
        values["base_model_name_or_path"] = values["stockpot"]["base"] = ""
    values["stockpot"]["eyes"] = eyes.model_dump(mode="json")
    files: dict[str, bytes | Callable[[Path], None]] = {
        WEIGHTS: lambda path: save_tensors(tensors, path),
        CONFIG: (json.dumps(values, indent=2) + "\n").encode(),
    }
    write_all(folder, (text or {}) | files)
    return folder


def add_sight(bundle: Bundle, folder: Path) -> Bundle:
    """Give a bundle's model the eyes and bottleneck adapters of a folder, in place; LoRA beside them is not looked at.

    Raises:
        CheckpointError: if they belong to another model, are damaged, or the model has eyes or a soft prompt already.
    """
    if sight_of(bundle.model) is not None or bundle.soft:
        raise CheckpointError("The model has eyes or a soft prompt already.", "Name one of them.")
    base = base_of(folder)
    source = bundle.source
    if source is not None and base.resolve() != source.resolve() and checksums(base) != checksums(source):
        raise CheckpointError(f"{folder} was trained on {base}, not on {source}.", "Load its own base.")
    ours = read_json(folder, CONFIG).get("stockpot")
    try:
        eyes = _Eyes.model_validate(ours.get("eyes") if isinstance(ours, dict) else None)
    except (ConfigError, ValueError) as error:
        raise CheckpointError(
            f"{folder / CONFIG}: {str(error).splitlines()[0]}.", "Copy the folder again."
        ) from None
    tower = image_tower(folder / TOWER)
    config = ReaderConfig(
        image=tower.config, dim=bundle.model.config.dim, layers=eyes.layers, mean=eyes.mean, std=eyes.std
    )
    training = [one for one in bundle.model.parameters() if one.requires_grad]
    if eyes.bottleneck is not None:  # before there is a tower, which gets none
        attach_bottlenecks(bundle.model, eyes.bottleneck)
    attach_sight(bundle.model, ImageReader(config, tower))
    _fill(bundle.model, folder)
    for one in training:
        one.requires_grad_(True)
    bundle.model.eval()
    return replace(bundle)


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Give the weights that are written here: the projector's and the bottleneck adapters', by name."""
    sight = sight_of(model)
    assert sight is not None
    reader: dict[str, Tensor] = {
        f"reader.{name}": value
        for name, value in sight.reader.named_parameters()
        if not name.startswith("tower.")
    }
    return reader | dict(bottleneck_weights(model))


def _fill(model: nn.Module, folder: Path) -> None:
    """Read the weights of ``_own_weights``; what is missing or of another shape is refused."""
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}.", "Copy the folder again.")
    shelf = Shelf([inside(folder, WEIGHTS)])
    wanted = _own_weights(model)
    wrong = wanted.keys() ^ shelf.entries.keys()
    wrong |= {
        name
        for name in wanted.keys() - wrong
        if tuple(shelf.entries[name].shape) != tuple(wanted[name].shape)
    }
    if wrong:
        raise CheckpointError(
            f"{folder}: {len(wrong)} tensors of the eyes do not fit the model ({sorted(wrong)[0]} …).",
            "Eyes and model must belong together.",
        )
    with shelf.open() as files, torch.no_grad():
        for name, target in wanted.items():
            value = files.tensor(name)
            if not bool(value.isfinite().all()):
                raise CheckpointError(f"{folder}: {name} is damaged.", "Copy the folder again.")
            target.copy_(value)
