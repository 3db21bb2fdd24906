"""Several processes that train one model: how they find each other, what they add up and tell each other, who writes.

One process is the same code: its sums are its own. Started by torchrun, every process has its share of the batches; a
step's counts and metrics are summed over all, so that the number of processes does not change the update. How a model
lies on them is ``layout``'s business.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch._C._distributed_c10d import TCPStore

from stockpot.config import Settings
from stockpot.device import World, this_world
from stockpot.errors import ConfigError, TrainError

__all__ = ["Group", "ParallelConfig", "held_by", "is_first_to_tell", "joined"]

T = TypeVar("T")
M = TypeVar("M")
BUCKET_ELEMENTS = 1 << 24  # values sent at once, 64 MiB of float32
_meshes: list[Any] = []  # of this run's split models


class ParallelConfig(Settings):
    """How the processes that torchrun starts share a model; with one process nothing is shared."""

    kind: Literal["ddp", "fsdp", "tensor"] = Field(
        "ddp",
        description="ddp: each process holds the whole model · fsdp: weights, gradients and optimizer are split"
        " · tensor: every layer's heads and feed-forward are split, too, and computed side by side",
    )
    layer_processes: int | None = Field(
        None,
        ge=2,
        description="tensor: processes that share each layer and read the same rows; none: all of them",
    )
    gather_dtype: Literal["float32", "bfloat16"] | None = Field(
        None, description="fsdp: of a layer's weights on their way; none: that of products"
    )
    recompute: bool = Field(
        False,
        description="keep a layer's input only and compute it again on the way back: less memory, a third more work",
    )
    timeout_s: float = Field(
        900.0, gt=0, description="seconds without an answer after which another process counts as gone"
    )
    offload: bool = Field(False, description="fsdp: keep weights and optimizer in the host's memory")

    @model_validator(mode="after")
    def _fits(self) -> ParallelConfig:
        if self.kind != "fsdp" and (self.offload or self.gather_dtype):
            raise ValueError("offload and gather_dtype belong to kind = 'fsdp'")
        if self.kind != "tensor" and self.layer_processes:
            raise ValueError("layer_processes belongs to kind = 'tensor'")
        return self

    def sharing(self, world: int) -> int:
        """Tell how many of ``world`` processes share a layer.

        Raises:
            ConfigError: if the processes cannot be put in groups of so many.
        """
        count = (self.layer_processes or world) if self.kind == "tensor" else 1
        if world % count:
            raise ConfigError(
                f"loop.parallel.layer_processes = {count} does not divide the {world} processes of this run.",
                f"Start a multiple of {count}, or choose another number.",
            )
        return count

    def reading(self, place: World) -> World:
        """Tell a process's place among those that read different rows; those that share layers read the same."""
        count = self.sharing(place.world)
        return World(place.rank // count, place.world // count, place.local_rank)


class Group:
    """The processes of this run, or some of them; sums are no-ops when there is one.

    Args:
        world: this process's place among them; None: in the run.
        members: their connection; None: that of all.
    """

    def __init__(self, world: World | None = None, members: dist.ProcessGroup | None = None) -> None:
        self.place = world or (this_world() if dist.is_available() and dist.is_initialized() else World())
        self.members = members

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.place.is_first

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.place.world == 1

    def share(self, model: nn.Module) -> None:
        """Give every process the first one's weights and buffers."""
        if not self.is_alone:
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor.data, group=self.members, group_src=0)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over all processes, in place, a bucket at a time; once a step, whatever it was made of."""
        if self.is_alone:
            return
        for parameter in parameters:  # a parameter that this process's batches did not touch
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat, group=self.members)
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [p.view_as(g) for p, g in zip(pieces, bucket, strict=True)])

    def sum(self, values: Tensor) -> Tensor:
        """Sum a small tensor over all processes; returns it."""
        if not self.is_alone:
            dist.all_reduce(values, group=self.members)
        return values

    def any(self, flag: bool) -> bool:
        """Tell whether any process says so; all give the same answer."""
        if self.is_alone:
            return flag
        return self.total(int(flag)) > 0

    def total(self, value: int) -> int:
        """Sum a whole number over all processes, without waiting for a device."""
        return value if self.is_alone else int(self.sum(torch.tensor(value)))

    def aside(self) -> dist.ProcessGroup | None:
        """Make another connection of all processes, for what goes on beside training; every process must come here."""
        return None if self.is_alone else dist.new_group(backend="gloo")

    def wait(self) -> None:
        """Go on when every process has come here."""
        self.total(0)

    def gather(self, value: Tensor) -> list[Tensor]:
        """Collect a tensor of one size from every process, by rank."""
        if self.is_alone:
            return [value]
        found = [torch.empty_like(value) for _ in range(self.place.world)]
        dist.all_gather(found, value, group=self.members)
        return found

    def gather_objects(self, value: T) -> list[T]:
        """Collect a plain value from every process, by rank."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.place.world
        dist.all_gather_object(found, value, group=self.members)
        return found

    def from_first(self, make: Callable[[], T]) -> T:
        """Let the first process make a plain value, and give it to all."""
        if self.is_alone:
            return make()
        found: list[Any] = [make() if self.is_first else None]
        dist.broadcast_object_list(found, group=self.members, group_src=0)
        value: T = found[0]
        return value

    def agree(self, **facts: str) -> None:
        """Refuse processes that were started with different facts, such as settings or data.

        Raises:
            ConfigError: on every process, naming the first fact that differs and where.
        """
        if self.is_alone:
            return
        digests = [hashlib.sha256(fact.encode()).digest() for fact in facts.values()]
        mine = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(len(facts), -1)
        for number, name in enumerate(facts):
            found = [bytes(one[number].tolist()) for one in self.gather(mine)]
            others = [str(rank) for rank, digest in enumerate(found) if digest != found[0]]
            if others:
                raise ConfigError(
                    f"The processes of this run have different {name}: {', '.join(others[:8])} not as 0.",
                    "Start all of them with the same command, files and version of stockpot.",
                )


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


