"""What training minimises: pure tensor maths from a model's output and a batch to a total and a count.

Every loss returns totals and counts, never means: the loop divides once per optimiser step by the sum of the
counts, so that padding, packing and accumulation cannot change the update. Nothing here steps, logs or reads a
file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stockpot.data.batch import IGNORED, Batch
from stockpot.model.transformer import Transformer
from stockpot.train.fused import FusedLoss, linear_cross_entropy, rows_that_count

__all__ = [
    "Loss",
    "LossFn",
    "Metrics",
    "cross_entropy",
    "linear_cross_entropy",
    "masked_token_loss",
    "next_token_loss",
    "sequence_to_sequence_loss",
]

Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


@dataclass
class Loss:
    """What a loss function returns.

    Attributes:
        total: the sum of the losses in nats, a scalar with a gradient.
        count: what the sum is divided by, once per step over all micro-batches and processes.
        metrics: name → (total, count); a metric's value is the quotient of the sums.
    """

    total: Tensor
    count: Tensor | float
    metrics: Metrics = field(default_factory=dict)


LossFn = Callable[[Any, Any], Loss]
"""``(model, batch) -> Loss``."""


def cross_entropy(logits: Tensor, labels: Tensor, *, z_loss: float = 0.0) -> Loss:
    """Compute softmax cross-entropy in nats against labels already aligned with the logits.

    The textbook example: among five items the second is right and has probability 0.6, so the loss is −ln 0.6.

    >>> probabilities = torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1]])
    >>> loss = cross_entropy(probabilities.log(), torch.tensor([1]))
    >>> round(float(loss.total / loss.count), 2)
    0.51

    Args:
        logits: ``(..., vocab)``.
        labels: ``(...)``, −100 = not counted.
        z_loss: weight of log²Z (Chowdhery et al. 2022, arXiv:2204.02311, §5).
    """
    wide = torch.promote_types(torch.float32, logits.dtype)
    flat, wanted = logits.reshape(-1, logits.shape[-1]).to(wide), labels.reshape(-1)
    nats = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="sum")
    counted = wanted != IGNORED
    count = counted.sum()
    correct = ((flat.argmax(-1) == wanted) & counted).sum()
    total = nats
    if z_loss:
        total = nats + z_loss * flat.logsumexp(-1).square().masked_fill(~counted, 0.0).sum()
    return Loss(total, count, {"loss": (nats.detach(), count), "accuracy": (correct, count)})


def next_token_loss(
    model: Transformer, batch: Batch, *, byte_lengths: Tensor | None = None, z_loss: float = 0.0
) -> Loss:
    """Predict every counted label from what stands before it.

    Metrics: ``loss`` (nats per token), ``accuracy`` and, given ``byte_lengths``, ``bits_per_byte``.

    Args:
        model: a decoder, or anything with its ``forward``, whose stack is causal.
        batch: ids, labels and masks.
        byte_lengths: ``(vocab,)`` UTF-8 bytes of each id, 0 for special ones; their nats count all the same.
        z_loss: see :func:`cross_entropy`.
    """
    hidden = model(batch.ids, attention_mask=batch.attention_mask, segments=batch.segments, last=0).hidden
    return _loss(_judge(model, hidden, batch, z_loss), batch.labels, byte_lengths)


def masked_token_loss(
    model: Transformer, batch: Batch, *, byte_lengths: Tensor | None = None, pair_weight: float = 16.0
) -> Loss:
    """Restore masked tokens from both sides, and tell whether sentence B follows sentence A.

    With ``pair_labels`` each pair counts as ``pair_weight`` tokens, in the total and in the count, so that the
    mean stays a mean under any split into micro-batches; 16 is about the number of masked tokens of a row.

    Metrics: those of :func:`next_token_loss`, ``pair_loss`` and ``pair_accuracy``.

    Source: Devlin et al. 2018, arXiv:1810.04805, §3.1.
    """
    hidden = model(batch.ids, attention_mask=batch.attention_mask, segments=batch.segments, last=0).hidden
    loss = _loss(_judge(model, hidden, batch, 0.0), batch.labels, byte_lengths)
    if batch.pair_labels is None:
        return loss
    pairs = cross_entropy(model.pair_logits(hidden), batch.pair_labels)
    metrics = loss.metrics | {f"pair_{name}": value for name, value in pairs.metrics.items()}
    total = loss.total + pair_weight * pairs.total
    return Loss(total, loss.count + pair_weight * pairs.count, metrics)


def sequence_to_sequence_loss(
    model: Transformer, batch: Batch, *, byte_lengths: Tensor | None = None, z_loss: float = 0.0
) -> Loss:
    """Predict the labels of an encoder-decoder from the source and what is written so far.

    Metrics: those of :func:`next_token_loss`.

    Raises:
        ValueError: if the batch has no source.
    """
    if batch.source is None:
        raise ValueError("an encoder-decoder's batch needs a source")
    hidden = model(
        batch.ids,
        source=batch.source,
        source_mask=batch.source_mask,
        attention_mask=batch.attention_mask,
        last=0,
    ).hidden
    return _loss(_judge(model, hidden, batch, z_loss), batch.labels, byte_lengths)


def _judge(model: Transformer, hidden: Tensor, batch: Batch, z_loss: float) -> FusedLoss:
    """Apply what stands between hidden states and logits, at the counted positions only."""
    config, labels = model.config, batch.labels
    if isinstance(model.masked_head, nn.Module):
        rows = rows_that_count(labels, batch.counted)
        hidden, labels = model.masked_head(hidden.flatten(0, 1)[rows]), labels.flatten()[rows]
    if config.logit_scale is not None:
        hidden = hidden * config.logit_scale
    return linear_cross_entropy(
        hidden,
        model.output_weight,
        labels,
        bias=model.logit_bias,
        softcap=config.logit_softcap,
        z_loss=z_loss,
        counted=batch.counted,
    )


def _loss(judged: FusedLoss, labels: Tensor, byte_lengths: Tensor | None) -> Loss:
    metrics: Metrics = {
        "loss": (judged.nats, judged.count),
        "accuracy": (judged.correct, judged.count),
    }
    if byte_lengths is not None:
        lengths = byte_lengths.to(labels.device)
        counted = labels != IGNORED
        bytes_ = lengths[labels.clamp(min=0)].masked_fill(~counted, 0).sum()
        metrics["bits_per_byte"] = (judged.nats / math.log(2), bytes_)
    return Loss(judged.total, judged.count, metrics)
