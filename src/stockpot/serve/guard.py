"""What stands in front of every route: who may ask, from where, how much, and how fast.

A browser is the danger on a loopback address: any page it shows can send requests here, and a name that resolves to 127.0.0.1
makes them look like our own. So the Host must be one of ours, an Origin must be the same as the Host, a body must be JSON, and
no answer allows other origins. Bodies are counted and timed while they arrive. What is refused is refused before it is read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stockpot.serve.protocol import UNFORESEEN, Refusal
from stockpot.serve.service import Service

__all__ = ["UPLOADS", "Guard", "Upload", "is_loopback"]

log = logging.getLogger("stockpot.serve")


@dataclass(frozen=True)
class Upload:
    """A route that takes files: its largest body, the types it takes, and how long one may take to arrive."""

    most_bytes: int = 32 << 20
    types: tuple[str, ...] = ("application/octet-stream",)
    timeout_s: float = 300.0


UPLOADS = {"/v1/documents": Upload()}

SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
OPEN = ("/health",)  # paths that need no token, beside the page's
OURS = ("/v1", "/metrics", "/openapi.json")  # what is not the page
LINGER_S, LINGER_BYTES = 2.0, 64 << 20


class Guard:
    """Middleware that lets through what is allowed.

    Args:
        app: what it guards.
        service: whose bounds and counts are used.
        token: what requests have to bring; None: nothing.
    """

    def __init__(self, app: ASGIApp, *, service: Service, token: str | None = None) -> None:
        self._app, self._service = app, service
        self._token = None if token is None else token.encode()
        self._config = service.settings
        self._is_local = is_loopback(self._config.host)
        self._hosts = {"localhost", self._config.host, *self._config.hosts}
        self._most = self._config.slots + self._config.queue + 64

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sends = _Sending(send, is_page=_is_page(scope["path"]))
        metrics = self._service.metrics
        has_body, metrics.under_way = _has_body(scope), metrics.under_way + 1
        body = _Body(receive)
        try:
            self._refuse(scope)
            upload = UPLOADS.get(scope["path"]) if has_body else None
            if upload is not None:
                await self._app(scope, body.limited(upload.most_bytes, upload.timeout_s), sends)
            else:
                if has_body:
                    await body.read(self._config.body_bytes, self._config.stall_s)
                await self._app(scope, body.replay, sends)
        except Refusal as refusal:
            await self._say_no(refusal, body if has_body and not body.is_complete else None, sends)
        except Exception:
            log.exception("Something unforeseen happened in %s %s.", scope["method"], _route(scope))
            await self._say_no(Refusal(500, UNFORESEEN), None, sends)
        finally:
            metrics.under_way -= 1
            metrics.answered(_route(scope), sends.status)

    # --- who, from where, how much ---

    def _refuse(self, scope: Scope) -> None:
        """Refuse by the head of a request alone.

        Raises:
            Refusal: that says why.
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path, method = scope["path"], scope["method"]
        self._refuse_host(headers.get("host", ""))
        _refuse_origin(headers, is_visit=method == "GET" and _is_page(path))
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self._config.header_bytes:
            raise Refusal(431, "The head of the request is too large.", code="headers_too_large")
        if self._token is not None and not _is_page(path) and path not in OPEN:
            self._refuse_stranger(headers.get("authorization", ""))
        if path in OPEN or path == "/metrics":
            return
        if self._service.metrics.under_way > self._most:
            raise Refusal(
                503, "Too many requests at once. Try again later.", code="overloaded", retry_after_s=2
            )
        self._refuse_body(path, method, headers)

    def _refuse_host(self, host: str) -> None:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        name = name.strip("[]").lower().rstrip(".")
        address = _address(name)
        # An address cannot be made to point elsewhere, as a name can; with a token even that would not help.
        if name in self._hosts or (address is not None and (address.is_loopback or not self._is_local)):
            return
        raise Refusal(
            421, "This server is not known by that Host. Allow it with --allow-host.", code="unknown_host"
        )

    def _refuse_stranger(self, authorization: str) -> None:
        kind, _, given = authorization.partition(" ")
        is_right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token or b"")
        if kind.lower() != "bearer" or not is_right:
            raise Refusal(
                401,
                "The token is missing or wrong: send Authorization: Bearer TOKEN.",
                code="invalid_api_key",
            )

    def _refuse_body(self, path: str, method: str, headers: dict[str, str]) -> None:
        upload = UPLOADS.get(path)
        types = ("application/json",) if upload is None else upload.types
        given = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method in ("POST", "PUT", "PATCH") and given not in types:
            raise Refusal(
                415, f"The Content-Type must be {' or '.join(types)}.", code="unsupported_media_type"
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "Compressed bodies are not taken.", code="unsupported_encoding")
        most = self._config.body_bytes if upload is None else upload.most_bytes
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdecimal() or len(length) > 15 or int(length) > most:
            raise _too_large(most)

    # --- refusals ---

    async def _say_no(self, refusal: Refusal, unread: _Body | None, sends: _Sending) -> None:
        """Send an error. What is still coming is thrown away for a moment, so that the client can read the answer."""
        if sends.status:
            return  # too late: the server closes the connection
        body = json.dumps(refusal.body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
        if unread is not None:
            headers["connection"] = "close"
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await sends({"type": "http.response.start", "status": refusal.status, "headers": raw})
        await sends({"type": "http.response.body", "body": body, "more_body": unread is not None})
        if unread is not None:
            await unread.drain()
            await sends({"type": "http.response.body", "body": b"", "more_body": False})


class _Sending:
    """Sends, adds the headers that protect browsers, and remembers the status."""

    def __init__(self, send: Send, *, is_page: bool) -> None:
        self._send, self._is_page, self.status = send, is_page, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = SECURITY | (
                {"cache-control": "no-cache"} if self._is_page else {"cache-control": "no-store"}
            )
            headers = [
                one for one in message.get("headers", ()) if one[0].decode("latin-1").lower() not in own
            ]
            message = {**message, "headers": headers + [(n.encode(), v.encode()) for n, v in own.items()]}
        await self._send(message)


class _Body:
    """A body on its way in."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._whole, self.is_complete = receive, b"", False
        self._is_given = False

    async def read(self, most: int, timeout_s: float) -> None:
        """Take all of it.

        Raises:
            Refusal: 413 or 408.
        """
        receive = self.limited(most, timeout_s)
        parts = []
        while not self.is_complete:
            parts.append((await receive()).get("body", b""))
        self._whole = b"".join(parts)

    def limited(self, most: int, timeout_s: float) -> Receive:
        """Return a way to receive that gives up on a body that is too large or too slow."""
        left, deadline = most, asyncio.get_running_loop().time() + timeout_s

        async def receive() -> Message:
            nonlocal left
            if self.is_complete:
                return await self._receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await self._receive()
            except TimeoutError:
                raise Refusal(
                    408, f"The body did not arrive in {timeout_s:g} s.", code="request_timeout"
                ) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(most)
            self.is_complete = not message.get("more_body", False)
            return message

        return receive

    async def replay(self) -> Message:
        """Give the body that was read, then what follows it."""
        if self._is_given:
            return await self._receive()
        self._is_given = True
        return {"type": "http.request", "body": self._whole, "more_body": False}

    async def drain(self) -> None:
        """Throw away what is still coming, for a moment."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _has_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value.strip() != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"The body is larger than {most:,} bytes.", code="request_too_large")


def _refuse_origin(headers: dict[str, str], *, is_visit: bool) -> None:
    """Refuse what a browser sends for a page of somebody else; following a link to our page is allowed."""
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none").lower()
    host = headers.get("host", "").lower()
    is_ours = origin is None or origin.lower() in (f"http://{host}", f"https://{host}")
    is_link = is_visit and headers.get("sec-fetch-mode", "").lower() == "navigate"
    if not is_ours or (site not in ("none", "same-origin") and not is_link):
        raise Refusal(403, "Requests from other sites are refused.", code="cross_site_request")


def _is_page(path: str) -> bool:
    return path not in OPEN and not any(path == one or path.startswith(f"{one}/") for one in OURS)


def _route(scope: Scope) -> str:
    """Name a request's route as the program does, so that counts stay few."""
    route = getattr(scope.get("route"), "path", None)
    return route if isinstance(route, str) and route else "other"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    address = _address(host.strip("[]"))
    return host == "localhost" or (address is not None and address.is_loopback)
