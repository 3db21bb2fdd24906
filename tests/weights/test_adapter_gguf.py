"""Adapters whose base is one GGUF file."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError
from stockpot.model.adapters import LoRA, attach
from stockpot.weights.adapter import CONFIG
from stockpot.weights.store import convert, load, save, save_adapter

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def adapted(bundle):
    model = copy.deepcopy(bundle.model)
    attach(model, LoRA(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_up" in name:
                parameter.normal_(std=0.2, generator=generator)
    return Bundle(model, bundle.tokenizer, bundle.template, bundle.generation, family=bundle.family)


@pytest.fixture
def pair(bundle, tmp_path):
    """Save a base as a file and an adapter on it; return the adapter's bundle, its folder and the file."""
    file = save(tmp_path / "base.gguf", bundle, quantize="q8_0")
    tuned = adapted(load(file))
    return tuned, save_adapter(tmp_path / "adapter", tuned, file), file


def test_it_comes_back_merged_into_its_base(pair):
    tuned, folder, file = pair
    again = load(folder)
    torch.testing.assert_close(logits(again.model), logits(tuned.model), atol=1e-5, rtol=1e-5)
    assert (logits(again.model) - logits(load(file).model)).abs().max() > 0.01
    assert again.family == "qwen3"
    assert json.loads((folder / CONFIG).read_text())["base_model_name_or_path"] == str(file)


def test_without_texts_of_its_own_it_takes_those_of_the_file(pair):
    _, folder, file = pair
    for path in folder.iterdir():
        if not path.name.startswith("adapter_"):
            path.unlink()
    again, base = load(folder), load(file)
    assert again.tokenizer.fingerprint == base.tokenizer.fingerprint
    assert again.template == base.template
    assert again.generation == base.generation
    assert again.stop_ids == base.stop_ids


def test_it_can_be_put_on_its_base_and_converted(pair, tmp_path):
    tuned, folder, file = pair
    worn = load(file, adapters=[folder])
    torch.testing.assert_close(logits(worn.model), logits(tuned.model), atol=1e-5, rtol=1e-5)
    whole = load(convert(folder, tmp_path / "whole"))
    torch.testing.assert_close(logits(whole.model), logits(tuned.model), atol=1e-5, rtol=1e-5)


def test_folder_and_file_may_move_together(pair, tmp_path):
    tuned, _, _ = pair
    for name in ("adapter", "base.gguf"):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "new" / name)
    again = load(tmp_path / "new" / "adapter")
    torch.testing.assert_close(logits(again.model), logits(tuned.model), atol=1e-5, rtol=1e-5)


def test_another_file_in_its_place_is_refused(pair, bundle):
    _, folder, file = pair
    save(file, bundle, quantize="q4_0")
    with pytest.raises(CheckpointError, match="its weights have changed"):
        load(folder)


def test_a_file_that_is_gone_is_named(pair):
    _, folder, file = pair
    file.unlink()
    with pytest.raises(CheckpointError, match=r"base\.gguf'? is not here.*\.gguf file"):
        load(folder)
