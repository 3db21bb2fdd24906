"""Whether a written token's layers can go through our kernels for GPUs, and what these have to know of each layer.

In 16 bits, for the usual kind of decoder: norms before, SwiGLU, no biases, whole heads rotated or none. For one answer all of
a layer is ours, for several attention only, between two halves that torch compiles. Everything else is torch's.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stockpot.model.cache import SlotCache
from stockpot.model.kernels import HAS_TRITON
from stockpot.model.layers import Block
from stockpot.model.linear import Linear
from stockpot.model.norms import RMSNorm

if TYPE_CHECKING:
    from stockpot.model.config import StackConfig
    from stockpot.native.triton_token import TokenLayer, TokenLayers

__all__ = ["Together", "token_layers"]

Halves = tuple[Callable[..., Tensor], Callable[..., Tensor]]

LARGEST = 12_288  # inputs of a product of one row
EARLY = (9, 0)  # compute capability from which a kernel can be launched while the one before runs


def token_layers(config: StackConfig, layers: nn.ModuleList, x: Tensor) -> TokenLayers | Together | None:
    """Return what runs the layers for states ``(rows, 1, dim)``, or None where our kernels do not know them."""
    if x.shape[1] != 1 or not _runs(x) or not is_known(config, layers, x.dtype):
        return None
    from stockpot.native.triton_token import TokenLayers

    found = [told(layer, window) for layer, window in zip(layers, config.windows, strict=True)]
    if x.shape[0] > 1:
        return Together(layers, found, compiled_halves() if x.is_cuda else (_before, _after))
    is_early = x.is_cuda and torch.cuda.get_device_capability(x.device) >= EARLY
    return TokenLayers(found, early=is_early)


class Together:
    """For several rows: products in torch's kernels, attention in ours.

    Attributes:
        halves: what comes before attention, and what comes behind it.
    """

    def __init__(self, layers: nn.ModuleList, found: Sequence[TokenLayer], halves: Halves) -> None:
        self.layers, self.found, self.halves = layers, found, halves

    def run(self, number: int, x: Tensor, store: SlotCache, rotary: Tensor | None) -> Tensor:
        """Return the states ``(rows, 1, dim)`` after a layer."""
        from stockpot.native.triton_token import attend

        before, after = self.halves
        mixed = attend(before(self.layers[number], x), self.found[number], store, rotary)
        return after(self.layers[number], x, mixed)


def _before(layer: Any, x: Tensor) -> Tensor:
    flat: Tensor = layer.attention.qkv(layer.attention_norm(x))
    return flat


def _after(layer: Any, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + layer.attention.out(mixed)
    out: Tensor = x + layer.ffn(layer.ffn_norm(x))
    return out


@functools.cache
def compiled_halves(**options: bool) -> Halves:
    """Let torch compile what comes before and behind attention, once for all layers of a shape."""
    how: dict[str, Any] = {"dynamic": False, "options": options or None}
    return torch.compile(_before, **how), torch.compile(_after, **how)


def told(layer: Any, window: int | None) -> TokenLayer:
    """Return what the kernels have to know of a layer."""
    from stockpot.native.triton_token import TokenLayer

    attention, ffn = layer.attention, layer.ffn
    normed = attention.qk_norm == "head"
    return TokenLayer(
        qkv=attention.qkv.weight,
        out=attention.out.weight,
        up=ffn.up.weight,
        down=ffn.down.weight,
        first_gain=layer.attention_norm.weight,
        second_gain=layer.ffn_norm.weight,
        q_gain=attention.q_norm.weight if normed else None,
        k_gain=attention.k_norm.weight if normed else None,
        eps=(layer.ffn_norm.eps, attention.q_norm.eps if normed else 0.0),
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        scale=attention.scale,
        window=window or 0,
    )


def _runs(x: Tensor) -> bool:
    """Tell whether Triton can build kernels for where ``x`` is (it needs a C compiler), and they compute rightly."""
    if not HAS_TRITON or not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return False
    return _computes_rightly(x.device)


@functools.cache
def _computes_rightly(device: torch.device) -> bool:
    numbers = torch.arange(96, device=device)  # small enough that every sum of them is exact
    x, weight = (numbers[:32] % 2).bfloat16().view(1, 1, 32), (numbers % 4).bfloat16().view(3, 32)
    try:
        from stockpot.native.triton_token import Choice, multiply_added  # older Tritons lack what it imports

        found = multiply_added(x, weight, x[..., :3], Choice(2, 2))
    except Exception:  # noqa: BLE001 - whatever Triton cannot do here, torch can
        return False
    return torch.equal(found, F.linear(x, weight) + x[..., :3])


def is_known(config: StackConfig, layers: nn.ModuleList, dtype: torch.dtype) -> bool:
    """Tell whether all layers are of the kind that the kernels know, with weights of type ``dtype``."""
    width = config.head_width
    return (
        dtype in (torch.bfloat16, torch.float16)
        and max(config.dim, config.ffn_width, config.heads * width) <= LARGEST
        and width & (width - 1) == 0
        and config.attends == "causal"
        and config.position not in ("alibi", "relative")
        and (config.position != "rope" or config.rotary_dim == width)
        and all(_is_plain(layer, dtype) for layer in layers)
    )


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:
    if type(layer) is not Block or layer.parallel or layer.cross is not None:
        return False
    attention, ffn = layer.attention, layer.ffn
    products = (attention.qkv, attention.out, ffn.up, ffn.down)
    norms = (layer.attention_norm, layer.ffn_norm)
    return (
        all(type(one) is Linear for one in products)
        and not any("bias" in dict(one.named_parameters()) or one.weight.dtype != dtype for one in products)
        and all(one.weight.is_contiguous() for one in products)
        and all(type(one) is RMSNorm for one in norms)
        and layer.attention_post_norm is None
        and layer.ffn_post_norm is None
        and attention.qk_norm in (None, "head")
        and attention.softcap is None
        and attention.learned is None
        and ffn.is_gated
        and ffn.activation is F.silu
    )
