"""DistilBERT: BERT with half the layers, no segments and no pooler.

Source: Sanh et al. 2019, arXiv:1910.01108, and the config.json of the released models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.families.bert import ACTIVATIONS, POST_NORM, pair
from stockpot.weights.family import Family, Part, choice, refuse, setting, short

__all__ = ["FAMILIES"]

EPS = 1e-12  # no setting of the family
LAYER = {
    "attention.out": "attention.out_lin",
    "attention_post_norm": "sa_layer_norm",
    "ffn.up": "ffn.lin1",
    "ffn.down": "ffn.lin2",
    "ffn_post_norm": "output_layer_norm",
}
ROOT = "distilbert."


def read(values: Mapping[str, Any], names: Collection[str]) -> ModelConfig:
    """Read the settings of a DistilBERT."""
    dim = setting(values, "dim", int, 768)
    encoder = StackConfig(
        **POST_NORM,
        layers=setting(values, "n_layers", int, 6),
        dim=dim,
        heads=setting(values, "n_heads", int, 12),
        ffn_dim=setting(values, "hidden_dim", int, 4 * dim),
        context=setting(values, "max_position_embeddings", int, 512),
        norm_eps=EPS,
        ffn=choice(values, "activation", ACTIVATIONS, "gelu"),
    )
    masked = "vocab_transform.weight" in names
    if masked and encoder.ffn != "gelu":
        raise refuse(f"activation {short(values['activation'])} in the head for masked tokens")
    return ModelConfig(
        vocab_size=setting(values, "vocab_size", int, 30_522),
        encoder=encoder,
        tied=not masked or setting(values, "tie_word_embeddings", bool, default=True),
        predicts=masked,
        masked_head=masked,
        logit_bias=masked,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """Write the settings of a DistilBERT."""
    stack = config.main
    spelled = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    return {
        "architectures": ["DistilBertForMaskedLM" if config.predicts else "DistilBertModel"],
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "dim": stack.dim,
        "n_layers": stack.layers,
        "n_heads": stack.heads,
        "hidden_dim": stack.ffn_width,
        "max_position_embeddings": stack.context,
        "activation": spelled.get(stack.ffn, stack.ffn),
        "sinusoidal_pos_embds": False,
        "tie_word_embeddings": config.tied,
        "dropout": stack.dropout,
        "attention_dropout": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
    }


def parts(config: ModelConfig) -> list[Part]:
    """List where every tensor of a DistilBERT is stored."""
    embeddings = f"{ROOT}embeddings"
    found = [
        Part("embed.weight", (f"{embeddings}.word_embeddings.weight",)),
        Part("encoder.positions.weight", (f"{embeddings}.position_embeddings.weight",)),
        *pair("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
    ]
    for layer in range(config.main.layers):
        ours, theirs = f"encoder.layers.{layer}", f"{ROOT}transformer.layer.{layer}"
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}.attention.{name}_lin.{kind}" for name in "qkv")
            found.append(Part(f"{ours}.attention.qkv.{kind}", names, (config.dim,) * 3))
        for mine, name in LAYER.items():
            found += pair(f"{ours}.{mine}", f"{theirs}.{name}")
    if config.predicts:
        found += pair("masked_head.dense", "vocab_transform")
        found += pair("masked_head.norm", "vocab_layer_norm")
        found.append(Part("logit_bias", ("vocab_projector.bias",)))
        if not config.tied:
            found.append(Part("head.weight", ("vocab_projector.weight",)))
    return found


FAMILIES = {
    "distilbert": Family(
        "distilbert",
        read=read,
        write=write,
        parts=parts,
        root=ROOT,
        outside=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
    )
}
