"""Direct preference optimisation: learn from comparisons without a reward model and without drawing answers.

The reference's log-probabilities are computed once, before the first step, and ride in the batches; so the reference need
not be in memory while training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn

from stockpot.bundle import Bundle
from stockpot.data.pairs import FixedPairs, PairLoader, Pairs
from stockpot.errors import ConfigError
from stockpot.judge.metrics import Estimate, proportion
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
from stockpot.stages.comparisons import ComparisonConfig, read_comparisons, with_reference
from stockpot.stages.drift import Drift, DriftConfig, open_reference
from stockpot.stages.prompts import read_prompts
from stockpot.stages.rewards import reward_from
from stockpot.train.loop import fit
from stockpot.train.parallel import Group
from stockpot.train.preference import PreferenceConfig, preference_loss
from stockpot.train.rollouts import Asked
from stockpot.weights.store import load, load_model

__all__ = ["DPOConfig", "dpo"]

BOTH_FALL = (
    "both answers have become less probable than at the start (chosen {chosen:+.1f}, rejected {rejected:+.1f} nats). "
    "The loss asks for their difference only, so what both lose goes to answers that nobody compared. That is usual in small "
    "amounts; if the model's own answers get worse, raise beta or lower loop.lr."
)


class DPOConfig(ComparisonConfig, PreferenceConfig, DriftConfig):
    """How a model learns from comparisons directly."""

    reference: str | None = Field(
        None, description="the model to stay near; none: what the training starts from"
    )
    max_tokens: int = Field(64, ge=1, description="longest of the answers drawn at validation")


def dpo(config: DPOConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None) -> Run:
    """Learn from comparisons and leave a run folder whose ``model`` prefers what people preferred.

    Raises:
        ConfigError, DataError, CheckpointError: before any work, if something does not fit.
        TrainError: if training cannot go on.
    """
    bundle, device = begin_tuning(config, verb="dpo")
    _check_reference(config, bundle)
    return together(
        device, config.loop, out, partial(_dpo, config, bundle, device, Path(out), resume, progress)
    )


def _dpo(
    config: DPOConfig,
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
    model = bundle.model
    trained = adapt(model, config.adapter, config.loop, device)  # which changes nothing but a rounded base
    tokens = tokens_at_once(config.loop, model.config, device, config.adapter)
    loss_fn = partial(preference_loss, config=config)
    asked = _asked(config, bundle, found.held_out, report)
    how = {"stage": "dpo", "recipe": {"dpo": config}, "parent": config.model, "resume": resume}
    with shared_run(group, out, **how) as run:
        sides = (found.train, found.held_out)
        opened = _reference_opener(config, model)
        if config.needs_reference:
            sides = with_reference(sides, opened, run, group, loop=config.loop, tokens=tokens)
        note_tuning(
            group,
            run,
            config,
            model,
            trained,
            tokens={"train": sides[0].tokens, "validation": sides[1].tokens},
            comparisons=found.counts,
        )
        drift = Drift(
            bundle,
            asked,
            partial(open_reference, bundle, config.reference),
            max_tokens=config.max_tokens,
            seed=config.seed,
            ratings={} if config.gold is None else {"gold": reward_from(config.gold, device=device)},
            folder=run.path / "samples" if group.is_first else None,
            measured=len(run.series("val/kl")) if resume else 0,
        )
        validate = _validation(mean_metrics(FixedPairs(sides[1], tokens=tokens), loss_fn), drift, report)
        fit(
            model,
            PairLoader(sides[0], tokens=tokens, seed=config.seed, rank=place.rank, world=place.world),
            loss_fn,
            config.loop,
            run=run,
            validate=validate,
            save=checkpoint_writer(bundle),
            resume=resume,
            progress=report,
        )
        accuracy = _accuracy(run, sides[1]) if group.is_first else None
        if accuracy is not None:
            run.note(accuracy=asdict(accuracy))
            report({"kind": "note", "text": f"held-out comparisons told apart: {accuracy}"})
    return run


def _check_reference(config: DPOConfig, bundle: Bundle) -> None:
    """Refuse a reference that reads other ids."""
    if config.reference is None:
        return
    if not config.needs_reference:
        raise ConfigError(f"{config.objective} has no reference.", "Leave out the reference.")
    other = load(config.reference, device="cpu").tokenizer
    if other.fingerprint != bundle.tokenizer.fingerprint:
        raise ConfigError(
            f"{config.reference} has another tokenizer than {config.model}: their probabilities cannot be compared.",
            "Give a reference with the same tokenizer, or leave it out.",
        )


def _reference_opener(config: DPOConfig, model: Transformer) -> Callable[[], Transformer]:
    """Return what opens the reference before training: the model itself, or the one that was named."""
    if config.reference is None:
        return lambda: model
    return partial(load_model, config.reference, device=model.device, dtype="float32")


def _asked(config: DPOConfig, bundle: Bundle, held_out: Pairs, report: Progress) -> list[Asked]:
    """Give the prompts to draw answers to: those that are named, or some different ones that were held out."""
    if not config.drift_prompts:
        return []
    if config.drift_data is not None:
        return read_prompts(config.drift_data, bundle, config.max_tokens, report, limit=config.drift_prompts)
    if config.gold is not None:
        raise ConfigError(
            f"{config.gold} rates answers to prompts, and none are named.",
            "Name them with drift_data, such as village:prompts/val.",
        )
    found: dict[str, Asked] = {}
    for tree, prompt in zip(held_out.trees, held_out.prompts, strict=True):
        if len(found) < config.drift_prompts and prompt not in found:
            ids = np.concatenate((tree.trunk, tree.answers[0].ids[:1])).tolist()
            found[prompt] = Asked(tuple(ids), bundle.tokenizer.decode(ids))
    return list(found.values())


def _validation(
    metrics: Callable[[nn.Module], dict[str, float]], drift: Drift, report: Progress
) -> Callable[[nn.Module], dict[str, float]]:
    """Join the metrics of held-out comparisons with those of drawn answers, and say so when both sides fall."""
    told = False

    def validate(model: nn.Module) -> dict[str, float]:
        nonlocal told
        found = metrics(model)
        chosen, rejected = found.get("chosen_shift", 0.0), found.get("rejected_shift", 0.0)
        if chosen < 0 and rejected < 0 and not told:
            told = True
            report({"kind": "note", "text": BOTH_FALL.format(chosen=chosen, rejected=rejected)})
        return found | drift.measure()

    return validate


def _accuracy(run: Run, pairs: Pairs) -> Estimate | None:
    """Put an interval around the accuracy on held-out comparisons of the model that the run stands for."""
    clear = int((pairs.chance != 0.5).sum())
    value = next((one for step, one in run.series("val/accuracy") if step == run.model_step), None)
    return None if value is None or not clear else proportion(round(value * clear), clear)
