"""The main job: from a corpus to a model that answers, with a report of what each step added.

Runs tokenizer, pretraining, the ladder of prompting, instruction tuning, evaluation, and the three stages that learn from
comparisons, one after another in one folder. What is there and unchanged is kept; see `kitchen`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from stockpot import durable
from stockpot.config import Settings, read_recipe, to_toml
from stockpot.data.sources import fingerprint_sources
from stockpot.errors import ConfigError
from stockpot.judge.harness import Report, evaluate
from stockpot.judge.look import look
from stockpot.judge.metrics import paired_difference
from stockpot.judge.probe import ProbeConfig, probe
from stockpot.origin import as_typed
from stockpot.run import Run
from stockpot.stages.align import ALIGN_SHARE, VALIDATIONS, ContestConfig, align
from stockpot.stages.assemble import Progress, silent
from stockpot.stages.contest import Contest
from stockpot.stages.dpo import DPOConfig
from stockpot.stages.kitchen import Kitchen, discard
from stockpot.stages.ladder import LadderConfig, ladder
from stockpot.stages.ledger import LedgerConfig, ledger
from stockpot.stages.ppo import PPOConfig
from stockpot.stages.pretrain import PretrainConfig, plan_pretraining, pretrain
from stockpot.stages.rank import RankConfig
from stockpot.stages.reward import RewardConfig
from stockpot.stages.sft import SFTConfig, sft
from stockpot.stages.summary import summarise
from stockpot.stages.tokenizer import TokenizerConfig, train_tokenizer
from stockpot.weights.store import load

__all__ = ["CookConfig", "EvaluateConfig", "cook"]

# Shares of the minutes; those of the later stages stand in align; what is left is for reading data, ranking, judging, the
# ledger and the report.
PRETRAIN_SHARE, SFT_SHARE = 0.58, 0.12
PROBED, PROBED_PASSAGES = ("pos", "entities", "coreference"), 150
OFFERED = "offered"  # the file that names the stage whose model the cook offers to chat with
LATE = 1.25  # of the minutes given: from here on it is told
FULL_MINUTES = 10.0  # from here on, as many questions are asked as the settings say


class EvaluateConfig(Settings):
    """What is asked of each model."""

    tasks: tuple[str, ...] = Field(("village",), description="village, village/KIND or JSON-lines files")
    limit: int = Field(50, ge=1, description="questions per task")


class CookConfig(Settings):
    """All stages of the main job."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    ladder: LadderConfig | None = Field(
        None,
        description="every kind of prompting on the base model, the same items each time; none: left out",
    )
    sft: SFTConfig = Field(default_factory=SFTConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    align: bool = Field(True, description="learn from comparisons, too: reward model, DPO, PPO")
    rank: RankConfig | None = Field(
        None, description="compare the tuned model's own answers; none: reward and dpo read what they name"
    )
    reward: RewardConfig = Field(default_factory=RewardConfig)
    dpo: DPOConfig = Field(default_factory=DPOConfig)
    ppo: PPOConfig = Field(default_factory=PPOConfig)
    contest: ContestConfig = Field(default_factory=ContestConfig)
    ledger: LedgerConfig | None = Field(
        None, description="what each ingredient added, line by line; none: no ledger is kept"
    )
    seed: int = Field(0, ge=0, description="of every stage")

    def share(self, part: float) -> float:
        """Turn a stage's share of a whole cook's minutes into its share of these settings' minutes."""
        return part if self.align else part / (1 - ALIGN_SHARE)


def cook(
    config: CookConfig | None = None,
    *,
    out: str | Path,
    minutes: float | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Do the main job in ``out`` and write ``report.html`` and ``report.json`` there.

    Args:
        config: settings of all stages.
        out: the folder; what is there and unchanged is kept.
        minutes: choose the model's size and the steps of all trainings so that all of it takes about this long.
        resume: accepted for symmetry with the other makers; a cook always goes on where it can.
        progress: receives events.

    Returns:
        The run of the model that it offers to chat with.

    Raises:
        ConfigError: if the minutes are no length of time.
    """
    del resume
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"{minutes:g} minutes are no length of time.", "Give a positive number.")
    asked = config or CookConfig()
    config = _asking_less(asked, minutes)
    kitchen = Kitchen.open(Path(out), progress or silent)
    budget = "" if minutes is None else f" --minutes {minutes:g}"
    again = f"{as_typed('stockpot', 'cook', '--recipe', kitchen.folder / 'recipe.toml')}{budget} --out NEW"
    comment = f"The settings of this cook. To repeat it:\n{again}"
    durable.write_atomically(kitchen.folder / "recipe.toml", to_toml(asked, comment=comment))
    kitchen.leave_out(
        [name for name in ("ladder", "rank", "ledger") if getattr(config, name) is None]
        + ([] if config.align else ["rank", "reward", "dpo", "ppo", "contest"])
    )
    tokenizer = kitchen.stage(
        "tokenizer",
        [config.tokenizer.model_dump(), fingerprint_sources(config.tokenizer.data)],
        lambda path: discard(train_tokenizer(config.tokenizer, out=path)),
    )
    base, base_config = _pretrain(kitchen, config, tokenizer, minutes)
    if config.ladder is not None:
        _climb(kitchen, config.ladder, base)
    tuned = _tune(kitchen, config, base, base_config, minutes)
    models = {"base": base, "tuned": tuned}
    judged: Contest | None = None
    if config.align:
        settings = (config.reward, config.dpo, config.ppo, config.contest)
        runs, judged = align(kitchen, tuned, settings, ranking=config.rank, minutes=minutes, seed=config.seed)
        models |= {"dpo": runs["dpo"], "ppo": runs["ppo"]}
    reports = _judge(kitchen, config, models)
    if config.ledger is not None:
        _keep_ledger(kitchen, config.ledger, models)
    _write_settled(kitchen.folder, config)
    kitchen.report({"kind": "stage", "name": "report"})
    summarise(kitchen.folder, kitchen.state, reports, judged, seed=config.seed)
    offered = models[_liked_best(judged, reports)]
    durable.write_atomically(kitchen.folder / OFFERED, f"{offered.name}\n")
    if minutes is not None and (taken := kitchen.seconds / 60) > LATE * minutes:
        text = (
            f"all stages took {taken:.1f} minutes where {minutes:g} were given: reading, judging and the report take what they "
            "take, and a machine that does other work takes longer"
        )
        kitchen.report({"kind": "note", "text": text})
    return Run.open(offered)


def _write_settled(folder: Path, config: CookConfig) -> None:
    """Write ``settled.toml``: sizes and steps as they were chosen, so that a second cook gives the same numbers.

    What minutes buy depends on what else the machine does; what they bought once does not.
    """
    stages: dict[str, Any] = {}
    for name in ("pretrain", "sft", "reward", "dpo", "ppo"):
        file, asked = folder / name / "recipe.toml", getattr(config, name)
        if not file.is_file():
            continue
        kept = {key for key in ("model", "tokenizer", "reward", "seed") if key in type(asked).model_fields}
        if name in ("reward", "dpo") and config.rank is not None:
            kept.add("data")  # the comparisons that the cook makes itself
        if name == "pretrain":
            kept.discard("model")  # its sizes
        chosen = type(asked).model_validate(read_recipe(file)[name])
        if name == "reward" and chosen.data == asked.data:  # its own answers were too few to learn from
            stages["rank"] = None
        stages[name] = chosen.model_copy(update={key: getattr(asked, key) for key in kept})
    again = f"{as_typed('stockpot', 'cook', '--recipe', folder / 'settled.toml')} --out NEW"
    comment = f"The sizes and steps that this cook chose. For the same numbers on the same machine:\n{again}"
    durable.write_atomically(
        folder / "settled.toml", to_toml(config.model_copy(update=stages), comment=comment)
    )


def _liked_best(judged: Contest | None, reports: Mapping[str, Report]) -> str:
    """Name the model to talk to: the aligned one that wins most of those that clearly win and answer no less, or the tuned one.

    Answers less: finds the right one of given answers less often, which does not depend on the form its own answers take.
    """
    if judged is None:
        return "tuned"
    judge = next(iter(judged.entries[0].ratings))
    wins = {one.model: judged.win_rate(one, judge) for one in judged.entries[1:]}
    able = [name for name in wins if wins[name].above_chance and not _lost(reports["tuned"], reports[name])]
    return max(able, key=lambda name: wins[name].value, default="tuned")


def _lost(before: Report, after: Report) -> bool:
    """Tell whether a model clearly picks the right answer less often than another one did, over all questions together."""
    first, second = (
        [
            one.scores["choice"]
            for answers in report.answers.values()
            for one in answers
            if "choice" in one.scores
        ]
        for report in (before, after)
    )
    return bool(first) and paired_difference(first, second).high < 0


def _asking_less(config: CookConfig, minutes: float | None) -> CookConfig:
    """Ask fewer questions where minutes are few, so that judging and ranking keep their share of them."""
    share = 1.0 if minutes is None else min(1.0, minutes / FULL_MINUTES)
    asking = {
        "evaluate": config.evaluate,
        "contest": config.contest,
        "rank": config.rank,
        "ledger": config.ledger,
    }
    few: dict[str, Settings] = {
        name: one.model_copy(update={"limit": min(one.limit, max(10, round(one.limit * share)))})
        for name, one in asking.items()
        if one is not None
    }
    if config.ladder is not None:
        questions = config.ladder.questions
        limit = min(questions.limit, max(10, round(questions.limit * share)))
        fewer = questions.model_copy(update={"limit": limit})
        few["ladder"] = config.ladder.model_copy(update={"questions": fewer})
    return config.model_copy(update=few)


def _pretrain(
    kitchen: Kitchen, config: CookConfig, tokenizer: Path, minutes: float | None
) -> tuple[Path, PretrainConfig]:
    asked = config.pretrain.model_copy(update={"tokenizer": str(tokenizer), "seed": config.seed})
    if minutes is not None:
        asked = asked.model_copy(update={"minutes": minutes * config.share(PRETRAIN_SHARE)})

    def resolve() -> dict[str, Any]:
        return plan_pretraining(asked)[0].model_dump(mode="json")

    inputs = [asked.model_dump(mode="json"), kitchen.state["tokenizer"]["key"]]
    settled = (
        asked
        if asked.minutes is None
        else PretrainConfig(**kitchen.remember("pretrain-plan", inputs, resolve))
    )

    return kitchen.train("pretrain", pretrain, settled, inputs), settled


def _climb(kitchen: Kitchen, config: LadderConfig, base: Path) -> None:
    """Ask the base model in every way; what an interrupted climb has left is asked again."""
    kitchen.stage(
        "ladder",
        [config.model_dump(mode="json"), kitchen.made("pretrain")],
        lambda path: discard(ladder(base, config, out=path, progress=kitchen.report)),
    )


def _tune(
    kitchen: Kitchen, config: CookConfig, base: Path, base_config: PretrainConfig, minutes: float | None
) -> Path:
    settled = config.sft.model_copy(update={"model": str(base), "seed": config.seed})
    if minutes is not None:
        spent, steps = kitchen.state["pretrain"]["seconds"], base_config.loop.steps
        tokens = minutes * 60 * config.share(SFT_SHARE) * steps * base_config.loop.batch_tokens / spent
        steps = max(1, int(tokens / settled.loop.batch_tokens))
        every = math.ceil(steps / VALIDATIONS)
        loop = {"steps": steps, "validate_every": every, "checkpoint_every": every}
        own = {
            "loop": settled.loop.model_copy(update=loop),
            "val_tokens": min(settled.val_tokens, int(tokens / 10) + 1),
        }
        settled = settled.model_copy(update=own)

    return kitchen.train("sft", sft, settled, kitchen.state["pretrain"]["key"])


def _keep_ledger(kitchen: Kitchen, config: LedgerConfig, models: dict[str, Path]) -> None:
    """Ask the same questions with one ingredient more each time; probe the base model's layers, too."""

    def work(path: Path) -> None:
        ledger(kitchen.folder, config, out=path, progress=kitchen.report)
        settings = ProbeConfig(seeds=1, epochs=3)
        probe(load(models["base"]), "village", tasks=PROBED, limit=PROBED_PASSAGES, config=settings).save(
            path
        )

    made = [kitchen.made(path.name) for path in models.values()]
    kitchen.stage("ledger", [config.model_dump(mode="json"), made], work, takes_up=True)


def _judge(kitchen: Kitchen, config: CookConfig, models: dict[str, Path]) -> dict[str, Report]:
    """Ask all models the same questions."""
    reports: dict[str, Report] = {}

    def work(path: Path) -> None:
        limit, tasks = config.evaluate.limit, config.evaluate.tasks
        for name, model in models.items():
            kitchen.report({"kind": "note", "text": f"asking {name}"})
            reports[name] = evaluate(model, tasks, limit=limit, progress=kitchen.report)
            reports[name].save(path / name)
        text = next(iter(reports["base"].answers.values()))[0].item.question
        durable.write_atomically(path / "look.html", look(load(models["base"]), text))

    made = [kitchen.made(path.name) for path in models.values()]
    path = kitchen.stage("evaluate", [config.evaluate.model_dump(), made], work)
    return {name: reports.get(name) or Report.load(path / name / "report.json") for name in models}
