"""The family of models that rows 25 and 26 share: grown once, asked once."""

from __future__ import annotations

import json
from typing import Any

from stockpot.claims.claim import Material
from stockpot.run import Run
from stockpot.stages.emergence import EmergenceConfig, emergence

__all__ = ["family_of"]


def family_of(material: Material) -> list[dict[str, Any]]:
    """Grow a family of seven sizes, or read what a run of emergence left; gives its tasks as plain values."""
    folder = material.out / "family"
    file = folder / "emergence.json"
    if not file.is_file():
        config = EmergenceConfig(minutes=2 * material.minutes, seeds=len(material.seeds))
        emergence(config=config, out=folder, resume=folder.exists(), progress=material.report)
    tasks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    plan = json.loads((folder / "family.json").read_text(encoding="utf-8"))
    seconds = sum(Run.open(one.parent).manifest.get("seconds", 0.0) for one in folder.glob("*/manifest.json"))
    material.told.append(
        f"Each of {len(plan['settings']['widths'])} sizes was trained {plan['settings']['seeds']} times, "
        f"{plan['steps']:,} steps of {plan['settings']['rows']} questions: {seconds:,.0f} s in all."
    )
    return tasks
