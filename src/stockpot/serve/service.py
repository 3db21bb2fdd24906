"""The models that are served, and all that one may ask of them; HTTP is a way to reach this.

Prompts are read in one thread (`reading`), models work in another (`worker`), and everything here belongs to the event loop.
Queues are bounded: who comes when they are full is refused at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from stockpot.bundle import Bundle
from stockpot.errors import StockpotError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Chunk, Completion, DamagedModelError, Prompt, Request, Sampling, Score
from stockpot.prompt.index import Hit, Index
from stockpot.serve.metrics import Metrics
from stockpot.serve.protocol import UNFORESEEN, Refusal
from stockpot.serve.reading import Reader, Served
from stockpot.serve.settings import ServeConfig
from stockpot.serve.worker import Event, Job, Worker
from stockpot.text.chat import Message

__all__ = ["Answer", "ServeConfig", "Served", "Service"]

Result = TypeVar("Result")
TEXTS_AT_ONCE, TOKENS_AT_ONCE = (
    8,
    512,
)  # scored and embedded between two steps of those who are being written to
MOST_CALLS = 64  # functions that wait for a model's thread


class Answer:
    """The ``n`` completions of one prompt while they are written: iterate over (which, chunk), then it has ended.

    Attributes:
        served: who writes.
        prompt: its ids.
        sampling: how it is drawn.
        sources: the passages it was shown.
    """

    def __init__(self, served: Served, prompt: list[int], sampling: Sampling, sources: Sequence[Hit]) -> None:
        self.served, self.prompt, self.sampling, self.sources = served, prompt, sampling, tuple(sources)
        self._events: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()
        self._open = set(range(sampling.n))

    def __aiter__(self) -> AsyncIterator[tuple[int, Chunk]]:
        return self

    async def __anext__(self) -> tuple[int, Chunk]:
        if not self._open:
            raise StopAsyncIteration
        index, event = await self._events.get()
        if isinstance(event, StockpotError):
            raise event
        if isinstance(event, Exception):
            raise Refusal(500, UNFORESEEN) from event
        if event.finish_reason is not None:
            self._open.discard(index)
        return index, event

    def put(self, index: int, event: Chunk | Exception) -> None:
        """Take what happened to one of the completions."""
        self._events.put_nowait((index, event))

    async def completions(self) -> list[Completion]:
        """Wait for all of it."""
        chunks: list[list[Chunk]] = [[] for _ in range(self.sampling.n)]
        async for index, chunk in self:
            chunks[index].append(chunk)
        return [Completion.of(one, len(self.prompt)) for one in chunks]


class Service:
    """Models by name, at work.

    Args:
        models: the first one answers requests that name none.
        config: bounds.
        index: passages for those who want to be answered from documents.
    """

    def __init__(
        self, models: Mapping[str, Bundle], config: ServeConfig | None = None, *, index: Index | None = None
    ) -> None:
        self.settings = config or ServeConfig()
        self.index = index
        self.models: dict[str, Served] = {}
        self.metrics = Metrics()
        self.is_draining = False
        self._open: dict[Job, tuple[Answer, asyncio.TimerHandle]] = {}
        self._calls = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader = Reader()
        self._worker = Worker(
            slots=self.settings.slots,
            prefix_mib=self.settings.prefix_mib,
            cache_mib=self.settings.cache_mib,
            compiles=self.settings.compiles,
            post=self._post,
        )
        for name, bundle in models.items():
            self.add(name, bundle)

    # --- life ---

    async def start(self) -> None:
        """Begin to work, in this event loop."""
        self._loop = asyncio.get_running_loop()
        self._worker.start()

    async def close(self) -> None:
        """Stop; answers under way end here."""
        self.is_draining = True
        self.cut()
        await asyncio.to_thread(self._worker.stop)
        self._reader.close()

    def drain(self) -> None:
        """Take nothing new; what waits is refused, what runs may end for ``grace_s`` and is then cut."""
        if self.is_draining or self._loop is None:
            return
        self.is_draining = True
        for job in list(self._open):
            if not job.has_begun:
                self._end(job, _stopping())
        self._loop.call_later(self.settings.grace_s, self.cut)

    def cut(self) -> None:
        """End every answer under way, as if it had become too long."""
        for job in list(self._open):
            self._end(job, Chunk(0, "", (), "timeout"))

    @property
    def is_well(self) -> bool:
        """Whether it takes requests."""
        return self._worker.is_alive and not self.is_draining

    @property
    def open_answers(self) -> int:
        """Completions that wait or are being written."""
        return len(self._open)

    # --- models ---

    def add(self, name: str, bundle: Bundle) -> None:
        """Serve one more model, or another one under a name in use."""
        self.models[name] = Served(name, bundle)
        self._worker.add(name, bundle)

    def remove(self, name: str) -> None:
        """Serve a model no more."""
        if self.models.pop(name, None) is not None:
            self._worker.remove(name)

    def model(self, name: str | None) -> Served:
        """Find a model; None: the first.

        Raises:
            Refusal: 404, if there is none of that name.
        """
        if name is None and self.models:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            message = f"The model {name!r} does not exist here. There is: {known}."
            raise Refusal(404, message, code="model_not_found", param="model")
        return self.models[name]

    # --- questions ---

    @asynccontextmanager
    async def answer(
        self,
        model: str | None,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        client: str = "",
        documents: bool = False,
    ) -> AsyncIterator[Answer]:
        """Have a prompt answered; leaving the block cancels what is not finished.

        Args:
            model: who answers; None: the first model.
            prompt: text, messages or ids.
            sampling: how it is drawn, up to the tokens that the server allows; None: as the model says, up to 128 tokens.
            client: whose request it is, for turns to be fair.
            documents: whether passages that fit the last message are put before it.

        Raises:
            Refusal: if it cannot be answered: 400, 404, 429 or 503.
        """
        served = self.model(model)
        settings = sampling or Sampling.suggested(served.bundle.generation)
        most = min(settings.max_tokens, self.settings.max_tokens)
        settings = settings.model_copy(update={"max_tokens": most})
        self._refuse_when_full(settings.n)
        index = self.index if documents else None
        ids, sources = await self._reader.read(served, prompt, settings, index)
        self._refuse_when_full(settings.n)
        answer = Answer(served, ids, settings, sources)
        jobs = [self._begin(answer, index, client) for index in range(settings.n)]
        self.metrics.prompt_tokens += len(ids)
        try:
            yield answer
        finally:
            for job in jobs:
                self._end(job)

    async def chat(
        self,
        model: str | None,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        client: str = "",
    ) -> list[Completion]:
        """Answer a conversation; errors as :meth:`answer`."""
        async with self.answer(model, list(messages), sampling, client=client) as answer:
            return await answer.completions()

    async def score(self, model: str | None, pairs: Sequence[tuple[Prompt, str]]) -> list[Score]:
        """Say how likely a model finds completions; see `Engine.score`."""
        found: list[Score] = []
        for start in range(0, len(pairs), TEXTS_AT_ONCE):
            part = pairs[start : start + TEXTS_AT_ONCE]
            found += await self.run(partial(Engine.score, pairs=part), model)
        return found

    async def embed(self, model: str | None, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Turn texts into vectors, and say how many tokens were read; see `Engine.embed`."""
        served = self.model(model)
        lengths = await self._reader.lengths(served, texts)
        found: list[list[float]] = []
        while len(found) < len(texts):
            start = stop = len(found)
            while stop < len(texts) and (stop == start or sum(lengths[start : stop + 1]) <= TOKENS_AT_ONCE):
                stop += 1
            part = texts[start:stop]
            found += (await self.run(partial(Engine.embed, texts=part), served.name)).tolist()
        return found, sum(lengths)

    async def run(self, function: Callable[[Engine], Result], model: str | None = None) -> Result:
        """Call a function with a model's engine in the one thread that may touch it; it should be short.

        Raises:
            Refusal: 404 for an unknown model, 429 if too many wait.
        """
        name = self.model(model).name
        self._refuse_when_draining()
        if self._calls >= MOST_CALLS:
            raise self._full()
        self._calls += 1
        try:
            return await asyncio.wrap_future(self._worker.run(name, function))
        finally:
            self._calls -= 1

    # --- odds and ends ---

    def _begin(self, answer: Answer, index: int, client: str) -> Job:
        """Queue one of an answer's completions."""
        last = time.monotonic()

        def take(event: Chunk | Exception) -> None:
            nonlocal last
            if job not in self._open:
                return
            now = time.monotonic()
            if isinstance(event, Chunk):
                self.metrics.wrote(len(event.ids), now - last, is_first=not job.has_begun)
                job.has_begun, last = True, now
            if isinstance(event, Exception) or event.finish_reason is not None:
                self._open.pop(job)[1].cancel()
            answer.put(index, event)

        request = Request(answer.prompt, answer.sampling, index)
        job = Job(answer.served.name, request, client, take)
        timer = asyncio.get_running_loop().call_later(self.settings.timeout_s, self._expire, job)
        self._open[job] = answer, timer
        self._worker.submit(job)
        return job

    def _expire(self, job: Job) -> None:
        late = Refusal(503, "The answer did not begin in time.", code="overloaded", retry_after_s=10)
        self._end(job, Chunk(0, "", (), "timeout") if job.has_begun else late)

    def _end(self, job: Job, event: Chunk | Exception | None = None) -> None:
        """Forget a completion that is not finished, and tell whoever waits for it."""
        if job not in self._open:
            return
        answer, timer = self._open.pop(job)
        timer.cancel()
        self._worker.cancel(job)
        if event is not None:
            answer.put(job.request.index, event)

    def _post(self, events: Sequence[Event]) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(_hand_out, events)

    def _refuse_when_draining(self) -> None:
        if not self.is_well:
            raise _stopping()

    def _refuse_when_full(self, more: int) -> None:
        self._refuse_when_draining()
        if len(self._open) + more > self.settings.slots + self.settings.queue:
            raise self._full()

    def _full(self) -> Refusal:
        wait = self.metrics.mean_wait_s * (1 + len(self._open) / self.settings.slots)
        return Refusal(
            429,
            "Too many requests wait. Try again later.",
            code="rate_limit_exceeded",
            retry_after_s=min(wait, 60),
        )


def _hand_out(events: Sequence[Event]) -> None:
    for job, event in events:
        job.take(event)


def _stopping() -> Refusal:
    return Refusal(503, "The server is stopping.", code="unavailable", retry_after_s=5)


def refusal_of(error: StockpotError) -> Refusal:
    """Say a known error as a client reads it."""
    if isinstance(error, Refusal):
        return error
    return Refusal(500 if isinstance(error, DamagedModelError) else 400, str(error))
