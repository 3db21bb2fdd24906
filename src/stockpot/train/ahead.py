"""The next batches, made ready by a thread while a GPU computes.

The place that is told is that of the batch handed out last, not that of those made ready: a run resumes exactly. It knows no
model and no objective.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor

__all__ = ["Ahead"]

READY = 2  # batches


class Ahead:
    """An iterator over another one that tells and takes its place.

    Args:
        source: has ``state_dict`` and ``load_state_dict``.
        pins: put tensors into memory from which they can be copied to a GPU while it computes.
    """

    def __init__(self, source: Any, *, pins: bool) -> None:
        self._source, self._pins = source, pins
        self._place: dict[str, Any] = source.state_dict()
        self._ready: queue.Queue[tuple[Any, Any]] | None = None
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Any]:
        """Go on from the current place."""
        return self

    def __next__(self) -> Any:
        """Hand out the next batch.

        Raises:
            StopIteration: where the source ends; what else it raises, when its turn has come.
        """
        if self._ready is None:
            self._start()
        assert self._ready is not None
        batch, place = self._ready.get()
        if isinstance(place, BaseException):
            self._ready.put((None, place))  # asked again, it says so again
            raise place
        self._place = place
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Tell the place behind the batch handed out last."""
        return self._place

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place."""
        self.close()
        self._source.load_state_dict(state)
        self._place = state

    def close(self) -> None:
        """End the thread; what it made ready is thrown away, and the source stands where it would without a thread."""
        if self._thread is None:
            return
        self._ends.set()
        while self._thread.is_alive():
            if self._ready is not None and not self._ready.empty():
                self._ready.get()
            self._thread.join(0.01)
        self._ready = self._thread = None
        self._source.load_state_dict(self._place)

    def _start(self) -> None:
        self._ready, self._ends = queue.Queue(READY), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(self._ready, self._ends), daemon=True)
        self._thread.start()

    def _work(self, ready: queue.Queue[tuple[Any, Any]], ends: threading.Event) -> None:
        while not ends.is_set():
            try:
                batch = next(self._source)
                item = (pinned(batch) if self._pins else batch, self._source.state_dict())
            except BaseException as error:  # noqa: BLE001 - raised where the batch is asked for
                item = (None, error)
            ready.put(item)
            if isinstance(item[1], BaseException):
                return


def pinned(batch: Any) -> Any:
    """Return a copy whose tensors lie in pinned memory."""
    if isinstance(batch, Tensor):
        return batch.pin_memory()
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    held = {one.name: getattr(batch, one.name) for one in fields(batch)}
    return replace(batch, **{name: pinned(value) for name, value in held.items()})
