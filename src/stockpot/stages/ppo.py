"""Learning from rewards: PPO with a value head, and GRPO and RLOO, which compare the answers to one prompt instead.

All three are one loop over rollouts. What the reward wants and what is wanted need not be the same: reward, distance from
the reference, length and, where it is known, the true worth of the answers stand side by side in the metrics, and
every phase leaves its answers in ``samples/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.durable import write_json_lines
from stockpot.errors import ConfigError
from stockpot.model.adapters import LoRA
from stockpot.run import Run
from stockpot.stages.assemble import (
    GentleLoop,
    Progress,
    adapt,
    as_settings,
    as_sources,
    begin_tuning,
    checkpoint_writer,
    heard,
    note_tuning,
    shared_run,
    together,
    tokens_at_once,
)
from stockpot.stages.comparisons import autocast
from stockpot.stages.drift import Drift, DriftConfig, open_reference
from stockpot.stages.prompts import read_prompts
from stockpot.stages.rewards import reward_from, weighted
from stockpot.train.loop import fit
from stockpot.train.parallel import Group
from stockpot.train.policy import ActorCritic, Baseline
from stockpot.train.rollouts import Asked, Reply, Reward, RolloutConfig, Rollouts
from stockpot.train.rollouts_vllm import VllmWriter

__all__ = ["GRPOConfig", "PPOConfig", "grpo", "ppo"]


ALL_ALIKE = (
    "{count} answers were drawn, and no two to a prompt are rated differently (mean {mean:.3g}): from such ratings nothing "
    "is learned. Read them in {folder}; a reward must tell better answers from worse ones that the model does give."
)


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


class PPOConfig(RolloutConfig, DriftConfig):
    """How a model learns from rewards."""

    model: str | None = Field(
        None, description="the policy to start from: a run, a checkpoint or a model folder"
    )
    reward: tuple[str, ...] = Field(
        (),
        description="what rates answers: a reward model, exact, village, or FILE.py:FUNCTION; several are added",
    )
    reward_weights: tuple[float, ...] | None = Field(None, description="one for each reward; none: 1")
    drift_prompts: int = Field(
        0, ge=0, description="at each validation, draw answers to this many prompts; 0: none"
    )
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
    _loop = field_validator("loop", mode="before")(as_settings)


class GRPOConfig(PPOConfig):
    """How a model learns from comparing its own answers to one prompt."""

    baseline: Baseline = Field(
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
    return _learn("ppo", config, out, reward, resume, progress)


def grpo(
    config: GRPOConfig,
    *,
    out: str | Path,
    reward: Reward | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Learn from comparing answers to the same prompt; arguments and errors as for `ppo`."""
    return _learn("grpo", config, out, reward, resume, progress)


def _learn(
    stage: str,
    config: PPOConfig,
    out: str | Path,
    reward: Reward | None,
    resume: bool,
    progress: Progress | None,
) -> Run:
    if config.engine == "vllm" and machine.this_world().world > 1:
        raise ConfigError(
            "engine = 'vllm' writes in one process, and torchrun started several.",
            "Leave engine out, or start one process.",
        )
    bundle, device = begin_tuning(config, verb=stage)
    rewards = _rewards(config, reward, stage, device)
    how = {"stage": stage, "recipe": {stage: config}, "parent": config.model, "resume": resume}
    return together(
        device, config.loop, out, partial(_act, config, bundle, device, Path(out), how, progress, rewards)
    )


def _act(
    config: PPOConfig,
    bundle: Bundle,
    device: torch.device,
    out: Path,
    how: dict[str, Any],
    progress: Progress | None,
    rewards: Reward,
    group: Group,
) -> Run:
    report, resume = heard(group, progress), bool(how["resume"])
    policy = bundle.model
    gold = None if config.gold is None else reward_from(config.gold, device=device)
    asked = read_prompts(config.data, bundle, config.max_tokens, report)
    watched = _watched(config, bundle, asked, report)
    trained = adapt(policy, config.adapter, config.loop, device)
    dtype = machine.pick_dtype(device, config.loop.dtype)
    writer = VllmWriter(bundle, config.vllm, dtype) if config.engine == "vllm" else None
    model = ActorCritic(policy) if config.baseline == "value" else policy
    with shared_run(group, out, **how) as run:
        note_tuning(group, run, config, policy, trained, prompts=len(asked))
        rollouts = Rollouts(
            bundle,
            model,
            asked,
            rewards,
            config,
            reference=partial(open_reference, bundle),
            tokens=tokens_at_once(config.loop, policy.config, device, config.adapter),
            seed=config.seed,
            gold=gold,
            autocast=partial(autocast, device, config.loop),
            note=partial(_note_phase, run.path / "samples", config.samples, report),
            writer=writer,
            group=group,
            reads=config.loop.parallel.reading(group.place),
        )
        fit(
            model,
            rollouts,
            rollouts.loss,
            config.loop,
            run=run,
            validate=_validation(config, bundle, watched, rewards, gold, run, resume, group),
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=report,
        )
    return run


def _validation(
    config: PPOConfig,
    bundle: Bundle,
    watched: list[Asked],
    reward: Reward,
    gold: Reward | None,
    run: Run,
    resume: bool,
    group: Group,
) -> Callable[[nn.Module], dict[str, float]] | None:
    """Return what answers the watched prompts and has the answers rated; None: nothing is watched."""
    if not watched:
        return None
    drift = Drift(
        bundle,
        watched,
        partial(open_reference, bundle),
        max_tokens=config.max_tokens,
        seed=config.seed,
        ratings={"reward": reward} | ({} if gold is None else {"gold": gold}),
        folder=run.path / "samples" / "validation" if group.is_first else None,
        measured=len(run.series("val/kl")) if resume else 0,
    )
    return lambda _: drift.measure()


def _watched(config: PPOConfig, bundle: Bundle, asked: list[Asked], report: Progress) -> list[Asked]:
    """Give the prompts that are answered at each validation."""
    if not config.drift_prompts or config.drift_data is None:
        return asked[: config.drift_prompts]
    return read_prompts(config.drift_data, bundle, config.max_tokens, report, limit=config.drift_prompts)


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


def _note_phase(
    folder: Path,
    samples: int,
    report: Progress,
    phase: int,
    replies: Sequence[Reply],
    ratings: Sequence[float],
) -> None:
    """Keep a phase's answers for people to read; say so where the first one's ratings tell no answer from another."""
    folder.mkdir(parents=True, exist_ok=True)
    size = samples if samples > 1 else len(ratings)
    if phase == 0 and all(len(set(ratings[i : i + size])) == 1 for i in range(0, len(ratings), size)):
        text = ALL_ALIKE.format(count=len(ratings), mean=sum(ratings) / len(ratings), folder=folder)
        report({"kind": "note", "text": text})
    rows = (
        {"prompt": one.prompt, "reply": one.text, "reward": value, "tokens": one.tokens}
        for one, value in zip(replies, ratings, strict=True)
    )
    write_json_lines(folder / f"phase-{phase:05d}.jsonl", rows)
