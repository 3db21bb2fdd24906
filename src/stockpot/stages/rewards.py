"""Where rewards come from: a reward model, a rule, the villagers' taste, or a function in a file of the user's.

Turns what a user names into a function that rates replies. It trains nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch

from stockpot.bundle import Bundle
from stockpot.data.branching import tree_of
from stockpot.data.encode import encode_record
from stockpot.data.records import CompletionRecord
from stockpot.errors import ConfigError
from stockpot.judge.metrics import exact_match
from stockpot.judge.programs import program_of
from stockpot.judge.sandbox import check_sandbox, run_tests
from stockpot.stages.drift import tree_batches
from stockpot.stages.reward_child import RewardChild
from stockpot.train.preference import answer_rewards
from stockpot.train.rollouts import Reply, Reward
from stockpot.village import Village
from stockpot.weights.store import load

__all__ = ["reward_from", "weighted"]


def reward_from(spec: str, *, device: torch.device) -> Reward:
    """Turn what a user names into a function that rates replies.

    Args:
        spec: ``exact`` (1 if the reply is the known answer), ``code`` (1 if the program in the reply passes the tests that
            are the known answer; programs run in a sandbox), ``village[:SEED[:COUNT]]`` (the villagers' taste, 0 to 3),
            ``FILE.py:FUNCTION``, or a reward model: a run, a checkpoint or a model folder.
        device: where a reward model computes.

    Raises:
        ConfigError: if there is no such thing, the model has no value head, or programs cannot be confined here.
        CheckpointError: if the model cannot be read.
    """
    if spec == "exact":
        return lambda replies: [float(exact_match(one.text, _known(one))) for one in replies]
    if spec == "code":
        check_sandbox()
        return _passes
    if spec == "village" or spec.startswith("village:"):
        return _taste(spec)
    file, _, name = spec.rpartition(":")
    if file.endswith(".py"):
        return _function(Path(file), name)
    if spec.endswith(".py"):
        raise ConfigError(
            f"{spec} is a program; which function in it rates is not said.", f"Name it: {spec}:FUNCTION"
        )
    return _model(load(spec, device=device, dtype="float32"), spec)


def weighted(rewards: Sequence[Reward], weights: Sequence[float]) -> Reward:
    """Add several rewards up."""
    if len(rewards) == 1 and weights[0] == 1:
        return rewards[0]

    def rate(replies: Sequence[Reply]) -> list[float]:
        columns = [reward(replies) for reward in rewards]
        return [
            sum(weight * value for weight, value in zip(weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]

    return rate


def _known(reply: Reply) -> str:
    if reply.answer is None:
        raise ValueError("the prompt has no known answer")
    return reply.answer


def _passes(replies: Sequence[Reply]) -> list[float]:
    """Run each reply's program against the tests that stand as the known answer of its prompt."""

    def passes(one: Reply) -> float:
        return float(run_tests(program_of(one.text), _known(one)).passed)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(passes, replies))


def _taste(spec: str) -> Reward:
    """Rate by the villagers' taste; what is no prompt of that village, of either split, is NaN."""
    words = spec.split(":")[1:]
    if len(words) > 2 or not all(word.isdecimal() for word in words):
        raise ConfigError(f"{spec}: expected village[:SEED[:COUNT]].", "Example: village:0:4000")
    seed, count = int(words[0]) if words else 0, int(words[1]) if len(words) > 1 else 4_000
    village = Village(seed)
    raters = [village.rater(split, count) for split in ("train", "val")]

    def rate(replies: Sequence[Reply]) -> list[float]:
        return [next((v for r in raters if (v := r(one.prompt, one.text)) == v), math.nan) for one in replies]

    return rate


def _function(path: Path, name: str) -> Reward:
    """Open a function in the user's own file, in a process of its own."""
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file.", "Name it as FILE.py:FUNCTION.")
    try:
        child = RewardChild(path.resolve(), name)
    except (RuntimeError, TimeoutError) as error:
        raise ConfigError(
            f"{path} cannot be used: {error}.", "A reward takes a list of replies and returns numbers."
        ) from None
    return lambda replies: child([asdict(one) for one in replies])


def _model(bundle: Bundle, spec: str) -> Reward:
    """Rate with a reward model, which reads texts by its own tokenizer and template."""
    if bundle.model.config.value_head is False:
        raise ConfigError(
            f"{spec} has no value head: it is no reward model.", "`stockpot reward` trains one."
        )
    model, context = bundle.model, bundle.context

    @torch.inference_mode()
    def rate(replies: Sequence[Reply]) -> list[float]:
        trees = []
        for one in replies:
            record = CompletionRecord(one.messages or one.prompt, one.text)
            ids = encode_record(record, bundle.tokenizer, bundle.template).ids[-context:]
            trees.append(tree_of(ids[:1], [ids[1:]]))
        found: list[float] = []
        for batch in tree_batches(trees, model.device):
            found += answer_rewards(model, batch).tolist()
        return found

    return rate
