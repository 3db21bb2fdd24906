"""Learning from comparisons: direct preference losses and the reward model's.

Pure tensor maths. Every pair of answers contributes one loss; a tie, in which neither answer is better, pulls both
ways equally. Which model made the reference log-probabilities, and when, is the business of the stage.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from stockpot.config import Settings
from stockpot.data.batch import Batch, PreferenceBatch
from stockpot.model.transformer import Transformer
from stockpot.train.log_probs import label_log_probs
from stockpot.train.losses import Loss, Metrics

__all__ = [
    "OBJECTIVES",
    "PreferenceConfig",
    "answer_rewards",
    "bradley_terry",
    "dpo",
    "ipo",
    "preference_loss",
    "reward_loss",
    "simpo",
]


class PreferenceConfig(Settings):
    """How two answers are told apart."""

    objective: Literal["dpo", "ipo", "simpo"] = Field(
        "dpo", description="dpo · ipo (a bounded margin) · simpo (no reference, per token)"
    )
    beta: float = Field(
        0.1, gt=0, description="how closely the model is held to the reference: larger stays nearer"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="dpo, simpo: share of the comparisons that may be wrong"
    )
    per_token: bool = Field(
        False, description="dpo: compare log-probabilities per token, so that length does not count"
    )
    gamma: float = Field(0.5, ge=0, description="simpo: the margin that is aimed at")
    chosen_weight: float = Field(
        0.0, ge=0, description="of the chosen answer's own loss, nats per token, which keeps it likely"
    )

    @model_validator(mode="after")
    def _fits(self) -> PreferenceConfig:
        if self.objective == "ipo" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to dpo and simpo; ipo is bounded by itself")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a reference model are needed."""
        return OBJECTIVES[self.objective].needs_reference

    @property
    def is_per_token(self) -> bool:
        """Whether an answer's log-probability is divided by its length."""
        return self.per_token or OBJECTIVES[self.objective].is_per_token


PairLoss = Callable[[Tensor, Tensor, PreferenceConfig], Tensor]
"""(difference of the answers' scores, chance that the chosen one is better, settings) -> loss; all ``(pairs,)``."""


def dpo(delta: Tensor, chance: Tensor, config: PreferenceConfig) -> Tensor:
    """Compute −log σ(β·Δ), with Δ the difference of log(policy / reference).

    With ``label_smoothing`` it is conservative DPO: some comparisons are taken to be the wrong way round.

    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; Mitchell 2023, "A note on DPO with noisy preferences", eq. 3.

    >>> round(float(dpo(torch.tensor([0.0]), torch.tensor([1.0]), PreferenceConfig())), 4)
    0.6931
    """
    return _cross_entropy(config.beta * delta, chance, config.label_smoothing)


def ipo(delta: Tensor, chance: Tensor, config: PreferenceConfig) -> Tensor:
    """Compute (Δ − 1 / 2β)², with Δ the difference of log(policy / reference) per token; ties aim at 0.

    Source: Azar et al. 2023, arXiv:2310.12036, eq. 17; the mean over tokens as in TRL, whose authors asked the paper's.
    """
    return (delta - (2 * chance - 1) / (2 * config.beta)).square()


