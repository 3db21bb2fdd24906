"""How probable a model finds what was written, token by token, without ever holding all logits.

The output matrix, the softmax and the choice of the label are one operation here, like in ``fused``; but each
token's log-probability leaves it alone, so that a loss may weigh tokens and answers as it likes. Log-probabilities are
nats in float32. It knows batches with answers, and no loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stockpot.data.batch import IGNORED, Batch
from stockpot.device import on_large_pages
from stockpot.model.compiled import product_dtype
from stockpot.model.linear import product
from stockpot.model.transformer import Transformer
from stockpot.train.fused import as_type

__all__ = ["LabelLogProbs", "hidden_as_trained", "label_log_probs", "linear_log_probs"]

CHUNK_LOGITS = 1 << 23  # logits in flight: 32 MiB of float32
LEAST = (
    256  # rows of a chunk, so that adding to the gradient of a wide matrix does not cost more than making it
)


@dataclass(frozen=True)
class LabelLogProbs:
    """The counted labels of a batch, in reading order.

    Shapes: ``(labels,)``.

    Attributes:
        log_probs: of each label; carries the gradient.
        at: where it stands in the flattened batch.
        entropy: of the distribution it was drawn from; no gradient.
    """

    log_probs: Tensor
    at: Tensor
    entropy: Tensor

    def per_answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum over each answer's labels: log-probabilities and number of labels, both ``(answers,)``.

        Raises:
            ValueError: if the batch does not say which answer a label belongs to.
        """
        if batch.answers is None:
            raise ValueError("this batch has no answers")
        answer = batch.answers.reshape(-1)[self.at]
        count = int(batch.answers.max()) + 1
        sums = self.log_probs.new_zeros(count).index_add(0, answer, self.log_probs)
        tokens = self.log_probs.new_zeros(count).index_add(
            0, answer, torch.ones_like(self.log_probs).detach()
        )
        return sums, tokens

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Put one value a label back into the shape of the batch, zeros elsewhere."""
        flat = values.new_zeros(like.numel())
        return flat.index_copy(0, self.at, values).view(like.shape)


def label_log_probs(model: Transformer, batch: Batch, *, hidden: Tensor | None = None) -> LabelLogProbs:
    """Run a decoder and give the log-probability of every counted label.

    Args:
        model: a decoder.
        batch: with labels, and branches if it has any.
        hidden: the model's hidden states for this batch, when they are known already.
    """
    if hidden is None:
        hidden = model(batch.ids, attention_mask=batch.attention_mask, branches=batch.branches, last=0).hidden
    labels = batch.labels.reshape(-1)
    at = (labels != IGNORED).nonzero().squeeze(1)
    config = model.config
    states = hidden.reshape(-1, hidden.shape[-1])[at]
    if config.logit_scale is not None:
        states = states * config.logit_scale
    log_probs, entropy = linear_log_probs(
        states, model.output_weight, labels[at], bias=model.logit_bias, softcap=config.logit_softcap
    )
    return LabelLogProbs(log_probs, at, entropy)


def hidden_as_trained(model: Transformer, batch: Batch) -> Tensor:
    """Run a model in training's own kernels: by those for models that only read, ratios would be 1 % off in bfloat16."""
    with torch.enable_grad():
        found = model(batch.ids, attention_mask=batch.attention_mask, branches=batch.branches, last=0)
    hidden: Tensor = found.hidden
    return hidden.detach()


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute ``log_softmax(cap(hidden @ weight.T + bias))`` at the labels.

    The gradient with respect to the hidden states is made in the forward pass, up to the factor that arrives for each
    token; that of the matrix needs the probabilities, which are kept only if it is trained.

    Args:
        hidden: ``(labels, dim)``.
        weight: ``(vocab, dim)``.
        labels: ``(labels,)``.
        bias: ``(vocab,)``; gets no gradient.
        softcap: cap · tanh(logit / cap) before the softmax.
        chunk: labels at a time; None: about eight million logits.

    Returns:
        log-probabilities and entropies ``(labels,)``, float32 (float64 for such inputs); only the first carry a gradient.
    """
    chunk = chunk or max(LEAST, CHUNK_LOGITS // weight.shape[0])
    log_probs, entropy = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, labels, softcap, chunk, torch.is_grad_enabled()
    )
    return log_probs, entropy


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        chunk: int,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        kind = hidden.device.type
        dtype = product_dtype(hidden)
        wide = torch.promote_types(torch.float32, hidden.dtype)
        matrix = as_type(weight, dtype)
        log_probs, entropy = (torch.empty(len(labels), dtype=wide, device=hidden.device) for _ in range(2))
        to_hidden = torch.empty_like(hidden) if needs_grad and ctx.needs_input_grad[0] else None
        keeps = needs_grad and ctx.needs_input_grad[1]
        kept = hidden.new_empty((len(labels), weight.shape[0]), dtype=dtype) if keeps else None
        kept = None if kept is None else on_large_pages(kept)
        size = (2, min(chunk, len(labels)), weight.shape[0])
        room = on_large_pages(torch.empty(size, dtype=wide, device=hidden.device))
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(labels), chunk):
                at = slice(start, start + chunk)
                raw = product(hidden[at].to(dtype), matrix.T)
                log_probs[at], entropy[at], slope = _judge(
                    raw, bias, labels[at], softcap, needs_grad, room[:, : len(raw)]
                )
                if slope is None:
                    continue
                if kept is not None:
                    kept[at] = slope
                    slope = kept[at]
                if to_hidden is not None:
                    to_hidden[at] = product(slope.to(dtype), matrix).to(hidden.dtype)
                del slope  # its memory serves the next chunk
        ctx.save_for_backward(hidden, to_hidden, kept)
        ctx.out = weight.dtype
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, to_hidden, kept = ctx.saved_tensors
        if to_hidden is not None:
            to_hidden = (to_hidden * slope.unsqueeze(1)).to(hidden.dtype)
        to_weight = None
        if kept is not None:  # one product: adding to the gradient of a wide matrix piece by piece costs more
            part = (hidden * slope.unsqueeze(1)).to(kept.dtype)
            to_weight = as_type(
                product(kept.T, part, out=on_large_pages(kept.new_empty(kept.shape[1], part.shape[1]))),
                ctx.out,
            )
        return to_hidden, to_weight, None, None, None, None, None


def _judge(
    raw: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None, needs_grad: bool, room: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Judge one chunk of logits ``(chunk, vocab)``: log-probabilities, entropies, and d log-probability / d logits.

    ``room``: two times as much, in the type of the softmax, for what is made on the way; the last result lies in it.
    """
    logits = room[0].copy_(raw)
    if bias is not None:
        logits = logits + bias
    capped = None if softcap is None else torch.tanh(logits / softcap)
    if capped is not None and softcap is not None:
        logits = capped * softcap
    index = labels.unsqueeze(1)
    top, wanted = logits.amax(1), logits.gather(1, index).squeeze(1)
    probs = torch.softmax(logits, 1, out=room[1])
    # log Z from the largest probability, which is at least 1 / vocab: no second pass over the logits.
    log_z = top - probs.amax(1).log()
    log_probs = wanted - log_z
    entropy = log_z - logits.mul_(probs).sum(1)
    if not needs_grad:
        return log_probs, entropy, None
    probs.neg_().scatter_add_(1, index, torch.ones_like(index, dtype=probs.dtype))
    if capped is not None:
        probs *= 1 - capped.square()
    return log_probs, entropy, probs
