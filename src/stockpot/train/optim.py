"""Which parameter is updated how: roles, learning rates, Muon for matrices and AdamW for the rest.

Decides from a model's modules what is a matrix, an embedding, an output head or a scalar, and gives each role its
optimizer and learning rate. It takes no loss and knows no batch; gradients are there when it is asked to step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.device import has_fast_bf16
from stockpot.errors import CheckpointError
from stockpot.model.adapters import AdaptedLinear
from stockpot.model.attention import CrossAttention, SelfAttention
from stockpot.model.bottleneck import BottleneckLinear
from stockpot.model.heads import ClassificationHead, ValueHead
from stockpot.model.layers import FeedForward
from stockpot.model.soft import SoftEmbedding
from stockpot.train.muon import Matrix, Muon
from stockpot.train.schedule import Schedule, schedule_factor

__all__ = ["OptimConfig", "Optimizer", "Role", "roles_of"]

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
        if isinstance(module, SoftEmbedding):
            adapters.add(id(module.soft))
        if isinstance(module, (ClassificationHead, ValueHead)):
            outputs.add(id(module.out.weight))
        elif isinstance(module, nn.Embedding):
            embeddings.add(id(module.weight))
        elif isinstance(module, nn.Linear):
            linear.add(id(module.weight))

    def role(parameter: Tensor) -> Role:
        if id(parameter) in embeddings:
            return "embedding"
        if id(parameter) in outputs:
            return "head"
        if id(parameter) in adapters:
            return "adapter"
        return "matrix" if id(parameter) in linear else "scalar"

    return {name: role(p) for name, p in model.named_parameters() if p.requires_grad}


def _parts_of(model: nn.Module) -> dict[int, tuple[int, ...]]:
    """Tell how fused matrices are cut into the matrices they stand for: id of the weight → rows of each part."""
    parts: dict[int, tuple[int, ...]] = {}
    for module in model.modules():
        if isinstance(module, SelfAttention):
            parts[id(module.qkv.weight)] = (module.inner, module.kv_dim, module.kv_dim)
        elif isinstance(module, CrossAttention):
            parts[id(module.kv.weight)] = (module.kv_dim, module.kv_dim)
        elif isinstance(module, FeedForward) and module.is_gated:
            parts[id(module.up.weight)] = (module.up.out_features // 2,) * 2
    return parts


# --- stepping ---


class Optimizer:
    """The optimizers of all roles behind one ``step``.

    Args:
        model: whose parameters are trained, on the device they will stay on.
        config: rates, schedule and the choice of optimizer.
        steps: length of the run, which the schedule needs.

    Raises:
        ValueError: if nothing is trainable.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, steps: int) -> None:
        self.config, self.steps = config, steps
        roles = roles_of(model)
        if not roles:
            raise ValueError("the model has no trainable parameter")
        named = dict(model.named_parameters())
        self.parameters = [named[name] for name in roles]
        self._muon: Muon | None = None
        matrices = [named[name] for name, role in roles.items() if role == "matrix"]
        self.width = min(max(matrices, key=Tensor.numel).shape) if matrices else WIDTH
        if config.optimizer == "muon" and matrices:
            self._muon = _muon(model, matrices, config, steps)
            roles = {name: role for name, role in roles.items() if role != "matrix"}
        self._adamw = _adamw(named, roles, config, self.width) if roles else None

    def lr(self, step: int) -> float:
        """Return the matrices' learning rate in ``step``, counted from 0."""
        return self.config.lr_of("matrix", self.width) * self.config.factor(step, self.steps)

    @torch.no_grad()
    def scale(self, count: Tensor | float) -> Tensor:
        """Divide the gradients of a total by its count and clip them; return their norm before clipping.

        Nothing is read back from the device.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
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

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers only."""
        return {
            "kind": self.config.optimizer,
            "muon": None if self._muon is None else self._muon.state_dict(),
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
            if self._muon is not None:
                self._muon.load_state_dict(state["muon"])
            if self._adamw is not None:
                groups = self._adamw.state_dict()["param_groups"]
                self._adamw.load_state_dict({"state": state["adamw"], "param_groups": groups})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The saved optimizer state does not fit this model and these settings ({error}).",
                "Resume with the settings of the interrupted run.",
            ) from None


def _muon(model: nn.Module, matrices: list[nn.Parameter], config: OptimConfig, steps: int) -> Muon:
    parts = _parts_of(model)
    dtype = torch.bfloat16 if has_fast_bf16(matrices[0].device) else torch.float32
    return Muon(
        [Matrix(p, parts.get(id(p), (p.shape[0],))) for p in matrices],
        momentum=config.momentum_in(steps),
        iterations=config.muon_iterations,
        dtype=dtype,
    )


def _adamw(
    named: dict[str, nn.Parameter], roles: dict[str, Role], config: OptimConfig, width: int
) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [
        {
            "params": [named[name] for name, own in roles.items() if own == role],
            "peak": config.lr_of(role, width),
            "weight_decay": config.weight_decay if role == "matrix" else 0.0,
        }
        for role in dict.fromkeys(roles.values())
    ]
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)
