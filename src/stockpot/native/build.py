"""Compile the kernels for this machine's processor, once, and keep the result.

The compiled file lies in stockpot's home folder, under a name made of the sources, the
compiler and the processor, so that none of them can change unnoticed. Without a compiler there are no kernels:
:func:`library` then gives None and :func:`reason` says why. Whether they compute rightly is checked by who calls them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

from stockpot.durable import write_atomically
from stockpot.home import home

__all__ = ["compile_kernels", "is_compiled", "library", "reason", "text_library", "training_library"]

FOLDER = Path(__file__).parent
MAIN, TRAINING, TEXTS = "transformer.cpp", "training.cpp", "texts.cpp"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC")
# Contraction is off in inference, since it would round differently from one processor to the next.
SHARED_THREADS = ("-fopenmp",) if platform.system() == "Linux" else ()
OWN = {
    MAIN: ("-ffp-contract=off", "-pthread"),
    TEXTS: ("-ffp-contract=off", "-pthread", *SHARED_THREADS),
    TRAINING: ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"),
}
NATIVE = {
    "x86_64": "-march=native",
    "AMD64": "-march=native",
    "aarch64": "-mcpu=native",
    "arm64": "-mcpu=native",
}
WIDEST = "-mprefer-vector-width=512"  # compilers shy away from it where early processors slowed down
TIME_LIMIT_S = 300


def library() -> ctypes.CDLL | None:
    """Return the kernels, compiled if need be (some seconds, once); None where that is impossible."""
    return _library(MAIN)[0]


def training_library() -> ctypes.CDLL | None:
    """Return training's kernels, as :func:`library` does; torch must have been imported, whose threads they share."""
    return _library(TRAINING)[0]


def text_library() -> ctypes.CDLL | None:
    """Return the kernels that read texts, as :func:`training_library` does."""
    return _library(TEXTS)[0]


@functools.cache
def is_compiled(main: str = MAIN) -> bool:
    """Tell whether a library has its file already, and need not be compiled."""
    compiler = _compiler()
    try:
        return compiler is not None and os.name == "posix" and _path(compiler, main).exists()
    except (OSError, subprocess.SubprocessError):
        return False


def reason() -> str:
    """Say why there are no kernels; empty where there are."""
    return _library(MAIN)[1]


@functools.cache
def _library(main: str) -> tuple[ctypes.CDLL | None, str]:
    if os.name != "posix":
        return None, "our kernels need a POSIX system"
    compiler = _compiler()
    if compiler is None:
        return None, "no C++ compiler was found (install g++ or clang++)"
    try:
        return ctypes.CDLL(str(_compiled(compiler, main))), ""
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{compiler} could not make them ({_last_line(error)})"


def _compiled(compiler: str, main: str) -> Path:
    """Return the file of the kernels, made now if it is not there yet."""
    path, flags = _path(compiler, main), _flags(main)
    if not path.exists():
        with tempfile.TemporaryDirectory() as room:
            made = Path(room) / "kernels.so"
            compile_kernels(compiler, flags, made, main)
            write_atomically(path, made.read_bytes())
    return path


def _compiler() -> str | None:
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


def _flags(main: str) -> tuple[str, ...]:
    native = NATIVE.get(platform.machine(), "-O3")
    widest = (WIDEST,) if main == TRAINING and native == NATIVE["x86_64"] else ()
    return (*FLAGS, *OWN[main], native, *widest)


def _path(compiler: str, main: str) -> Path:
    """Return where the compiled file belongs."""
    return _private_folder() / f"{Path(main).stem}-{_key(compiler, _flags(main))}.so"


def compile_kernels(compiler: str, flags: tuple[str, ...], out: Path, main: str = MAIN) -> None:
    """Compile the kernels into a shared library."""
    command = [compiler, *flags, str(FOLDER / main), "-o", str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=TIME_LIMIT_S)


def _private_folder() -> Path:
    """Make the folder for compiled files; refuse one that others could write into."""
    folder = home() / "native"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} could be written by others")
    return folder


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted((*FOLDER.glob("*.cpp"), *FOLDER.glob("*.hpp"))):
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=TIME_LIMIT_S)
    for part in (version.stdout, " ".join(flags).encode(), _processor().encode()):
        digest.update(b"\0" + part)
    return digest.hexdigest()[:16]


def _processor() -> str:
    """Name what decides which instructions there are."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        facts += sorted({line for line in lines if line.startswith(wanted)})
    return "\n".join(facts)


def _last_line(error: Exception) -> str:
    text = (
        error.stderr.decode(errors="replace")
        if isinstance(error, subprocess.CalledProcessError)
        else str(error)
    )
    lines = text.strip().splitlines()
    return lines[-1] if lines else type(error).__name__
