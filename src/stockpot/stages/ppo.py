"""Learning from rewards: PPO with a value head, and GRPO and RLOO, which compare the answers to one prompt instead.

All three are one loop over rollouts. What the reward wants and what is wanted need not be the same: reward, distance from
the reference, length and, where it is known, the true worth of the answers stand side by side in the metrics, and
every phase leaves its answers in ``samples/``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, field_validator

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.data.records import (
    ChatRecord,
    CompletionRecord,
    PreferenceRecord,
    Record,
    TextRecord,
    as_messages,
)
from stockpot.data.sources import fingerprint_sources, read_records
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError, DataError
from stockpot.model.adapters import LoRA, has_adapters, without_adapters
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.stages.assemble import (
    GentleLoop,
    Progress,
    adapt,
    as_sources,
    checkpoint_writer,
    open_to_tune,
    silent,
    tokens_at_once,
)
from stockpot.stages.comparisons import autocast
from stockpot.stages.rewards import reward_from, weighted
from stockpot.text.chat import Message
from stockpot.train.loop import fit
from stockpot.train.policy import ActorCritic
from stockpot.train.rollouts import Asked, Reply, Reward, RolloutConfig, Rollouts
from stockpot.weights.store import load_model

__all__ = ["GRPOConfig", "PPOConfig", "grpo", "ppo"]


class RewardLoop(GentleLoop):
    """How long and how to train on rewards; a step's size is that of a minibatch."""

    steps: int = Field(200, ge=1, description="optimiser steps")
    schedule: Literal["constant", "linear", "cosine", "warmup-stable-decay"] = Field(
        "constant", description="constant · linear · cosine · warmup-stable-decay"
    )
    log_every: int = Field(1, ge=1, description="steps between log lines")
    divergence_factor: float | None = Field(
        None,
        gt=1,
        description="stop when the logged loss is this many times the first, and 1 above it; none: never",
    )


class PPOConfig(RolloutConfig):
    """How a model learns from rewards."""

    model: str | None = Field(
        None, description="the policy to start from: a run, a checkpoint or a model folder"
    )
    reward: tuple[str, ...] = Field(
        (),
        description="what rates answers: a reward model, exact, village, or FILE.py:FUNCTION; several are added",
    )
    reward_weights: tuple[float, ...] | None = Field(None, description="one for each reward; none: 1")
    gold: str | None = Field(None, description="a second rating, in the same form, which is only looked at")
    data: tuple[str, ...] = Field(
        ("village:prompts",), description="prompts: completion, chat or preference records, or plain texts"
    )
    template: str | None = Field(
        None, description="file with a chat template; none: the model's own, or the default one"
    )
    adapter: LoRA | None = Field(
        None,
        description="train a low-rank adapter and freeze the model, such as adapter.rank=8; none: train all",
    )
    loop: RewardLoop = Field(default_factory=RewardLoop, description="steps, optimizer")
    seed: int = Field(0, ge=0, description="decides the order of prompts and the answers drawn")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", "reward", mode="before")(as_sources)


class GRPOConfig(PPOConfig):
    """How a model learns from comparing its own answers to one prompt."""

    baseline: Literal["value", "group", "leave-one-out"] = Field(
        "group",
        description="what a reward is compared with: value (PPO) · group (GRPO) · leave-one-out (RLOO)",
    )
    prompts: int = Field(8, ge=1, description="prompts of a phase")
    samples: int = Field(8, ge=1, description="answers to each of them")
    epochs: int = Field(1, ge=1, description="passes over a phase's answers")
    minibatches: int = Field(1, ge=1, description="optimiser steps of a pass")


