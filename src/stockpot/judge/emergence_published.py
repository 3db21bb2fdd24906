"""Curves that others published: result files become the same study, as far as what they hold allows.

Three forms are read: our own ``emergence.json``; a table ``{"task", "points": [{"model", "compute", METRIC: value, …}]}``; and
BIG-bench's score files, one a model, ``{"model": {…}, "scores": [{"score_dict": {…}, …}]}``. Means without items have no
intervals: which shape fits better is said, how surely is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stockpot.data.reading import shown
from stockpot.errors import DataError
from stockpot.judge.emergence import Point, Study, TaskCurves, curves_of
from stockpot.judge.metrics import Estimate

__all__ = ["read_published"]

MOST_BYTES = 64 << 20
SAME = {
    "exact_str_match": "exact",
    "exact_match": "exact",
    "accuracy": "exact",
    "multiple_choice_grade": "exact",
}
SIZES = ("flops", "compute", "flop_matched_non_embedding_params", "total_params", "parameters")
Gathered = dict[str, dict[str, tuple[float, dict[str, Estimate]]]]


def read_published(paths: Sequence[str | Path]) -> Study:
    """Read result files into one study.

    Raises:
        DataError: if a file is of no known form, names a model of a task twice, or a task has fewer than four models.
    """
    gathered: Gathered = {}
    study = Study()
    for path in paths:
        value = _read(Path(path))
        try:
            study.axis = _gather(gathered, value, path) or study.axis
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DataError(
                f"{path}: the results do not fit ({type(error).__name__}: {shown(str(error))}).",
                "See docs/emergence.md for the forms.",
            ) from None
    study.tasks += [_curves(task, models) for task, models in gathered.items()]
    return study


def _gather(gathered: Gathered, value: dict[str, Any], path: str | Path) -> str | None:
    """Add one file's points; gives what its models are sized by, where it says."""
    if isinstance(value.get("tasks"), list):
        for task in value["tasks"]:
            for point in task["points"]:
                scores = {name: Estimate(**one) for name, one in point["scores"].items()}
                _keep(gathered, task["task"], point["name"], point["compute"], scores, path)
        return str(value["axis"]) if "axis" in value else None
    if isinstance(value.get("points"), list):
        for point in value["points"]:
            _add(gathered, str(value.get("task", "task")), point.get("model"), point, point, path)
        return None
    if isinstance(value.get("scores"), list):
        model, task = value.get("model", {}), value.get("task", {})
        name = task.get("task_name") or task.get("name") if isinstance(task, Mapping) else task
        for one in value["scores"]:
            shots = one.get("number_of_shots")
            label = f"{one.get('subtask_description') or name or 'task'}, {shots} shots"
            _add(gathered, label, model.get("model_name"), model, one.get("score_dict", {}), path)
        return "parameters"
    raise DataError(
        f"{path}: no results of a known form (found: {', '.join(map(shown, list(value)[:6]))}).",
        'Give an object with "tasks", "points", or "model" and "scores".',
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: larger than {MOST_BYTES >> 20} MiB.", "Give a file of results only.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read as JSON ({shown(str(error), 120)}).", "Check the file."
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: not a JSON object.", "See docs/emergence.md for the forms.")
    return value


def _add(
    gathered: Gathered,
    task: str,
    model: object,
    sized: Mapping[str, Any],
    scored: Mapping[str, Any],
    path: str | Path,
) -> None:
    size = next(
        (sized[key] for key in SIZES if isinstance(sized.get(key), int | float) and sized[key] > 0), None
    )
    if size is None:
        raise DataError(
            f"{path}: the model {shown(str(model))} has no size.", f"Give one of: {', '.join(SIZES)}."
        )
    n = scored.get("n")
    scores: dict[str, Estimate] = {}
    for name, value in scored.items():
        if name in (*SIZES, "n") or not isinstance(value, int | float) or isinstance(value, bool):
            continue
        scores.setdefault(
            SAME.get(name, name), Estimate(float(value), float(value), float(value), int(n or 0))
        )
    _keep(gathered, task, str(model), size, scores, path)


def _keep(
    gathered: Gathered,
    task: str,
    model: str,
    size: float,
    scores: dict[str, Estimate],
    path: str | Path,
) -> None:
    models = gathered.setdefault(task, {})
    if model in models:
        raise DataError(
            f"{path}: {task}: the model {shown(model)} is there twice.", "Give each model a name of its own."
        )
    if not 0 < float(size) < math.inf:
        raise DataError(f"{path}: {task}: {shown(model)} has the size {size}.", "Sizes are above 0.")
    models[model] = (float(size), scores)


def _curves(task: str, models: Mapping[str, tuple[float, dict[str, Estimate]]]) -> TaskCurves:
    order = sorted(models, key=lambda name: models[name][0])
    if len({models[name][0] for name in order}) < max(4, len(order)):
        raise DataError(
            f"{task}: {len(order)} models make no curve.", "At least four are needed, each of another size."
        )
    common = [
        metric
        for metric in models[order[0]][1]
        if all(np.isfinite(models[name][1].get(metric, _NONE).value) for name in order)
    ]
    if "exact" not in common:
        raise DataError(f"{task}: no exact match (or accuracy) for every model.", "Add it to the results.")
    points = tuple(Point(name, models[name][0], {m: models[name][1][m] for m in common}) for name in order)
    drawn = {m: np.array([[point.scores[m].value for point in points]]) for m in common}
    n = min(point.scores["exact"].n for point in points)
    return curves_of(task, points, drawn, None, None, n or None)


_NONE = Estimate(float("nan"), float("nan"), float("nan"), 0)
