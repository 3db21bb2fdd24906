"""Several processes that train one model: what they add up, and who writes.

One process is the same code: its sums are its own. Started by torchrun, every process holds the whole model and its
share of the batches; a step's gradients, counts and metrics are summed over all, so that the number of processes
does not change the update. It splits no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stockpot.device import World, this_world

__all__ = ["Group", "joined"]

BUCKET_ELEMENTS = 1 << 24  # values sent at once, 64 MiB of float32


class Group:
    """The processes of this run; sums are no-ops when there is one."""

    def __init__(self, world: World | None = None) -> None:
        self.place = world or (this_world() if dist.is_available() and dist.is_initialized() else World())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.place.is_first

    def share(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if self.place.world > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, src=0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over all processes, in place, a bucket at a time."""
        if self.place.world == 1:
            return
        for parameter in parameters:  # a parameter that this process's batches did not touch
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Sum a small tensor over all processes; returns it."""
        if self.place.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so; all give the same answer."""
        if self.place.world == 1:
            return flag
        return self.total(int(flag)) > 0

    def total(self, value: int) -> int:
        """Sum a whole number over all processes."""
        if self.place.world == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        return int(self.sum(torch.tensor(value, device=device)))

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.place.world > 1:
            dist.barrier()

    def gather(self, value: Tensor) -> list[Tensor]:
        """Collect a tensor of one size from every process, by rank."""
        if self.place.world == 1:
            return [value]
        found = [torch.empty_like(value) for _ in range(self.place.world)]
        dist.all_gather(found, value)
        return found


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET_ELEMENTS:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


@contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the processes that torchrun started, for the length of a block; alone, do nothing."""
    place = this_world()
    if place.world == 1 or dist.is_initialized():
        yield Group()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(place)
        dist.barrier()  # one that leaves early would break the others' last sum off
    finally:
        dist.destroy_process_group()
