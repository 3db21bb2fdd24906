"""How much a server takes on: every bound on what strangers may ask of it stands here, with its unit."""

from __future__ import annotations

from pydantic import Field

from stockpot.config import Settings

__all__ = ["ServeConfig"]


class ServeConfig(Settings):
    """How models are served."""

    host: str = Field("127.0.0.1", description="address to listen on; any but a loopback needs a token")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0: any that is free")
    hosts: tuple[str, ...] = Field(
        (), description="further names by which browsers may call this server, without port"
    )
    slots: int = Field(32, ge=1, le=1024, description="answers a model writes at once; further ones wait")
    queue: int = Field(256, ge=0, description="answers that may wait for a model; further ones are refused")
    connections: int = Field(900, ge=1, description="most connections open at once")
    cache_mib: int = Field(
        4096, ge=1, description="memory for answers under way, each model; who does not fit waits"
    )
    prefix_mib: int = Field(256, ge=0, description="memory for beginnings that were read before, each model")
    compiles: bool = Field(
        False,
        description="on a GPU: compile the step that writes several answers; quicker, after half a minute at the first of a size",
    )
    max_tokens: int = Field(2048, ge=1, description="longest answer, in tokens, whatever is asked for")
    timeout_s: float = Field(
        600.0, gt=0, description="seconds after which an answer is cut, waiting included"
    )
    stall_s: float = Field(
        20.0, gt=0, description="seconds in which a request must arrive, and in which a client must read on"
    )
    grace_s: float = Field(6.0, ge=0, description="seconds that running answers have to end at a stop")
    body_bytes: int = Field(1 << 20, ge=1024, description="largest body of a request")
    header_bytes: int = Field(32 << 10, ge=1024, description="largest head of a request")
