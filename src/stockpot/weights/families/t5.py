"""T5, Flan-T5 and mT5: encoder and decoder with learned distances, unscaled scores and no biases.

The first edition shares one matrix between embeddings and logits and scales the hidden states for it; 1.1 and
mT5 have a matrix of their own and scale nothing. T5 has no longest text: ``n_positions`` (512 where it is left
out) is taken as the context it was trained with. A T5 without a decoder is a sentence encoder.
Source: Raffel et al. 2019, arXiv:1910.10683; Xue et al. 2020, arXiv:2010.11934; the released config.json files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.family import NUMBER, Family, Part, choice, refuse, setting

__all__ = ["FAMILIES"]

NAMES = {"t5": "T5", "mt5": "MT5"}
FEED_FORWARDS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu": "geglu_tanh",
    "gated-gelu_new": "geglu_tanh",
    "gated-silu": "swiglu",
}
USUAL = {"t5": "relu", "mt5": "gated-gelu"}


def read(values: Mapping[str, Any], names: Collection[str], *, model_type: str) -> ModelConfig:
    """Read the settings of a T5."""
    layers = setting(values, "num_layers", int, 6)
    stack: dict[str, Any] = {
        "dim": setting(values, "d_model", int, 512),
        "heads": setting(values, "num_heads", int, 8),
        "head_dim": setting(values, "d_kv", int, 64),
        "ffn_dim": setting(values, "d_ff", int, 2048),
        "context": setting(values, "n_positions", int, 512),
        "position": "relative",
        "relative_buckets": setting(values, "relative_attention_num_buckets", int, 32),
        "relative_distance": setting(values, "relative_attention_max_distance", int, 128),
        "attention_scale": 1.0,
        "norm_eps": setting(values, "layer_norm_epsilon", NUMBER, 1e-6),
        "qk_norm": None,
        "ffn": choice(values, "feed_forward_proj", FEED_FORWARDS, USUAL[model_type]),
    }
    vocab_size = setting(values, "vocab_size", int)
    encoder = StackConfig(**stack, layers=layers, attends="bidirectional")
    if "decoder.final_layer_norm.weight" not in names:
        return ModelConfig(vocab_size=vocab_size, encoder=encoder, predicts=False)
    shares = setting(values, "tie_word_embeddings", bool, default=True) and model_type == "t5"
    return ModelConfig(
        vocab_size=vocab_size,
        encoder=encoder,
        decoder=StackConfig(**stack, layers=setting(values, "num_decoder_layers", int, layers), cross=True),
        tied=shares or "lm_head.weight" not in names,
        logit_scale=encoder.dim**-0.5 if shares else None,
    )


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Write the settings of a T5."""
    stack = config.encoder
    if stack is None:
        raise refuse("a T5 without an encoder")
    spelled = {ours: theirs for theirs, ours in reversed(FEED_FORWARDS.items())}
    values: dict[str, Any] = {
        "architectures": [
            NAMES[model_type] + ("EncoderModel" if config.decoder is None else "ForConditionalGeneration")
        ],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "d_model": stack.dim,
        "d_kv": stack.head_width,
        "d_ff": stack.ffn_width,
        "num_heads": stack.heads,
        "num_layers": stack.layers,
        "n_positions": stack.context,
        "relative_attention_num_buckets": stack.relative_buckets,
        "relative_attention_max_distance": stack.relative_distance,
        "layer_norm_epsilon": stack.norm_eps,
        "feed_forward_proj": spelled.get(stack.ffn, stack.ffn),
        "dropout_rate": stack.dropout,
        "initializer_factor": 1.0,
        "is_encoder_decoder": config.decoder is not None,
        "tie_word_embeddings": config.tied and (model_type == "mt5" or config.logit_scale is not None),
    }
    if config.decoder is not None:
        values["num_decoder_layers"] = config.decoder.layers
    return values


def parts(config: ModelConfig) -> list[Part]:
    """List where every tensor of a T5 is stored."""
    found = [Part("embed.weight", ("shared.weight",))]
    if not config.tied:
        found.append(Part("head.weight", ("lm_head.weight",)))
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if stack is not None:
            found += _stack_parts(name, stack)
    return found


def _stack_parts(name: str, stack: StackConfig) -> list[Part]:
    distances = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found = [
        Part(f"{name}.norm.weight", (f"{name}.final_layer_norm.weight",)),
        Part(f"{name}.relative.table.weight", (distances,)),
    ]
    inner = stack.heads * stack.head_width
    for layer in range(stack.layers):
        ours, theirs = f"{name}.layers.{layer}", f"{name}.block.{layer}.layer"
        own, crossed, last = f"{theirs}.0", f"{theirs}.1", f"{theirs}.{1 + stack.cross}"
        matrices = {
            "attention.qkv": ([f"{own}.SelfAttention.{one}" for one in "qkv"], (inner,) * 3),
            "attention.out": ([f"{own}.SelfAttention.o"], ()),
            "attention_norm": ([f"{own}.layer_norm"], ()),
            "ffn.up": ([f"{last}.DenseReluDense.{one}" for one in _ups(stack)], _up_rows(stack)),
            "ffn.down": ([f"{last}.DenseReluDense.wo"], ()),
            "ffn_norm": ([f"{last}.layer_norm"], ()),
        }
        if stack.cross:
            matrices |= {
                "cross.q": ([f"{crossed}.EncDecAttention.q"], ()),
                "cross.kv": ([f"{crossed}.EncDecAttention.{one}" for one in "kv"], (inner,) * 2),
                "cross.out": ([f"{crossed}.EncDecAttention.o"], ()),
                "cross_norm": ([f"{crossed}.layer_norm"], ()),
            }
        for mine, (sources, rows) in matrices.items():
            names = tuple(f"{one}.weight" for one in sources)
            found.append(Part(f"{ours}.{mine}.weight", names, rows))
    return found


def _ups(stack: StackConfig) -> tuple[str, ...]:
    return ("wi_0", "wi_1") if stack.is_gated else ("wi",)


def _up_rows(stack: StackConfig) -> tuple[int, ...]:
    return (stack.ffn_width,) * 2 if stack.is_gated else ()


FAMILIES = {
    model_type: Family(
        model_type,
        read=partial(read, model_type=model_type),
        write=partial(write, model_type=model_type),
        parts=parts,
        copies={f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")},
        ignored=("EncDecAttention.relative_attention_bias.weight",),
    )
    for model_type in NAMES
}
