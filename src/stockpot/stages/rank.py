"""Comparisons of a model's own answers: it answers each prompt several times, and a judge ranks what it wrote.

What a model learns from other people's answers says little about its own: an answer it would never give need not be made less
likely. So people who align a model compare what it writes (Ouyang et al. 2022, arXiv:2203.02155, §3). The judge here is anything
that rates: the villagers' exact taste, a reward model, or a function of the user's. It trains nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from stockpot.config import Settings
from stockpot.device import pick_device
from stockpot.durable import write_atomically, write_json_lines
from stockpot.errors import ConfigError, DataError
from stockpot.judge.metrics import Estimate, mean_estimate
from stockpot.stages.assemble import Progress, as_sources, silent
from stockpot.stages.drift import draw
from stockpot.stages.prompts import read_prompts
from stockpot.stages.rewards import reward_from
from stockpot.train.rollouts import Asked, rated
from stockpot.weights.store import load

__all__ = ["FILE", "AllAlike", "RankConfig", "Ranked", "rank"]

FILE = "comparisons.jsonl"


class AllAlike(DataError):
    """No two answers to a prompt are rated differently."""


class RankConfig(Settings):
    """Who answers what, and who ranks the answers."""

    model: str | None = Field(
        None, description="the model that answers: a run, a checkpoint or a model folder"
    )
    data: tuple[str, ...] = Field(("village:prompts",), description="prompts")
    reward: str = Field(
        "village", description="what rates: village · exact · FILE.py:FUNCTION · a reward model"
    )
    samples: int = Field(4, ge=2, description="answers to each prompt")
    limit: int = Field(1_000, ge=1, description="prompts")
    max_tokens: int = Field(64, ge=1, description="longest answer")
    seed: int = Field(0, ge=0, description="of the answers")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")

    _sources = field_validator("data", mode="before")(as_sources)


@dataclass(frozen=True)
class Ranked:
    """What came of it.

    Attributes:
        prompts: how many were answered.
        pairs: comparisons written: the best answer to a prompt beside the worst; equal ratings make none.
        rating: the mean over prompts of their answers' mean rating.
        best: the mean over prompts of the best rating.
        path: the file of comparisons.
    """

    prompts: int
    pairs: int
    rating: Estimate
    best: Estimate
    path: Path

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} comparisons from {self.prompts:,} prompts; an answer is rated {self.rating}, "
            f"the best one of a prompt {self.best}"
        )


def rank(config: RankConfig, *, out: str | Path, progress: Progress | None = None) -> Ranked:
    """Draw answers and rank them; writes ``comparisons.jsonl`` and ``rank.json`` into ``out``.

    Raises:
        ConfigError: if there is no model or no such judge, or ``out`` holds comparisons.
        DataError: if there is no prompt, or no two answers are rated differently.
        TrainError: if the judge gives no rating, showing the answer to blame.
    """
    report, folder = progress or silent, Path(out)
    if config.model is None:
        raise ConfigError("There is no model to answer.", "Name one: stockpot rank MODEL.")
    if (folder / FILE).exists():
        raise ConfigError(f"{folder} holds comparisons already.", "Give another folder.")
    device = pick_device(config.device)
    judge = reward_from(config.reward, device=device)
    bundle = load(config.model, device=device)
    asked = read_prompts(config.data, bundle, config.max_tokens, report, limit=config.limit)
    sides = []
    for n in range(config.samples):
        seed = config.seed + n * len(asked)
        sides.append(draw(bundle, asked, max_tokens=config.max_tokens, seed=seed))
        report({"kind": "step", "step": n + 1, "steps": config.samples})
    ratings = [
        rated(
            judge,
            [
                prompt.reply(one.text, one.tokens, is_finished=one.finish_reason == "stop")
                for prompt, one in zip(asked, side, strict=True)
            ],
        )
        for side in sides
    ]
    answers = [
        [(rating[i], side[i].text) for rating, side in zip(ratings, sides, strict=True)]
        for i in range(len(asked))
    ]
    records = [
        record
        for prompt, own in zip(asked, answers, strict=True)
        if (record := _compared(prompt, own, config.reward)) is not None
    ]
    if not records:
        raise AllAlike(
            f"All answers of {config.model} to a prompt are rated alike.",
            "Train it longer (a cook: more --minutes, or --set align=false), draw more samples, or give other prompts.",
        )
    found = Ranked(
        len(asked),
        len(records),
        mean_estimate([sum(value for value, _ in own) / len(own) for own in answers]),
        mean_estimate([max(own)[0] for own in answers]),
        folder / FILE,
    )
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: value for name, value in asdict(found).items() if name != "path"}
    text = json.dumps({"settings": config.model_dump(mode="json"), **facts}, indent=1)
    write_atomically(folder / "rank.json", text)
    write_json_lines(folder / FILE, records)
    report({"kind": "note", "text": str(found)})
    return found


def _compared(prompt: Asked, answers: Sequence[tuple[float, str]], judge: str) -> Mapping[str, Any] | None:
    """Put the best answer beside the worst, the first of equals; None if all are rated alike."""
    best, worst = max(answers, key=lambda one: one[0]), min(answers, key=lambda one: one[0])
    if best[0] == worst[0]:
        return None
    said = [{"role": one.role, "content": one.content} for one in prompt.messages]
    return {
        "prompt": said or prompt.text,
        "chosen": best[1],
        "rejected": worst[1],
        "margin": round(best[0] - worst[0], 6),
        "annotator": judge,
        "source": "rank",
    }
