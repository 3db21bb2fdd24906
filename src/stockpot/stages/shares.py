"""What one process holds and sends in each layout: bytes by part, counted from the model's own parameters.

The model is laid out without content, and its roles and cuts are those that training goes by: weights, gradients and the
optimizer's state are exact, and tests hold them beside processes that train. Activations, copies and logits are estimates.
It chooses nothing and knows no machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from stockpot.model.config import ModelConfig
from stockpot.model.layers import Block
from stockpot.model.transformer import Transformer
from stockpot.train.cuts import cuts, faults
from stockpot.train.fused import CHUNK_LOGITS, CHUNK_LOGITS_GPU, LEAST_ROWS
from stockpot.train.optim import OptimConfig, Role, roles_of
from stockpot.train.parallel import ParallelConfig
from stockpot.train.split_muon import owners

__all__ = ["Census", "Piece", "Sent", "Share", "State", "Way", "sent", "share"]

WIDE, NARROW = 4.0, 2.0  # bytes of float32 and bfloat16
# Bytes a token, layer and unit of width, of ``sizes.estimate``'s 34.
SPLIT_ACTIVATIONS, WHOLE_ACTIVATIONS = 24.0, 10.0
INPUT_BYTES = 4.0  # of a layer's input, a token and unit of width


@dataclass(frozen=True)
class Way:
    """A layout, and whether layers are computed again on the way back.

    Attributes:
        layer_processes: that compute each layer side by side; 1 but for ``tensor``.
        wire_bytes: of a number on its way: layers' weights (fsdp) and hidden states (tensor) travel in the type of products.
    """

    kind: str
    layer_processes: int = 1
    recompute: bool = False
    offload: bool = False
    wire_bytes: float = NARROW

    @classmethod
    def of(cls, config: ParallelConfig, count: int) -> Way:
        """Read what training is told; errors as of ``sharing``."""
        bytes_each = WIDE if config.gather_dtype == "float32" else NARROW
        return cls(config.kind, config.sharing(count), config.recompute, config.offload, bytes_each)

    def told(self, count: int) -> str:
        """Name it, for so many devices."""
        name = self.kind
        if self.kind == "tensor":
            name = f"tensor {self.layer_processes} x data {count // self.layer_processes}"
        return name + ", offload" * self.offload + ", recompute" * self.recompute


@dataclass(frozen=True)
class Share:
    """Memory of one device in bytes, by what it is for; all parts are there at once when the backward pass begins.

    ``copies``: of weights in the type of products, and what is gathered or on its way.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.activations + self.logits


@dataclass(frozen=True)
class State:
    """What the optimizer remembers: its settings, and whether Muon gathers gradients in a buffer, as it does on GPUs."""

    config: OptimConfig
    gathers: bool

    @property
    def moment_bytes(self) -> float:
        """Bytes of AdamW's two means of a number."""
        return 2 * (WIDE if self.config.moments == "float32" else NARROW)

    def saved(self, census: Census) -> float:
        """Count the bytes of it that a checkpoint holds."""
        numbers = [
            (one.count, self.config.optimizer == "muon" and one.role == "matrix") for one in census.pieces
        ]
        return sum(count * (WIDE if is_muon else self.moment_bytes) for count, is_muon in numbers)


# --- the model without content ---


