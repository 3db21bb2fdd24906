"""How prompts become what a model is called with: ids, padded batches, and the state a model is asked in.

Padding stands to the right and is always masked. Nothing here samples, scores or keeps a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from stockpot.bundle import Bundle
from stockpot.device import current
from stockpot.errors import GenerationError
from stockpot.generate.request import Prompt

__all__ = [
    "batches_by_length",
    "completion_ids",
    "most_prompt_tokens",
    "pad",
    "prompt_ids",
    "reading_only",
    "seen_both_ways",
]


@contextmanager
def reading_only(model: nn.Module) -> Iterator[None]:
    """Ask a model without dropout and without keeping gradients; a model in training goes on as it was."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        place = next((one.device for one in model.parameters()), torch.device("cpu"))
        with torch.inference_mode(), current(place):
            yield
    finally:
        if was_training:
            model.train()


def prompt_ids(bundle: Bundle, prompt: Prompt) -> list[int]:
    """Turn a prompt into ids; a sequence of ids is taken as it is.

    Raises:
        GenerationError: if an id is outside the vocabulary, or means a picture that is forgotten.
    """
    if isinstance(prompt, str):
        return bundle.encode(prompt)
    ids = [part for part in prompt if isinstance(part, int)]
    if len(ids) < len(prompt):
        return bundle.encode(cast("Any", [part for part in prompt if not isinstance(part, int)]))
    if not ids:
        return []
    known = bundle.id_count
    if min(ids) < 0 or max(ids) >= known:
        raise GenerationError(
            f"The prompt has an id outside the vocabulary (0 to {known - 1}).",
            "Encode it with this model's tokenizer.",
        )
    return bundle.held(ids)


def most_prompt_tokens(bundle: Bundle) -> int:
    """Return the longest prompt a model can answer, in tokens."""
    config = bundle.model.config
    return config.encoder.context if config.encoder else config.context - 1


def completion_ids(bundle: Bundle, completion: str | Sequence[int]) -> list[int]:
    """Turn a completion into the ids that would follow a prompt's: no beginning, no end."""
    return bundle.tokenizer.encode(completion) if isinstance(completion, str) else list(completion)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Put rows of ids side by side.

    Returns ids ``(batch, seq)`` and which of them are real ``(batch, seq)``; None when all are.
    """
    longest = max(map(len, rows))
    if all(len(row) == longest for row in rows):
        return torch.tensor(rows, device=device, dtype=torch.int64), None
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows], dtype=torch.int64)
    real = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    return ids.to(device), real.to(device)


def seen_both_ways(bundle: Bundle, ids: Tensor) -> Tensor | None:
    """Return the segments of a prompt ``(batch, seq)`` where the model reads it in both directions, else None."""
    return torch.zeros_like(ids) if bundle.model.config.main.attends == "prefix" else None


def batches_by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Cut indices, longest first, into batches of at most ``tokens`` tokens, padding included."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batch: list[int] = []
    for index in order:
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
