# mypy: disable-error-code="assignment, no-untyped-def, unreachable, untyped-decorator"
"""The cross-entropy of logits on a GPU, and its slope in their place: one Triton kernel, a program a row.

What torch's compiler makes of the same formulas reads the logits three times and writes the slopes elsewhere. Here a program
reads its row once from memory; when it reads it again to write the slopes, the row still lies in the L2 cache, since few rows are
on their way at a time. Each lane keeps a maximum and a sum of its own over all it has read, so that no thread waits for another
before the row's end. Imported on GPUs only: Triton comes with torch's CUDA builds. ``TRITON_INTERPRET=1`` runs the kernel on a
CPU.

Source: Milakov & Gimelshein 2018, arXiv:1805.02867, "Online normalizer calculation for softmax", alg. 3.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["IGNORED", "judge"]

IGNORED = -100
VECTOR_BYTES = 16  # a thread reads with one instruction
TOGETHER = 16  # logits that a thread reads before it uses the first
# Threads of a row. Two rows of 1,024 fill a multiprocessor (32 registers a thread), and then half of the rows of all 132 on an
# H200, what has been read and will be read again, is 13 MB of its 50 MB of L2 (50,304 logits in 16 bits). Shorter rows get fewer
# threads, so that each still reads for a while.
MOST_THREADS, READS = 1024, 4
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _joined(part, top, total):
    """Take some logits ``(lanes, each)`` into the maximum and the sum of exponentials that each lane keeps."""
    higher = tl.maximum(top, tl.max(part, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)  # −∞ − −∞ is no number
    weights = tl.exp2((part - base[:, None]) * LOG2_E)
    return higher, total * tl.exp2((top - base) * LOG2_E) + tl.sum(weights, 1)


@triton.jit
def _inside(spot, shift, vocab: tl.constexpr):
    return (spot >= shift) & (spot < shift + vocab)


@triton.jit
def _read(
    mine, at, shift, start: tl.constexpr, vocab: tl.constexpr, block: tl.constexpr, ragged: tl.constexpr
):
    """Read a block of logits; outside of the row stand items that cannot come."""
    if start + block <= vocab and (start > 0 or not ragged):
        part = tl.load(mine + start + at)
    else:
        part = tl.load(mine + start + at, mask=_inside(start + at, shift, vocab), other=float("-inf"))
    return part.to(tl.float32)


@triton.jit
def _write(
    mine,
    at,
    shift,
    slope,
    start: tl.constexpr,
    vocab: tl.constexpr,
    block: tl.constexpr,
    ragged: tl.constexpr,
):
    slope = slope.to(mine.dtype.element_ty)
    if start + block <= vocab and (start > 0 or not ragged):
        tl.store(mine + start + at, slope, eviction_policy="evict_first")
    else:
        tl.store(
            mine + start + at, slope, mask=_inside(start + at, shift, vocab), eviction_policy="evict_first"
        )


@triton.jit
def _gather(
    mine,
    at,
    shift,
    vocab: tl.constexpr,
    lanes: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    ragged: tl.constexpr,
    begin: tl.constexpr,
    whole: tl.constexpr,
    end: tl.constexpr,
):
    """Return for each lane the largest logit it has read, and the sum of exponentials of the distances from it."""
    top = tl.full((lanes,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((lanes,), dtype=tl.float32)
    for start in tl.static_range(0, begin, block):
        top, total = _joined(_read(mine, at, shift, start, vocab, block, ragged), top, total)
    for start in range(begin, whole, tile):
        parts = ()
        for ahead in tl.static_range(0, tile, block):
            parts = parts + (tl.load(mine + start + ahead + at),)
        for ahead in tl.static_range(0, tile, block):
            top, total = _joined(parts[ahead // block].to(tl.float32), top, total)
    for start in tl.static_range(whole, end, block):
        top, total = _joined(_read(mine, at, shift, start, vocab, block, ragged), top, total)
    return top, total


@triton.jit
def _slope(part, peak, scale):
    return tl.exp2((part - peak) * LOG2_E) * scale


@triton.jit
def _replace(
    mine,
    at,
    shift,
    peak,
    scale,
    vocab: tl.constexpr,
    block: tl.constexpr,
    tile: tl.constexpr,
    ragged: tl.constexpr,
    begin: tl.constexpr,
    whole: tl.constexpr,
    end: tl.constexpr,
):
    """Write ``scale`` times the exponentials in the place of a row's logits."""
    for start in tl.static_range(0, begin, block):
        part = _read(mine, at, shift, start, vocab, block, ragged)
        _write(mine, at, shift, _slope(part, peak, scale), start, vocab, block, ragged)
    for start in range(begin, whole, tile):
        parts = ()
        for ahead in tl.static_range(0, tile, block):
            parts = parts + (tl.load(mine + start + ahead + at, eviction_policy="evict_first"),)
        for ahead in tl.static_range(0, tile, block):
            slope = _slope(parts[ahead // block].to(tl.float32), peak, scale)
            place = mine + start + ahead + at
            tl.store(place, slope.to(mine.dtype.element_ty), eviction_policy="evict_first")
    for start in tl.static_range(whole, end, block):
        part = _read(mine, at, shift, start, vocab, block, ragged)
        _write(mine, at, shift, _slope(part, peak, scale), start, vocab, block, ragged)


@triton.jit
def _clear(
    mine,
    at,
    shift,
    vocab: tl.constexpr,
    lanes: tl.constexpr,
    each: tl.constexpr,
    end: tl.constexpr,
):
    """Write zeros in the place of a row's logits."""
    nothing = tl.zeros((lanes, each), dtype=tl.float32).to(mine.dtype.element_ty)
    for start in range(0, end, lanes * each):
        tl.store(mine + start + at, nothing, mask=_inside(start + at, shift, vocab))


@triton.jit(do_not_specialize=["rows"])  # a kernel for every number of them
def _judge(
    logits,  # (rows, vocab)
    labels,  # (rows,)
    found,  # (3, rows), float32: total, nats, correct
    rows,
    z_loss,
    vocab: tl.constexpr,
    ignored: tl.constexpr,
    lanes: tl.constexpr,
    each: tl.constexpr,
    together: tl.constexpr,
    needs_slope: tl.constexpr,
):
    block: tl.constexpr = lanes * each
    tile: tl.constexpr = block * together
    # Where rows do not begin at a whole vector, the program begins at the one in which its row does. Its first block and the
    # last are read number by number, the others are known to be inside of the row.
    ragged: tl.constexpr = vocab % each != 0
    begin: tl.constexpr = block if ragged else 0
    whole: tl.constexpr = begin + (vocab - begin) // tile * tile if vocab > begin else begin
    end: tl.constexpr = vocab + each - 1 if ragged else vocab
    row = tl.program_id(0)
    first = row.to(tl.int64) * vocab
    shift = first % each if ragged else 0
    at = tl.arange(0, lanes)[:, None] * each + tl.arange(0, each)[None, :]
    mine = logits + (first // each) * each if ragged else logits + first
    label = tl.load(labels + row)  # nothing waits for it before the row has been read
    top, total = _gather(mine, at, shift, vocab, lanes, block, tile, ragged, begin, whole, end)
    counts, inside = label != ignored, (label >= 0) & (label < vocab)
    # A label outside of the vocabulary makes the loss no number.
    wanted = tl.load(logits + first + label, mask=inside, other=float("nan")).to(tl.float32)
    peak = tl.max(top, 0)
    total = tl.sum(total * tl.exp2((top - peak) * LOG2_E), 0)
    log_total = tl.log(total)
    log_z = peak + log_total
    nats = (peak - wanted) + log_total
    tl.store(found + row, tl.where(counts, nats + z_loss * log_z * log_z, 0.0))
    tl.store(found + rows + row, tl.where(counts, nats, 0.0))
    tl.store(found + 2 * rows + row, tl.where(wanted >= peak, 1.0, 0.0))
    if needs_slope:
        if counts:
            scale = (1.0 + 2.0 * z_loss * log_z) / total
            _replace(mine, at, shift, peak, scale, vocab, block, tile, ragged, begin, whole, end)
            tl.debug_barrier()  # the label's slope is written twice, and this is the last
            slope = _slope(wanted, peak, scale) - 1.0
            tl.store(logits + first + label, slope.to(logits.dtype.element_ty), mask=inside)
        else:
            _clear(mine, at, shift, vocab, lanes, each, end)


def judge(logits: Tensor, labels: Tensor, *, z_loss: float, needs_slope: bool) -> Tensor:
    """Sum (total, nats, correct) over rows of logits and, if asked, put the slope of the total in their place.

    A label counts as correct if no item is scored higher. A label outside of the vocabulary makes the sums, and a logit that
    is no number makes its row's slopes, no numbers.

    Args:
        logits: ``(rows, vocab)``, contiguous, in bfloat16, float16 or float32; computed with in float32.
        labels: ``(rows,)`` int64; −100 = not counted: adds nothing and has no slope.
        z_loss: weight of log²Z.
        needs_slope: whether logits become slopes.

    Returns:
        the sums ``(3,)``, float32. They come out the same every time: each row's are stored, and then added up by torch.
    """
    assert logits.is_contiguous() and labels.shape == logits.shape[:1]
    rows, vocab = logits.shape
    found = torch.empty((3, rows), dtype=torch.float32, device=logits.device)
    if rows:
        each = VECTOR_BYTES // logits.element_size()
        lanes = triton.next_power_of_2(triton.cdiv(vocab, each * READS))
        lanes = min(MOST_THREADS, max(32, lanes))
        _judge[(rows,)](
            logits, labels.contiguous(), found, rows, float(z_loss), vocab=vocab, ignored=IGNORED, lanes=lanes,
            each=each, together=TOGETHER // each, needs_slope=needs_slope, num_warps=lanes // 32,
        )  # fmt: skip
    return found.sum(1)
