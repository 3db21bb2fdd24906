"""Which parameter is updated how: roles, learning rates, Muon for matrices and AdamW for the rest.

Decides from a model's modules what is a matrix, an embedding, an output head or a scalar, and gives each role its
optimizer and learning rate. It takes no loss and knows no batch; gradients are there when it is asked to step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.device import give_back_freed_memory, has_fast_bf16
from stockpot.errors import CheckpointError
from stockpot.model.adapters import AdaptedLinear
from stockpot.model.attention import CrossAttention, SelfAttention
from stockpot.model.bottleneck import BottleneckLinear
from stockpot.model.heads import ClassificationHead, ValueHead
from stockpot.model.layers import FeedForward
from stockpot.model.soft import LearnedHeads, SoftEmbedding
from stockpot.train.layout import Layout, local
from stockpot.train.muon import Matrix, Muon, momenta_of
from stockpot.train.narrow_adamw import NarrowAdamW
from stockpot.train.parallel import Group
from stockpot.train.schedule import Schedule, schedule_factor
from stockpot.train.split_muon import SplitMuon

__all__ = ["OptimConfig", "Optimizer", "Role", "parts_of", "roles_of"]

Role = Literal["matrix", "embedding", "head", "scalar", "adapter"]
LR, WIDTH = (
    {"muon": 0.01, "adamw": 0.003},
    128,
)  # the automatic learning rate, and the width it was measured at


class OptimConfig(Settings):
    """How weights are updated."""

    optimizer: Literal["muon", "adamw"] = Field(
        "muon", description="of matrices: muon · adamw; AdamW for the rest"
    )
    lr: float | None = Field(
        None,
        gt=0,
        description="learning rate of matrices, and of the rest unless set below;"
        " none: 0.01 (adamw: 0.003) at width 128, less by the root of the width",
    )
    embedding_lr: float | None = Field(None, gt=0, description="learning rate of embeddings; none: lr")
    head_lr: float | None = Field(None, gt=0, description="learning rate of output heads; none: lr")
    scalar_lr: float | None = Field(None, gt=0, description="learning rate of norms and biases; none: lr")
    schedule: Schedule = Field(
        "warmup-stable-decay", description="constant · linear · cosine · warmup-stable-decay"
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="steps of rising rate; none: 2 % of all, at most 200"
    )
    decay_steps: int | None = Field(
        None, ge=0, description="warmup-stable-decay: falling steps; none: 40 % of all"
    )
    final_lr: float = Field(0.0, ge=0, le=1, description="learning rate of the last step, as a share of lr")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices, per unit of learning rate")
    cautious_decay: bool = Field(
        False, description="muon: decay only where the update shrinks the weight too"
    )
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="muon: share of the old momentum kept; none: 1 - 120 / steps, from 0.7 to 0.95",
    )
    muon_iterations: int = Field(5, ge=3, le=8, description="muon: products that make an update orthogonal")
    beta1: float = Field(0.9, ge=0, lt=1, description="adamw: memory of the gradient's mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="adamw: memory of the gradient's square")
    eps: float = Field(1e-10, gt=0, description="adamw: added to the root of the mean square")
    moments: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="adamw: type its two means are kept in; bfloat16 halves them, rounded up or down at random",
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="largest norm of a step's gradient; none: no limit"
    )

    @model_validator(mode="after")
    def _fits(self) -> OptimConfig:
        if self.cautious_decay and self.optimizer != "muon":
            raise ValueError("cautious_decay belongs to optimizer='muon'")
        return self

    def lr_of(self, role: Role, width: int = WIDTH) -> float:
        """Return the peak learning rate of a role in a model whose matrices read ``width`` numbers.

        The automatic rate falls as the spread of a matrix's weights does (``model/initial.py``), so that a step
        changes them by the same share at every width. Measured in ``benchmarks/results/time-to-loss.md``.
        """
        own = {"embedding": self.embedding_lr, "head": self.head_lr, "scalar": self.scalar_lr}.get(role)
        if own is not None:
            return own
        return LR[self.optimizer] * math.sqrt(WIDTH / width) if self.lr is None else self.lr

    def momentum_in(self, steps: int) -> float:
        """Return Muon's momentum in a run of ``steps``: a short run has no time for a long memory."""
        return min(0.95, max(0.7, 1 - 120 / steps)) if self.momentum is None else self.momentum

    def factor(self, step: int, steps: int) -> float:
        """Return the schedule's factor for ``step``, counted from 0, of ``steps``."""
        warmup = min(200, steps // 50) if self.warmup_steps is None else self.warmup_steps
        decay = steps * 2 // 5 if self.decay_steps is None else self.decay_steps
        return schedule_factor(
            step, kind=self.schedule, steps=steps, warmup_steps=warmup, decay_steps=decay, final=self.final_lr
        )


# --- roles ---


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Tell the role of every trainable parameter: name → role; a shared parameter has its first name.

    A tied output matrix is an embedding. A matrix is the weight of a linear layer that neither reads ids nor makes
    scores.
    """
    outputs = (
        {id(model.output_weight)} if isinstance(getattr(model, "output_weight", None), Tensor) else set()
    )
    embeddings: set[int] = set()
    linear: set[int] = set()
    adapters: set[int] = set()
    for module in model.modules():
        if isinstance(module, AdaptedLinear):
            adapters.update(map(id, (module.lora_down, *module.lora_up)))
        if isinstance(module, BottleneckLinear):
            adapters.update(map(id, (module.narrow, module.wide)))
        if isinstance(module, (SoftEmbedding, LearnedHeads)):
            adapters.update(map(id, module.learned))
        if isinstance(module, (ClassificationHead, ValueHead)):
            outputs.add(id(module.out.weight))
        elif isinstance(module, nn.Embedding):
            embeddings.add(id(module.weight))
        elif isinstance(module, nn.Linear):
            linear.add(id(getattr(module, "weight", None)))  # a frozen one may hold digits instead

    def role(parameter: Tensor) -> Role:
        if id(parameter) in embeddings:
            return "embedding"
        if id(parameter) in outputs:
            return "head"
        if id(parameter) in adapters:
            return "adapter"
        return "matrix" if id(parameter) in linear else "scalar"

    return {name: role(p) for name, p in model.named_parameters() if p.requires_grad}


def parts_of(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Tell how fused matrices are cut into the matrices they stand for: id of the weight → rows of each part."""
    parts: dict[int, tuple[int, ...]] = {}

    def add(linear: nn.Module, rows: tuple[int, ...]) -> None:
        if isinstance(weight := getattr(linear, "weight", None), Tensor):
            parts[id(weight)] = rows

    for module in model.modules():
        if isinstance(module, SelfAttention):
            add(module.qkv, (module.inner, module.kv_dim, module.kv_dim))
        elif isinstance(module, CrossAttention):
            add(module.kv, (module.kv_dim, module.kv_dim))
        elif isinstance(module, FeedForward) and module.is_gated:
            add(module.up, (module.up.out_features // 2,) * 2)
    return parts


# --- stepping ---


class Optimizer:
    """The optimizers of all roles behind one ``step``.

    Args:
        model: whose parameters are trained, on the device they will stay on; a layout's ``described`` module.
        config: rates, schedule and the choice of optimizer.
        steps: length of the run, which the schedule needs.
        layout: how the model lies on the processes; None: whole, on one.

    Raises:
        ValueError: if nothing is trainable.
    """

    def __init__(
        self, model: nn.Module, config: OptimConfig, steps: int, layout: Layout | None = None
    ) -> None:
        self.config, self.steps = config, steps
        self.layout = layout or Layout(model, Group())
        roles = roles_of(model)
        if not roles:
            raise ValueError("the model has no trainable parameter")
        whole, named = dict(model.named_parameters()), self.layout.tensors
        self.parameters = [named[name] for name in roles]
        self._muon: Muon | SplitMuon | None = None
        self._matrices = [name for name, role in roles.items() if role == "matrix"]
        matrices = [whole[name] for name in self._matrices]
        self.width = min(max(matrices, key=Tensor.numel).shape) if matrices else WIDTH
        if config.optimizer == "muon" and matrices:
            self._muon = _muon(model, self._matrices, config, steps, self.layout)
            roles = {name: role for name, role in roles.items() if role != "matrix"}
        self._elementwise = list(_by_role(roles))
        self._adamw = _adamw(self.layout, roles, config, self.width) if roles else None
        for name in self._elementwise:  # now: the first step's freed memory would have them lie scattered
            self._state_of(name)

    def lr(self, step: int) -> float:
        """Return the matrices' learning rate in ``step``, counted from 0."""
        return self.config.lr_of("matrix", self.width) * self.config.factor(step, self.steps)

    @property
    def numbers(self) -> int:
        """How many numbers are trained on this process."""
        return sum(local(one).numel() for one in self.parameters)

    @torch.no_grad()
    def scale(self, count: Tensor | float) -> Tensor:
        """Divide the gradients of a total by its count and clip them; return their norm before clipping.

        Nothing is read back from the device.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = self.layout.norm(gradients)
        count = torch.as_tensor(count, dtype=norm.dtype, device=norm.device)
        count = torch.where(count == 0, 1.0, count)  # nothing was counted: the gradient is zero
        norm = norm / count
        factor = 1 / count
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / norm).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, step: int) -> None:
        """Update all parameters from their gradients; ``step`` counts from 0."""
        factor = self.config.factor(step, self.steps)
        if self._muon is not None:
            self._muon.step(
                self.config.lr_of("matrix", self.width) * factor,
                weight_decay=self.config.weight_decay,
                is_cautious=self.config.cautious_decay,
            )
        if self._adamw is not None:
            for group in self._adamw.param_groups:
                group["lr"] = group["peak"] * factor
            self._adamw.step()

    def clear(self, *, gives_back: bool = False) -> None:
        """Forget the gradients; ``gives_back``: until there are others, the system has their memory on a CPU."""
        for parameter in self.parameters:
            parameter.grad = None
        if gives_back and self.parameters[0].device.type == "cpu":
            give_back_freed_memory()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers only, of a model that lies whole on this process."""
        return {
            "kind": self.config.optimizer,
            "muon": self._muon.state_dict() if isinstance(self._muon, Muon) else None,
            "adamw": None if self._adamw is None else self._adamw.state_dict()["state"],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of the same parameters; rates and decay stay those of the settings.

        Raises:
            CheckpointError: if the state belongs to other parameters or another optimizer.
        """
        try:
            if state["kind"] != self.config.optimizer:
                raise ValueError(f"it is {state['kind']}'s, not {self.config.optimizer}'s")
            if self.layout.is_split:
                self.load_named(self._named_of(state))
                return
            if isinstance(self._muon, Muon):
                self._muon.load_state_dict(state["muon"])
            if self._adamw is not None:
                groups = self._adamw.state_dict()["param_groups"]
                self._adamw.load_state_dict({"state": state["adamw"], "param_groups": groups})
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"The saved optimizer state does not fit this model and these settings ({error}).",
                "Resume with the settings of the interrupted run.",
            ) from None

    # --- the same by name, for checkpoints written by all processes ---

    def named_state(self) -> dict[str, Tensor]:
        """Return the state by the names of parameters, each tensor as the layout has it.

        ``momentum.NAME`` is there whole, on the one process that works on it; ``mean.NAME`` and ``square.NAME`` are laid out
        as the parameter is; ``steps.NAME`` counts AdamW's.
        """
        found: dict[str, Tensor] = {}
        if isinstance(self._muon, SplitMuon):
            found = {f"momentum.{self._matrices[i]}": one for i, one in self._muon.momenta().items()}
        elif self._muon is not None:
            named = zip(self._matrices, self._muon.momenta(), strict=True)
            found = {f"momentum.{name}": one for name, one in named}
        if self._adamw is not None:
            for name in self._elementwise:
                own = self._state_of(name)
                found[f"mean.{name}"], found[f"square.{name}"] = own["exp_avg"], own["exp_avg_sq"]
                found[f"steps.{name}"] = own["step"]
        return found

    def load_named(self, state: dict[str, Tensor]) -> None:
        """Take over what ``named_state`` returned, laid out as it would return it here."""
        if isinstance(self._muon, SplitMuon):
            wanted = {i: state[f"momentum.{self._matrices[i]}"] for i in self._muon.mine}
            self._muon.load_momenta(wanted)
        elif self._muon is not None:
            self._muon.load_momenta([state[f"momentum.{name}"] for name in self._matrices])
        for name in self._elementwise if self._adamw is not None else ():
            own = self._state_of(name)
            for key, kind in (("exp_avg", "mean"), ("exp_avg_sq", "square"), ("step", "steps")):
                own[key].copy_(state[f"{kind}.{name}"])

    def _state_of(self, name: str) -> dict[str, Tensor]:
        """Return AdamW's state of a parameter, made as AdamW makes it where there is none yet."""
        assert self._adamw is not None
        tensor = self.layout.tensors[name]
        if isinstance(self._adamw, NarrowAdamW):
            return self._adamw.begin(tensor)
        own: dict[str, Tensor] = self._adamw.state[tensor]
        if not own:
            own["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
            own["exp_avg"], own["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        return own

    def _named_of(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """Cut the state of a whole model for this process."""
        found: dict[str, Tensor] = {}
        if isinstance(self._muon, SplitMuon):
            shapes = zip(self._muon.shapes, self._muon.matrices, strict=True)
            wholes = [Matrix(torch.empty(shape, device="meta"), one.parts) for shape, one in shapes]
            momenta = momenta_of(wholes, state["muon"]["momentum"])
            found = {f"momentum.{name}": one for name, one in zip(self._matrices, momenta, strict=True)}
        for number, name in enumerate(self._elementwise):
            own = state["adamw"][number]
            for key, kind in (("exp_avg", "mean"), ("exp_avg_sq", "square")):
                found[f"{kind}.{name}"] = self.layout.part(name, own[key])
            found[f"steps.{name}"] = own["step"]
        return found


# --- building ---


def _muon(
    model: nn.Module, names: list[str], config: OptimConfig, steps: int, layout: Layout
) -> Muon | SplitMuon:
    parts, whole = parts_of(model), dict(model.named_parameters())
    cut = [parts.get(id(whole[name]), (whole[name].shape[0],)) for name in names]
    matrices = [Matrix(layout.tensors[name], sizes) for name, sizes in zip(names, cut, strict=True)]
    how: dict[str, Any] = {"momentum": config.momentum_in(steps), "iterations": config.muon_iterations}
    how["dtype"] = torch.bfloat16 if has_fast_bf16(matrices[0].parameter.device) else torch.float32
    if not layout.is_split:
        return Muon(matrices, **how)
    shapes = [(whole[name].shape[0], whole[name].shape[1]) for name in names]

    def rows(index: int, rank: int) -> tuple[int, int]:
        return layout.rows(names[index], rank)

    return SplitMuon(matrices, shapes, rows, layout.sharers, **how)


def _by_role(roles: dict[str, Role]) -> Iterator[str]:
    """Yield names in the order in which AdamW counts them."""
    for role in dict.fromkeys(roles.values()):
        yield from (name for name, own in roles.items() if own == role)


def _adamw(
    layout: Layout, roles: dict[str, Role], config: OptimConfig, width: int
) -> torch.optim.AdamW | NarrowAdamW:
    groups: list[dict[str, Any]] = []
    for role in dict.fromkeys(roles.values()):
        names = [name for name, own in roles.items() if own == role]
        group = {"params": [layout.tensors[name] for name in names], "peak": config.lr_of(role, width)}
        groups.append(group | {"weight_decay": config.weight_decay if role == "matrix" else 0.0})
        if config.moments == "bfloat16":
            groups[-1]["begins"] = [_begin(layout, name) for name in names]
    if config.moments == "bfloat16":
        return NarrowAdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps)
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def _begin(layout: Layout, name: str) -> int:
    """Count the numbers of the whole parameter that lie before what this process holds of it."""
    return layout.rows(name)[0] * math.prod(layout.tensors[name].shape[1:])
