"""The part of a cook that learns from comparisons: of the model's own answers, a reward model, DPO, PPO, and the judge of all.

Both roads, DPO and PPO, start from the same model and the same comparisons, and the same judge rates what came of them. Given
minutes, each stage gets its share of them: the first two from the speed of instruction tuning, PPO from a short trial.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field, field_validator

from stockpot import durable
from stockpot.config import Settings
from stockpot.data.sources import fingerprint_sources
from stockpot.device import pick_device
from stockpot.errors import TrainError
from stockpot.run import Run
from stockpot.stages.assemble import as_sources, open_to_tune, silent
from stockpot.stages.comparisons import ComparisonConfig, read_comparisons
from stockpot.stages.contest import Contest, contest
from stockpot.stages.dpo import DPOConfig, dpo
from stockpot.stages.kitchen import Kitchen
from stockpot.stages.ppo import PPOConfig, ppo
from stockpot.stages.rank import FILE, AllAlike, RankConfig, rank
from stockpot.stages.reward import RewardConfig, reward
from stockpot.stages.rewards import reward_from

__all__ = ["ALIGN_SHARE", "VALIDATIONS", "ContestConfig", "align"]

# Shares of a cook's minutes.
REWARD_SHARE, DPO_SHARE, PPO_SHARE = 0.04, 0.07, 0.08
ALIGN_SHARE = REWARD_SHARE + DPO_SHARE + PPO_SHARE
MOST_PASSES = 2.0  # over the comparisons
LEAST_PAIRS = 32  # comparisons that a stage learns from, however few minutes there are
VALIDATIONS = 5
TRIAL_PHASES = 2

C = TypeVar("C", bound=ComparisonConfig)


class ContestConfig(Settings):
    """How the aligned models are judged."""

    data: tuple[str, ...] = Field(("village:prompts/val",), description="prompts that no training has seen")
    gold: str | None = Field(
        "village", description="the judge, in the form of a reward; none: the reward model alone"
    )
    limit: int = Field(200, ge=2, description="prompts")
    max_tokens: int = Field(48, ge=1, description="longest answer")

    _sources = field_validator("data", mode="before")(as_sources)


def align(
    kitchen: Kitchen,
    tuned: Path,
    settings: tuple[RewardConfig, DPOConfig, PPOConfig, ContestConfig],
    *,
    ranking: RankConfig | None,
    minutes: float | None,
    seed: int,
) -> tuple[dict[str, Path], Contest]:
    """Train a reward model, and by DPO and PPO two models that are liked better; judge them.

    Args:
        kitchen: where.
        tuned: the model to start from.
        settings: of the stages.
        ranking: how the model's own answers are compared; None, or minutes so few that its answers do not differ: reward
            model and DPO read what their settings name.
        minutes: of the whole cook; None: the settings hold as they are.
        seed: of every stage.

    Returns:
        the folders of the three runs, and the contest between the model before and those after.
    """
    before = {"model": str(tuned), "seed": seed}
    rating, direct = settings[0].model_copy(update=before), settings[1].model_copy(update=before)
    learning, judging = settings[2].model_copy(update=before), settings[3]
    known = [kitchen.state["sft"]["key"], minutes]
    if ranking is not None:
        own = _rank(kitchen, ranking.model_copy(update=before), known, is_timed=minutes is not None)
        if own is not None:
            compared = {"data": (str(own),)}
            rating, direct = rating.model_copy(update=compared), direct.model_copy(update=compared)
    if minutes is not None:
        rating = _sized(kitchen, "reward", rating, minutes * 60 * REWARD_SHARE, known)
        direct = _sized(kitchen, "dpo", direct, minutes * 60 * DPO_SHARE, known)
    runs = {
        "reward": kitchen.train("reward", reward, rating, known),
        "dpo": kitchen.train("dpo", dpo, direct, known),
    }
    known = [*known, kitchen.state["reward"]["key"]]
    learning = learning.model_copy(update={"reward": learning.reward or (str(runs["reward"]),)})
    if minutes is not None:
        learning = _lasting(kitchen, learning, minutes * 60 * PPO_SHARE, known)
    runs["ppo"] = _reinforced(kitchen, learning, known)
    return runs, _judge(kitchen, tuned, runs, judging, seed)


def _rank(kitchen: Kitchen, config: RankConfig, known: list[Any], *, is_timed: bool) -> Path | None:
    """Have the tuned model's own answers compared; return the file.

    A model that was trained for seconds gives answers that are all worth nothing. Where minutes decided how long (``is_timed``)
    that is not the user's doing: with too few comparisons to learn from, the result is None and the reason is told.
    """

    def work(path: Path) -> None:
        try:
            rank(config, out=path, progress=kitchen.report)
        except AllAlike:
            if not is_timed:
                raise
            path.mkdir(parents=True)

    inputs = [config.model_dump(mode="json"), fingerprint_sources(config.data), known]
    file = kitchen.stage("rank", inputs, work) / FILE
    pairs = len(file.read_bytes().splitlines()) if file.is_file() else 0
    if is_timed and pairs < LEAST_PAIRS:
        text = f"only {pairs} of the model's own answers differ in worth; the comparisons that reward and dpo name are read"
        kitchen.report({"kind": "note", "text": text})
        return None
    return file


def _reinforced(kitchen: Kitchen, config: PPOConfig, known: list[Any]) -> Path:
    """Run PPO; a policy that collapses stands for what it was when it was last saved, and the reason is told.

    Raises:
        TrainError: if it was never saved.
    """
    try:
        return kitchen.train("ppo", ppo, config, known)
    except TrainError as error:
        run = Run.open(kitchen.folder / "ppo")
        if run.latest_checkpoint() is None:
            raise
        kitchen.report(
            {"kind": "note", "text": f"PPO was stopped: {error.what} Its last checkpoint is judged."}
        )
        return run.path


def _sized(kitchen: Kitchen, name: str, config: C, seconds: float, known: list[Any]) -> C:
    """Choose how many comparisons to read and how often to walk them, so that it takes about ``seconds``.

    A token of a comparison costs about what one of instruction tuning did, and a third more for the reference.
    """

    def plan() -> dict[str, Any]:
        bundle = open_to_tune(config.model, config.template, verb=name)
        train = read_comparisons(config, bundle, silent).train
        spent = kitchen.state["sft"]
        run = Run.open(kitchen.folder / "sft")
        budget = seconds * run.last("tokens") / spent["seconds"]
        passes = min(MOST_PASSES, budget / train.tokens - 1 / 3)
        pairs = len(train)
        if passes < 1:
            passes, pairs = 1.0, max(LEAST_PAIRS, int(pairs * budget / (4 / 3 * train.tokens)))
        tokens = train.tokens * pairs / len(train)
        steps = max(1, round(passes * tokens / config.loop.batch_tokens))
        return {"max_pairs": round(pairs / (1 - config.val_share)), "steps": steps}

    found = kitchen.remember(f"{name}-plan", [config.model_dump(mode="json"), seconds, known], plan)
    every = math.ceil(found["steps"] / VALIDATIONS)
    loop = {"steps": found["steps"], "validate_every": every, "checkpoint_every": every}
    return config.model_copy(
        update={
            "max_pairs": found["max_pairs"],
            "passes": None,
            "loop": config.loop.model_copy(update=loop),
        }
    )


def _lasting(kitchen: Kitchen, config: PPOConfig, seconds: float, known: list[Any]) -> PPOConfig:
    """Choose the steps from the time that a few of them take."""
    steps = config.epochs * config.minibatches

    def plan() -> dict[str, Any]:
        ends: list[float] = []

        def listen(event: Mapping[str, Any]) -> None:
            if event["kind"] == "step" and event["step"] % steps == 0:
                ends.append(time.monotonic())

        loop = config.loop.model_copy(update={"steps": TRIAL_PHASES * steps, "log_every": 1})
        short = config.model_copy(update={"loop": loop, "drift_prompts": 0, "stop_kl": None})
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            ppo(short, out=Path(folder) / "trial", progress=listen)
            whole = time.monotonic() - began
        phase = (ends[-1] - ends[0]) / (len(ends) - 1)
        fixed = whole - TRIAL_PHASES * phase  # opening models, reading prompts; the trial itself counts, too
        return {"phases": max(1, int((seconds - whole - fixed) / phase))}

    phases = kitchen.remember("ppo-plan", [config.model_dump(mode="json"), seconds, known], plan)["phases"]
    watched = config.drift_prompts / (config.prompts * config.samples) / 2  # a validation, in phases
    phases = max(1, round(phases - VALIDATIONS * watched))
    every = math.ceil(phases / VALIDATIONS) * steps
    loop = {"steps": phases * steps, "validate_every": every, "checkpoint_every": every}
    return config.model_copy(update={"loop": config.loop.model_copy(update=loop)})


def _judge(
    kitchen: Kitchen, tuned: Path, runs: Mapping[str, Path], config: ContestConfig, seed: int
) -> Contest:
    device = pick_device(None)
    found: list[Contest] = []

    def work(path: Path) -> None:
        judges = {} if config.gold is None else {"gold": reward_from(config.gold, device=device)}
        judges["reward model"] = reward_from(str(runs["reward"]), device=torch.device("cpu"))
        models = {"sft": tuned, "dpo": runs["dpo"], "ppo": runs["ppo"]}
        found.append(
            contest(
                models,
                judges,
                config.data,
                limit=config.limit,
                max_tokens=config.max_tokens,
                seed=seed,
                progress=kitchen.report,
            )
        )
        path.mkdir(parents=True, exist_ok=True)
        durable.write_atomically(path / "contest.json", found[0].to_json())

    models = [kitchen.made(name) for name in ("sft", "reward", "dpo", "ppo")]
    inputs = [config.model_dump(mode="json"), fingerprint_sources(config.data), seed, models]
    path = kitchen.stage("contest", inputs, work)
    return found[0] if found else Contest.from_json((path / "contest.json").read_text(encoding="utf-8"))
