"""Soft prompts: learned vectors in front of what a frozen model reads, or learned keys and values in all of its layers.

They stand behind the vocabulary: ids ``vocab, vocab + 1, …`` mean the vectors, so that whatever takes ids (cache, batches,
beams, scores) takes them too, and no logit belongs to them. With vectors alone the model computes what ``prefix=vectors``
computes. With keys and values (prefix tuning; Li and Liang 2021, arXiv:2101.00190) those stand in the place of the ones that
a layer would make of the ids; what it makes of the ids otherwise is seen by nobody. It opens no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.model.attention import SelfAttention
from stockpot.model.layers import Block
from stockpot.model.transformer import Transformer

__all__ = [
    "LearnedHeads",
    "SoftEmbedding",
    "attach_prefix",
    "attach_soft",
    "detach_soft",
    "prefix_heads",
    "soft_ids",
    "soft_vectors",
]

PrefixHeads = Float[Tensor, "prefix kv_heads head_dim"]


@dataclass
class _Places:
    """Which learned vector each token of the latest call is: ``(batch, seq)``, negative: none; None: no token is one."""

    of: Tensor | None = None


class SoftEmbedding(nn.Embedding):
    """A frozen embedding with learned vectors behind its last id.

    Args:
        embedding: the model's own; its weight is kept.
        vectors: ``(prefix, dim)``, as the layers are to see them.
        scale: what the model multiplies embeddings by.
    """

    def __init__(
        self, embedding: nn.Embedding, vectors: Float[Tensor, "prefix dim"], scale: float = 1.0
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = None, None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.weight = embedding.weight
        self.soft = nn.Parameter(vectors.detach().clone().to(embedding.weight.device, torch.float32))
        self.scale, self.places = scale, _Places()

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Look up token vectors and, for ids behind the vocabulary, the learned ones."""
        known = self.num_embeddings
        self.places.of = ids - known if ids.is_cuda or bool((ids >= known).any()) else None
        found = F.embedding(ids.clamp(max=known - 1), self.weight)
        learned = F.embedding((ids - known).clamp(min=0), self.soft) / self.scale
        return torch.where((ids >= known)[..., None], learned.to(found.dtype), found)

    @property
    def learned(self) -> tuple[nn.Parameter, ...]:
        """What is trained."""
        return (self.soft,)

    def plain(self) -> nn.Embedding:
        """Give the embedding without the learned vectors."""
        with torch.device("meta"):
            embedding = nn.Embedding(self.num_embeddings, self.embedding_dim)
        embedding.weight = self.weight
        return embedding


class LearnedHeads(nn.Module):
    """Learned keys and values of one layer, as its attention uses them: normalised and rotated.

    Args:
        keys: ``(prefix, kv_heads, head_dim)``.
        values: the same.
        places: where they belong in the latest call.
    """

    def __init__(self, keys: PrefixHeads, values: PrefixHeads, places: _Places) -> None:
        super().__init__()
        self.keys, self.values = (
            nn.Parameter(one.detach().clone().to(torch.float32)) for one in (keys, values)
        )
        self._places = places

    @property
    def learned(self) -> tuple[nn.Parameter, ...]:
        """What is trained."""
        return (self.keys, self.values)

    def forward(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put what was learned into keys and values ``(batch, kv_heads, seq, head_dim)``."""
        places = self._places.of
        if places is None:
            return keys, values
        here, rows = (places >= 0)[:, None, :, None], places.clamp(min=0)
        return _put(self.keys, keys, here, rows), _put(self.values, values, here, rows)


def _put(learned: Tensor, made: Tensor, here: Tensor, rows: Tensor) -> Tensor:
    return torch.where(here, learned[rows].transpose(1, 2).to(made.dtype), made)


def attach_soft(model: Transformer, vectors: Float[Tensor, "prefix dim"]) -> range:
    """Freeze a model and give it a soft prompt, in place; returns the ids that stand for its vectors.

    Raises:
        ValueError: if it has one already, or the vectors are not of its width.
    """
    if isinstance(model.embed, SoftEmbedding):
        raise ValueError("the model has a soft prompt already")
    if vectors.ndim != 2 or vectors.shape[1] != model.config.dim:
        raise ValueError(f"vectors of {tuple(vectors.shape)} do not fit a model of width {model.config.dim}")
    model.requires_grad_(False)
    model.embed = SoftEmbedding(model.embed, vectors, model.config.embedding_scale or 1.0)
    return soft_ids(model)


def attach_prefix(model: Transformer, heads: Sequence[tuple[PrefixHeads, PrefixHeads]]) -> range:
    """Freeze a decoder and give it learned keys and values, one pair a layer, in place; returns the ids that stand for them.

    Raises:
        ValueError: if it has a soft prompt already, is no decoder, or the heads are not those of its layers.
    """
    stack = model.decoder
    if stack is None or model.encoder is not None:
        raise ValueError("only a decoder takes learned keys and values")
    config = stack.config
    shape = (len(heads[0][0]), config.key_heads, config.head_width)
    if len(heads) != config.layers or any(one.shape != shape for pair in heads for one in pair):
        raise ValueError(f"{config.layers} layers need keys and values of {shape} each")
    ids = attach_soft(model, model.embed.weight.new_zeros(shape[0], model.config.dim))
    assert isinstance(model.embed, SoftEmbedding)
    model.embed.soft.requires_grad_(False)
    for attention, (keys, values) in zip(_attentions(model), heads, strict=True):
        attention.learned = LearnedHeads(keys, values, model.embed.places).to(model.device)
    return ids


def prefix_heads(model: Transformer) -> list[tuple[PrefixHeads, PrefixHeads]]:
    """Give a model's learned keys and values, one pair a layer; an empty list if it has none."""
    found = [one.learned for one in _attentions(model)]
    return [(one.keys, one.values) for one in found if isinstance(one, LearnedHeads)]


def _attentions(model: Transformer) -> list[SelfAttention]:
    blocks = () if model.decoder is None else model.decoder.layers
    return [one.attention for one in blocks if isinstance(one, Block)]


def detach_soft(model: Transformer) -> None:
    """Take the soft prompt off, in place; the model is what it was, and trainable again."""
    if isinstance(model.embed, SoftEmbedding):
        model.embed = model.embed.plain()
    for attention in _attentions(model):
        attention.learned = None
    model.requires_grad_(True)


def soft_ids(model: Transformer) -> range:
    """Give the ids of a model's soft prompt; none without one."""
    if not isinstance(model.embed, SoftEmbedding):
        return range(0)
    known = model.embed.num_embeddings
    return range(known, known + model.embed.soft.shape[0])


def soft_vectors(model: Transformer) -> Float[Tensor, "prefix dim"]:
    """Give a model's soft prompt.

    Raises:
        ValueError: if it has none.
    """
    if not isinstance(model.embed, SoftEmbedding):
        raise ValueError("the model has no soft prompt")
    return model.embed.soft
