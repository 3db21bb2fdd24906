"""What texts mean: one vector each, from a model's hidden states.

Decides which way the texts go: all at once through our kernels where they know the encoder, else in padded batches of like
lengths. Both give the same vectors, but for rounding: a model in float32 is multiplied in float32 both ways; one whose weights
are rounded already (int8, bfloat16 …) goes through digits of 16 bits, which lose less than was lost before.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stockpot.bundle import Bundle, Embedding
from stockpot.errors import GenerationError
from stockpot.generate.inputs import batches_by_length, pad
from stockpot.generate.prefixes import weights_state
from stockpot.model.config import encoder
from stockpot.model.heads import last_real, mean_real
from stockpot.model.native_encoder import NativeEncoder
from stockpot.model.quantized import QuantizedTransformer
from stockpot.model.transformer import Transformer
from stockpot.native.build import TEXTS, is_compiled
from stockpot.native.texts import TextKernels, text_kernels

__all__ = ["Packed", "Pooling", "embed_texts"]

Pooling: TypeAlias = Literal["mean", "cls", "last"]

BATCH_TOKENS = 4096
CALL_TOKENS = 16_384  # that go through our kernels in one call: what their hidden states need is 1,536 bytes each in MiniLM
WORTH_COMPILING = 10_000  # tokens of a call from which the kernels are compiled, if they have never been
APART = 5e-3  # largest distance of a sound kernel's hidden states, whose size is about 1
SMALL: dict[str, Any] = {  # what the kernels are tried on
    "layers": 2, "dim": 64, "heads": 2, "vocab_size": 40, "context": 40, "zero_init": False, "position": "learned",
    "norm": "layer", "norm_bias": True, "norm_place": "post", "embedding_norm": True, "final_norm": False, "qk_norm": None,
    "qkv_bias": True, "out_bias": True, "ffn": "gelu", "ffn_bias": True,
}  # fmt: skip


class Packed:
    """An encoder's weights as our kernels read them, for as long as they stay what they are."""

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._state: tuple[object, ...] | None = None
        self._encoder: NativeEncoder | None = None

    def encoder(self, lengths: Sequence[int]) -> NativeEncoder | None:
        """Return what runs texts of such lengths; None: they go the usual way."""
        if not NativeEncoder.fits(self._model):
            return None
        if not is_compiled(TEXTS) and sum(lengths) < WORTH_COMPILING:
            return None
        kernels, in_pairs = _sound_kernels(), _is_rounded(self._model)
        if kernels is None or not kernels.is_fast or (in_pairs and not kernels.has_pairs):
            return None
        state = weights_state(self._model)
        if self._encoder is None or state != self._state:
            self._encoder, self._state = NativeEncoder(self._model, kernels, in_pairs=in_pairs), state
        return self._encoder


def _is_rounded(model: Transformer) -> bool:
    """Tell whether weights have fewer digits than float32 has."""
    return isinstance(model, QuantizedTransformer) or model.embed.weight.dtype != torch.float32


@functools.cache
def _sound_kernels() -> TextKernels | None:
    """Return this machine's kernels if they compute what the usual way does."""
    found = text_kernels()
    if found is None:
        return None
    with torch.random.fork_rng(devices=[]):  # the caller's dice are not touched
        model = Transformer(encoder(**SMALL)).eval()
    rows = [list(range(length)) for length in (1, 7, 40)]
    wanted = torch.cat([model(torch.tensor([row]), last=0).hidden[0] for row in rows])
    for in_pairs in (False, True)[: 1 + found.has_pairs]:
        hidden, _ = NativeEncoder(model, found, in_pairs=in_pairs).run(rows)
        if not bool(((hidden - wanted).abs() < APART).all()):
            what = "what the C++ compiler made computes wrongly"
            warnings.warn(f"Encoders run on torch's own kernels, more slowly: {what}.", stacklevel=2)
            return None
    return found


def embed_texts(bundle: Bundle, texts: Sequence[str], pool: Pooling | None, packed: Packed) -> Tensor:
    """Turn texts into vectors ``(batch, dim)``; see :meth:`stockpot.Engine.embed`."""
    if isinstance(texts, str):
        raise TypeError("embed takes a list of texts; put the text into a list")
    config = bundle.model.config
    own = bundle.embedding or Embedding()
    context = min((config.encoder or config.main).context, own.most_tokens or sys.maxsize)
    rows = [bundle.encode(own.prompt + text, most=context) for text in texts]
    for number, row in enumerate(rows):
        if not row:
            raise GenerationError(f"Text {number} is empty and has no vector.", "Leave empty texts out.")
    vectors = torch.empty(len(rows), config.dim)
    if rows:
        fast = packed.encoder([len(row) for row in rows])
        found = (
            _in_batches(bundle, rows, pool or own.pool)
            if fast is None
            else _at_once(fast, rows, pool or own.pool)
        )
        for batch, pooled in found:
            vectors[batch] = pooled
    return F.normalize(vectors) if own.normalise else vectors


def _in_batches(
    bundle: Bundle, rows: Sequence[Sequence[int]], pool: Pooling
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield which texts were run, and their vectors."""
    model = bundle.model
    for batch in batches_by_length([len(row) for row in rows], BATCH_TOKENS):
        ids, real = pad([rows[index] for index in batch], model.device)
        if model.config.shape == "encoder_decoder":
            hidden = model.encode(ids, real)
        else:
            hidden = model(ids, attention_mask=real, last=0).hidden
        yield batch, _pooled(hidden, real, pool).float().cpu()


def _at_once(
    fast: NativeEncoder, rows: Sequence[Sequence[int]], pool: Pooling
) -> Iterator[tuple[list[int], Tensor]]:
    """Do the same through our kernels."""
    for batch in batches_by_length([len(row) for row in rows], CALL_TOKENS):
        hidden, lengths = fast.run([rows[index] for index in batch])
        yield batch, _pooled_apart(hidden, lengths, pool)


def _pooled(hidden: Tensor, real: Tensor | None, pool: Pooling) -> Tensor:
    if pool == "cls":
        return hidden[:, 0]
    if pool == "last":
        return last_real(hidden, real)
    if pool == "mean":
        return mean_real(hidden, real)
    raise ValueError(f"pool is {pool!r}; expected mean, cls or last")


def _pooled_apart(hidden: Float[Tensor, "tokens dim"], lengths: Tensor, pool: Pooling) -> Tensor:
    """Pool texts that stand one behind the other."""
    ends = lengths.cumsum(0)
    if pool == "cls":
        return hidden[ends - lengths]
    if pool == "last":
        return hidden[ends - 1]
    if pool == "mean":
        return torch.segment_reduce(hidden, "mean", lengths=lengths, axis=0)
    raise ValueError(f"pool is {pool!r}; expected mean, cls or last")
