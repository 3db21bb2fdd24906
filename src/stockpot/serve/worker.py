"""The one thread that owns every engine: it takes jobs in turn, writes a token for all that run, and hands out what came.

Nothing else touches a model. Whoever waits for a model is served by client: the one with the fewest answers under way comes
first, so that a client with many requests does not hold up one with few. What fails harms its own job; if a whole step fails,
the jobs of that model end and it gets a new engine.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from stockpot.bundle import Bundle
from stockpot.errors import StockpotError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Chunk, Request

__all__ = ["Event", "Job", "Worker"]

Result = TypeVar("Result")
# Of prompts in a step on a CPU, so that a step ends within the second in which a client that left is noticed.
READ_TOKENS = 512
log = logging.getLogger("stockpot.serve")


@dataclass(eq=False)
class Job:
    """One answer to be written.

    Attributes:
        model: name of the model that writes it.
        client: whose it is; only compared.
        take: is told what happens to it, a chunk or why it failed, where ``post`` calls it.
        has_begun: whether a chunk has come; only for who takes them.
    """

    model: str
    request: Request
    client: str
    take: Callable[[Chunk | Exception], None]
    has_begun: bool = False


Event: TypeAlias = tuple[Job, Chunk | Exception]


@dataclass
class _Bench:
    """One model at work: its engine, the jobs under way by their numbers, and those that wait, by client."""

    bundle: Bundle
    engine: Engine
    live: dict[int, Job] = field(default_factory=dict)
    waiting: dict[str, deque[Job]] = field(default_factory=dict)

    def next(self) -> Job:
        """Take the next job: of the client with the fewest under way, and of those who waited longest."""
        running = Counter(job.client for job in self.live.values())
        client = min(
            self.waiting, key=lambda one: running[one]
        )  # the first of equals, as dicts keep their order
        jobs = self.waiting.pop(client)
        job = jobs.popleft()
        if jobs:
            self.waiting[client] = jobs  # at the end of the row
        return job


class Worker:
    """Runs engines in a thread of its own.

    Args:
        slots: most jobs of a model under way at once.
        prefix_mib, cache_mib: memory for known beginnings and for answers under way, each model.
        compiles: on a GPU, let torch compile the step that writes several answers.
        post: brings events to the thread where jobs take them; called by the worker once a step.
    """

    def __init__(
        self,
        *,
        slots: int,
        prefix_mib: int,
        cache_mib: int,
        post: Callable[[Sequence[Event]], None],
        compiles: bool = False,
    ) -> None:
        self._slots, self._post = slots, post
        self._engine = partial(
            Engine, slots=slots, prefix_mib=prefix_mib, cache_mib=cache_mib, compiles=compiles
        )
        self._benches: dict[str, _Bench] = {}
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._calls: deque[Callable[[], None]] = deque()
        self._events: list[Event] = []
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, name="stockpot-engine", daemon=True)

    def _new_engine(self, bundle: Bundle) -> Engine:
        if bundle.model.device.type == "cuda":
            return self._engine(bundle)
        return self._engine(bundle, read_tokens=READ_TOKENS)

    # --- for other threads ---

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Stop after the step under way and wait for it."""
        self._orders.put(self._halt)
        if self._thread.is_alive():
            self._thread.join()

    def add(self, name: str, bundle: Bundle) -> None:
        """Take on a model, in place of one with the same name."""
        self._orders.put(lambda: self._take_on(name, bundle))

    def remove(self, name: str) -> None:
        """Give up a model; its jobs fail."""
        self._orders.put(lambda: self._give_up(name))

    def submit(self, job: Job) -> None:
        """Queue a job; what comes of it is told to ``job.take``."""
        self._orders.put(lambda: self._accept(job))

    def cancel(self, job: Job) -> None:
        """Forget a job after the step under way; one that has ended is ignored."""
        self._orders.put(lambda: self._drop(job))

    def run(self, name: str, function: Callable[[Engine], Result]) -> Future[Result]:
        """Call a function with a model's engine between two steps; others wait meanwhile, so it should be short."""
        future: Future[Result] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if name not in self._benches:
                    raise _unknown(name)
                future.set_result(function(self._benches[name].engine))
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                future.set_exception(error)

        self._orders.put(lambda: self._calls.append(call))
        return future

    # --- in the thread ---

    def _work(self) -> None:
        while not self._is_stopped:
            self._take_orders()
            if self._calls:
                self._calls.popleft()()
            for bench in list(self._benches.values()):
                self._admit(bench)
                if bench.engine.pending:
                    self._step(bench)
            if self._events:
                events, self._events = self._events, []
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    self._post(events)

    def _take_orders(self) -> None:
        """Do what others asked for; wait for it if there is nothing else to do."""
        benches = self._benches.values()
        if not (self._calls or self._events or any(bench.live or bench.waiting for bench in benches)):
            _do(self._orders.get())
        while True:
            try:
                _do(self._orders.get_nowait())
            except queue.Empty:
                return

    def _halt(self) -> None:
        self._is_stopped = True

    def _take_on(self, name: str, bundle: Bundle) -> None:
        self._give_up(name)
        self._benches[name] = _Bench(bundle, self._new_engine(bundle))

    def _give_up(self, name: str) -> None:
        bench = self._benches.pop(name, None)
        if bench is not None:
            jobs = [*bench.live.values(), *(job for jobs in bench.waiting.values() for job in jobs)]
            self._events += [(job, _unknown(name)) for job in jobs]

    def _accept(self, job: Job) -> None:
        bench = self._benches.get(job.model)
        if bench is None:
            self._events.append((job, _unknown(job.model)))
        else:
            bench.waiting.setdefault(job.client, deque()).append(job)

    def _drop(self, job: Job) -> None:
        bench = self._benches.get(job.model)
        if bench is None:
            return
        jobs = bench.waiting.get(job.client)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del bench.waiting[job.client]
        for number in [number for number, one in bench.live.items() if one is job]:
            del bench.live[number]
            bench.engine.cancel(number)

    def _admit(self, bench: _Bench) -> None:
        while bench.waiting and len(bench.live) < self._slots:
            job = bench.next()
            try:
                bench.live[bench.engine.submit(job.request)] = job
            except Exception as error:  # noqa: BLE001 - it belongs to this job alone
                self._events.append((job, error))

    def _step(self, bench: _Bench) -> None:
        try:
            chunks = bench.engine.step()
        except Exception as error:
            log.exception("A step failed; its answers end, and the model gets a new engine.")
            self._events += [(job, error) for job in bench.live.values()]
            bench.live.clear()
            bench.engine = self._new_engine(bench.bundle)
            return
        for chunk in chunks:
            job = bench.live.get(chunk.request)
            if job is not None:
                self._events.append((job, chunk))
                if chunk.finish_reason is not None:
                    del bench.live[chunk.request]


def _do(order: Callable[[], None]) -> None:
    """Do what was asked for; the thread outlives what fails."""
    try:
        order()
    except Exception:
        log.exception("An order to the engine's thread failed.")


def _unknown(name: str) -> Exception:
    return StockpotError(f"The model {name!r} is not served.", "See /v1/models.")
