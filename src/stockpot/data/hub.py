"""Data sets of the Hugging Face hub, streamed through the ``datasets`` library.

Without a network this is told at once: the library would try for half a minute. Nothing is fetched unless a source names the hub.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from stockpot.data.reading import shown
from stockpot.errors import DataError

__all__ = ["stream"]


def stream(source: str, path: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set.

    Args:
        source: what the user named, for messages.
        path: owner and name.
        config: its configuration; None: the only one.
        split: its part.

    Raises:
        DataError: if the package is absent, the hub cannot be reached, or the data set cannot be read.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"{source}: the hub needs a package.", "Install it: pip install 'stockpot[hub]'"
        ) from None
    hint = "Check its name and the network, or name a local file instead."
    if (why := _unreachable()) is not None:
        raise DataError(f"{source}: the hub cannot be reached ({why}).", hint)
    try:
        names = (path,) if config is None else (path, config)
        yield from map(dict, datasets.load_dataset(*names, split=split, streaming=True))
    except Exception as error:  # noqa: BLE001 - the library raises whatever its file systems raise
        text = shown(" ".join(str(error).split()), 200)
        raise DataError(f"{source}: the data set cannot be read ({text}).", hint) from None


def _unreachable() -> str | None:
    """Say why nobody answers to the hub's name; None if somebody does, or a proxy is to find out."""
    from huggingface_hub import constants

    host = urlparse(constants.ENDPOINT).hostname or ""
    if urllib.request.getproxies():
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"{host}: {error.strerror}"
    return None
