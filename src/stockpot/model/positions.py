"""How a model knows where a token stands.

Decides the tables and biases of rotary, sinusoidal, ALiBi and T5-style positions. Tables are computed in
float32, kept per device outside the module's buffers (so that casting a model can never round them), and
grown in powers of two. It does not decide which tokens may see each other: that is ``masks``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.model.config import RopeScaling, StackConfig

__all__ = ["PositionTable", "RelativeBias", "alibi_slopes", "rotary_table", "rotate", "sinusoidal_table"]


class PositionTable:
    """A table with one row a position, built when first needed and kept per device and type.

    ``build`` can be pickled, so that models can be sent to other processes: no function inside a function.
    """

    def __init__(self, build: Callable[[int], Tensor]) -> None:
        self._build = build
        self._kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def upto(self, length: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return at least ``length`` rows on the device of ``like``."""
        key = (like.device, dtype or like.dtype)
        table = self._kept.get(key)
        if table is None or table.shape[0] < length:
            with torch.inference_mode(False), torch.no_grad():  # the table must outlive an inference block
                rows = 1 << max(8, (length - 1).bit_length())
                table = self._build(rows).to(device=key[0], dtype=key[1])
            self._kept[key] = table
        return table

    def rows(
        self, positions: Tensor | tuple[int, int], like: Tensor, length: int, dtype: torch.dtype
    ) -> Tensor:
        """Return the rows of ``positions``: a range, or a tensor of indices that are all below ``length``."""
        table = self.upto(length, like, dtype)
        if isinstance(positions, tuple):
            return table[positions[0] : positions[1]]
        return table[positions]


def rotary_table(config: StackConfig, theta: float, scaling: RopeScaling | None) -> PositionTable:
    """Make the table of rotary factors: ``cos(p·f)`` twice, then ``-sin(p·f)`` and ``sin(p·f)``.

    Shape of the table: ``(positions, 2 * rotary_dim)``. See :func:`rotate` for the layout.

    Source: Su et al. 2021, arXiv:2104.09864, eq. 34, with value i
    paired with value i + rotary_dim / 2.
    """
    return PositionTable(partial(_rotary, config.rotary_dim, theta, scaling))


def _rotary(width: int, theta: float, scaling: RopeScaling | None, length: int) -> Tensor:
    frequencies, size = _frequencies(width, theta, scaling)
    angles = _arange(length)[:, None] * frequencies
    cos, sin = angles.cos() * size, angles.sin() * size
    return torch.cat((cos, cos, -sin, sin), dim=-1)


def rotate(x: Float[Tensor, "... width"], table: Float[Tensor, "... double"]) -> Float[Tensor, "... width"]:
    """Rotate the first ``rotary_dim`` values of each head by the angles of their positions.

    Shapes: ``x`` (batch, seq, heads, head_dim); ``table`` (batch or 1, seq, 1, 2 * rotary_dim).
    """
    size = table.shape[-1] // 2
    cos, sin = table[..., :size], table[..., size:]
    turned = x if size == x.shape[-1] else x[..., :size]
    # (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin); the swap is a roll, the signs live in the table
    turned = torch.addcmul(turned * cos, turned.roll(size // 2, -1), sin)
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), dim=-1)


def _arange(*limits: int) -> Tensor:
    """Count in float32 on the CPU, so that every device gets the same table."""
    return torch.arange(*limits, dtype=torch.float32, device="cpu")


def _frequencies(size: int, theta: float, scaling: RopeScaling | None) -> tuple[Tensor, float]:
    """Return the frequencies ``(rotary_dim / 2,)`` in radians per token, and the factor on cos and sin."""
    plain = theta ** (-_arange(0, size, 2) / size)
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, size, theta, scaling)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Stretch slow frequencies, keep fast ones, and blend between. Source: the Llama 3.1 release."""
    turns = scaling.original_context * plain / (2 * math.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    keep = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return keep * plain + (1 - keep) * plain / scaling.factor


def _yarn(plain: Tensor, size: int, theta: float, scaling: RopeScaling) -> tuple[Tensor, float]:
    """Blend by the turns within the old context. Source: Peng et al. 2023, arXiv:2309.00071, §3."""

    def index_at(turns: float) -> float:
        return size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(index_at(scaling.beta_fast)), 0)
    high = min(math.ceil(index_at(scaling.beta_slow)), size - 1)
    stretch = ((_arange(size // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    automatic = 0.1 * math.log(scaling.factor) + 1.0
    factor = automatic if scaling.attention_factor is None else scaling.attention_factor
    return plain * (1 - stretch) + plain / scaling.factor * stretch, factor


def sinusoidal_table(dim: int) -> PositionTable:
    """Make the table of fixed waves, sines in the even places and cosines in the odd ones.

    Source: Vaswani et al. 2017, arXiv:1706.03762, §3.5.
    """
    return PositionTable(partial(_waves, dim))


def _waves(dim: int, length: int) -> Tensor:
    frequencies = 10_000.0 ** (-_arange(0, dim, 2) / dim)
    angles = _arange(length)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def alibi_slopes(heads: int) -> Float[Tensor, " heads"]:
    """Return the slope of each head's distance penalty.

    Source: Press et al. 2021, arXiv:2108.12409, §3; for head counts that are no power of two, the
    authors' code adds every second slope of the next power.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(heads - power)]
    return torch.tensor(slopes, device="cpu")


class RelativeBias(nn.Module):
    """One learned bias per head and distance bucket, added to attention scores and shared by all layers.

    Source: Raffel et al. 2019, arXiv:1910.10683, §2.1.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.relative_buckets, config.heads)
        self.both_ways = config.attends == "bidirectional"
        self.distance = config.relative_distance

    def forward(self, distance: Int[Tensor, "rows seq keys"]) -> Float[Tensor, "rows heads seq keys"]:
        """Return the bias for ``distance`` = position of the key minus position of the query."""
        bias: Tensor = self.table(self.bucket(distance))
        return bias.permute(0, 3, 1, 2)

    def bucket(self, distance: Int[Tensor, "rows seq keys"]) -> Int[Tensor, "rows seq keys"]:
        """Map distances to buckets: exact when near, logarithmic when far, one half for each direction."""
        buckets, offset = self.table.num_embeddings, torch.zeros_like(distance)
        if self.both_ways:
            buckets //= 2
            offset = (distance > 0) * buckets
            away = distance.abs()
        else:
            away = (-distance).clamp(min=0)
        near = buckets // 2
        growth = torch.log(away.clamp(min=1).float() / near) / math.log(self.distance / near)
        far = (near + (growth * (buckets - near)).long()).clamp(max=buckets - 1)
        return offset + torch.where(away < near, away, far)
