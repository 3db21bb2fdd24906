"""Low-rank adapters: train two thin matrices beside a frozen one instead of the matrix itself.

Decides how an adapter sits on our linear layers (in place, under the layer's own name), how it is switched off, merged
and taken off again. Queries, keys and values share one matrix here; each still gets an adapter of its own, as in other
programs, so that files can be exchanged. It opens no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.device import pick_dtype
from stockpot.errors import ConfigError
from stockpot.model.attention import CrossAttention, SelfAttention
from stockpot.model.bottleneck import attach_bottlenecks, settings_of_bottlenecks
from stockpot.model.frozen import FrozenMatrix, Kind
from stockpot.model.layers import FeedForward
from stockpot.model.linear import Linear, multiply
from stockpot.model.outline import outline
from stockpot.model.transformer import Transformer

__all__ = [
    "AdaptedLinear",
    "FrozenLinear",
    "LoRA",
    "Target",
    "Update",
    "add_updates",
    "attach",
    "detach",
    "frozen_bytes",
    "has_adapters",
    "merge",
    "merged_copy",
    "merged_weights",
    "round_matrices",
    "settings_of",
    "shapes_of",
    "updates_of",
    "weights_of",
    "without_adapters",
    "writer_of",
]

Target = Literal["query", "key", "value", "output", "gate", "up", "down"]


class LoRA(Settings):
    """A low-rank adapter: ``weight + scale · up · down`` with a frozen weight.

    Source: Hu et al. 2021, arXiv:2106.09685, §4.1; the scale with ``rslora``: Kalajdzievski 2023, arXiv:2312.03732.
    """

    rank: int = Field(8, ge=1, description="inner width of an adapter")
    alpha: float | None = Field(
        None, gt=0, description="strength: the update is scaled by alpha / rank; none: 2 · rank"
    )
    targets: tuple[Target, ...] | None = Field(
        None,
        min_length=1,
        description="which matrices: query · key · value · output · gate · up · down; none: all",
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank), which suits large ranks")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on an adapter's input in training")
    frozen: Kind | None = Field(
        None,
        description="hold the layers' frozen matrices in fewer bits: int8 · nf4 (8 and 4); none: in the type of products",
    )

    @property
    def scale(self) -> float:
        """The factor on the update."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return alpha / (self.rank**0.5 if self.rslora else self.rank)


class Rows(NamedTuple):
    """Rows ``start … stop - 1`` of a matrix."""

    start: int
    stop: int


@dataclass(frozen=True)
class Update:
    """A low-rank change of some rows of one weight.

    Shapes: down ``(rank, inputs)``, up ``(rows, rank)``.

    Attributes:
        layer: name of the linear layer within the model.
        rows: which rows of its weight.
        scale: factor on ``up @ down``.
    """

    layer: str
    rows: Rows
    down: Tensor
    up: Tensor
    scale: float

    def change(self) -> Tensor:
        """Multiply out: what is added to the rows, ``(rows, inputs)`` in float32."""
        return self.scale * (self.up.float() @ self.down.float())


class FrozenLinear(Linear):
    """A linear layer whose matrix is held in few bits (`model.frozen`); it has no ``weight``."""

    def __init__(self, linear: nn.Linear, kind: Kind) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.frozen: FrozenMatrix | None = FrozenMatrix(linear.weight, kind)
        self.register_parameter("bias", linear.bias)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return ``(…, outputs)`` for ``(…, inputs)``."""
        if self.frozen is None:
            return _product(x, self.weight, self.bias)
        out: Tensor = self.frozen(x)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def plain(self) -> Linear:
        """Give the layer as a usual one, with the same bias, and the same weight or what its digits stand for."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = self.weight if self.frozen is None else nn.Parameter(self.frozen.weight())
        layer.bias = self.bias
        return layer


