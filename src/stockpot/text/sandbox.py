"""Render Jinja chat templates where they can do no harm.

A template comes with a downloaded model, so it is a stranger's program. It gets Jinja's immutable sandbox, no
loader, no attribute that begins with ``_``, and runs in a child process with limits on time and memory, that
is killed when it passes them. The child is this very file, run by path, so it must import nothing but Jinja
and the standard library at the top.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = [
    "GENERATION",
    "MAX_CHARACTERS",
    "TIMEOUT_S",
    "Renderer",
    "TemplateRefusedError",
    "Worker",
    "compile_template",
]

TIMEOUT_S = 1.0
MAX_CHARACTERS = 1 << 20
_MEMORY_BYTES = 1 << 30
_LOOK_UP_S = 1.0  # an idle child looks this often whether its parent lives
_PATIENCE = 20.0  # on a busy machine a second of computing takes long
_START_S = 20.0  # starting Python on a busy machine is not the template's fault

GENERATION = "generation_marks"
"""Name of the variable with the two marks put around ``{% generation %}`` blocks."""

Renderer = Callable[[Sequence[Mapping[str, Any]]], list[str]]
"""Renders one template with several sets of variables."""


class TemplateRefusedError(Exception):
    """A template is wrong, or did what is not allowed; the message is one line."""


class _Generation(Extension):
    """The block ``{% generation %}…{% endgeneration %}``: what the assistant wrote, put between two marks."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's name and type

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = nodes.Name(GENERATION, "load")
        call = self.call_method("_surround", [marks])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _surround(self, marks: Any, caller: Callable[[], str]) -> str:
        return f"{marks[0]}{caller()}{marks[1]}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, refusing aloud instead of with an empty value, and limiting single operations."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it reaches for the attribute {attribute!r}")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for text, times in ((left, right), (right, left)):
                if (
                    isinstance(text, (str, list, tuple))
                    and isinstance(times, int)
                    and len(text) * times > MAX_CHARACTERS
                ):
                    raise SecurityError("it repeats a text too often")
        if operator == "**" and not (abs(left) < 1 << 32 and abs(right) < 64):
            raise SecurityError("it raises to too high a power")
        return super().call_binop(context, operator, left, right)


def _environment() -> Environment:
    environment = _Sandbox(
        loader=None,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, "jinja2.ext.loopcontrols"],
    )
    environment.globals.pop("lipsum", None)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _to_json
    return environment


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def compile_template(source: str) -> Renderer:
    """Return a renderer that runs in this process. For templates that are trusted to end.

    Raises:
        TemplateRefusedError: now if the template cannot be read; later if it does what is not allowed.
    """
    try:
        template = _environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise TemplateRefusedError(_one_line(error)) from None

    def render(cases: Sequence[Mapping[str, Any]]) -> list[str]:
        try:
            return [_within_size(template.generate(dict(variables))) for variables in cases]
        except MemoryError:
            raise TemplateRefusedError("it needs too much memory") from None
        except Exception as error:  # noqa: BLE001 - a stranger's program may raise anything
            raise TemplateRefusedError(_one_line(error)) from None

    return render


def _within_size(parts: Iterable[str]) -> str:
    kept: list[str] = []
    held = 0
    for part in parts:
        kept.append(part)
        held += len(part)
        if held > MAX_CHARACTERS:
            raise SecurityError(f"it writes more than {MAX_CHARACTERS} characters")
    return "".join(kept)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


class Worker:
    """A child process that renders one template within limits, started at the first use.

    Args:
        source: the template.
        timeout_s: longest time one rendering may compute.
    """

    def __init__(self, source: str, *, timeout_s: float = TIMEOUT_S) -> None:
        from stockpot.child import LineChild  # here, since the child must not need it

        command = [sys.executable, "-I", str(Path(__file__).resolve())]
        # an empty environment: nothing for a template to find
        self.child = LineChild(command, source, start_s=_START_S, env={}, is_silent=True, patience=_PATIENCE)
        self._timeout_s = timeout_s

    def render(self, cases: Sequence[Mapping[str, Any]]) -> list[str]:
        """Render with each of several sets of variables (values that JSON can hold).

        Raises:
            TemplateRefusedError: if the template is wrong, forbidden, too slow or too large.
        """
        try:
            refused, texts = self.child.ask([dict(variables) for variables in cases], self._timeout_s)
        except (TimeoutError, RuntimeError):
            raise TemplateRefusedError(
                f"it was stopped: a rendering may take {self._timeout_s:g} s and 1 GiB of memory"
            ) from None
        if refused:
            raise TemplateRefusedError(texts[0])
        return list(texts)

    def close(self) -> None:
        """End the child; the next rendering starts another."""
        self.child.close()


def _serve() -> None:
    """Answer lines of JSON: first the template, then lists of variables, each with [was refused, texts]."""
    _limit_memory()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    render: Renderer | None = None
    answer: tuple[bool, list[str]]
    for line in _questions(int(sys.argv[1])):
        try:
            if render is None:
                render, answer = compile_template(json.loads(line)), (False, [])
            else:
                answer = (False, render(json.loads(line)))
        except TemplateRefusedError as error:
            answer = (True, [str(error)])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _questions(parent: int) -> Iterator[str]:
    """Yield the lines of stdin until it ends or the parent is gone: a fork of it may hold the pipe open."""
    if os.name != "posix":
        yield from sys.stdin
        return
    while True:
        if not select.select([sys.stdin], [], [], _LOOK_UP_S)[0]:
            if os.getppid() != parent:
                return
        elif line := sys.stdin.readline():
            yield line
        else:
            return


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows: the limits on time and size remain
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))


if __name__ == "__main__":
    _serve()
