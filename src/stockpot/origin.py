"""Where a run comes from: the command, the source, the versions and the machine.

These facts go into a run's manifest and into ``stockpot doctor``. Nothing here changes what a run does, and
no environment variable is recorded, since it may hold a secret. It does not import torch.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["as_typed", "command_line", "git", "hardware", "now", "versions"]


def now() -> str:
    """Tell the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Write this process's command as one would type it."""
    program = Path(sys.argv[0]).name if sys.argv else "python"
    return as_typed("stockpot" if program in ("stockpot", "__main__.py") else program, *sys.argv[1:])


def as_typed(*words: str | Path) -> str:
    """Write words of a command as one would type them: what a shell would read otherwise stands in quotes."""
    line = shlex.join(map(str, words))
    return line.encode("utf-8", "replace").decode()  # a file's name may be anything; a manifest is UTF-8


def versions(*more: str) -> dict[str, str]:
    """Name the installed versions of Python, of stockpot and of what decides its numbers."""
    found = {"python": platform.python_version()}
    for name in ("stockpot", "torch", "numpy", "tokenizers", "safetensors", *more):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git() -> dict[str, Any] | None:
    """Name the commit of the source that runs, or None if it does not run from its own work tree."""
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        if not ask("ls-files", "run.py"):  # installed inside somebody else's work tree
            return None
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Describe the machine: system, processor, cores this process may use, memory."""
    found: dict[str, Any] = {"system": platform.platform(), "machine": platform.machine(), "cores": _cores()}
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found["cpu"] = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        found["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return found


def _cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
