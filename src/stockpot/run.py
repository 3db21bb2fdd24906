"""Run: one folder is one run.

This file decides what a run folder holds (manifest, recipe, metrics, checkpoints, log), what may change on
resume, and which checkpoint is good. It never opens a model: what is inside a checkpoint is the business of
the function that writes it. It does not import torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import time
import tomllib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from stockpot import durable, origin
from stockpot.config import Settings, flatten, to_toml
from stockpot.curves import Board, as_number, cut_rows, read_rows
from stockpot.durable import fingerprint, verify, write_atomically
from stockpot.errors import CheckpointError, ConfigError, TrainError

__all__ = ["Run", "Status", "check_folder", "fingerprint", "is_run", "verify", "write_atomically"]

Status = Literal["running", "done", "failed", "interrupted"]

MANIFEST, RECIPE, METRICS, LOG = "manifest.json", "recipe.toml", "metrics.jsonl", "log.txt"
_STEP = re.compile(r"step-(\d{6,})")


class Run:
    """A run folder: made by ``create`` (which takes its lock) or read by ``open``.

    As a context manager it finishes itself: *done* at the end of the block, *interrupted* on Ctrl-C, *failed*
    on any other error.
    """

    path: Path
    manifest: dict[str, Any]

    def __init__(self, path: Path, manifest: dict[str, Any], lock: durable.FolderLock | None) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock
        self._board: Board | None = None
        self._since = time.monotonic()
        self._whole: dict[Path, str | None] = {}  # checkpoints already verified → what is wrong
        self._warned: set[Path] = set()

    # --- opening ---------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        stage: str,
        recipe: Mapping[str, Any],
        parent: str | Path | Run | None = None,
        resume: bool = False,
        command: str | None = None,
        may_change: Collection[str] = (),
        tensorboard: bool = False,
    ) -> Run:
        """Start a run in ``folder``, or continue the one that is there.

        On resume, half-written checkpoints are removed and ``metrics.jsonl`` is cut back to the newest whole
        checkpoint, so that no step appears twice.

        Args:
            folder: where the run lives; made if absent.
            stage: the verb that runs, such as ``"pretrain"``.
            recipe: stage name → its resolved settings; written to ``recipe.toml`` before anything else.
            parent: the run or model folder this one starts from.
            resume: continue; the settings must be those of the run, but for ``may_change``.
            command: the command line; by default that of this process.
            may_change: dotted recipe keys that may differ on resume, such as ``"pretrain.loop.steps"``.
            tensorboard: write the metrics as TensorBoard events as well, into ``tensorboard/``.

        Raises:
            CheckpointError: if the folder is in use, holds something else, or has no run to resume.
            ConfigError: if resumed with other settings.
        """
        path = Path(folder)
        check_folder(path, stage=stage, resume=resume)
        lock = _take_lock(path)
        try:
            check_folder(path, stage=stage, resume=resume)  # now that nobody else can change it
            again = origin.as_typed("stockpot", stage, "--recipe", path / RECIPE)
            text = to_toml(recipe, comment=f"The settings of this run. To repeat it:\n{again}")
            run = cls(path, _new_manifest(stage, recipe, parent, command), lock)
            if is_run(path):
                run._continue(recipe, may_change)
            elif resume:
                warnings.warn(
                    f"{path}: nothing to continue yet; it starts afresh.", RuntimeWarning, stacklevel=2
                )
            with durable.one_line_when_full(path):
                write_atomically(path / RECIPE, text)
                run._write_manifest()
            if tensorboard:
                run._board = Board(path / "tensorboard", read_rows(path / METRICS))
        except BaseException:
            lock.release()
            raise
        run.journal(f"{'resumed' if resume else 'started'} {stage}: {command or origin.command_line()}")
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run for reading.

        Raises:
            CheckpointError: if ``folder`` is not a run or its manifest is damaged.
        """
        path = Path(folder)
        if not is_run(path):
            raise CheckpointError(
                f"{path}: not a run folder (it has no {MANIFEST}).", "`stockpot runs` lists the runs here."
            )
        return cls(path, _read_manifest(path), None)

    def _continue(self, recipe: Mapping[str, Any], may_change: Collection[str]) -> None:
        """Take over what an earlier process left here, cut back to its newest whole checkpoint."""
        old = _read_manifest(self.path)
        _check_same_settings(self.path, recipe, may_change)
        for folder in (self.path, self.path / "checkpoints"):
            durable.clean(folder)
        newest = self.latest_checkpoint()
        step = newest[0] if newest else 0
        if newest is None:
            warnings.warn(
                f"{self.path} has no whole checkpoint; it starts again.", RuntimeWarning, stacklevel=4
            )
        for later, path in self._steps():
            if later > step:  # damaged, and it must not outlive a good one when old checkpoints are deleted
                _remove(path)
        cut_rows(self.path / METRICS, step)
        fresh = {name: self.manifest[name] for name in ("status", "pid", "host")}
        again = {"at": origin.now(), "step": step} | {
            name: self.manifest[name] for name in ("command", "versions")
        }
        self.manifest = (
            self.manifest | old | fresh | {"ended": None, "resumed": [*old.get("resumed", []), again]}
        )
        self.manifest.pop("error", None)
        self._since -= self.manifest.get("seconds", 0)  # of earlier sittings

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish("done")
            return
        status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        # The first error is the one to tell; on a full disk the manifest cannot be written either.
        with contextlib.suppress(OSError, TrainError):
            self.finish(status, error=f"{type(error).__name__}: {error}".strip(": "))

    # --- reading ---------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """How the run stands now: *running* only while a process holds the folder's lock."""
        said: Status = self.manifest["status"]
        if said != "running" or self._lock is not None or durable.is_locked(self.path):
            return said
        return "interrupted"

    @property
    def model_path(self) -> Path:
        """The model folder the run stands for: the one it points to, else its newest whole checkpoint.

        Raises:
            CheckpointError: if there is none.
        """
        if pointed := self._pointed():
            return pointed
        if newest := self.latest_checkpoint():
            return newest[1]
        raise CheckpointError(
            f"{self.path}: the run has no model yet (status: {self.status}).",
            "Let it finish, or use --resume.",
        )

    @property
    def model_step(self) -> int | None:
        """The step at which :attr:`model_path` was saved; None if it is no checkpoint."""
        found = _STEP.fullmatch(self.model_path.name)
        return int(found[1]) if found else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the logged rows, each with its ``"step"``; a line torn by kill -9 is passed over."""
        return read_rows(self.path / METRICS)

    def series(self, name: str) -> list[tuple[int, float]]:
        """Read one metric's logged values as ``(step, value)``; one that was not finite reads as NaN."""
        return [
            (row["step"], math.nan if row[name] is None else row[name]) for row in self.rows() if name in row
        ]

    def last(self, name: str) -> float:
        """Read the last logged value of a metric.

        Raises:
            KeyError: if the run never logged it.
        """
        values = self.series(name)
        if not values:
            raise KeyError(f"{name!r} was never logged in {self.path / METRICS}")
        return values[-1][1]

    # --- writing ---------------------------------------------------------------------------------

    def log(self, step: int, **metrics: float) -> None:
        """Append one JSON object with ``step`` and ``metrics`` to ``metrics.jsonl``."""
        self._own()
        row = {"step": step} | {name: as_number(value) for name, value in metrics.items()}
        with durable.one_line_when_full(self.path):
            durable.append(self.path / METRICS, json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            self._board.add(row)

    def journal(self, text: str) -> None:
        """Append a dated line to ``log.txt``."""
        self._own()
        with durable.one_line_when_full(self.path):
            durable.append(self.path / LOG, f"{origin.now()} {' '.join(text.split())}\n")

    def sample(self, step: int, text: str) -> None:
        """Keep what the model writes at a step, in ``samples/``."""
        self._own()
        with durable.one_line_when_full(self.path):
            (self.path / "samples").mkdir(exist_ok=True)
            write_atomically(self.path / "samples" / f"step-{step:06d}.txt", text)

    def note(self, **fields: Any) -> None:
        """Write facts into the manifest (data fingerprints, token counts …); a table joins the one there."""
        self._own()
        for name, value in fields.items():
            old = self.manifest.get(name)
            self.manifest[name] = (
                old | dict(value) if isinstance(old, dict) and isinstance(value, Mapping) else value
            )
        with durable.one_line_when_full(self.path):
            self._write_manifest()

    def checkpoint(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Write a checkpoint that is whole or absent, then delete the oldest ones.

        Args:
            step: the optimiser step it belongs to.
            write: fills the empty folder it is given.
            keep: how many of the newest to keep (at least 1); the one ``model`` points to stays as well.

        Raises:
            TrainError: if the disk is full; the earlier checkpoints are intact.
        """
        self._own()
        final = self.checkpoint_path(step)
        newest = self._steps()[:1]
        with durable.one_line_when_full(self.path, intact=newest[0][1] if newest else None):
            with durable.fill_atomically(final, step=step) as half:
                write(half)
            self._whole[final] = None
            self._prune(max(keep, 1))
        self.note(seconds=round(time.monotonic() - self._since, 1))  # a sitting may be killed
        return final

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step is, or will be."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Find the newest whole checkpoint, ``(step, folder)``; warns about each damaged one it passes."""
        for step, path in self._steps():
            if path not in self._whole:
                self._whole[path] = verify(path)
            wrong = self._whole[path]
            if wrong is None:
                return step, path
            if path not in self._warned:
                self._warned.add(path)
                warnings.warn(
                    f"{path} is damaged ({wrong}) and is passed over.", RuntimeWarning, stacklevel=2
                )
        return None

    def set_model(self, checkpoint: str | Path) -> None:
        """Let ``model`` point to a folder of this run (a link; ``model.txt`` where links are unavailable)."""
        self._own()
        target = Path(checkpoint).resolve()
        relative = target.relative_to(self.path.resolve())
        link, fresh = self.path / "model", durable.half_name(self.path / "model")
        fresh.unlink(missing_ok=True)
        try:
            fresh.symlink_to(relative, target_is_directory=True)
            fresh.replace(link)
            (self.path / "model.txt").unlink(missing_ok=True)
        except (OSError, NotImplementedError):
            fresh.unlink(missing_ok=True)
            write_atomically(self.path / "model.txt", f"{relative.as_posix()}\n")
        durable.sync(self.path)

    def finish(self, status: Status, **fields: Any) -> None:
        """Write how the run ended, last of all, and give the folder free. Finishing twice does nothing."""
        if self._lock is None:
            return
        seconds = time.monotonic() - self._since
        try:
            self.journal(f"ended: {status}" + "".join(f", {name}: {value}" for name, value in fields.items()))
            self.manifest |= fields | {"ended": origin.now(), "seconds": round(seconds, 1), "status": status}
            with durable.one_line_when_full(self.path):
                self._write_manifest()
        finally:
            self._release()

    # --- inside ----------------------------------------------------------------------------------

    def _own(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self.path} is open for reading only (or already finished)")

    def _release(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False, default=str)
        write_atomically(self.path / MANIFEST, text + "\n")

    def _steps(self) -> list[tuple[int, Path]]:
        """List all checkpoints, newest first."""
        folder = self.path / "checkpoints"
        names = [(match, path) for path in folder.glob("step-*") if (match := _STEP.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in names), reverse=True)

    def _pointed(self) -> Path | None:
        link, file = self.path / "model", self.path / "model.txt"
        named = self.path / file.read_text(encoding="utf-8").strip() if file.is_file() else link
        return named.resolve() if named.is_dir() else None

    def _prune(self, keep: int) -> None:
        pointed = self._pointed()
        for _, path in self._steps()[keep:]:
            if path.resolve() != pointed:
                _remove(path)


# --- folders ---


def is_run(folder: str | Path) -> bool:
    """Tell whether a folder is a run, by what it holds."""
    return (Path(folder) / MANIFEST).is_file()


def check_folder(folder: str | Path, *, stage: str, resume: bool = False) -> None:
    """Refuse at once, before any work, a folder in which ``Run.create`` could not start or continue.

    Raises:
        CheckpointError: if it is a file, holds something else, holds a run already, or has none to resume.
    """
    path = Path(folder)
    another = "Choose another --out."
    if not path.exists():
        if resume:
            raise CheckpointError(
                f"{path}: there is no run to resume.", "Leave out --resume, or check the name."
            )
        return
    if not path.is_dir():
        raise CheckpointError(f"{path}: a run needs a folder, and this is a file.", another)
    if not is_run(path):
        ours = (durable.LOCK, durable.HALF, RECIPE)
        if any(not other.name.startswith(ours) for other in path.iterdir()):
            raise CheckpointError(f"{path}: holds other files and no run.", "Choose an empty or new folder.")
        return
    held = _read_manifest(path)["stage"]
    if not resume:
        raise CheckpointError(
            f"{path}: already holds a {held} run.", "Continue it with --resume, or choose another --out."
        )
    if held != stage:
        raise CheckpointError(f"{path}: holds a {held} run, not {stage}.", another)


def _remove(checkpoint: Path) -> None:
    # Renamed first: a half-deleted checkpoint must not look like a damaged one.
    shutil.rmtree(checkpoint.rename(durable.half_name(checkpoint)), ignore_errors=True)


def _take_lock(path: Path) -> durable.FolderLock:
    try:
        path.mkdir(parents=True, exist_ok=True)
        return durable.lock_folder(path)
    except BlockingIOError:
        owner = _read_manifest(path) if is_run(path) else {}
        who = f"process {owner['pid']} on {owner['host']}" if "pid" in owner else "another process"
        raise CheckpointError(
            f"{path}: in use by {who}.", "Wait for it to end, or choose another --out."
        ) from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written to ({error.strerror}).", "Choose another --out."
        ) from None


def _check_same_settings(path: Path, recipe: Mapping[str, Any], may_change: Collection[str]) -> None:
    try:
        kept = tomllib.loads((path / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError:  # killed between the two first writes
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{path / RECIPE}: damaged; the run cannot be resumed safely.") from None
    filled = {name: _with_defaults(table, recipe.get(name)) for name, table in kept.items()}
    old, new = (flatten(tomllib.loads(to_toml(tables))) for tables in (filled, recipe))
    for key in [*old, *new]:
        if old.get(key) != new.get(key) and key not in may_change:
            was, now = (table.get(key, "the default") for table in (old, new))
            raise ConfigError(
                f"{path}: cannot resume with {key} = {now!r}; the run has {was!r}.",
                f"Resume with the run's own settings: {origin.as_typed('--recipe', path / RECIPE)}",
            )


def _with_defaults(table: Any, like: Any) -> Any:
    """Complete the settings of an older program by those it did not know; as they stand if they no longer fit."""
    if not isinstance(table, dict) or not isinstance(like, Settings):
        return table
    try:
        return type(like)(**table)
    except ConfigError:
        return table


# --- the manifest ---


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(
            f"{path / MANIFEST}: cannot be read ({error}).", "The run's checkpoints may still be whole."
        ) from None
    if not isinstance(manifest, dict) or "stage" not in manifest or "status" not in manifest:
        raise CheckpointError(f"{path / MANIFEST}: not the manifest of a run (it lacks stage or status).")
    return manifest


def _new_manifest(
    stage: str, recipe: Mapping[str, Any], parent: str | Path | Run | None, command: str | None
) -> dict[str, Any]:
    own = tomllib.loads(to_toml(recipe)).get(stage, {})
    loop = own.get("loop")
    return {
        "stage": stage,
        "status": "running",
        "parent": _parent(parent),
        "started": origin.now(),
        "ended": None,
        "command": command or origin.command_line(),
        "seed": own.get("seed", loop.get("seed") if isinstance(loop, dict) else None),
        "versions": origin.versions(),
        "git": origin.git(),
        "hardware": origin.hardware(),
        "data": [],
        "tokens": {},
        "pid": os.getpid(),
        "host": socket.gethostname(),
    }


def _parent(parent: str | Path | Run | None) -> dict[str, Any] | None:
    if parent is None:
        return None
    if isinstance(parent, Run):
        parent = parent.path
    where = Path(parent)
    if not where.exists():  # a hub id
        return {"path": str(parent), "fingerprint": None}
    model = Run.open(where).model_path if is_run(where) else where
    return {"path": str(parent), "model": str(model), "fingerprint": fingerprint(model)["sha256"]}
