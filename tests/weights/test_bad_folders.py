"""Hostile folders: each file of a model in turn is something else; all is refused in one line, in bounded memory."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import zipfile
import zlib

import pytest
import torch
from memory import Peak

from stockpot.errors import StockpotError
from stockpot.weights.store import load, save

FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
]
BIG = 1 << 30
UNPACKED_MIB = 256  # what the bombs would become, more than a refusal may take


@functools.cache
def zip_bomb():
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("data.pkl", "w") as one,
    ):
        for _ in range(UNPACKED_MIB):
            one.write(bytes(1 << 20))
    return file.getvalue()


@functools.cache
def gzip_bomb():
    packer = zlib.compressobj(1, wbits=31)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(UNPACKED_MIB)), packer.flush()])


class Boom:
    def __reduce__(self):
        return (open, ("ran", "w"))


def torch_file():
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    return file.getvalue()


CONTENTS = {
    "zip bomb": zip_bomb,
    "gzip bomb": gzip_bomb,
    "pickle": lambda: pickle.dumps(Boom()),
    "torch file": torch_file,
    "GGUF claims": lambda: b"GGUF" + b"\x03\0\0\0" + b"\xff" * 16,
    "safetensors claims": lambda: (1 << 40).to_bytes(8, "little") + b"{",
    "deep JSON": lambda: b"[" * 200_000,
    "long number": lambda: b'{"vocab_size": ' + b"9" * 100_000 + b"}",
    "empty": bytes,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_something_else_is_refused_in_one_line(name, content, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / name).write_bytes(CONTENTS[content]())
    peak = Peak()
    with pytest.raises(StockpotError) as caught:
        load(folder)
    assert name in str(caught.value), caught.value
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()
    assert peak.grown_kib() < 200_000


@pytest.mark.parametrize("name", FILES)
def test_a_sparse_file_of_a_gigabyte_is_refused_unread(name, folder):
    with (folder / name).open("r+b") as file:
        file.truncate(BIG)
    peak = Peak()
    with pytest.raises(StockpotError, match=name):
        load(folder)
    assert peak.grown_kib() < 200_000


def test_an_id_far_beyond_the_others_is_refused_before_what_lies_between_is_listed(folder):
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = document["model"]["vocab"]
    vocabulary[next(iter(vocabulary))] = 2**31
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    peak = Peak()
    with pytest.raises(StockpotError, match="has ids of 16777216 and more"):
        load(folder)
    assert peak.grown_kib() < 200_000


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_pipe_in_a_files_place_is_not_waited_for(name, folder):
    def look():
        if name == "tokenizer_config.json":  # what is no file counts as absent there
            assert load(folder).tokenizer.encode("the cat")
            return
        with pytest.raises(StockpotError):
            load(folder)

    (folder / name).unlink()
    (folder / name).mkdir()
    look()
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    look()


def sharded(bundle, tmp_path, name):
    """Save a model in shards, whose index names one file so."""
    folder = save(tmp_path / "m", bundle, max_shard_gib=4e-5)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = name
    path.write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ""])
def test_an_index_cannot_lead_out_of_its_folder(name, bundle, tmp_path):
    folder = sharded(bundle, tmp_path, name)
    with pytest.raises(StockpotError, match=r"index\.json names the file"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["a" * 10_000, "\ud800", "a\0b", "a\nb", "fehlt.safetensors"], ids=lambda name: ascii(name)[:9]
)
def test_an_index_with_names_that_no_file_can_have_is_refused_in_one_line(name, bundle, tmp_path):
    folder = sharded(bundle, tmp_path, name)
    with pytest.raises(StockpotError, match=r"is missing \(1 in all\)") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_number_names_its_tensor_and_its_folder(value, bundle, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(tmp_path / "m", bundle, max_shard_gib=4e-5)
    name, file = next(
        iter(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].items())
    )
    weights = load_file(folder / file)
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] = value
    save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(StockpotError, match=f"NaN or infinity.*{name}") as caught:
        load(folder)
    assert str(folder) in str(caught.value)
