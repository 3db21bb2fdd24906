"""Tiny random decoders of the reference library give the same logits here.

Both sides compute in float32; 1e-5 is a few rounding errors on logits of size about 1.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stockpot.model.config import RopeScaling, decoder
from stockpot.model.transformer import Transformer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

SIZES = {"layers": 3, "dim": 32, "heads": 4, "context": 64, "vocab_size": 61}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
Weights = dict[str, Tensor]


def reference(name: str, **settings: Any) -> Any:
    """Build a tiny reference model with lively weights."""
    config = getattr(
        transformers, f"{name.removesuffix('Text')}{'Text' if name.endswith('Text') else ''}Config"
    )
    family = name.removesuffix("Text")
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}{HEADS.get(family, 'ForCausalLM')}")(config(**settings)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * (0.2 if value.ndim > 1 else 0.1))
    return model


HEADS = {"GPT2": "LMHeadModel"}


def same_logits(theirs: Any, ours: Transformer, weights: Weights, seq: int = 24) -> None:
    """Load the weights, all of them, and compare logits, also token by token through a cache."""
    ours.load_state_dict(weights, strict=True)
    ours.eval()
    assert sum(p.numel() for p in ours.parameters()) == ours.config.parameters()
    ids = torch.randint(3, 61, (2, seq), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=1e-5)
        cache = ours.new_cache(2, seq)
        parts = [ours(ids[:, :9], cache=cache).logits]
        parts += [ours(ids[:, i : i + 1], cache=cache).logits for i in range(9, seq)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


def llama_like(theirs: Any, norms: dict[str, str], *, gain: float = 0.0) -> Weights:
    """Map the names of the Llama line; ``gain`` is what the reference adds to norm weights."""
    old = dict(theirs.named_parameters())
    new = {
        "embed.weight": old.pop("model.embed_tokens.weight"),
        "decoder.norm.weight": old.pop("model.norm.weight") + gain,
    }
    if "lm_head.weight" in old:
        new["head.weight"] = old.pop("lm_head.weight")
    for i in range(3):
        here, there = f"decoder.layers.{i}.", f"model.layers.{i}."
        for kind in ("weight", "bias"):
            parts = [old.pop(f"{there}self_attn.{p}_proj.{kind}", None) for p in "qkv"]
            if parts[0] is not None:
                new[f"{here}attention.qkv.{kind}"] = torch.cat(parts)
        new[f"{here}attention.out.weight"] = old.pop(f"{there}self_attn.o_proj.weight")
        gate, up = (old.pop(f"{there}mlp.{p}_proj.weight") for p in ("gate", "up"))
        new[f"{here}ffn.up.weight"] = torch.cat((gate, up))
        new[f"{here}ffn.down.weight"] = old.pop(f"{there}mlp.down_proj.weight")
        for their_norm, our_norm in norms.items():
            new[f"{here}{our_norm}.weight"] = old.pop(f"{there}{their_norm}.weight") + gain
    assert not old, sorted(old)
    return new


PRE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
QK = {"self_attn.q_norm": "attention.q_norm", "self_attn.k_norm": "attention.k_norm"}
SANDWICH = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}


@pytest.mark.parametrize("tied", [True, False])
def test_the_default_decoder_is_qwen3(tied: bool) -> None:
    theirs = reference("Qwen3", **LLAMA, tie_word_embeddings=tied)
    ours = Transformer(decoder(**SIZES, kv_heads=2, ffn_dim=48, tied=tied))
    same_logits(theirs, ours, llama_like(theirs, {**PRE, **QK}))


def test_heads_wider_than_the_stream_are_qwen3_too() -> None:
    theirs = reference("Qwen3", **{**LLAMA, "head_dim": 16}, tie_word_embeddings=True)
    ours = Transformer(decoder(**SIZES, kv_heads=2, head_dim=16, ffn_dim=48))
    same_logits(theirs, ours, llama_like(theirs, {**PRE, **QK}))


@pytest.mark.parametrize(
    ("theirs_scaling", "scaling"),
    [
        ({"rope_type": "linear", "factor": 2.0}, RopeScaling(kind="linear", factor=2.0)),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            RopeScaling(kind="llama3", factor=8.0, original_context=32),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            RopeScaling(kind="yarn", factor=4.0, original_context=16),
        ),
    ],
    ids=["linear", "llama3", "yarn"],
)
def test_llama_with_stretched_positions(theirs_scaling: dict[str, Any], scaling: RopeScaling) -> None:
    settings = {**LLAMA, "rope_parameters": {"rope_theta": 10_000.0, **theirs_scaling}, "rms_norm_eps": 1e-6}
    theirs = reference("Llama", **settings)
    config = decoder(**SIZES, kv_heads=2, ffn_dim=48, tied=False, qk_norm=None, rope_scaling=scaling)
    same_logits(theirs, Transformer(config), llama_like(theirs, PRE))


def test_qwen2_has_biases_on_queries_keys_and_values() -> None:
    theirs = reference("Qwen2", **LLAMA, tie_word_embeddings=True)
    config = decoder(**SIZES, kv_heads=2, ffn_dim=48, qk_norm=None, qkv_bias=True)
    same_logits(theirs, Transformer(config), llama_like(theirs, PRE))


def test_mistral_has_a_sliding_window() -> None:
    theirs = reference("Mistral", **LLAMA, sliding_window=7, rms_norm_eps=1e-6)
    config = decoder(**SIZES, kv_heads=2, ffn_dim=48, tied=False, qk_norm=None, window=(7,))
    same_logits(theirs, Transformer(config), llama_like(theirs, PRE))


def test_olmo2_normalises_outputs_and_whole_projections() -> None:
    theirs = reference("Olmo2", **{k: v for k, v in LLAMA.items() if k != "head_dim"}, rms_norm_eps=1e-6)
    norms = {
        "post_attention_layernorm": "attention_post_norm",
        "post_feedforward_layernorm": "ffn_post_norm",
        **QK,
    }
    config = decoder(
        **SIZES,
        kv_heads=2,
        ffn_dim=48,
        tied=False,
        qk_norm="full",
        norm_place="output",
        rope_theta=theirs.config.rope_parameters["rope_theta"],
    )
    same_logits(theirs, Transformer(config), llama_like(theirs, norms))


def test_gemma2_caps_scores_and_alternates_windows() -> None:
    theirs = reference(
        "Gemma2",
        **LLAMA,
        sliding_window=6,
        query_pre_attn_scalar=12,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
    )
    config = decoder(
        **SIZES,
        kv_heads=2,
        ffn_dim=48,
        qk_norm=None,
        ffn="geglu_tanh",
        norm_place="sandwich",
        window=(6, None),
        attention_scale=12**-0.5,
        attention_softcap=5.0,
        logit_softcap=4.0,
        embedding_scale=32**0.5,
    )
    same_logits(theirs, Transformer(config), llama_like(theirs, SANDWICH, gain=1.0))


def test_gemma3_turns_windowed_layers_at_another_rate() -> None:
    settings = {
        **LLAMA,
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    theirs = reference("Gemma3Text", **settings)
    rates = {kind: values["rope_theta"] for kind, values in theirs.config.rope_parameters.items()}
    assert rates["sliding_attention"] != rates["full_attention"]
    config = decoder(
        **SIZES,
        kv_heads=2,
        ffn_dim=48,
        ffn="geglu_tanh",
        norm_place="sandwich",
        window=(6, 6, None),
        rope_theta=rates["full_attention"],
        rope_local_theta=rates["sliding_attention"],
        embedding_scale=32**0.5,
    )
    same_logits(theirs, Transformer(config), llama_like(theirs, {**SANDWICH, **QK}, gain=1.0))


def test_gpt2_has_learned_positions_and_biases() -> None:
    theirs = reference(
        "GPT2",
        vocab_size=61,
        n_positions=64,
        n_embd=32,
        n_layer=3,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    old = {name.removeprefix("transformer."): value for name, value in theirs.named_parameters()}
    new = {"embed.weight": old["wte.weight"], "decoder.positions.weight": old["wpe.weight"]}
    names = {
        "ln_1": "attention_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn.up",
        "mlp.c_proj": "ffn.down",
    }
    for kind in ("weight", "bias"):
        new[f"decoder.norm.{kind}"] = old[f"ln_f.{kind}"]
        for i in range(3):
            for name, mine in names.items():
                value = old[f"h.{i}.{name}.{kind}"]
                new[f"decoder.layers.{i}.{mine}.{kind}"] = value.T if value.ndim == 2 else value
    config = decoder(
        **SIZES,
        position="learned",
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        ffn="gelu_tanh",
        ffn_bias=True,
        qkv_bias=True,
        out_bias=True,
        qk_norm=None,
    )
    same_logits(theirs, Transformer(config), new)


def interleaved(value: Tensor) -> Tensor:
    """Turn rows ordered by head, then by query, key and value, into queries, keys, values."""
    return value.view(4, 3, 8, *value.shape[1:]).transpose(0, 1).reshape(value.shape)


def fused(theirs: Any, root: str, names: dict[str, str], qkv: str) -> Weights:
    """Map layers whose queries, keys and values are mixed head by head."""
    old, new = dict(theirs.named_parameters()), {}
    for kind in ("weight", "bias"):
        for i in range(3):
            mixed = old[f"{root}.{i}.{qkv}.{kind}"]
            new[f"decoder.layers.{i}.attention.qkv.{kind}"] = interleaved(mixed)
            for name, mine in names.items():
                new[f"decoder.layers.{i}.{mine}.{kind}"] = old[f"{root}.{i}.{name}.{kind}"]
    return new


def test_neox_adds_attention_and_feed_forward_side_by_side() -> None:
    theirs = reference(
        "GPTNeoX",
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 10_000.0, "rope_type": "default", "partial_rotary_factor": 0.25},
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "attention.dense": "attention.out",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.down",
    }
    new = fused(theirs, "gpt_neox.layers", names, "attention.query_key_value")
    old = dict(theirs.named_parameters())
    new |= {
        "embed.weight": old["gpt_neox.embed_in.weight"],
        "head.weight": theirs.get_output_embeddings().weight,
        "decoder.norm.weight": old["gpt_neox.final_layer_norm.weight"],
        "decoder.norm.bias": old["gpt_neox.final_layer_norm.bias"],
    }
    config = decoder(
        **SIZES,
        tied=False,
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        parallel=True,
        rope_fraction=0.25,
        ffn="gelu",
        ffn_dim=80,
        ffn_bias=True,
        qkv_bias=True,
        out_bias=True,
        qk_norm=None,
    )
    same_logits(theirs, Transformer(config), new)


def test_bloom_penalises_distance() -> None:
    theirs = reference(
        "Bloom", vocab_size=61, hidden_size=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2
    )
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attention.dense": "attention.out",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.down",
    }
    new = fused(theirs, "transformer.h", names, "self_attention.query_key_value")
    old = {name.removeprefix("transformer."): value for name, value in theirs.named_parameters()}
    new["embed.weight"] = old["word_embeddings.weight"]
    for kind in ("weight", "bias"):
        new[f"decoder.embedding_norm.{kind}"] = old[f"word_embeddings_layernorm.{kind}"]
        new[f"decoder.norm.{kind}"] = old[f"ln_f.{kind}"]
    config = decoder(
        **SIZES,
        position="alibi",
        norm="layer",
        norm_bias=True,
        norm_eps=1e-5,
        embedding_norm=True,
        ffn="gelu_tanh",
        ffn_bias=True,
        qkv_bias=True,
        out_bias=True,
        qk_norm=None,
    )
    same_logits(theirs, Transformer(config), new)
