"""An encoder's kernels as Python sees them: structures laid out as in ``encoder.cpp``, and the calls.

Addresses are plain numbers and 0 is none; whoever fills a structure keeps the memory alive. Nothing is checked here.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p

from stockpot.native.build import encoder_library

__all__ = [
    "ACTIVATIONS",
    "EncoderCall",
    "EncoderFacts",
    "EncoderKernels",
    "EncoderLayer",
    "Panels",
    "Shift",
    "encoder_kernels",
]

ACTIVATIONS = {"gelu": 0, "gelu_tanh": 1, "relu": 2}


class Panels(Structure):
    """A matrix as ``encoder_products.hpp`` lays it out."""

    _fields_ = (
        *((name, c_void_p) for name in ("panels", "scales", "bias")),
        *((name, c_int64) for name in ("outputs", "inputs")),
    )


class Shift(Structure):
    """A layer norm's weight and bias; without a weight there is none."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class EncoderLayer(Structure):
    """One layer."""

    _fields_ = (
        *((name, Panels) for name in ("qkv", "out", "up", "down")),
        *((name, Shift) for name in ("attention_norm", "ffn_norm")),
    )


class EncoderFacts(Structure):
    """An encoder."""

    _fields_ = (
        *((name, c_int64) for name in ("layers", "dim", "heads", "head_dim", "ffn", "activation")),
        *((name, c_float) for name in ("eps", "attention_scale")),
        ("layer", POINTER(EncoderLayer)),
        ("positions", c_void_p),
        ("embedding_norm", Shift),
    )


class EncoderCall(Structure):
    """Texts one behind the other, and where their embeddings become hidden states."""

    _fields_ = (("texts", c_int64), ("threads", c_int64), ("starts", c_void_p), ("hidden", c_void_p))


class EncoderKernels:
    """The calls of one compiled library.

    Attributes:
        panel: outputs that lie side by side.
        span: inputs that share a factor in whole numbers.
        has_pairs: whether this processor adds two products of whole numbers at once.
        is_fast: whether they were written for this processor, rather than for any.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for fact in ("panel", "span", "has_pairs", "is_fast"):
            getattr(library, f"stockpot_encoder_{fact}").restype = c_int64
        self.panel: int = library.stockpot_encoder_panel()
        self.span: int = library.stockpot_encoder_span()
        self.has_pairs = bool(library.stockpot_encoder_has_pairs())
        self.is_fast = bool(library.stockpot_encoder_is_fast())
        library.stockpot_encode.argtypes = [POINTER(EncoderFacts), POINTER(EncoderCall)]
        library.stockpot_encoder_pack.argtypes = [c_void_p, POINTER(Panels), c_int]
        self._library = library

    def encode(self, model: EncoderFacts, call: EncoderCall) -> None:
        """Turn embeddings into hidden states, in place."""
        _expect_success(self._library.stockpot_encode(byref(model), byref(call)))

    def pack(self, weight: int, to: Panels, threads: int) -> None:
        """Put floats ``(outputs, inputs)`` into the panels that a matrix points to, as digits where it has scales."""
        _expect_success(self._library.stockpot_encoder_pack(weight, byref(to), threads))


@functools.cache
def encoder_kernels() -> EncoderKernels | None:
    """Return this machine's kernels; None where there are none."""
    found = encoder_library()
    return None if found is None else EncoderKernels(found)


def _expect_success(code: int) -> None:
    if code:
        raise MemoryError("the kernels could not get the memory they need")
