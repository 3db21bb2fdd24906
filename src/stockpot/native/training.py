"""Training's kernels as Python sees them: calls on addresses of memory, laid out as in ``training.cpp``.

Addresses are plain numbers and 0 is none; whoever calls keeps the memory alive. Nothing is checked here.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p

from stockpot.native.build import training_library

__all__ = ["LONGEST_HEAD", "AttentionFacts", "Side", "TrainingKernels", "training_kernels"]

LONGEST_HEAD = 1024  # numbers of a head that the kernels have room for


class AttentionFacts(Structure):
    """One call of attention; the comments are in ``training_heads.hpp``."""

    _fields_ = (
        *((name, c_int64) for name in ("type", "angle_type", "mask_rows", "mask_viewers", "angle_rows")),
        *((name, c_int64) for name in ("batch", "seq", "heads", "kv_heads", "head_dim", "rotary_dim")),
        *((name, c_int64) for name in ("causal", "threads")),
        *((name, c_float) for name in ("scale", "eps")),
        *((name, c_void_p) for name in ("qkv", "q_gain", "k_gain", "angles", "mask", "q", "k", "v")),
        *((name, c_void_p) for name in ("mixed", "log_sums", "slope", "to_q", "to_k", "to_v", "to_qkv")),
        *((name, c_void_p) for name in ("to_q_gain", "to_k_gain")),
    )


class Side(Structure):
    """One side of a product in halves; the comments are in ``training_products.hpp``."""

    _fields_ = (("at", c_void_p), ("row", c_int64), ("turned", c_int64), ("largest", c_float))


class TrainingKernels:
    """The calls of the compiled library; each takes types (0 float, 1 bfloat16), addresses, sizes and threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        types, sizes, pointer = c_int64, c_int64, c_void_p
        self.norm = _call(library.stockpot_norm, types, types, *[pointer] * 6, sizes, sizes, c_float, c_int)
        self.norm_back = _call(library.stockpot_norm_back, types, types, *[pointer] * 8, sizes, sizes, c_int)
        self.swiglu = _call(library.stockpot_swiglu, types, pointer, pointer, sizes, sizes, c_int)
        self.swiglu_back = _call(
            library.stockpot_swiglu_back, types, pointer, pointer, pointer, sizes, sizes, c_int
        )
        self.gelu = _call(library.stockpot_gelu, types, pointer, pointer, sizes, c_int)
        self.gelu_back = _call(library.stockpot_gelu_back, types, pointer, pointer, pointer, sizes, c_int)
        self.gather = _call(
            library.stockpot_gather, types, pointer, pointer, pointer, sizes, sizes, c_float, c_float, c_int
        )
        self.apply = _call(
            library.stockpot_apply, types, pointer, pointer, sizes, sizes, c_float, c_float, c_int
        )
        self.adamw = _call(library.stockpot_adamw, *[pointer] * 4, sizes, pointer, sizes, pointer, c_int)
        self.judge = _call(
            library.stockpot_judge, types, pointer, pointer, sizes, sizes, c_float, c_int, pointer, c_int
        )
        self.judge.restype = c_int
        self.has_halves = bool(library.stockpot_has_halves())
        self.largest = _call(library.stockpot_largest, pointer, sizes, c_int)
        self.largest.restype = c_float
        self._multiply_halves = _call(
            library.stockpot_multiply_halves,
            POINTER(Side),
            POINTER(Side),
            sizes,
            sizes,
            sizes,
            pointer,
            c_int,
        )
        self._multiply_halves.restype = c_int
        self._attention = _call(library.stockpot_attention, POINTER(AttentionFacts))
        self._attention_back = _call(library.stockpot_attention_back, POINTER(AttentionFacts))

    def multiply_halves(
        self, a: Side, b: Side, high: int, wide: int, depth: int, out: int, threads: int
    ) -> bool:
        """Multiply two sides; False: they hold what is not finite, and nothing was written."""
        return not self._multiply_halves(byref(a), byref(b), high, wide, depth, out, threads)

    def attention(self, facts: AttentionFacts) -> None:
        """Attend where there is room for the result; else only place the heads."""
        self._attention(byref(facts))

    def attention_back(self, facts: AttentionFacts) -> None:
        """Do the reverse of :meth:`attention`."""
        self._attention_back(byref(facts))


def _call(function: ctypes._CFuncPtr, *types: type) -> ctypes._CFuncPtr:  # type: ignore[name-defined]
    function.argtypes, function.restype = types, None
    return function


@functools.cache
def training_kernels() -> TrainingKernels | None:
    """Return this machine's kernels; None where there are none."""
    found = training_library()
    return None if found is None else TrainingKernels(found)
