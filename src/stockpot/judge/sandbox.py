"""Run programs that a model wrote where they can do no harm, and believe none of what they say.

Each process stands in a sandbox of bubblewrap: no network, its own processes, a read-only system without homes, a small
scratch folder in memory, an unprivileged user without capabilities, a filter of system calls, and limits on time, memory,
processes, files and output. Where that cannot be had, nothing is run. What happens inside is `confined`; here is the side that
watches.

A pass is a random token that comes over a pipe which the model's program does not have.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from stockpot.config import Settings
from stockpot.errors import ConfigError
from stockpot.judge.seccomp import filter_bytes

__all__ = ["Limits", "Verdict", "check_sandbox", "run_c", "run_tests"]

LOOK_S = 0.05  # how often memory is looked at
START_S = 10.0  # the sandbox's own start on a busy machine is not the program's fault


class Limits(Settings):
    """What a program may use."""

    wall_s: float = Field(6.0, gt=0, description="longest time, the start of the sandbox included")
    memory_mib: int = Field(512, ge=64, description="address space of one process")
    total_mib: int = Field(1024, ge=64, description="memory of all its processes together")
    processes: int = Field(16, ge=1, description="processes and threads at once")
    output_kib: int = Field(256, ge=1, description="most it may print")
    scratch_mib: int = Field(32, ge=1, description="files in its scratch folder")

    def rlimits(self) -> dict[str, int]:
        """Give the limits of each process, by the system's names."""
        return {
            "AS": self.memory_mib << 20,
            "CPU": int(self.wall_s) + 2,
            "FSIZE": self.scratch_mib << 20,
            "NOFILE": 64,
            "NPROC": self.processes,
            "CORE": 0,
        }


@dataclass(frozen=True)
class Verdict:
    """How a program did.

    Attributes:
        passed: whether all its tests ended well.
        why: in a few words, why not.
        printed: what a C program printed.
    """

    passed: bool
    why: str = ""
    seconds: float = 0.0
    printed: str = ""


def run_tests(
    code: str,
    tests: str,
    *,
    setup: str = "",
    entry: Sequence[str] = (),
    limits: Limits | None = None,
) -> Verdict:
    """Run tests against a program's functions, the two in sandboxes of their own.

    Args:
        code: what the model wrote, a Python module.
        tests: Python that raises if something is wrong.
        setup: Python that the tests need besides; never the model's.
        entry: functions of the program that tests call; none: those that tests speak of and nobody else defines.
        limits: what both may use.

    Raises:
        ConfigError: if programs cannot be confined here.
    """
    check_sandbox()
    limits = limits or Limits()
    with contextlib.ExitStack() as stack:
        asks, calls, token_pipe = (_Pipe(stack) for _ in range(3))
        common = {"limits": limits.rlimits()}
        program = {"part": "candidate", "code": code, "read_fd": calls.read, "write_fd": asks.write, **common}
        token = secrets.token_hex(32)
        tester = {
            "part": "tester",
            "setup": setup,
            "tests": tests,
            "entry": list(entry),
            "token": token,
            "read_fd": asks.read,
            "write_fd": calls.write,
            "token_fd": token_pipe.write,
            **common,
        }
        jails = [
            _Jail(stack, program, [calls.read, asks.write], limits),
            _Jail(stack, tester, [asks.read, calls.write, token_pipe.write], limits),
        ]
        for pipe_end in (asks, calls):
            pipe_end.close()
        token_pipe.close_write()
        return _watch(jails, token_pipe.read, token, limits)


def run_c(source: str, limits: Limits | None = None) -> Verdict:
    """Compile and run a C program in a sandbox; what it printed stands in the verdict.

    Raises:
        ConfigError: if programs cannot be confined here, or there is no compiler.
    """
    check_sandbox()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise ConfigError("There is no C compiler here.", "Install gcc; it runs inside the sandbox only.")
    limits = limits or Limits(wall_s=20.0)
    message = {"part": "compile", "source": source, "compiler": str(Path(compiler).resolve())}
    return _alone(message, limits)


