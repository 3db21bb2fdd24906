"""Soft prompts on disk: an adapter folder in PEFT's form, with the checksum of the model it was trained on.

``adapter_config.json`` says ``PROMPT_TUNING`` or ``PREFIX_TUNING``, ``adapter_model.safetensors`` holds ``prompt_embeddings``:
``(prefix, dim)``, or each layer's keys and values behind one another, ``(prefix, layers * 2 * kv_heads * head_dim)``.
A soft prompt is never put on a model with other weights than it was trained on; what LoRA has added to them counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError
from stockpot.model.sight import sight_of
from stockpot.model.soft import attach_prefix, attach_soft, prefix_heads, soft_ids, soft_vectors
from stockpot.model.transformer import Transformer
from stockpot.weights.adapter import add_adapter, base_of, checksums, frozen_kind, is_adapter, reference
from stockpot.weights.families import family_of
from stockpot.weights.folder import inside, read_json
from stockpot.weights.sight import LORA, add_sight, is_sight
from stockpot.weights.tensors import Shelf, save_tensors

__all__ = ["is_soft", "refuse_soft", "soft_files", "wear"]

CONFIG, WEIGHTS, NAME = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
PROMPT, PREFIX = "PROMPT_TUNING", "PREFIX_TUNING"


def is_soft(folder: Path) -> bool:
    """Tell whether a folder holds a soft prompt."""
    return (folder / CONFIG).is_file() and read_json(folder, CONFIG).get("peft_type") in (PROMPT, PREFIX)


def refuse_soft(model: Transformer, aim: str) -> None:
    """Refuse a model that wears a soft prompt or eyes, which cannot do what ``aim`` says.

    Raises:
        CheckpointError: if it wears them.
    """
    if sight_of(model) is not None:
        raise CheckpointError(
            f"A model with eyes cannot {aim}.", "Use the model without them; load takes both as they are."
        )
    if soft_ids(model):
        raise CheckpointError(
            f"A model with a soft prompt cannot {aim}.",
            "Use the model without it; load takes both as they are.",
        )


def wear(bundle: Bundle, folders: Sequence[Path]) -> Bundle:
    """Put adapters on a bundle's model, in place: LoRA is added to the weights, a soft prompt stands in front, eyes see.

    Raises:
        CheckpointError: if one was trained on other weights, is damaged or no adapter, or two are soft prompts.
    """
    added: list[Path] = []
    plain = [one for one in folders if is_adapter(one) and not is_soft(one)]
    if len(plain) > 1 and (rounded := [one for one in plain if frozen_kind(one) is not None]):
        raise CheckpointError(
            f"{rounded[0]} was trained beside rounded matrices, the other adapters were not made for those.",
            "Name it alone, or merge it first: stockpot convert.",
        )
    for folder in sorted(folders, key=lambda one: is_soft(one) or is_sight(one)):  # LoRA first
        if is_sight(folder):
            if (folder / LORA).is_dir():
                bundle = _add(bundle, folder / LORA)
            bundle = add_sight(bundle, folder)
        elif is_soft(folder):
            bundle = _wear_soft(bundle, folder, added)
        else:
            bundle = _add(bundle, folder)
            added.append(folder)
    return bundle


def _add(bundle: Bundle, folder: Path) -> Bundle:
    if not is_adapter(folder):
        raise CheckpointError(f"{folder} holds no adapter.", "Give the folder of a LoRA or a soft prompt.")
    base = base_of(folder)
    if bundle.source is not None and base.resolve() != bundle.source.resolve():
        raise CheckpointError(
            f"{folder} was trained on {base}, not on {bundle.source}.", "Load its own base."
        )
    config = bundle.model.config
    add_adapter(bundle.model, folder, family_of(config, bundle.family).parts(config))
    return bundle


def _wear_soft(bundle: Bundle, folder: Path, added: Sequence[Path]) -> Bundle:
    if soft_ids(bundle.model):
        raise CheckpointError("The model has a soft prompt already; two do not fit.", "Name one.")
    if sight_of(bundle.model) is not None:
        raise CheckpointError("A model with eyes takes no soft prompt.", "Name one of them.")
    values = read_json(folder, CONFIG)
    wanted = (
        (values.get("stockpot") or {}).get("sha256") if isinstance(values.get("stockpot"), dict) else None
    )
    if isinstance(wanted, list) and bundle.source is not None:
        here = [*checksums(bundle.source), *(checksums(one)[0] for one in added)]
        if sorted(map(str, wanted)) != sorted(here):
            beside = f" with {', '.join(map(str, added))}" if added else ""
            raise CheckpointError(
                f"{bundle.source}{beside} is not the model that {folder} was trained on: its weights differ.",
                "Use the model it was trained on, its adapters included, or tune the prompt again.",
            )
    was_trainable = any(one.requires_grad for one in bundle.model.parameters())
    attach = _attach_prefix if values.get("peft_type") == PREFIX else _attach_prompt
    ids = attach(bundle.model, _read(folder), folder)
    bundle.model.requires_grad_(was_trainable)
    return replace(bundle, soft=tuple(ids))


def _attach_prompt(model: Transformer, vectors: Tensor, folder: Path) -> range:
    if vectors.shape[1] != model.config.dim:
        raise CheckpointError(
            f"{folder}: vectors of {vectors.shape[1]} numbers; the model's width is {model.config.dim}.",
            "Soft prompt and model must belong together.",
        )
    return attach_soft(model, vectors)


def _attach_prefix(model: Transformer, numbers: Tensor, folder: Path) -> range:
    stack = model.config.main
    shape = (len(numbers), stack.layers, 2, stack.key_heads, stack.head_width)
    if model.config.shape != "decoder" or numbers.numel() != math.prod(shape):
        raise CheckpointError(
            f"{folder}: {numbers.shape[1]} numbers a token; the model's layers take {math.prod(shape[1:])}.",
            "Prefix and model must belong together.",
        )
    return attach_prefix(model, [(one[:, 0], one[:, 1]) for one in numbers.view(shape).unbind(1)])


def _read(folder: Path) -> Tensor:
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no {WEIGHTS}.", "Copy the folder again.")
    shelf = Shelf([inside(folder, WEIGHTS)])
    if NAME not in shelf.entries:
        raise CheckpointError(f"{folder}: {NAME} is missing.", "Copy the folder again.")
    with shelf.open() as files:
        vectors = files.tensor(NAME).float()
    if vectors.ndim != 2 or not len(vectors) or not bool(vectors.isfinite().all()):
        raise CheckpointError(f"{folder}: {NAME} is damaged.", "Copy the folder again, or tune again.")
    return vectors


def soft_files(bundle: Bundle, base: Path, folder: Path) -> dict[str, bytes | Callable[[Path], None]]:
    """Make the files of a soft prompt's folder: name → content, or what writes it.

    Args:
        bundle: the model that wears it.
        base: the model's own folder or file.
        folder: where the files will be, from where the base is looked for when both have moved.

    Raises:
        CheckpointError: if the vectors are not finite.
    """
    stack = bundle.model.config.main
    vectors, heads = soft_vectors(bundle.model), prefix_heads(bundle.model)
    if heads:
        vectors = torch.stack([torch.stack(pair, 1) for pair in heads], 1).flatten(1)
    vectors = vectors.detach().cpu().contiguous()
    if not bool(vectors.isfinite().all()):
        raise CheckpointError(
            "The soft prompt is not written: it holds NaN or infinity.", "Lower the learning rate."
        )
    values: dict[str, Any] = {
        "peft_type": PREFIX if heads else PROMPT,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": vectors.shape[0],
        "token_dim": stack.key_heads * stack.head_width if heads else vectors.shape[1],
        "num_transformer_submodules": 1,
        "num_layers": stack.layers,
        "num_attention_heads": stack.key_heads if heads else stack.heads,
        "inference_mode": True,
    }
    values |= {"prefix_projection": False} if heads else {"prompt_tuning_init": "RANDOM"}
    values |= reference(base, folder)
    return {
        CONFIG: (json.dumps(values, indent=2) + "\n").encode(),
        WEIGHTS: lambda path: save_tensors({NAME: vectors}, path),
    }
