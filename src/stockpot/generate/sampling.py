"""From logits to the next ids: pure functions in one fixed order.

bias and constraints → penalties (repetition, presence, frequency) → temperature → top-k → top-p → min-p →
draw.

Every function takes ``(batch, vocab)`` logits and gives new ones, or ids; each row is treated as if it were
alone, so that a request's text does not depend on its company. A step that no row asks for costs nothing. No
function keeps state: random numbers come from the caller's generators, one a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stockpot.generate.request import Sampling

__all__ = [
    "Filters",
    "draw",
    "keep_min_p",
    "keep_top_k",
    "keep_top_p",
    "likeliest",
    "penalise_counts",
    "penalise_repetition",
    "sample",
    "scale",
]

NEVER = float("-inf")
NUCLEUS_GUESS = 256  # nearly every nucleus is smaller, and sorting a whole large vocabulary costs more
SMALL = 8192  # logits of a vocabulary that is sorted as a whole on a CPU

LEAST_TEMPERATURE = 1e-37  # below, a float32 is 0

_PLAIN = Sampling()  # stands for a greedy row, whose filters are of no account

Logits = Float[Tensor, "batch vocab"]
Column = Float[Tensor, "batch 1"]


@dataclass(frozen=True)
class Filters:
    """The settings of several requests side by side; a field is None when no row asks for it."""

    greedy: Bool[Tensor, "batch 1"] | None
    all_greedy: bool
    temperature: Column | None = None
    top_k: Int[Tensor, "batch 1"] | None = None
    largest_k: int = 0
    top_p: Column | None = None
    min_p: Column | None = None

    @classmethod
    def of(cls, settings: Sequence[Sampling], device: torch.device | str = "cpu") -> Filters:
        """Lay the settings of the rows side by side, with neutral values where a row leaves one out."""
        if all(one.is_greedy for one in settings):
            return cls(greedy=None, all_greedy=True)

        def column(values: list[float], neutral: float, dtype: torch.dtype = torch.float32) -> Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        drawn = [_PLAIN if one.is_greedy else one for one in settings]
        return cls(
            greedy=column([float(one.is_greedy) for one in settings], 0.0, torch.bool),
            all_greedy=False,
            temperature=column([max(one.temperature, LEAST_TEMPERATURE) for one in drawn], 1.0),
            top_k=column([float(one.top_k or 0) for one in drawn], 0.0, torch.int64),
            largest_k=max(one.top_k or 0 for one in drawn),
            top_p=column([1.0 if one.top_p is None else one.top_p for one in drawn], 1.0),
            min_p=column([one.min_p or 0.0 for one in drawn], 0.0),
        )


def penalise_repetition(logits: Logits, seen: Bool[Tensor, "batch vocab"], penalty: Column) -> Logits:
    """Make ids that were seen before less likely.

    A penalty of 1 changes nothing.

    Source: Keskar et al. 2019, arXiv:1909.05858, §4.1; negative logits are multiplied, as everywhere since.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def penalise_counts(logits: Logits, counts: Logits, presence: Column, frequency: Column) -> Logits:
    """Subtract ``presence`` once and ``frequency`` per occurrence from the logits of ids already written."""
    return logits - presence * (counts > 0) - frequency * counts


def scale(logits: Logits, temperature: Column | None) -> Logits:
    """Divide by the temperature; the largest logit becomes 0, so that a tiny temperature cannot overflow."""
    if temperature is None:
        return logits
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Logits, top_k: Int[Tensor, "batch 1"], largest_k: int) -> Logits:
    """Keep each row's k likeliest ids, and those as likely as the last of them; 0 keeps all.

    ``largest_k`` is the largest of ``top_k``, known without asking the device.
    """
    vocab = logits.shape[-1]
    best = logits.topk(min(largest_k, vocab), dim=-1).values  # (batch, k)
    last = best.gather(1, (top_k - 1).clamp(0, best.shape[1] - 1))  # (batch, 1)
    return logits.masked_fill((logits < last) & (top_k > 0), NEVER)


def keep_top_p(logits: Logits, top_p: Column) -> Logits:
    """Keep the fewest likeliest ids that hold probability p together, and those as likely as the last.

    1 keeps all.

    Source: Holtzman et al. 2020, arXiv:1904.09751, eq. 2.
    """
    vocab = logits.shape[-1]
    total = logits.logsumexp(-1, keepdim=True)  # (batch, 1)
    guess = vocab if logits.device.type == "cpu" and vocab <= SMALL else min(NUCLEUS_GUESS, vocab)
    for size in dict.fromkeys((guess, vocab)):
        best = _largest(logits, size)
        shares = (best - total).exp()
        mass = shares.cumsum(-1)
        if size == vocab or bool((mass[:, -1:] >= top_p).logical_or(top_p >= 1).all()):
            break
    before = mass - shares  # probability of everything likelier
    kept = (before < top_p).sum(-1, keepdim=True).clamp(min=1)
    last = best.gather(1, kept - 1)
    return logits.masked_fill((logits < last) & (top_p < 1), NEVER)


def _largest(logits: Logits, count: int) -> Float[Tensor, "batch count"]:
    """Return every row's ``count`` largest logits, falling.

    On a CPU numpy sorts a whole vocabulary in a thirtieth of torch's time.
    """
    if count == logits.shape[-1] and logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    return logits.topk(count, dim=-1).values


def keep_min_p(logits: Logits, min_p: Column) -> Logits:
    """Keep ids with at least ``min_p`` times the probability of the likeliest.

    0 keeps all.

    Source: Nguyen et al. 2024, arXiv:2407.01082, §3.
    """
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + min_p.log(), NEVER)


def draw(logits: Logits, generators: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """Draw one id a row: a uniform number of its own generator, looked up in the cumulative distribution.

    The generators live on the CPU.
    """
    uniform = torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
    # In float64, since float32 sums over a large vocabulary would move borders between ids by more than an
    # id's share.
    mass = logits.softmax(-1).cumsum(-1, dtype=torch.float64)  # (batch, vocab)
    target = uniform.to(mass.device).unsqueeze(1) * mass[:, -1:]
    return torch.searchsorted(mass, target, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def sample(logits: Logits, filters: Filters, generators: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """Choose every row's next id: the likeliest where it is greedy, else drawn from what the filters keep.

    The logits are already biased and penalised.
    """
    if filters.all_greedy:
        return likeliest(logits)
    kept = scale(logits, filters.temperature)
    if filters.top_k is not None:
        kept = keep_top_k(kept, filters.top_k, filters.largest_k)
    if filters.top_p is not None:
        kept = keep_top_p(kept, filters.top_p)
    if filters.min_p is not None:
        kept = keep_min_p(kept, filters.min_p)
    drawn = draw(kept, generators)
    if filters.greedy is None:
        return drawn
    return torch.where(filters.greedy.squeeze(1), likeliest(logits), drawn)


def likeliest(logits: Logits) -> Int[Tensor, " batch"]:
    """Return every row's likeliest id, the first of equal ones.

    On a CPU numpy finds it ten times as fast as torch, and without waking threads that our kernels would then wait for.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)
