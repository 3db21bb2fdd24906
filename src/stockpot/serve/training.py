"""Train on it: votes become a better model in the background, which is then served beside the old one.

`stockpot dpo` runs in a process of its own over the very file of votes, with a low-rank adapter, and less urgently than the
server; its progress is read from the run folder. Only models that were named at the start can be trained: no path comes from a
request.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from stockpot.run import Run, is_run
from stockpot.serve.feedback import Feedback
from stockpot.serve.protocol import Refusal
from stockpot.serve.service import Service
from stockpot.weights.store import load

__all__ = ["LEAST", "Training", "routes"]

LEAST = 10  # comparisons below which training is not offered
PAIRS_A_STEP, SAMPLE = 8, 200
CURVES = ("train/loss", "val/loss", "val/accuracy", "val/chosen_shift", "val/rejected_shift")
TOLD = 12  # last lines of a failed training that are shown


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    model: str | None = Field(None, max_length=512)
    rank: int = Field(8, ge=1, le=256, description="of the low-rank adapter")
    passes: float = Field(3.0, gt=0, le=100, description="passes over the comparisons")
    beta: float = Field(0.1, gt=0, le=10, description="how strongly the model is held near what it was")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the adapter")


@dataclass
class _Job:
    """One training."""

    model: str
    name: str
    out: Path
    command: list[str]
    process: subprocess.Popen[bytes]
    begun: float
    comparisons: int
    state: str = "running"  # then loading, done, failed, stopped
    error: str = ""
    ended: float | None = None


class Training:
    """The one training that may run at a time.

    Args:
        service: where the new model is served.
        open_feedback: gives the file of votes.
        refs: model's name → what `load` takes; only these can be trained.
        folder: where runs are left.
    """

    def __init__(
        self, service: Service, open_feedback: Callable[[], Feedback], refs: Mapping[str, str], folder: Path
    ) -> None:
        self._service, self._open, self._folder = service, open_feedback, folder
        self.refs = dict(refs)
        self.job: _Job | None = None
        self._task: asyncio.Task[None] | None = None
        atexit.register(self.stop)

    def start(self, wanted: _Wanted) -> None:
        """Begin to train.

        Raises:
            Refusal: if one runs, there are too few comparisons, or the model cannot be trained.
        """
        served, feedback = self._service.model(wanted.model), self._open()
        if self.job is not None and self.job.state in ("running", "loading"):
            raise Refusal(409, f"{self.job.name} is being trained.", code="conflict")
        if not served.writes or served.name not in self.refs:
            raise Refusal(400, f"{served.name} cannot be trained here.", param="model")
        count = feedback.counts()["votes"]
        if count < LEAST:
            raise Refusal(
                400,
                f"There are {count} comparisons; training needs {LEAST}. Vote first.",
                code="too_few_votes",
            )
        feedback.settle()
        name, out = self._next_name(served.name)
        command = self._command(self.refs[served.name], feedback.path, out, wanted)
        out.parent.mkdir(parents=True, exist_ok=True)
        with (out.parent / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, 5)
        self.job = _Job(served.name, name, out, command, process, time.time(), count)
        self._task = asyncio.get_running_loop().create_task(self._follow(self.job))

    def stop(self) -> None:
        """End the training under way, if any; its run folder stays."""
        job = self.job
        if job is not None and job.process.poll() is None:
            job.state = "stopped"
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(job.process.pid, signal.SIGTERM)

    def told(self) -> dict[str, Any]:
        """Describe the training: its state, how far it is, its curves."""
        job = self.job
        if job is None:
            return {"state": "none"}
        curves: dict[str, list[tuple[int, float]]] = {}
        if is_run(job.out):
            run = Run.open(job.out)
            curves = {name: found for name in CURVES if (found := run.series(name))}
        return {
            "state": job.state,
            "model": job.model,
            "name": job.name,
            "comparisons": job.comparisons,
            "seconds": round((job.ended or time.time()) - job.begun, 1),
            "curves": curves,
            "command": shlex.join(["stockpot", *job.command[3:]]),
            "error": job.error,
        }

    async def _follow(self, job: _Job) -> None:
        """Wait for the process, then serve what it made."""
        status = await asyncio.to_thread(job.process.wait)
        if job.state == "running" and status == 0:
            job.state = "loading"
            try:
                bits = getattr(
                    self._service.model(job.model).bundle.model, "bits", None
                )  # as the old one is served
                bundle = await asyncio.to_thread(
                    load, job.out, quantize=None if bits is None else f"int{bits}"
                )
                self._service.add(job.name, bundle)
                self.refs[job.name] = str(job.out)
                job.state = "done"
            except Exception as error:  # noqa: BLE001 - whatever it is, the next training may begin
                job.state, job.error = "failed", str(error) or repr(error)
        elif job.state == "running":
            lines = (
                (job.out.parent / f"{job.name}.log")
                .read_text(encoding="utf-8", errors="replace")
                .splitlines()
            )
            job.state, job.error = "failed", "\n".join(lines[-TOLD:]) or f"it ended with {status}"
        job.ended = time.time()

    def _batch_tokens(self, model: str | None) -> int:
        """Count the tokens of eight comparisons: few votes must still make several steps."""
        encode = self._service.model(model).bundle.tokenizer.encode
        sample = list(islice(self._open().records(), SAMPLE))
        texts = [one["prompt"][-1]["content"] + one["chosen"] + one["rejected"] for one in sample]
        return max(32, round(PAIRS_A_STEP * sum(len(encode(text)) for text in texts) / max(1, len(texts))))

    def _next_name(self, model: str) -> tuple[str, Path]:
        stem = (
            "".join(sign if sign.isalnum() or sign in "-." else "-" for sign in model).strip("-.") or "model"
        )
        stem = stem.rpartition("-votes-")[0] or stem
        number = 1
        while (out := self._folder / f"{stem}-votes-{number}").exists() or out.name in self._service.models:
            number += 1
        return out.name, out

    def _command(self, ref: str, data: Path, out: Path, wanted: _Wanted) -> list[str]:
        sets = {
            "adapter.rank": wanted.rank,
            "passes": wanted.passes,
            "beta": wanted.beta,
            "drift_prompts": 0,
            "loop.lr": wanted.lr,
            "loop.batch_tokens": self._batch_tokens(wanted.model),
        }
        flags = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
        return [sys.executable, "-m", "stockpot", "dpo", ref, "--data", str(data), "--out", str(out), *flags]


def routes(training: Training) -> APIRouter:
    """Make the routes of Train on it."""
    router = APIRouter(prefix="/v1/training")

    @router.get("")
    def told() -> dict[str, Any]:
        """Describe the training under way, or the last one."""
        return training.told() | {"least": LEAST, "models": list(training.refs)}

    @router.post("")
    async def start(wanted: _Wanted) -> dict[str, Any]:
        """Train on all comparisons."""
        training.start(wanted)
        return training.told()

    @router.delete("")
    def stop() -> dict[str, Any]:
        """Stop the training."""
        training.stop()
        return training.told()

    return router
