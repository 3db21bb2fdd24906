"""The server as a process: its socket, how it stops, and connections that do not get on.

A client that does not finish its request's head, or reads nothing of its answer, is cut off after ``stall_s``. At SIGTERM or
Ctrl-C nothing new is taken, what waits is refused, and answers under way have ``grace_s`` to end; then they are cut and closed
as complete streams.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from fastapi import APIRouter
from uvicorn.protocols.http.h11_impl import H11Protocol

from stockpot.bundle import Bundle
from stockpot.errors import ServeError
from stockpot.prompt.index import Index
from stockpot.serve.app import build
from stockpot.serve.guard import is_loopback
from stockpot.serve.service import Service
from stockpot.serve.settings import ServeConfig

__all__ = ["Impatient", "Server", "new_token", "prepare", "serve", "watchful"]

SHORTEST_TOKEN = 16
IDLE_S = 30  # a connection may rest between two requests

Routes = Callable[[Service], APIRouter]
log = logging.getLogger("stockpot.serve")


def new_token() -> str:
    """Make a token that nobody guesses."""
    return secrets.token_urlsafe(32)


def serve(
    models: Mapping[str, Bundle],
    config: ServeConfig | None = None,
    *,
    token: str | None = None,
    index: Index | None = None,
    routes: Sequence[Routes] = (),
    static: Path | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve models over HTTP until the process is told to stop.

    Args:
        models: by the names clients use; the first answers those who name none.
        config: address and bounds.
        token: what requests have to bring; needed where others can reach the server.
        index: passages for chats that are answered from documents.
        routes: make further routes, given the service.
        static: a folder that is shown at ``/``.
        ready: is told the server's address once it listens.

    Raises:
        ServeError: if the address is taken or wrong, or lacks a token.
    """
    server, listening = prepare(
        models, config, token=token, index=index, routes=routes, static=static, ready=ready
    )
    with listening:
        asyncio.run(server.serve(sockets=[listening]))


def prepare(
    models: Mapping[str, Bundle],
    config: ServeConfig | None = None,
    *,
    token: str | None = None,
    index: Index | None = None,
    routes: Sequence[Routes] = (),
    static: Path | None = None,
    ready: Callable[[str], None] | None = None,
) -> tuple[Server, socket.socket]:
    """Return a server that is ready to run and the socket it will listen on; arguments and errors as :func:`serve`."""
    config = config or ServeConfig()
    if not models:
        raise ServeError("There is no model to serve.", "Name at least one.")
    if token is None and not is_loopback(config.host):
        raise ServeError(
            f"{config.host} can be reached from other machines, and there is no token.", "Give one."
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ServeError(
            f"A token has at least {SHORTEST_TOKEN} plain characters.", "Make one with new_token()."
        )
    listening = _listen(config)
    service = Service(models, config, index=index)
    app = build(service, extra_routes=[make(service) for make in routes], static=static, token=token)
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"http://{host}:{listening.getsockname()[1]}"
    return Server(_settings(app, config), service, lambda: ready and ready(address)), listening


def _listen(config: ServeConfig) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ServeError(
            f"{config.host}:{config.port} cannot be listened on ({_reason(error)}).",
            "Choose another with --host and --port; --port 0 takes any that is free.",
        ) from None


def _reason(error: OSError) -> str:
    """Say why in the system's words; Python's repeat the address."""
    if error.errno is None or isinstance(error, socket.gaierror):
        return str(error.strerror)
    return os.strerror(error.errno)


def _settings(app: Any, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=watchful(config.stall_s),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=config.connections,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=int(config.grace_s + 3),
        h11_max_incomplete_event_size=config.header_bytes,
    )


class Server(uvicorn.Server):
    """Uvicorn's server that lets the service know when it is to stop, and then ends as one that is done."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self.service, self._ready = service, ready
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at the second time without waiting."""
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.service.drain)


def watchful(stall_s: float) -> type[Impatient]:
    """Make a kind of connection that cuts off who stalls for that many seconds."""
    return type("Watchful", (Impatient,), {"stall_s": stall_s})


class Impatient(H11Protocol):
    """A connection that cuts off who stalls for ``stall_s`` seconds."""

    stall_s: ClassVar[float]
    _arrives: asyncio.TimerHandle | None = None
    _leaves: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # all that the system does not take at once is waited for
        self._watch_arrival()

    def data_received(self, data: bytes) -> None:
        """Take bytes."""
        super().data_received(data)
        self._watch_arrival()

    def on_response_complete(self) -> None:
        """Wait for what follows."""
        super().on_response_complete()
        self._watch_arrival()

    def _watch_arrival(self) -> None:
        """Time the head of a request; once it is there, its body is the guard's business."""
        is_waited_for = self.cycle is None or (self.cycle.response_complete and self.conn.trailing_data[0])
        if not is_waited_for and self._arrives is not None:
            self._arrives.cancel()
            self._arrives = None
        elif is_waited_for and self._arrives is None:
            self._arrives = self.loop.call_later(self.stall_s, self.transport.abort)

    def pause_writing(self) -> None:
        """Begin to wait for the client to read."""
        super().pause_writing()
        self._watch_reading()

    def _watch_reading(self, before: int | None = None) -> None:
        """Look every ``stall_s`` whether the client has read on: nothing new is written until it has."""
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            log.warning("A client read nothing of its answer for %g s; it was cut off.", self.stall_s)
            self.transport.abort()
        else:
            self._leaves = self.loop.call_later(self.stall_s, self._watch_reading, left)

    def resume_writing(self) -> None:
        """Go on: the client has read."""
        super().resume_writing()
        if self._leaves is not None:
            self._leaves.cancel()
            self._leaves = None

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for timer in (self._arrives, self._leaves):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