@dataclass(frozen=True)
class Piece:
    """One parameter.

    Attributes:
        layer: the number of its layer; None: outside of layers.
        cut: the dimension that layers computed side by side have a part of; None: whole on each.
    """

    shape: tuple[int, ...]
    role: Role
    layer: int | None
    cut: int | None

    @property
    def count(self) -> int:
        """Its numbers."""
        return math.prod(self.shape)

    def rows(self, processes: int) -> int:
        """Count the numbers of the first process's rows, which are the most."""
        return self.count if not self.shape else -(-self.shape[0] // processes) * math.prod(self.shape[1:])

    def part(self, processes: int) -> int:
        """Count the numbers that a process computes with."""
        return self.count // processes if self.cut is not None else self.count


class Census:
    """All parameters of a model.

    Args:
        config: the model, which is built without content.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.model: nn.Module = Transformer(config)
        roles, cut = roles_of(self.model), cuts(self.model)
        layers = [f"{name}." for name, module in self.model.named_modules() if isinstance(module, Block)]
        of = {name: next((i for i, one in enumerate(layers) if name.startswith(one)), None) for name in roles}
        shapes = {name: tuple(one.shape) for name, one in self.model.named_parameters()}
        self.pieces = [Piece(shapes[name], role, of[name], cut.get(name)) for name, role in roles.items()]
        self.layers = len(layers)

    def fault(self, processes: int) -> str | None:
        """Say what keeps layers from being computed side by side by so many processes."""
        return next(faults(self.model, processes), None)

    def numbers(self, *, outside: bool = False) -> int:
        """Count all parameters, or those outside of layers."""
        return sum(one.count for one in self.pieces if not outside or one.layer is None)

    def largest_layer(self) -> int:
        """Count the parameters of the largest layer."""
        sums = [0] * self.layers
        for one in self.pieces:
            if one.layer is not None:
                sums[one.layer] += one.count
        return max(sums, default=0)

    def sums(self, *, recompute: bool) -> int:
        """Count the sums over hidden states that a micro-batch takes where layers are computed side by side.

        One for each matrix whose inputs are cut on the way there, and again where that is recomputed; one for each
        matrix whose outputs are cut on the way back.
        """
        forth = sum(one.cut == 1 for one in self.pieces)
        back = sum(one.cut == 0 and len(one.shape) == 2 for one in self.pieces)
        return forth * (2 if recompute else 1) + back


# --- memory ---


def share(census: Census, way: Way, count: int, *, tokens: int, passes: int, state: State) -> Share:
    """Count what the fullest of ``count`` devices holds.

    Args:
        census: the model.
        way: how it lies on them.
        count: devices.
        tokens: of a micro-batch.
        passes: micro-batches of a step.
        state: the optimizer's.

    Source of the activations: Korthikanti et al. 2022, arXiv:2205.05198, eq. 2 and 3, without the attention matrices,
    which are not kept.
    """
    pieces, layer = census.pieces, census.largest_layer()
    whole, outside = census.numbers(), census.numbers(outside=True)
    if way.kind == "ddp" or count == 1:
        weights, gradients, copies = WIDE * whole, WIDE * whole, NARROW * whole
        kept = _state(pieces, state, 1)
    elif way.kind == "fsdp":
        rows = sum(one.rows(count) for one in pieces)
        weights, kept = (0.0, 0.0) if way.offload else (WIDE * rows, _state(pieces, state, count))
        gradients = (
            (0.0 if way.offload else WIDE * rows) if passes == 1 else WIDE * whole
        )  # summed with the last only
        copies = 2 * way.wire_bytes * layer + WIDE * outside  # two layers, and what is never let go of
        copies += WIDE * layer + (WIDE * outside if passes == 1 else 0.0)  # their gradients on the way
    else:
        sharers = way.layer_processes
        part = sum(one.part(sharers) for one in pieces)
        weights = WIDE * (part + sum(one.rows(sharers) for one in pieces))
        gradients, copies = WIDE * part, NARROW * part
        kept = _state(pieces, state, sharers)
    return Share(
        weights, gradients, kept, copies, _activations(census, way, tokens), _logits(census, tokens, state)
    )


def _state(pieces: Sequence[Piece], state: State, sharers: int) -> float:
    """Count the optimizer's bytes on the fullest of the processes that the model is split over."""
    is_muon = state.config.optimizer == "muon"
    matrices = [(one.shape[0], one.shape[1]) for one in pieces if is_muon and one.role == "matrix"]
    rest = [one for one in pieces if not is_muon or one.role != "matrix"]
    held = [0] * sharers
    for (rows, columns), owner in zip(matrices, owners(matrices, sharers), strict=True):
        held[owner] += rows * columns
    # Momentum; where matrices are split, their gradient and update whole on their owner, too.
    each = WIDE * ((3 if sharers > 1 else 1) + state.gathers)
    return each * max(held) + state.moment_bytes * sum(one.rows(sharers) for one in rest)


def _activations(census: Census, way: Way, tokens: int) -> float:
    main = census.config.main
    a_layer = (WHOLE_ACTIVATIONS + SPLIT_ACTIVATIONS / way.layer_processes) * tokens * main.dim
    if way.recompute:
        return INPUT_BYTES * tokens * main.dim * census.layers + a_layer
    return a_layer * census.layers


def _logits(census: Census, tokens: int, state: State) -> float:
    most = CHUNK_LOGITS_GPU if state.gathers else CHUNK_LOGITS
    chunk = min(tokens, max(LEAST_ROWS, most // census.config.vocab_size))
    return (WIDE + NARROW) * chunk * census.config.vocab_size


# --- communication ---


@dataclass(frozen=True)
class Sent:
    """Bytes that one process sends in a step.

    Attributes:
        layers: between the processes that share a layer.
        readers: between those that read different rows.
    """

    layers: float
    readers: float


def sent(census: Census, way: Way, count: int, *, tokens: int, passes: int, state: State) -> Sent:
    """Count what each of ``count`` processes sends in a step; arguments as for `share`.

    Sums over *k* processes go round twice, gathering and cutting once, each but the *k*-th part of it.

    Source: Thakur et al. 2005, Int. J. High Performance Computing Applications 19(1), §4.
    """
    pieces, whole, outside = census.pieces, census.numbers(), census.numbers(outside=True)
    if way.kind == "ddp" or count == 1:
        return Sent(0.0, 2 * _others(count) * WIDE * whole)
    if way.kind == "fsdp":
        gathered = 2 * way.wire_bytes * (whole - outside) + WIDE * outside  # layers there and back
        once = WIDE * whole + _muon(pieces, state, count)
        return Sent(0.0, _others(count) * (passes * gathered + once))
    sharers = way.layer_processes
    cut = sum(one.count for one in pieces if one.cut is not None)
    sums = 2 * census.sums(recompute=way.recompute) * way.wire_bytes * tokens * census.config.dim
    once = WIDE * (cut + whole) + _muon(pieces, state, sharers)  # gradients put together; the new weights
    rows = sum(one.rows(sharers) for one in pieces)
    return Sent(_others(sharers) * (passes * sums + once), 2 * _others(count // sharers) * WIDE * rows)


def _others(count: int) -> float:
    """Give the share of something cut over ``count`` processes that the others hold."""
    return (count - 1) / count


def _muon(pieces: Sequence[Piece], state: State, sharers: int) -> float:
    """Count the bytes of matrices' gradients on the way to their owners, and of the updates on the way back."""
    if state.config.optimizer != "muon":
        return 0.0
    return 2 * WIDE * sum(one.count for one in pieces if one.role == "matrix") / sharers
