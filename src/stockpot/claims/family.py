"""The family of models that rows 25 and 26 share: grown once, asked once."""

from __future__ import annotations

import json
from typing import Any

from stockpot.claims.claim import Material
from stockpot.stages.emergence import EmergenceConfig, emergence

__all__ = ["family_of"]


def family_of(material: Material) -> list[dict[str, Any]]:
    """Grow a family of seven sizes, or read what a run of emergence left; gives its tasks as plain values."""
    file = material.out / "family" / "emergence.json"
    if not file.is_file():
        config = EmergenceConfig(minutes=2 * material.minutes, seeds=len(material.seeds))
        emergence(config=config, out=file.parent, resume=file.parent.exists(), progress=material.report)
    tasks: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return tasks