class AdaptedLinear(FrozenLinear):
    """A frozen linear layer with adapters on some of its rows; it keeps the layer's weight or digits, bias and name.

    Attributes:
        frozen: the matrix, where it is held in few bits.
        rows: the rows that each adapter changes.
        lora: the settings it was attached with.
        is_on: off: the layer computes what it did before it was adapted.
    """

    def __init__(self, linear: nn.Linear, rows: list[Rows], lora: LoRA) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.frozen = linear.frozen if isinstance(linear, FrozenLinear) else None
        if self.frozen is None:
            self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.rows, self.lora, self.scale, self.is_on = rows, lora, lora.scale, True
        place = linear.weight.device if self.frozen is None else next(self.frozen.buffers()).device
        bound = linear.in_features**-0.5
        # All first halves in one matrix: one product makes all inner values.
        self.lora_down = nn.Parameter(
            torch.empty(lora.rank * len(rows), linear.in_features, device=place).uniform_(-bound, bound)
        )
        self.lora_up = nn.ParameterList(
            torch.zeros(stop - start, lora.rank, device=place) for start, stop in rows
        )

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Return the layer's product plus the adapters'."""
        out = super().forward(x)
        if not self.is_on:
            return out
        entered = F.dropout(x, self.lora.dropout, self.training) if self.lora.dropout else x
        parts = torch.split(_product(entered, self.lora_down), self.lora.rank, dim=-1)
        added = [_product(part, up) for part, up in zip(parts, self.lora_up, strict=True)]
        is_whole = len(self.rows) == 1 and self.rows[0] == (0, self.out_features)
        return torch.add(out, added[0] if is_whole else self._spread(added, out), alpha=self.scale)

    def updates(self, name: str) -> list[Update]:
        """Give the adapters as changes of this layer's rows."""
        downs = torch.split(self.lora_down.detach(), self.lora.rank)
        return [
            Update(name, rows, down, up.detach(), self.scale)
            for rows, down, up in zip(self.rows, downs, self.lora_up, strict=True)
        ]

    def _spread(self, added: list[Tensor], like: Tensor) -> Tensor:
        """Put each adapter's result at its rows, zeros where there is none."""
        whole, at = [], 0
        for (start, stop), part in zip(self.rows, added, strict=True):
            if start > at:
                whole.append(part.new_zeros((*like.shape[:-1], start - at)))
            whole.append(part)
            at = stop
        if at < self.out_features:
            whole.append(added[0].new_zeros((*like.shape[:-1], self.out_features - at)))
        return torch.cat(whole, dim=-1)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply in the weight's type where a frozen weight has another than the input, and give the input's back."""
    if weight.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return multiply(x, weight, bias)
    return multiply(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)


# --- a whole model ---


def attach(model: nn.Module, lora: LoRA, *, frozen_dtype: torch.dtype | None = None) -> int:
    """Freeze a model and put adapters, which change nothing yet, on its matrices; in place.

    With ``lora.frozen`` all matrices of its layers are rounded, those without an adapter too; that changes the model.

    Args:
        model: any model made of our layers.
        lora: rank, strength and which matrices.
        frozen_dtype: keep adapted weights in this type, to save memory and casts where products run in it anyway.

    Returns:
        how many numbers can be trained.

    Raises:
        ConfigError: if the model has none of the matrices named.
        ValueError: if it has adapters already.
    """
    if has_adapters(model):
        raise ValueError("the model has adapters already; merge or detach them first")
    places = list(_places(model))
    known = {target for _, _, named in places for target, _ in named}
    wanted = known if lora.targets is None else set(lora.targets)
    if missing := wanted - known:
        raise ConfigError(
            f"adapter.targets names {', '.join(sorted(missing))}, which this model does not have.",
            f"It has {', '.join(sorted(known))}.",
        )
    model.requires_grad_(False)
    for owner, name, named in places:
        rows = [at for target, at in named if target in wanted]
        if lora.frozen is not None:
            setattr(owner, name, FrozenLinear(getattr(owner, name), lora.frozen))
        if rows:
            layer = AdaptedLinear(getattr(owner, name), rows, lora)
            if frozen_dtype is not None and lora.frozen is None:
                layer.weight.data = layer.weight.data.to(frozen_dtype)
            setattr(owner, name, layer)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def has_adapters(model: nn.Module) -> bool:
    """Tell whether any layer is adapted."""
    return any(isinstance(module, AdaptedLinear) for module in model.modules())


def settings_of(model: nn.Module) -> LoRA:
    """Return the settings that a model's adapters were attached with.

    Raises:
        ValueError: if it has none.
    """
    for _, layer in _adapted(model):
        return layer.lora
    raise ValueError("the model has no adapters")


def updates_of(model: nn.Module) -> list[Update]:
    """Give every adapter of a model as a change of weights."""
    return [update for name, layer in _adapted(model) for update in layer.updates(name)]


@torch.no_grad()
def add_updates(model: nn.Module, updates: Iterable[Update]) -> None:
    """Add changes to a model's weights; in place.

    Raises:
        ValueError: if a change names no linear layer or does not have its shape.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for update in updates:
        layer = layers.get(update.layer)
        if layer is None:
            raise ValueError(f"there is no linear layer {update.layer}")
        target = layer.weight[update.rows.start : update.rows.stop]
        change = update.change()
        if change.shape != target.shape:
            raise ValueError(
                f"{update.layer}: the change is {tuple(change.shape)}, not {tuple(target.shape)}"
            )
        target.copy_(target.float() + change.to(target.device))


def merge(model: nn.Module) -> None:
    """Add every adapter to its weight and take it off; the model computes the same and is trainable as a whole."""
    add_updates(model, detach(model))


