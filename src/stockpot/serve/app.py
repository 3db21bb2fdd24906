"""The routes, and how they are put together with the guard in front and the page behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import Receive, Scope, Send

from stockpot.errors import StockpotError
from stockpot.serve import asking, writing
from stockpot.serve.guard import Guard
from stockpot.serve.protocol import ChatRequest, CompletionRequest, EmbeddingRequest, ErrorBody, Refusal
from stockpot.serve.service import Served, Service, refusal_of

__all__ = ["build", "client_of", "unless_gone"]

Result = TypeVar("Result")
GONE = 499  # the client left before its answer; nobody sees this but the log
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, 503: {"model": ErrorBody}}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON


def build(
    service: Service,
    *,
    extra_routes: Sequence[APIRouter] = (),
    static: Path | None = None,
    token: str | None = None,
) -> FastAPI:
    """Put the server together.

    Args:
        service: the models.
        extra_routes: further routes under ``/v1``.
        static: a folder that is shown at ``/``.
        token: what every request has to bring, but those for the page and ``/health``; None: nothing.
    """
    app = FastAPI(
        title="stockpot",
        docs_url=None,
        redoc_url=None,
        lifespan=lambda _: _life(service),
        responses=ERRORS,
    )
    for router in (_routes(service), *extra_routes):
        app.include_router(router)
    if static is not None:
        app.mount("/", StaticFiles(directory=static, html=True))
    app.add_exception_handler(StockpotError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_middleware(Guard, service=service, token=token)
    return app


@asynccontextmanager
async def _life(service: Service) -> AsyncIterator[None]:
    await service.start()
    try:
        yield
    finally:
        await service.close()


def client_of(request: Request) -> str:
    """Say whose request this is, as far as turns are concerned: an address, and a key if one is sent."""
    host = request.client.host if request.client else ""
    return f"{host} {request.headers.get('authorization', '')}"


Client = Annotated[str, Depends(client_of)]


# --- routes ---


def _routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        """Say whether requests are taken."""
        status = "ok" if service.is_well else "stopping"
        return JSONResponse({"status": status}, 200 if service.is_well else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Give counts and times in Prometheus' form."""
        return service.metrics.text({"open_answers": service.open_answers, "models": len(service.models)})

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the models."""
        return {"object": "list", "data": [_model(one) for one in service.models.values()]}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe a model."""
        return _model(service.model(name))

    @router.post("/v1/chat/completions", response_model=None, responses=STREAMED)
    async def chat(asked: ChatRequest, request: Request, client: Client) -> Response:
        """Answer a conversation."""
        return await _chat(service, asked, request, client)

    @router.post("/v1/completions", response_model=None, responses=STREAMED)
    async def completions(asked: CompletionRequest, request: Request, client: Client) -> Response:
        """Continue texts."""
        return await _complete(service, asked, request, client)

    @router.post("/v1/embeddings", response_model=None)
    async def embeddings(asked: EmbeddingRequest, request: Request) -> Response:
        """Turn texts into vectors."""
        return await unless_gone(request, _embedded(service, asked))

    return router


def _model(served: Served) -> dict[str, Any]:
    config = served.bundle.model.config
    can = {"chat": served.chats, "complete": served.writes, "embed": True, "image": served.sees}
    facts = {
        "context": served.bundle.context,
        "shape": config.shape,
        "can": [name for name, is_so in can.items() if is_so],
    }
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "stockpot"} | facts


async def _chat(service: Service, asked: ChatRequest, request: Request, client: str) -> Response:
    served = service.model(asked.model)
    messages, sampling = asking.messages_of(asked), asking.chat_sampling(asked, served, service.settings)
    if served.writes and not served.chats:
        message = f"The model {served.name!r} has no chat template; use /v1/completions."
        raise Refusal(400, message, param="model", code="model_not_supported")
    writes = writing.Writing(served.name, is_chat=True, has_logprobs=sampling.logprobs is not None)
    opening = service.answer(
        served.name,
        messages,
        sampling,
        client=f"{client} {asked.user or ''}",
        documents=service.index is not None and asked.documents is not False,
    )
    if not asked.stream:
        return await unless_gone(request, _whole(writes, [opening]))
    has_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return await _streamed(request, _opened(opening, writes, has_usage))


