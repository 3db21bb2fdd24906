"""AdamW whose two means are kept in bfloat16: half of its memory.

A mean moves by a small share of itself a step, mostly by less than bfloat16 can tell apart, and rounding to the nearest
number would lose that for ever. So a mean is rounded up or down at random, with the chances that make it right on average.
The chances follow from the number of the step and from a number's place in the whole parameter: a resumed run goes on
exactly, processes that hold the same numbers round them alike, those that hold parts round as one would that holds all, and
torch's generators are left alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stockpot.model import compiled
from stockpot.train.layout import local

__all__ = ["NarrowAdamW", "arithmetic"]

PIECE = 1 << 16  # numbers at a time on a CPU: what is in flight stays in its caches
PIECE_GPU = 1 << 24
MEANS = ("exp_avg", "exp_avg_sq")  # as torch's AdamW calls them
CUT = 16  # bits that float32 has and bfloat16 has not


def arithmetic(device: torch.device) -> str:
    """Tell who computes a step on this device: kernels and torch differ in the last place, and so in what is rounded up."""
    return "kernels" if compiled.suits(torch.empty(1, device=device)) else "torch"


class NarrowAdamW(torch.optim.Optimizer):
    """Decoupled weight decay and Adam, computed in float32.

    Args:
        groups: as of torch's optimizers, each with ``weight_decay``; parameters are float32. ``begins`` tells for each of
            them how many numbers of the whole parameter lie before it; without, it is whole.
        betas: memories of the gradient's mean and of its square's.
        eps: added to the root of the mean square.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; the rounding: Zamirai et al. 2020, arXiv:2010.06192, §4.
    """

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        noise: dict[torch.device, Tensor] = {}
        for group in self.param_groups:
            begins = group.get("begins") or [0] * len(group["params"])
            for parameter, begin in zip(group["params"], begins, strict=True):
                if parameter.grad is None:
                    continue
                own = self.begin(parameter)
                own["step"] += 1
                count = int(own["step"])
                if parameter.device not in noise:
                    noise[parameter.device] = _noise(count, parameter.device)
                _update(parameter, own, group, count, _from(begin, noise[parameter.device]))

    def begin(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter, made where there is none yet."""
        own: dict[str, Tensor] = self.state[parameter]
        if not own:
            own["step"] = torch.zeros((), dtype=torch.float32)
            plain = torch.contiguous_format
            own |= {
                name: torch.zeros_like(parameter, dtype=torch.bfloat16, memory_format=plain) for name in MEANS
            }
        return own

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; torch widens what belongs to a wide parameter, and here it is narrowed again."""
        super().load_state_dict(state_dict)
        for own in self.state.values():
            for name in own.keys() & set(MEANS):
                own[name] = own[name].to(torch.bfloat16)


def _noise(step: int, device: torch.device) -> Tensor:
    """Draw what is added to the bits that are cut off, for one piece of any parameter in this step."""
    generator = torch.Generator(device).manual_seed(step)
    size = PIECE if device.type == "cpu" else PIECE_GPU
    return torch.randint(0, 1 << CUT, (size,), generator=generator, device=device, dtype=torch.int32)


def _from(begin: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Give the noise for the numbers of a parameter from ``begin`` on: until it starts anew, and from there on."""
    return noise[begin % len(noise) :] if begin % len(noise) else noise[:0], noise


def _update(
    parameter: Tensor, own: dict[str, Tensor], group: dict[str, Any], step: int, noises: tuple[Tensor, Tensor]
) -> None:
    (beta1, beta2), lr = group["betas"], float(group["lr"])
    assert parameter.grad is not None  # the caller has looked
    place = local(parameter).detach()
    weight = place.reshape(-1)  # a copy where the numbers do not lie one behind the other
    mean, square = (local(own[name]).view(-1) for name in MEANS)
    slope = local(parameter.grad).detach().reshape(-1)
    by, size = (1 - beta2**step) ** 0.5, lr / (1 - beta1**step)
    facts = (1 - beta1, 1 - beta2, by, group["eps"], 1 - lr * group["weight_decay"], size)
    held, first = (weight, slope, mean, square), min(len(noises[0]), len(weight))
    spans = [([one[:first] for one in held], noises[0]), ([one[first:] for one in held], noises[1])]
    for (of_weight, of_slope, of_mean, of_square), noise in spans:
        if not len(of_weight):
            continue
        if compiled.suits(of_weight, of_slope, of_mean, of_square):
            compiled.adamw(of_weight, of_slope, (of_mean, of_square), noise, facts)
            continue
        for some in zip(
            *(torch.split(x, len(noise)) for x in (of_weight, of_slope, of_mean, of_square)), strict=True
        ):
            _step(some[0], some[1], (some[2], some[3]), noise[: len(some[0])], facts)
    if not place.is_contiguous():
        place.copy_(weight.view(place.shape))


def _step(
    weight: Tensor, slope: Tensor, means: tuple[Tensor, Tensor], noise: Tensor, facts: tuple[float, ...]
) -> None:
    """Do what ``compiled.adamw`` does, to one piece."""
    mean, square = means
    share_mean, share_square, by, eps, keep, step = facts
    first = mean.float().lerp_(slope, share_mean)
    second = square.float().mul_(1 - share_square).addcmul_(slope, slope, value=share_square)
    mean.copy_(_rounded(first, noise))
    square.copy_(_rounded(second, noise ^ ((1 << CUT) - 1)))  # not up together
    weight.mul_(keep).addcdiv_(first, second.sqrt_().div_(by).add_(eps), value=-step)


def _rounded(x: Tensor, noise: Tensor) -> Tensor:
    """Round float32 numbers up or down to such that bfloat16 holds exactly."""
    bits = x.view(torch.int32) + noise
    return bits.bitwise_and_(-(1 << CUT)).view(torch.float32)
