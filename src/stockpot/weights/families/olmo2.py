"""OLMo 2: a decoder of the Llama build with its norms behind the sublayers, and norms over whole projections.

Source: the config.json files of the released models; OLMo Team 2024, arXiv:2501.00656, §3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.families import llama
from stockpot.weights.family import NUMBER, Family, only, setting
from stockpot.weights.rope import read_rope, write_rope

__all__ = ["FAMILIES"]

NORMS = {
    "attention_post_norm": "post_attention_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}


def read(values: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read the settings of an OLMo 2."""
    only(values, hidden_act="silu")
    attention_bias = setting(values, "attention_bias", bool, default=False)
    decoder = StackConfig(
        **llama.read_sizes(values, head_dim=None, context=2048),
        **read_rope(values),
        norm_eps=setting(values, "rms_norm_eps", NUMBER, 1e-5),
        norm_place="output",
        qk_norm="full",
        qkv_bias=attention_bias,
        out_bias=attention_bias,
    )
    vocab_size = setting(values, "vocab_size", int)
    return ModelConfig(
        vocab_size=vocab_size, decoder=decoder, **llama.predicts(values, tied=False, names=names)
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Write the settings of an OLMo 2."""
    stack = config.main
    values = {"model_type": "olmo2", **llama.write_sizes(config, "Olmo2"), "hidden_act": "silu"}
    return {**values, "attention_bias": stack.qkv_bias, **write_rope(stack)}


FAMILIES = {
    "olmo2": Family(
        "olmo2",
        read=read,
        write=write,
        parts=partial(llama.parts, norms=NORMS),
        root="model.",
        outside=llama.OUTSIDE,
        ignored=("rotary_emb.inv_freq",),
    )
}
