"""How a model lies on the processes that train it: whole on each, or split over them in one of two ways.

A `Layout` is the loop's small door to both. It says which module the loss sees, which tensors the optimizer changes,
how a step's gradients become those of all processes, and when the model that was given may be read. It takes no step
and writes no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stockpot.device import World
from stockpot.train.parallel import Group, ParallelConfig

__all__ = ["Layout", "lay_out", "learned", "local", "row_count"]


class Layout:
    """The whole model on every process.

    Attributes:
        trained: what the loss is given.
        described: tells every parameter's role and whole shape.
        tensors: name → what the optimizer changes, for every parameter that is trained.
        readers: the processes that read different rows, over which a step is summed.
        sharers: the processes that one copy of the model lies on.
    """

    is_split = False

    def __init__(self, model: nn.Module, group: Group) -> None:
        self.group, self.trained, self.described = group, model, model
        self.readers, self.sharers = group, Group(World())
        self.tensors: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def begin(self, *, is_last: bool) -> None:
        """Prepare for a micro-batch; ``is_last``: the step ends with it."""

    def collect(self) -> None:
        """Turn each process's gradients into their sum over all."""
        self.group.sum_gradients(list(self.tensors.values()))

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Measure the norm of the gradient that the optimizer's tensors hold together."""
        return torch.nn.utils.get_total_norm(gradients)

    @contextmanager
    def published(self) -> Iterator[None]:
        """Let the model that was given be read as it is now."""
        yield

    def finish(self) -> None:
        """Leave the model that was given as training left it."""

    def as_split(self, name: str, tensor: Tensor) -> Tensor:
        """Say of a tensor laid out like the parameter ``name`` which part of the whole it is."""
        return tensor

    def rows(self, name: str, rank: int | None = None) -> tuple[int, int]:
        """Tell which rows of a parameter a process (None: this one) holds: start and stop; a lone number is one row."""
        return 0, row_count(self.tensors[name])

    def part(self, name: str, whole: Tensor) -> Tensor:
        """Cut what this process holds out of something whole that is laid out like the parameter ``name``."""
        start, stop = self.rows(name)
        return whole[start:stop] if whole.ndim else whole

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what a whole model had learned.

        Raises:
            RuntimeError: if it is of another model.
        """
        frozen = self.trained.state_dict().keys() - learned(self.trained).keys()
        own = {name: value for name, value in self.trained.state_dict().items() if name in frozen}
        self.trained.load_state_dict(own | state)


def learned(model: nn.Module) -> dict[str, Tensor]:
    """Return what training changes: all of the state but frozen parameters, which come from where they came from."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def row_count(tensor: Tensor) -> int:
    """Count the rows that a tensor can be cut into; a lone number is one."""
    return tensor.shape[0] if tensor.ndim else 1


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a split tensor, sharing its memory."""
    part = getattr(tensor.detach(), "to_local", None)
    return tensor if part is None else part()


def lay_out(model: nn.Module, config: ParallelConfig, group: Group, dtype: torch.dtype) -> Layout:
    """Lay a model out on the processes; all start from the first one's weights."""
    group.share(model)
    if group.is_alone or config.kind == "ddp":
        return Layout(model, group)
    from stockpot.train.split import Split  # it brings a second's worth of torch along
    from stockpot.train.tensor_parallel import TensorParallel

    return (TensorParallel if config.kind == "tensor" else Split)(model, config, group, dtype)
