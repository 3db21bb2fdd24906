"""The output matrix and the cross-entropy in one operation, which never holds all logits at once.

Decides how positions are cut into chunks and in which precision each part is computed: products in the number
type of training, softmax and log-sum-exp in float32. The gradients are made in the forward pass, while a chunk's
logits are still at hand, so that nothing is computed twice. Where the caller knows how many labels count, a GPU is
not waited for. It knows no model and no batch.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stockpot.device import on_large_pages
from stockpot.model import compiled
from stockpot.model.kernels import HAS_TRITON
from stockpot.model.linear import product

__all__ = ["IGNORED", "FusedLoss", "linear_cross_entropy", "rows_that_count"]

IGNORED = -100
CHUNK_LOGITS = 1 << 22  # logits in flight: 16 MiB of float32, about what the caches hold
CHUNK_LOGITS_GPU = 1 << 28  # there small products cost more than memory: 1 GiB of float32
# Where a kernel puts slopes in the place of logits, that is all there is of a chunk. Each chunk more reads and writes the
# gradient of the matrix once more, in its product; by that count chunks twice as long save a thousandth of a step of 350M on
# an H200.
CHUNK_BYTES_GPU = 1 << 30
TILE = 256  # rows of a chunk come in whole tiles of a product
LEAST_ROWS = 192  # a product of fewer rows mostly waits for the matrix
BLOCK_LOGITS = (
    1 << 25
)  # slopes kept until they are added to the gradient of a wide matrix: 64 MiB of bfloat16


def as_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a large tensor in another type."""
    return x if x.dtype == dtype else on_large_pages(torch.empty_like(x, dtype=dtype)).copy_(x)


@dataclass(frozen=True)
class FusedLoss:
    """Sums over the counted positions; only ``total`` carries a gradient.

    Attributes:
        total: cross-entropy in nats, plus the z-loss if there is one.
        nats: cross-entropy alone.
        correct: how often the best-scored item was the label.
        count: how many positions were counted.
    """

    total: Tensor
    nats: Tensor
    correct: Tensor
    count: int


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    z_loss: float = 0.0,
    chunk: int | None = None,
    counted: int | None = None,
) -> FusedLoss:
    """Compute ``cross_entropy(cap(hidden @ weight.T + bias), labels)`` without keeping the logits.

    Under autocast the products are computed in autocast's type, else in that of ``hidden``. Only counted positions
    are computed at all.

    Args:
        hidden: ``(..., dim)``.
        weight: ``(vocab, dim)``.
        labels: ``(...)``, −100 = not counted.
        bias: ``(vocab,)``.
        softcap: cap · tanh(logit / cap) before the softmax.
        z_loss: weight of log²Z, which keeps the logits' size in hand (Chowdhery et al. 2022, §5).
        chunk: positions at a time; None: about 4 million logits, on a GPU 268 million or, where our kernel judges them, 1 GiB.
        counted: how many labels count, if that is known: to count them on a GPU means waiting for it.

    Raises:
        ValueError: if shapes do not fit together.
    """
    if hidden.shape[:-1] != labels.shape or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"shapes do not fit: {tuple(hidden.shape)}, {tuple(weight.shape)}, {tuple(labels.shape)}"
        )
    flat, wanted = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    if counted is None:
        counted = int(torch.count_nonzero(wanted != IGNORED))
    rows = None if counted == wanted.numel() else rows_that_count(wanted, counted)
    chunk = chunk or _chunk_rows(counted, hidden, weight, is_plain=bias is None and softcap is None)
    needs = torch.is_grad_enabled()
    total, nats, correct = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        flat, weight, bias, wanted, rows, softcap, z_loss, chunk, needs
    )
    return FusedLoss(total, nats, correct, counted)


def rows_that_count(labels: Tensor, counted: int) -> Tensor:
    """Return where in the flattened labels the ``counted`` ones stand that count; nothing waits for a device."""
    return torch.nonzero_static(labels.flatten() != IGNORED, size=counted).squeeze(1)


