"""Small heads on top of hidden states: masked tokens, classes, values and rewards.

Decides their shapes and how they start. What they are trained for is the business of the losses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stockpot.model.config import StackConfig
from stockpot.model.masks import documents_of
from stockpot.model.norms import make_norm

__all__ = ["ClassificationHead", "MaskedHead", "ValueHead", "last_real", "mean_real"]

States = Float[Tensor, "batch seq dim"]


class MaskedHead(nn.Module):
    """A dense layer, GELU and a norm before the output matrix.

    Source: Devlin et al. 2018, the released code.
    """

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = make_norm(config)

    def forward(self, hidden: Float[Tensor, "... dim"]) -> Float[Tensor, "... dim"]:
        """Turn hidden states into what is compared with the embeddings."""
        turned: Tensor = self.norm(F.gelu(self.dense(hidden)))
        return turned


class ClassificationHead(nn.Module):
    """Scores for a whole sequence, read from its first token.

    Source: Devlin et al. 2018, arXiv:1810.04805, §3.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, classes)

    def forward(self, hidden: States) -> Float[Tensor, "batch classes"]:
        """Return one score a class."""
        scores: Tensor = self.out(torch.tanh(self.dense(hidden[:, 0])))
        return scores


class ValueHead(nn.Module):
    """One number per position, zero at first; as a reward it is read at the last real token.

    Without a bias, as in the classification heads of other programs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: States) -> Float[Tensor, "batch seq"]:
        """Return the value of every position."""
        value: Tensor = self.out(hidden)
        return value.squeeze(-1)


def last_real(
    values: Float[Tensor, "batch seq ..."], attention_mask: Tensor | None
) -> Float[Tensor, "batch ..."]:
    """Pick what stands at the last real token of each row."""
    if attention_mask is None:
        return values[:, -1]
    index = torch.arange(values.shape[1], device=values.device)
    last = torch.where(documents_of(attention_mask) != 0, index, 0).amax(1)
    return values[torch.arange(values.shape[0], device=values.device), last]


def mean_real(hidden: States, attention_mask: Tensor | None) -> Float[Tensor, "batch dim"]:
    """Average the real tokens of each row; a row of padding gives zeros."""
    if attention_mask is None:
        return hidden.mean(1)
    real = (documents_of(attention_mask) != 0).unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1).clamp(min=1)
