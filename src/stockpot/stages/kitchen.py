"""The folder of a cook: which stages are done, and which have to be done again.

A stage is skipped when its settings, its inputs and the code are those of the last time; an interrupted one goes on where it
stopped; one whose settings changed is set aside, not deleted. What a stage does is not known here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import stockpot
from stockpot import durable
from stockpot.data.sources import fingerprint_sources
from stockpot.errors import CheckpointError
from stockpot.run import Run, is_run
from stockpot.stages.assemble import Progress

__all__ = ["Kitchen", "key_of"]


class Trained(Protocol):
    """Settings of a stage that trains on data."""

    @property
    def data(self) -> tuple[str, ...]:
        """Where the data comes from."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Give the settings as plain values."""


@dataclass
class Kitchen:
    """The folder of a cook and what is known of its stages.

    ``state`` is kept in ``cook.json``: stage → key, seconds and what it resolved to.
    """

    folder: Path
    report: Progress
    state: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, folder: Path, report: Progress) -> Kitchen:
        """Open a folder, new or from an earlier cook.

        Raises:
            CheckpointError: if it holds something else.
        """
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "cook.json"
        try:
            state = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            if not all(isinstance(one, dict) for one in state.values()):
                raise ValueError("stages are tables")
        except (ValueError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{file} is damaged: {error}.", "Delete it; finished stages are then done again."
            ) from error
        if not state and any(path.name not in ("recipe.toml", "settled.toml") for path in folder.iterdir()):
            raise CheckpointError(f"{folder} holds something that is not a cook.", "Choose another --out.")
        return cls(folder, report, state)

    def stage(self, name: str, inputs: Any, work: Callable[[Path], None], *, takes_up: bool = False) -> Path:
        """Do one stage in its own folder unless it is done already.

        Args:
            name: of the stage and its folder.
            inputs: plain values that decide the result; files and models that they name count with what is in them.
            work: does it.
            takes_up: it goes on from what an interrupted one with the same inputs has left; else that is removed.
        """
        path, key = self.folder / name, key_of([inputs, self._named(inputs)])
        known = self.state.get(name, {})
        self.report({"kind": "stage", "name": name})
        if known.get("key") == key and known.get("status") in ("done", "left out") and path.exists():
            self._note(name, status="done")
            self.report({"kind": "note", "text": "unchanged since the last time, skipped"})
            return path
        may_resume = known.get("key") == key and path.exists()
        if path.exists() and not may_resume:
            self._set_aside(path)
        elif path.exists() and not takes_up:
            shutil.rmtree(path)
        spent = known.get("seconds", 0.0) if may_resume else 0.0
        self._note(name, key=key, status="started", seconds=spent)
        started = time.monotonic()
        try:
            work(path)
        finally:
            self._note(name, seconds=spent + time.monotonic() - started)
        self._note(name, status="done")
        return path

    def train(self, name: str, stage: Callable[..., Run], config: Trained, inputs: Any) -> Path:
        """Do a stage that trains, going on in the midst of it if its settings, data and inputs are those of the last time.

        Args:
            name: of the stage and its folder.
            stage: ``(config, *, out, resume, progress)``.
            config: its settings.
            inputs: what decides the result beside them.
        """

        def work(path: Path) -> None:
            stage(config, out=path, resume=is_run(path), progress=self.report)

        data = fingerprint_sources(config.data)
        path = self.stage(name, [config.model_dump(mode="json"), data, inputs], work, takes_up=True)
        trained = [seconds for _, seconds in Run.open(path).series("time_s")]
        if trained and trained[-1] > self.state[name]["seconds"]:  # a sitting that was killed noted nothing
            self._note(name, seconds=trained[-1])
        return path

    def remember(self, name: str, inputs: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``make`` gave for the same inputs the last time, or make it now."""
        key = key_of(inputs)
        if self.state.get(name, {}).get("key") != key:
            self._note(name, key=key, value=make())
        value: dict[str, Any] = self.state[name]["value"]
        return value

    def leave_out(self, stages: Collection[str]) -> None:
        """Mark finished stages that the settings no longer have; what they left is kept in case they are wanted again."""
        for name in stages:
            if self.state.get(name, {}).get("status") == "done":
                self._note(name, status="left out")

    @property
    def seconds(self) -> float:
        """What all stages of this cook took."""
        return sum(
            float(one.get("seconds", 0.0)) for one in self.state.values() if one.get("status") != "left out"
        )

    def made(self, name: str) -> list[str]:
        """Tell what a stage that trains has left: its key and its model's hash, which a training that broke off changes."""
        model = Run.open(self.folder / name).model_path
        return [self.state[name]["key"], str(durable.fingerprint(model)["sha256"])]

    def _named(self, inputs: Any) -> list[str]:
        """Hash the files and models outside of this folder that settings name: a template, ``FILE.py:FUNCTION``, a run."""
        texts, known = _texts(inputs)
        found = []
        for text in sorted(texts - known):
            program = text.rpartition(":")[0]
            path = Path(program if program.endswith(".py") else text)
            if not os.path.exists(path) or path.resolve().is_relative_to(self.folder.resolve()):  # noqa: PTH110 - any text
                continue
            if is_run(path):
                path = Run.open(path).model_path
            if path.is_file() or (path / "config.json").is_file():
                found.append(str(durable.fingerprint(path)["sha256"]))
        return found

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


def _texts(value: Any) -> tuple[set[str], set[str]]:
    """Gather all texts in plain values, and those among them that name files whose hash is there already."""
    if isinstance(value, str):
        return {value}, set()
    known = {str(value["path"])} if isinstance(value, dict) and "sha256" in value else set()
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    parts = [_texts(one) for one in inner]
    return set().union(*(one for one, _ in parts)), known.union(*(one for _, one in parts))


def discard(_: object) -> None:
    """Forget a result that is on disk."""


def key_of(inputs: Any) -> str:
    """Hash what decides a stage's result: its inputs and the code."""
    text = json.dumps([inputs, _code()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    """Hash the package's source, so that a changed program does its stages again."""
    root = Path(stockpot.__file__).parent
    parts = hashlib.sha256()
    for path in sorted((*root.rglob("*.py"), *root.rglob("*.[ch]pp"))):
        if path.relative_to(root).parts[0] not in ("cli", "serve"):
            parts.update(path.read_bytes())
    return parts.hexdigest()[:16]
