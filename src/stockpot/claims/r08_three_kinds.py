"""Rows 7 and 8: what encoders, decoders and encoder-decoders are each good at, at equal arithmetic."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stockpot.claims.claim import Claim, Finding, Material, above, below
from stockpot.errors import ConfigError
from stockpot.stages.three_kinds import ThreeKindsConfig, three_kinds


def measure(material: Material) -> Sequence[Finding]:
    """Train the three, or read what a run of three-kinds left."""
    file = material.out / "three-kinds" / "three-kinds.json"
    config = ThreeKindsConfig(minutes=4 * material.minutes, seeds=len(material.seeds))
    if not file.is_file():
        three_kinds(config, out=file.parent, progress=material.report)
    found = json.loads(file.read_text(encoding="utf-8"))
    values, seconds, kept = found["values"], found["facts"]["seconds"], found["facts"]["settings"]
    _check_same(file.parent, kept, config)
    material.told.append(f"Training and asking all of them took {seconds:,.0f} s.")
    if (kept["minutes"], kept["seeds"]) != (config.minutes, config.seeds):
        material.told.append(
            f"They were there already: {kept['seeds']} seeds and {kept['minutes']:g} minutes, "
            f"where {config.seeds} and {config.minutes:g} were asked for."
        )

    def minus(metric: str, one: str, other: str) -> list[float]:
        pairs = zip(values[metric][one], values[metric][other], strict=True)
        return [a - b for a, b in pairs]

    return [
        above("gaps filled right: encoder minus decoder", minus("gap", "encoder", "decoder"), 0.0, n=200),
        above(
            "sentences found by their vectors: encoder minus decoder",
            minus("retrieval", "encoder", "decoder"),
            0.0,
            n=200,
        ),
        below(
            "going on, bits a byte: decoder minus encoder",
            minus("continuation", "decoder", "encoder"),
            0.0,
            n=200,
        ),
        below(
            "going on, bits a byte: decoder minus encoder-decoder",
            minus("continuation", "decoder", "encoder_decoder"),
            0.0,
            n=200,
        ),
        above(
            "rewritten exactly: encoder-decoder minus encoder",
            minus("exact", "encoder_decoder", "encoder"),
            0.0,
            n=200,
        ),
    ]


def _check_same(folder: Path, kept: dict[str, Any], config: ThreeKindsConfig) -> None:
    """Refuse models of other text or another shape; how long they learned, and how many there are, is told."""
    for name, value in config.model_dump(mode="json", exclude={"minutes", "seeds", "device"}).items():
        if name in kept and kept[name] != value:
            raise ConfigError(
                f"{folder} was made with {name} = {kept[name]}, not {value}.",
                "Give another folder with --out.",
            )


CLAIM = Claim(
    8,
    "three-kinds",
    "Encoders represent, decoders generate, encoder-decoders do both at a price",
    "the lecture's division of labour",
    "the three kinds on the same village text with equal arithmetic, three seeds (`stockpot three-kinds`)",
    measure,
    "At this size, on text whose facts repeat, a decoder has a signal at every token where an encoder has one at 15 %: it fills "
    "gaps of the village better from the left alone than the encoder does from both sides. The generating "
    "half of the claim holds.",
    needs_cooks=False,
)
