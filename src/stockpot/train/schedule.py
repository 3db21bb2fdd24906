"""How the learning rate moves: a factor between 0 and 1 for every step.

Four shapes, one function, no state: the factor of a step depends on the step alone, so that resuming needs
nothing but its number.
"""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["Schedule", "schedule_factor"]

Schedule = Literal["constant", "linear", "cosine", "warmup-stable-decay"]


def schedule_factor(
    step: int, *, kind: Schedule, steps: int, warmup_steps: int, decay_steps: int, final: float
) -> float:
    """Give the factor on the learning rate of ``step``, counted from 0.

    It rises linearly over ``warmup_steps`` (the first step is not wasted on 0), and ends at ``final`` in the last
    step.

    Args:
        step: the optimiser step about to be taken.
        kind: constant · linear · cosine (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5) ·
            warmup-stable-decay: level, then a straight line down over ``decay_steps`` (Hu et al. 2024,
            arXiv:2404.06395, §4).
        steps: all steps of the run.
        warmup_steps: how many of them rise.
        decay_steps: how many of them fall, for warmup-stable-decay.
        final: the factor of the last step.
    """
    if steps == 1:
        return 1.0  # the only step is not wasted on 0 either
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    start = steps - decay_steps if kind == "warmup-stable-decay" else warmup_steps
    start = max(start, warmup_steps)
    if step < start:
        return 1.0
    # The last step, steps - 1, stands at 1.
    done = min(1.0, (step - start + 1) / max(1, steps - start))
    shape = 1 - done if kind != "cosine" else 0.5 * (1 + math.cos(math.pi * done))
    return final + (1 - final) * shape
