"""What the architectures of GGUF files are: metadata ↔ our settings, tensor names ↔ our parameters.

An architecture is one entry of :data:`ARCHITECTURES`. As with families, whether a model *can* be written as one
is not a list of conditions: it can if the settings come back. Nothing here touches a file or a weight.

Source of the names: llama.cpp, src/llama-arch.cpp and src/models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.config import ModelConfig, RopeScaling, StackConfig
from stockpot.weights.family import Part, canonical
from stockpot.weights.gguf.stretch import FREQUENCIES, find_llama3, llama3_factors

__all__ = ["ARCHITECTURES", "Architecture", "Keys"]

Tables = Mapping[str, Sequence[float]]  # tensors that follow from the settings
SHAPES: dict[str, Mapping[str, Any]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head"},
    "gpt2": {
        "position": "learned", "norm": "layer", "norm_bias": True, "ffn": "gelu_tanh",
        "qkv_bias": True, "out_bias": True, "ffn_bias": True,
    },
}  # fmt: skip
OPTIONAL_BIASES = {"llama": ("qkv_bias", "out_bias", "ffn_bias"), "qwen3": ("qkv_bias",)}
BIAS_NAMES = {"qkv_bias": "attn_q", "out_bias": "attn_output", "ffn_bias": "ffn_up"}


@dataclass(frozen=True)
class Keys:
    """The metadata of one architecture, read with checks.

    Attributes:
        values: all metadata of a file.
        name: the architecture, which is the first part of its keys.
        tensors: names of the file's tensors.
        tables: the contents of the few small tensors that are settings.
    """

    values: Mapping[str, Any]
    name: str
    tensors: Collection[str]
    tables: Tables

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 1 to 2^31."""
        found = self.values.get(f"{self.name}.{key}", default)
        if type(found) is not int or not 1 <= found < 2**31:
            raise self.wrong(key, found)
        return found

    def number(self, key: str, default: float | None = None) -> float:
        """Return a positive number, as short as it was before it was cut to 32 bits."""
        found = self.values.get(f"{self.name}.{key}", default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1e30:
            raise self.wrong(key, found)
        return float(str(np.float32(found)))

    def text(self, key: str, default: str) -> str:
        """Return a text."""
        found = self.values.get(f"{self.name}.{key}", default)
        if not isinstance(found, str):
            raise self.wrong(key, found)
        return found

    def wrong(self, key: str, found: Any) -> CheckpointError:
        """Make the error for a missing or impossible setting."""
        said = "is missing" if found is None else f"is {str(found)[:80]!r}, which is not read"
        return CheckpointError(f"{self.name}.{key} {said}.", "Get the file again, or use another model.")


@dataclass(frozen=True)
class Architecture:
    """One ``general.architecture``.

    Attributes:
        name: as the metadata spells it.
        interleaves: whether the two halves of each query and key head lie in turn: 0, 8, 1, 9 … of 16 rows.
    """

    name: str
    interleaves: bool = False

    def read(self, keys: Keys, vocab_size: int) -> ModelConfig:
        """Read our settings from a file's metadata.

        Raises:
            CheckpointError: if they are missing, impossible, or of a model we do not have.
        """
        try:
            stack = StackConfig(**_read_sizes(keys), **_read_choices(keys))
            return ModelConfig(vocab_size=vocab_size, decoder=stack, tied="output.weight" not in keys.tensors)
        except ConfigError as error:
            raise CheckpointError(f"the model's settings are impossible: {error.what}") from error

    def write(self, config: ModelConfig) -> tuple[dict[str, Any], Tables]:
        """Write our settings, as near as they come: metadata, and tensors that follow from the settings."""
        stack = config.main
        norm = "layer_norm_epsilon" if stack.norm == "layer" else "layer_norm_rms_epsilon"
        found: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "context_length": stack.context,
            "embedding_length": stack.dim,
            "block_count": stack.layers,
            "feed_forward_length": stack.ffn_width,
            "attention.head_count": stack.heads,
            "attention.head_count_kv": stack.key_heads,
            f"attention.{norm}": stack.norm_eps,
        }
        tables: Tables = {}
        if stack.position == "rope":
            widths = ("attention.key_length", "attention.value_length", "rope.dimension_count")
            found |= dict.fromkeys(widths, stack.head_width)
            scaling, tables = _write_scaling(stack)
            found |= {"rope.freq_base": stack.rope_theta, **scaling}
        return {f"{self.name}.{key}": value for key, value in found.items()}, tables

    def parts(self, config: ModelConfig) -> list[Part]:
        """List where every tensor of a model is stored."""
        stack = config.main
        found = [Part("embed.weight", ("token_embd.weight",))]
        found += _pair("decoder.norm", "output_norm", stack.norm_bias)
        if stack.position == "learned":
            found.append(Part("decoder.positions.weight", ("position_embd.weight",)))
        if not config.tied:
            found.append(Part("head.weight", ("output.weight",)))
        for layer in range(stack.layers):
            found += self._layer(stack, f"decoder.layers.{layer}", f"blk.{layer}")
        return found

    def _layer(self, stack: StackConfig, ours: str, theirs: str) -> list[Part]:
        inner, kv = stack.heads * stack.head_width, stack.key_heads * stack.head_width
        found: list[Part] = []
        for name in ("attention_norm", "ffn_norm"):
            found += _pair(f"{ours}.{name}", f"{theirs}.{name.replace('attention', 'attn')}", stack.norm_bias)
        if stack.qk_norm is not None:
            found += [
                Part(f"{ours}.attention.{x}_norm.weight", (f"{theirs}.attn_{x}_norm.weight",)) for x in "qk"
            ]
        joined = self.name == "gpt2"
        qkv = ["attn_qkv"] if joined else [f"attn_{one}" for one in "qkv"]
        up = ["ffn_gate", "ffn_up"] if stack.is_gated else ["ffn_up"]
        for part, names, rows, has_bias in (
            ("attention.qkv", qkv, () if joined else (inner, kv, kv), stack.qkv_bias),
            ("attention.out", ["attn_output"], (), stack.out_bias),
            ("ffn.up", up, (stack.ffn_width,) * 2 if stack.is_gated else (), stack.ffn_bias),
            ("ffn.down", ["ffn_down"], (), stack.ffn_bias),
        ):
            for kind in ("weight", "bias") if has_bias else ("weight",):
                sources = tuple(f"{theirs}.{name}.{kind}" for name in names)
                found.append(Part(f"{ours}.{part}.{kind}", sources, rows))
        return found

    def can_hold(self, config: ModelConfig) -> bool:
        """Tell whether a model comes back the same after being written as this architecture."""
        if config.decoder is None or config.encoder is not None:
            return False
        values, tables = self.write(config)
        names = {name for part in self.parts(config) for name in part.theirs}
        keys = Keys(values, self.name, names, tables)
        try:
            return canonical(self.read(keys, config.vocab_size)) == canonical(config)
        except CheckpointError:
            return False

    def heads_of(self, name: str, stack: StackConfig) -> int | None:
        """Return how many heads the rows of a tensor hold in turns, or None if they lie as ours do."""
        last = name.split(".")[-2]
        heads = {"attn_q": stack.heads, "attn_k": stack.key_heads}
        return heads.get(last) if self.interleaves else None


