"""CLIP: an image tower and a text tower, together (``clip``) or alone.

A tower alone carries the root of its name only beside a projection; files of both kinds are read. The text tower's
pooled state stands at the first end-of-text id; configs from before that was mended say ``eos_token_id`` 2, and mean the
largest id.
Source: Radford et al. 2021, and the config.json files of the released models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.model.vision import (
    ImageConfig,
    ImageEncoder,
    TextTower,
    TextTowerConfig,
    TowersConfig,
    TwoTowers,
)
from stockpot.weights.families.bert import pair
from stockpot.weights.family import NUMBER, Part, VisionFamily, choice, setting

__all__ = ["FAMILIES"]

ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
LAYER = {
    "attention_norm": "layer_norm1",
    "attention.out": "self_attn.out_proj",
    "ffn_norm": "layer_norm2",
    "ffn.up": "mlp.fc1",
    "ffn.down": "mlp.fc2",
}
SPELLED = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
OLD_END, END = 2, 49_407  # transformers' defaults: before it was mended, and now
IGNORED = ("embeddings.position_ids",)


# --- settings ---


def _stack(values: Mapping[str, Any], *, width: int, ffn: int, heads: int, **more: Any) -> StackConfig:
    return StackConfig(
        layers=setting(values, "num_hidden_layers", int, 12),
        dim=setting(values, "hidden_size", int, width),
        heads=setting(values, "num_attention_heads", int, heads),
        ffn_dim=setting(values, "intermediate_size", int, ffn),
        norm_eps=setting(values, "layer_norm_eps", NUMBER, 1e-5),
        ffn=choice(values, "hidden_act", ACTIVATIONS, "quick_gelu"),
        position="learned",
        norm="layer",
        norm_bias=True,
        qk_norm=None,
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        **more,
    )


def read_image(values: Mapping[str, Any], names: Collection[str]) -> ImageConfig:
    """Read the settings of an image tower."""
    size, patch = setting(values, "image_size", int, 224), setting(values, "patch_size", int, 32)
    context = (size // max(patch, 1)) ** 2 + 1
    has_projection = "visual_projection.weight" in names
    return ImageConfig(
        image_size=size,
        patch_size=patch,
        channels=setting(values, "num_channels", int, 3),
        patch_bias=False,
        stack=_stack(
            values,
            width=768,
            ffn=3072,
            heads=12,
            attends="bidirectional",
            context=context,
            embedding_norm=True,
            final_norm=False,
        ),
        pool_norm=True,
        projection=setting(values, "projection_dim", int, 512) if has_projection else 0,
    )


def read_text(values: Mapping[str, Any], names: Collection[str]) -> TextTowerConfig:
    """Read the settings of a text tower."""
    end = setting(values, "eos_token_id", int, END)
    context = setting(values, "max_position_embeddings", int, 77)
    network = ModelConfig(
        vocab_size=setting(values, "vocab_size", int, 49_408),
        decoder=_stack(values, width=512, ffn=2048, heads=8, context=context),
        predicts=False,
    )
    has_projection = "text_projection.weight" in names
    return TextTowerConfig(
        text=network,
        end_id=None if end == OLD_END else end,
        projection=setting(values, "projection_dim", int, 512) if has_projection else 0,
    )


def read(values: Mapping[str, Any], names: Collection[str]) -> TowersConfig:
    """Read the settings of both towers; what they share stands beside them."""
    shared = {"projection_dim": setting(values, "projection_dim", int, 512)}
    towers = {
        name: setting(values, f"{name}_config", dict, values.get(f"{name}_config_dict") or {}) | shared
        for name in ("vision", "text")
    }
    return TowersConfig(image=read_image(towers["vision"], names), text=read_text(towers["text"], names))


def _write_stack(stack: StackConfig) -> dict[str, Any]:
    return {
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.ffn_width,
        "layer_norm_eps": stack.norm_eps,
        "hidden_act": SPELLED.get(stack.ffn, stack.ffn),
    }


def write_image(config: ImageConfig) -> dict[str, Any]:
    """Write the settings of an image tower."""
    return {
        "architectures": ["CLIPVisionModelWithProjection" if config.projection else "CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **_write_stack(config.stack),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
        "projection_dim": config.projection or 512,
    }


def write_text(config: TextTowerConfig) -> dict[str, Any]:
    """Write the settings of a text tower."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        **_write_stack(config.text.main),
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.context,
        "eos_token_id": OLD_END if config.end_id is None else config.end_id,
        "projection_dim": config.projection or 512,
    }


def write(config: TowersConfig) -> dict[str, Any]:
    """Write the settings of both towers."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.image.projection,
        "vision_config": write_image(config.image),
        "text_config": write_text(config.text),
    }


# --- tensors ---


def _stack_parts(stack: StackConfig, ours: str, theirs: str) -> list[Part]:
    found = [Part(f"{ours}.positions.weight", (f"{theirs}.embeddings.position_embedding.weight",))]
    for layer in range(stack.layers):
        mine, yours = f"{ours}.layers.{layer}", f"{theirs}.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            names = tuple(f"{yours}.self_attn.{name}_proj.{kind}" for name in "qkv")
            found.append(Part(f"{mine}.attention.qkv.{kind}", names, (stack.dim,) * 3))
        for own, name in LAYER.items():
            found += pair(f"{mine}.{own}", f"{yours}.{name}")
    return found


def image_parts(config: ImageConfig, *, ours: str = "", root: str = "vision_model") -> list[Part]:
    """List where every tensor of an image tower is stored."""
    found = [
        Part(f"{ours}first", (f"{root}.embeddings.class_embedding",)),
        Part(f"{ours}patches.weight", (f"{root}.embeddings.patch_embedding.weight",)),
        *pair(f"{ours}stack.embedding_norm", f"{root}.pre_layrnorm"),
        *_stack_parts(config.stack, f"{ours}stack", root),
        *pair(f"{ours}pool_norm", f"{root}.post_layernorm"),
    ]
    return found + (
        [Part(f"{ours}projection.weight", ("visual_projection.weight",))] if config.projection else []
    )


def text_parts(config: TextTowerConfig, *, ours: str = "", root: str = "text_model") -> list[Part]:
    """List where every tensor of a text tower is stored."""
    found = [
        Part(f"{ours}text.embed.weight", (f"{root}.embeddings.token_embedding.weight",)),
        *_stack_parts(config.text.main, f"{ours}text.decoder", root),
        *pair(f"{ours}text.decoder.norm", f"{root}.final_layer_norm"),
    ]
    return found + (
        [Part(f"{ours}projection.weight", ("text_projection.weight",))] if config.projection else []
    )


def parts(config: TowersConfig) -> list[Part]:
    """List where every tensor of both towers is stored."""
    scale = Part("scale", ("logit_scale",), lead=-1)
    return [*image_parts(config.image, ours="image."), *text_parts(config.text, ours="text."), scale]


FAMILIES: dict[str, VisionFamily] = {
    "clip": VisionFamily("clip", read, write, parts, TwoTowers, ignored=IGNORED),
    "clip_vision_model": VisionFamily(
        "clip_vision_model",
        read_image,
        write_image,
        image_parts,
        ImageEncoder,
        root="vision_model.",
        outside=("visual_projection.",),
        ignored=IGNORED,
    ),
    "clip_text_model": VisionFamily(
        "clip_text_model",
        read_text,
        write_text,
        text_parts,
        TextTower,
        root="text_model.",
        outside=("text_projection.",),
        ignored=IGNORED,
    ),
}
