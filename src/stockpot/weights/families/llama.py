"""Llama-type decoders: llama, mistral, qwen2 and qwen3.

They differ in few settings: biases on queries, keys and values (qwen2), norms of queries and keys (qwen3), a
window (mistral, qwen). Queries, keys and values are stored apart and joined here; so are gate and up.
Source: the config.json files of the released models, and the names their safetensors files use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, RopeScaling, StackConfig
from stockpot.weights.family import Family, Part, refuse, setting

__all__ = ["FAMILIES"]

NUMBER = (int, float)
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
CONTEXTS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
WINDOW = "sliding_attention"
WHOLE = "full_attention"


def read(values: Mapping[str, Any], *, model_type: str) -> ModelConfig:
    """Read the settings of a Llama-type model."""
    if setting(values, "hidden_act", str, "silu") != "silu":
        raise refuse(f"hidden_act {values['hidden_act']!r}")
    layers, heads = setting(values, "num_hidden_layers", int), setting(values, "num_attention_heads", int)
    dim = setting(values, "hidden_size", int)
    attention_bias = setting(values, "attention_bias", bool, default=False)
    decoder = StackConfig(
        layers=layers,
        dim=dim,
        heads=heads,
        kv_heads=setting(values, "num_key_value_heads", int, heads),
        head_dim=setting(values, "head_dim", int, 128 if model_type == "qwen3" else dim // max(heads, 1)),
        ffn_dim=setting(values, "intermediate_size", int),
        context=setting(values, "max_position_embeddings", int, CONTEXTS[model_type]),
        window=_read_windows(values, layers, model_type),
        norm_eps=setting(values, "rms_norm_eps", NUMBER, 1e-6),
        qk_norm="head" if model_type == "qwen3" else None,
        qkv_bias=attention_bias or model_type == "qwen2",
        out_bias=attention_bias and model_type != "qwen2",
        ffn_bias=setting(values, "mlp_bias", bool, default=False),
        **_read_rope(values),
    )
    tied = setting(values, "tie_word_embeddings", bool, default=False)
    return ModelConfig(vocab_size=setting(values, "vocab_size", int), decoder=decoder, tied=tied)


def _read_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the rotary settings, in the present form (``rope_parameters``) or the older one."""
    empty: dict[str, Any] = {}
    rope = setting(values, "rope_parameters", dict, empty) or setting(values, "rope_scaling", dict, empty)
    theta = float(setting(rope, "rope_theta", NUMBER, setting(values, "rope_theta", NUMBER, 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    fraction = setting(rope, "partial_rotary_factor", NUMBER, values.get("partial_rotary_factor", 1.0))
    found: dict[str, Any] = {"rope_theta": theta, "rope_fraction": fraction}
    if kind == "default":
        return found
    if kind not in ("linear", "llama3", "yarn"):
        raise refuse(f"rope type {kind!r}")
    unknown = {"mscale", "mscale_all_dim", "truncate"} & {
        key for key, value in rope.items() if value is not None
    }
    if unknown:
        raise refuse(f"{min(unknown)} in the rope settings")
    known = {
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_context",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    }
    choices = {ours: rope[name] for name, ours in known.items() if rope.get(name) is not None}
    if kind == "yarn" and "original_context" not in choices:
        choices["original_context"] = values.get("max_position_embeddings")
    return {**found, "rope_scaling": RopeScaling(kind=kind, factor=rope.get("factor"), **choices)}


def _read_windows(values: Mapping[str, Any], layers: int, model_type: str) -> tuple[int | None, ...]:
    """Read how far each layer looks back."""
    width = setting(values, "sliding_window", (int, type(None)))
    if width is None or model_type == "llama":
        return (None,)
    if model_type == "mistral":
        return (width,)
    if not setting(values, "use_sliding_window", bool, default=False):
        return (None,)
    first = setting(values, "max_window_layers", int, 28)
    kinds = setting(
        values, "layer_types", list, [WINDOW if i >= first else WHOLE for i in range(min(layers, 4096))]
    )
    if len(kinds) != layers or not set(kinds) <= {WINDOW, WHOLE}:
        raise refuse(f"layer_types {kinds[:4]!r}")
    return tuple(width if kind == WINDOW else None for kind in kinds)


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Write the settings of a Llama-type model."""
    stack = config.main
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.key_heads,
        "head_dim": stack.head_width,
        "intermediate_size": stack.ffn_width,
        "hidden_act": "silu",
        "max_position_embeddings": stack.context,
        "rms_norm_eps": stack.norm_eps,
        "tie_word_embeddings": config.tied,
        "attention_dropout": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
        "use_cache": True,
    }
    if model_type in ("llama", "qwen3"):
        values["attention_bias"] = stack.qkv_bias
    if model_type == "llama":
        values["mlp_bias"] = stack.ffn_bias
    return {**values, **_write_windows(stack, model_type), **_write_rope(stack)}


def _write_windows(stack: StackConfig, model_type: str) -> dict[str, Any]:
    widths = {width for width in stack.windows if width is not None}
    width = max(widths, default=None)
    if model_type == "llama":
        return {}
    if model_type == "mistral":
        return {"sliding_window": width}
    kinds = [WHOLE if width is None else WINDOW for width in stack.windows]
    return {"use_sliding_window": width is not None, "sliding_window": width, "layer_types": kinds}


def _write_rope(stack: StackConfig) -> dict[str, Any]:
    """Write the rotary settings in the present form, and in the older one for older readers."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": stack.rope_theta}
    if stack.rope_fraction != 1.0:
        rope["partial_rotary_factor"] = stack.rope_fraction
    scaling = stack.rope_scaling
    if scaling is None:
        return {"rope_theta": stack.rope_theta, "rope_parameters": rope}
    rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = scaling.original_context
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "attention_factor"),
    }.get(scaling.kind, ())
    rope |= {name: getattr(scaling, name) for name in names if getattr(scaling, name) is not None}
    return {"rope_theta": stack.rope_theta, "rope_parameters": rope, "rope_scaling": dict(rope)}


def parts(config: ModelConfig) -> list[Part]:
    """List where every tensor of a Llama-type model is stored."""
    found = [
        Part("embed.weight", ("model.embed_tokens.weight",)),
        Part("decoder.norm.weight", ("model.norm.weight",)),
    ]
    if not config.tied:
        found.append(Part("head.weight", ("lm_head.weight",)))
    for layer in range(config.main.layers):
        found += _layer_parts(config.main, f"decoder.layers.{layer}", f"model.layers.{layer}")
    return found


def _layer_parts(stack: StackConfig, ours: str, theirs: str) -> list[Part]:
    inner, kv = stack.heads * stack.head_width, stack.key_heads * stack.head_width
    qkv = tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv")
    gated = tuple(f"{theirs}.mlp.{name}_proj" for name in ("gate", "up"))
    found = [
        Part(f"{ours}.attention_norm.weight", (f"{theirs}.input_layernorm.weight",)),
        Part(f"{ours}.ffn_norm.weight", (f"{theirs}.post_attention_layernorm.weight",)),
    ]
    if stack.qk_norm is not None:
        found += [
            Part(f"{ours}.attention.{name}.weight", (f"{theirs}.self_attn.{name}.weight",))
            for name in ("q_norm", "k_norm")
        ]
    matrices = (
        ("attention.qkv", qkv, (inner, kv, kv), stack.qkv_bias),
        ("attention.out", (f"{theirs}.self_attn.o_proj",), (), stack.out_bias),
        ("ffn.up", gated, (stack.ffn_width, stack.ffn_width), stack.ffn_bias),
        ("ffn.down", (f"{theirs}.mlp.down_proj",), (), stack.ffn_bias),
    )
    for name, sources, rows, has_bias in matrices:
        for kind in ("weight", "bias") if has_bias else ("weight",):
            found.append(Part(f"{ours}.{name}.{kind}", tuple(f"{one}.{kind}" for one in sources), rows))
    return found


FAMILIES = {
    model_type: Family(
        model_type,
        read=partial(read, model_type=model_type),
        write=partial(write, model_type=model_type),
        parts=parts,
        ignored=("rotary_emb.inv_freq",),
    )
    for model_type in ("qwen3", "llama", "qwen2", "mistral")
}
