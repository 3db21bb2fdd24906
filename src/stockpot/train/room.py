"""How many rows a device computes at once: found by trying, not by reducing until it fits.

Twice as many rows are tried until memory runs out or the speed no longer rises; what is chosen leaves some memory free. It
knows no model: a function takes the step.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["most_rows"]

GAIN = 1.03  # more rows must pay at least this much
USABLE = 0.9  # of the device's memory


def most_rows(
    step: Callable[[int], None],
    most: int,
    *,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Choose the rows of a micro-batch.

    Args:
        step: computes a forward and a backward pass of so many rows, and waits for the end.
        most: rows of a whole step: no more are of use.
        device: whose memory is looked at.
        clock: tells seconds.

    Returns:
        a power of two, or ``most``; at least 1, whether or not that fits.
    """
    best, best_speed, rows = 1, 0.0, 1
    while rows <= most:
        try:
            step(rows)  # the first of a size prepares kernels and memory
            began = clock()
            step(rows)
            speed = rows / max(clock() - began, 1e-9)
        except torch.OutOfMemoryError:
            break
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()
        if speed < best_speed * GAIN or not _has_room(device):
            break
        best, best_speed = rows, speed
        rows = min(rows * 2, most) if rows < most else most + 1
    return best


def _has_room(device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    taken = torch.cuda.max_memory_allocated(device)
    return taken <= USABLE * torch.cuda.get_device_properties(device).total_memory
