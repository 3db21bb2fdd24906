"""The optimizer: matrices by Muon, everything else by AdamW, each parameter in the group its role asks for.

Decides which update a parameter gets, and clips gradients. Schedules lie in ``schedule``, the orthogonal update in
``muon``. It computes no gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.model.transformer import Transformer
from stockpot.train.muon import Matrix, Muon

__all__ = ["OptimConfig", "Optimizer"]


class OptimConfig(Settings):
    """How weights are updated."""

    kind: Literal["muon", "adamw"] = Field(
        "muon", description="muon: matrices by Muon, the rest by AdamW · adamw: all by AdamW"
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.95), description="AdamW's averages of the gradient and of its square"
    )
    eps: float = Field(1e-10, gt=0, description="AdamW's least divisor")
    weight_decay: float = Field(
        0.1, ge=0, description="share of a matrix that decays, per unit of learning rate"
    )
    is_cautious: bool = Field(
        False, description="weights decay only where the update shrinks them as well (muon)"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    iterations: int = Field(5, ge=1, le=10, description="Muon's orthogonalisation steps")
    embedding_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of embeddings and head, as a multiple"
    )
    clip: float | None = Field(1.0, gt=0, description="largest norm of the whole gradient; none: any")


class Optimizer:
    """AdamW, with Muon for matrices where the settings say so.

    Args:
        model: what is trained; parameters that need no gradient are left alone.
        config: how.
    """

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        self.config = config
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        embeddings, matrices, others = _by_role(model)
        self.muon: Muon | None = None
        groups: list[dict[str, Any]] = [
            {"params": embeddings, "weight_decay": 0.0, "factor": config.embedding_lr_factor},
            {"params": others, "weight_decay": 0.0, "factor": 1.0},
        ]
        if config.kind == "muon" and matrices:
            wide = torch.float32 if self.parameters[0].device.type == "mps" else torch.bfloat16
            fused = [Matrix(p, _parts(model, name, p)) for name, p in matrices.items()]
            self.muon = Muon(fused, momentum=config.momentum, iterations=config.iterations, dtype=wide)
        else:
            groups.append(
                {"params": list(matrices.values()), "weight_decay": config.weight_decay, "factor": 1.0}
            )
        kept = [group for group in groups if group["params"]]
        self.adamw = (
            torch.optim.AdamW(kept, lr=0.0, betas=config.betas, eps=config.eps, fused=True) if kept else None
        )

    @torch.no_grad()
    def scale_and_clip(self, count: Tensor) -> Tensor:
        """Divide every gradient by ``count``, clip, and return the norm before clipping (0-dim, on the device)."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / count
        factor = 1 / count
        if self.config.clip is not None:
            factor = factor * (self.config.clip / norm.clamp(min=self.config.clip))
        torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, lr: float) -> None:
        """Update every parameter from its gradient."""
        if self.muon is not None:
            self.muon.step(lr, weight_decay=self.config.weight_decay, is_cautious=self.config.is_cautious)
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = lr * group["factor"]
            self.adamw.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next step depends on besides weights."""
        return {
            "muon": None if self.muon is None else self.muon.state_dict(),
            "adamw": None if self.adamw is None else self.adamw.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an optimizer of the same model and settings."""
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])
        if self.adamw is not None:
            self.adamw.load_state_dict(state["adamw"])


def _by_role(model: nn.Module) -> tuple[list[Tensor], dict[str, Tensor], list[Tensor]]:
    """Sort parameters into (embeddings and output matrix, matrices of layers by name, vectors)."""
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if isinstance(model, Transformer):
        looked_up.add(id(model.output_weight))
    embeddings, matrices, others = [], {}, []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in looked_up:
            embeddings.append(parameter)
        elif parameter.ndim == 2:
            matrices[name] = parameter
        else:
            others.append(parameter)
    return embeddings, matrices, others


def _parts(model: nn.Module, name: str, parameter: Tensor) -> tuple[int, ...]:
    """Sizes of the matrices fused in one weight: a module that fuses says so in ``parts``."""
    owner = model.get_submodule(name.rpartition(".")[0])
    parts = getattr(owner, "parts", None)
    return tuple(parts) if parts else (parameter.shape[0],)
