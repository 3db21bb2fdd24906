"""What the ledger is made of: which models a cook's folder or a user names, what each took to train, and what is missing.

A part that is not there is told of with its reason; nothing is put in its place.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stockpot.config import read_recipe, to_toml
from stockpot.data.sources import fingerprint_sources
from stockpot.errors import ConfigError, StockpotError
from stockpot.model.config import decoder
from stockpot.run import Run, is_run
from stockpot.stages.pretrain import PretrainConfig, pretrain
from stockpot.train.schedule import Schedule
from stockpot.weights.store import load

__all__ = ["Cost", "Parts", "find_parts", "spent_on", "train_small"]

EARLY_SHARE = 0.1
ROLES = {"sft": "tuned", "dpo": "dpo", "ppo": "rlhf"}


@dataclass(frozen=True)
class Cost:
    """What an ingredient took.

    Attributes:
        seconds: of training, counting, choosing or finding; not of asking.
        flops: arithmetic, estimated: of training by `ModelConfig.training_flops` (what a policy writes in between is
            not counted), of reading a third of that.
        tokens: trained on, counted or read.
        labels: what people (or what stands for them) had to write or decide: examples, conversations, comparisons.
    """

    seconds: float = 0.0
    flops: float = 0.0
    tokens: int = 0
    labels: int = 0


@dataclass
class Parts:
    """The models of a ledger: role → folder, and what they took; for those that are missing, why."""

    base: str
    folders: dict[str, str] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    cook: Path | None = None


def find_parts(model: str | Path, given: Mapping[str, str | None], text: tuple[str, ...] | None) -> Parts:
    """Find the models that a ledger needs.

    Args:
        model: a cook's folder, or the base model.
        given: role (``tuned``, ``dpo``, ``rlhf``) → a model, where the user names one.
        text: what the n-gram model reads; None: what the base model was trained on, if its run says so.
    """
    folder = Path(model)
    if (folder / "cook.json").is_file():
        parts = _of_cook(folder)
    else:
        parts = Parts(str(model))
        if is_run(folder):
            parts.costs["base"] = spent_on(Run.open(folder))
            parts.text = _text_of(folder)
        else:
            parts.missing["more data"] = "only a run of pretraining keeps what the model was before"
    for role, name in given.items():
        if name is not None:
            parts.folders[role] = name
            if is_run(name):
                parts.costs[role] = spent_on(Run.open(name))
        elif role not in parts.folders:
            parts.missing.setdefault(role, "no such model was named")
    if text is not None:
        parts.text = text
    return parts


def _of_cook(folder: Path) -> Parts:
    state = json.loads((folder / "cook.json").read_text(encoding="utf-8"))
    done = {name for name, one in state.items() if one.get("status") == "done"}
    if "pretrain" not in done:
        raise ConfigError(f"{folder} has no base model yet.", "Let the cook go on until it has.")
    parts = Parts(str(folder / "pretrain"), cook=folder, text=_text_of(folder / "pretrain"))
    run = Run.open(folder / "pretrain")
    parts.costs["base"] = spent_on(run)
    early = _early(run)
    if early is None:
        parts.missing["early"] = "the run kept no checkpoint of its first part (loop.keep)"
    else:
        share = early[0] / max(1, run.series("tokens")[-1][0])
        whole = parts.costs["base"]
        parts.folders["early"] = str(early[1])
        parts.costs["early"] = Cost(whole.seconds * share, whole.flops * share, round(whole.tokens * share))
    for stage, role in ROLES.items():
        if stage in done:
            parts.folders[role] = str(folder / stage)
            parts.costs[role] = spent_on(Run.open(folder / stage), state)
        else:
            parts.missing[role] = f"the cook has no stage {stage}"
    return parts


def _early(run: Run) -> tuple[int, Path] | None:
    """Find the checkpoint of about a tenth of the steps, if it is clearly earlier than the end."""
    steps = run.series("tokens")[-1][0]
    kept = {int(path.name.removeprefix("step-")): path for path in (run.path / "checkpoints").glob("step-*")}
    near = [step for step in kept if step <= steps / 2]
    if not near:
        return None
    step = min(near, key=lambda one: abs(one - EARLY_SHARE * steps))
    return step, kept[step]


def _text_of(run: Path) -> tuple[str, ...]:
    """Read what a run of pretraining was trained on from its settings; nothing if it was another stage."""
    try:
        table = read_recipe(run / "recipe.toml")["pretrain"]
        return tuple(table["data"])
    except (StockpotError, OSError, KeyError):
        return ()


def spent_on(run: Run, state: Mapping[str, Mapping[str, Any]] | None = None) -> Cost:
    """Read from a run's own files what its training took; with a cook's state, what led to it is counted in."""
    manifest = run.manifest
    tokens, flops = (run.last(name) if run.series(name) else 0.0 for name in ("tokens", "flops"))
    labels = int((manifest.get("records") or {}).get("train", 0))
    seconds = float(manifest.get("seconds", 0.0))
    before = state or {}
    compared = manifest.get("comparisons")
    if compared:
        labels = int(compared["train"]) + int(compared["validation"])
        seconds += before.get("rank", {}).get("seconds", 0.0)
    if manifest["stage"] == "ppo" and "reward" in before:
        rewarded = spent_on(Run.open(run.path.parent / "reward"), before)
        seconds, labels = seconds + rewarded.seconds, rewarded.labels
        tokens, flops = tokens + rewarded.tokens, flops + rewarded.flops
    return Cost(seconds, flops, int(tokens), labels)


def train_small(parts: Parts, out: Path, report: Any) -> None:
    """Train a sibling of half the base model's layers and width on the text that its early checkpoint had seen, likewise.

    The same order of the same text, the same batches and rates up to the same step: only the size differs.
    """
    if parts.cook is None or "early" not in parts.folders:
        parts.missing["small"] = parts.missing.get("early", "only a cook says how its model was trained")
        return
    settled = PretrainConfig(**read_recipe(Path(parts.base) / "recipe.toml")["pretrain"])
    shape = load(parts.base, device="cpu").model.config.main
    step = int(Path(parts.folders["early"]).name.removeprefix("step-"))
    small = decoder(
        layers=max(1, shape.layers // 2),
        dim=max(32, shape.dim // 2),
        heads=max(1, shape.heads // 2),
        context=shape.context,
        vocab_size=1,
    )
    level: Schedule = "constant"  # as the early checkpoint, whose rate had not begun to fall
    warmup = settled.loop.warmup_steps
    warmup = min(200, settled.loop.steps // 50) if warmup is None else warmup
    loop = settled.loop.model_copy(
        update={"steps": step, "schedule": level, "warmup_steps": warmup, "keep": 1}
    )
    config = settled.model_copy(update={"model": small, "size": None, "loop": loop, "minutes": None})
    parts.folders["small"] = str(out)
    parts.costs["small"] = spent_on(_trained(config, out, report))


def _trained(config: PretrainConfig, out: Path, report: Any) -> Run:
    """Train in a folder, or take up what there is if it has these settings and this data; else it is replaced."""
    is_same = False
    if is_run(out):
        run = Run.open(out)
        is_same = read_recipe(out / "recipe.toml")["pretrain"] == tomllib.loads(
            to_toml({"pretrain": config})
        )["pretrain"] and run.manifest["data"] == fingerprint_sources(config.data)
        if is_same and run.status == "done":
            return run
        if not is_same:
            shutil.rmtree(out)
    return pretrain(config, out=out, resume=is_same, progress=report)
