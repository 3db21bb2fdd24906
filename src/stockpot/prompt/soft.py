"""Where a soft prompt starts, and what it reads like: its vectors, and the tokens nearest to them.

Training is a stage (`stages.tune_prompt`); how the vectors reach the model is `model.soft`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError
from stockpot.model.adapters import weights_of
from stockpot.model.soft import soft_vectors

__all__ = ["Start", "frozen_hash", "nearest_tokens", "start_heads", "start_vectors"]

Start: TypeAlias = Literal["text", "vocabulary", "random"]


def start_vectors(bundle: Bundle, length: int, start: Start, *, text: str = "", seed: int = 0) -> Tensor:
    """Make the vectors a soft prompt starts from, ``(length, dim)``, float32.

    ``text``: the embeddings of a text's tokens, repeated or cut to the length. ``vocabulary``: those of drawn tokens.
    ``random``: drawn numbers with the spread of the model's embeddings.

    Raises:
        ConfigError: if ``text`` is wanted and has no token.

    Source: Lester et al. 2021, arXiv:2104.08691, §2.1.
    """
    weight = bundle.model.embed.weight.detach().float().cpu()
    scale = bundle.model.config.embedding_scale or 1.0
    if start == "random":
        dice = torch.Generator().manual_seed(seed)
        return torch.randn(length, weight.shape[1], generator=dice) * float(weight.std()) * scale
    return weight[_start_ids(bundle, length, start, text, seed)] * scale


def start_heads(
    bundle: Bundle, length: int, start: Start, *, text: str = "", seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Make the keys and values that prefix tuning starts from, ``(length, kv_heads, head_dim)`` of each layer, float32.

    They are those that the model makes of a text or of drawn tokens; ``random``: drawn numbers with their spread.

    Raises:
        ConfigError: if ``text`` is wanted and has no token.

    Source: Li and Liang 2021, arXiv:2101.00190, §7.4.
    """
    ids = _start_ids(bundle, length, "vocabulary" if start == "random" else start, text, seed)
    cache = bundle.model.new_cache(1, length)
    with torch.inference_mode():
        bundle.model(ids[None].to(bundle.model.device), cache=cache, last=0)
    made = []
    for pair in zip(cache.keys, cache.values, strict=True):
        keys, values = (one[0, :, :length].transpose(0, 1).float().cpu().clone() for one in pair)
        made.append((keys, values))
    if start != "random":
        return made
    dice = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=dice)
    return [(draw(keys.shape) * keys.std(), draw(values.shape) * values.std()) for keys, values in made]


def _start_ids(bundle: Bundle, length: int, start: Start, text: str, seed: int) -> Tensor:
    """Choose the tokens that a soft prompt starts from, ``(length,)``: drawn ones, or a text's, repeated or cut."""
    if start == "vocabulary":
        dice = torch.Generator().manual_seed(seed)
        common = torch.randperm(min(5_000, bundle.tokenizer.vocab_size), generator=dice)[:length]
        return common.repeat(-(-length // len(common)))[:length]
    found = bundle.tokenizer.encode(text)
    if not found:
        raise ConfigError("The soft prompt is to start from a text, but there is none.", "Give start_text.")
    return torch.tensor((found * (-(-length // len(found))))[:length])


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


def frozen_hash(model: nn.Module, leaving_out: Sequence[str] = ()) -> str:
    """Hash every weight but a soft prompt's and those named: equal hashes prove that nothing else was trained.

    Matrices that are held in few bits count as the floats they stand for.
    """
    digest = hashlib.sha256()
    stored = model.state_dict()
    held = (one for one in weights_of(model) if one[0] not in stored)
    for name, value in chain(sorted(stored.items()), held):
        is_soft = name == "embed.soft" or ".attention.learned." in name
        if not is_soft and name not in leaving_out:
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