def _alone(message: dict[str, Any], limits: Limits, program: Path | None = None) -> Verdict:
    with contextlib.ExitStack() as stack:
        token_pipe, token = _Pipe(stack), secrets.token_hex(32)
        told = {**message, "token": token, "token_fd": token_pipe.write, "limits": limits.rlimits()}
        jail = _Jail(stack, told, [token_pipe.write], limits, program)
        token_pipe.close_write()
        return _watch([jail], token_pipe.read, token, limits)


# --- whether it holds ---


def check_sandbox(program: Path | None = None) -> None:
    """Refuse to go on unless programs are really confined here; tried once, from inside.

    Raises:
        ConfigError: saying what is missing or what leaks.
    """
    if (wrong := _what_is_wrong(program)) is not None:
        raise ConfigError(
            f"Programs that a model wrote cannot be confined here: {wrong}.",
            "Nothing was run. Install bubblewrap (bwrap) on Linux, with user namespaces allowed or as root.",
        )


@lru_cache
def _what_is_wrong(program: Path | None) -> str | None:
    if sys.platform != "linux":
        return f"there is no bubblewrap for {sys.platform}"
    if program is None and _bwrap() is None:
        return "bubblewrap (bwrap) is not installed"
    with socket.socket() as listening, tempfile.TemporaryDirectory() as outside:
        Path(outside).chmod(0o777)
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        host, port = listening.getsockname()
        message = {
            "part": "look",
            "outside": [outside, str(Path.home())],
            "host": host,
            "port": port,
            "pid": os.getpid(),
        }
        try:
            verdict = _alone(message, Limits(wall_s=START_S), program)
        except OSError as error:
            return f"bubblewrap does not start ({error})"
    if verdict.passed:
        return None
    return verdict.why


def _bwrap() -> Path | None:
    found = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    return None if found is None else Path(found)


# --- one sandbox ---


