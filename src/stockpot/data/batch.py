"""What a training step is fed: the shapes, in one place.

A batch holds tensors that are already aligned: ``labels[b, t]`` is the target *of* ``logits[b, t]``, and −100
is not counted. It knows nothing of text, files, models or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "PreferenceBatch"]

IGNORED = -100
"""The label of a position that is not counted."""


@dataclass
class _Movable:
    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors are on ``device``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | _Movable)
        }
        return replace(self, **moved)


@dataclass
class Batch(_Movable):
    """One forward pass.

    Shapes: ids and labels ``(batch, seq)`` int64; attention_mask ``(batch, seq)``, bool (True = real token)
    or integers (document numbers from 1, 0 = padding); segments ``(batch, seq)`` int64; source
    ``(batch, src)`` int64; source_mask ``(batch, src)`` like attention_mask; pair_labels ``(batch,)`` int64,
    0 = the second sentence follows the first, 1 = it comes from elsewhere.
    """

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_mask: Tensor | None = None
    pair_labels: Tensor | None = None

    def __post_init__(self) -> None:
        self._tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Real tokens that go through the model, those of the source included."""
        if self._tokens is None:
            self._tokens = _real(self.ids, self.attention_mask)
            if self.source is not None:
                self._tokens += _real(self.source, self.source_mask)
        return self._tokens

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy on ``device``; the count of tokens comes along, so that no copy back is needed."""
        moved = super().to(device)
        moved._tokens = self.tokens
        return moved


@dataclass
class PreferenceBatch(_Movable):
    """Pairs of answers to the same prompts; row b of both sides answers prompt b.

    Shapes: margin, reference_chosen and reference_rejected ``(batch,)`` float32; the last two are the
    reference model's log-probabilities (nats) of the two answers.
    """

    chosen: Batch
    rejected: Batch
    margin: Tensor | None = None
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Real tokens of both sides."""
        return self.chosen.tokens + self.rejected.tokens


def _real(ids: Tensor, mask: Tensor | None) -> int:
    return ids.numel() if mask is None else int(torch.count_nonzero(mask))
