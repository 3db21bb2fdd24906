"""How weights start.

Decides one rule for every size and depth, so that neither asks for new settings:

* A matrix starts with spread 1 / sqrt(inputs): inputs of size 1 give outputs of size 1.
* What writes to the residual stream starts at zero (``zero_init``), so that a model of any depth starts as
  its embeddings and the first steps see a plain gradient; without it, at 1 / sqrt(2 · layers) of the rule
  above. Where a norm follows the sublayer, the norm's gain takes that part: the gradient of a norm at zero
  would explode.
* Embeddings start with spread 1 / sqrt(dim). A tied output matrix would then score the current token
  sqrt(dim) too high; the gain of the last norm starts at 1 / sqrt(dim) to undo that, so that the first loss
  is ln(vocab) and the file stays a standard one.

Sources: Zhang et al. 2019, arXiv:1901.09321 (zero branches); Radford et al. 2019 (1 / sqrt(2 · layers)).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stockpot.model.norms import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from stockpot.model.layers import Block
    from stockpot.model.stack import Stack
    from stockpot.model.transformer import Transformer

__all__ = ["initialise"]


@torch.no_grad()
def initialise(model: Transformer) -> None:
    """Set all of a new model's weights."""
    config = model.config
    std = config.init_std or config.dim**-0.5
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            _quieten(stack, zero=config.zero_init)
    if model.value_head is not None:
        nn.init.zeros_(model.value_head.out.weight)
    if model.head is not None:
        nn.init.normal_(model.head.weight, std=1 / config.dim)
    elif (norm := _last_norm(model)) is not None:
        norm.weight.fill_(1 / (std * config.dim))


def _quieten(stack: Stack, *, zero: bool) -> None:
    """Scale what writes to the residual stream."""
    factor = 0.0 if zero else 1 / math.sqrt(2 * stack.config.layers)
    if stack.relative is not None:
        nn.init.zeros_(stack.relative.table.weight)
    for layer in stack.layers:
        for writer in _writers(layer, place=stack.config.norm_place):  # type: ignore[arg-type]
            writer.mul_(factor)


def _writers(layer: Block, *, place: str) -> list[Tensor]:
    """Return the weights that decide how much a layer adds."""
    if place in ("output", "sandwich"):
        norms = (layer.attention_post_norm, layer.cross_post_norm, layer.ffn_post_norm)
        return [norm.weight for norm in norms if norm is not None]
    linears = [layer.attention.out, layer.ffn.down]
    if layer.cross is not None:
        linears.append(layer.cross.out)
    return [linear.weight for linear in linears]


def _last_norm(model: Transformer) -> RMSNorm | LayerNorm | None:
    """Find the norm whose output meets the output matrix."""
    if model.masked_head is not None:
        return model.masked_head.norm
    stack = model.decoder or model.encoder
    assert stack is not None
    if stack.norm is not None:
        return stack.norm
    last: Block = stack.layers[-1]  # type: ignore[assignment]
    return last.ffn_post_norm if stack.config.norm_place == "post" else None
