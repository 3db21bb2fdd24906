"""GPT-NeoX and Pythia: attention and feed-forward side by side, a quarter of each head rotated.

The file keeps queries, keys and values head by head.
Source: Black et al. 2022, arXiv:2204.06745, §2; the config.json files of Pythia.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.families.llama import predicts
from stockpot.weights.family import NUMBER, Family, Part, choice, only, setting
from stockpot.weights.rope import read_rope, write_rope

__all__ = ["FAMILIES"]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
ROOT = "gpt_neox."


def read(values: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read the settings of a GPT-NeoX."""
    only(values, is_decoder=False)
    attention_bias = setting(values, "attention_bias", bool, default=True)
    decoder = StackConfig(
        layers=setting(values, "num_hidden_layers", int),
        dim=setting(values, "hidden_size", int),
        heads=setting(values, "num_attention_heads", int),
        ffn_dim=setting(values, "intermediate_size", int),
        context=setting(values, "max_position_embeddings", int, 2048),
        norm="layer",
        norm_bias=True,
        norm_eps=setting(values, "layer_norm_eps", NUMBER, 1e-5),
        parallel=setting(values, "use_parallel_residual", bool, default=True),
        qk_norm=None,
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn=choice(values, "hidden_act", ACTIVATIONS, "gelu"),
        ffn_bias=True,
        **read_rope(
            values,
            theta=setting(values, "rotary_emb_base", NUMBER, 10_000.0),
            fraction=setting(values, "rotary_pct", NUMBER, 0.25),
        ),
    )
    vocab_size = setting(values, "vocab_size", int)
    return ModelConfig(vocab_size=vocab_size, decoder=decoder, **predicts(values, tied=False))


def write(config: ModelConfig) -> dict[str, Any]:
    """Write the settings of a GPT-NeoX."""
    stack = config.main
    spelled = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())} | {"gelu_tanh": "gelu_new"}
    rope = write_rope(stack)
    rope["rope_parameters"]["partial_rotary_factor"] = stack.rope_fraction
    return {
        "architectures": [f"GPTNeoX{'ForCausalLM' if config.predicts else 'Model'}"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.ffn_width,
        "max_position_embeddings": stack.context,
        "layer_norm_eps": stack.norm_eps,
        "use_parallel_residual": stack.parallel,
        "attention_bias": stack.qkv_bias,
        "hidden_act": spelled.get(stack.ffn, stack.ffn),
        "tie_word_embeddings": config.tied and config.predicts,
        "hidden_dropout": stack.dropout,
        "attention_dropout": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
        "rotary_pct": stack.rope_fraction,
        "rotary_emb_base": stack.rope_theta,
        **rope,
    }


def parts(config: ModelConfig) -> list[Part]:
    """List where every tensor of a GPT-NeoX is stored."""
    stack = config.main
    found = [Part("embed.weight", (f"{ROOT}embed_in.weight",))]
    if not config.tied:
        found.append(Part("head.weight", ("embed_out.weight",)))
    found += _both("decoder.norm", f"{ROOT}final_layer_norm")
    for layer in range(stack.layers):
        ours, theirs = f"decoder.layers.{layer}", f"{ROOT}layers.{layer}"
        qkv, out = f"{theirs}.attention.query_key_value", f"{theirs}.attention.dense"
        found += _both(f"{ours}.attention_norm", f"{theirs}.input_layernorm")
        found += _both(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
        found += _both(f"{ours}.attention.qkv", qkv, bias=stack.qkv_bias, mixed_heads=stack.heads)
        found += _both(f"{ours}.attention.out", out, bias=stack.out_bias)
        found += _both(f"{ours}.ffn.up", f"{theirs}.mlp.dense_h_to_4h")
        found += _both(f"{ours}.ffn.down", f"{theirs}.mlp.dense_4h_to_h")
    return found


def _both(ours: str, theirs: str, *, bias: bool = True, mixed_heads: int = 0) -> list[Part]:
    return [
        Part(f"{ours}.{kind}", (f"{theirs}.{kind}",), mixed_heads=mixed_heads)
        for kind in (("weight", "bias") if bias else ("weight",))
    ]


FAMILIES = {
    "gpt_neox": Family(
        "gpt_neox",
        read=read,
        write=write,
        parts=parts,
        root=ROOT,
        outside=("embed_out.", "lm_head."),
        older={"lm_head.weight": "embed_out.weight"},
        ignored=("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"),
    )
}
