"""The two ways of keeping a vector's size in hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model import compiled
from stockpot.model.config import StackConfig
from stockpot.model.elementwise import rms_norm
from stockpot.model.kernels import trains_here, trains_on_gpu

__all__ = ["LayerNorm", "RMSNorm", "joined", "make_norm", "normalise"]

States = Float[Tensor, "... dim"]


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale.

    Args:
        dim: numbers of a vector.
        eps: added to the mean square.
        feeds_product: only a matrix product reads the result, so it may have the type of products at once.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """

    def __init__(self, dim: int, eps: float, *, feeds_product: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps, self.feeds_product = eps, feeds_product

    def forward(self, x: States) -> States:
        """Return ``x`` normalised over its last dimension."""
        if trains_here(x) and compiled.can_norm(x, self.weight):
            return compiled.norm(x, self.weight, None, self.eps, centred=False, dtype=_type_of(self, x))
        return normalise(x, self.weight.to(x.dtype), self.eps)


def normalise(x: States, weight: Float[Tensor, " dim"] | None, eps: float) -> States:
    """Divide each vector by its root mean square, then scale where there is a weight."""
    if trains_here(x):
        return rms_norm(x, weight, eps)
    return F.rms_norm(x, x.shape[-1:], weight, eps)


class LayerNorm(nn.Module):
    """Subtract the mean, divide by the deviation, scale and shift; arguments as for :class:`RMSNorm`.

    Source: Ba et al. 2016, arXiv:1607.06450.
    """

    def __init__(self, dim: int, eps: float, *, has_bias: bool, feeds_product: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if has_bias else None
        self.eps, self.feeds_product = eps, feeds_product

    def forward(self, x: States) -> States:
        """Return ``x`` normalised over its last dimension."""
        if trains_here(x) and compiled.can_norm(x, self.weight):
            return compiled.norm(x, self.weight, self.bias, self.eps, centred=True, dtype=_type_of(self, x))
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def joined(x: States, change: States | None, norm: nn.Module | None) -> tuple[States, States]:
    """Add a sublayer's change to the stream; return the sum and, normalised, what the next sublayer's product reads.

    In training on a GPU both slopes are made in one pass over memory, with those of the gains.
    """
    if isinstance(norm, RMSNorm) and trains_on_gpu(x) and _is_plain(norm.weight):
        from stockpot.native.triton_norms import LONGEST, added_norm

        if x.shape[-1] <= LONGEST and x.dtype != torch.float64:
            return added_norm(x, change, norm.weight, norm.eps, compiled.product_dtype(x))
    total = x if change is None else x + change
    return total, total if norm is None else norm(total)


def _is_plain(weight: Tensor) -> bool:
    """Tell whether a weight is held here in whole, not as a part among processes."""
    return type(weight) is nn.Parameter


def _type_of(norm: RMSNorm | LayerNorm, x: Tensor) -> torch.dtype:
    return compiled.product_dtype(x) if norm.feeds_product else x.dtype


def make_norm(config: StackConfig, *, feeds_product: bool = False) -> RMSNorm | LayerNorm:
    """Make the norm over ``dim`` that a stack asks for."""
    if config.norm == "rms":
        return RMSNorm(config.dim, config.norm_eps, feeds_product=feeds_product)
    return LayerNorm(config.dim, config.norm_eps, has_bias=config.norm_bias, feeds_product=feeds_product)
