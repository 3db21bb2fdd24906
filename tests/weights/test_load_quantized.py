"""Models that are rounded as they are opened."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError, ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the cat sat on the mat"] * 20, vocab_size=280)
    model = Transformer(
        decoder(layers=2, dim=64, heads=4, context=64, vocab_size=tokenizer.vocab_size, zero_init=False)
    )
    return save(tmp_path_factory.mktemp("models") / "tiny", Bundle(model, tokenizer))


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8), ("int4", 4)])
def test_a_model_is_rounded_and_writes(folder, kind, bits):
    bundle = load(folder, quantize=kind)
    assert bundle.model.bits == bits
    assert bundle.tokenizer.vocab_size == load(folder).tokenizer.vocab_size
    assert Engine(bundle).generate(["the cat"], Sampling(max_tokens=4))[0].tokens > 0


@pytest.mark.parametrize("choice", [{"quantize": "int3"}, {"quantize": "int8", "device": "cuda"}])
def test_an_unknown_kind_and_another_device_are_refused(folder, choice):
    with pytest.raises(ConfigError):
        load(folder, **choice)


@pytest.mark.parametrize("name", ["copy", "copy.gguf"])
def test_a_rounded_model_is_not_saved(folder, tmp_path, name):
    with pytest.raises(CheckpointError, match="quantised"):
        save(tmp_path / name, load(folder, quantize="int8"))
