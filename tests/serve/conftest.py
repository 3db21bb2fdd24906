"""A real server on a loopback port, with tiny models, and clients that reach it over the network."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model import config
from stockpot.model.config import StackConfig
from stockpot.model.sight import ImageReader, ReaderConfig, attach_sight
from stockpot.model.transformer import Transformer
from stockpot.model.vision import ImageConfig, ImageEncoder
from stockpot.serve.running import prepare
from stockpot.serve.settings import ServeConfig
from stockpot.text.chat import ChatTemplate
from stockpot.text.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat and the dog ran far away",
    "one two three four five six seven",
    "héllo wörld, naïve café 😀😀 日本語",
] * 20
LOOKS_S = 20.0  # how long a test waits for what should come at once, on a busy machine


def make_bundle(tokenizer, shape="decoder", *, seed=0, delay_s=0.0, is_chat=True, context=256):
    torch.manual_seed(seed)
    sizes = {"layers": 2, "dim": 32, "heads": 4, "context": context, "zero_init": False}
    model = Transformer(getattr(config, shape)(vocab_size=tokenizer.vocab_size, **sizes)).eval()
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.3) if param.ndim > 1 else param.fill_(1.0)
        model.embed.weight.normal_(std=0.7)
    if delay_s:
        model.register_forward_pre_hook(lambda *_: time.sleep(delay_s))
    return Bundle(model, tokenizer, ChatTemplate.of(tokenizer) if is_chat else None)


class Running:
    """A server in a thread, and plain requests to it."""

    def __init__(self, server, address):
        self.server, self.service, self.address = server, server.service, address
        self.port = int(address.rpartition(":")[2])

    def send(self, method, path, body=None, headers=None, timeout=60.0):
        """Return status, headers (lower case) and body of one request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            named = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, data, named | (headers or {}))
            reply = connection.getresponse()
            return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            connection.close()

    def post(self, path, body, headers=None):
        """Return the status and the JSON of a POST."""
        status, _, found = self.send("POST", path, body, headers)
        return status, json.loads(found)

    def get(self, path, headers=None):
        """Return the status and the JSON of a GET."""
        status, _, found = self.send("GET", path, headers=headers)
        return status, json.loads(found)

    def until(self, is_so):
        """Wait for a fact."""
        end = time.monotonic() + LOOKS_S
        while not is_so():
            assert time.monotonic() < end, "it did not come about"
            time.sleep(0.01)


@contextmanager
def running(models, *, token=None, **settings):
    """Run a server until the block ends."""
    ready: list[str] = []
    given = ServeConfig(**{"port": 0, "grace_s": 1.0} | settings)
    server, listening = prepare(models, given, token=token, ready=ready.append)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
    thread.start()
    try:
        while not ready:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(server, ready[0])
    finally:
        server.handle_exit(15, None)
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=360)


@pytest.fixture(scope="session")
def bundle(tokenizer):
    return make_bundle(tokenizer)


@pytest.fixture(scope="session")
def make(tokenizer):
    """Make a tiny model."""
    return lambda *args, **choices: make_bundle(tokenizer, *args, **choices)


@pytest.fixture(scope="session")
def make_eyed(tokenizer):
    """Make a tiny model with eyes."""

    def make_one(seed):
        found = make_bundle(tokenizer, seed=seed)
        stack = StackConfig(
            layers=1, dim=16, heads=2, context=5, attends="bidirectional", position="learned", qk_norm=None
        )
        tower = ImageEncoder(ImageConfig(image_size=8, patch_size=4, stack=stack))
        reader = ImageReader(ReaderConfig(image=tower.config, dim=32), tower, std=1.0)
        attach_sight(found.model, reader.eval())
        return found

    return make_one


@pytest.fixture(scope="session")
def run_server():
    """Run a server with some models and bounds."""
    return running


@pytest.fixture(scope="module")
def server(bundle, tokenizer):
    """Run a server with a model that chats, one that continues texts and one that makes vectors."""
    models = {
        "tiny": bundle,
        "base": make_bundle(tokenizer, seed=1, is_chat=False),
        "vectors": make_bundle(tokenizer, "encoder"),
    }
    with running(models) as one:
        yield one
