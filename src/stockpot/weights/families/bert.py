"""Encoders of the BERT build: bert, roberta and xlm-roberta.

Which heads a model has is told by the tensors that are there: none (a sentence encoder), one for masked
tokens, one for pairs of sentences, or one for classes. RoBERTa counts positions from two, and its first two
rows of positions belong to padding. The pooler of a model without classes is passed over: nothing here reads
it.
Source: Devlin et al. 2018, Liu et al. 2019, and the config.json files of the released models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from stockpot.model.config import ModelConfig, StackConfig
from stockpot.weights.family import NUMBER, Family, Part, choice, only, refuse, setting, short

__all__ = ["ACTIVATIONS", "FAMILIES", "POST_NORM", "classes", "pair"]

NAMES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
POST_NORM: dict[str, Any] = {
    "attends": "bidirectional",
    "norm": "layer",
    "norm_bias": True,
    "norm_place": "post",
    "embedding_norm": True,
    "final_norm": False,
    "position": "learned",
    "qk_norm": None,
    "qkv_bias": True,
    "out_bias": True,
    "ffn_bias": True,
}
HEADS = {  # ours → theirs: bert's, then roberta's
    "bert": {
        "masked_head.dense": "cls.predictions.transform.dense",
        "masked_head.norm": "cls.predictions.transform.LayerNorm",
        "logit_bias": "cls.predictions.bias",
        "head.weight": "cls.predictions.decoder.weight",
    },
    "roberta": {
        "masked_head.dense": "lm_head.dense",
        "masked_head.norm": "lm_head.layer_norm",
        "logit_bias": "lm_head.bias",
        "head.weight": "lm_head.decoder.weight",
    },
}
LAYER = {
    "attention.out": "attention.output.dense",
    "attention_post_norm": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_post_norm": "output.LayerNorm",
}
PADDING_ROWS = 2  # of RoBERTa's positions


def _build(model_type: str) -> str:
    """Return which of the two ways of naming a model type follows."""
    return "bert" if model_type == "bert" else "roberta"


def classes(values: Mapping[str, Any]) -> int:
    """Read how many classes a classifier has; files leave the usual two out."""
    labels: dict[str, str] = {}
    return len(setting(values, "id2label", dict, labels)) or int(setting(values, "num_labels", int, 2))


def pair(ours: str, theirs: str) -> list[Part]:
    """Store a weight and a bias."""
    return [Part(f"{ours}.{kind}", (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def read(values: Mapping[str, Any], names: Collection[str], *, model_type: str) -> ModelConfig:
    """Read the settings of a BERT or RoBERTa."""
    only(values, is_decoder=False, add_cross_attention=False, position_embedding_type="absolute")
    build, skipped = _build(model_type), 0
    if build == "roberta":
        only(values, pad_token_id=1)
        skipped = PADDING_ROWS
    encoder = StackConfig(
        **POST_NORM,
        layers=setting(values, "num_hidden_layers", int),
        dim=setting(values, "hidden_size", int),
        heads=setting(values, "num_attention_heads", int),
        ffn_dim=setting(values, "intermediate_size", int),
        context=setting(values, "max_position_embeddings", int, 512) - skipped,
        norm_eps=setting(values, "layer_norm_eps", NUMBER, 1e-12),
        ffn=choice(values, "hidden_act", ACTIVATIONS, "gelu"),
    )
    segments = setting(values, "type_vocab_size", int, 2)
    if segments < 1:
        raise refuse(f"type_vocab_size {segments}")
    masked = f"{HEADS[build]['masked_head.dense']}.weight" in names
    if masked and build == "bert" and encoder.ffn != "gelu":
        raise refuse(f"hidden_act {short(values['hidden_act'])} in the head for masked tokens")
    return ModelConfig(
        vocab_size=setting(values, "vocab_size", int),
        encoder=encoder,
        tied=not masked or setting(values, "tie_word_embeddings", bool, default=True),
        predicts=masked,
        masked_head=masked,
        logit_bias=masked,
        pair_classes=_read_classes(values, names, build, masked),
        segment_types=segments,
    )


def _read_classes(values: Mapping[str, Any], names: Collection[str], build: str, masked: bool) -> int:
    if build == "roberta":
        has_classes = "classifier.out_proj.weight" in names
    elif "cls.seq_relationship.weight" in names:
        return 2
    else:
        has_classes = "classifier.weight" in names and "bert.pooler.dense.weight" in names
    if has_classes and masked:
        raise refuse("a head for classes beside one for masked tokens")
    return classes(values) if has_classes else 0


def write(config: ModelConfig, *, model_type: str) -> dict[str, Any]:
    """Write the settings of a BERT or RoBERTa."""
    stack = config.main
    spelled = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    skipped = 0 if model_type == "bert" else PADDING_ROWS
    kinds = {
        (True, True): "ForPreTraining",
        (True, False): "ForMaskedLM",
        (False, True): "ForSequenceClassification",
        (False, False): "Model",
    }
    values: dict[str, Any] = {
        "architectures": [NAMES[model_type] + kinds[config.predicts, config.pair_classes > 0]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": stack.dim,
        "num_hidden_layers": stack.layers,
        "num_attention_heads": stack.heads,
        "intermediate_size": stack.ffn_width,
        "max_position_embeddings": stack.context + skipped,
        "type_vocab_size": config.segment_types,
        "layer_norm_eps": stack.norm_eps,
        "hidden_act": spelled.get(stack.ffn, stack.ffn),
        "tie_word_embeddings": config.tied,
        "hidden_dropout_prob": stack.dropout,
        "attention_probs_dropout_prob": stack.dropout,
        "initializer_range": config.init_std or stack.dim**-0.5,
    }
    if skipped:
        values["pad_token_id"] = 1
    if config.pair_classes and not config.predicts:
        labels = [f"LABEL_{number}" for number in range(config.pair_classes)]
        values["id2label"] = {str(number): label for number, label in enumerate(labels)}
        values["label2id"] = {label: number for number, label in enumerate(labels)}
    return values


def parts(config: ModelConfig, *, model_type: str) -> list[Part]:
    """List where every tensor of a BERT or RoBERTa is stored."""
    build = _build(model_type)
    embeddings = f"{build}.embeddings"
    found = [
        Part("embed.weight", (f"{embeddings}.word_embeddings.weight",)),
        Part("segments.weight", (f"{embeddings}.token_type_embeddings.weight",)),
        Part(
            "encoder.positions.weight",
            (f"{embeddings}.position_embeddings.weight",),
            skipped=PADDING_ROWS if build == "roberta" else 0,
        ),
        *pair("encoder.embedding_norm", f"{embeddings}.LayerNorm"),
    ]
    for layer in range(config.main.layers):
        ours, theirs = f"encoder.layers.{layer}", f"{build}.encoder.layer.{layer}"
        qkv = [f"{theirs}.attention.self.{name}" for name in ("query", "key", "value")]
        for kind in ("weight", "bias"):
            names = tuple(f"{name}.{kind}" for name in qkv)
            found.append(Part(f"{ours}.attention.qkv.{kind}", names, (config.dim,) * 3))
        for mine, name in LAYER.items():
            found += pair(f"{ours}.{mine}", f"{theirs}.{name}")
    return found + _head_parts(config, build)


def _head_parts(config: ModelConfig, build: str) -> list[Part]:
    found: list[Part] = []
    if config.predicts:
        for mine, name in HEADS[build].items():
            if mine.startswith("masked_head"):
                found += pair(mine, name)
            elif mine != "head.weight" or not config.tied:
                found.append(Part(mine, (name,)))
        if not config.tied:  # then transformers adds this bias, not the other, which it has all the same
            found.append(Part("logit_bias", (_own_bias(build),)))
    if config.pair_classes:
        dense = "bert.pooler.dense" if build == "bert" else "classifier.dense"
        out = "cls.seq_relationship" if config.predicts else "classifier"
        found += pair("pair_head.dense", dense)
        found += pair("pair_head.out", out if build == "bert" else "classifier.out_proj")
    return found


def _own_bias(build: str) -> str:
    """Name the bias that lies beside the output matrix and repeats the one of ``logit_bias`` where they are tied."""
    return HEADS[build]["logit_bias"].replace(".bias", ".decoder.bias")


def _family(model_type: str) -> Family:
    build = _build(model_type)
    return Family(
        model_type,
        read=partial(read, model_type=model_type),
        write=partial(write, model_type=model_type),
        parts=partial(parts, model_type=model_type),
        root=f"{build}.",
        outside=("cls.", "classifier.", "lm_head.", "qa_outputs."),
        older={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        copies={_own_bias(build): HEADS[build]["logit_bias"]},
        ignored=(
            "embeddings.position_ids",
            "embeddings.token_type_ids",
            "pooler.dense.weight",
            "pooler.dense.bias",
        ),
    )


FAMILIES = {model_type: _family(model_type) for model_type in NAMES}
