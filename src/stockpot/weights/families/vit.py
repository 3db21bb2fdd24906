"""ViT: an image encoder, bare, with the pooler of pretraining, or with a head for classes.

Which of the three is told by the tensors that are there.
Source: Dosovitskiy et al. 2020, and the config.json files of the released models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.model.config import StackConfig
from stockpot.model.vision import ImageConfig, ImageEncoder
from stockpot.weights.families.bert import ACTIVATIONS, classes, pair
from stockpot.weights.family import NUMBER, Part, VisionFamily, choice, only, setting

__all__ = ["FAMILIES"]

LAYER = {
    "attention_norm": "layernorm_before",
    "attention.out": "attention.output.dense",
    "ffn_norm": "layernorm_after",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
}


def read(values: Mapping[str, Any], names: Collection[str]) -> ImageConfig:
    """Read the settings of a ViT."""
    size, patch = setting(values, "image_size", int, 224), setting(values, "patch_size", int, 16)
    dim = setting(values, "hidden_size", int, 768)
    pooler = "vit.pooler.dense.weight" in names
    if pooler:
        only(values, pooler_act="tanh", pooler_output_size=dim)
    stack = StackConfig(
        layers=setting(values, "num_hidden_layers", int, 12),
        dim=dim,
        heads=setting(values, "num_attention_heads", int, 12),
        ffn_dim=setting(values, "intermediate_size", int, 3072),
        context=(size // max(patch, 1)) ** 2 + 1,
        norm_eps=setting(values, "layer_norm_eps", NUMBER, 1e-12),
        ffn=choice(values, "hidden_act", ACTIVATIONS, "gelu"),
        qkv_bias=setting(values, "qkv_bias", bool, default=True),
        attends="bidirectional",
        position="learned",
        norm="layer",
        norm_bias=True,
        qk_norm=None,
        out_bias=True,
        ffn_bias=True,
    )
    return ImageConfig(
        image_size=size,
        patch_size=patch,
        channels=setting(values, "num_channels", int, 3),
        stack=stack,
        pooler=pooler,
        classes=classes(values) if "classifier.weight" in names else 0,
    )


def write(config: ImageConfig) -> dict[str, Any]:
    """Write the settings of a ViT."""
    stack = config.stack
    spelled = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    values: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if config.classes else "ViTModel"],
        "model_type": "vit",
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.ffn_width,
        "layer_norm_eps": stack.norm_eps,
        "hidden_act": spelled.get(stack.ffn, stack.ffn),
        "qkv_bias": stack.qkv_bias,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": config.channels,
    }
    if config.classes:
        labels = {str(number): f"LABEL_{number}" for number in range(config.classes)}
        values |= {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}}
    return values


def parts(config: ImageConfig) -> list[Part]:
    """List where every tensor of a ViT is stored."""
    embeddings = "vit.embeddings"
    found = [
        Part("first", (f"{embeddings}.cls_token",), lead=2),
        Part("stack.positions.weight", (f"{embeddings}.position_embeddings",), lead=1),
        *pair("patches", f"{embeddings}.patch_embeddings.projection"),
        *pair("stack.norm", "vit.layernorm"),
    ]
    for layer in range(config.stack.layers):
        ours, theirs = f"stack.layers.{layer}", f"vit.encoder.layer.{layer}"
        for kind in ("weight", "bias") if config.stack.qkv_bias else ("weight",):
            names = tuple(f"{theirs}.attention.attention.{name}.{kind}" for name in ("query", "key", "value"))
            found.append(Part(f"{ours}.attention.qkv.{kind}", names, (config.stack.dim,) * 3))
        for own, name in LAYER.items():
            found += pair(f"{ours}.{own}", f"{theirs}.{name}")
    found += pair("pooler", "vit.pooler.dense") if config.pooler else []
    return found + (pair("classifier", "classifier") if config.classes else [])


FAMILIES = {
    "vit": VisionFamily("vit", read, write, parts, ImageEncoder, root="vit.", outside=("classifier.",))
}
