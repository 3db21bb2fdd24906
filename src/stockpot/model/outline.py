"""A model of which only names and shapes exist: what a reader fills with the weights of a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from stockpot.model.config import ModelConfig
from stockpot.model.transformer import Transformer

__all__ = ["outline", "outline_of"]

Network = TypeVar("Network", bound=nn.Module)


def outline(config: ModelConfig) -> Transformer:
    """Build a model on the ``meta`` device, without drawing the initial weights that it will not keep."""
    return outline_of(lambda: Transformer(config))


def outline_of(build: Callable[[], Network]) -> Network:
    """Build any network on the ``meta`` device."""
    with torch.device("meta"), _Undrawn():
        return build()


class _Undrawn(TorchFunctionMode):
    """Skips ``torch.nn.init``. Drawing numbers that do not exist loads torch's compiler: a second or more."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))
