"""The tiny models that GGUF tests write: one of each architecture and option."""

from __future__ import annotations

from stockpot.model.config import RopeScaling

LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_context=16)
YARN = RopeScaling(kind="yarn", factor=4.0, original_context=16)
GPT2 = {
    "position": "learned", "norm": "layer", "norm_bias": True, "norm_eps": 1e-5, "qk_norm": None, "kv_heads": None,
    "qkv_bias": True, "out_bias": True, "ffn": "gelu_tanh", "ffn_bias": True,
}  # fmt: skip
ALL_BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}

MODELS = {
    "default": ("qwen3", {}),
    "default untied": ("qwen3", {"tied": False}),
    "qwen3 with biases and yarn": ("qwen3", {"qkv_bias": True, "rope_scaling": YARN, "head_dim": 16}),
    "qwen2": ("qwen2", {"qk_norm": None, "qkv_bias": True, "rope_theta": 1e6}),
    "llama": ("llama", {"qk_norm": None}),
    "llama with biases": ("llama", {"qk_norm": None, **ALL_BIASES}),
    "llama 3": ("llama", {"qk_norm": None, "rope_scaling": LLAMA3, "head_dim": 16}),
    "llama, stretched": ("llama", {"qk_norm": None, "rope_scaling": RopeScaling(factor=2.0)}),
    "llama, one group": ("llama", {"qk_norm": None, "kv_heads": 1, "rope_theta": 500_000.0}),
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied": ("gpt2", {**GPT2, "tied": False}),
}
