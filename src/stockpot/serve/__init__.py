"""The server: models answer over HTTP, as OpenAI's service does, to people and programs that do not trust each other.

``from stockpot.serve import serve`` runs it; `Service` is the same without HTTP.
"""

from __future__ import annotations

from typing import Any

__all__ = ["serve"]  # noqa: F822 - imported when it is asked for


def __getattr__(name: str) -> Any:
    """Import what runs a server when it is first asked for: it needs the extra ``serve``, the rest of the room does not."""
    if name != "serve":
        raise AttributeError(f"module 'stockpot.serve' has no attribute {name!r}")
    from stockpot.serve.running import serve

    return serve
