"""The rotary settings of a ``config.json``, in its present form and in the older ones, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stockpot.model.config import RopeScaling, StackConfig
from stockpot.weights.family import NUMBER, refuse, setting

__all__ = ["read_rope", "read_scaling", "write_rope"]

NAMES = {  # theirs → ours
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_context",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
OF_KIND = {  # which of them each kind of stretching has
    "linear": (),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}


def read_rope(
    values: Mapping[str, Any], *, theta: float = 10_000.0, fraction: float | None = None
) -> dict[str, Any]:
    """Read the fields of a :class:`StackConfig` that describe rotary positions.

    Args:
        values: the whole config: either ``rope_parameters``, or the older ``rope_theta`` and ``rope_scaling``.
        theta: the family's usual base.
        fraction: the share of each head that the family usually rotates; None: always the whole head.

    Raises:
        CheckpointError: if another share is named where ``transformers`` rotates the whole head and says nothing.
    """
    empty: dict[str, Any] = {}
    rope = setting(values, "rope_parameters", dict, empty) or setting(values, "rope_scaling", dict, empty)
    older_theta = setting(values, "rope_theta", NUMBER, theta)
    older_share = setting(values, "partial_rotary_factor", NUMBER, fraction or 1.0)
    share = float(setting(rope, "partial_rotary_factor", NUMBER, older_share))
    if fraction is None and share != 1.0:
        raise refuse(f"partial_rotary_factor {share}")
    return {
        "rope_theta": float(setting(rope, "rope_theta", NUMBER, older_theta)),
        "rope_fraction": share,
        "rope_scaling": read_scaling(rope, values.get("max_position_embeddings")),
    }


def read_scaling(rope: Mapping[str, Any], context: Any) -> RopeScaling | None:
    """Read how rotary positions are stretched; None: not at all.

    Args:
        rope: the settings that hold ``rope_type`` and ``factor``.
        context: the model's context, which yarn stretches where nothing else is said.
    """
    kind = rope.get("rope_type", rope.get("type")) or "default"
    if kind == "default":
        return None
    if kind not in OF_KIND:
        raise refuse(f"rope type {kind!r}")
    unknown = {"mscale", "mscale_all_dim", "truncate"} & {
        key for key, value in rope.items() if value is not None
    }
    if unknown:
        raise refuse(f"{min(unknown)} in the rope settings")
    choices = {ours: rope[name] for name, ours in NAMES.items() if rope.get(name) is not None}
    if kind == "yarn" and "original_context" not in choices:
        choices["original_context"] = context
    return RopeScaling(kind=kind, factor=rope.get("factor"), **choices)


def write_rope(stack: StackConfig) -> dict[str, Any]:
    """Write the rotary settings in the present form, and in the older one for older readers."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stack.rope_theta}
    if stack.rope_fraction != 1.0:
        rope["partial_rotary_factor"] = stack.rope_fraction
    scaling = stack.rope_scaling
    if scaling is None:
        return {"rope_theta": stack.rope_theta, "rope_parameters": rope}
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    written = {name: getattr(scaling, NAMES[name]) for name in OF_KIND[scaling.kind]}
    rope |= {name: value for name, value in written.items() if value is not None}
    return {"rope_theta": stack.rope_theta, "rope_parameters": rope, "rope_scaling": dict(rope)}
