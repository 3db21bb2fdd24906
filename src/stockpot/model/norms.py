"""The two ways of keeping a vector's size in hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model import compiled
from stockpot.model.config import StackConfig
from stockpot.model.elementwise import rms_norm
from stockpot.model.kernels import trains_here

__all__ = ["LayerNorm", "RMSNorm", "make_norm", "normalise"]

States = Float[Tensor, "... dim"]


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: States) -> States:
        """Return ``x`` normalised over its last dimension."""
        if trains_here(x) and compiled.suits(x, self.weight) and self.weight.dtype == torch.float32:
            return compiled.norm(x, self.weight, None, self.eps, centred=False)
        return normalise(x, self.weight.to(x.dtype), self.eps)


def normalise(x: States, weight: Float[Tensor, " dim"] | None, eps: float) -> States:
    """Divide each vector by its root mean square, then scale where there is a weight."""
    if trains_here(x):
        return rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class LayerNorm(nn.Module):
    """Subtract the mean, divide by the deviation, scale and shift.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, dim: int, eps: float, *, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if has_bias else None
        self.eps = eps

    def forward(self, x: States) -> States:
        """Return ``x`` normalised over its last dimension."""
        if trains_here(x) and compiled.suits(x, self.weight) and self.weight.dtype == torch.float32:
            return compiled.norm(x, self.weight, self.bias, self.eps, centred=True)
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(config: StackConfig) -> RMSNorm | LayerNorm:
    """Make the norm over ``dim`` that a stack asks for."""
    if config.norm == "rms":
        return RMSNorm(config.dim, config.norm_eps)
    return LayerNorm(config.dim, config.norm_eps, has_bias=config.norm_bias)