def simpo(delta: Tensor, chance: Tensor, config: PreferenceConfig) -> Tensor:
    """Compute −log σ(β·Δ − γ), with Δ the difference of log-probabilities per token; there is no reference.

    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    return _cross_entropy(config.beta * delta - config.gamma, chance, config.label_smoothing)


def _cross_entropy(logits: Tensor, chance: Tensor, smoothing: float) -> Tensor:
    """Compute the cross-entropy of "the chosen one is better" with the given chance."""
    chance = chance * (1 - smoothing) + (1 - chance) * smoothing
    return -chance * F.logsigmoid(logits) - (1 - chance) * F.logsigmoid(-logits)


@dataclass(frozen=True)
class Objective:
    """A pair loss and what its Δ is made of."""

    loss: PairLoss
    is_per_token: bool
    needs_reference: bool


OBJECTIVES: dict[str, Objective] = {
    "dpo": Objective(dpo, is_per_token=False, needs_reference=True),
    "ipo": Objective(ipo, is_per_token=True, needs_reference=True),
    "simpo": Objective(simpo, is_per_token=True, needs_reference=False),
}


def preference_loss(model: Transformer, batch: PreferenceBatch, config: PreferenceConfig) -> Loss:
    """Raise chosen answers above rejected ones.

    With ``chosen_weight`` the chosen answer's own loss per token is added, so that it does not become unlikely together with
    the rejected one (Pang et al. 2024, arXiv:2404.19733, eq. 1); a tie has no chosen answer.

    Metrics, means over pairs: ``loss``; ``accuracy`` (the chosen answer's score is higher; ties do not count);
    ``margin`` (β times the difference of log(policy / reference), the implicit reward); ``chosen_log_prob`` and
    ``rejected_log_prob`` (nats per answer); ``chosen_shift`` and ``rejected_shift`` (their change against the reference).

    Raises:
        ValueError: if the objective needs reference log-probabilities and the batch has none.
    """
    objective = OBJECTIVES[config.objective]
    if objective.needs_reference and batch.reference is None:
        raise ValueError(f"{config.objective} needs the reference's log-probabilities")
    sums, tokens = label_log_probs(model, batch.texts).per_answer(batch.texts)
    known = torch.zeros_like(sums) if batch.reference is None else batch.reference.to(sums.dtype)
    scores = sums - known if objective.needs_reference else sums
    if config.is_per_token:
        scores = scores / tokens
    delta = scores[0::2] - scores[1::2]
    total = objective.loss(delta, batch.chance, config).sum()
    if config.chosen_weight:
        own = -(sums[0::2] / tokens[0::2]) * (batch.chance != 0.5)
        total = total + config.chosen_weight * own.sum()
    return Loss(total, len(delta), _metrics(total, sums.detach(), known, scores.detach(), batch, config))


def _metrics(
    total: Tensor,
    sums: Tensor,
    known: Tensor,
    scores: Tensor,
    batch: PreferenceBatch,
    config: PreferenceConfig,
) -> Metrics:
    pairs = len(batch.chance)
    shift = sums - known
    clear = batch.chance != 0.5
    right = (scores[0::2] > scores[1::2]) & clear
    metrics: Metrics = {
        "loss": (total.detach(), pairs),
        "accuracy": (right.sum(), clear.sum()),
        "margin": (config.beta * (shift[0::2] - shift[1::2]).sum(), pairs),
        "chosen_log_prob": (sums[0::2].sum(), pairs),
        "rejected_log_prob": (sums[1::2].sum(), pairs),
    }
    if batch.reference is not None:
        metrics["chosen_shift"] = (shift[0::2].sum(), pairs)
        metrics["rejected_shift"] = (shift[1::2].sum(), pairs)
    return metrics


# --- the reward model ---


def answer_rewards(model: Transformer, texts: Batch) -> Tensor:
    """Read the value head at the last token of every answer: ``(answers,)`` float32.

    Raises:
        ValueError: if the batch has no answers.
    """
    if texts.answers is None:
        raise ValueError("this batch has no answers")
    hidden = model(texts.ids, attention_mask=texts.attention_mask, branches=texts.branches, last=0).hidden
    answers = texts.answers.reshape(-1)
    order = torch.arange(len(answers), device=answers.device)
    inside = answers >= 0
    ends = order.new_zeros(int(answers.max()) + 1).scatter_reduce(
        0, answers[inside], order[inside], "amax", include_self=False
    )
    last = hidden.reshape(-1, hidden.shape[-1])[ends]
    return model.values(last.unsqueeze(0)).squeeze(0).float()


def bradley_terry(chosen: Tensor, rejected: Tensor, chance: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Compute −log σ(r(chosen) − r(rejected) − margin) for each pair.

    Source: Bradley & Terry 1952; the margin: Touvron et al. 2023, arXiv:2307.09288, eq. 2.
    """
    return _cross_entropy(chosen - rejected - margin, chance, 0.0)


def reward_loss(
    model: Transformer, batch: PreferenceBatch, *, margin_weight: float = 0.0, centre_weight: float = 0.01
) -> Loss:
    """Give chosen answers a higher reward than rejected ones.

    Only differences of rewards matter for the comparison; ``centre_weight`` · (r(chosen) + r(rejected))² keeps their mean
    at zero.

    Metrics, means over pairs: ``loss`` (without the centring), ``accuracy`` (ties do not count), ``gap`` (the difference
    of rewards), ``reward`` (the mean of both), ``brier`` (squared error of the chance that the rewards imply).

    Args:
        model: with a value head.
        batch: comparisons.
        margin_weight: how much of a record's margin the difference must exceed.
        centre_weight: of the centring; Eisenstein et al. 2023, arXiv:2312.09244, §2.
    """
    rewards = answer_rewards(model, batch.texts)
    chosen, rejected = rewards[0::2], rewards[1::2]
    margin = margin_weight * batch.margin if batch.margin is not None else 0.0
    losses = bradley_terry(chosen, rejected, batch.chance, margin)
    pairs = len(losses)
    total = losses.sum() + centre_weight * (chosen + rejected).square().sum()
    with torch.no_grad():
        clear = batch.chance != 0.5
        says = torch.sigmoid(chosen - rejected)
        metrics: Metrics = {
            "loss": (losses.sum(), pairs),
            "accuracy": (((chosen > rejected) & clear).sum(), clear.sum()),
            "gap": ((chosen - rejected).sum(), pairs),
            "reward": ((chosen + rejected).sum() / 2, pairs),
            "brier": ((says - batch.chance).square().sum(), pairs),
        }
    return Loss(total, pairs, metrics)
