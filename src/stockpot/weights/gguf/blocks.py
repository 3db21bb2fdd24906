"""Numbers as GGUF files store them ↔ torch tensors, a few rows at a time.

A tensor is never decoded as a whole: a piece of it is read, decoded and copied into its parameter, so that
reading takes little memory beside the model itself. The arithmetic of the packed kinds is the ``gguf``
package's; our kernels do that of the usual ones, where they have been compiled, with the same results.
"""

from __future__ import annotations

from math import prod
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stockpot.errors import CheckpointError
from stockpot.gguf_directory import TENSOR_TYPES, GGUFTensor, TensorType
from stockpot.native.calls import DECODED, kernels_at_hand

__all__ = ["FULL", "KINDS", "decode_into", "encode"]

PIECE = 1 << 18  # numbers decoded at once: a megabyte of float32, which stays in the cache
KINDS = {kind.name: kind for kind in TENSOR_TYPES.values()}
FULL = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}

Bytes = NDArray[np.uint8]


def decode_into(target: Tensor, file: BinaryIO, stored: GGUFTensor, order: Tensor | None = None) -> bool:
    """Read a tensor into ``target``, of the same shape and any dtype or device.

    ``order`` says which row of ``target`` each row of the file belongs to; None: the same.

    Returns:
        whether all its numbers are finite.
    """
    rows, width = (
        (prod(stored.shape[:-1]), stored.shape[-1]) if len(stored.shape) > 1 else (1, stored.shape[0])
    )
    row_bytes = width // stored.kind.block * stored.kind.size
    flat = target.view(rows, width)
    step = max(1, PIECE // width) if target.ndim > 1 else rows
    buffer = np.empty((min(step, rows), row_bytes), np.uint8)
    is_direct = order is None and flat.dtype == torch.float32 and flat.device.type == "cpu"
    finite = True
    file.seek(stored.start)
    for start in range(0, rows, step):
        raw = buffer[: min(step, rows - start)]
        if file.readinto(raw.data) != raw.nbytes:  # type: ignore[attr-defined]
            raise CheckpointError(f"{stored.name!r} is cut short.", "Get the file again.")
        there = flat[start : start + len(raw)]
        piece, is_finite = _decode(raw, stored.kind, there if is_direct else None)
        finite = finite and is_finite
        if order is None:
            if piece is not there:
                there.copy_(piece)
        elif target.ndim == 1:
            target[order] = piece[0].to(target)
        else:
            _put(flat, order[start : start + len(raw)], piece)
    return finite


def _put(target: Tensor, rows: Tensor, numbers: Tensor) -> None:
    """Put numbers into some rows. Not by torch where it can be helped: its threads stay awake a while, in the way of ours."""
    if target.dtype == numbers.dtype == torch.float32 and target.device.type == "cpu":
        target.numpy()[rows.numpy()] = numbers.numpy()
    else:
        target[rows] = numbers.to(target)


def _decode(raw: Bytes, kind: TensorType, out: Tensor | None) -> tuple[Tensor, bool]:
    """Return the numbers of some rows of bytes, and whether all are finite.

    They are in ``out``, float32 and without gaps, where that spares copying them.
    """
    if kind.name in FULL:
        full = torch.from_numpy(raw).view(FULL[kind.name])
        return full, _is_finite(full)
    if kind.name in DECODED and (ours := kernels_at_hand()) is not None:
        if out is None:
            out = torch.empty(len(raw), raw.shape[1] // kind.size * kind.block)
        blocks, threads = raw.size // kind.size, torch.get_num_threads()
        return out, ours.decode(kind.number, raw.ctypes.data, blocks, out.data_ptr(), threads)
    from gguf import quants

    # The class itself: quants.dequantize, which splits its input into groups of 16 rows, takes ten times as long.
    arithmetic = getattr(quants, kind.name)
    with np.errstate(all="ignore"):  # damaged scales are told by their result
        numbers = arithmetic.dequantize_blocks(raw.reshape(-1, kind.size))
    found = torch.from_numpy(numbers).view(len(raw), -1)
    return found, _is_finite(found)


def _is_finite(numbers: Tensor) -> bool:
    return bool(numbers.sum().isfinite() or numbers.isfinite().all())


def encode(tensor: Tensor, kind: TensorType) -> Bytes:
    """Return a matrix or vector as bytes, ``(rows, bytes of a row)`` or ``(bytes,)``.

    Raises:
        CheckpointError: if its numbers do not fit float16.
    """
    rows = tensor.detach().view(-1, tensor.shape[-1])
    width = rows.shape[-1]
    found = np.empty((len(rows), width // kind.block * kind.size), np.uint8)
    step = max(1, PIECE // width)
    for start in range(0, len(rows), step):
        found[start : start + step] = _encode(rows[start : start + step].cpu(), kind)
    return found if tensor.ndim > 1 else found[0]


def _encode(rows: Tensor, kind: TensorType) -> Bytes:
    if kind.name in FULL:
        cast = rows.to(FULL[kind.name])
        if not bool(cast.isfinite().all()):
            raise CheckpointError(
                "The model holds numbers that float16 cannot.", "Write it with --dtype bfloat16 or float32."
            )
        found: Bytes = cast.contiguous().view(torch.uint8).numpy()
        return found
    from gguf import quants

    numbers = rows.float().contiguous().view(-1, kind.block).numpy()
    packed: Bytes = getattr(quants, kind.name).quantize_blocks(numbers)
    return packed.reshape(len(rows), -1)
