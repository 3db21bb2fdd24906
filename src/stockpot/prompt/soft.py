"""Where a soft prompt starts, and what it reads like: its vectors, and the tokens nearest to them.

Training is a stage (`stages.tune_prompt`); how the vectors reach the model is `model.soft`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError
from stockpot.model.soft import soft_vectors

__all__ = ["Start", "frozen_hash", "nearest_tokens", "start_vectors"]

Start: TypeAlias = Literal["text", "vocabulary", "random"]


def start_vectors(bundle: Bundle, length: int, start: Start, *, text: str = "", seed: int = 0) -> Tensor:
    """Make the vectors a soft prompt starts from, ``(length, dim)``, float32.

    ``text``: the embeddings of a text's tokens, repeated or cut to the length. ``vocabulary``: those of drawn tokens.
    ``random``: drawn numbers with the spread of the model's embeddings.

    Raises:
        ConfigError: if ``text`` is wanted and has no token.

    Source: Lester et al. 2021, arXiv:2104.08691, §2.1.
    """
    dice = torch.Generator().manual_seed(seed)
    weight = bundle.model.embed.weight.detach().float().cpu()
    scale = bundle.model.config.embedding_scale or 1.0
    if start == "random":
        spread = float(weight.std())
        return torch.randn(length, weight.shape[1], generator=dice) * spread * scale
    if start == "vocabulary":
        common = torch.randperm(min(5_000, bundle.tokenizer.vocab_size), generator=dice)[:length]
        ids = common.repeat(-(-length // len(common)))[:length]
    else:
        found = bundle.tokenizer.encode(text)
        if not found:
            raise ConfigError(
                "The soft prompt is to start from a text, but there is none.", "Give start_text."
            )
        ids = torch.tensor((found * (-(-length // len(found))))[:length])
    return weight[ids] * scale


def nearest_tokens(bundle: Bundle, count: int = 3) -> list[list[tuple[str, float]]]:
    """Give, for each vector of a soft prompt, the tokens whose embeddings are nearest: spelling and cosine."""
    vectors = soft_vectors(bundle.model).detach().float().cpu()
    weight = bundle.model.embed.weight.detach().float().cpu()[: bundle.tokenizer.vocab_size]
    near = nn.functional.normalize(vectors, dim=1) @ nn.functional.normalize(weight, dim=1).T
    values, ids = near.topk(count, dim=1)
    return [
        [(_spelled(bundle, id), round(cosine, 3)) for id, cosine in zip(row, cosines, strict=True)]
        for row, cosines in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _spelled(bundle: Bundle, id: int) -> str:
    return bundle.tokenizer.decode([id]) or bundle.tokenizer.id_to_token(id)


def frozen_hash(model: nn.Module, leaving_out: Sequence[str] = ("embed.soft",)) -> str:
    """Hash every weight but those named: equal hashes prove that nothing else was trained."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name not in leaving_out:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