async def _complete(service: Service, asked: CompletionRequest, request: Request, client: str) -> Response:
    served = service.model(asked.model)
    prompts = asking.completion_prompts(asked)
    sampling = asking.completion_sampling(asked, served)
    writes = writing.Writing(served.name, is_chat=False, has_logprobs=sampling.logprobs is not None)
    named = f"{client} {asked.user or ''}"
    openings = [service.answer(served.name, prompt, sampling, client=named) for prompt in prompts]
    echo = [_text(served, prompt) for prompt in prompts] if asked.echo else []
    if not asked.stream:
        return await unless_gone(request, _whole(writes, openings, echo))
    if len(prompts) > 1:
        raise Refusal(400, "Only one prompt can be streamed.", param="stream")
    has_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    return await _streamed(request, _opened(openings[0], writes, has_usage, "".join(echo)))


def _text(served: Served, prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else served.bundle.tokenizer.decode(prompt)


async def _embedded(service: Service, asked: EmbeddingRequest) -> Response:
    served, texts = service.model(asked.model), asking.texts_of(asked)
    dim = served.bundle.model.config.dim
    if asked.dimensions not in (None, dim):
        raise Refusal(400, f"The vectors of {served.name!r} have {dim} numbers.", param="dimensions")
    vectors, tokens = await service.embed(served.name, texts)
    data = [
        {"object": "embedding", "index": index, "embedding": asking.vector(one, asked.encoding_format)}
        for index, one in enumerate(vectors)
    ]
    used = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": used})


async def _whole(writes: writing.Writing, openings: Sequence[Any], echo: Sequence[str] = ()) -> Response:
    async with AsyncExitStack() as stack:
        answers = [await stack.enter_async_context(one) for one in openings]
        return JSONResponse(await writing.whole(writes, answers, echo=echo))


async def _opened(
    opening: Any, writes: writing.Writing, has_usage: bool, echo: str = ""
) -> AsyncIterator[bytes]:
    async with opening as answer:
        async for frame in writing.frames(writes, answer, has_usage=has_usage, echo=echo):
            yield frame


# --- clients that leave ---


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result | Response:
    """Do some work, or cancel it at once when the client leaves."""
    task, leaves = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, leaves}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else Response(status_code=GONE)
    finally:
        leaves.cancel()
        task.cancel()
        await asyncio.gather(leaves, task, return_exceptions=True)  # what was cancelled has ended


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _streamed(request: Request, frames: AsyncIterator[bytes]) -> Response:
    """Answer with a stream, once its first event is there; what fails before that is an ordinary error."""
    first = await unless_gone(request, anext(frames))
    if isinstance(first, Response):
        await frames.aclose()  # type: ignore[attr-defined]
        return first
    return _Stream(first, frames)


class _Stream(Response):
    """Server-sent events; it ends when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, frames: AsyncIterator[bytes]) -> None:
        self.status_code, self.background = 200, None
        self._first, self._frames = first, frames
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sends, leaves = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sends, leaves}, return_when=asyncio.FIRST_COMPLETED)
            if sends.done():
                await sends
        finally:
            leaves.cancel()
            sends.cancel()
            await asyncio.gather(sends, leaves, return_exceptions=True)
            await self._frames.aclose()  # type: ignore[attr-defined]

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for frame in self._frames:
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# --- errors ---

_TYPES = (
    "str",
    "constrained-str",
)  # where a setting may be of several types, pydantic names the one it tried


def _answer(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body, refusal.status, refusal.headers)


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, StockpotError)
    return _answer(refusal_of(error))


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        where = f"{first.get('ctx', {}).get('error', 'broken')}, at character {first['loc'][-1]}"
        return _answer(Refusal(400, f"The body is no JSON: {where}."[:500]))
    named = takewhile(lambda part: not (part in _TYPES or "[" in str(part)), first["loc"][1:])
    param = ".".join(map(str, named)) or None
    return _answer(Refusal(400, f"{param or 'The body'}: {first['msg']}"[:500], param=param and param[:200]))


async def _of_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status not in (404, 405):
        return _answer(Refusal(status, str(error.detail)))
    # the page's folder answers whatever no route takes: 404 to a GET, 405 to all else
    routes = [one for one in request.app.routes if not isinstance(one, Mount)]
    is_known = any(one.matches(request.scope)[0] is not Match.NONE for one in routes)
    asked = f"There is no {request.method} {request.url.path}"[:200]
    status, code = (405, "method_not_allowed") if is_known else (404, "not_found")
    refusal = Refusal(status, f"{asked} here; /openapi.json lists the routes.", code=code)
    return JSONResponse(refusal.body, status, dict(error.headers or {}))
