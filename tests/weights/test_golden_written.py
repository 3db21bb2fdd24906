"""Whatever shape we write as a family opens there and computes the same: each setting is tried on models of each build."""

from __future__ import annotations

import json

import pytest
import torch
from golden import NEAR

from stockpot.errors import ConfigError
from stockpot.model.config import ModelConfig, RopeScaling, StackConfig
from stockpot.model.transformer import Transformer
from stockpot.weights.families import family_of
from stockpot.weights.store import save_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

VOCAB = 90
BIASES = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}
LAYER_NORM = {"norm": "layer", "norm_bias": True, "qk_norm": None, **BIASES}
GEMMA = {"ffn": "geglu_tanh", "norm_place": "sandwich", "attention_scale": 0.25, "window": (6, None)}
BERT = {"attends": "bidirectional", "norm_place": "post", "embedding_norm": True, "final_norm": False}
BUILDS = {
    "llama": ({"qk_norm": None}, {}),
    "qwen3": ({}, {}),
    "olmo2": ({"norm_place": "output", "qk_norm": "full"}, {}),
    "gpt2": ({**LAYER_NORM, "position": "learned", "ffn": "gelu_tanh"}, {}),
    "gpt_neox": ({**LAYER_NORM, "parallel": True, "ffn": "gelu", "rope_fraction": 0.5}, {"tied": False}),
    "gemma": ({"qk_norm": None, "ffn": "geglu_tanh"}, {"embedding_scale": 32**0.5}),
    "gemma2": ({**GEMMA, "qk_norm": None}, {"embedding_scale": 32**0.5, "logit_softcap": 3.0}),
    "gemma3_text": ({**GEMMA, "rope_local_theta": 1e3}, {"embedding_scale": 32**0.5}),
    "bert": (
        {**LAYER_NORM, **BERT, "position": "learned", "ffn": "gelu"},
        {"masked_head": True, "logit_bias": True, "segment_types": 2},
    ),
}
STRETCHED = [
    RopeScaling(kind="linear", factor=3.0),
    RopeScaling(kind="yarn", factor=4.0, original_context=16),
    RopeScaling(kind="llama3", factor=8.0, original_context=16),
]
STACK = {
    "kv_heads": [2],
    "head_dim": [16],
    "ffn_dim": [40],
    "window": [(5,), (5, None), (None,)],
    "rope_theta": [300.0],
    "rope_local_theta": [None, 100.0],
    "rope_fraction": [0.5, 0.25, 1.0],
    "rope_scaling": STRETCHED,
    "position": ["none", "learned", "rope"],
    "norm_eps": [1e-2],
    "norm_bias": [False],
    "norm_place": ["pre", "post", "output", "sandwich"],
    "parallel": [True, False],
    "qk_norm": ["head", "full", None],
    "qkv_bias": [True, False],
    "out_bias": [True, False],
    "ffn_bias": [True, False],
    "attention_scale": [0.3],
    "attention_softcap": [2.0],
    "ffn": ["swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "quick_gelu", "relu", "silu"],
}
WHOLE = {
    "tied": [True, False],
    "embedding_scale": [2.0],
    "logit_scale": [0.5],
    "logit_softcap": [3.0],
    "pair_classes": [2],
}


def variants(build):
    """Yield models that differ from a build in one setting, or in none."""
    stack, whole = BUILDS[build]
    side = "encoder" if build == "bert" else "decoder"
    changes = [({}, {})]
    changes += [({name: value}, {}) for name, values in STACK.items() for value in values]
    changes += [({}, {name: value}) for name, values in WHOLE.items() for value in values]
    for inner, outer in changes:
        sizes = {"layers": 2, "dim": 32, "heads": 4, "context": 64}
        try:
            main = StackConfig(**{**sizes, **stack, **inner})
            yield {**inner, **outer}, ModelConfig(vocab_size=VOCAB, **{side: main, **whole, **outer})
        except ConfigError:  # no such model
            continue


def uneven(config):
    torch.manual_seed(0)
    model = Transformer(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            param.normal_(0.0, 0.2)
            if "norm" in name and name.endswith("weight"):
                param.add_(1.0)
    return model


@pytest.mark.parametrize("build", BUILDS)
def test_what_is_written_as_a_family_computes_the_same_there(build, tmp_path):
    written = []
    ids = torch.randint(VOCAB, (2, 24), generator=torch.Generator().manual_seed(1))
    for number, (change, config) in enumerate(variants(build)):
        if family_of(config, build).model_type == "stockpot":
            continue
        model, folder = uneven(config), tmp_path / str(number)
        save_model(folder, model, family=build)
        made = json.loads((folder / "config.json").read_text())["architectures"][0]
        theirs, report = getattr(transformers, made).from_pretrained(folder, output_loading_info=True)
        assert {key: names for key, names in report.items() if names} == {}, change
        with torch.no_grad():
            expected = theirs.eval()(ids)
            expected = expected["prediction_logits" if config.pair_classes else "logits"]
        torch.testing.assert_close(model(ids).logits, expected, **NEAR, msg=lambda text: f"{change}: {text}")  # noqa: B023
        written.append(change)
    assert {} in written
    assert len(written) > 5
