"""What is saved is what is loaded, and what cannot be trusted is refused before it is used."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stockpot.errors import CheckpointError, ConfigError
from stockpot.run import Run
from stockpot.text.chat import Message
from stockpot.weights.store import load, load_model, save, save_model

VARIANTS = [
    ("decoder", {}),
    ("decoder", {"tied": False}),
    ("decoder", {"qk_norm": None}),
    ("decoder", {"qk_norm": None, "qkv_bias": True}),
    ("decoder", {"qk_norm": None, "qkv_bias": True, "out_bias": True, "ffn_bias": True}),
    ("decoder", {"window": (8, None)}),
    ("decoder", {"qk_norm": None, "window": (8,)}),
    ("decoder", {"position": "learned", "norm": "layer", "norm_bias": True, "ffn": "gelu"}),
    ("decoder", {"position": "relative", "ffn": "relu2", "logit_softcap": 30.0}),
    ("decoder", {"parallel": True, "norm_place": "pre", "embedding_scale": 2.0}),
    ("decoder", {"dropout": 0.1, "zero_init": False, "init_std": 0.02}),
    ("encoder", {}),
    ("encoder", {"position": "learned", "norm": "layer", "norm_place": "post", "norm_bias": True}),
    ("encoder_decoder", {}),
]


def same_weights(one, other):
    mine, yours = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == yours.keys() and all(torch.equal(mine[name], yours[name]) for name in mine)


@pytest.mark.parametrize(("shape", "choices"), VARIANTS)
def test_every_shape_comes_back_the_same(shape, choices, make_model, tmp_path):
    model = make_model(shape, **choices)
    found = load_model(save_model(tmp_path, model))
    assert same_weights(found, model)
    ids = torch.arange(1, 13).view(2, 6)
    more = {"source": ids} if shape == "encoder_decoder" else {}
    with torch.inference_mode():
        assert torch.equal(found(ids, **more).logits, model(ids, **more).logits)
    assert not found.training
    assert all(param.requires_grad for param in found.parameters())
    for name in ("init_std", "zero_init"):
        assert getattr(found.config, name) == getattr(model.config, name)
    assert found.config.main.dropout == model.config.main.dropout


@pytest.mark.parametrize(
    ("choices", "model_type"),
    [
        ({}, "qwen3"),
        ({"qk_norm": None}, "llama"),
        ({"qk_norm": None, "qkv_bias": True}, "qwen2"),
        ({"qk_norm": None, "window": (8,)}, "mistral"),
        ({"ffn": "relu2"}, "stockpot"),
        ({"logit_softcap": 30.0}, "stockpot"),
        ({"attention_scale": 0.5}, "stockpot"),
        ({"rope_fraction": 0.5}, "stockpot"),
    ],
)
def test_a_model_is_written_as_the_family_that_can_hold_it(choices, model_type, make_model, tmp_path):
    save_model(tmp_path, make_model(**choices))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == model_type


def test_a_bundle_comes_back_whole(bundle, folder):
    found = load(folder)
    assert found.source == folder.resolve()
    assert found.tokenizer.fingerprint == bundle.tokenizer.fingerprint
    assert found.generation["temperature"] == 0.7
    chat = [Message("user", "the cat")]
    assert found.encode(chat) == bundle.encode(chat)
    assert found.stop_ids == bundle.stop_ids
    assert same_weights(found.model, bundle.model)


def test_a_bundle_without_a_template_stays_without(bundle, tmp_path):
    bundle = type(bundle)(bundle.model, bundle.tokenizer)
    assert load(save(tmp_path / "base", bundle)).template is None


def test_saving_again_replaces_the_model_and_keeps_other_files(bundle, folder, make_model):
    (folder / "state").mkdir()
    (folder / "state" / "step.json").write_text("{}")
    (folder / "README.md").write_text("mine")
    other = type(bundle)(make_model(dim=48, heads=4), bundle.tokenizer)
    save(folder, other)
    assert load(folder).model.config.dim == 48
    assert (folder / "state" / "step.json").exists()
    assert (folder / "README.md").read_text() == "mine"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_failed_save_leaves_the_old_model(bundle, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stockpot.weights.store.write_parts", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, bundle)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nan_is_neither_written_nor_read(make_model, tmp_path):
    model = make_model()
    save_model(tmp_path / "good", model)
    with torch.no_grad():
        model.decoder.layers[0].ffn.down.weight[0, 0] = float("nan")
    with pytest.raises(
        CheckpointError, match=r"1 tensors hold NaN or infinity \(decoder.layers.0.ffn.down.weight"
    ):
        save_model(tmp_path / "bad", model)
    assert not (tmp_path / "bad" / "config.json").exists()
    weights = load_file(tmp_path / "good" / "model.safetensors")
    weights["model.norm.weight"][3] = float("inf")
    save_file(weights, tmp_path / "good" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"NaN or infinity \(model.norm.weight\)"):
        load_model(tmp_path / "good")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.float64])
def test_a_model_is_read_in_the_type_asked_for(dtype, folder):
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    found = load(folder, dtype=dtype).model
    assert {param.dtype for param in found.parameters()} == {expected}


def test_the_files_own_type_is_kept(make_model, tmp_path):
    save_model(tmp_path, make_model().bfloat16())
    assert load_model(tmp_path).embed.weight.dtype == torch.bfloat16
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_unknown_type_is_refused(folder):
    with pytest.raises(ConfigError, match="bfloat16"):
        load(folder, dtype="int8")


# --- references ---


@pytest.fixture
def run(tmp_path, bundle):
    run = Run.create(tmp_path / "run", stage="pretrain", recipe={})
    path = run.checkpoint(5, lambda folder: save(folder, bundle) and None, keep=2)
    run.set_model(path)
    run.finish("done")
    return tmp_path / "run"


def test_a_run_means_the_model_it_points_to(run, bundle):
    assert same_weights(load(run).model, bundle.model)
    assert load(run).source.name.startswith("step-")


def test_a_run_may_point_by_file_where_links_are_missing(run):
    target = str((run / "model").readlink())
    (run / "model").unlink()
    (run / "model.txt").write_text(target + "\n")
    assert load(run).source.name.startswith("step-")


def test_a_run_that_points_outside_itself_is_refused(run, folder):
    (run / "model").unlink()
    (run / "model.txt").write_text("../model\n")
    with pytest.raises(CheckpointError, match="outside the run"):
        load(run)


def test_what_does_not_exist_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        load(tmp_path / "nothing")
    assert "known name (smollm2, minilm)." in caught.value.todo
    with pytest.raises(CheckpointError, match="smolm2 does not exist") as caught:
        load("smolm2")
    assert caught.value.todo.endswith("Did you mean smollm2?")


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load(tmp_path)


def test_a_weights_file_alone_is_no_model(folder):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder / "model.safetensors")


def test_a_hub_id_needs_the_extra_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"stockpot\[hub\]"):
        load("someone/some-model")


def test_a_hub_id_without_a_network_is_told(monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route\nto anywhere")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="cannot be fetched from the hub: no route") as caught:
        load("someone/some-model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ref", ["runs/bse", "models/mine"])
def test_a_path_with_a_typing_error_never_goes_to_a_network(ref, tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it asked the hub")
    )
    with pytest.raises(CheckpointError, match=f"{ref} does not exist"):
        load(ref)


def test_the_hubs_own_cache_is_read_through_its_links(folder, tmp_path):
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load(snapshot).model.config.dim == 32


# --- shards ---


@pytest.fixture
def sharded(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def test_shards_are_read_as_one(sharded, bundle):
    assert same_weights(load(sharded).model, bundle.model)


def test_saving_over_shards_leaves_no_index(sharded, bundle):
    save(sharded, bundle)
    assert same_weights(load(sharded).model, bundle.model)
    assert not (sharded / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(
    "name", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", ""]
)
def test_an_index_cannot_name_files_elsewhere(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(CheckpointError, match="not one beside it"):
        load(sharded)


def test_a_link_out_of_the_folder_is_refused(sharded, tmp_path):
    outside = tmp_path / "elsewhere.safetensors"
    shutil.move(sharded / "model-00001-of-00002.safetensors", outside)
    (sharded / "model-00001-of-00002.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(sharded)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
)
def test_no_file_may_be_a_link_to_elsewhere(folder, tmp_path, name):
    shutil.move(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(folder)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        load(sharded)


def test_a_tensor_that_the_index_promises_in_vain_is_named(sharded):
    edit_index(
        sharded, lambda index: index["weight_map"].update({"ghost": "model-00001-of-00002.safetensors"})
    )
    with pytest.raises(CheckpointError, match="promises 'ghost'"):
        load(sharded)


@pytest.mark.parametrize("value", [[], "x", {"a": 1}])
def test_an_index_must_map_tensors_to_files(sharded, value):
    edit_index(sharded, lambda index: index.update({"weight_map": value}))
    with pytest.raises(CheckpointError, match="weight_map"):
        load(sharded)


# --- weights that do not fit ---


def test_all_that_does_not_fit_is_told_at_once(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    weights["surprise"] = torch.zeros(2)
    weights["model.embed_tokens.weight"] = torch.zeros(340, 31)
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    for told in (
        "1 missing (model.norm.weight)",
        "1 not expected (surprise)",
        "(340, 31) instead of (340, 32)",
        "model.layers.0.mlp.up_proj.weight (I8)",
    ):
        assert told in str(caught.value)


def test_a_stored_copy_of_tied_weights_is_ignored(folder, bundle):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    assert same_weights(load(folder).model, bundle.model)


def edit_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"model_type": "bigbird"}, "bigbird"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["qwen3"]}, "model_type"),
        ({"hidden_act": "mish"}, "mish"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": -1}, "layers"),
        ({"num_hidden_layers": 10**12}, "config.json describes"),
        ({"vocab_size": 10**15}, "config.json describes"),
        ({"num_attention_heads": True}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "kv_heads"),
        ({"layer_types": ["full_attention"], "use_sliding_window": True, "sliding_window": 4}, "layer_types"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"vocab_size": 100}, "the weights do not fit"),
    ],
)
def test_a_config_that_cannot_be_right_is_refused_in_one_line(folder, values, told):
    edit_config(folder, **values)
    with pytest.raises(CheckpointError, match=told) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN'])
def test_a_damaged_config_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(folder)


def test_a_tokenizer_larger_than_the_model_is_refused(bundle, make_model, tmp_path):
    small = type(bundle)(make_model(vocab_size=300), bundle.tokenizer)
    with pytest.raises(CheckpointError, match="tokenizer has"):
        load(save(tmp_path / "model", small))


def test_native_settings_that_are_wrong_are_refused(make_model, tmp_path):
    save_model(tmp_path, make_model(ffn="relu2"))
    edit_config(tmp_path, model={"vocab_size": 3, "dekoder": {}})
    with pytest.raises(CheckpointError, match="dekoder"):
        load_model(tmp_path)


# --- pickles ---


class Trap:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_refused_under_every_name_and_never_run(folder, tmp_path, protocol):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=protocol))
    with pytest.raises(CheckpointError, match="pickle"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_torchs_own_files_are_pickles(folder):
    torch.save({"a": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        load(folder)


def test_a_folder_with_only_a_pickle_says_so(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_weights_are_as_readable_as_the_files_beside_them(bundle, tmp_path):
    before = os.umask(0o027)
    try:
        folder = save(tmp_path / "model", bundle)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