def _chunk_rows(counted: int, hidden: Tensor, weight: Tensor, *, is_plain: bool) -> int:
    """Return how many positions make a chunk; those that are judged in place are all of one size, but for the last."""
    vocab, dtype = weight.shape[0], compiled.product_dtype(hidden)
    if not (is_plain and _judges_in_place(weight.device, dtype)):
        return max(LEAST_ROWS, (CHUNK_LOGITS_GPU if weight.is_cuda else CHUNK_LOGITS) // vocab)
    most = max(LEAST_ROWS, CHUNK_BYTES_GPU // (vocab * dtype.itemsize))
    chunks = max(1, math.ceil(counted / most))
    return TILE * max(1, math.ceil(counted / (chunks * TILE)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd passes every input by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: Tensor | None,
        softcap: float | None,
        z_loss: float,
        chunk: int,
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compiled.product_dtype(hidden)
        matrix = as_type(weight, dtype)
        sums = torch.zeros(3, dtype=torch.promote_types(torch.float32, hidden.dtype), device=hidden.device)
        count = labels.numel() if rows is None else rows.numel()
        block = chunk if chunk >= 4 * weight.shape[1] else max(chunk, BLOCK_LOGITS // weight.shape[0])
        if chunk < block < count <= block + 2 * weight.shape[1]:
            block = count  # so many more slopes take less memory than a second gradient of the matrix
        grads = (
            _Grads(hidden, weight, bias, rows is None, ctx.needs_input_grad, min(block, count))
            if needs_grad
            else None
        )
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, count, chunk):
                at: Tensor | slice = slice(start, min(start + chunk, count))
                at = at if rows is None else rows[at]
                part, wanted = hidden[at].to(dtype), labels[at]
                room = None if grads is None else grads.room(part)
                logits = product(part, matrix.T, out=room)
                pieces, slope = _chunk(logits, bias, wanted, softcap, z_loss, needs_grad)
                sums += pieces
                if grads is not None and slope is not None:
                    grads.add(slope, part, matrix, at)
                del logits, slope  # their memory serves the next chunk
            if grads is not None:
                grads.finish()
        ctx.grads = grads
        total, nats, correct = sums.unbind()
        ctx.mark_non_differentiable(nats, correct)
        return total.clone(), nats, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, _nats: Tensor, _correct: Tensor) -> tuple[Tensor | None, ...]:
        grads: _Grads = ctx.grads
        ctx.grads = None
        return (*grads.scaled(total), *[None] * 6)


class _Grads:
    """The gradients of the inputs, filled chunk by chunk.

    Adding to the gradient of a wide matrix costs more than the product itself when the chunk is short, so the slopes of
    several chunks are gathered first.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        is_whole: bool,
        wanted: tuple[bool, ...],
        block: int,
    ) -> None:
        # Every row is written when all are counted, so there is nothing to clear first.
        self.hidden = torch.empty_like(hidden) if is_whole else torch.zeros_like(hidden)
        wide = torch.promote_types(torch.float32, weight.dtype)
        self.weight: Tensor | None = None  # made by the first piece that is added
        self.bias = torch.zeros_like(bias, dtype=wide) if wanted[2] and bias is not None else None
        self.out, self.wide, self.wants_weight, self.vocab = weight.dtype, wide, wanted[1], weight.shape[0]
        self.block, self.gathered = block, 0
        self.slopes: Tensor | None = None  # (block, vocab)
        self.parts: Tensor | None = None  # (block, dim)

    def add(self, slope: Tensor, part: Tensor, matrix: Tensor, at: Tensor | slice) -> None:
        """Add one chunk: ``slope`` is d total / d logits ``(chunk, vocab)``, in the products' type or a wider one."""
        if self.bias is not None:
            self.bias += slope.sum(0, dtype=self.bias.dtype)
        gathers = self._gathers(part)
        narrow = self._gather(slope, part) if gathers else slope.to(part.dtype)
        if isinstance(at, slice) and self.hidden.dtype == narrow.dtype:
            product(narrow, matrix, out=self.hidden[at])
        elif isinstance(at, slice) and _widens_in_product(narrow, self.hidden.dtype):
            torch.mm(narrow, matrix, out_dtype=self.hidden.dtype, out=self.hidden[at])
        else:
            self.hidden[at] = product(narrow, matrix).to(self.hidden.dtype)
        if self.wants_weight and not gathers:
            self._to_weight(narrow, part)

    def room(self, part: Tensor) -> Tensor | None:
        """Return where the next chunk's logits may lie, so that their slopes are kept without a copy; None: anywhere."""
        if not self._gathers(part):
            return None
        if self.slopes is None or self.parts is None:
            self.slopes = on_large_pages(part.new_empty(self.block, self.vocab))
            self.parts = part.new_empty(self.block, part.shape[1])
        if self.gathered + len(part) > self.block:
            self.flush()
        return self.slopes[self.gathered : self.gathered + len(part)]

    def _gathers(self, part: Tensor) -> bool:
        return self.wants_weight and self.block > len(part)

    def _gather(self, slope: Tensor, part: Tensor) -> Tensor:
        """Keep a chunk for later; returns the slope in the products' type."""
        kept = self.room(part)
        assert kept is not None and self.parts is not None
        if slope.data_ptr() != kept.data_ptr():
            kept.copy_(slope)
        self.parts[self.gathered : self.gathered + len(part)] = part
        self.gathered += len(part)
        return kept

    def flush(self) -> None:
        """Add what was gathered."""
        if self.gathered and self.slopes is not None and self.parts is not None:
            self._to_weight(self.slopes[: self.gathered], self.parts[: self.gathered])
        self.gathered = 0

    def finish(self) -> None:
        """Add what was gathered, and need no more room."""
        self.flush()
        self.slopes = self.parts = None

    def _to_weight(self, slope: Tensor, part: Tensor) -> None:
        if _widens_in_product(slope, self.wide):
            if self.weight is None:
                self.weight = torch.mm(slope.T, part, out_dtype=self.wide)
            else:
                torch.addmm(self.weight, slope.T, part, out_dtype=self.wide, out=self.weight)
            return
        if self.weight is None:  # in the products' type, half as large, for as long as nothing is added to it
            out = on_large_pages(part.new_empty(self.vocab, part.shape[1]))
            self.weight = product(slope.T, part, out=out)
            return
        self.weight = as_type(self.weight, self.wide)
        if self.weight.dtype == slope.dtype:
            self.weight.addmm_(slope.T, part)
        else:
            self.weight += product(slope.T, part)

    def scaled(self, by: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the gradients times what arrives from above; of a frozen matrix there is none."""
        if self.weight is not None:
            self.weight = as_type(self.weight, self.wide)
        is_one = by.device.type == "cpu" and float(by) == 1.0  # elsewhere looking at it would mean waiting
        found = [
            one if one is None or is_one else one.mul_(by) for one in (self.hidden, self.weight, self.bias)
        ]
        hidden, weight, bias = found
        assert hidden is not None
        if weight is None and self.wants_weight:  # nothing was counted
            weight = torch.zeros((self.vocab, hidden.shape[1]), dtype=self.out, device=hidden.device)
        return (
            hidden,
            None if weight is None else weight.to(self.out),
            None if bias is None else bias.to(self.out),
        )


def _chunk(
    raw: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None, z_loss: float, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Judge one chunk of logits ``(chunk, vocab)``.

    A label counts as the best-scored item if none is scored higher.

    Returns:
        the sums (total, nats, correct) and d total / d raw logits: in the type of the softmax, or, from a kernel of our own,
        in the type of ``raw`` and in its place.
    """
    if bias is None and softcap is None and compiled.suits(raw) and raw.numel():
        sums = compiled.judge(raw, labels, z_loss=z_loss, needs_slope=needs_grad)
        return sums, raw if needs_grad else None
    if bias is None and softcap is None and _judges_in_place(raw.device, raw.dtype):
        from stockpot.native.triton_loss import judge

        return judge(raw, labels, z_loss=z_loss, needs_slope=needs_grad), raw if needs_grad else None
    wide = torch.promote_types(torch.float32, raw.dtype)
    is_plain = bias is None and softcap is None
    logits = (
        raw if is_plain and raw.is_cuda else raw.to(wide)
    )  # a CPU's softmax of bfloat16 is seven times slower
    if bias is not None:
        logits = logits + bias
    capped = None if softcap is None else torch.tanh(logits / softcap)
    if capped is not None and softcap is not None:
        logits = capped * softcap
    index = labels.unsqueeze(1)
    top = logits.amax(1).to(wide)
    wanted = logits.gather(1, index).squeeze(1).to(wide)
    probs = torch.softmax(logits, 1, dtype=wide)
    # log Z from the largest probability, which is at least 1 / vocab: no second pass over the logits.
    log_z = top - probs.amax(1).log()
    nats = (log_z - wanted).sum()
    total = nats + z_loss * log_z.square().sum() if z_loss else nats
    sums = torch.stack((total, nats, (wanted == top).sum()))
    if not needs_grad:
        return sums, None
    if z_loss:
        probs *= (1 + 2 * z_loss * log_z).unsqueeze(1)
    probs.scatter_add_(1, index, torch.full_like(index, -1, dtype=wide))
    if capped is not None:
        probs *= 1 - capped.square()
    return sums, probs


@functools.cache
def _judges_in_place(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether our kernel for GPUs can be built for this one (Triton needs a C compiler), and computes rightly."""
    if not (HAS_TRITON and device.type == "cuda" and dtype in (torch.bfloat16, torch.float16, torch.float32)):
        return False
    logits = torch.zeros((2, 4), dtype=dtype, device=device)
    try:
        from stockpot.native.triton_loss import judge

        sums = judge(logits, torch.tensor([1, IGNORED], device=device), z_loss=0.0, needs_slope=True)
    except Exception:  # noqa: BLE001 - whatever Triton cannot do here, torch can
        return False
    wanted = torch.tensor([[0.25, -0.75, 0.25, 0.25], [0.0] * 4])
    sums_wanted = torch.tensor([math.log(4), math.log(4), 1.0])
    return torch.allclose(logits.float().cpu(), wanted) and torch.allclose(sums.cpu(), sums_wanted)


def _widens_in_product(x: Tensor, to: torch.dtype) -> bool:
    return to == torch.float32 and _adds_in_product(x.device, x.dtype)


@functools.cache
def _adds_in_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a product of 16-bit numbers can be added to a sum in float32 while it is made.

    torch knows it for CUDA only: where ``out`` is what is added to, it is passed to the product as such, and not copied.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    ones = torch.ones(
        (2049, 8), dtype=dtype, device=device
    )  # 2,049 is no number of these types, nor is 4,098
    try:
        found = torch.mm(ones.T, ones, out_dtype=torch.float32)
        torch.addmm(found, ones.T, ones, out_dtype=torch.float32, out=found)
    except RuntimeError:  # older cards cannot
        return False
    return bool((found == 4098).all())
