"""Adapter folders: they come back as they were written, belong to one base, and refuse what does not fit."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError
from stockpot.model.adapters import LoRA, attach
from stockpot.weights.adapter import CONFIG, WEIGHTS, base_of, is_adapter
from stockpot.weights.store import load, save, save_adapter

IDS = torch.tensor([[1, 5, 9, 2, 7]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def adapted(bundle, **choices):
    model = copy.deepcopy(bundle.model)
    attach(model, LoRA(**choices))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_up" in name:
                parameter.normal_(std=0.2)
    return Bundle(model, bundle.tokenizer, bundle.template, bundle.generation)


@pytest.mark.parametrize(
    "choices", [{}, {"rank": 3, "alpha": 5, "rslora": True}, {"targets": ("query", "up")}]
)
@pytest.mark.parametrize("shape", [{}, {"ffn": "gelu", "position": "alibi"}], ids=["qwen3", "native"])
def test_an_adapter_comes_back_merged_into_its_base(tmp_path, make_model, tokenizer, choices, shape):
    if "gelu" in shape.values() and choices.get("targets"):
        choices = {"targets": ("query", "down")}
    bundle = Bundle(make_model(**shape), tokenizer)
    base = save(tmp_path / "base", bundle)
    other = adapted(bundle, **choices)
    folder = save_adapter(tmp_path / "adapter", other, base)
    assert is_adapter(folder)
    loaded = load(folder)
    torch.testing.assert_close(logits(loaded.model), logits(other.model), atol=1e-5, rtol=1e-5)
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert not torch.allclose(logits(loaded.model), logits(bundle.model), atol=1e-2)


def test_an_adapter_is_small_and_names_its_base(tmp_path, bundle):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle, rank=1), base)
    assert (folder / WEIGHTS).stat().st_size < (base / "model.safetensors").stat().st_size / 4
    values = json.loads((folder / CONFIG).read_text())
    assert values["base_model_name_or_path"] == str(base)
    assert values["peft_type"] == "LORA"
    assert load(folder).template is not None


def test_saving_an_adapted_bundle_as_a_whole_merges_it(tmp_path, bundle):
    other = adapted(bundle)
    before = logits(other.model)
    folder = save(tmp_path / "merged", other)
    assert not is_adapter(folder)
    torch.testing.assert_close(logits(load(folder).model), before, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(other.model), before)


def test_an_adapter_of_an_adapter_is_added_to_both(tmp_path, bundle):
    base = save(tmp_path / "base", bundle)
    first = save_adapter(tmp_path / "first", adapted(bundle), base)
    second = adapted(load(first), rank=2)
    folder = save_adapter(tmp_path / "second", second, first)
    torch.testing.assert_close(logits(load(folder).model), logits(second.model), atol=1e-5, rtol=1e-5)


def test_folders_that_moved_together_are_found(tmp_path, bundle):
    (tmp_path / "here").mkdir()
    base = save(tmp_path / "here" / "base", bundle)
    save_adapter(tmp_path / "here" / "adapter", adapted(bundle), base)
    (tmp_path / "here").rename(tmp_path / "there")
    assert base_of(tmp_path / "there" / "adapter") == (tmp_path / "there" / "base").resolve()


def test_another_base_is_refused(tmp_path, bundle, make_model):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle), base)
    model = make_model()
    with torch.no_grad():
        model.embed.weight[0, 0] += 1
    save(base, Bundle(model, bundle.tokenizer))
    with pytest.raises(CheckpointError, match="weights have changed"):
        load(folder)


def test_a_base_that_is_gone_is_named(tmp_path, bundle):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle), base)
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match="is not here"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "alpha of"),
        ({"alpha_pattern": {"q_proj": "much"}}, "q_proj is 'much'"),
        ({"alpha_pattern": {r".*\.[qk]_proj": 1}}, "regular expression"),
        ({"init_lora_weights": "pissa_niter_16"}, "begun by 'pissa"),
        ({"alora_invocation_tokens": [1]}, "alora"),
    ],
)
def test_what_we_cannot_compute_is_refused(tmp_path, bundle, change, said):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle), base)
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_an_adapter_for_other_shapes_is_refused(tmp_path, bundle, make_model, tokenizer):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle), base)
    wide = save(tmp_path / "wide", Bundle(make_model(dim=64), tokenizer))
    values = json.loads((folder / CONFIG).read_text())
    values["stockpot"] = {}
    (folder / CONFIG).write_text(json.dumps(values | {"base_model_name_or_path": str(wide)}))
    with pytest.raises(CheckpointError, match=r"adapter matrices|change"):
        load(folder)


def test_a_cut_file_is_refused(tmp_path, bundle):
    base = save(tmp_path / "base", bundle)
    folder = save_adapter(tmp_path / "adapter", adapted(bundle), base)
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError):
        load(folder)
