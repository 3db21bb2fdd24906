"""Muon where matrices are split over processes: each matrix is made orthogonal once, by one process.

Momentum lives where a matrix is worked on. A step sends each process the gradients of its own matrices, all at once, and
sends the updates back the same way; the rest of the step is done by each process on the rows it holds. It knows how
matrices are cut into rows, and nothing of how they are trained otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from stockpot.train.muon import Matrix, Muon
from stockpot.train.parallel import Group

__all__ = ["SplitMuon", "owners"]

Rows = Callable[[int, int], tuple[int, int]]
"""``(matrix, rank)`` → the rows a process holds, start and stop."""


def owners(shapes: Sequence[tuple[int, int]], world: int) -> list[int]:
    """Give each matrix to a process, the costly ones first, each to whoever has least to do."""
    cost = [rows * columns * min(rows, columns) for rows, columns in shapes]
    load, found = [0] * world, [0] * len(shapes)
    for index in sorted(range(len(shapes)), key=lambda i: (-cost[i], i)):
        found[index] = min(range(world), key=lambda rank: (load[rank], rank))
        load[found[index]] += cost[index]
    return found


class SplitMuon:
    """The optimizer's state and step; arguments as for `Muon`.

    Args:
        matrices: this process's rows of each matrix, and the sizes of the whole matrix's parts.
        shapes: of the whole matrices.
        rows: which rows lie where.
        sharers: the processes that the matrices are split over.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        shapes: Sequence[tuple[int, int]],
        rows: Rows,
        sharers: Group,
        *,
        momentum: float,
        iterations: int,
        dtype: torch.dtype,
    ) -> None:
        self.matrices, self.shapes, self.rows = list(matrices), list(shapes), rows
        self.members, place = sharers.members, sharers.place
        self.world = place.world
        self.owners = owners(shapes, place.world)
        self.mine = [index for index, owner in enumerate(self.owners) if owner == place.rank]
        device = self.matrices[0].parameter.device
        self.wholes = [
            Matrix(torch.zeros(shapes[i], device=device), self.matrices[i].parts) for i in self.mine
        ]
        for whole in self.wholes:
            whole.parameter.grad = torch.zeros_like(whole.parameter)
        self.inner = Muon(self.wholes, momentum=momentum, iterations=iterations, dtype=dtype)

    @torch.no_grad()
    def step(self, lr: float, *, weight_decay: float, is_cautious: bool) -> None:
        """Update this process's rows of every matrix from their gradients; arguments as for `Muon.step`."""
        self._bring()
        for whole in self.wholes:
            whole.parameter.zero_()
        self.inner.step(lr, weight_decay=0.0, is_cautious=False)
        decay = lr * weight_decay
        for index, change in self._take():
            weight = self.matrices[index].parameter
            if decay and is_cautious:
                change.addcmul_(weight, (weight * change < 0).to(weight.dtype), value=-decay)
            elif decay:
                weight.mul_(1 - decay)
            weight.add_(change)

    def _bring(self) -> None:
        """Send each process the gradients of its matrices."""
        held = [matrix.parameter for matrix in self.matrices]
        sent = [
            (torch.zeros_like(held[i]) if held[i].grad is None else held[i].grad).reshape(-1)  # type: ignore[union-attr]
            for _, i in self._by_owner()
        ]
        arrived = self._exchange(sent, out=self._sizes_held(), back=self._sizes_owned())
        at = 0
        for rank in range(self.world):
            for index, whole in zip(self.mine, self.wholes, strict=True):
                start, stop = self.rows(index, rank)
                size = (stop - start) * self.shapes[index][1]
                assert whole.parameter.grad is not None
                whole.parameter.grad[start:stop] = arrived[at : at + size].view(stop - start, -1)
                at += size

    def _take(self) -> Iterator[tuple[int, Tensor]]:
        """Send the updates back; yields each matrix's, for the rows held here."""
        sent = []
        for rank in range(self.world):
            for index, whole in zip(self.mine, self.wholes, strict=True):
                start, stop = self.rows(index, rank)
                sent.append(whole.parameter[start:stop].reshape(-1))
        arrived = self._exchange(sent, out=self._sizes_owned(), back=self._sizes_held())
        at = 0
        for _, index in self._by_owner():
            like = self.matrices[index].parameter
            yield index, arrived[at : at + like.numel()].view_as(like)
            at += like.numel()

    def _exchange(self, sent: list[Tensor], *, out: list[int], back: list[int]) -> Tensor:
        like = self.matrices[0].parameter
        flat = torch.cat(sent) if sent else like.new_empty(0)
        arrived = like.new_empty(sum(back))
        dist.all_to_all_single(arrived, flat, back, out, group=self.members)
        return arrived

    def _by_owner(self) -> list[tuple[int, int]]:
        return sorted((owner, index) for index, owner in enumerate(self.owners))

    def _sizes_held(self) -> list[int]:
        """Count the numbers held here of each process's matrices."""
        sizes = [0] * self.world
        for index, owner in enumerate(self.owners):
            sizes[owner] += self.matrices[index].parameter.numel()
        return sizes

    def _sizes_owned(self) -> list[int]:
        """Count the numbers of this process's matrices that each process holds."""
        return [
            sum((stop - start) * self.shapes[i][1] for i in self.mine for start, stop in [self.rows(i, rank)])
            for rank in range(self.world)
        ]

    def momenta(self) -> dict[int, Tensor]:
        """Return the momentum of each matrix that is worked on here: its number → tensor."""
        return dict(zip(self.mine, self.inner.momenta(), strict=True)) if self.mine else {}

    def load_momenta(self, momenta: dict[int, Tensor]) -> None:
        """Take over the momentum of each matrix that is worked on here."""
        self.inner.load_momenta([momenta[index] for index in self.mine])
