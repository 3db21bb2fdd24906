"""What this machine can do, and this process's place among others.

The only file that asks what hardware there is: it picks a device and a number type, seeds the random
generators, counts threads and processes, and measures the arithmetic peak that utilisation is compared with.
It moves no model and starts no process.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch

from stockpot.errors import ConfigError

__all__ = [
    "DTYPES",
    "LARGE_BLOCK",
    "MANY_NUMBERS",
    "World",
    "current",
    "describe",
    "give_back_freed_memory",
    "has_fast_bf16",
    "keep_freed_memory",
    "lazy_zeros",
    "mkl_is_slow",
    "on_large_pages",
    "onednn_linear",
    "peak_flops",
    "pick_device",
    "pick_dtype",
    "seed_everything",
    "set_threads",
    "synchronize",
    "this_world",
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""The number types that training and inference can be asked for."""

MEASURE_S = 0.4
MEASURE_SIZE, MEASURE_TURNS = 256, 8


# --- hardware ---


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Choose where to compute: the device named, or the first CUDA device, or the CPU.

    Raises:
        ConfigError: if the named device is unknown or absent.
    """
    if name is None:
        return (
            torch.device("cuda", this_world().local_rank)
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is unknown.", "Use cpu, cuda, cuda:1 or mps.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device {name!r} is not here: torch sees {count} CUDA devices.", "Use --device cpu."
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not here.", "Use --device cpu.")
    elif device.type not in ("cpu", "mps"):
        raise ConfigError(f"device {name!r} is not supported.", "Use cpu, cuda, cuda:1 or mps.")
    return device


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the one where streams, recordings and kernels of ours go, which do not look where tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    if torch.cpu._is_amx_tile_supported():
        return True
    return bool(torch.cpu._is_avx512_bf16_supported()) and _bf16_outruns_float32()


@functools.cache
def _bf16_outruns_float32() -> bool:
    """Time both on this CPU, in 10 ms: one maker's instruction for bfloat16 has twice float32's rate, another's half of it.

    One thread's best of several turns counts, so that a busy machine answers as an idle one does.
    """
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    ones = {dtype: torch.ones((MEASURE_SIZE, MEASURE_SIZE), dtype=dtype) for dtype in best}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(MEASURE_TURNS):
        for dtype, square in ones.items():
            before = time.perf_counter()
            torch.mm(square, square)
            best[dtype] = min(best[dtype], time.perf_counter() - before)
    torch.set_num_threads(threads)
    return best[torch.bfloat16] < best[torch.float32]


@functools.cache
def mkl_is_slow() -> bool:
    """Tell whether MKL, which torch multiplies float32 with, leaves half of this processor's registers idle.

    So it seems where AVX-512 is not Intel's: on Zen 5 it reaches two fifths of oneDNN's speed (`benchmarks/results/judging.md`).
    """
    is_wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    is_amd = "AuthenticAMD" in (_cpu_fact("vendor_id") or platform.processor())
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return is_wide and is_amd and bool(has_mkl)


def onednn_linear() -> Callable[..., torch.Tensor] | None:
    """Return oneDNN's ``linear(x, weight, bias, "none", [], "")`` on a CPU, where this build of torch has it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    found: Callable[..., torch.Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found


def pick_dtype(device: torch.device, name: str | None = None) -> torch.dtype:
    """Choose the number type of matrix products: the one named, or bfloat16 where it is faster than float32.

    Raises:
        ConfigError: if the name is unknown.
    """
    if name is None:
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown.", f"Use one of: {', '.join(DTYPES)}.")
    return DTYPES[name]


def set_threads(count: int | None = None) -> int:
    """Set how many CPU threads torch uses (None leaves it) and return the number in use."""
    if count is not None and count != torch.get_num_threads():
        torch.set_num_threads(count)
    return torch.get_num_threads()


