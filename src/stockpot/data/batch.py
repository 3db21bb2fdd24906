"""What a training step is fed: the shapes, in one place.

A batch holds tensors that are already aligned: ``labels[b, t]`` is the target *of* ``logits[b, t]``, and −100
is not counted. It knows nothing of text, files, models or losses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["IGNORED", "Batch", "ImageBatch", "PreferenceBatch", "RolloutBatch"]

IGNORED = -100
"""The label of a position that is not counted."""


@dataclass
class _Movable:
    def to(self, device: torch.device | str) -> Self:
        """Return a copy whose tensors are on ``device``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: _moved(value, device) for name, value in values.items()}
        return replace(self, **moved)


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        is_pinned = value.device.type == "cpu" and torch.cuda.is_available() and value.is_pinned()
        return value.to(device, non_blocking=is_pinned)
    return value.to(device) if isinstance(value, _Movable) else value


@dataclass
class Batch(_Movable):
    """One forward pass.

    Shapes: ids and labels ``(batch, seq)`` int64; attention_mask ``(batch, seq)``, bool (True = real token)
    or integers (document numbers from 1, 0 = padding); segments ``(batch, seq)`` int64; source
    ``(batch, src)`` int64; source_mask ``(batch, src)`` like attention_mask; pair_labels ``(batch,)`` int64,
    0 = the second sentence follows the first, 1 = it comes from elsewhere; branches ``(batch, seq)`` int64, 0 = a text
    that several answers follow, then 1, 2 … for the answers; answers ``(batch, seq)`` int64, the number of the answer a
    token belongs to, counted through the batch, −1 = none.
    """

    ids: Tensor
    labels: Tensor
    attention_mask: Tensor | None = None
    segments: Tensor | None = None
    source: Tensor | None = None
    source_mask: Tensor | None = None
    pair_labels: Tensor | None = None
    branches: Tensor | None = None
    answers: Tensor | None = None

    def __post_init__(self) -> None:
        self._lengths: tuple[list[int], list[int]] | None = None
        self._counted: int | None = None

    @property
    def counted(self) -> int:
        """How many labels count."""
        if self._counted is None:
            self._counted = int(torch.count_nonzero(self.labels != IGNORED))
        return self._counted

    @property
    def tokens(self) -> int:
        """Real tokens that go through the model, those of the source included."""
        return sum(map(sum, self.lengths))

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """Real tokens of each row, and of each row's source; without sources, the second list is empty."""
        if self._lengths is None:
            source = [] if self.source is None else _real(self.source, self.source_mask)
            self._lengths = _real(self.ids, self.attention_mask), source
        return self._lengths

    def to(self, device: torch.device | str) -> Batch:
        """Return a copy on ``device``; the counts come along, so that nobody has to wait for the device to know them."""
        moved = super().to(device)
        moved._lengths = self.lengths
        moved._counted = self.counted if self.labels.device.type == "cpu" else self._counted
        return moved


@dataclass
class PreferenceBatch(_Movable):
    """Pairs of answers; both follow their prompt as branches, so that the prompt is computed once.

    Shapes: chance and margin ``(pairs,)`` float32; reference ``(answers,)`` float32.

    Attributes:
        texts: answer 2b is the chosen one of pair b, answer 2b + 1 the rejected one.
        chance: how probable it is that the chosen one is better: 1, or 0.5 for a tie.
        margin: by how much it is better; 0 where nobody said.
        reference: log-probabilities (nats) of the answers under the reference model.
    """

    texts: Batch
    chance: Tensor
    margin: Tensor | None = None
    reference: Tensor | None = None

    @property
    def ids(self) -> Tensor:
        """All tokens ``(batch, seq)``."""
        return self.texts.ids

    @property
    def tokens(self) -> int:
        """Real tokens, the prompt of a pair counted once."""
        return self.texts.tokens


@dataclass
class ImageBatch(_Movable):
    """Texts with pictures in them.

    Attributes:
        texts: ids from the vocabulary's size on mean pictures: the first ``grid`` of them the first picture, and so on;
            no label is one of them.
        features: what a tower saw in each picture ``(images, grid, width)``.
    """

    texts: Batch
    features: Tensor

    @property
    def ids(self) -> Tensor:
        """All tokens ``(batch, seq)``."""
        return self.texts.ids

    @property
    def tokens(self) -> int:
        """Real tokens, those of pictures included."""
        return self.texts.tokens


@dataclass
class RolloutBatch(_Movable):
    """What a policy wrote, and what came of it; completions follow their prompts as branches.

    Shapes: all but ``texts`` are ``(batch, seq)`` float32, aligned with ``texts.labels`` and 0 where those are not
    counted.

    Attributes:
        texts: prompts and completions.
        old_log_probs: log-probabilities of the labels when they were written.
        advantages: how much better each label was than expected.
        returns: what the value head should say; None without a value head.
        old_values: what it said when the labels were written.
        reference_log_probs: log-probabilities of the labels under the reference; None where it plays no part in the loss.
        ends_step: whether an optimiser step ends with this batch.
    """

    texts: Batch
    old_log_probs: Tensor
    advantages: Tensor
    returns: Tensor | None = None
    old_values: Tensor | None = None
    reference_log_probs: Tensor | None = None
    ends_step: bool = True

    @property
    def ids(self) -> Tensor:
        """All tokens ``(batch, seq)``."""
        return self.texts.ids

    @property
    def tokens(self) -> int:
        """Real tokens, a prompt shared by several completions counted once."""
        return self.texts.tokens


def _real(ids: Tensor, mask: Tensor | None) -> list[int]:
    if mask is None:
        return [ids.shape[1]] * len(ids)
    counts: list[int] = torch.count_nonzero(mask, 1).tolist()
    return counts
