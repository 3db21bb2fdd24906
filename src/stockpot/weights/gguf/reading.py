"""A GGUF file → a model with its tokenizer, chat template and defaults.

The metadata and every tensor's name and shape are checked against each other before anything is allocated.
Packed numbers become full ones while they are read, a few rows at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError, TokenizerError
from stockpot.gguf_directory import GGUFile, read_directory
from stockpot.model.config import ModelConfig, StackConfig
from stockpot.model.outline import outline
from stockpot.model.quantized import quantize, rounded_names
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer
from stockpot.text.vocabulary import read_vocabulary, turn_end
from stockpot.weights.family import Part
from stockpot.weights.gguf.blocks import FULL, decode_into
from stockpot.weights.gguf.maps import ARCHITECTURES, Architecture, Keys
from stockpot.weights.gguf.stretch import FREQUENCIES
from stockpot.weights.known import drawing_of
from stockpot.weights.tensors import some

__all__ = ["SAMPLING", "architecture_of", "generation_of", "load_gguf", "load_gguf_model"]

SHOWN = 4
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"} | {
    "repetition_penalty": "penalty_repeat"
}


def load_gguf(
    path: str | os.PathLike[str],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    bits: int | None = None,
) -> Bundle:
    """Open a GGUF file as a bundle; with ``bits`` its weights are rounded on the way, and never all there as floats.

    Raises:
        CheckpointError: if it is damaged, contradicts itself, or holds a model that we do not have.
        TokenizerError: if its tokenizer is of a kind that is not read.
    """
    file = read_directory(path)
    try:
        tokenizer = Tokenizer.of(*read_vocabulary(file.values))
    except TokenizerError as error:
        raise TokenizerError(f"{file.path}: {error.what}", error.todo) from error
    model = _model(file, device, dtype, least=tokenizer.vocab_size, bits=bits)
    template = None if tokenizer.chat_template is None else ChatTemplate.of(tokenizer)
    family = file.values["general.architecture"]  # spelled as Hugging Face's model_type
    generation = drawing_of(file.path) | _generation(file.values, tokenizer)
    return Bundle(model, tokenizer, template, generation, file.path, family)


def architecture_of(path: str | os.PathLike[str]) -> str | None:
    """Return what a GGUF file says its model is, spelled as Hugging Face's ``model_type``."""
    name = read_directory(path).values.get("general.architecture")
    return name if isinstance(name, str) else None


