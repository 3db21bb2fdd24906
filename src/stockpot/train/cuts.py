"""How a layer is cut for processes that compute it side by side: what each has a part of, and what cannot be cut.

Facts about modules only: `tensor_parallel` cuts by them, and plans count by them. It knows no process and no device.

Source: Shoeybi et al. 2019, arXiv:1909.08053, §3.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from stockpot.model.adapters import AdaptedLinear
from stockpot.model.attention import CrossAttention, SelfAttention
from stockpot.model.bottleneck import BottleneckLinear
from stockpot.model.layers import Block, FeedForward
from stockpot.model.stack import Stack

__all__ = ["cuts", "faults", "into", "out_of"]

INTO = ("attention.qkv", "ffn.up", "cross.q", "cross.kv")
OUT_OF = ("attention.out", "ffn.down", "cross.out")


def into(block: Block) -> tuple[str, ...]:
    """Name the matrices of a layer whose outputs are cut: each process makes some heads and some of the width."""
    return tuple(name for name in INTO if block.cross is not None or not name.startswith("cross."))


def out_of(block: Block) -> tuple[str, ...]:
    """Name the matrices of a layer whose inputs are cut: what the processes make of their parts is summed."""
    return tuple(name for name in OUT_OF if block.cross is not None or not name.startswith("cross."))


def cuts(model: nn.Module) -> dict[str, int]:
    """Tell which parameters each process computes with a part of: name → the dimension that is cut."""
    found: dict[str, int] = {}
    for name, block in model.named_modules():
        if not isinstance(block, Block):
            continue
        for part in into(block):
            found[f"{name}.{part}.weight"] = 0
            if getattr(block.get_submodule(part), "bias", None) is not None:
                found[f"{name}.{part}.bias"] = 0
        found |= {f"{name}.{part}.weight": 1 for part in out_of(block)}
    return found


def faults(model: nn.Module, count: int) -> Iterator[str]:
    """Name what keeps a model's layers from being split over so many processes."""
    for module in model.modules():
        if isinstance(module, AdaptedLinear | BottleneckLinear):
            yield "this model has adapters"
        if isinstance(module, Stack) and module.config.position in ("alibi", "relative"):
            yield f"position = {module.config.position!r} scores each head by itself"
        if isinstance(module, SelfAttention | CrossAttention):
            if module.heads % count or module.kv_heads % count:
                yield f"{module.heads} heads, {module.kv_heads} of them with keys, do not divide by that"
            if module.qk_norm == "full":
                yield "qk_norm = 'full' needs all heads in one place"
        if isinstance(module, SelfAttention) and module.learned is not None:
            yield "it has learned keys and values"
        if isinstance(module, FeedForward) and module.down.in_features % count:
            yield f"the feed-forward's width {module.down.in_features} does not divide by that"