class _Pipe:
    """Two ends, closed at the latest when the stack is left."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.read, self.write = os.pipe()
        self._open = {self.read, self.write}
        stack.callback(self.close)

    def close_write(self) -> None:
        if self.write in self._open:
            self._open.remove(self.write)
            os.close(self.write)

    def close(self) -> None:
        self.close_write()
        if self.read in self._open:
            self._open.remove(self.read)
            os.close(self.read)


class _Jail:
    """A sandbox with one part of `confined` in it; gone at the latest when the stack is left."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        message: dict[str, Any],
        fds: Sequence[int],
        limits: Limits,
        program: Path | None = None,
    ) -> None:
        uid = 1_000_000_000 + secrets.randbelow(1 << 24)  # nobody's, and no two sandboxes' at once
        told = _filed(stack, json.dumps({**message, "uid": uid}).encode())
        output = _Pipe(stack)
        command = [str(program or _bwrap()), *_confinement(limits)]
        kept = list(fds)
        rules = filter_bytes()
        if rules is not None:
            filed = _filed(stack, rules)
            command += ["--seccomp", str(filed.fileno())]
            kept.append(filed.fileno())
        command += ["--", *_python(), "-I", "-S", "-B", "/confined.py"]
        self.process = subprocess.Popen(
            command,
            stdin=told,
            stdout=output.write,
            stderr=output.write,
            env={},  # bubblewrap's own environment could be read inside, in /proc/1/environ
            pass_fds=kept,
            start_new_session=True,
        )
        stack.callback(self.end)
        output.close_write()
        self.output, self.printed, self.shown = output.read, 0, b""

    def end(self) -> None:
        """Kill all of it: with bubblewrap ends its process number 1, and with that every process inside."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def memory(self) -> int:
        """Bytes that all processes inside hold at this moment."""
        return sum(_resident(pid) for pid in _descendants(self.process.pid))


def _filed(stack: contextlib.ExitStack, data: bytes) -> IO[bytes]:
    """Put bytes into a file without a name, to be read from its start."""
    file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
    file.write(data)
    file.seek(0)
    return file


def _confinement(limits: Limits) -> list[str]:
    size = str(limits.scratch_mib << 20)
    # As root no user namespace is used: in one, the user would still be root to RLIMIT_NPROC. `confined` gives root up.
    own = (
        ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        if os.geteuid() == 0
        else ["--unshare-user", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    )
    return [
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
        *own,
        *("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"),
        *_system(),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"),
        *("--perms", "1777", "--size", size, "--tmpfs", "/tmp"),
        *("--ro-bind", str(Path(__file__).with_name("confined.py")), "/confined.py"),
        *("--remount-ro", "/", "--chdir", "/tmp"),
    ]


def _system() -> list[str]:
    """Show the system's programs and the interpreter, read-only, and nothing of anybody's."""
    found = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            found += ["--symlink", f"usr/{name}", str(path)]
        elif path.is_dir():
            found += ["--ro-bind", str(path), str(path)]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        found += ["--ro-bind-try", name, name]
    prefix = Path(sys.base_prefix).resolve()
    if not prefix.is_relative_to("/usr"):
        for parent in reversed(prefix.parents[:-1]):
            found += ["--perms", "0755", "--dir", str(parent)]
        found += ["--ro-bind", str(prefix), str(prefix)]
    return found


def _python() -> list[str]:
    """Name the interpreter outside any virtual environment."""
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    return [str(base)]


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            yield int(child)
            yield from _descendants(int(child))


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


# --- watching ---


@dataclass
class _Watch:
    """What has come so far."""

    jails: Sequence[_Jail]
    token_fd: int
    limits: Limits
    said: bytes = b""
    began: float = field(default_factory=time.monotonic)

    def look(
        self, ready: Sequence[tuple[selectors.SelectorKey, int]], plugs: selectors.BaseSelector
    ) -> str | None:
        """Read what is there; say what ends the run, if something does: ``""`` when the tests have spoken."""
        for key, _ in ready:
            data = os.read(key.fd, 1 << 16)
            if not data:
                plugs.unregister(key.fd)
                if key.fd == self.token_fd:
                    return ""
            elif key.fd == self.token_fd:
                self.said += data
            else:
                jail: _Jail = key.data
                jail.printed += len(data)
                jail.shown = (jail.shown + data)[:2000]
                if jail.printed > self.limits.output_kib << 10:
                    return f"it printed more than {self.limits.output_kib} KiB"
        if sum(jail.memory() for jail in self.jails) > self.limits.total_mib << 20:
            return f"it took more than {self.limits.total_mib} MiB"
        if time.monotonic() - self.began > self.limits.wall_s:
            return f"it ran longer than {self.limits.wall_s:g} s"
        return None


def _watch(jails: Sequence[_Jail], token_fd: int, token: str, limits: Limits) -> Verdict:
    """Wait until the tests have spoken or a limit is passed; then all ends."""
    watch = _Watch(jails, token_fd, limits)
    with selectors.DefaultSelector() as plugs:
        plugs.register(token_fd, selectors.EVENT_READ)
        for jail in jails:
            plugs.register(jail.output, selectors.EVENT_READ, jail)
        why = None
        while why is None:
            why = watch.look(plugs.select(LOOK_S), plugs)
    for jail in jails:
        jail.end()
    seconds = time.monotonic() - watch.began
    if why:
        return Verdict(False, why, seconds)
    return _judge(watch.said, token, seconds, jails[-1])


def _judge(said: bytes, token: str, seconds: float, last: _Jail) -> Verdict:
    try:
        told = json.loads(said)
    except ValueError:
        shown = " ".join(last.shown.decode(errors="replace").split())[:200]
        return Verdict(False, f"the sandbox ended early{': ' + shown if shown else ''}", seconds)
    if not isinstance(told, dict) or not hmac.compare_digest(str(told.get("token", "")), token):
        why = str(told.get("why", "no token")) if isinstance(told, dict) else "no token"
        return Verdict(False, " ".join(why.split())[:300], seconds)
    if told.get("leaks"):
        return Verdict(False, ", ".join(map(str, told["leaks"])), seconds)
    return Verdict(True, "", seconds, str(told.get("printed", "")))
