"""Work beside training: one job at a time in a thread of its own, whose failure is told to who comes next.

A checkpoint is written here while training goes on; what it writes was copied before, so that nothing can change under it.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

from torch import Tensor

__all__ = ["Behind", "copied"]


class Behind:
    """Does jobs one after another, at most one at a time, behind the back of who starts them."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job; waits for the one before, and raises its error."""
        self.wait()
        self._thread = Thread(target=self._do, args=(job,), name="stockpot-behind")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the job under way; raises what it raised."""
        self.settle()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def settle(self) -> None:
        """Wait for the job under way; its error is kept for ``wait``."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - told to who waits
            self._error = error


def copied(value: Any) -> Any:
    """Copy containers and the tensors in them, so that training cannot change what is still to be written."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(one) for one in value)
    return value