def keep_freed_memory(*, large: bool = False) -> bool:
    """Let this process keep the memory it frees, for its next use; tell whether that was possible.

    A training step frees and asks for the same large blocks over and over. The C library gives each back to the
    system, which clears it anew: 8 to 15 % of a step's time on a CPU. glibc alone has the two settings.

    Args:
        large: give back blocks from ``LARGE_BLOCK`` on all the same. The few that a large model asks for are split by smaller
            ones while they are free, so that they never fit again, and memory grows by a third and more.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    most = LARGE_BLOCK if large else 1 << 30
    return bool(mallopt(_MMAP_THRESHOLD, most) and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))


def give_back_freed_memory() -> bool:
    """Give back all that this process has freed and kept; tell whether that was possible. With glibc alone it is."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    return bool(trim(0))


def on_large_pages(fresh: torch.Tensor) -> torch.Tensor:
    """Ask the system to clear the memory of a tensor that nothing was written to yet in pieces of 2 MiB, not of 4 KiB.

    That takes a fifth of the time. Linux alone can, and nothing depends on it; a small tensor, or one elsewhere, is left alone.
    """
    if fresh.device.type == "cpu" and fresh.nbytes >= LARGE_BLOCK and (advise := _madvise()) is not None:
        start = -(-fresh.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, fresh.data_ptr() + fresh.nbytes - start, mmap.MADV_HUGEPAGE)
    return fresh


def lazy_zeros(shape: Sequence[int]) -> torch.Tensor:
    """Make float32 zeros on the CPU that take memory, page by page, only where they are written to; none is a mistake."""
    count = math.prod(shape)
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    room = mmap.mmap(-1, 4 * count, **own)  # what is shared takes memory where it is read, too
    return torch.frombuffer(room, dtype=torch.float32, count=count).view(*shape)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return cast(Callable[[int, int, int], int], found)


LARGE_BLOCK = 1 << 25
# Numbers of a model from which memory counts for more than the moment it takes to ask the system for it again.
MANY_NUMBERS = 1 << 26
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device | None = None) -> dict[str, str | int | bool]:
    """Describe the machine for a manifest: processor, cores, threads, device, memory of an accelerator."""
    device = device or pick_device()
    facts: dict[str, str | int | bool] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "device": str(device),
        "fast_bf16": has_fast_bf16(device),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {"accelerator": properties.name, "accelerator_gib": properties.total_memory >> 30}
    return facts


def _processor() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine()


def _cpu_fact(name: str) -> str | None:
    """Look up what Linux says about the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:  # noqa: PTH123 - not a file
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)
    except OSError:
        return None


# --- randomness ---


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's global generators, those of every device included."""
    random.seed(seed)
    torch.manual_seed(seed)


# --- processes ---


@dataclass(frozen=True)
class World:
    """A process's place: ``rank`` of ``world``, and which device of its host is its own."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def this_world() -> World:
    """Read what torchrun says about this process; alone, it is rank 0 of 1."""
    rank, world, local = (int(os.environ.get(name, default)) for name, default in _PLACE)
    return World(rank, world, local)


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


# --- speed ---


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the best rate of large matrix products, in operations per second; about 0.5 s, once a process.

    The random state is left alone, so that measuring does not change what is trained.
    """
    size = 8192 if device.type == "cuda" else 1024 if dtype == torch.float32 or has_fast_bf16(device) else 256
    generator = torch.Generator(device).manual_seed(0)
    left = torch.randn((size, size), generator=generator, device=device).to(dtype)
    out = torch.empty_like(left)
    kernel = onednn_linear() if (device.type, dtype) == ("cpu", torch.float32) and mkl_is_slow() else None

    def multiply() -> None:
        if kernel is None:
            torch.mm(left, left, out=out)
        else:
            kernel(left, left, None, "none", [], "")

    multiply()  # the first prepares the kernel, which can take longer than all that follow
    best, started = 0.0, time.perf_counter()
    repeats = 10 if device.type == "cuda" else 1
    while not best or time.perf_counter() - started < MEASURE_S:
        synchronize(device)
        before = time.perf_counter()
        for _ in range(repeats):
            multiply()
        synchronize(device)
        best = max(best, repeats * 2.0 * size**3 / (time.perf_counter() - before))
    return best