def generation_of(path: str | os.PathLike[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the defaults of generation that a GGUF file holds for its tokenizer, or that are known of its model."""
    return drawing_of(path) | _generation(read_directory(path).values, tokenizer)


def load_gguf_model(
    path: str | os.PathLike[str], *, device: torch.device, dtype: torch.dtype | None
) -> Transformer:
    """Open the network of a GGUF file alone; errors as in :func:`load_gguf`."""
    return _model(read_directory(path), device, dtype)


def _model(
    file: GGUFile,
    device: torch.device,
    dtype: torch.dtype | None,
    least: int = 0,
    bits: int | None = None,
) -> Transformer:
    try:
        architecture, config = _settings(file)
        _refuse_absurd(config, file)
        model = outline(config)
        shapes = {name: param.shape for name, param in model.named_parameters()}
        parts = architecture.parts(config)
        _check_names(parts, shapes, file)
        if least > config.vocab_size:
            raise CheckpointError(f"the tokenizer has {least} ids, the model {config.vocab_size}.")
        kind = dtype or _main_dtype(file)
        orders = _orders(architecture, parts, config.main)
        later = rounded_names(model) if bits is not None and kind == torch.float32 else []
        with file.path.open("rb", buffering=0) as handle:
            weights = _Weights(file, handle, orders, {part.ours: part for part in parts}, shapes)
            now = [part.ours for part in parts if part.ours not in later]
            params = weights.read(now, kind, device)
            model.load_state_dict(params, strict=not later, assign=True)
            if bits is None:
                return model.requires_grad_(True).eval()
            return quantize(model, bits, weight_of=weights.one_by_one(later) if later else None)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error.what}", error.todo) from error


# --- settings ---


def _settings(file: GGUFile) -> tuple[Architecture, ModelConfig]:
    name = file.values.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(
            f"general.architecture is {str(name)[:80]!r}, which is not read.", f"Known: {known}."
        )
    if file.values.get("split.count", 1) not in (0, 1):
        raise CheckpointError(
            "this is one part of a model split over files.", "Join them: llama-gguf-split --merge."
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("token_embd.weight is missing, or no matrix.", "Get the file again.")
    keys = Keys(file.values, name, file.tensors.keys(), _tables(file))
    return ARCHITECTURES[name], ARCHITECTURES[name].read(keys, embedding.shape[0])


def _tables(file: GGUFile) -> dict[str, list[float]]:
    """Read the small tensors that are settings."""
    stored = file.tensors.get(FREQUENCIES)
    if stored is None:
        return {}
    if len(stored.shape) != 1 or stored.numbers > 4096:
        raise CheckpointError(
            f"{FREQUENCIES} has the impossible shape {stored.shape}.", "Get the file again."
        )
    found = torch.empty(stored.shape)
    with file.path.open("rb") as handle:
        decode_into(found, handle, stored)
    return {FREQUENCIES: found.tolist()}


def _refuse_absurd(config: ModelConfig, file: GGUFile) -> None:
    """Refuse metadata that describes far more than the file holds, before a name is even listed."""
    numbers = sum(one.numbers for one in file.tensors.values())
    if config.main.layers > len(file.tensors) or config.parameters() > 2 * numbers:
        raise CheckpointError(
            f"the metadata describes {config.parameters():,} parameters in {config.main.layers} layers, but there"
            f" are {numbers:,} numbers in {len(file.tensors)} tensors.",
            "Get the file again.",
        )


def _check_names(parts: list[Part], shapes: Mapping[str, torch.Size], file: GGUFile) -> None:
    """Compare every name and shape of the file with what the model needs."""
    wanted: dict[str, tuple[int, ...]] = {}
    for part in parts:
        shape = shapes[part.ours]
        for name, rows in zip(part.theirs, part.rows or (shape[0],), strict=True):
            wanted[name] = (rows, *shape[1:])
    held = {name: one.shape for name, one in file.tensors.items() if name != FREQUENCIES}
    faults = {
        "missing": [name for name in wanted if name not in held],
        "not expected": [name for name in held if name not in wanted],
        "of another shape": [
            f"{name} {shape} instead of {wanted[name]}"
            for name, shape in held.items()
            if name in wanted and shape != wanted[name]
        ],
    }
    told = [f"{len(names)} {fault} ({some(names)})" for fault, names in faults.items() if names]
    if told:
        raise CheckpointError(
            f"the tensors do not fit the metadata: {'; '.join(told)}.", "Get the file again."
        )


def _generation(values: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the sampling defaults and the ids that end an answer."""
    found: dict[str, Any] = {}
    for ours, theirs in SAMPLING.items():
        value = values.get(f"general.sampling.{theirs}")
        if isinstance(value, float):
            value = float(str(np.float32(value)))
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[ours] = value
    end = turn_end(values, tokenizer.vocab_size)
    if end is not None and end != tokenizer.eos_id:
        found["eos_token_id"] = [id for id in (tokenizer.eos_id, end) if id is not None]
    return found


# --- weights ---


def _orders(architecture: Architecture, parts: list[Part], stack: StackConfig) -> dict[str, Tensor]:
    """Return, for each tensor whose rows lie in turns, the row of ours that each of its rows is."""
    found = {}
    for part in parts:
        for name in part.theirs:
            heads = architecture.heads_of(name, stack)
            if heads is not None:
                found[name] = rows_in_turns(heads, stack.head_width)
    return found


def rows_in_turns(heads: int, width: int) -> Tensor:
    """Return where each row of a file that keeps both halves of a head in turns stands when they follow each other.

    >>> rows_in_turns(1, 6).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return torch.arange(heads * width).view(heads, 2, width // 2).transpose(1, 2).reshape(-1)


class _Weights:
    """Reads a file's tensors into parameters."""

    def __init__(
        self,
        file: GGUFile,
        handle: BinaryIO,
        orders: Mapping[str, Tensor],
        parts: Mapping[str, Part],
        shapes: Mapping[str, torch.Size],
    ) -> None:
        self._file, self._handle, self._orders = file, handle, orders
        self._parts, self._shapes = parts, shapes

    def read(self, names: Sequence[str], kind: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Return parameters by name."""
        found: dict[str, Tensor] = {}
        broken: list[str] = []
        for name in names:
            found[name] = torch.empty(self._shapes[name], dtype=kind, device=device)
            broken += self._fill(name, found[name])
        _refuse_broken(broken)
        return found

    def one_by_one(self, names: Sequence[str]) -> Callable[[str], Tensor]:
        """Return what reads one of these parameters as floats, into memory that the next one takes over."""
        room = torch.empty(max(self._shapes[name].numel() for name in names))

        def read(name: str) -> Tensor:
            whole = room[: self._shapes[name].numel()].view(self._shapes[name])
            _refuse_broken(self._fill(name, whole))
            return whole

        return read

    def _fill(self, name: str, whole: Tensor) -> list[str]:
        """Read a parameter; return which of its tensors are not finite."""
        broken, start = [], 0
        for theirs in self._parts[name].theirs:
            stored = self._file.tensors[theirs]
            target = whole[start : start + stored.shape[0]]
            if not decode_into(target, self._handle, stored, self._orders.get(theirs)):
                broken.append(theirs)
            start += stored.shape[0]
        return broken


def _refuse_broken(names: Sequence[str]) -> None:
    if names:
        raise CheckpointError(
            f"{len(names)} tensors hold NaN or infinity ({', '.join(names[:SHOWN])}).", "Get the file again."
        )


def _main_dtype(file: GGUFile) -> torch.dtype:
    """Return the dtype that holds most numbers of a file; packed ones become float32."""
    numbers: Counter[str] = Counter()
    for one in file.tensors.values():
        numbers[one.kind.name] += prod(one.shape)
    return FULL.get(numbers.most_common(1)[0][0], torch.float32)
