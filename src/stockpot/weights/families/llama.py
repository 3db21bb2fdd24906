"""Llama-type decoders: llama, mistral, qwen2 and qwen3.

They differ in few settings: biases on queries, keys and values (qwen2), norms of queries and keys (qwen3), a
window (mistral, qwen). Queries, keys and values are stored apart and joined here; so are gate and up. Other
families of the same build (gemma, olmo2) share the map of names.
Source: the config.json files of the released models, and the names their safetensors files use.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.family import NUMBER, Family, Part, only, refuse, setting
from stockpot.weights.rope import read_rope, write_rope

__all__ = [
    "FAMILIES",
    "OUTSIDE",
    "parts",
    "predicts",
    "read_kinds",
    "read_sizes",
    "write_kinds",
    "write_sizes",
]

NAMES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
CONTEXTS = {"llama": 2048, "mistral": 131_072, "qwen2": 32_768, "qwen3": 32_768}
PRE_NORMS = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
JUDGE = "score.weight"
OUTSIDE = ("lm_head.", "score.")
WINDOW = "sliding_attention"
WHOLE = "full_attention"


# --- what other families share ---


def read_sizes(values: Mapping[str, Any], *, head_dim: int | None, context: int) -> dict[str, Any]:
    """Read the sizes that all families of this build spell alike.

    Args:
        values: the config.
        head_dim: a head's usual width in this family; None: width / heads.
        context: the family's usual context.
    """
    heads, dim = setting(values, "num_attention_heads", int), setting(values, "hidden_size", int)
    return {
        "layers": setting(values, "num_hidden_layers", int),
        "dim": dim,
        "heads": heads,
        "kv_heads": setting(values, "num_key_value_heads", int, heads),
        "head_dim": setting(values, "head_dim", int, head_dim or dim // max(heads, 1)),
        "ffn_dim": setting(values, "intermediate_size", int),
        "context": setting(values, "max_position_embeddings", int, context),
    }


def write_sizes(config: ModelConfig, name: str) -> dict[str, Any]:
    """Write what all families of this build spell alike; ``name`` begins the names of their classes."""
    stack = config.main
    purpose = (
        "ForSequenceClassification" if config.value_head else "ForCausalLM" if config.predicts else "Model"
    )
    judge = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}} if config.value_head else {}
    return {
        "architectures": [f"{name}{purpose}"],
        **judge,
        "vocab_size": config.vocab_size,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "num_key_value_heads": stack.key_heads,
        "head_dim": stack.head_width,
        "intermediate_size": stack.ffn_width,
        "max_position_embeddings": stack.context,
        "rms_norm_eps": stack.norm_eps,
        "tie_word_embeddings": config.tied and config.predicts,
        "attention_dropout": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
        "use_cache": True,
    }


def predicts(values: Mapping[str, Any], *, tied: bool, names: Collection[str] = ()) -> dict[str, bool]:
    """Read whether there is an output matrix, and whether it is the embedding's; or a value head instead.

    A network that was saved without its output matrix says so by the name of its class: ``LlamaModel``. A reward model
    is a classifier of a single class.
    """
    if JUDGE in names:
        if len(setting(values, "id2label", dict, default={0: "", 1: ""})) != 1:
            raise refuse("a classifier of several classes")
        return {"tied": True, "predicts": False, "value_head": True}
    tied = setting(values, "tie_word_embeddings", bool, default=tied)
    classes = setting(values, "architectures", list, [])
    is_bare = bool(classes) and str(classes[0]).endswith("Model") and not tied
    return {"tied": tied or is_bare, "predicts": not is_bare}


def read_kinds(
    values: Mapping[str, Any], layers: int, width: int | None, usual: list[str]
) -> tuple[int | None, ...]:
    """Read the window of each layer from ``layer_types``; ``usual`` says what they are where it is left out."""
    kinds = setting(values, "layer_types", list, usual)
    if len(kinds) != layers or not set(kinds) <= {WINDOW, WHOLE}:
        raise refuse(f"layer_types {str(kinds[:4])[:80]}")
    return tuple(width if kind == WINDOW else None for kind in kinds)


def write_kinds(stack: StackConfig) -> dict[str, Any]:
    """Write the window of each layer."""
    width = max((width for width in stack.windows if width is not None), default=None)
    kinds = [WHOLE if one is None else WINDOW for one in stack.windows]
    return {"sliding_window": width, "layer_types": kinds}


def parts(
    config: ModelConfig, *, norms: Mapping[str, str] = PRE_NORMS, gain: float = 0.0, root: str = "model."
) -> list[Part]:
    """List where every tensor is stored.

    Args:
        config: our settings.
        norms: our names of a layer's norms → theirs.
        gain: what the family adds to the weights of norms.
        root: what the names of the network begin with.
    """
    found = [
        Part("embed.weight", (f"{root}embed_tokens.weight",)),
        Part("decoder.norm.weight", (f"{root}norm.weight",), gain=gain),
    ]
    if not config.tied:
        found.append(Part("head.weight", ("lm_head.weight",)))
    if config.value_head:
        found.append(Part("value_head.out.weight", (JUDGE,)))
    for layer in range(config.main.layers):
        ours, theirs = f"decoder.layers.{layer}", f"{root}layers.{layer}"
        found += _layer_parts(config.main, ours, theirs)
        named = dict(norms)
        if config.main.qk_norm is not None:
            named |= {f"attention.{name}": f"self_attn.{name}" for name in ("q_norm", "k_norm")}
        found += [
            Part(f"{ours}.{mine}.weight", (f"{theirs}.{name}.weight",), gain=gain)
            for mine, name in named.items()
        ]
    return found


def _layer_parts(stack: StackConfig, ours: str, theirs: str) -> list[Part]:
    inner, kv = stack.heads * stack.head_width, stack.key_heads * stack.head_width
    qkv = tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv")
    gated = tuple(f"{theirs}.mlp.{name}_proj" for name in ("gate", "up"))
    matrices = (
        ("attention.qkv", qkv, (inner, kv, kv), stack.qkv_bias),
        ("attention.out", (f"{theirs}.self_attn.o_proj",), (), stack.out_bias),
        ("ffn.up", gated, (stack.ffn_width, stack.ffn_width), stack.ffn_bias),
        ("ffn.down", (f"{theirs}.mlp.down_proj",), (), stack.ffn_bias),
    )
    found = []
    for name, sources, rows, has_bias in matrices:
        for kind in ("weight", "bias") if has_bias else ("weight",):
            found.append(Part(f"{ours}.{name}.{kind}", tuple(f"{one}.{kind}" for one in sources), rows))
    return found


# --- llama, mistral, qwen ---


def read(values: Mapping[str, Any], names: Collection[str], *, model_type: str) -> ModelConfig:
    """Read the settings of a Llama-type model."""
    only(values, hidden_act="silu", rope_interleaved=False, use_bidirectional_attention=False)
    sizes = read_sizes(values, head_dim=128 if model_type == "qwen3" else None, context=CONTEXTS[model_type])
    attention_bias = setting(values, "attention_bias", bool, default=False)
    decoder = StackConfig(
        **sizes,
        **read_rope(values),
        window=_read_windows(values, sizes["layers"], model_type),
        norm_eps=setting(values, "rms_norm_eps", NUMBER, 1e-6),
        qk_norm="head" if model_type == "qwen3" else None,
        qkv_bias=attention_bias or model_type == "qwen2",
        out_bias=attention_bias and model_type != "qwen2",
        ffn_bias=setting(values, "mlp_bias", bool, default=False),
    )
    vocab_size = setting(values, "vocab_size", int)
    return ModelConfig(vocab_size=vocab_size, decoder=decoder, **predicts(values, tied=False, names=names))


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
    usual = [WINDOW if layer >= first else WHOLE for layer in range(min(layers, 4096))]
    return read_kinds(values, layers, width, usual)


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Write the settings of a Llama-type model."""
    stack = config.main
    values = {"model_type": model_type, **write_sizes(config, NAMES[model_type]), "hidden_act": "silu"}
    if model_type in ("llama", "qwen3"):
        values["attention_bias"] = stack.qkv_bias
    if model_type == "llama":
        values["mlp_bias"] = stack.ffn_bias
    windows = write_kinds(stack)
    if model_type == "mistral":
        values["sliding_window"] = windows["sliding_window"]
    elif model_type != "llama":
        values |= {"use_sliding_window": windows["sliding_window"] is not None, **windows}
    return {**values, **write_rope(stack)}


FAMILIES = {
    model_type: Family(
        model_type,
        read=partial(read, model_type=model_type),
        write=partial(write, model_type=model_type),
        parts=parts,
        root="model.",
        outside=OUTSIDE,
        ignored=("rotary_emb.inv_freq",),
    )
    for model_type in ("qwen3", "llama", "qwen2", "mistral")
}
