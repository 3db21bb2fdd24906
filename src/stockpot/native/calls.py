"""The kernels as Python sees them: structures of pointers, laid out as in ``transformer.cpp``, and the calls.

Pointers are plain numbers; whoever fills a structure keeps the memory alive. Nothing is checked here.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_void_p

from stockpot.native.build import is_compiled, library

__all__ = [
    "ACTIVATIONS",
    "DECODED",
    "CallFacts",
    "Kernels",
    "LayerFacts",
    "MatrixFacts",
    "ModelFacts",
    "NormFacts",
    "WritingFacts",
    "kernels",
    "kernels_at_hand",
]

ACTIVATIONS = {  # as the kernels number them, by the feed-forward's kind
    "silu": 0, "swiglu": 0, "gelu": 1, "geglu": 1, "gelu_tanh": 2, "geglu_tanh": 2, "relu": 3, "relu2": 4,
}  # fmt: skip


class MatrixFacts(Structure):
    """A quantised matrix."""

    _fields_ = (
        ("digits", c_void_p),
        ("scales", c_void_p),
        ("lows", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("bits", c_int64),
        ("gain", c_double),
    )


class NormFacts(Structure):
    """A norm; without a weight there is none."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p), ("centred", c_int64))


class LayerFacts(Structure):
    """One layer of a decoder."""

    _fields_ = (
        ("qkv", MatrixFacts),
        ("out", MatrixFacts),
        ("up", MatrixFacts),
        ("down", MatrixFacts),
        ("qkv_bias", c_void_p),
        ("out_bias", c_void_p),
        ("up_bias", c_void_p),
        ("down_bias", c_void_p),
        ("attention_norm", NormFacts),
        ("ffn_norm", NormFacts),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("rotary", c_void_p),
        ("window", c_int64),
    )


class ModelFacts(Structure):
    """A decoder."""

    _fields_ = (
        ("layers", c_int64),
        ("dim", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("rotary_dim", c_int64),
        ("ffn", c_int64),
        ("gated", c_int64),
        ("activation", c_int64),
        ("vocab", c_int64),
        ("eps", c_float),
        ("attention_scale", c_float),
        ("embedding_scale", c_float),
        ("layer", POINTER(LayerFacts)),
        ("embed", MatrixFacts),
        ("head", MatrixFacts),
        ("positions", c_void_p),
        ("final_norm", NormFacts),
    )


class CallFacts(Structure):
    """Tokens to run, and where results go."""

    _fields_ = (
        ("tokens", c_int64),
        ("picks", c_int64),
        ("threads", c_int64),
        ("ids", c_void_p),
        ("rows", c_void_p),
        ("places", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("row_stride", c_int64),
        ("head_stride", c_int64),
        ("picked", c_void_p),
        ("logits", c_void_p),
        ("hidden", c_void_p),
    )


class WritingFacts(Structure):
    """How rows go on by themselves, and where their ids go."""

    _fields_ = (
        ("steps", c_int64),
        ("seconds", c_double),
        ("enders", c_int64),
        ("ender", c_void_p),
        ("least", c_void_p),
        ("written", c_void_p),
        ("taken", c_int64),
    )


DECODED = frozenset({"Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"})
"""Kinds of GGUF's numbers that :meth:`Kernels.decode` knows."""


class Kernels:
    """The calls of one compiled library.

    Attributes:
        name: which instructions it was made for.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        library.stockpot_lanes.restype = c_char_p
        library.stockpot_forward.argtypes = [POINTER(ModelFacts), POINTER(CallFacts)]
        library.stockpot_write.argtypes = [POINTER(ModelFacts), POINTER(CallFacts), POINTER(WritingFacts)]
        library.stockpot_multiply.argtypes = [
            POINTER(MatrixFacts),
            c_void_p,
            c_int64,
            c_int64,
            c_void_p,
            c_int,
        ]
        library.stockpot_read_rows.argtypes = [POINTER(MatrixFacts), c_void_p, c_int64, c_int64, c_void_p]
        library.stockpot_read_rows.restype = None
        library.stockpot_pack.argtypes = [c_void_p, c_int64, c_int64, c_int, POINTER(MatrixFacts), c_int]
        library.stockpot_decode.argtypes = [c_int, c_void_p, c_int64, c_void_p, POINTER(c_int32), c_int]
        library.stockpot_top.argtypes = [c_void_p, c_int64, c_int]
        library.stockpot_top.restype = c_float
        library.stockpot_read.argtypes = [c_void_p, c_int64, c_int]
        library.stockpot_read.restype = c_int32
        self._library = library
        self.name: str = library.stockpot_lanes().decode()

    def forward(self, model: ModelFacts, call: CallFacts) -> None:
        """Run tokens through a decoder."""
        _expect_success(self._library.stockpot_forward(ctypes.byref(model), ctypes.byref(call)))

    def write(self, model: ModelFacts, call: CallFacts, writing: WritingFacts) -> None:
        """Run a token of each row, and then the likeliest id behind it, a few times."""
        _expect_success(
            self._library.stockpot_write(ctypes.byref(model), ctypes.byref(call), ctypes.byref(writing))
        )

    def multiply(
        self, matrix: MatrixFacts, rows: int, count: int, width: int, out: int, threads: int
    ) -> None:
        """Multiply rows of floats ``(count, width)`` with a matrix: ``(count, outputs)``."""
        _expect_success(
            self._library.stockpot_multiply(ctypes.byref(matrix), rows, count, width, out, threads)
        )

    def read_rows(self, matrix: MatrixFacts, ids: int, count: int, width: int, out: int) -> None:
        """Look up rows of a matrix as floats ``(count, width)``."""
        self._library.stockpot_read_rows(ctypes.byref(matrix), ids, count, width, out)

    def pack(
        self, weight: int, outputs: int, inputs: int, to: MatrixFacts, threads: int, *, is_paired: bool
    ) -> None:
        """Turn floats ``(outputs, inputs)`` into the digits, scales and lows that a matrix points to."""
        _expect_success(
            self._library.stockpot_pack(weight, outputs, inputs, is_paired, ctypes.byref(to), threads)
        )

    def top(self, numbers: int, count: int, threads: int) -> float:
        """Return the largest size of some floats."""
        return float(self._library.stockpot_top(numbers, count, threads))

    def decode(self, kind: int, bytes_: int, blocks: int, out: int, threads: int) -> bool:
        """Turn blocks of a GGUF file, of a kind in ``DECODED``, into floats; tell whether all are finite."""
        finite = c_int32(0)
        _expect_success(self._library.stockpot_decode(kind, bytes_, blocks, out, finite, threads))
        return bool(finite.value)

    def read(self, bytes_: int, count: int, threads: int) -> None:
        """Read memory once, as fast as the threads can."""
        self._library.stockpot_read(bytes_, count, threads)


def kernels() -> Kernels | None:
    """Return this machine's kernels; None where there are none."""
    found = library()
    return None if found is None else Kernels(found)


def kernels_at_hand() -> Kernels | None:
    """Return this machine's kernels if that takes no compiling."""
    return kernels() if is_compiled() else None


def _expect_success(code: int) -> None:
    if code == _OUTSIDE:
        raise IndexError("an id is outside of the vocabulary")
    if code:
        raise MemoryError("the kernels could not get the memory they need")


_OUTSIDE = 2
