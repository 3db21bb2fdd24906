"""Models whose weight matrices are whole numbers of 8 or 4 bits, for fast inference on CPUs.

Decides which weights are rounded (all matrices; 4 bits leave embeddings and output matrix at 8, where rounding hurts
most) and which way a call goes: through our kernels as a whole where they know the model's shape, else layer by layer.
Such a model cannot be trained. Norms, biases and positions stay as they are.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.errors import ConfigError
from stockpot.model.adapters import frozen_bytes, has_adapters, merge
from stockpot.model.cache import KVCache
from stockpot.model.grids import Matrix, NativeMatrix, TorchMatrix, choose_grid
from stockpot.model.layers import FeedForward
from stockpot.model.linear import Linear
from stockpot.model.lookup import Embedding
from stockpot.model.native_decoder import GoingOn, NativeDecoder
from stockpot.model.transformer import Output, Transformer
from stockpot.native.build import reason
from stockpot.native.calls import Kernels, kernels

__all__ = ["QuantizedEmbedding", "QuantizedLinear", "QuantizedTransformer", "quantize", "rounded_names"]

TABLE_BITS = 8


class QuantizedLinear(nn.Module):
    """A linear layer with a quantised matrix."""

    def __init__(self, matrix: Matrix, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias.detach().float(), requires_grad=False)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return ``(…, outputs)`` for ``(…, inputs)``."""
        out = self.matrix.multiply(x)
        return out if self.bias is None else out + self.bias


