"""Learning from rewards: advantages, KL estimates, and the clipped losses of PPO and its relatives.

Pure tensor maths, and the module that joins a policy with a value head. Who writes answers and who rates them is decided
elsewhere.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stockpot.config import Settings
from stockpot.data.batch import RolloutBatch
from stockpot.model.config import ModelConfig
from stockpot.model.heads import ValueHead
from stockpot.model.transformer import Transformer
from stockpot.train.log_probs import label_log_probs
from stockpot.train.losses import Loss, Metrics

__all__ = [
    "ActorCritic",
    "PolicyConfig",
    "gae",
    "group_advantages",
    "kl_k1",
    "kl_k3",
    "leave_one_out",
    "policy_loss",
    "whiten",
]


class PolicyConfig(Settings):
    """How far a step may move the policy."""

    clip_range: float = Field(
        0.2, gt=0, description="a token's probability counts up to this relative change"
    )
    value_clip: float | None = Field(
        0.2, gt=0, description="the same for values, as a difference; none: no limit"
    )
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    kl_coef: float = Field(0.05, ge=0, description="price of a nat of distance from the reference")


class ActorCritic(nn.Module):
    """A policy and a value head on its hidden states; only the policy is saved as a model."""

    def __init__(self, policy: Transformer) -> None:
        super().__init__()
        self.policy = policy
        self.value = ValueHead(policy.config.dim).to(policy.device)

    @property
    def config(self) -> ModelConfig:
        """The policy's."""
        return self.policy.config

    @property
    def output_weight(self) -> Tensor:
        """The policy's, by which the optimizer tells an output matrix."""
        return self.policy.output_weight


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Estimate advantages and returns of completions.

    Shapes: rewards, values ``(batch, seq)``, zeros after the end; both results ``(batch, seq)``. The value after the last
    token is taken as 0, since completions end there.

    Args:
        rewards: after each token.
        values: expected before each token.
        gamma: discount per token, in [0, 1].
        lam: bias–variance dial of the estimator, in [0, 1].

    Raises:
        ValueError: if the two shapes differ.

    Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.

    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]), gamma=1.0, lam=0.5)[0]
    tensor([[0.2500, 0.5000]])
    """
    if rewards.shape != values.shape:
        raise ValueError(f"rewards {tuple(rewards.shape)} and values {tuple(values.shape)} differ in shape")
    advantages = torch.zeros_like(rewards)
    carried = rewards.new_zeros(rewards.shape[0])
    following = rewards.new_zeros(rewards.shape[0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = delta + gamma * lam * carried
        advantages[:, t] = carried
        following = values[:, t]
    return advantages, advantages + values


def whiten(values: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Give values a spread of 1 and, unless told otherwise, a mean of 0.

    Source: Huang et al. 2024, "The N implementation details of RLHF with PPO", detail 16.
    """
    if values.numel() < 2:
        return values - values.mean() if shift_mean else values
    mean, spread = values.mean(), values.std(correction=0)
    whitened = (values - mean) / (spread + 1e-8)
    return whitened if shift_mean else whitened + mean


def group_advantages(rewards: Tensor, *, scale: bool = True) -> Tensor:
    """Compare each completion of a prompt with the others ``(prompts, samples)``: GRPO.

    Source: Shao et al. 2024, arXiv:2402.03300, §4.1.2; without ``scale``: Liu et al. 2025, arXiv:2503.20783, eq. 3.
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def leave_one_out(rewards: Tensor) -> Tensor:
    """Subtract from each reward the mean of the prompt's other ones ``(prompts, samples)``: RLOO.

    Source: Ahmadian et al. 2024, arXiv:2402.14740, eq. 9.
    """
    count = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)


def kl_k1(policy: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) token by token, without bias. Source: Schulman 2020, k1."""
    return policy - reference


def kl_k3(policy: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy ‖ reference) token by token, never below 0. Source: Schulman 2020, k3."""
    difference = reference - policy
    return difference.exp() - difference - 1


def policy_loss(
    model: ActorCritic | Transformer, batch: RolloutBatch, config: PolicyConfig, kl_coef: float | None = None
) -> Loss:
    """Make tokens with positive advantage more probable, within the clip range.

    With ``returns`` in the batch the value head learns them; with ``reference_log_probs`` the distance from the reference is
    part of the loss.

    Metrics, means over tokens: ``loss``, ``kl_step`` (from the policy that wrote the tokens), ``clipped`` (share), ``entropy``
    and, where they apply, ``value_loss`` and ``kl_reference``.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9.
    """
    policy = model.policy if isinstance(model, ActorCritic) else model
    texts = batch.texts
    hidden = policy(texts.ids, attention_mask=texts.attention_mask, branches=texts.branches, last=0).hidden
    found = label_log_probs(policy, texts, hidden=hidden)
    old, advantages = (values.reshape(-1)[found.at] for values in (batch.old_log_probs, batch.advantages))
    log_ratio = found.log_probs - old
    ratio = log_ratio.exp()
    bounded = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
    total = -torch.minimum(ratio * advantages, bounded * advantages).sum()
    count = len(advantages)
    with torch.no_grad():
        metrics: Metrics = {
            "kl_step": (kl_k3(old, found.log_probs.detach()).sum(), count),
            "clipped": (((ratio - 1).abs() > config.clip_range).sum(), count),
            "entropy": (found.entropy.sum(), count),
        }
    if batch.reference_log_probs is not None:
        reference = batch.reference_log_probs.reshape(-1)[found.at]
        distance = kl_k3(found.log_probs, reference).sum()
        total = total + (config.kl_coef if kl_coef is None else kl_coef) * distance
        metrics["kl_reference"] = (distance.detach(), count)
    if batch.returns is not None and isinstance(model, ActorCritic):
        values = model.value(hidden).reshape(-1)[found.at].float()
        loss = _value_loss(values, batch, found.at, config.value_clip)
        total = total + config.value_coef * loss
        metrics["value_loss"] = (loss.detach(), count)
    return Loss(total, count, {"loss": (total.detach(), count), **metrics})


def _value_loss(values: Tensor, batch: RolloutBatch, at: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, summed; the larger of the clipped and the plain one."""
    assert batch.returns is not None
    returns = batch.returns.reshape(-1)[at]
    plain = (values - returns).square()
    if clip is None or batch.old_values is None:
        return 0.5 * plain.sum()
    old = batch.old_values.reshape(-1)[at]
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum(plain, (near - returns).square()).sum()


Baseline = Literal["value", "group", "leave-one-out"]
"""What a reward is compared with: a value head (PPO), the prompt's other answers (GRPO, RLOO)."""
