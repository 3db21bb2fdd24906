"""A model with its tokenizer, chat template and defaults → one GGUF file that llama.cpp runs.

A model or tokenizer for which llama.cpp has no equal is refused: nothing is written that would answer
differently there. The file appears whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.durable import half_name, sync
from stockpot.errors import CheckpointError, ConfigError
from stockpot.gguf_directory import TensorType
from stockpot.text.vocabulary import write_vocabulary
from stockpot.weights.family import Part
from stockpot.weights.gguf.blocks import FULL, KINDS, encode
from stockpot.weights.gguf.maps import ARCHITECTURES, Architecture
from stockpot.weights.gguf.reading import SAMPLING, rows_in_turns

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["QUANTIZE", "save_gguf"]

QUANTIZE = ("q8_0", "q4_0")
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
NAMES = {dtype: name for name, dtype in FULL.items() if name != "F64"}


def save_gguf(
    path: Path, bundle: Bundle, params: Mapping[str, Tensor], *, quantize: str | None = None
) -> Path:
    """Write a GGUF file; ``params`` are the model's parameters, adapters merged.

    ``quantize`` is ``"q8_0"`` or ``"q4_0"``; None keeps the model's dtype. Norms and biases stay float32; with
    ``q4_0``, the embeddings and the output matrix are kept as ``q8_0``, and rows that are no whole blocks of 32
    as float16.

    Raises:
        CheckpointError: if llama.cpp has no such model, or it holds NaN or infinity.
        TokenizerError: if llama.cpp has no such tokenizer.
        ConfigError: if ``quantize`` is unknown.
    """
    if quantize is not None and quantize not in QUANTIZE:
        raise ConfigError(f"quantize is {quantize!r}; expected one of {', '.join(QUANTIZE)}.")
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; a GGUF file is one file.", "Choose another path.")
    model = bundle.model
    architecture = _architecture_of(bundle)
    base = quantize.upper() if quantize else NAMES.get(model.embed.weight.dtype, "F32")
    parts = architecture.parts(model.config)
    settings, tables = architecture.write(model.config)
    values = {
        "general.type": "model",
        "general.name": bundle.source.stem if bundle.source else path.stem,
        "general.file_type": FILE_TYPES[base],
        **({"general.quantization_version": 2} if quantize else {}),
        **settings,
        **_vocabulary(bundle),
        **_sampling(bundle),
    }
    _refuse_broken(params)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = half_name(path)
    try:
        _write(half, architecture, values, _tensors(architecture, parts, params, bundle, base), tables)
        sync(half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
    sync(path.parent)
    return path


def _architecture_of(bundle: Bundle) -> Architecture:
    config = bundle.model.config
    for one in sorted(ARCHITECTURES.values(), key=lambda one: one.name != bundle.family):
        if one.can_hold(config):
            return one
    raise CheckpointError(
        "This model cannot be written to a GGUF file: llama.cpp has no architecture with these parts.",
        f"Known: {', '.join(ARCHITECTURES)}, without windows. Save a folder instead.",
    )


def _vocabulary(bundle: Bundle) -> dict[str, Any]:
    tokenizer = bundle.tokenizer
    return write_vocabulary(
        tokenizer.to_json(),
        tokenizer.roles,
        bundle.model.config.vocab_size,
        adds_bos=tokenizer.adds_bos,
        template=None if bundle.template is None else bundle.template.source,
    )


def _sampling(bundle: Bundle) -> dict[str, Any]:
    given = {theirs: bundle.generation.get(ours) for ours, theirs in SAMPLING.items()}
    return {
        f"general.sampling.{name}": int(value) if name == "top_k" else float(value)
        for name, value in given.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _refuse_broken(params: Mapping[str, Tensor]) -> None:
    broken = [name for name, param in params.items() if not bool(param.detach().isfinite().all())]
    if broken:
        raise CheckpointError(
            f"The model is not written: {len(broken)} tensors hold NaN or infinity ({', '.join(broken[:4])}).",
            "Training went wrong; lower the learning rate and go on from the last checkpoint.",
        )


Stored = tuple[Tensor, TensorType]


def _tensors(
    architecture: Architecture, parts: Sequence[Part], params: Mapping[str, Tensor], bundle: Bundle, base: str
) -> dict[str, Stored]:
    """Return the tensors of the file, as views of ours where they lie alike, and how each is stored."""
    stack = bundle.model.config.main
    found: dict[str, Stored] = {}
    for part in parts:
        whole = params[part.ours].detach()
        for name, piece in zip(
            part.theirs, torch.split(whole, list(part.rows or (whole.shape[0],))), strict=True
        ):
            heads = architecture.heads_of(name, stack)
            rows = piece if heads is None else piece[rows_in_turns(heads, stack.head_width).to(piece.device)]
            found[name] = rows, KINDS[_kind_of(name, piece, base)]
    return found


def _kind_of(name: str, tensor: Tensor, base: str) -> str:
    """Choose how a tensor is stored."""
    if tensor.ndim == 1 or name == "position_embd.weight":
        return "F32"
    if base == "Q4_0" and not name.startswith("blk."):
        base = "Q8_0"
    return base if tensor.shape[-1] % KINDS[base].block == 0 else "F16"


def _write(
    path: Path,
    architecture: Architecture,
    values: Mapping[str, Any],
    tensors: Mapping[str, Stored],
    tables: Mapping[str, Sequence[float]],
) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    extra = {name: (torch.tensor(list(table)), KINDS["F32"]) for name, table in tables.items()}
    stored = {**extra, **tensors}
    writer = GGUFWriter(path, architecture.name)
    try:
        for key, value in values.items():
            _add(writer, key, value)
        for name, (tensor, kind) in stored.items():
            row = tensor.shape[-1] // kind.block * kind.size
            shape = (*tensor.shape[:-1], row)
            size = tensor.numel() // kind.block * kind.size
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, GGMLQuantizationType(kind.number))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in stored.values():
            writer.write_tensor_data(encode(tensor, kind))
    finally:
        writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
