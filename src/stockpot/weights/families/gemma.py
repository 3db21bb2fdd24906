"""Gemma: gemma, gemma2 and gemma3_text.

Decoders of the Llama build whose embeddings are multiplied by the root of their width and whose norms store
what they add to one. The second adds norms behind the sublayers, caps on scores and logits, and a window in
every other layer; the third norms queries and keys instead of capping, and turns windowed layers at a rate of
their own. The models with images (gemma3) are not read.
Source: the config.json files of the released models; Gemma Team 2024, arXiv:2408.00118.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.families import llama
from stockpot.weights.family import NUMBER, Family, choice, only, refuse, setting
from stockpot.weights.rope import read_rope, read_scaling, write_rope

__all__ = ["FAMILIES"]

NAMES = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}
CONTEXTS = {"gemma": 8192, "gemma2": 8192, "gemma3_text": 131_072}
PATTERNS = {"gemma2": 2, "gemma3_text": 6}  # every how many layers one sees everything
SANDWICH = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_post_norm": "post_feedforward_layernorm",
}
ACTIVATIONS = {"gelu_pytorch_tanh": "geglu_tanh", "gelu": "geglu"}
FIRST_ACTIVATIONS = ACTIVATIONS | {"gelu": "geglu_tanh"}  # how it was released; transformers means the same
MOST_LAYERS = 4096  # longest list of layer kinds made from a pattern


def read(values: Mapping[str, Any], names: Collection[str], *, model_type: str) -> ModelConfig:
    """Read the settings of a Gemma."""
    only(values, use_bidirectional_attention=False)
    sizes = llama.read_sizes(values, head_dim=256, context=CONTEXTS[model_type])
    attention_bias = setting(values, "attention_bias", bool, default=False)
    first = model_type == "gemma"
    decoder = StackConfig(
        **sizes,
        **_read_rope(values, model_type),
        **({} if first else _read_scores(values, sizes["layers"], model_type)),
        norm_eps=setting(values, "rms_norm_eps", NUMBER, 1e-6),
        norm_place="pre" if first else "sandwich",
        qk_norm="head" if model_type == "gemma3_text" else None,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn=_read_activation(values, first=first),
    )
    return ModelConfig(
        vocab_size=setting(values, "vocab_size", int),
        decoder=decoder,
        embedding_scale=decoder.dim**0.5,
        logit_softcap=None if first else _cap(values, "final_logit_softcapping", model_type, 30.0),
        **llama.predicts(values, tied=True, names=names),
    )


def _read_activation(values: Mapping[str, Any], *, first: bool) -> str:
    if first:
        return choice(values, "hidden_act", FIRST_ACTIVATIONS, "gelu_pytorch_tanh")
    return choice(values, "hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh")


def _read_scores(values: Mapping[str, Any], layers: int, model_type: str) -> dict[str, Any]:
    """Read how scores are scaled and capped, and which layers have a window."""
    if model_type == "gemma3_text":
        only(values, attn_logit_softcapping=None)  # transformers passes over it
    every = setting(values, "sliding_window_pattern", int, PATTERNS[model_type])
    usual = [
        llama.WHOLE if every > 0 and (layer + 1) % every == 0 else llama.WINDOW
        for layer in range(min(layers, MOST_LAYERS))
    ]
    width = setting(values, "sliding_window", int, 4096)
    scalar = setting(values, "query_pre_attn_scalar", NUMBER, 256)
    if not scalar > 0:
        raise refuse(f"query_pre_attn_scalar {scalar}")
    return {
        "attention_scale": scalar**-0.5,
        "attention_softcap": _cap(values, "attn_logit_softcapping", model_type, 50.0),
        "window": llama.read_kinds(values, layers, width, usual),
    }


def _cap(values: Mapping[str, Any], name: str, model_type: str, usual: float) -> float | None:
    """Read a cap; null means none, and only the second Gemma has one where nothing is said."""
    default = usual if model_type == "gemma2" and name not in values else None
    found = setting(values, name, (*NUMBER, type(None)), default)
    return None if found is None else float(found)


def _read_rope(values: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """Read rotary positions; the third Gemma has two sets, one for each kind of layer."""
    if model_type != "gemma3_text":
        return read_rope(values)
    empty: dict[str, Any] = {}
    rope = setting(values, "rope_parameters", dict, empty)
    whole = setting(rope, llama.WHOLE, dict, setting(values, "rope_scaling", dict, empty))
    window = setting(rope, llama.WINDOW, dict, empty)
    only(window, rope_type="default")
    older = setting(values, "rope_theta", NUMBER, 1_000_000.0)
    older_local = setting(values, "rope_local_base_freq", NUMBER, 10_000.0)
    return {
        "rope_theta": float(setting(whole, "rope_theta", NUMBER, older)),
        "rope_local_theta": float(setting(window, "rope_theta", NUMBER, older_local)),
        "rope_scaling": read_scaling(whole, values.get("max_position_embeddings")),
    }


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Write the settings of a Gemma."""
    stack = config.main
    values = {"model_type": model_type, **llama.write_sizes(config, NAMES[model_type])}
    values |= {"attention_bias": stack.qkv_bias, "tie_word_embeddings": config.tied}
    if model_type == "gemma":
        return values | {"hidden_act": "gelu_pytorch_tanh"} | write_rope(stack)
    kinds = llama.write_kinds(stack)
    values |= {
        "hidden_activation": "gelu" if stack.ffn == "geglu" else "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _scalar(stack.attention_scale or stack.head_width**-0.5),
        "attn_logit_softcapping": stack.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        **kinds,
        "sliding_window": kinds["sliding_window"] or stack.context,  # there is one even where no layer has it
    }
    return values | (write_rope(stack) if model_type == "gemma2" else _write_rope(stack))


def _scalar(scale: float) -> int:
    """Return what scores are divided by the root of, which transformers wants to be a whole number."""
    near = round(scale**-2)
    if not (near > 0 and math.isclose(near**-0.5, scale, rel_tol=1e-12)):
        raise refuse(f"a factor of {scale} on scores")
    return near


def _write_rope(stack: StackConfig) -> dict[str, Any]:
    """Write the two sets of rotary settings, and the older form of them."""
    whole = write_rope(stack)
    local = stack.rope_local_theta or stack.rope_theta
    found: dict[str, Any] = {
        "rope_theta": stack.rope_theta,
        "rope_local_base_freq": local,
        "rope_parameters": {
            llama.WHOLE: whole["rope_parameters"],
            llama.WINDOW: {"rope_type": "default", "rope_theta": local},
        },
    }
    return found


FAMILIES = {
    model_type: Family(
        model_type,
        read=partial(read, model_type=model_type),
        write=partial(write, model_type=model_type),
        parts=partial(llama.parts, norms=llama.PRE_NORMS if model_type == "gemma" else SANDWICH, gain=1.0),
        root="model.",
        outside=llama.OUTSIDE,
        ignored=("rotary_emb.inv_freq",),
    )
    for model_type in NAMES
}
