"""Bottleneck adapters: narrow, bend, widen, added to what a sublayer of a frozen model gives.

They sit on the last matrix of a feed-forward or of attention, in place and under the matrix's own name, and start as no
change. Source: Houlsby et al. 2019, arXiv:1902.00751, §2.1; in MAGMA: Eichenberg et al. 2021, arXiv:2112.05253, §3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.model.attention import SelfAttention
from stockpot.model.layers import FeedForward
from stockpot.model.linear import Linear, multiply

__all__ = [
    "Bottleneck",
    "BottleneckLinear",
    "attach_bottlenecks",
    "bottleneck_weights",
    "detach_bottlenecks",
    "has_bottlenecks",
    "settings_of_bottlenecks",
]

Sublayer = Literal["ffn", "attention"]


class Bottleneck(Settings):
    """A bottleneck adapter: ``y + scale · up · relu(down · y)`` behind a sublayer."""

    reduction: int = Field(4, ge=1, description="how many times narrower than the model it is inside")
    scale: float = Field(1.0, gt=0, description="factor on what it adds")
    at: tuple[Sublayer, ...] = Field(
        ("ffn",), min_length=1, description="behind which sublayers: ffn · attention"
    )


class BottleneckLinear(Linear):
    """The last matrix of a sublayer with an adapter behind it; it keeps its weight, bias and name.

    Attributes:
        settings: what it was attached with.
        is_on: off: the layer computes what it did before.
    """

    def __init__(self, linear: nn.Linear, settings: Bottleneck) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.settings, self.is_on = settings, True
        inner, place = max(1, linear.out_features // settings.reduction), linear.weight.device
        bound = linear.out_features**-0.5
        self.narrow = nn.Parameter(
            torch.empty(inner, linear.out_features, device=place).uniform_(-bound, bound)
        )
        self.narrow_bias = nn.Parameter(torch.zeros(inner, device=place))
        self.wide = nn.Parameter(torch.zeros(linear.out_features, inner, device=place))
        self.wide_bias = nn.Parameter(torch.zeros(linear.out_features, device=place))

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return the matrix's product, changed by the adapter."""
        out = multiply(x, self.weight, self.bias)
        if not self.is_on:
            return out
        inner = F.relu(multiply(out, self.narrow, self.narrow_bias))
        return torch.add(out, multiply(inner, self.wide, self.wide_bias), alpha=self.settings.scale)

    def plain(self) -> Linear:
        """Give the layer without its adapter."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight, layer.bias = self.weight, self.bias
        return layer


def attach_bottlenecks(model: nn.Module, settings: Bottleneck) -> int:
    """Freeze a model and put adapters, which change nothing yet, behind its sublayers; in place.

    Returns:
        how many numbers they have.

    Raises:
        ValueError: if it has some already.
    """
    if has_bottlenecks(model):
        raise ValueError("the model has bottleneck adapters already")
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, FeedForward) and "ffn" in settings.at:
            module.down = BottleneckLinear(module.down, settings)
        if isinstance(module, SelfAttention) and "attention" in settings.at:
            module.out = BottleneckLinear(module.out, settings)
    return sum(value.numel() for value in bottleneck_weights(model).values())


def has_bottlenecks(model: nn.Module) -> bool:
    """Tell whether any sublayer has an adapter."""
    return any(True for _ in _found(model))


def settings_of_bottlenecks(model: nn.Module) -> Bottleneck | None:
    """Give what a model's adapters were attached with; None if it has none."""
    return next((layer.settings for _, layer in _found(model)), None)


def bottleneck_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give the adapters' own parameters: name in the model → parameter."""
    return {
        f"{name}.{own}": getattr(layer, own)
        for name, layer in _found(model)
        for own in ("narrow", "narrow_bias", "wide", "wide_bias")
    }


def detach_bottlenecks(model: nn.Module) -> None:
    """Take all adapters off, which undoes what they did; in place."""
    for name, layer in list(_found(model)):
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, layer.plain())


def _found(model: nn.Module) -> Iterator[tuple[str, BottleneckLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, BottleneckLinear):
            yield name, module