class QuantizedEmbedding(nn.Module):
    """Token vectors, looked up in a quantised matrix."""

    def __init__(self, matrix: Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... dim"]:
        """Return the vector of each id."""
        return self.matrix.rows(ids)


class QuantizedTransformer(Transformer):
    """A Transformer with quantised matrices; made by :func:`quantize`.

    Attributes:
        bits: 8 or 4.
        kernel: what multiplies: the instructions our kernels were made for, or ``"torch"``.
    """

    bits: int
    kernel: str
    _native: NativeDecoder | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device("cpu")

    @property
    def output_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits ``(vocab, dim)``, as floats."""
        return self._output.rows(torch.arange(self.config.vocab_size))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that are read to write one token."""
        matrices = [module.matrix for module in self.modules() if isinstance(module, QuantizedLinear)]
        tied = self._output.nbytes if self.head is None else 0
        return sum(matrix.nbytes for matrix in matrices) + tied

    @property
    def _output(self) -> Matrix:
        module: Any = self.embed if self.head is None else self.head
        matrix: Matrix = module.matrix
        return matrix

    def forward(
        self,
        ids: Int[Tensor, "batch seq"],
        *,
        attention_mask: Tensor | None = None,
        cache: KVCache | None = None,
        last: int | None = None,
        **more: Any,
    ) -> Output:
        """Run the model; arguments and result as in :meth:`Transformer.forward`."""
        fast, is_plain = (
            self._native,
            self._seen is None and not any(one is not None for one in more.values()),
        )
        has_documents = cache is None and attention_mask is not None and attention_mask.dtype != torch.bool
        if fast is None or not is_plain or has_documents or not fast.takes(cache):
            return super().forward(ids, attention_mask=attention_mask, cache=cache, last=last, **more)
        real = None if attention_mask is None else attention_mask != 0
        wanted = last if self.config.predicts else 0
        hidden, logits = fast.run(ids, real, cache or self.new_cache(*ids.shape), wanted)
        return Output(self._finish(logits), hidden)

    def go_on(
        self, ids: Int[Tensor, "batch 1"], cache: KVCache, going: GoingOn
    ) -> Int[Tensor, "steps batch"] | None:
        """Let each row go on with its likeliest ids, several in one call; None where only single calls are possible."""
        config, fast = self.config, self._native
        is_plain = config.logit_scale is None and config.logit_softcap is None and self.logit_bias is None
        if fast is None or not is_plain or self._seen is not None or not fast.takes(cache):
            return None
        return fast.write(ids, cache, going)

    def logits(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... vocab"]:
        """Score every vocabulary item for each hidden state."""
        if self.masked_head is not None:
            hidden = self.masked_head(hidden)
        return self._finish(self._output.multiply(hidden))

    def _finish(self, scores: Tensor) -> Tensor:
        config = self.config
        if config.logit_scale is not None:
            scores = scores * config.logit_scale
        if self.logit_bias is not None:
            scores = scores + self.logit_bias
        cap = config.logit_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def new_cache(self, batch: int, capacity: int, *, dtype: torch.dtype | None = None) -> KVCache:
        """Make an empty cache; our kernels keep halves."""
        usual = torch.float32 if self._native is None else torch.float16
        return super().new_cache(batch, capacity, dtype=dtype or usual)


@torch.no_grad()
def quantize(
    model: Transformer, bits: int, *, weight_of: Callable[[str], Tensor] | None = None
) -> QuantizedTransformer:
    """Turn a model on the CPU into one with weights of 8 or 4 bits; the given model must not be used afterwards.

    LoRA adapters are merged before it is rounded.

    Args:
        model: what is rounded.
        bits: 8 or 4.
        weight_of: gives the weight of each name in :func:`rounded_names`, only until the next is asked for, so that they are
            never there all at once; None: the model has them.

    Raises:
        ValueError: if the model is elsewhere than on the CPU, or quantised already.
        ConfigError: if it has something on its matrices that cannot be merged: bottleneck adapters, a soft prompt, pictures.
    """
    is_here = weight_of is not None or model.device.type == "cpu"
    if isinstance(model, QuantizedTransformer) or not is_here:
        raise ValueError("only a model with float weights on the CPU can be quantised")
    if weight_of is None:
        if has_adapters(model) or frozen_bytes(model):
            merge(model)
        _refuse_additions(model)
    found = _sound_kernels()
    if found is None:
        why = reason() or "what the C++ compiler made computes wrongly"
        warnings.warn(f"Quantised models run on torch's own kernels, more slowly: {why}.", stacklevel=2)
    made = object.__new__(QuantizedTransformer)
    made.__dict__.update(model.__dict__)  # the parts themselves, which are then replaced one by one
    made.bits, made.kernel = bits, "torch" if found is None else found.name
    _replace_parts(made, bits, found, weight_of)
    made.float().requires_grad_(False).eval()
    fits = found is not None and NativeDecoder.fits(made.config)
    made._native = NativeDecoder(made, found) if fits and found is not None else None
    return made


def _refuse_additions(model: Transformer) -> None:
    """Refuse a model of which a part would be lost when its matrix alone is rounded."""
    for owner, name, path in _rounded(model):
        kind = type(getattr(owner, name))
        if kind not in (Linear, Embedding, nn.Embedding):
            raise ConfigError(
                f"{path} is a {kind.__name__}: what it adds to its matrix cannot be rounded with it.",
                "Use the model with float weights, or round the model that it was trained on.",
            )


@functools.cache
def _sound_kernels() -> Kernels | None:
    """Return this machine's kernels if they give the products they should."""
    found = kernels()
    if found is None:
        return None
    weight = torch.linspace(-1, 1, 48 * 192).sin().view(48, 192)
    rows = torch.linspace(-9, 9, 5 * 192).cos().view(5, 192)
    for bits in (8, 4):
        grid = choose_grid(weight, bits)
        wanted = rows @ grid.weight().T
        for count in (1, 5):
            got = NativeMatrix(grid, found).multiply(rows[:count])
            if not bool(((got - wanted[:count]).abs() < 0.02 * wanted.abs().max()).all()):
                return None
    return found


def rounded_names(model: Transformer) -> list[str]:
    """Return the names of the weights that become digits."""
    return [f"{path}.weight" for _, _, path in _rounded(model)]


def _rounded(model: nn.Module, path: str = "") -> Iterator[tuple[nn.Module, str, str]]:
    """Yield the parts whose matrix becomes digits: what holds them, their names in it, their names in the model."""
    for name, child in list(model.named_children()):
        if (isinstance(child, nn.Embedding) and name == "embed") or isinstance(child, Linear):
            yield model, name, path + name
        else:
            yield from _rounded(child, f"{path}{name}.")


def _replace_parts(
    model: nn.Module, bits: int, found: Kernels | None, weight_of: Callable[[str], Tensor] | None
) -> None:
    for owner, name, path in _rounded(model):
        child: Any = getattr(owner, name)
        weight = child.weight if weight_of is None else weight_of(f"{path}.weight")
        if isinstance(child, nn.Embedding):
            setattr(owner, name, QuantizedEmbedding(_matrix(weight, TABLE_BITS, found)))
            continue
        is_paired = isinstance(owner, FeedForward) and owner.is_gated and name == "up"
        is_paired = is_paired and child.out_features % 32 == 0
        matrix = _matrix(weight, TABLE_BITS if name == "head" else bits, found, is_paired=is_paired)
        setattr(owner, name, QuantizedLinear(matrix, child.bias))


def _matrix(weight: Tensor, bits: int, found: Kernels | None, *, is_paired: bool = False) -> Matrix:
    if found is None:
        return TorchMatrix(choose_grid(weight.detach(), bits))
    return NativeMatrix.of(weight, bits, found, is_paired=is_paired)
