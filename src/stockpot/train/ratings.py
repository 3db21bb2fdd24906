"""What answers are worth: a reply as it is rated, and ratings that are numbers.

Calls a stranger's function and refuses what is no rating, naming the reply to blame. It knows no policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stockpot.errors import TrainError
from stockpot.text.chat import Message

__all__ = ["Reply", "Reward", "rated", "rated_where_known"]


@dataclass(frozen=True)
class Reply:
    """An answer to be rated.

    Attributes:
        prompt: what was asked: the last message of a conversation.
        text: what the policy wrote.
        answer: the known answer, if there is one.
        tokens: how many ids it wrote.
        is_finished: whether it ended by itself.
        messages: the conversation so far, a system message included; empty where there is none.
    """

    prompt: str
    text: str
    answer: str | None
    tokens: int
    is_finished: bool
    messages: tuple[Message, ...] = ()


Reward = Callable[[Sequence[Reply]], Sequence[float]]
"""Rates replies, one finite number each."""


def rated_where_known(reward: Reward, replies: Sequence[Reply]) -> list[float]:
    """Rate replies that are only looked at: what cannot be rated is NaN, and left out."""
    return [value for value in rated(reward, replies, may_abstain=True) if not math.isnan(value)]


def rated(reward: Reward, replies: Sequence[Reply], *, may_abstain: bool = False) -> list[float]:
    """Rate replies, and refuse ratings that are none.

    Args:
        reward: the function that rates.
        replies: what is rated.
        may_abstain: allow NaN for what cannot be rated, where nothing learns from it.

    Raises:
        TrainError: showing the reply to blame.
    """
    try:
        found = [float(value) for value in reward(replies)]
    except Exception as error:
        culprit = replies[0] if len(replies) == 1 else None
        for one in replies if culprit is None else ():
            try:
                float(reward([one])[0])
            except Exception:  # noqa: BLE001 - a stranger's function; whatever it raises, this reply raises it
                culprit = one
                break
        shown = (
            f" for the reply {culprit.text[:80]!r} to {culprit.prompt[:80]!r}" if culprit is not None else ""
        )
        raise TrainError(
            f"The reward function raised {type(error).__name__}: {error}{shown}.", "Mend the reward function."
        ) from error
    if len(found) != len(replies):
        raise TrainError(
            f"The reward function gave {len(found)} rewards for {len(replies)} replies.",
            "Return one number a reply.",
        )
    for value, one in zip(found, replies, strict=True):
        if not math.isfinite(value) and not (may_abstain and math.isnan(value)):
            raise TrainError(
                f"The reward function gave {value} for the reply {one.text[:80]!r} to {one.prompt[:80]!r}.",
                "Return finite numbers.",
            )
    return found
