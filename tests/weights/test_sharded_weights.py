"""Models in several files: written, read, opened elsewhere, and never mixed with what was there before."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from stockpot.errors import CheckpointError, ConfigError
from stockpot.weights.store import convert, load, save

INDEX = "model.safetensors.index.json"
TINY = 40_000 / 2**30  # GiB: a few shards for a model of 160 kB


def weights_of(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def same_weights(one, other):
    mine, yours = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.fixture
def sharded(bundle, tmp_path):
    return save(tmp_path / "shards", bundle, max_shard_gib=TINY)


def test_a_model_in_shards_comes_back_bit_for_bit(sharded, bundle):
    assert len(weights_of(sharded)) > 2
    assert same_weights(load(sharded).model, bundle.model)


def test_no_shard_is_larger_than_asked_unless_one_tensor_is(sharded):
    for name in weights_of(sharded):
        tensors = load_file(sharded / name)
        held = sum(one.numel() * one.element_size() for one in tensors.values())
        assert held <= 40_000 or len(tensors) == 1


def test_the_index_names_every_tensor_once_and_their_size(sharded):
    index = json.loads((sharded / INDEX).read_text())
    held = {name: file for file in weights_of(sharded) for name in load_file(sharded / file)}
    assert index["weight_map"] == held
    total = sum(one.numel() * 4 for file in weights_of(sharded) for one in load_file(sharded / file).values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.golden
def test_transformers_opens_the_shards(sharded, bundle):
    transformers = pytest.importorskip("transformers")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(sharded, output_loading_info=True)
    assert not any(report.values())
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(bundle.model(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_limit_that_all_fits_in_gives_one_file(bundle, tmp_path):
    assert weights_of(save(tmp_path / "m", bundle, max_shard_gib=1)) == ["model.safetensors"]
    assert not (tmp_path / "m" / INDEX).exists()


def test_one_byte_gives_every_tensor_a_file_of_its_own(bundle, tmp_path):
    folder = save(tmp_path / "m", bundle, max_shard_gib=1e-12)
    assert all(len(load_file(folder / name)) == 1 for name in weights_of(folder))
    assert same_weights(load(folder).model, bundle.model)


def test_saving_in_another_number_of_files_leaves_none_of_the_old(sharded, bundle):
    for limit in (2 * TINY, None, TINY):
        save(sharded, bundle, max_shard_gib=limit)
        counts = {re.search(r"of-(\d+)", name)[1] for name in weights_of(sharded) if "-of-" in name}
        assert len(counts) == (0 if limit is None else 1)
        assert (sharded / "model.safetensors").exists() == (limit is None)
        assert same_weights(load(sharded).model, bundle.model)


def test_files_that_are_not_the_models_stay(sharded, bundle):
    (sharded / "model-extra.safetensors").write_bytes(b"mine")
    save(sharded, bundle)
    assert weights_of(sharded) == ["model-extra.safetensors", "model.safetensors"]


def test_a_save_that_fails_halfway_leaves_the_old_model(sharded, bundle, monkeypatch):
    from stockpot.weights import tensors

    wrote, write = [], tensors.save_file

    def fails(stored, path, **more):
        wrote.append(path)
        if len(wrote) == 2:
            raise OSError(28, "No space left on device")
        write(stored, path, **more)

    monkeypatch.setattr(tensors, "save_file", fails)
    before = weights_of(sharded)
    with pytest.raises(OSError, match="No space"):
        save(sharded, bundle, max_shard_gib=TINY / 2)
    assert weights_of(sharded) == before
    assert not list(sharded.glob(".half*"))
    assert same_weights(load(sharded).model, bundle.model)


def test_until_the_index_is_there_new_shards_are_no_model(sharded, bundle, monkeypatch):
    """A kill between two renames must not leave new shards under an old index."""
    from pathlib import Path

    replace, renamed = Path.replace, []

    def killed(self, target):
        if str(target).endswith(".safetensors"):
            renamed.append(target)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(sharded, bundle, max_shard_gib=TINY)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="holds no"):
        load(sharded)


def test_convert_writes_shards_and_joins_them(sharded, bundle, tmp_path):
    one = convert(sharded, tmp_path / "one")
    assert weights_of(one) == ["model.safetensors"]
    again = convert(one, tmp_path / "again", max_shard_gib=TINY)
    assert weights_of(again) == weights_of(sharded)
    for name in weights_of(again):
        assert (again / name).read_bytes() == (sharded / name).read_bytes()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_must_be_a_size(limit, bundle, tmp_path):
    with pytest.raises(ConfigError, match="max_shard_gib"):
        save(tmp_path / "m", bundle, max_shard_gib=limit)
    assert not (tmp_path / "m").exists()


def test_a_gguf_file_has_no_shards(bundle, tmp_path):
    with pytest.raises(ConfigError, match="one file"):
        save(tmp_path / "m.gguf", bundle, max_shard_gib=1)
