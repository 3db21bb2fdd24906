"""A model whose layers are computed side by side: each process has some heads and some of the feed-forward's width.

It is the third `Layout`. The processes that share a layer read the same rows and pass the hidden states whole; what a
layer's matrices make is summed twice a layer. What the optimizer changes lies as `Split` has it, in rows over the same
processes, so that Muon, checkpoints and resuming are the same: gradients are put together and cut into rows once a step,
and the new weights the other way. The embedding, the output matrix and the norms are whole on every process.

Source: Shoeybi et al. 2019, arXiv:1909.08053, §3.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import wait_tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from stockpot.device import World
from stockpot.errors import ConfigError
from stockpot.model.layers import Block
from stockpot.train.cuts import faults, into, out_of
from stockpot.train.layout import local
from stockpot.train.optim import parts_of
from stockpot.train.parallel import Group, ParallelConfig, held_by
from stockpot.train.resume import random_state, set_random_state
from stockpot.train.split import Split

__all__ = ["TensorParallel"]


class TensorParallel(Split):
    """Every layer split by heads and by the feed-forward's width; arguments as for `Split`.

    Raises:
        ConfigError: if a layer cannot be split over so many processes, naming what does not divide.
    """

    def _split(self, config: ParallelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
        """Split each layer as it computes, and all weights into rows, which are returned by name."""
        place = self.group.place
        count = config.sharing(place.world)
        for fault in faults(self.trained, count):
            raise ConfigError(
                f"loop.parallel.kind = 'tensor' splits each layer over {count} processes, but {fault}.",
                "Choose another loop.parallel.layer_processes, or kind = 'fsdp', which splits any model.",
            )
        meshes = held_by(
            init_device_mesh(
                self.device.type, (place.world // count, count), mesh_dim_names=("rows", "layer")
            )
        )
        self.mesh = meshes["layer"]
        self.sharers = Group(World(place.rank % count, count), self.mesh.get_group())
        self.readers = Group(config.reading(place), meshes["rows"].get_group())
        self.described = copy.deepcopy(self.given, _shapes_only(self.given))
        rows = {name: self._rows_of(p) for name, p in self.given.named_parameters()}
        self.orders = _orders(self.trained, count)
        _split_layers(self.trained, self.mesh, self.orders)
        self.computing = dict(self.trained.named_parameters())
        self.by_head = {name for name in self.computing if name.endswith(("q_norm.weight", "k_norm.weight"))}
        self.is_stale = True  # the weights that compute are not those of the rows
        # Dropout of the hidden states must be the same where they are.
        set_random_state(self.group.from_first(partial(random_state, self.device)), self.device)
        return rows

    def _rows_of(self, parameter: Tensor) -> Tensor:
        """Cut a parameter that each process holds into rows."""
        whole = parameter.detach()
        return (
            distribute_tensor(whole, self.mesh, [Shard(0)], src_data_rank=None).clone()
            if whole.ndim
            else whole
        )

    def begin(self, *, is_last: bool) -> None:
        """Bring the weights that compute up to date."""
        if self.is_stale:
            self._spread()
        self.is_stale = False

    @torch.no_grad()
    def _spread(self) -> None:
        """Give each process its part of every layer's weights, from the rows."""
        for name, rows in self.parameters.items():
            whole = rows.full_tensor() if isinstance(rows, DTensor) else rows
            if name in self.orders:
                whole = whole[self.orders[name]]
            parameter = self.computing[name]
            if isinstance(parameter, DTensor) and isinstance(cut := parameter.placements[0], Shard):
                whole = whole.chunk(self.mesh.size(), cut.dim)[self.mesh.get_local_rank()]
            local(parameter).copy_(whole)

    @torch.no_grad()
    def collect(self) -> None:
        """Put each gradient together, keep the rows of this process, and sum them over those that read other rows."""
        for name, tensor in self.tensors.items():
            parameter = self.computing[name]
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                tensor.grad = torch.zeros_like(tensor)
                continue
            tensor.grad = self.part(name, self._whole(name, gradient)).clone()
        self.readers.sum_gradients(list(self.tensors.values()))
        self.is_stale = True

    def _whole(self, name: str, gradient: Tensor) -> Tensor:
        if isinstance(gradient, DTensor):
            gradient = gradient.full_tensor()
        elif name in self.by_head:  # each process has seen its heads only
            gradient = self.sharers.sum(gradient)
        if name not in self.orders:
            return gradient
        return torch.empty_like(gradient).index_copy_(0, self.orders[name], gradient)

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what a whole model had learned; errors as for a whole one."""
        super().load(state)
        self.is_stale = True


def _shapes_only(model: nn.Module) -> dict[int, nn.Parameter]:
    """Map each parameter to one of its shape without content, for a copy of the model."""
    return {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()
    }


def _orders(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Say in which order the rows of fused matrices lie, so that each process's part holds its share of every part."""
    parts, orders = parts_of(model), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in parts:
            rows = torch.arange(module.out_features, device=module.weight.device)
            pieces = torch.split(rows, list(parts[id(module.weight)]))
            shares = zip(*(piece.chunk(count) for piece in pieces), strict=True)
            order = torch.cat([piece for share in shares for piece in share])
            orders[f"{name}.weight"] = order
            if module.bias is not None:
                orders[f"{name}.bias"] = order
    return orders


@torch.no_grad()
def _split_layers(model: nn.Module, mesh: DeviceMesh, orders: dict[str, Tensor]) -> None:
    """Let each process compute its heads and its part of the feed-forward; in place."""
    for name, parameter in model.named_parameters():
        if name in orders:
            parameter.copy_(parameter[orders[name]])
    for block in [module for module in model.modules() if isinstance(module, Block)]:
        styles: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in into(block)}
        styles |= {name: RowwiseParallel() for name in out_of(block)}
        parallelize_module(block, mesh, styles, src_data_rank=None)  # all hold the same weights
        for name in out_of(block):
            block.get_submodule(name).register_forward_hook(_arrived)
        for attention in (block.attention, block.cross):
            if attention is not None:
                attention.heads //= mesh.size()
                attention.kv_heads //= mesh.size()
                attention.inner //= mesh.size()
                attention.kv_dim //= mesh.size()


def _arrived(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    """Wait for a sum: our kernels look at memory."""
    arrived: Tensor = wait_tensor(output)  # type: ignore[no-untyped-call]
    return arrived
