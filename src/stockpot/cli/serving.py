"""The verb that serves models over HTTP."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stockpot.cli import show
from stockpot.cli.grammar import Common, verb
from stockpot.cli.use import kind_of_weights
from stockpot.errors import ConfigError, ServeError

if TYPE_CHECKING:
    from stockpot.bundle import Bundle

__all__ = ["Serving", "serve"]


HOW = "Where and to whom"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving(Common):
    """Flags of the server."""

    host: Annotated[
        str | None,
        typer.Option(help="Address to listen on; others than 127.0.0.1 need --token.", rich_help_panel=HOW),
    ] = None
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on; 0: any.", rich_help_panel=HOW),
    ] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="new|FILE",
            help="What requests must bring: a new one, shown once, or a file's line.",
            rich_help_panel=HOW,
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further name of this server; may be repeated.", rich_help_panel=HOW
        ),
    ] = None
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Answer chats from the documents of this index.")
    ] = None
    feedback: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Where votes go; made with the first. Uploads and trained models lie in FILE-files beside it.",
        ),
    ] = Path("feedback.db")
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Queue these prompts to be compared on the page.")
    ] = None
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="int8 or int4: round the weights and write faster on a CPU; none: floats. By default none, of smollm2 int4.",
        ),
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other bound, such as slots=16."),
    ] = None


@verb("serve", panel="Use", flags=Serving, without=("seed",))
def serve(
    flags: Serving,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]MODEL[+ADAPTER]…",
            help="What to serve, each under a name for clients; adapters may be laid over a model.",
        ),
    ],
) -> None:
    """Serve models to programs, as OpenAI's API does, and to people, on a page: chat, look inside, vote, train on the votes."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ServeError(
            "Serving needs FastAPI and uvicorn.", "Install them: pip install 'stockpot[serve]'"
        ) from None
    from stockpot.config import build
    from stockpot.serve import serve as run
    from stockpot.serve.guard import is_loopback
    from stockpot.serve.settings import ServeConfig
    from stockpot.serve.views import PAGE, routes

    given: dict[str, Any] = {
        "host": flags.host,
        "port": flags.port,
        "hosts": tuple(flags.allow_host) if flags.allow_host else None,
    }
    config = build(ServeConfig, sets=flags.sets or (), flags=given)
    if flags.token is None and not is_loopback(config.host):
        raise typer.BadParameter(
            f"{config.host} can be reached from other machines: add --token new (or a file)."
        )
    secret = _token(flags.token)
    named = dict(_named(one) for one in models)
    if len(named) < len(models):
        raise ConfigError("Two models have the same name.", "Name them: stockpot serve a=MODEL b=MODEL.")
    opened = {name: _open(ref, adapters, flags) for name, (ref, adapters) in named.items()}
    passages = None
    if flags.index is not None:
        from stockpot.prompt.index import Index

        passages = Index.open(flags.index)

    def ready(address: str) -> None:
        show.result(
            flags,
            f"{', '.join(opened)} at {address} (the page; OpenAI's API: {address}/v1); Ctrl-C stops.",
            {"address": address, "models": list(opened)},
        )
        if not is_loopback(config.host):
            print("warning: other machines can reach this server, and nothing is encrypted.", file=sys.stderr)

    refs = {name: ref for name, (ref, adapters) in named.items() if not adapters}
    prompts = None if flags.prompts is None else str(flags.prompts)
    page = partial(routes, feedback=flags.feedback, refs=refs, prompts=prompts)
    run(opened, config, token=secret, index=passages, routes=[page], static=PAGE, ready=ready)


def _token(given: str | None) -> str | None:
    """Make or read what requests must bring."""
    if given is None:
        return None
    if given != "new":
        try:
            token = Path(given).read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{given}: the token cannot be read ({error}).", "Give 'new' or a file."
            ) from None
        if not token:  # everybody would bring it
            raise ConfigError(f"{given}: holds no token.", "Give 'new', or a file with a line in it.")
        return token
    from stockpot.serve.running import new_token

    token = new_token()
    print(f"token (shown once): {token}", file=sys.stderr, flush=True)
    return token


def _named(given: str) -> tuple[str, tuple[str, list[str]]]:
    """Read NAME=MODEL+ADAPTER: the name and the adapters may be missing; a path that is there is taken whole."""
    name, equals, rest = given.partition("=")
    if not equals or not name or Path(given).exists() or "/" in name:
        name, rest = "", given
    ref, *adapters = [rest] if Path(rest).exists() else rest.split("+")
    return name or Path(adapters[-1] if adapters else ref).name, (ref, adapters)


def _open(ref: str, adapters: list[str], flags: Serving) -> Bundle:
    from stockpot.weights.store import load

    kind = kind_of_weights(ref, flags.quantize, flags)
    return load(ref, device=flags.device, dtype=flags.dtype, quantize=kind, adapters=adapters)
