"""What runs inside the sandbox: this very file, by path, so it imports nothing but the standard library.

Two processes, each in a sandbox of its own, so that what the model wrote never stands beside the tests. The *candidate* holds the
model's program and answers calls of its functions; the *tester* holds the tests and the token, sees functions only as calls
over a pipe, and gets plain values back. A program that ends its process, rewrites built-ins, prints "passed" or returns
objects that equal everything reaches none of that: the token is written by the tester after the last test.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

MOST_REPLY = 16 << 20


class Refused(Exception):
    """A value that cannot go over the pipe."""


def main() -> None:
    """Take the message from standard input, become nobody, and play the part it names."""
    message = json.loads(sys.stdin.buffer.read())
    _limit(message["limits"], message["uid"])
    parts = {"candidate": _candidate, "tester": _tester, "compile": _compile, "look": _look_around}
    parts[message["part"]](message)


def _limit(limits: dict[str, int], uid: int) -> None:
    """Give up root, which RLIMIT_NPROC does not bind, and set limits that children inherit."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    os.chdir("/tmp")
    sys.setrecursionlimit(5_000)


# --- values over the pipe ---


def pack(value: object, depth: int = 0) -> Any:
    """Turn a plain value into JSON that `unpack` gives back; subclasses become what they extend."""
    if depth > 200:
        raise Refused("it is nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return ["int", format(int(value), "x")]
    if isinstance(value, float):
        return ["float", float.hex(value)]
    if isinstance(value, complex):
        return ["complex", float.hex(value.real), float.hex(value.imag)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[pack(k, depth + 1), pack(v, depth + 1)] for k, v in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [pack(one, depth + 1) for one in value]]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    raise Refused(f"a {type(value).__name__} is no plain value")


def unpack(value: Any) -> Any:
    """Make the value that `pack` described; nothing else can come of it."""
    if value is None or isinstance(value, bool | str):
        return value
    kind, *rest = value
    if kind == "int":
        return int(rest[0], 16)
    if kind == "float":
        return float.fromhex(rest[0])
    if kind == "complex":
        return complex(float.fromhex(rest[0]), float.fromhex(rest[1]))
    if kind == "bytes":
        return bytes.fromhex(rest[0])
    if kind == "dict":
        return {unpack(k): unpack(v) for k, v in rest[0]}
    if kind == "range":
        return range(*map(int, rest))
    makers: dict[str, Callable[[Iterable[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
    }
    return makers[kind](unpack(one) for one in rest[0])


# --- the candidate ---


def _candidate(message: dict[str, Any]) -> None:
    """Run the model's program, then answer calls of what it defined."""
    asked, answers = os.fdopen(message["read_fd"], "rb"), os.fdopen(message["write_fd"], "wb")
    names: dict[str, Any] = {"__name__": "candidate"}
    wrong = ""
    try:
        exec(compile(message["code"], "candidate", "exec"), names)
    except BaseException as error:  # noqa: BLE001 - a stranger's program may raise anything
        wrong = _told(error)
    for line in asked:
        answers.write(json.dumps(_answered(names, json.loads(line), wrong)).encode() + b"\n")
        answers.flush()


def _answered(names: dict[str, Any], call: dict[str, Any], wrong: str) -> dict[str, Any]:
    if wrong:
        return {"raised": ["Exception", f"the program does not run: {wrong}"]}
    try:
        if call["name"] not in names:
            raise NameError(f"there is no {call['name']}")
        given, named = unpack(call["args"]), unpack(call["named"])
        value = names[call["name"]](*given, **named)
        return {"value": pack(value), "args": pack(given)}
    except BaseException as error:  # noqa: BLE001 - also SystemExit and KeyboardInterrupt
        return {"raised": [type(error).__name__, _told(error)]}


def _told(error: BaseException) -> str:
    with contextlib.suppress(BaseException):
        return f"{type(error).__name__}: {error}"[:500]
    return "an error that cannot be shown"


# --- the tester ---


def _tester(message: dict[str, Any]) -> None:
    """Run the tests against calls over the pipe; at the end write the token, or why not."""
    calls = _Calls(message["read_fd"], message["write_fd"])
    said: dict[str, str] = {"why": "the tests did not end"}
    try:
        names: dict[str, Any] = {"__name__": "tests"}
        exec(compile(message["setup"], "setup", "exec"), names)
        wanted = message["entry"] or _unknown_names(message["tests"], names)
        names.update({name: calls.named(name) for name in wanted})
        exec(compile(message["tests"], "tests", "exec"), names)
        said = {"token": message["token"]} if calls.made else {"why": "the tests called nothing"}
    except BaseException as error:  # noqa: BLE001 - tests are a stranger's, too
        said = {"why": _told(error)}
    os.write(message["token_fd"], json.dumps(said).encode())


class _Calls:
    """Functions of the candidate, called over the pipe."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._answers, self._asked = os.fdopen(read_fd, "rb"), os.fdopen(write_fd, "wb")
        self.made = 0

    def named(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self.made += 1
            question = {"name": name, "args": pack(list(args)), "named": pack(named)}
            try:
                self._asked.write(json.dumps(question).encode() + b"\n")
                self._asked.flush()
                line = self._answers.readline(MOST_REPLY)
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                raise RuntimeError("the program ended before it answered")
            answer = json.loads(line)
            if "raised" in answer:
                _raise(*answer["raised"])
            for before, after in zip(args, unpack(answer["args"]), strict=True):
                _write_back(before, after)
            return unpack(answer["value"])

        return call


def _raise(kind: str, said: str) -> None:
    """Raise what the candidate raised: a built-in error by its name, anything else as a plain one.

    What ends a loop of the tests (``all(map(f, …))``) would pass for its end, and becomes a plain one, too.
    """
    known = getattr(builtins, kind, None)
    fits = isinstance(known, type) and issubclass(known, Exception) and not kind.startswith("Stop")
    said = said.removeprefix(f"{kind}: ") if fits else said
    raise known(said) if fits and known is not None else RuntimeError(said)


def _write_back(before: object, after: object) -> None:
    """Let changes that a function made to its arguments be seen by the tests."""
    if type(before) is not type(after):
        return
    if isinstance(before, list) and isinstance(after, list):
        before[:] = after
    elif (isinstance(before, dict) and isinstance(after, dict)) or (
        isinstance(before, set) and isinstance(after, set)
    ):
        before.clear()
        before.update(after)


def _unknown_names(tests: str, known: dict[str, Any]) -> list[str]:
    """List what tests speak of and nobody has defined: the functions that the program is to hold."""
    tree = ast.parse(tests)
    bound = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)
    }
    bound |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    read = [
        node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    ]
    return [
        name
        for name in dict.fromkeys(read)
        if name not in known and name not in bound and not hasattr(builtins, name)
    ]


# --- other languages, and what the sandbox looks like from inside ---


def _compile(message: dict[str, Any]) -> None:
    """Compile a C program and run it; what it prints goes back over the token's pipe, which no one else holds."""
    said: dict[str, Any]
    try:
        Path("/tmp/program.c").write_text(message["source"], encoding="utf-8")
        made = subprocess.run(
            [message["compiler"], "-O1", "-w", "-o", "/tmp/program", "/tmp/program.c", "-lm"],
            capture_output=True,
            check=False,
            env={"PATH": "/usr/bin:/bin", "TMPDIR": "/tmp"},
        )
        if made.returncode:
            raise RuntimeError("it does not compile: " + made.stderr.decode(errors="replace")[:300])
        ran = subprocess.run(["/tmp/program"], capture_output=True, check=False, env={})
        if ran.returncode:
            raise RuntimeError(f"it ended with {ran.returncode}")
        said = {"token": message["token"], "printed": ran.stdout.decode(errors="replace")[:65536]}
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in there is told
        said = {"why": _told(error)}
    os.write(message["token_fd"], json.dumps(said).encode())


def _look_around(message: dict[str, Any]) -> None:
    """Tell what could be reached from here; a sandbox that lets anything through is refused."""
    import socket

    leaks = []
    if os.getuid() == 0:
        leaks.append("it runs as root")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    if any(line.startswith("CapEff") and int(line.split()[1], 16) for line in status.splitlines()):
        leaks.append("it has capabilities")
    if Path("/proc/1/environ").exists():
        with contextlib.suppress(OSError):
            if Path("/proc/1/environ").read_bytes().strip(b"\0"):
                leaks.append("the environment outside can be read")
    for path in (
        "/",
        "/usr",
        "/etc",
        "/home",
        "/root",
        "/dev",
        "/proc/sys/kernel/hostname",
        *message["outside"],
    ):
        with contextlib.suppress(OSError):
            if Path(path).is_dir():
                Path(path, "stockpot-probe").write_text("x", encoding="ascii")
            else:
                Path(path).open("r+b").close()
            leaks.append(f"{path} can be written")
    with contextlib.suppress(OSError), socket.socket() as plug:
        plug.settimeout(0.5)
        plug.connect((message["host"], message["port"]))
        leaks.append("the network can be reached")
    with contextlib.suppress(OSError):
        os.kill(message["pid"], 0)
        if message["pid"] > 10:
            leaks.append("processes outside can be seen")
    os.write(message["token_fd"], json.dumps({"token": message["token"], "leaks": leaks}).encode())


if __name__ == "__main__":
    main()
