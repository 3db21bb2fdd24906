"""Many different requests answered together, each with settings and a seed of its own.

``Engine.generate`` draws all answers with the same settings; here every request brings its own. It is the same loop over
``submit`` and ``step``.
"""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.generate.engine import Engine
from stockpot.generate.request import Chunk, Completion, FinishReason, Request

__all__ = ["complete"]


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Answer requests; the answers stand in the order of the requests.

    Raises:
        GenerationError: if a request cannot be answered.
    """
    numbers = [engine.submit(request) for request in requests]
    chunks: dict[int, list[Chunk]] = {number: [] for number in numbers}
    ended: dict[int, FinishReason] = {}
    try:
        while len(ended) < len(numbers):
            for chunk in engine.step():
                if chunk.request not in chunks:
                    continue  # of somebody else, who should have a separate engine
                chunks[chunk.request].append(chunk)
                if chunk.finish_reason is not None:
                    ended[chunk.request] = chunk.finish_reason
    finally:
        for number in numbers:
            if number not in ended:
                engine.cancel(number)
    return [_joined(chunks[number], ended[number]) for number in numbers]


def _joined(chunks: Sequence[Chunk], reason: FinishReason) -> Completion:
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        ids=tuple(id for chunk in chunks for id in chunk.ids),
        finish_reason=reason,
        prompt_tokens=0,
        log_probs=tuple(value for chunk in chunks for value in chunk.log_probs),
    )