# --- beginning and ending ---


@contextmanager
def joined(device: torch.device, config: ParallelConfig | None = None) -> Iterator[Group]:
    """Join the processes that torchrun started, for the length of a block; alone, do nothing.

    Args:
        device: where this process computes.
        config: how long others are waited for.

    Raises:
        TrainError: if the others are out of reach, because one of them has ended.
    """
    place = this_world()
    if place.world == 1 or dist.is_initialized():
        yield Group()
        return
    # Its functions have the group that is there when it is imported as a default, and so would hold it until the interpreter
    # ends, when a thread of gloo's that lets go of a tensor is killed: "terminate called without an active exception".
    import torch.distributed.nn.functional

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Small numbers of the host go through gloo, so that no one waits for a device because of them.
    wait = timedelta(seconds=(config or ParallelConfig()).timeout_s)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=wait)
    try:
        yield Group(place)
        dist.barrier()  # one that leaves early would break the others' last sum off
    except RuntimeError as error:
        if not _is_of_connection(error):
            raise
        raise TrainError(
            f"Another process of this run has ended, and process {place.rank} cannot go on alone.",
            "What it said stands above. Start all of them again with --resume: they go on from the newest checkpoint.",
        ) from error
    finally:
        _let_go()
        dist.destroy_process_group()


def held_by(mesh: M) -> M:
    """Remember a mesh of devices, whose groups ``joined`` lets go of at its end; returns it."""
    _meshes.append(mesh)
    return mesh


def _let_go() -> None:
    """Drop what holds groups beyond their end: wrapped models, which are cycles, and meshes, which torch's caches keep."""
    gc.collect()
    for mesh in _meshes:
        getattr(mesh, "_pg_registry", {}).clear()
    _meshes.clear()


def _is_of_connection(error: RuntimeError) -> bool:
    text = str(error).lower()
    words = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out")
    return isinstance(error, dist.DistError) or any(word in text for word in words)


def is_first_to_tell() -> bool:
    """Tell whether no other process of this run has told of an error yet; the first one to ask may.

    The processes ask torchrun's own store, which outlives each of them.
    """
    if this_world().world == 1:
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=5)
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=wait)
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return bool(store.add(f"stockpot/told/{again}", 1) == 1)
    except (RuntimeError, KeyError, ValueError):  # the store has gone: better twice than never
        return True
