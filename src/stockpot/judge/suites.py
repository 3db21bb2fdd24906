"""Run tasks of lm-evaluation-harness itself over our engine: its prompts, its filters, its figures.

For tasks that have no file here, and to check ours. lm-eval is an optional part and known to this file alone; it reads its data
sets itself, from the hub or from local files that a task's YAML names.

Source: Gao et al., github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stockpot.bundle import Bundle
from stockpot.errors import ConfigError, DataError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Request, Sampling
from stockpot.judge.requests import check_head, split_pair, windows

__all__ = ["PREFIX", "run_suite", "table_of"]

PREFIX = "lm-eval:"
SCORED_AT_ONCE = 256
Progress = Callable[[dict[str, Any]], None]
Ids = tuple[int, ...]
_log = logging.getLogger(__name__)


def run_suite(
    bundle: Bundle,
    suite: str,
    *,
    limit: int | None = None,
    shots: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a task of lm-eval and return its results: ``{task: {measure: value}}``, with the number of items as ``n``.

    Args:
        bundle: the model.
        suite: ``lm-eval:NAME``, or ``lm-eval:FILE.yaml``.
        limit: the first items of each task; None: all.
        shots: examples before each question; None: as the task says.
        progress: hears how far it is.

    Raises:
        ConfigError: if lm-eval is not there or knows no such task.
        DataError: if the task cannot be run, for instance because its data set is not here and there is no network.
        GenerationError: if the model has no head that could answer.
    """
    name = suite.removeprefix(PREFIX)
    if not suite.startswith(PREFIX) or not name:
        raise ConfigError(f"{suite}: expected {PREFIX}TASK.", f"Example: --suite {PREFIX}arc_easy.")
    check_head(bundle, str(bundle.source or "model"))
    lm_eval = _library()
    from lm_eval.tasks import TaskManager

    path = Path(name)
    manager = TaskManager(include_path=str(path.parent) if path.suffix == ".yaml" else None)
    wanted = path.stem if path.suffix == ".yaml" else name
    if wanted not in manager.all_tasks:
        raise ConfigError(
            f"lm-eval knows no task {wanted!r}.",
            "`lm-eval ls tasks` lists them; a YAML file is named by its task.",
        )
    model = _make_model(bundle, progress)
    try:
        with _quiet():
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[wanted],
                task_manager=manager,
                limit=limit,
                num_fewshot=shots,
                bootstrap_iters=200,
            )
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"lm-eval could not run {wanted}: {said}",
            "Its data set comes from the hub, or from files its YAML names.",
        ) from error
    if model.cut:
        _log.warning(
            "%d prompts did not fit the context and lost their beginning, as lm-eval prescribes", model.cut
        )
    counted = {task: int(one["effective"]) for task, one in found.get("n-samples", {}).items()}
    return {task: {**values, "n": counted.get(task)} for task, values in found["results"].items()}


def table_of(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[list[Any]]:
    """Lay results of several models out as rows: model, task, measure, value, standard error, n."""
    rows = []
    for model, tasks in found.items():
        for task, values in tasks.items():
            for name, value in values.items():
                measure, _, kept = name.partition(",")
                if not isinstance(value, float) or measure.endswith("_stderr"):
                    continue
                error = values.get(f"{measure}_stderr,{kept}")
                shown = measure if kept in ("none", "") else f"{measure} ({kept})"
                rows.append(
                    [model, task, shown, value, error if isinstance(error, float) else None, values.get("n")]
                )
    return rows


def _library() -> Any:
    """Import lm-eval, without letting it speak or look for a network where none was asked for."""
    try:
        with _quiet():
            import lm_eval
    except ImportError:
        raise ConfigError(
            "Tasks of lm-eval need lm-evaluation-harness.", "Install it: pip install 'stockpot[lm-eval]'"
        ) from None
    return lm_eval


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what the library prints to nowhere: results alone stand on stdout."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
            sys.stdout.flush()


def _make_model(bundle: Bundle, progress: Progress | None) -> Any:
    """Make an lm-eval model of a bundle; the class exists only where the library does."""
    from lm_eval.api.model import LM

    class EngineModel(_Answers, LM):  # type: ignore[misc]
        def __init__(self) -> None:
            LM.__init__(self)
            _Answers.__init__(self, bundle, progress)

    return EngineModel()


class _Answers:
    """Answers lm-eval's three questions with our engine."""

    def __init__(self, bundle: Bundle, progress: Progress | None) -> None:
        self.bundle, self.engine, self.cut = bundle, Engine(bundle, slots=16), 0
        self._progress = progress

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        pairs = [self._fitting(*split_pair(self.bundle, *request.args)) for request in requests]
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), SCORED_AT_ONCE):
            some = order[start : start + SCORED_AT_ONCE]
            for place, score in zip(some, self.engine.score([pairs[i] for i in some]), strict=True):
                found[place] = (score.log_prob, score.is_greedy)
            self._tell(len(found), len(order))
        return [found[place] for place in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        totals = []
        for request in requests:
            pairs = [(part.before, part.scored) for part in windows(self.bundle, request.args[0])]
            totals.append(sum(score.log_prob for score in self.engine.score(pairs)))
            self._tell(len(totals), len(requests))
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        owners = {}
        for place, request in enumerate(requests):
            text, asked = request.args
            sampling = _sampling(asked)
            ids = self.bundle.encode(text)
            context = self.bundle.context  # an answer may be cut by its end; the question keeps half of it
            room = context - min(sampling.max_tokens, context // 2)
            self.cut += len(ids) > room
            owners[self.engine.submit(Request(ids[-room:], sampling))] = place
        texts = [""] * len(requests)
        while owners:
            for chunk in self.engine.step():
                texts[owners[chunk.request]] += chunk.text
                if chunk.finish_reason is not None:
                    del owners[chunk.request]
                    self._tell(len(requests) - len(owners), len(requests))
        return texts

    def _fitting(self, before: Ids, scored: Ids) -> tuple[Ids, Ids]:
        room = self.bundle.context - len(scored)
        self.cut += len(before) > room
        return before[-max(1, room) :], scored

    def _tell(self, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress({"kind": "step", "step": done, "steps": total})


def _sampling(asked: Mapping[str, Any]) -> Sampling:
    until = asked.get("until") or ()
    drawn = bool(asked.get("do_sample")) and float(asked.get("temperature") or 0.0) > 0
    return Sampling(
        temperature=float(asked.get("temperature") or 1.0) if drawn else 0.0,
        top_p=asked.get("top_p") if drawn else None,
        max_tokens=int(asked.get("max_gen_toks") or asked.get("max_new_tokens") or 256),
        stop=(until,) if isinstance(until, str) else tuple(until),
    )
