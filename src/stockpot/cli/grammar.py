"""The grammar that every verb shares: common flags, and how an ending becomes an exit code.

``verb`` adds the common flags to a function's own, so that a flag means the same everywhere by construction.
Exit codes: 0 done, 1 a known error (two lines: what happened, what to do), 2 wrong usage, 130 interrupted. A
traceback is shown only with ``--debug``. Nothing here knows a verb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup
from typer.models import OptionInfo

from stockpot.errors import StockpotError

__all__ = [
    "COMPUTES",
    "Common",
    "Making",
    "Model",
    "Resuming",
    "Settling",
    "Terminated",
    "app",
    "tell_how_to_go_on",
    "verb",
]


class _Verbs(TyperGroup):
    """All the verbs."""

    def get_params(self, ctx: Any) -> list[Any]:
        """List what stands before a verb."""
        return _without_types(super().get_params(ctx))


app = typer.Typer(
    name="stockpot",
    cls=_Verbs,
    help="From raw text to a model that answers: train, use and judge language models.",
    epilog="`stockpot VERB --help` explains a verb. `stockpot cook` does everything once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

COMMON, MAKER, COMPUTING = "Flags of every verb", "Flags of every maker", "Flags of verbs that compute"
COMPUTES = ("device", "dtype", "seed")
"""What a verb that reads and writes files only has no use for."""
DTYPES = ("float32", "bfloat16", "float16")


def _is_dtype(value: str | None) -> str | None:
    if value is not None and value not in DTYPES:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(DTYPES)}.")
    return value


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run, a checkpoint, a Hugging Face folder, a GGUF file or a known name (smollm2).",
    ),
]
"""The argument of every verb that uses a model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """The flags of every verb."""

    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="cpu, cuda, cuda:1 …; by default the fastest present.",
            rich_help_panel=COMPUTING,
        ),
    ] = None
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="float32, bfloat16 or float16; by default what suits the device.",
            callback=_is_dtype,
            rich_help_panel=COMPUTING,
        ),
    ] = None
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Same seed, same result on the same device.", rich_help_panel=COMPUTING),
    ] = None
    json: Annotated[
        bool, typer.Option("--json", help="Results as JSON on stdout.", rich_help_panel=COMMON)
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=COMMON)
    ] = False
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=COMMON)
    ] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settling(Common):
    """The flags of every verb that reads settings."""

    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|FILE", help="Settings from a recipe; later ones win.", rich_help_panel=MAKER
        ),
    ] = None
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting, such as loop.steps=200; --dry-run lists all.",
            rich_help_panel=MAKER,
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Making(Settling):
    """The flags of every verb that makes a folder."""

    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The run's folder; by default runs/VERB, of cook runs/village.",
            rich_help_panel=MAKER,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the resolved settings, sizes, memory and time; start nothing.",
            rich_help_panel=MAKER,
        ),
    ] = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resuming(Making):
    """The flags of every verb whose interrupted work goes on when asked to."""

    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel=MAKER)
    ] = False


def verb(
    name: str, *, panel: str, flags: type[Common] = Common, without: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``function(flags, *, …)`` as a verb: its own parameters first, then those of ``flags``.

    Args:
        name: what one types.
        panel: the group the verb is listed under.
        flags: the class of common flags it takes.
        without: those of them that it has no use for, which it does not take.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(flags, include_extras=True)
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name]
            )
            for one in dataclasses.fields(flags)
            if one.name not in without
        ]

        def command(**values: Any) -> None:
            given = flags(**{one.name: values.pop(one.name) for one in shared})
            with _exit_codes(debug=given.debug):
                function(given, **values)

        parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own] + shared
        for one in parameters:
            _name_value(one.annotation)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__doc__ = function.__doc__
        app.command(name, cls=_Verb, rich_help_panel=panel)(command)
        return function

    return register


def _without_types(params: list[Any]) -> list[Any]:
    """Let the help call what a command takes by name alone: types such as ``<list[str]>`` say nothing to a user."""
    for one in params:
        if isinstance(one, TyperArgument) or one.name in ("help", "install_completion", "show_completion"):
            one.display_type_rich = lambda ctx: None
    return params


