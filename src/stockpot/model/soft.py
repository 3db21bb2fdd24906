"""Soft prompts: learned vectors in front of what a frozen model reads.

They stand behind the vocabulary: ids ``vocab, vocab + 1, …`` mean the vectors, so that whatever takes ids (cache, batches,
beams, scores) takes them too, and no logit belongs to them. The model computes what ``prefix=vectors`` computes. It opens no
file.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stockpot.model.transformer import Transformer

__all__ = ["SoftEmbedding", "attach_soft", "detach_soft", "soft_ids", "soft_vectors"]


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
        self.scale = scale

    def forward(self, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq dim"]:
        """Look up token vectors and, for ids behind the vocabulary, the learned ones."""
        known = self.num_embeddings
        found = F.embedding(ids.clamp(max=known - 1), self.weight)
        learned = F.embedding((ids - known).clamp(min=0), self.soft) / self.scale
        return torch.where((ids >= known)[..., None], learned.to(found.dtype), found)

    def plain(self) -> nn.Embedding:
        """Give the embedding without the learned vectors."""
        with torch.device("meta"):
            embedding = nn.Embedding(self.num_embeddings, self.embedding_dim)
        embedding.weight = self.weight
        return embedding


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


def detach_soft(model: Transformer) -> None:
    """Take the soft prompt off, in place; the model is what it was, and trainable again."""
    if isinstance(model.embed, SoftEmbedding):
        model.embed = model.embed.plain()
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
