"""The main job: from a corpus to a model that answers, with a report of what each step added.

Runs tokenizer, pretraining, instruction tuning and evaluation one after another in one folder. A stage is skipped when its
settings, its inputs and the code are those of the last time; an interrupted one goes on where it stopped; one whose
settings changed is set aside, not deleted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

import stockpot
from stockpot import durable
from stockpot.config import Settings, to_toml
from stockpot.errors import CheckpointError
from stockpot.judge.harness import Report, compare, evaluate
from stockpot.judge.look import look
from stockpot.run import Run
from stockpot.stages.assemble import Progress, silent
from stockpot.stages.pretrain import PretrainConfig, plan_pretraining, pretrain
from stockpot.stages.sft import SFTConfig, sft
from stockpot.stages.summary import summarise
from stockpot.stages.tokenizer import TokenizerConfig, train_tokenizer
from stockpot.weights.store import load

__all__ = ["CookConfig", "EvaluateConfig", "cook"]

# Shares of the minutes; what is left is for reading data and the report. Measured: benchmarks/results/cook.md
PRETRAIN_SHARE, SFT_SHARE = 0.60, 0.17


class EvaluateConfig(Settings):
    """What is asked before and after instruction tuning."""

    tasks: tuple[str, ...] = Field(("village",), description="village, village/KIND or JSON-lines files")
    limit: int = Field(50, ge=1, description="questions per task")


class CookConfig(Settings):
    """All stages of the main job."""

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    pretrain: PretrainConfig = Field(default_factory=PretrainConfig)
    sft: SFTConfig = Field(default_factory=SFTConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    seed: int = Field(0, ge=0, description="of every stage")


@dataclass
class _Kitchen:
    """The folder of a cook and what is known of its stages.

    ``state`` is kept in ``cook.json``: stage → key, seconds and what it resolved to.
    """

    folder: Path
    report: Progress
    state: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path, report: Progress) -> _Kitchen:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "cook.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        except ValueError as error:
            raise CheckpointError(
                f"{file} is damaged: {error}.", "Delete it; finished stages are then done again."
            ) from error
        if not state and any(path.name != "recipe.toml" for path in folder.iterdir()):
            raise CheckpointError(f"{folder} holds something that is not a cook.", "Choose another --out.")
        return cls(folder, report, state)

    def stage(self, name: str, inputs: Any, work: Callable[[Path, bool], None]) -> Path:
        """Do one stage in its own folder unless it is done already.

        Args:
            name: of the stage and its folder.
            inputs: plain values that decide the result.
            work: does it: (folder, whether to resume).
        """
        path, key = self.folder / name, _key(inputs)
        known = self.state.get(name, {})
        self.report({"kind": "stage", "name": name})
        if known.get("key") == key and known.get("status") == "done":
            self.report({"kind": "note", "text": "unchanged since the last time, skipped"})
            return path
        may_resume = known.get("key") == key and path.exists()
        if path.exists() and not may_resume:
            self._set_aside(path)
        spent = known.get("seconds", 0.0) if may_resume else 0.0
        self._note(name, key=key, status="started", seconds=spent)
        started = time.monotonic()
        try:
            work(path, may_resume)
        finally:
            self._note(name, seconds=spent + time.monotonic() - started)
        self._note(name, status="done")
        return path

    def remember(self, name: str, inputs: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``make`` gave for the same inputs the last time, or make it now."""
        key = _key(inputs)
        if self.state.get(name, {}).get("key") != key:
            self._note(name, key=key, value=make())
        value: dict[str, Any] = self.state[name]["value"]
        return value

    def _note(self, name: str, **facts: Any) -> None:
        self.state[name] = {**self.state.get(name, {}), **facts}
        durable.write_atomically(self.folder / "cook.json", json.dumps(self.state, indent=1))

    def _set_aside(self, path: Path) -> None:
        earlier = self.folder / "earlier"
        earlier.mkdir(exist_ok=True)
        taken = {p.name for p in earlier.iterdir()}
        name = next(n for i in range(1, 10_000) if (n := f"{path.name}-{i}") not in taken)
        path.rename(earlier / name)
        self.report({"kind": "note", "text": f"the earlier {path.name} is kept in {earlier / name}"})


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
        minutes: choose the model's size and the steps of both trainings so that all of it takes about this long.
        resume: accepted for symmetry with the other makers; a cook always goes on where it can.
        progress: receives events.

    Returns:
        The run of the last training stage, whose model answers questions.
    """
    del resume
    config = config or CookConfig()
    kitchen = _Kitchen.open(Path(out), progress or silent)
    comment = f"The settings of this cook. To repeat it:\nstockpot cook --recipe {kitchen.folder / 'recipe.toml'} --out NEW"
    durable.write_atomically(kitchen.folder / "recipe.toml", to_toml(config, comment=comment))
    tokenizer = kitchen.stage(
        "tokenizer",
        config.tokenizer.model_dump(),
        lambda path, _: _discard(train_tokenizer(config.tokenizer, out=path)),
    )
    base, base_config = _pretrain(kitchen, config, tokenizer, minutes)
    tuned = _tune(kitchen, config, base, base_config, minutes)
    reports = _judge(kitchen, config, base, tuned)
    kitchen.report({"kind": "stage", "name": "report"})
    page = summarise(kitchen.folder, kitchen.state, reports, compare(*reports), seed=config.seed)
    kitchen.report({"kind": "note", "text": f"report: {page}"})
    kitchen.report({"kind": "note", "text": f"to chat: stockpot chat {tuned}"})
    return Run.open(tuned)


def _pretrain(
    kitchen: _Kitchen, config: CookConfig, tokenizer: Path, minutes: float | None
) -> tuple[Path, PretrainConfig]:
    asked = config.pretrain.model_copy(update={"tokenizer": str(tokenizer), "seed": config.seed})
    if minutes is not None:
        asked = asked.model_copy(update={"minutes": minutes * PRETRAIN_SHARE})

    def resolve() -> dict[str, Any]:
        return plan_pretraining(asked)[0].model_dump(mode="json")

    inputs = [asked.model_dump(mode="json"), kitchen.state["tokenizer"]["key"]]
    settled = (
        asked
        if asked.minutes is None
        else PretrainConfig(**kitchen.remember("pretrain-plan", inputs, resolve))
    )

    def work(path: Path, may_resume: bool) -> None:
        pretrain(
            settled,
            out=path,
            resume=may_resume and (path / "manifest.json").exists(),
            progress=kitchen.report,
        )

    return kitchen.stage("pretrain", [settled.model_dump(mode="json"), inputs], work), settled


def _tune(
    kitchen: _Kitchen, config: CookConfig, base: Path, base_config: PretrainConfig, minutes: float | None
) -> Path:
    settled = config.sft.model_copy(update={"model": str(base), "seed": config.seed})
    if minutes is not None:
        spent, steps = kitchen.state["pretrain"]["seconds"], base_config.loop.steps
        tokens = minutes * 60 * SFT_SHARE * steps * base_config.loop.batch_tokens / spent
        loop = settled.loop.model_copy(update={"steps": max(1, int(tokens / settled.loop.batch_tokens))})
        settled = settled.model_copy(update={"loop": loop})

    def work(path: Path, may_resume: bool) -> None:
        sft(
            settled,
            out=path,
            resume=may_resume and (path / "manifest.json").exists(),
            progress=kitchen.report,
        )

    return kitchen.stage("sft", [settled.model_dump(mode="json"), kitchen.state["pretrain"]["key"]], work)


def _judge(kitchen: _Kitchen, config: CookConfig, base: Path, tuned: Path) -> tuple[Report, Report]:
    reports: dict[str, Report] = {}

    def ask(model: Path) -> Report:
        limit, tasks = config.evaluate.limit, config.evaluate.tasks
        return evaluate(model, tasks, limit=limit, progress=kitchen.report)

    def work(path: Path, _: bool) -> None:
        for name, model in (("base", base), ("tuned", tuned)):
            reports[name] = ask(model)
            reports[name].save(path / name)
        text = next(iter(reports["base"].answers.values()))[0].item.question
        durable.write_atomically(path / "look.html", look(load(base), text))

    inputs = [config.evaluate.model_dump(), kitchen.state["sft"]["key"]]
    path = kitchen.stage("evaluate", inputs, work)
    loaded = [reports.get(name) or Report.load(path / name / "report.json") for name in ("base", "tuned")]
    return loaded[0], loaded[1]


def _discard(_: object) -> None:
    """Take a value and return nothing: a stage's work has no result but its folder."""


def _key(inputs: Any) -> str:
    """Hash what decides a stage's result: its inputs and the code."""
    text = json.dumps([inputs, _code()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Hash the package's source, so that a changed program does its stages again."""
    root = Path(stockpot.__file__).parent
    parts = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("cli", "serve"):
            parts.update(path.read_bytes())
    return parts.hexdigest()[:16]
