"""Try a stranger's JSON schema in a child process before the engine takes it: some take hours to compile.

The patterns in a schema are a small program. The child compiles it within a limit of time and memory and is killed when it passes
it; what it could compile, the engine's thread compiles as fast. The child is this very file, run by path, so it must import
nothing but llguidance and the standard library at the top.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

__all__ = ["Schemas"]

TIMEOUT_S = 1.0
START_S = 20.0  # starting Python on a busy machine is not the schema's fault
REMEMBERED = 64
MEMORY_BYTES = 1 << 30


class Schemas:
    """Says whether schemas can be compiled in reasonable time; one thread asks at a time."""

    def __init__(self) -> None:
        from stockpot.child import LineChild  # here, since the child must not need it

        command = [sys.executable, "-I", str(Path(__file__).resolve())]
        self._child = LineChild(command, "begin", start_s=START_S, env={}, is_silent=True)
        self._known: OrderedDict[str, str] = OrderedDict()

    def complaint(self, schema: dict[str, Any]) -> str:
        """Return why a schema cannot be followed; empty: it can."""
        try:
            text = json.dumps(schema)
        except RecursionError:
            return "it is nested too deeply"
        if text not in self._known:
            self._known[text] = self._ask(text)
        self._known.move_to_end(text)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return self._known[text]

    def _ask(self, text: str) -> str:
        try:
            failed, why = self._child.ask(text, TIMEOUT_S)
        except (TimeoutError, RuntimeError):
            return f"it takes more than {TIMEOUT_S:g} s or 1 GiB to prepare"
        return str(why)[:300] if failed else ""

    def close(self) -> None:
        """End the child."""
        self._child.close()


def _serve() -> None:
    import llguidance

    _limit_memory()
    tokenizer = llguidance.LLTokenizer("byte")
    for number, line in enumerate(sys.stdin):
        why = _why_not(llguidance, tokenizer, json.loads(line)) if number else ""
        sys.stdout.write(json.dumps((bool(why), why)) + "\n")
        sys.stdout.flush()


def _why_not(library: Any, tokenizer: Any, schema: str) -> str:
    try:
        grammar = library.LLMatcher.grammar_from_json_schema(schema)
        matcher = library.LLMatcher(tokenizer, grammar, log_level=0)
    except ValueError as error:
        return str(error).strip().partition("\n")[0] or "it is no schema"
    return str(matcher.get_error()).strip().partition("\n")[0] if matcher.is_error() else ""


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows: the limit on time remains
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


if __name__ == "__main__":
    _serve()
