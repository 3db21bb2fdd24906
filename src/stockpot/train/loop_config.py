"""The loop's settings and the optimizer's: everything that decides a training run beside its data, model and loss."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from stockpot.train.optim import OptimConfig
from stockpot.train.parallel import ParallelConfig

__all__ = ["LoopConfig"]


class LoopConfig(OptimConfig):
    """How long and how to train: the loop's settings and the optimizer's."""

    steps: int = Field(1000, ge=1, description="optimiser steps")
    batch_tokens: int = Field(
        16_384, ge=1, description="real tokens a step, over all micro-batches and processes"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="of matrix products, weights stay float32; none: the fastest here, also halves on a CPU",
    )
    compile: bool | None = Field(None, description="compile each layer; none: on CUDA from 1000 steps")
    flex: bool = Field(
        False,
        description="on CUDA: packed documents by FlexAttention instead of a mask as large as the attention",
    )
    narrow_states: bool = Field(
        False, description="in bfloat16: the states between layers in bfloat16, too, not in float32"
    )
    fp8: bool = Field(False, description="on CUDA from 8.9, in bfloat16: layers' products in 8-bit floats")
    log_every: int = Field(10, ge=1, description="steps between log lines")
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; none: a tenth of all"
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="steps between checkpoints; none: a tenth of all"
    )
    checkpoint_behind: bool = Field(
        False,
        description="write checkpoints while training goes on; takes memory for a copy of the training state",
    )
    keep: int = Field(2, ge=1, description="newest checkpoints kept, beside the best")
    best_metric: str = Field(
        "loss", description="the validation metric, lower is better, that picks the best"
    )
    parallel: ParallelConfig = Field(
        default_factory=ParallelConfig, description="how processes that torchrun starts share the model"
    )
    on_bad_step: Literal["stop", "skip"] = Field(
        "stop", description="a step that is not finite: stop · skip it"
    )
    divergence_factor: float | None = Field(
        3.0,
        gt=1,
        description="stop when the logged loss is this many times the first, and 1 above it; none: never",
    )

    def every(self, name: Literal["validate", "checkpoint"]) -> int:
        """Return the interval of a thing in steps."""
        own = self.validate_every if name == "validate" else self.checkpoint_every
        return own or max(1, math.ceil(self.steps / 10))

    @model_validator(mode="after")
    def _goes_together(self) -> LoopConfig:
        if self.parallel.kind == "tensor" and (self.compile or self.fp8):
            raise ValueError("compile and fp8 do not go with parallel.kind = 'tensor'")
        return self