class _Verb(TyperCommand):
    """A command that says where words belong which it has no place for."""

    allow_extra_args = True  # they are told of here

    def get_params(self, ctx: Any) -> list[Any]:
        """List what the verb takes."""
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words behind the verb."""
        left: list[str] = super().parse_args(ctx, args)
        if left and not ctx.resilient_parsing:
            takes_data = any("--data" in one.opts for one in self.params)
            where = f" Data is named with an option: --data {left[0]}" if takes_data else ""
            ctx.fail(f"There is no place for {' '.join(left)}.{where}")
        return left


_VALUE_NAMES: dict[object, str] = {bool: "", int: "N", float: "X", str: "TEXT"}


def _name_value(annotation: Any) -> None:
    """Let the help call an option's value by a short name, and that of a switch not at all."""
    kind, *about = get_args(annotation) or (annotation,)
    named = next((one for one in get_args(kind) or (kind,) if one in _VALUE_NAMES), None)
    for info in about:
        if isinstance(info, OptionInfo) and info.metavar is None and named is not None:
            info.metavar = _VALUE_NAMES[named]


# --- endings ---


class Terminated(KeyboardInterrupt):
    """SIGTERM: end as Ctrl-C does, where Ctrl-C means to leave."""


@contextlib.contextmanager
def tell_how_to_go_on(verb: str, out: Path) -> Iterator[None]:
    """Print the command that continues the run in ``out`` when the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        from stockpot.origin import command_line
        from stockpot.run import is_run

        command = f"stockpot {verb} --out {shlex.quote(str(out))} --resume" if is_run(out) else command_line()
        if _is_first():
            print(f"Interrupted. Continue with:\n  {command}", file=sys.stderr)
        raise typer.Exit(130) from None


@contextlib.contextmanager
def _exit_codes(*, debug: bool) -> Iterator[None]:
    """Turn the ending of a verb into an exit code and at most a few lines on stderr."""
    with _terminate_like_ctrl_c(), warnings.catch_warnings(), _log_as_warnings():
        warnings.showwarning = _one_line_warning
        try:
            yield
            sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
            raise typer.Exit(0) from None
        except KeyboardInterrupt:
            print("Interrupted.", file=sys.stderr)
            raise typer.Exit(130) from None
        except (StockpotError, OSError, MemoryError) as error:
            if debug:
                raise
            if _may_tell():
                print(_two_lines(error), file=sys.stderr)
            raise typer.Exit(1) from None
        except Exception as error:
            if debug or isinstance(error, _OF_TYPER):
                raise
            if _may_tell():
                print(_unknown(error), file=sys.stderr)
            raise typer.Exit(1) from None


_OF_TYPER = (typer.Exit, typer.Abort, typer.BadParameter)


def _is_first() -> bool:
    """Whether this is the process that speaks, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _may_tell() -> bool:
    """Let one of the processes that torchrun started tell of an error, the first to meet it."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from stockpot.train.parallel import is_first_to_tell

    return is_first_to_tell()


def _two_lines(error: BaseException) -> str:
    if isinstance(error, StockpotError):
        what, todo = error.what, error.todo
    elif isinstance(error, OSError):
        named = f"{error.filename}: " if error.filename else ""
        what, todo = f"{named}{error.strerror or error}", "Check the path, its permissions and the disk."
    else:
        what, todo = "The memory is not enough.", "Use a smaller model, context or batch."
    lines = [f"error: {' '.join(what.split())}"]
    return "\n".join(lines + [f"       {' '.join(todo.split())}"] * bool(todo))


def _unknown(error: Exception) -> str:
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    todo = "Run it again with --debug and report what it prints."
    return f"error: something unforeseen happened ({what[:300]}).\n       {todo}"


def _one_line_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if _is_first():
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _one_line_warning(record.getMessage(), Warning)


@contextlib.contextmanager
def _log_as_warnings() -> Iterator[None]:
    """Show what the rooms log (records left out, text replaced …) as warnings are shown."""
    logger, handler = logging.getLogger("stockpot"), _OneLine(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _close_stdout() -> None:
    # What reads our output has gone; without this, Python complains once more when it exits.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _terminate_like_ctrl_c() -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
