"""The kernels that read texts as Python sees them: structures laid out as in ``text_pass.hpp`` and beside it, and the calls.

Addresses are plain numbers and 0 is none; whoever fills a structure keeps the memory alive. Nothing is checked here.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p

from stockpot.native.build import text_library
from stockpot.native.calls import NormFacts

__all__ = [
    "STORED",
    "TextCall",
    "TextKernels",
    "TextLayer",
    "TextMatrix",
    "TextModel",
    "TextQuestion",
    "text_kernels",
]

STORED = {"float32": 0, "bfloat16": 1, "float16": 2}  # as the kernels number the types of weights and caches


class TextMatrix(Structure):
    """A matrix as ``text_products.hpp`` reads it: weights as they are, or panels of them."""

    _fields_ = (
        ("weight", c_void_p),
        ("type", c_int64),
        *((name, c_void_p) for name in ("panels", "scales", "bias")),
        *((name, c_int64) for name in ("outputs", "inputs")),
    )


class TextLayer(Structure):
    """One layer."""

    _fields_ = (
        *((name, TextMatrix) for name in ("qkv", "out", "gate", "up", "down")),
        *(
            (name, NormFacts)
            for name in ("attention_norm", "ffn_norm", "attention_post_norm", "ffn_post_norm")
        ),
        *((name, c_void_p) for name in ("q_norm", "k_norm", "rotary")),
        ("window", c_int64),
    )


class TextModel(Structure):
    """An encoder or a decoder without what is before and behind its layers."""

    _fields_ = (
        *(
            (name, c_int64)
            for name in ("layers", "dim", "heads", "kv_heads", "head_dim", "rotary_dim", "ffn")
        ),
        *((name, c_int64) for name in ("activation", "causal")),
        *((name, c_float) for name in ("eps", "attention_scale")),
        ("layer", POINTER(TextLayer)),
        ("positions", c_void_p),
        ("embedding_norm", NormFacts),
    )


class TextCall(Structure):
    """Texts one behind the other, and where their embeddings become hidden states."""

    _fields_ = (
        *((name, c_int64) for name in ("texts", "threads")),
        *(
            (name, c_void_p)
            for name in ("starts", "hidden", "trunks", "branches", "rows", "before", "keys", "values")
        ),
        *((name, c_int64) for name in ("type", "row_stride", "head_stride")),
    )


class TextQuestion(Structure):
    """States, the ids that are to follow them, and where the answers go."""

    _fields_ = (
        *((name, c_int64) for name in ("count", "threads")),
        *((name, c_void_p) for name in ("states", "targets", "log_probs", "gaps")),
    )


class TextKernels:
    """The calls of one compiled library.

    Attributes:
        panel: outputs that lie side by side.
        span: inputs that share a factor in whole numbers.
        has_pairs: whether this processor adds two products of whole numbers at once.
        is_fast: whether they were written for this processor, rather than for any.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        for fact in ("panel", "span", "has_pairs", "is_fast"):
            getattr(library, f"stockpot_texts_{fact}").restype = c_int64
        self.panel: int = library.stockpot_texts_panel()
        self.span: int = library.stockpot_texts_span()
        self.has_pairs = bool(library.stockpot_texts_has_pairs())
        self.is_fast = bool(library.stockpot_texts_is_fast())
        library.stockpot_texts_run.argtypes = [POINTER(TextModel), POINTER(TextCall)]
        library.stockpot_texts_judge.argtypes = [POINTER(TextMatrix), POINTER(TextQuestion)]
        library.stockpot_texts_pack.argtypes = [POINTER(TextMatrix), c_int]
        self._library = library

    def run(self, model: TextModel, call: TextCall) -> None:
        """Turn embeddings into the states behind the last layer, in place."""
        _expect_success(self._library.stockpot_texts_run(byref(model), byref(call)))

    def judge(self, head: TextMatrix, question: TextQuestion) -> None:
        """Find how likely each target is behind its state, and how far above the best of the others."""
        _expect_success(self._library.stockpot_texts_judge(byref(head), byref(question)))

    def pack(self, to: TextMatrix, threads: int) -> None:
        """Put weights into the panels that a matrix points to, as digits where it has scales."""
        _expect_success(self._library.stockpot_texts_pack(byref(to), threads))


@functools.cache
def text_kernels() -> TextKernels | None:
    """Return this machine's kernels; None where there are none."""
    found = text_library()
    return None if found is None else TextKernels(found)


def _expect_success(code: int) -> None:
    if code:
        raise MemoryError("the kernels could not get the memory they need")
