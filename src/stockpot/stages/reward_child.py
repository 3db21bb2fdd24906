"""Rate replies with a user's function in a process of its own.

A reward function is a program that runs for hours beside the training: one that hangs, crashes or ends its process must not end
the training. It may import what it likes and is as free as any program of the user; this is no protection from
strangers' code. The child is this very file, run by path, so it must import nothing but the standard library.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["TIMEOUT_S", "RewardChild"]

TIMEOUT_S = 60.0
START_S = 120.0  # a file may import large libraries


class RewardChild:
    """A child process that holds one function.

    Args:
        file: the user's Python file.
        function: its name in the file.
        timeout_s: longest time one call may take.

    Raises:
        RuntimeError: if the file cannot be imported or has no such function.
    """

    def __init__(self, file: Path, function: str, *, timeout_s: float = TIMEOUT_S) -> None:
        from stockpot.child import LineChild  # here, since the child must not need it

        command = [sys.executable, "-P", str(Path(__file__).resolve())]
        self._child, self._timeout_s = LineChild(command, [str(file), function], start_s=START_S), timeout_s
        _unless_failed(self._child.start())

    def __call__(self, replies: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Rate replies; each becomes an object with the mapping's names.

        Raises:
            RuntimeError: if the function raised, or its process ended.
            TimeoutError: if it took too long.
        """
        found: list[Any] = _unless_failed(self._child.ask([dict(one) for one in replies], self._timeout_s))
        return found

    def close(self) -> None:
        """End the child; the next call starts another."""
        self._child.close()


def _unless_failed(answer: tuple[bool, Any]) -> Any:
    failed, value = answer
    if failed:
        raise RuntimeError(value)
    return value


# --- in the child ---


def _serve() -> None:
    """Answer lines of JSON: first file and function, then lists of replies, each with [whether it raised, value]."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the function prints goes to the terminal, not between the answers
    rate: Callable[..., Any] | None = None
    for line in sys.stdin:
        try:
            question = json.loads(line)
            if rate is None:
                rate, value = _imported(Path(question[0]), question[1]), None
            else:
                value = [float(one) for one in rate([SimpleNamespace(**reply) for reply in question])]
            answer = json.dumps([False, value])
        except Exception as error:  # noqa: BLE001 - a user's program may raise anything
            answer = json.dumps([True, f"{type(error).__name__}: {error}"])
        answers.write(answer + "\n")
        answers.flush()


def _imported(file: Path, name: str) -> Callable[..., Any]:
    sys.path.insert(0, str(file.parent))  # a program finds the files beside it
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise AttributeError(f"there is no function {name!r} in it")
    return found  # type: ignore[no-any-return]


if __name__ == "__main__":
    _serve()
