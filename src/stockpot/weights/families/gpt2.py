"""GPT-2: learned positions, layer norms before the sublayers, biases everywhere, matrices stored transposed.

Source: Radford et al. 2019, and the config.json of the released models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.family import NUMBER, Family, Part, choice, only, setting

__all__ = ["FAMILIES"]

ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
}
LAYER = {  # ours → theirs
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}


def read(values: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read the settings of a GPT-2."""
    only(values, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    dim = setting(values, "n_embd", int, 768)
    decoder = StackConfig(
        layers=setting(values, "n_layer", int, 12),
        dim=dim,
        heads=setting(values, "n_head", int, 12),
        ffn_dim=setting(values, "n_inner", int, 4 * dim),
        context=setting(values, "n_positions", int, 1024),
        position="learned",
        norm="layer",
        norm_bias=True,
        norm_eps=setting(values, "layer_norm_epsilon", NUMBER, 1e-5),
        qk_norm=None,
        qkv_bias=True,
        out_bias=True,
        ffn=choice(values, "activation_function", ACTIVATIONS, "gelu_new"),
        ffn_bias=True,
    )
    tied = setting(values, "tie_word_embeddings", bool, default=True)
    return ModelConfig(vocab_size=setting(values, "vocab_size", int, 50_257), decoder=decoder, tied=tied)


def write(config: ModelConfig) -> dict[str, Any]:
    """Write the settings of a GPT-2."""
    stack = config.main
    spelled = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": stack.dim,
        "n_layer": stack.layers,
        "n_head": stack.heads,
        "n_inner": stack.ffn_width,
        "n_positions": stack.context,
        "layer_norm_epsilon": stack.norm_eps,
        "activation_function": spelled.get(stack.ffn, stack.ffn),
        "tie_word_embeddings": config.tied,
        "resid_pdrop": stack.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
    }


def parts(config: ModelConfig) -> list[Part]:
    """List where every tensor of a GPT-2 is stored."""
    found = [
        Part("embed.weight", ("transformer.wte.weight",)),
        Part("decoder.positions.weight", ("transformer.wpe.weight",)),
    ]
    if not config.tied:
        found.append(Part("head.weight", ("lm_head.weight",)))
    norms = [("decoder.norm", "transformer.ln_f")]
    for layer in range(config.main.layers):
        norms += [
            (f"decoder.layers.{layer}.{ours}", f"transformer.h.{layer}.{theirs}")
            for ours, theirs in LAYER.items()
        ]
    for ours, theirs in norms:
        is_matrix = not ours.endswith("norm")
        found.append(Part(f"{ours}.weight", (f"{theirs}.weight",), transposed=is_matrix))
        found.append(Part(f"{ours}.bias", (f"{theirs}.bias",)))
    return found


FAMILIES = {
    "gpt2": Family(
        "gpt2",
        read=read,
        write=write,
        parts=parts,
        root="transformer.",
        outside=("lm_head.",),
        ignored=("attn.bias", "attn.masked_bias"),
    )
}
