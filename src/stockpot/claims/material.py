"""What several claims read from a cook: its ledger, its contest, its models; and questions asked of them again."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from stockpot.bundle import Bundle
from stockpot.claims.claim import Material
from stockpot.config import Settings, flatten
from stockpot.durable import fingerprint
from stockpot.errors import ConfigError
from stockpot.judge.tasks import Item
from stockpot.run import Run, is_run
from stockpot.stages.contest import Contest
from stockpot.stages.cook import CookConfig, cook
from stockpot.stages.ledger import Ledger, ledger
from stockpot.stages.ledger_asking import worth
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load

__all__ = [
    "check_cooks",
    "contest_of",
    "cooked",
    "distinct_bases",
    "gain_of",
    "ledger_of",
    "open_stage",
    "right_of",
    "trained",
]


def cooked(out: Path, minutes: float, seeds: Sequence[int], report: Callable[..., None]) -> tuple[Path, ...]:
    """Cook the village once a seed; what is there is kept."""
    from stockpot.config import build

    config = build(CookConfig, recipe_files=["village"])
    folders = []
    for seed in seeds:
        folder = out / f"cook-{seed}"
        cook(config.model_copy(update={"seed": seed}), out=folder, minutes=minutes, progress=report)
        folders.append(folder)
    return tuple(folders)


def check_cooks(cooks: Sequence[Path]) -> None:
    """Refuse folders that are no finished cooks, and copies: an interval over copies says nothing.

    Raises:
        ConfigError: naming the folder.
    """
    known: dict[str, Path] = {}
    for folder in cooks:
        if not (folder / "cook.json").is_file() or not is_run(folder / "sft"):
            raise ConfigError(f"{folder} is no finished cook.", "Make one: stockpot cook --out DIR.")
        try:
            state = json.loads((folder / "cook.json").read_text(encoding="utf-8"))
            cut = [stage for stage, facts in state.items() if facts.get("status") == "started"]
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{folder / 'cook.json'} is damaged: {error}.", "Give another cook.") from None
        if cut:
            raise ConfigError(
                f"{folder} is no finished cook: {cut[0]} is not done.",
                "Go on with it: stockpot cook --out DIR.",
            )
        model = _hash(folder / "sft")
        if model in known:
            raise ConfigError(
                f"{folder} and {known[model]} hold the same model.", "Give cooks of different seeds."
            )
        known[model] = folder


def distinct_bases(cooks: Sequence[Path]) -> tuple[Path, ...]:
    """Keep one cook of those that share their base model."""
    return tuple({_hash(cook / "pretrain"): cook for cook in reversed(cooks)}.values())[::-1]


def _hash(run: Path) -> str:
    return str(fingerprint(Run.open(run).model_path)["sha256"])


def trained(stage: Callable[..., Run], config: Settings, folder: Path, material: Material) -> Run:
    """Open a claim's own run, or do its stage; one that was cut short goes on, so that no half-trained model is judged.

    Raises:
        ConfigError: if the run that is there was trained on another cook's model or tokenizer, or with another number.
    """
    if is_run(folder) and (run := Run.open(folder)).status == "done":
        if differs := _difference(run, config):
            raise ConfigError(f"{folder} was trained {differs}.", "Give another folder with --out.")
        return run
    return stage(config, out=folder, resume=is_run(folder), progress=material.report)


def _difference(run: Run, config: Settings) -> str | None:
    """Say in what a run differs from what these settings would train now; None: in nothing that is known.

    Paths may differ, so models and tokenizers are compared by what they hold; of the rest, the numbers that are given.
    """
    parent = run.manifest.get("parent") or {}
    for source in (getattr(config, name, None) for name in ("model", "encoder")):
        if isinstance(source, str) and is_run(source) and parent.get("fingerprint") != _hash(Path(source)):
            return f"on another model, {parent.get('path', 'which its manifest does not name')}"
    tokenizer = getattr(config, "tokenizer", None)
    if tokenizer and Tokenizer.load(tokenizer).fingerprint != Tokenizer.load(run.model_path).fingerprint:
        return f"with another tokenizer than {tokenizer}"
    recipe = tomllib.loads((run.path / "recipe.toml").read_text(encoding="utf-8"))
    kept = flatten(recipe.get(run.manifest["stage"], {}))
    for name, value in flatten(config.model_dump(exclude_unset=True)).items():
        if isinstance(value, int | float) and kept.get(name, value) != value:
            return f"with {name} = {kept[name]}, not {value}"
    return None


def open_stage(cook: Path, stage: str) -> Bundle:
    """Open the model of a cook's stage."""
    return load(cook / stage)


def ledger_of(cook: Path, material: Material) -> Ledger:
    """Read a cook's ledger, or keep one now."""
    file = cook / "ledger" / "ledger.json"
    if not file.is_file():
        ledger(cook, out=cook / "ledger", progress=material.report)
    return Ledger.load(file)


def contest_of(cook: Path) -> Contest:
    """Read the contest between a cook's tuned and aligned models.

    Raises:
        ConfigError: if there is none.
    """
    file = cook / "contest" / "contest.json"
    if not file.is_file():
        raise ConfigError(
            f"{cook} has no contest between its models.", "Go on with it: stockpot cook --out DIR."
        )
    return Contest.from_json(file.read_text(encoding="utf-8"))


def right_of(book: Ledger, line: str, kinds: Sequence[str] | None = None) -> list[float]:
    """Tell for each question of some kinds whether a line's reply is right."""
    return [
        float(
            worth(Item("", one["question"], one["answer"], tuple(one["choices"])), one["replies"][line]) >= 2
        )
        for one in book.questions
        if kinds is None or one["kind"] in kinds
    ]


def gain_of(book: Ledger, line: str, over: str, kinds: Sequence[str] | None = None) -> float:
    """Give the difference of two lines' shares right on the same questions of some kinds."""
    now, before = right_of(book, line, kinds), right_of(book, over, kinds)
    return sum(now) / len(now) - sum(before) / len(before)
