"""Train a reward model: one number for an answer, higher for what people preferred.

The result is a model folder like any other, with a value head instead of an output matrix; transformers opens it as a
classifier of one class. How good it is stands beside it: accuracy on held-out comparisons with an interval, and whether its
certainty can be believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from stockpot.bundle import Bundle
from stockpot.data.pairs import FixedPairs, PairLoader, Pairs
from stockpot.durable import write_atomically
from stockpot.judge.metrics import proportion
from stockpot.model.transformer import Transformer
from stockpot.run import Run
from stockpot.stages.assemble import (
    Progress,
    adapt,
    begin_tuning,
    checkpoint_writer,
    heard,
    mean_metrics,
    note_tuning,
    shared_run,
    together,
    tokens_at_once,
    with_steps,
)
from stockpot.stages.comparisons import ComparisonConfig, autocast, read_comparisons
from stockpot.train.loop import fit
from stockpot.train.parallel import Group
from stockpot.train.preference import answer_rewards, reward_loss
from stockpot.weights.store import load_model

__all__ = ["RewardConfig", "reward"]

BINS = 5


class RewardConfig(ComparisonConfig):
    """How a reward model is trained."""

    margin_weight: float = Field(
        0.0,
        ge=0,
        description="how much of a comparison's margin the difference of rewards must exceed; 0: none",
    )
    centre_weight: float = Field(
        0.01, ge=0, description="keeps the mean reward at zero; 0: it may be anywhere"
    )


def reward(
    config: RewardConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> Run:
    """Train on comparisons and leave a run folder whose ``model`` rates answers.

    ``evals/comparisons.json`` in it holds accuracy and calibration on held-out comparisons.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    bundle, device = begin_tuning(config, verb="reward")
    return together(
        device, config.loop, out, partial(_reward, config, bundle, device, Path(out), resume, progress)
    )


def _reward(
    config: RewardConfig,
    bundle: Bundle,
    device: torch.device,
    out: Path,
    resume: bool,
    progress: Progress | None,
    group: Group,
) -> Run:
    report, place = heard(group, progress), config.loop.parallel.reading(group.place)
    found = read_comparisons(config, bundle, report)
    config = config.model_copy(
        update={"loop": with_steps(config.loop, config.passes, found.train.tokens), "passes": None}
    )
    judge = _with_head(bundle)
    model = judge.model
    trained = adapt(model, config.adapter, config.loop, device)
    if model.value_head is not None and config.adapter is not None:
        trained += sum(p.numel() for p in model.value_head.requires_grad_(True).parameters())
    tokens = tokens_at_once(config.loop, model.config, device, config.adapter, weighs=False)
    loss_fn = partial(reward_loss, margin_weight=config.margin_weight, centre_weight=config.centre_weight)
    how = {"stage": "reward", "recipe": {"reward": config}, "parent": config.model, "resume": resume}
    with shared_run(group, out, **how) as run:
        note_tuning(
            group,
            run,
            config,
            model,
            trained,
            tokens={"train": found.train.tokens, "validation": found.held_out.tokens},
            comparisons=found.counts,
        )
        fit(
            model,
            PairLoader(found.train, tokens=tokens, seed=config.seed, rank=place.rank, world=place.world),
            loss_fn,
            config.loop,
            run=run,
            validate=mean_metrics(FixedPairs(found.held_out, tokens=tokens), loss_fn),
            save=checkpoint_writer(judge, merged=True),
            resume=resume,
            progress=report,
        )
        if not group.is_first:
            return run
        best = load_model(run.model_path, device=device, dtype="float32")
        with autocast(device, config.loop):
            figures = judged(_gaps(best, found.held_out, tokens))
        run.note(accuracy=figures["accuracy"], calibration_error=figures["calibration_error"])
        (run.path / "evals").mkdir(exist_ok=True)
        write_atomically(run.path / "evals" / "comparisons.json", json.dumps(figures, indent=1))
        report({"kind": "note", "text": figures["text"]})
    return run


def _with_head(bundle: Bundle) -> Bundle:
    """Put a value head on a model's body, in place of its output matrix."""
    config = bundle.model.config.model_copy(
        update={"value_head": True, "predicts": False, "tied": True, "logit_bias": False}
    )
    model = Transformer(config)
    body = {name: value for name, value in bundle.model.state_dict().items() if name in model.state_dict()}
    missing = model.load_state_dict(body, strict=False).missing_keys
    assert missing == ["value_head.out.weight"], missing
    return replace(bundle, model=model)


@torch.inference_mode()
def _gaps(model: Transformer, pairs: Pairs, tokens: int) -> list[float]:
    """Give r(chosen) − r(rejected) for every comparison that is no tie."""
    found: list[float] = []
    for batch in FixedPairs(pairs, tokens=tokens):
        rewards = answer_rewards(model, batch.texts.to(model.device)).cpu()
        gaps = rewards[0::2] - rewards[1::2]
        found += gaps[batch.chance != 0.5].tolist()
    return found


def judged(gaps: Sequence[float]) -> dict[str, Any]:
    """Say how often the better answer has the higher reward, and whether the model's certainty can be believed.

    The rewards imply that the better answer wins with probability σ(difference). Comparisons are sorted by how certain
    that is and cut into equal parts; in each, the mean certainty is held against the share that was right.

    Source of the calibration error: Guo et al. 2017, arXiv:1706.04599, eq. 3, with parts of equal size.
    """
    if not gaps:
        return {
            "accuracy": None,
            "calibration_error": None,
            "parts": [],
            "text": "no held-out comparison is clear",
        }
    accuracy = proportion(sum(gap > 0 for gap in gaps), len(gaps), chance=0.5)
    says_right = [(1 / (1 + math.exp(-abs(gap))), gap > 0) for gap in gaps]
    certain = sorted(says_right, key=lambda pair: pair[0])  # by certainty alone
    parts, error = [], 0.0
    count = min(BINS, len(certain))
    for number in range(count):
        part = certain[len(certain) * number // count : len(certain) * (number + 1) // count]
        says = sum(one for one, _ in part) / len(part)
        right = sum(good for _, good in part) / len(part)
        error += len(part) / len(certain) * abs(says - right)
        parts.append({"n": len(part), "certainty": says, "right": right})
    text = f"held-out comparisons told apart: {accuracy}; its certainty is off by {error:.2f} on average"
    return {"accuracy": asdict(accuracy), "calibration_error": error, "parts": parts, "text": text}
