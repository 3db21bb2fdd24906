"""A reward that runs the program in a reply, in the sandbox, against the tests of its prompt."""

from __future__ import annotations

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.judge.sandbox import check_sandbox
from stockpot.stages import rewards
from stockpot.train.rollouts import Reply

TESTS = "assert double(2) == 4\nassert double(-1) == -2"


def reply(text, answer=TESTS):
    return Reply("Write double.", text, answer, 3, True)


def test_only_a_program_that_passes_is_worth_something():
    try:
        check_sandbox()
    except ConfigError as error:
        pytest.skip(str(error))
    rate = rewards.reward_from("code", device=torch.device("cpu"))
    texts = [
        "def double(x): return 2 * x",
        "```python\ndef double(x):\n    return x + x\n```",
        "def double(x): return 4",
        "no",
    ]
    assert rate([reply(text) for text in texts]) == [1.0, 1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="no known answer"):
        rate([reply("x", None)])


def test_without_confinement_the_reward_is_refused_at_once(monkeypatch):
    def refuse():
        raise ConfigError("Programs cannot be confined here.", "")

    monkeypatch.setattr(rewards, "check_sandbox", refuse)
    with pytest.raises(ConfigError, match="cannot be confined"):
        rewards.reward_from("code", device=torch.device("cpu"))
