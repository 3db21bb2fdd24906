"""How results and progress look: tables and JSON on stdout, progress on stderr.

On a terminal progress is drawn with bars; elsewhere it is a plain line now and then. Nothing here computes;
numbers arrive ready and leave as text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stockpot.cli.grammar import Common

__all__ = [
    "cell",
    "count",
    "document",
    "duration",
    "facts",
    "harmless",
    "progress",
    "reading",
    "result",
    "size",
    "stream",
    "table",
]

Event = dict[str, Any]
Progress = Callable[[Event], None]
PLAIN_EVERY_S = 10.0


# --- results ---


def document(value: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON lacks become null."""
    print(json.dumps(_plain(value), ensure_ascii=False))


def result(flags: Common, text: str, value: Any) -> None:
    """Print a result: ``value`` as JSON with ``--json``, else ``text``."""
    document(value) if flags.json else print(text)


def stream(text: str, end: str = "") -> None:
    """Print a piece of what a model writes, at once; on a terminal, control characters in it do nothing."""
    print(harmless(text), end=end, flush=True)


def harmless(text: str) -> str:
    """Replace control characters where a terminal would obey them."""
    return text.translate(_HARMLESS) if sys.stdout.isatty() else text


# A model or a file may hold anything, also the sequences with which a program commands a terminal.
_HARMLESS = {code: "\ufffd" for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"}


MANY = 20  # of a list that is shown


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows in aligned columns; columns of numbers stand at the right."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(headers))]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = []
    for line in [list(headers), ["-" * width for width in widths], *cells]:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        )
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def facts(pairs: dict[str, Any]) -> str:
    """Lay out names and values, one a line; None is left out, and the middle of a long list."""
    kept = {name: cell(_ends(value)) for name, value in pairs.items() if value is not None}
    width = max(map(len, kept), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in kept.items())


def _ends(value: Any) -> Any:
    """Leave out the middle of a list too long to read, such as a hundred sentinels."""
    return [*value[: MANY - 2], "…", value[-1]] if isinstance(value, list) and len(value) > MANY else value


def reading(pieces: Sequence[dict[str, Any]]) -> str:
    """Show an encoded record: what counts in the loss is green on a terminal and «quoted» elsewhere."""
    on_terminal = sys.stdout.isatty()
    green, plain, dim, end = (
        ("\x1b[32;1m", "\x1b[0m", "\x1b[2m", "\x1b[0m") if on_terminal else ("«", "»", "", "")
    )
    shown = (
        f"{green}{harmless(one['text'])}{plain}" if one["counts"] else f"{dim}{harmless(one['text'])}{end}"
        for one in pieces
    )
    counted = sum(one["tokens"] for one in pieces if one["counts"])
    return f"{''.join(shown)}\n{sum(one['tokens'] for one in pieces)} tokens, {counted} count"


def cell(value: Any) -> str:
    """Write one value of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return harmless(", ".join(map(str, value)))
    return harmless(str(value))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, type(None))) else str(value)


# --- numbers ---


def duration(seconds: float) -> str:
    """Write a time span: ``0:07``, ``12:30``, ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(number_bytes: float) -> str:
    """Write a number of bytes: ``312 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number_bytes < 1024 or unit == "GiB":
            return f"{number_bytes:.0f} B" if unit == "B" else f"{number_bytes:.1f} {unit}"
        number_bytes /= 1024
    raise AssertionError("unreachable")


def count(number: float) -> str:
    """Write a large count: ``950``, ``12.3 k``, ``1.5 M``."""
    for unit in ("", " k", " M", " G"):
        if number < 1000 or unit == " G":
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    raise AssertionError("unreachable")


# --- progress ---


@contextlib.contextmanager
def progress(flags: Common) -> Iterator[Progress]:
    """Yield the function that stages report to.

    Events: ``{"kind": "stage", "name"}``, ``{"kind": "step", "step", "steps", "loss", "tokens_per_s",
    "time_left_s", …}`` and ``{"kind": "note", "text"}``.
    """
    if flags.quiet:
        yield lambda event: None
    elif sys.stderr.isatty():
        with _bars() as draw:
            yield draw
    else:
        yield _Lines()


TOLD = ("reward", "kl", "margin")  # by which learning from people is followed; its loss says little


def _detail(event: Event) -> str:
    loss, speed, left = (event.get(name) for name in ("loss", "tokens_per_s", "time_left_s"))
    parts = [
        f"loss {loss:.3f}" if loss is not None else "",
        *(f"{name} {event[name]:.3g}" for name in TOLD if event.get(name) is not None),
        f"{count(speed)} tokens/s" if speed else "",
        f"{duration(left)} left" if left is not None and math.isfinite(left) else "",
    ]
    return "  ".join(part for part in parts if part)


class _Lines:
    """Progress where no terminal is: one line a stage, a note, and every ten seconds."""

    def __init__(self) -> None:
        self.stage = ""
        self.last = -math.inf

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event["kind"] == "stage":
            self.stage, self.last = event["name"], -math.inf
            print(f"{self.stage} …", file=sys.stderr, flush=True)
        elif event["kind"] == "note":
            self._print(event["text"])
        elif event["kind"] == "step" and (
            now - self.last >= PLAIN_EVERY_S or event["step"] == event.get("steps")
        ):
            self.last = now
            of = f"/{event['steps']}" if event.get("steps") else ""
            self._print(f"step {event['step']}{of}  {_detail(event)}".rstrip())

    def _print(self, line: str) -> None:
        print(f"{self.stage}: {line}" if self.stage else line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        SpinnerColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Bars(*columns, console=console) as bars:
        current: TaskID | None = None

        def draw(event: Event) -> None:
            nonlocal current
            if event["kind"] == "note":
                console.print(escape(event["text"]))
                return
            if event["kind"] == "stage" or current is None:
                if current is not None:
                    complete(current)
                current = bars.add_task(escape(event.get("name", "work")), total=None, detail="")
            if event["kind"] == "step":
                bars.update(current, completed=event["step"], total=event.get("steps"), detail=_detail(event))

        def complete(task: TaskID) -> None:
            done = bars.tasks[bars.task_ids.index(task)]
            bars.update(task, total=done.completed or 1, completed=done.completed or 1)

        yield draw
        if current is not None:
            complete(current)
