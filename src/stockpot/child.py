"""A process of our own that answers lines of JSON: started when first asked, killed when it is late.

What the process does is decided by its program; here is the side that asks. One thread asks at a time, a fork of this process
starts a child of its own, and none outlives the object that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["LineChild"]


class LineChild:
    """A child process whose program reads a question a line and writes an answer a line: ``[failed, value]``.

    Args:
        command: the program; the number of the process that starts it is added, by which it can tell that we are gone.
        first: the question every new process is asked first, which tells it what it is for.
        start_s: longest time that may take, the program's start included.
        env: its environment; None: ours.
        is_silent: throw away what it writes to stderr.
        patience: an answer's time is what the process itself computes, where the system tells; by the clock it may take this
            many times as long, since other programs may be at work. 1: the clock alone counts.

    Attributes:
        process: the process; None: none runs.
    """

    def __init__(
        self,
        command: Sequence[str],
        first: object,
        *,
        start_s: float,
        env: Mapping[str, str] | None = None,
        is_silent: bool = False,
        patience: float = 1.0,
    ) -> None:
        self._command, self._first, self._start_s, self._env = command, first, start_s, env
        self._stderr = subprocess.DEVNULL if is_silent else None
        self._patience = patience
        self._lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self._finish: weakref.finalize[..., LineChild] | None = None  # runs when this goes, or Python does
        self._owner = 0

    def start(self) -> tuple[bool, Any]:
        """Start the process unless it runs; return whether it refused what it is for, and its answer.

        Raises:
            TimeoutError: if it took too long.
            RuntimeError: if the process ended.
        """
        with self._lock:
            return self._started()

    def ask(self, question: object, timeout_s: float) -> tuple[bool, Any]:
        """Return whether the program failed, and its answer; a process that could not start has failed.

        Raises:
            TimeoutError: if it took too long; the process is gone, and the next question starts another.
            RuntimeError: if the process ended.
        """
        with self._lock:
            failed, value = self._started()
            return (failed, value) if failed else self._exchange(question, timeout_s)

    def _started(self) -> tuple[bool, Any]:
        if self.process is not None and self._owner == os.getpid():  # a fork must not share the pipe
            return False, None
        self.process = subprocess.Popen(
            [*self._command, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            env=self._env,
            start_new_session=True,  # Ctrl-C at a terminal is meant for us
        )
        self._owner = os.getpid()
        self._finish = weakref.finalize(self, _end, self.process, self._owner)
        failed, value = True, None
        try:
            failed, value = self._exchange(self._first, self._start_s)
        finally:
            if failed:
                self.close()
        return failed, value

    def _exchange(self, question: object, timeout_s: float) -> tuple[bool, Any]:
        process = self.process
        assert process is not None and process.stdin is not None and process.stdout is not None
        answered, late = threading.Event(), threading.Event()

        def watch() -> None:
            begun, until = _computed_s(process.pid), time.monotonic() + timeout_s * self._patience
            left = timeout_s
            while left > 0 and not answered.wait(min(left, until - time.monotonic())):
                left = min(timeout_s - (_computed_s(process.pid) - begun), until - time.monotonic())
            if not answered.is_set():
                late.set()
                process.kill()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        except BaseException:  # interrupted: its answer must not be taken for that to the next question
            self.close()
            raise
        finally:
            answered.set()
            watcher.join()
        if not answer.endswith("\n"):
            self.close()
            if late.is_set():
                raise TimeoutError(f"it took longer than {timeout_s:g} s")
            raise RuntimeError(f"its process ended with {process.returncode}")
        failed, value = json.loads(answer)
        return failed, value

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._finish is not None:
            self._finish()
        self.process = self._finish = None


def _computed_s(pid: int) -> float:
    """Return the seconds that a process has computed; the clock where the system does not tell."""
    try:
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:  # a forked copy of the process that owns the child
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # an unfinished line for a child that is gone
                stream.close()
