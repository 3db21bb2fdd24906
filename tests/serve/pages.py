"""A real server with the page's routes and the page itself, for tests that talk to it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import urllib.request
from contextlib import contextmanager
from urllib.error import HTTPError

from stockpot.serve.running import prepare
from stockpot.serve.settings import ServeConfig
from stockpot.serve.views import PAGE, routes


class PageServer:
    """Where a server is, and plain requests to it."""

    def __init__(self, address, service):
        self.address, self.service = address, service

    def send(self, method, path, body=None, *, kind="application/json"):
        """Return the status and what was answered, as JSON where it is."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, method=method)
        if data is not None:
            request.add_header("content-type", kind)
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                status, told = reply.status, reply.read()
        except HTTPError as error:
            with error:
                status, told = error.code, error.read()
        try:
            return status, json.loads(told)
        except ValueError:
            return status, told.decode()

    def post(self, path, body):
        """Return what a POST that succeeds answers."""
        status, told = self.send("POST", path, body)
        assert status == 200, told
        return told

    def get(self, path):
        """Return what a GET that succeeds answers."""
        status, told = self.send("GET", path)
        assert status == 200, told
        return told

    def until(self, is_so, seconds=300.0):
        """Wait for a fact and return it."""
        end = time.monotonic() + seconds
        while not (found := is_so()):
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.05)
        return found


@contextmanager
def page_server(models, folder, *, refs=None, more=(), token=None, **choices):
    """Run a server with the page until the block ends; ``folder`` holds what it writes."""
    ready: list[str] = []
    made = [*more] or [lambda service: routes(service, folder / "feedback.db", refs or {}, **choices)]
    server, listening = prepare(
        models, ServeConfig(port=0, grace_s=1.0), routes=made, static=PAGE, token=token, ready=ready.append
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        while not ready:
            assert thread.is_alive()
            time.sleep(0.01)
        yield PageServer(ready[0], server.service)
    finally:
        server.handle_exit(15, None)
        thread.join()
        listening.close()
