"""Reward models: classifiers of one class in transformers, a value head here, with equal rewards."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError
from stockpot.weights.store import load, load_model, save

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

IDS = torch.tensor([[1, 5, 9, 2, 7, 30, 31]])
SMALL = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def ours(model):
    with torch.no_grad():
        return model.values(model(IDS, last=0).hidden)[0, -1].item()


def theirs(model):
    with torch.no_grad():
        return model(IDS).logits[0, 0].item()


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Qwen2", "Mistral"])
def test_rewards_of_transformers_are_read(tmp_path, family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, num_labels=1)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    model.save_pretrained(tmp_path)
    found = load_model(tmp_path)
    assert found.config.value_head
    assert ours(found) == pytest.approx(theirs(model), abs=1e-5)


def test_transformers_reads_our_rewards(tmp_path, make_model, tokenizer):
    model = make_model(value_head=True, predicts=False)
    save(tmp_path, Bundle(model, tokenizer))
    found = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(found).__name__ == "Qwen3ForSequenceClassification"
    assert found.config.num_labels == 1
    assert found.config.pad_token_id == tokenizer.pad_id
    assert theirs(found) == pytest.approx(ours(model), abs=1e-5)
    assert ours(load(tmp_path).model) == pytest.approx(ours(model), abs=1e-6)


def test_a_classifier_of_several_classes_is_refused(tmp_path):
    config = transformers.LlamaConfig(**SMALL, num_labels=3)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="several classes"):
        load_model(tmp_path)
