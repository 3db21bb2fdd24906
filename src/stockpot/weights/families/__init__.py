"""One file for each family of models: a map of settings and a map of names, used in both directions.

``FAMILIES`` is in the order in which a family is looked for that can hold a model.
"""

from stockpot.model.config import ModelConfig
from stockpot.weights.families import bert, clip, distilbert, gemma, gpt2, llama, neox, olmo2, t5, vit
from stockpot.weights.families.native import NATIVE
from stockpot.weights.family import Family, VisionFamily

__all__ = ["FAMILIES", "NATIVE", "VISION", "family_of"]

VISION: dict[str, VisionFamily] = {**vit.FAMILIES, **clip.FAMILIES}
"""Image encoders, and the towers of CLIP."""

FAMILIES: dict[str, Family] = {
    **llama.FAMILIES,
    **olmo2.FAMILIES,
    **gemma.FAMILIES,
    **gpt2.FAMILIES,
    **neox.FAMILIES,
    **bert.FAMILIES,
    **distilbert.FAMILIES,
    **t5.FAMILIES,
    NATIVE.model_type: NATIVE,
}


def family_of(config: ModelConfig, preferred: str | None) -> Family:
    """Return the family that a model is written as: the preferred one, if it can hold the model."""
    order = sorted(FAMILIES.values(), key=lambda one: one.model_type != preferred)
    return next((one for one in order if one.can_hold(config)), NATIVE)
