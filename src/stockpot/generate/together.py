"""Many different requests answered together, each with settings and a seed of its own.

``Engine.generate`` draws all answers with the same settings; here every request brings its own. It is the same loop over
``submit`` and ``step``.
"""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.generate.engine import Engine
from stockpot.generate.request import Chunk, Completion, Request

__all__ = ["complete"]


def complete(engine: Engine, requests: Sequence[Request]) -> list[Completion]:
    """Answer requests; the answers stand in the order of the requests.

    Raises:
        GenerationError: if a request cannot be answered.
    """
    chunks: dict[int, list[Chunk]] = {}
    ended: set[int] = set()
    try:
        for request in requests:
            chunks[engine.submit(request)] = []
        while len(ended) < len(chunks):
            for chunk in engine.step():
                if chunk.request not in chunks:
                    continue  # of somebody else, who should have a separate engine
                chunks[chunk.request].append(chunk)
                if chunk.finish_reason is not None:
                    ended.add(chunk.request)
    finally:
        for number in chunks.keys() - ended:
            engine.cancel(number)
    return [Completion.of(one, 0) for one in chunks.values()]
