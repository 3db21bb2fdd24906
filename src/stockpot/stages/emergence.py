"""Grow a family of models from small to large on sums, and see whether what emerges is the model's or the metric's.

`emergence` measures models that are given, reads results that others published, or trains its own family: the same
decoder at rising widths, every size on the same number of the same digits. How curves are judged is `judge/emergence`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from stockpot import device as machine
from stockpot.bundle import Bundle
from stockpot.config import Settings
from stockpot.data.batch import IGNORED, Batch
from stockpot.durable import write_atomically
from stockpot.errors import ConfigError
from stockpot.judge.emergence import Study
from stockpot.judge.emergence_answers import Item, Measured, arithmetic_task, is_arithmetic, items_of, measure
from stockpot.judge.emergence_published import read_published
from stockpot.model.config import ModelConfig, decoder
from stockpot.model.transformer import Transformer
from stockpot.run import Run, is_run
from stockpot.stages.assemble import Progress, checkpoint_writer, silent
from stockpot.text.tokenizer import Tokenizer
from stockpot.train.loop import LoopConfig, fit
from stockpot.train.losses import next_token_loss
from stockpot.village import Village
from stockpot.village.arithmetic import ARITHMETIC_SIGNS
from stockpot.weights.store import load
from stockpot.workers import in_order

__all__ = ["EmergenceConfig", "emergence", "grow_family"]

TRAINED_SHARE = 0.8  # of the minutes; the rest is for drawing sums and asking
MEASURED_STEPS = 8
TASKS = ("codes/12", "columns/4", "sums/4")


class EmergenceConfig(Settings):
    """Which family is grown, on what, and how long."""

    tasks: tuple[str, ...] = Field(
        TASKS,
        min_length=1,
        description="codes, columns, sums, with the digits of an answer or number behind a slash",
    )
    widths: tuple[int, ...] = Field(
        (8, 16, 24, 32, 48, 64, 96), min_length=4, description="widths of the models, multiples of 8"
    )
    layers: int = Field(2, ge=1, description="of every model")
    rows: int = Field(64, ge=1, description="sums in a step")
    records: int = Field(100_000, ge=100, description="different sums of each task to learn from")
    seeds: int = Field(3, ge=1, description="times each size is trained, from new weights")
    minutes: float = Field(30.0, gt=0, description="for everything, on this machine")
    most_steps: int = Field(
        4_500, ge=1, description="optimiser steps of each size, however many minutes there are"
    )
    seed: int = Field(0, ge=0, description="of weights and sums")
    device: str | None = Field(None, description="cpu, cuda …; none: the fastest present")
    workers: int = Field(1, ge=1, description="sizes trained at the same time, on this machine")
    ray: str | None = Field(
        None, description="address of a Ray cluster, or auto, whose workers train the sizes"
    )


def emergence(
    models: Sequence[str | Path] = (),
    *,
    task: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    config: EmergenceConfig | None = None,
    published: Sequence[str | Path] = (),
    items: int = 1000,
    resume: bool = False,
    progress: Progress | None = None,
) -> Study:
    """Draw exact match, edit distance, likelihood and Brier score of the same outputs against compute, and judge the jump.

    Args:
        models: runs, checkpoints or model folders of rising compute, at least four; none: a family is grown.
        task: what to ask, see `items_of`; none: what the family learns. A family that is grown learns only the tasks of the
            village among these, or what the settings say where there is none.
        out: where the family, ``emergence.json`` and the charts go; needed to grow a family.
        config: of the family.
        published: result files to read instead of asking models.
        items: questions of each task.
        resume: go on growing the family in ``out``.
        progress: hears one event a model.

    Raises:
        ConfigError, DataError: if there is no folder for a family or nothing to ask, before any work; or models are of equal
            compute.
    """
    report = progress or silent
    config = config or EmergenceConfig()
    tasks = list(config.tasks) if task is None else [task] if isinstance(task, str) else list(task)
    learned = tuple(one for one in tasks if is_arithmetic(one)) or config.tasks
    family: Mapping[str, Sequence[str | Path]]
    asked = {} if published else {task: items_of(task, items, seed=config.seed) for task in tasks}
    if published:
        study = read_published(published)
    else:
        if not models:
            if out is None:
                raise ConfigError(
                    "A family needs a folder to grow in.", "Give one with --out, or name models."
                )
            learner = config.model_copy(update={"tasks": learned})
            family = grow_family(learner, out=out, resume=resume, progress=report)
        else:
            family = {name: [one] for name, one in zip(_names(models), models, strict=True)}
        study = _ask(family, asked, config.seed, report)
    if out is not None:
        study.save(out)
    return study


def _names(models: Sequence[str | Path]) -> list[str]:
    """Call models by their folders where that tells them apart."""
    short = [Path(one).name for one in models]
    return short if len(set(short)) == len(short) else [str(one) for one in models]


def _ask(
    family: Mapping[str, Sequence[str | Path]],
    asked: Mapping[str, Sequence[Item]],
    seed: int,
    report: Progress,
) -> Study:
    """Ask every run of every model the same items; ``asked``: those of each task."""
    said: dict[str, dict[str, tuple[float, list[Measured]]]] = {task: {} for task in asked}
    known = {name: training_flops(runs[0]) for name, runs in family.items()}
    axis = "FLOPs" if all(known.values()) else "parameters"
    for name, runs in family.items():
        for one in runs:
            bundle = load(one)
            size = (known[name] if axis == "FLOPs" else None) or float(bundle.model.config.parameters())
            for task, items in asked.items():
                said[task].setdefault(name, (size, []))[1].append(measure(bundle, items))
        report({"kind": "note", "text": f"{name} asked"})
    study = Study(axis)
    for task in asked:
        study.add(task, said[task], seed=seed)
    return study


def training_flops(ref: str | Path) -> float | None:
    """Tell the arithmetic that went into a run or a checkpoint of one, its parents included; None if nothing says so."""
    path = Path(ref).resolve()
    folder = next((one for one in (path, *path.parents[:2]) if is_run(one)), None)
    if folder is None:
        return None
    run = Run.open(folder)
    checkpoint = path if path != folder else run.model_path.resolve()
    digits = checkpoint.name.removeprefix("step-")
    last = int(digits) if digits.isdigit() else None
    seen = [flops for step, flops in run.series("flops") if last is None or step <= last]
    before = 0.0
    parent = run.manifest.get("parent")
    if parent:
        below = training_flops(str(parent["path"])) if Path(str(parent["path"])).exists() else None
        if below is None:
            return None
        before = below
    return before + seen[-1] if seen else None


# --- the family ---


def grow_family(
    config: EmergenceConfig, *, out: str | Path, resume: bool = False, progress: Progress | None = None
) -> dict[str, list[Path]]:
    """Train every size on the same digits, each run in a folder of its own; returns these folders by size, smallest first.

    All sizes see equally many tokens: as many as fit into the minutes one size after another, by a measurement of this
    machine; with workers or a Ray cluster it takes less. There the folder has to be one that all can reach.

    Raises:
        ConfigError: if the folder is in use and not to be resumed, or a width is no multiple of 8 or there twice.
    """
    report = progress or silent
    out = Path(out)
    bad = [width for width in config.widths if width % 8 or width < 8]
    if bad:
        raise ConfigError(f"A width of {bad[0]} is no multiple of 8.", "Choose widths such as 8, 16, 24.")
    if twice := [width for width in set(config.widths) if config.widths.count(width) > 1]:
        raise ConfigError(f"The width {twice[0]} is there twice.", "Give each size once.")
    if out.exists() and any(out.iterdir()) and not resume:
        raise ConfigError(f"{out} is not empty.", "Give a new folder with --out, or go on with --resume.")
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, sums = _material(config.model_dump_json())
    device = machine.pick_device(config.device)
    steps = _steps(config, tokenizer, sums, device, out / "family.json")
    report(
        {"kind": "note", "text": f"{len(config.widths)} sizes, {steps:,} steps of {config.rows} sums each"}
    )
    family: dict[str, list[Path]] = {}
    jobs: list[_Job] = []
    for seed in range(config.seed, config.seed + config.seeds):
        for width in config.widths:
            folder = (out / f"width-{width:03d}-seed-{seed}").resolve()
            family.setdefault(f"width-{width:03d}", []).append(folder)
            jobs.append((config.model_dump_json(), width, seed, steps, str(folder)))
    is_here = config.workers == 1 and config.ray is None
    done = (
        (_grow(job, progress=report) for job in jobs)
        if is_here
        else in_order(_grow, jobs, workers=config.workers, ray=config.ray)
    )
    for number, (_, width, seed, _, _) in enumerate(jobs, 1):
        next(done)
        report({"kind": "note", "text": f"{number}/{len(jobs)}: width {width}, seed {seed}"})
    return family


_Job = tuple[str, int, int, int, str]  # settings as JSON, width, seed, steps, folder


def _grow(job: _Job, _shared: None = None, *, progress: Progress | None = None) -> str:
    """Train one size with one seed, or take up what there is of it; returns its folder."""
    settings, width, seed, steps, folder = job
    config = EmergenceConfig.model_validate_json(settings)
    is_begun = is_run(folder)
    if is_begun and Run.open(folder).status == "done":
        return folder
    if config.workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // config.workers))
    report = progress or silent
    report({"kind": "stage", "name": f"width {width}, seed {seed}"})
    tokenizer, sums = _material(settings)
    machine.seed_everything(seed)
    model = Transformer(_shape(config, tokenizer, width)).to(machine.pick_device(config.device))
    bundle = Bundle(model, tokenizer)
    recipe = {"width": width, "seed": seed, "steps": steps, "family": _lasting(config)}
    with Run.create(folder, stage="emergence", recipe={"emergence": recipe}, resume=is_begun) as run:
        run.note(seed=seed, parameters=bundle.model.config.parameters())
        write, loop = checkpoint_writer(bundle), _loop(steps, sums.tokens)
        fit(model, sums, next_token_loss, loop, run=run, save=write, resume=is_begun, progress=report)
    return folder


@cache
def _material(settings: str) -> tuple[Tokenizer, _Sums]:
    """Return the tokenizer of a family and its sums, drawn once a process."""
    config = EmergenceConfig.model_validate_json(settings)
    tokenizer = _tokenizer(config)
    return tokenizer, _Sums.drawn(config, tokenizer)


def _lasting(config: EmergenceConfig) -> dict[str, Any]:
    """Return the settings that decide the models, as plain values."""
    found: dict[str, Any] = json.loads(
        config.model_dump_json(exclude={"minutes", "device", "workers", "ray"})
    )
    return found


def _tokenizer(config: EmergenceConfig) -> Tokenizer:
    """Make a token of each digit and sign."""
    return Tokenizer.train([ARITHMETIC_SIGNS] * 3, kind="char", vocab_size=128)


def _shape(config: EmergenceConfig, tokenizer: Tokenizer, width: int) -> ModelConfig:
    return decoder(
        layers=config.layers,
        dim=width,
        heads=max(1, width // 16),
        context=4 * max(digits for _, digits in map(arithmetic_task, config.tasks)) + 2,
        vocab_size=tokenizer.vocab_size,
    )


def _loop(steps: int, tokens: int) -> LoopConfig:
    every = max(1, steps // 2)
    return LoopConfig(
        steps=steps, batch_tokens=tokens, log_every=max(1, steps // 20), checkpoint_every=every, keep=1
    )


def _steps(
    config: EmergenceConfig, tokenizer: Tokenizer, sums: _Sums, device: torch.device, plan: Path
) -> int:
    """Say how many steps every size can take within the minutes; what was planned once holds."""
    if plan.exists():
        found = json.loads(plan.read_text(encoding="utf-8"))
        if found["settings"] != _lasting(config):
            raise ConfigError(f"{plan} was planned with other settings.", "Give a new folder with --out.")
        return int(found["steps"])
    seconds = 0.0
    for width in config.widths:
        network = Transformer(_shape(config, tokenizer, width)).to(device)
        events: list[float] = []

        def listen(event: dict[str, object], heard: list[float] = events) -> None:
            if event["kind"] == "step":
                heard.append(float(event["tokens_per_s"]))  # type: ignore[arg-type]

        short = _loop(MEASURED_STEPS, sums.tokens).model_copy(update={"log_every": 1})
        fit(network, sums, next_token_loss, short, progress=listen)
        seconds += config.seeds * sums.tokens / max(events[1:] or events)
    steps = max(1, min(config.most_steps, int(60 * config.minutes * TRAINED_SHARE / seconds)))
    settings = _lasting(config)
    write_atomically(plan, json.dumps({"steps": steps, "settings": settings}, indent=1))
    return steps


@dataclass(frozen=True)
class _Sums:
    """Batches of sums, the tasks taking turns, in the same order for every size; only answers count.

    Attributes:
        ids: of each task ``(records, seq)``.
        labels: the same.
        rows: in a batch.
        seed: of the order.
    """

    ids: tuple[torch.Tensor, ...]
    labels: tuple[torch.Tensor, ...]
    rows: int
    seed: int

    @classmethod
    def drawn(cls, config: EmergenceConfig, tokenizer: Tokenizer) -> _Sums:
        """Draw the sums and turn them into ids."""
        village = Village(config.seed)
        ids, labels = [], []
        for kind, digits in map(arithmetic_task, config.tasks):
            records = list(village.arithmetic("train", config.records, kind=kind, digits=digits))
            first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            rows = tokenizer.encode_batch([one["prompt"] + one["completion"] for one in records])
            whole = torch.tensor([[*first, *row.tolist()] for row in rows])
            wanted = whole[:, 1:].clone()
            wanted[:, : len(first) + len(records[0]["prompt"]) - 1] = IGNORED
            ids.append(whole[:, :-1].contiguous())
            labels.append(wanted)
        return cls(tuple(ids), tuple(labels), config.rows, config.seed)

    @property
    def tokens(self) -> int:
        """Tokens of a step, on average over the tasks."""
        return self.rows * sum(one.shape[1] for one in self.ids) // len(self.ids)

    def __iter__(self) -> Iterator[Batch]:
        source = torch.Generator().manual_seed(self.seed)
        while True:
            for ids, labels in zip(self.ids, self.labels, strict=True):
                picks = torch.randint(0, len(ids), (self.rows,), generator=source)
                yield Batch(ids[picks], labels[picks])