ARCHITECTURES = {
    one.name: one
    for one in (
        Architecture("qwen3"),
        Architecture("qwen2"),
        Architecture("llama", interleaves=True),
        Architecture("gpt2"),
    )
}


def _pair(ours: str, theirs: str, has_bias: bool) -> list[Part]:
    kinds = ("weight", "bias") if has_bias else ("weight",)
    return [Part(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in kinds]


def _read_sizes(keys: Keys) -> dict[str, Any]:
    if keys.values.get(f"{keys.name}.expert_count"):
        raise keys.wrong("expert_count", keys.values[f"{keys.name}.expert_count"])
    dim, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    width = keys.whole("attention.key_length", dim // heads or None)
    if keys.name in ("qwen2", "gpt2") and width * heads != dim:  # they have no key for it
        raise keys.wrong("attention.key_length", width)
    if keys.whole("attention.value_length", width) != width:
        raise keys.wrong("attention.value_length", keys.values[f"{keys.name}.attention.value_length"])
    return {
        "layers": keys.whole("block_count"),
        "dim": dim,
        "heads": heads,
        "kv_heads": keys.whole("attention.head_count_kv", heads),
        "head_dim": width,
        "ffn_dim": keys.whole("feed_forward_length"),
        "context": keys.whole("context_length"),
    }


def _read_choices(keys: Keys) -> dict[str, Any]:
    found: dict[str, Any] = {"qk_norm": None, **SHAPES[keys.name]}
    for bias in OPTIONAL_BIASES.get(keys.name, ()):
        found[bias] = f"blk.0.{BIAS_NAMES[bias]}.bias" in keys.tensors
    if found.get("norm") == "layer":
        return {**found, "norm_eps": keys.number("attention.layer_norm_epsilon")}
    return {**found, "norm_eps": keys.number("attention.layer_norm_rms_epsilon"), **_read_rope(keys)}


def _read_rope(keys: Keys) -> dict[str, Any]:
    dim, heads = keys.whole("embedding_length"), keys.whole("attention.head_count")
    width = keys.whole("attention.key_length", dim // heads or None)
    if keys.whole("rope.dimension_count", width) != width:
        raise keys.wrong("rope.dimension_count", keys.values[f"{keys.name}.rope.dimension_count"])
    theta = keys.number("rope.freq_base", 10_000.0)
    kind = keys.text("rope.scaling.type", "none")
    found: dict[str, Any] = {"rope_theta": theta}
    if FREQUENCIES in keys.tables:
        scaling = find_llama3(keys.tables[FREQUENCIES], theta, width)
        if scaling is None or kind != "none":
            raise CheckpointError(f"{FREQUENCIES} stretches positions in a way that is not read.")
        return {**found, "rope_scaling": scaling}
    if kind == "none":
        return found
    if kind not in ("linear", "yarn"):
        raise keys.wrong("rope.scaling.type", kind)
    choices: dict[str, Any] = {"kind": kind, "factor": keys.number("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        choices["original_context"] = keys.whole("rope.scaling.original_context_length")
        choices["beta_fast"] = keys.number("rope.scaling.yarn_beta_fast", 32.0)
        choices["beta_slow"] = keys.number("rope.scaling.yarn_beta_slow", 1.0)
        size = keys.number("rope.scaling.attn_factor", 1.0)
        if size != 1.0:
            choices["attention_factor"] = size * (0.1 * log(choices["factor"]) + 1.0)
    return {**found, "rope_scaling": RopeScaling(**choices)}


def _write_scaling(stack: StackConfig) -> tuple[dict[str, Any], Tables]:
    scaling = stack.rope_scaling
    if scaling is None:
        return {}, {}
    if scaling.kind == "llama3":
        return {}, {FREQUENCIES: llama3_factors(scaling, stack.rope_theta, stack.head_width)}
    found: dict[str, Any] = {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling.kind == "yarn":
        found["rope.scaling.original_context_length"] = scaling.original_context
        plain = RopeScaling(factor=1.0)
        for ours in ("beta_fast", "beta_slow"):
            if getattr(scaling, ours) != getattr(plain, ours):
                found[f"rope.scaling.yarn_{ours}"] = getattr(scaling, ours)
    return found, {}
