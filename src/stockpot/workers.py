"""The same function for many jobs: here, in several processes, or on a Ray cluster; the results come in the jobs' order.

Decides how many jobs are on their way, so that neither jobs nor results pile up, and what happens when a worker dies. What
a job does is the caller's business; where it is done cannot change what comes out.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, TypeVar

from stockpot.errors import ConfigError, DataError

__all__ = ["in_order", "joined_ray"]

J = TypeVar("J")
R = TypeVar("R")
REACH_S = 5.0  # until a Ray head counts as out of reach


def in_order(
    work: Callable[[J, Any], R],
    jobs: Iterable[J],
    *,
    shared: Any = None,
    workers: int = 1,
    ray: str | None = None,
) -> Iterator[R]:
    """Yield ``work(job, shared)`` for every job, in order; never more on their way than can be worked on, and one.

    Args:
        work: a function of a module, since other processes import it.
        jobs: read one by one.
        shared: what every job needs; sent once a process.
        workers: processes on this machine; 1: this one.
        ray: address of a Ray cluster (``HOST:PORT``, ``auto``), whose workers do it instead.

    Raises:
        ConfigError: if Ray is not installed or its head is out of reach.
        DataError: if a process died.
    """
    if ray is not None:
        yield from _on_ray(work, jobs, shared, ray)
    elif workers < 2:
        for job in jobs:
            yield work(job, shared)
    else:
        yield from _in_processes(work, jobs, shared, workers)


# --- processes ---

_shared: Any = None  # of a worker process


def _in_processes(work: Callable[[J, Any], R], jobs: Iterable[J], shared: Any, workers: int) -> Iterator[R]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(shared,)) as pool:
        waiting: deque[Any] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(_call, work, job))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "A working process died, perhaps for want of memory.",
                "Run the same command again with fewer workers: what is finished is kept.",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(shared: Any) -> None:
    """Keep what all jobs need, and leave when the parent dies, so that no orphan goes on working."""
    global _shared
    _shared = shared
    parent = multiprocessing.parent_process()
    if parent is not None:

        def leave(sentinel: int = parent.sentinel) -> None:
            wait([sentinel])
            os._exit(1)

        threading.Thread(target=leave, daemon=True).start()


def _call(work: Callable[[Any, Any], Any], job: Any) -> Any:
    return work(job, _shared)


# --- Ray ---


@contextlib.contextmanager
def joined_ray(address: str) -> Iterator[Any]:
    """Connect to a Ray cluster for the length of a block, unless this process already is; yields the library.

    Raises:
        ConfigError: if Ray is not installed or its head is out of reach.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anyone
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed.", "Install it: pip install 'stockpot[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    _refuse_unreachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"The Ray cluster at {address} cannot be joined ({reason}).", "Start one: ray start --head"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _refuse_unreachable(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise ConfigError(
            f"The Ray head at {address} is out of reach ({error.strerror or error}).",
            "Start it (ray start --head --port PORT), or check the address.",
        ) from None


def _on_ray(work: Callable[[J, Any], R], jobs: Iterable[J], shared: Any, address: str) -> Iterator[R]:
    with joined_ray(address) as ray:
        task = ray.remote(num_cpus=1, max_retries=3)(work)
        held = ray.put(shared)
        most = max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        try:
            for job in jobs:
                waiting.append(task.remote(job, held))
                if len(waiting) > most:
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None
        except ray.exceptions.RayError as error:
            raise DataError(
                f"The Ray cluster lost a job ({' '.join(str(error).split())[:200]}).",
                "Run the same command again: what is finished is kept.",
            ) from None