def merged_copy(model: Transformer, dtype: torch.dtype) -> Transformer:
    """Copy a model in a number type, with adapters added to their weights; the model itself stays as it is.

    Bottleneck adapters, which no weight can hold, are copied.

    Raises:
        ValueError: if it has something else besides: a soft prompt, pictures.
    """
    copy = outline(model.config)
    if type(model.embed) not in (type(copy.embed), nn.Embedding):
        raise ValueError(f"a model with a {type(model.embed).__name__} is not copied")
    if bottleneck := settings_of_bottlenecks(model):
        attach_bottlenecks(copy, bottleneck)
    names = {name for name, _ in copy.named_parameters()}
    weights = {name: weight.to(dtype, copy=True) for name, weight in weights_of(model) if name in names}
    copy.load_state_dict(weights, strict=True, assign=True)
    add_updates(copy, updates_of(model))
    return copy.requires_grad_(False).eval()


def writer_of(model: Transformer) -> Transformer:
    """Give what writes answers as a model now does: itself, or a copy where it would take most of the time to make floats anew.

    That is so for matrices of few bits on a CPU; elsewhere they are made as fast as they are read, and memory is dearer.
    """
    if model.device.type != "cpu" or not frozen_bytes(model):
        return model
    return merged_copy(model, pick_dtype(model.device))


def frozen_bytes(model: nn.Module) -> int:
    """Count the bytes of the matrices that are held in few bits; 0: none is."""
    return sum(layer.frozen.nbytes for _, layer in _frozen(model) if layer.frozen is not None)


def weights_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Give every parameter but the adapters', and every matrix that is held in few bits, as floats made one by one."""
    learned = {
        id(one) for _, layer in _adapted(model) for one in (layer.lora_down, *layer.lora_up.parameters())
    }
    for name, parameter in model.named_parameters():
        if id(parameter) not in learned:
            yield name, parameter.detach()
    for name, layer in _frozen(model):
        if layer.frozen is not None:
            yield f"{name}.weight", layer.frozen.weight()


def merged_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Give what `weights_of` gives, with adapters added; the model itself stays as it is."""
    changes: dict[str, list[Update]] = {}
    for update in updates_of(model):
        changes.setdefault(f"{update.layer}.weight", []).append(update)
    for name, weight in weights_of(model):
        if name in changes:
            weight = weight.to(model.embed.weight.dtype, copy=True)
            for update in changes[name]:
                rows = weight[update.rows.start : update.rows.stop]
                rows.copy_(rows.float() + update.change())
        yield name, weight


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Give the shapes of what `weights_of` gives, and of the adapters."""
    held = {
        f"{name}.weight": layer.frozen.shape for name, layer in _frozen(model) if layer.frozen is not None
    }
    return {name: parameter.shape for name, parameter in model.named_parameters()} | held


@torch.no_grad()
def round_matrices(model: nn.Module, kind: Kind) -> None:
    """Give the matrices of a model's layers the values that a frozen model of few bits computes with; in place."""
    for owner, name, _ in list(_places(model)):
        weight = getattr(owner, name).weight
        weight.copy_(FrozenMatrix(weight, kind).weight())


def detach(model: nn.Module) -> list[Update]:
    """Take all adapters off, which undoes what they did; returns them. In place; weights are trainable again.

    Matrices that were held in few bits are floats again, of the values they had.
    """
    updates = updates_of(model)
    for name, layer in list(_frozen(model)):
        owner, _, own = name.rpartition(".")
        setattr(model.get_submodule(owner), own, layer.plain())
    model.requires_grad_(True)
    return updates


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Let a model compute what it did before it was adapted, for the length of a block."""
    layers = [layer for _, layer in _adapted(model) if layer.is_on]
    for layer in layers:
        layer.is_on = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_on = True


def _frozen(model: nn.Module) -> Iterator[tuple[str, FrozenLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, FrozenLinear):
            yield name, module


def _adapted(model: nn.Module) -> Iterator[tuple[str, AdaptedLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, list[tuple[Target, Rows]]]]:
    """Find every matrix that can be adapted: its owner, its name there, and which rows are what."""
    for module in model.modules():
        if isinstance(module, SelfAttention):
            inner, both = module.inner, module.inner + module.kv_dim
            third = Rows(both, both + module.kv_dim)
            yield module, "qkv", [("query", Rows(0, inner)), ("key", Rows(inner, both)), ("value", third)]
        elif isinstance(module, CrossAttention):
            second = Rows(module.kv_dim, 2 * module.kv_dim)
            yield module, "q", [("query", Rows(0, module.inner))]
            yield module, "kv", [("key", Rows(0, module.kv_dim)), ("value", second)]
        elif isinstance(module, FeedForward):
            wide, half = module.up.out_features, module.down.in_features
            if module.is_gated:
                yield module, "up", [("gate", Rows(0, half)), ("up", Rows(half, wide))]
            else:
                yield module, "up", [("up", Rows(0, wide))]
            yield module, "down", [("down", Rows(0, module.down.out_features))]
        if isinstance(module, SelfAttention | CrossAttention):
            yield module, "out", [("output", Rows(0, module.out.out_features))]
