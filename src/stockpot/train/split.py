"""A model split over the processes that train it: weights, gradients and optimizer.

Every parameter is cut along its first dimension; a layer's are gathered while it computes. It is the second `Layout` and
knows what the loop may not: torch's ``fully_shard``.

Source: Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from stockpot.model.layers import Block
from stockpot.model.transformer import Transformer
from stockpot.train.layout import Layout, local, row_count
from stockpot.train.parallel import Group, ParallelConfig, held_by

__all__ = ["Split"]


class Split(Layout):
    """Every parameter split over the processes along its first dimension, and gathered while its layer computes.

    The model that was given is emptied, and filled where someone reads it: to validate, to save, to write answers. So
    it must fit a device once, without gradients and optimizer.

    Args:
        model: what is trained; weights float32.
        config: how.
        group: the processes; all hold the same weights.
        dtype: number type of products.
    """

    is_split = True

    def __init__(self, model: nn.Module, config: ParallelConfig, group: Group, dtype: torch.dtype) -> None:
        self.given = model
        self.device = next(model.parameters()).device
        super().__init__(copy.deepcopy(model), group)
        self.sharers = group
        named = self._split(config, dtype)
        self.pairs = [(own, named[name]) for name, own in model.named_parameters()]
        self.parameters = {name: named[name] for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: local(p) for name, p in self.parameters.items()}
        self.is_shared = [isinstance(p, DTensor) for p in self.parameters.values()]
        self._empty()

    def _split(self, config: ParallelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
        """Split each layer for itself, and what is left of each Transformer; returns all parameters, split, by name."""
        gathered = dtype if config.gather_dtype is None else getattr(torch, config.gather_dtype)
        mesh = held_by(init_device_mesh(self.device.type, (self.group.place.world,)))
        host: OffloadPolicy = CPUOffloadPolicy() if config.offload else OffloadPolicy()
        narrow = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
        wide = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        roots: list[nn.Module] = [one for one in self.trained.modules() if isinstance(one, Transformer)] or [
            self.trained
        ]
        for root in roots:
            blocks = [one for one in root.modules() if isinstance(one, Block)]
            for module, policy in [*((block, narrow) for block in blocks), (root, wide)]:
                done = fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=host)
                done.set_gradient_divide_factor(1.0)  # sums: the loop divides by what was counted
                done.set_force_sum_reduction_for_comms(True)
        self.roots = [root for root in roots if isinstance(root, FSDPModule)]
        return dict(self.trained.named_parameters())

    def begin(self, *, is_last: bool) -> None:
        """Sum gradients over the processes with a step's last micro-batch only."""
        for root in self.roots:
            root.set_requires_gradient_sync(is_last)

    def collect(self) -> None:
        """Hand the split gradients to the optimizer's tensors, and sum those of parameters that are whole."""
        for tensor, parameter in zip(self.tensors.values(), self.parameters.values(), strict=True):
            gradient, parameter.grad = parameter.grad, None
            tensor.grad = torch.zeros_like(tensor) if gradient is None else local(gradient).to(tensor.dtype)
        whole = zip(self.tensors.values(), self.is_shared, strict=True)
        self.group.sum_gradients([tensor for tensor, is_shared in whole if not is_shared])

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Add the squares of all parts, and those of whole parameters once."""
        parts = [g for g, is_shared in zip(gradients, self.is_shared, strict=True) if is_shared]
        whole = [g for g, is_shared in zip(gradients, self.is_shared, strict=True) if not is_shared]
        squares = self.sharers.sum(torch.nn.utils.get_total_norm(parts).square())
        if whole:
            squares = squares + torch.nn.utils.get_total_norm(whole).square()
        return squares.sqrt()

    @contextmanager
    def published(self) -> Iterator[None]:
        """Fill the model that was given, for the length of a block; every process must come here."""
        self.finish()
        yield
        self._empty()

    @torch.no_grad()
    def finish(self) -> None:
        """Fill the model that was given; every process must come here."""
        for own, part in self.pairs:
            whole = part.full_tensor() if isinstance(part, DTensor) else part
            own.data = whole.detach().to(own.device, own.dtype)

    def _empty(self) -> None:
        for own, _ in self.pairs:
            own.data = own.data.new_empty(0)

    def as_split(self, name: str, tensor: Tensor) -> Tensor:
        """Say of a tensor laid out like the parameter ``name`` which part of the whole it is."""
        like = self.parameters[name]
        if not isinstance(like, DTensor) or tensor.shape != self.tensors[name].shape or not tensor.ndim:
            return tensor
        made: DTensor = DTensor.from_local(
            tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return made

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over this process's rows of what a whole model had learned; errors as for a whole one."""
        wrong = [
            name for name, p in self.parameters.items() if name not in state or state[name].shape != p.shape
        ]
        if wrong:
            raise RuntimeError(f"{wrong[0]} is missing or has another shape")
        for name, tensor in self.tensors.items():
            tensor.copy_(self.part(name, state[name]))

    def rows(self, name: str, rank: int | None = None) -> tuple[int, int]:
        """Tell which rows of a parameter a process holds: start and stop."""
        like = self.parameters[name]
        count = row_count(like)
        if not isinstance(like, DTensor):
            return 0, count
        each = -(-count // self.sharers.place.world)  # as torch.chunk cuts
        rank = self.sharers.place.rank if rank is None else rank
        return min(count, rank * each), min(count, (rank + 1) * each)
