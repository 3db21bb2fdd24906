"""How a model's layers compute while they are trained: kept or computed again, compiled, in which types.

None of it changes what is learned, except by rounding.
"""

from __future__ import annotations

import torch
from torch import nn

from stockpot.errors import ConfigError
from stockpot.model import float8
from stockpot.model.layers import Block
from stockpot.model.linear import Linear
from stockpot.model.stack import Stack

__all__ = ["set_up"]

KINDS = 64  # of compiled layers in one process; torch leaves more of them as they are


def set_up(
    model: nn.Module,
    device: torch.device,
    *,
    recompute: bool = False,
    flex: bool = False,
    narrow_states: bool = False,
    fp8: bool = False,
    compiles: bool = False,
) -> None:
    """Tell the stacks of a model how to compute; the settings are `LoopConfig`'s.

    Raises:
        ConfigError: if the device has no products of 8-bit floats and they are asked for.
    """
    if fp8 and not float8.are_fast(device):
        raise ConfigError("fp8 needs a CUDA device of compute capability 8.9 or more.", "Leave fp8 out.")
    for stack in (one for one in model.modules() if isinstance(one, Stack)):
        stack.recompute, stack.flex, stack.narrow_states = recompute, flex, narrow_states
        for module in stack.modules():
            if isinstance(module, Linear):
                module.eight_bits = fp8
    if compiles:
        _compile_layers(model)


def _compile_layers(model: nn.Module) -> None:
    """Compile each layer by itself: equal layers share one compilation, which takes seconds, not minutes."""
    limits = torch._dynamo.config  # torch's own is 8, for all models of a process: a sweep has more
    limits.recompile_limit = max(limits.recompile_limit, KINDS)
    for module in model.modules():
        if isinstance(module, Block):
            module.compile()