def ppo(
    config: PPOConfig,
    *,
    out: str | Path,
    reward: Reward | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Learn from rewards and leave a run folder whose ``model`` earns more of them.

    Args:
        config: everything that decides the result, but for ``reward``.
        out: the run folder.
        reward: rates replies (``.prompt``, ``.text``, ``.answer``, ``.tokens``), instead of ``config.reward``.
        resume: go on from the newest whole checkpoint, exactly, in the midst of a phase, too.
        progress: receives events.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if a reward is no number, or the policy collapses.
    """
    return _learn("ppo", config, out, reward, resume, progress or silent)


def grpo(
    config: GRPOConfig,
    *,
    out: str | Path,
    reward: Reward | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Learn from comparing answers to the same prompt; arguments and errors as for `ppo`."""
    return _learn("grpo", config, out, reward, resume, progress or silent)


def _learn(
    stage: str, config: PPOConfig, out: str | Path, reward: Reward | None, resume: bool, report: Progress
) -> Run:
    device = machine.pick_device(config.device)
    machine.seed_everything(config.seed)
    bundle = open_to_tune(config.model, config.template, verb=stage)
    policy = bundle.model.to(device)
    rewards = _rewards(config, reward, stage, device)
    gold = None if config.gold is None else reward_from(config.gold, device=device)
    asked = read_prompts(config, bundle, report)
    trained = adapt(policy, config.adapter, config.loop, device)
    model = ActorCritic(policy) if config.baseline == "value" else policy
    with Run.create(out, stage=stage, recipe={stage: config}, parent=config.model, resume=resume) as run:
        run.note(
            data=fingerprint_sources(config.data),
            seed=config.seed,
            prompts=len(asked),
            parameters=policy.config.parameters(),
            trained_parameters=trained,
        )
        rollouts = Rollouts(
            bundle,
            model,
            asked,
            rewards,
            config,
            reference=partial(_reference, bundle),
            tokens=tokens_at_once(config.loop, policy.config.vocab_size),
            seed=config.seed,
            gold=gold,
            autocast=partial(autocast, device, config.loop),
            note=partial(_write_samples, run.path / "samples"),
        )
        fit(
            model,
            rollouts,
            rollouts.loss,
            config.loop,
            run=run,
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=report,
        )
    return run


def _rewards(config: PPOConfig, reward: Reward | None, stage: str, device: torch.device) -> Reward:
    """Return the reward that was given, or open those that are named."""
    if reward is not None:
        return reward
    if not config.reward:
        raise ConfigError(
            "There is no reward.", f"Name one: stockpot {stage} MODEL --reward RUN|FILE.py:FUNCTION."
        )
    weights = config.reward_weights or (1.0,) * len(config.reward)
    if len(weights) != len(config.reward):
        raise ConfigError(
            f"There are {len(config.reward)} rewards and {len(weights)} reward_weights.",
            "Give one weight a reward.",
        )
    return weighted([reward_from(one, device=device) for one in config.reward], weights)


@contextmanager
def _reference(bundle: Bundle) -> Iterator[Transformer]:
    """Open the model the policy started as: without its adapter, or read once more."""
    if has_adapters(bundle.model):
        with without_adapters(bundle.model):
            yield bundle.model
        return
    assert bundle.source is not None
    yield load_model(bundle.source, device=bundle.model.device, dtype="float32")


def read_prompts(config: PPOConfig, bundle: Bundle, report: Progress) -> list[Asked]:
    """Read prompts; those that leave no room for ``max_tokens`` within the context are left out and counted.

    Raises:
        DataError: if none is left.
    """
    found: list[Asked] = []
    overlong = 0
    for record in read_records(config.data):
        prompt, text, answer = _asked(record)
        ids = bundle.encode(prompt)
        if len(ids) + config.max_tokens > bundle.context:
            overlong += 1
            continue
        found.append(Asked(tuple(ids), text, answer))
    if overlong:
        text = f"{overlong:,} prompts leave no room for {config.max_tokens} tokens and are left out"
        report({"kind": "note", "text": text})
    if not found:
        raise DataError(
            f"No prompt leaves room for {config.max_tokens} tokens in a context of {bundle.context}.",
            "Give shorter prompts or a smaller max_tokens.",
        )
    report({"kind": "note", "text": f"{len(found):,} prompts"})
    return found


def _asked(record: Record) -> tuple[list[Message], str, str | None]:
    """Give the messages to answer, what was asked as text, and the known answer."""
    messages: tuple[Message, ...]
    answer: str | None
    match record:
        case TextRecord():
            messages, answer = as_messages(record.text), None
        case CompletionRecord():
            messages, answer = as_messages(record.prompt), record.completion
        case PreferenceRecord():
            messages, answer = as_messages(record.prompt), None
        case ChatRecord():
            last = record.messages[-1]
            is_answered = last.role == "assistant" and len(record.messages) > 1
            messages = record.messages[:-1] if is_answered else record.messages
            answer = last.content if is_answered else None
        case _:
            raise DataError(f"{record.where}: a {record.kind} record is no prompt.", "Give prompts.")
    return list(messages), messages[-1].content, answer


def _write_samples(folder: Path, phase: int, replies: Sequence[Reply], ratings: Sequence[float]) -> None:
    """Keep a phase's answers for people to read."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {"prompt": one.prompt, "reply": one.text, "reward": value, "tokens": one.tokens}
        for one, value in zip(replies, ratings, strict=True)
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / f"phase-{phase:05d}.jsonl", text)
