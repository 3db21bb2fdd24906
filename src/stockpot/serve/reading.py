"""How a request's prompt is read: template, tokens, passages; and its JSON schema tried. All of it outside the engine's thread.

One thread reads and one tries schemas, so that a prompt of a megabyte or a schema that takes its second holds up nobody who
is being written to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from stockpot.bundle import Bundle
from stockpot.errors import StockpotError
from stockpot.generate.inputs import most_prompt_tokens, prompt_ids
from stockpot.generate.request import Prompt, Sampling
from stockpot.model.sight import sight_of
from stockpot.prompt.answering import passages_prompt
from stockpot.prompt.index import Hit, Index
from stockpot.serve.protocol import Refusal
from stockpot.serve.schemas import Schemas
from stockpot.text.chat import Message

__all__ = ["Reader", "Served"]

PASSAGES = 4
MOST_EMBEDDED = 2048  # tokens of a text; it is read at once, and others wait meanwhile


@dataclass(frozen=True)
class Served:
    """A model under its name.

    Attributes:
        created: when it was taken on, in seconds since 1970.
    """

    name: str
    bundle: Bundle
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def writes(self) -> bool:
        """Whether it can write."""
        config = self.bundle.model.config
        return config.decoder is not None and config.predicts

    @property
    def chats(self) -> bool:
        """Whether it takes messages."""
        return self.writes and self.bundle.template is not None

    @property
    def sees(self) -> bool:
        """Whether it takes pictures."""
        return sight_of(self.bundle.model) is not None


class Reader:
    """Reads what models are asked."""

    def __init__(self) -> None:
        self._schemas = Schemas()
        self._reads = ThreadPoolExecutor(1, thread_name_prefix="stockpot-reader")
        self._tries = ThreadPoolExecutor(1, thread_name_prefix="stockpot-schemas")

    async def read(
        self, served: Served, prompt: Prompt, sampling: Sampling, index: Index | None
    ) -> tuple[list[int], list[Hit]]:
        """Turn a prompt into ids, behind passages of an index if there is one; return them and the passages.

        Raises:
            Refusal: 400, if the model cannot answer it or the schema cannot be followed.
        """
        loop = asyncio.get_running_loop()
        if sampling.json_schema is not None:
            why = await loop.run_in_executor(self._tries, self._schemas.complaint, sampling.json_schema)
            if why:
                raise Refusal(400, f"The JSON schema cannot be followed: {why}.", param="response_format")
        return await loop.run_in_executor(self._reads, _prepare, served, prompt, sampling, index)

    async def lengths(self, served: Served, texts: Sequence[str]) -> list[int]:
        """Count the tokens that texts are read as to become vectors.

        Raises:
            Refusal: 400, if one is empty or too long to be read between two steps of others.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reads, _lengths, served.bundle, texts)

    def close(self) -> None:
        """Read no more."""
        for pool in (self._reads, self._tries):
            pool.shutdown(wait=False, cancel_futures=True)
        self._schemas.close()


def _prepare(
    served: Served, prompt: Prompt, sampling: Sampling, index: Index | None
) -> tuple[list[int], list[Hit]]:
    """Turn a prompt into ids that fit the model."""
    bundle, hits = served.bundle, list[Hit]()
    if not served.writes:
        message = f"The model {served.name!r} does not write; it makes vectors or ratings."
        raise Refusal(400, message, param="model", code="model_not_supported")
    most = most_prompt_tokens(bundle)
    _refuse_endless(bundle, prompt, most)
    if index is not None:
        prompt, hits = _with_passages(bundle, prompt, sampling, index)
    ids = prompt_ids(bundle, prompt)
    if not ids:
        raise Refusal(400, "The prompt is empty.", param="prompt")
    if len(ids) > most:
        raise _too_long(most, f"{len(ids):,} tokens")
    return ids, hits


def _lengths(bundle: Bundle, texts: Sequence[str]) -> list[int]:
    own = bundle.embedding.most_tokens if bundle.embedding else None
    most = own or (bundle.model.config.encoder or bundle.model.config.main).context
    found = [len(bundle.encode(text, most=most)) for text in texts]
    if max(found) > MOST_EMBEDDED:
        raise _too_long(MOST_EMBEDDED, f"{max(found):,} tokens", "input")
    if not min(found):
        raise Refusal(400, "A text of input has no token.", param="input")
    return found


def _with_passages(
    bundle: Bundle, prompt: Prompt, sampling: Sampling, index: Index
) -> tuple[Prompt, list[Hit]]:
    """Put passages before the last message, where they fit; as much room as the answer may need is left."""
    if isinstance(prompt, str) or not prompt:
        return prompt, []
    last = prompt[-1]
    if not isinstance(last, Message) or last.role != "user" or last.pictures or not last.content.strip():
        return prompt, []
    hits = index.search(last.content, PASSAGES)
    before = [one for one in prompt[:-1] if isinstance(one, Message)]
    with suppress(StockpotError):  # too long without passages already: told as for any prompt
        taken = len(bundle.encode(before)) if before else 0
        room = min(sampling.max_tokens, bundle.context // 4) + taken
        asked, shown = passages_prompt(bundle, last.content, hits, room=room)
        if not isinstance(asked, str) and isinstance(asked[0], Message):
            return [*before, asked[0]], shown
    return prompt, []


def _refuse_endless(bundle: Bundle, prompt: Prompt, most: int) -> None:
    """Refuse a text that cannot fit, however its tokens fall, before time is spent on them."""
    texts = (
        [prompt] if isinstance(prompt, str) else [one.content for one in prompt if isinstance(one, Message)]
    )
    size = sum(len(text) for text in texts)
    if size > most * max(1, int(bundle.tokenizer.byte_lengths.max())):
        raise _too_long(most, f"{size:,} characters")


def _too_long(most: int, found: str, param: str = "messages") -> Refusal:
    message = f"The prompt has {found}, but this model takes {most:,} tokens. Shorten it."
    return Refusal(400, message, code="context_length_exceeded", param=param)
