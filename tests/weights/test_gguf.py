"""GGUF files: what is written is read again, packed numbers are the package's, and nothing damaged is used."""

from __future__ import annotations

import random
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from gguf_models import MODELS
from memory import Peak

from stockpot.bundle import Bundle
from stockpot.errors import CheckpointError, ConfigError, StockpotError, TokenizerError
from stockpot.gguf_directory import GGUFTensor, read_directory
from stockpot.model.config import RopeScaling
from stockpot.model.quantized import quantize as quantize_model
from stockpot.native.calls import DECODED, kernels
from stockpot.text.chat import Message
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.family import canonical
from stockpot.weights.gguf import blocks, reading
from stockpot.weights.gguf.blocks import KINDS, PIECE, decode_into
from stockpot.weights.gguf.stretch import find_llama3, llama3_factors
from stockpot.weights.store import load, load_model, save


def params_of(model):
    return dict(model.named_parameters())


@pytest.fixture
def make_bundle(make_model, tokenizer, bundle):
    def make(**choices):
        return Bundle(make_model(**choices), tokenizer, bundle.template, {"temperature": 0.7, "top_k": 20})

    return make


@pytest.fixture
def file(bundle, tmp_path):
    return save(tmp_path / "model.gguf", bundle)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_the_same(name, make_bundle, tmp_path):
    architecture, choices = MODELS[name]
    before = make_bundle(**choices)
    path = save(tmp_path / "model.gguf", before)
    assert read_directory(path).values["general.architecture"] == architecture
    after = load(path)
    assert canonical(after.model.config) == canonical(before.model.config)
    for key, param in params_of(before.model).items():
        assert torch.equal(params_of(after.model)[key], param), key
    ids = torch.arange(1, 25).view(2, 12)
    with torch.inference_mode():
        assert torch.equal(after.model(ids).logits, before.model(ids).logits)
    assert not after.model.training
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


def test_a_bundle_comes_back_whole(make_bundle, tmp_path):
    before = make_bundle()
    after = load(save(tmp_path / "model.gguf", before))
    assert after.source == tmp_path / "model.gguf"
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.template.source == before.template.source
    assert after.generation["temperature"] == 0.7
    assert after.generation["top_k"] == 20
    assert after.stop_ids == before.stop_ids
    chat = [Message("system", "one"), Message("user", "the cat <|end|>")]
    assert after.encode(chat) == before.encode(chat)
    assert after.encode("the cat") == before.encode("the cat")


def test_the_content_decides_what_a_file_is(file, bundle):
    named = file.rename(file.with_name("model.safetensors"))
    assert load(named).tokenizer.fingerprint == bundle.tokenizer.fingerprint
    assert params_of(load_model(named)).keys() == params_of(bundle.model).keys()
    assert Tokenizer.load(named).fingerprint == bundle.tokenizer.fingerprint


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_each_dtype_is_kept(dtype, kind, bundle, tmp_path, make_model):
    kept = getattr(torch, dtype)
    model = make_model().to(kept)
    path = save(tmp_path / "model.gguf", Bundle(model, bundle.tokenizer))
    kinds = {name: one.kind.name for name, one in read_directory(path).tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kind
    assert kinds["output_norm.weight"] == "F32"
    after = load_model(path)
    assert {param.dtype for param in after.parameters()} == {kept}
    for name, param in params_of(model).items():
        assert torch.equal(params_of(after)[name], param), name
    assert load_model(path, dtype="float32").embed.weight.dtype == torch.float32


# Of a block's largest number: half a step of 8 bits, a whole one of 4 (15 steps for 16), and the scale's float16.
@pytest.mark.parametrize(("quantize", "error"), [("q8_0", 0.5 / 127 + 2**-11), ("q4_0", 1 / 8 + 2**-11)])
def test_packed_weights_are_near(quantize, error, make_bundle, tmp_path):
    before = make_bundle(dim=64, ffn_dim=96)
    path = save(tmp_path / "model.gguf", before, quantize=quantize)
    kinds = {name: one.kind.name for name, one in read_directory(path).tensors.items()}
    assert kinds["blk.1.ffn_down.weight"] == quantize.upper()
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    after = params_of(load(path).model)
    for name, param in params_of(before.model).items():
        if param.ndim == 1:
            assert torch.equal(after[name], param)
            continue
        blocks = param.view(-1, 32)
        off = (after[name].view(-1, 32) - blocks).abs().amax(1)
        assert (off <= error * blocks.abs().amax(1)).all(), name
    full = save(tmp_path / "full.gguf", before)
    assert path.stat().st_size < full.stat().st_size


@pytest.mark.parametrize("packed", [None, "q8_0", "q4_0"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_weights_rounded_on_the_way_are_those_rounded_afterwards(name, kind, packed, make_bundle, tmp_path):
    path = save(tmp_path / "model.gguf", make_bundle(**MODELS[name][1]), quantize=packed)
    direct, later = load(path, quantize=kind), load(path)
    assert direct.model.bits == int(kind[3:])
    assert not any(param.is_meta for param in direct.model.parameters())
    later.model = quantize_model(later.model, int(kind[3:]))
    ids = torch.arange(1, 25).view(2, 12)
    assert torch.equal(direct.model(ids).logits, later.model(ids).logits)


def test_weights_rounded_on_the_way_are_never_all_there(make_bundle, tmp_path, monkeypatch):
    path = save(tmp_path / "model.gguf", make_bundle(layers=6))
    places = []
    decode = reading.decode_into
    monkeypatch.setattr(
        reading,
        "decode_into",
        lambda target, *rest: places.append((target.ndim, target.data_ptr())) or decode(target, *rest),
    )
    load(path, quantize="int8")
    matrices = [place for ndim, place in places if ndim == 2]
    assert len(matrices) > 6 * 4
    assert len(set(matrices)) <= 4, "one room for all; queries, keys and values lie behind each other in it"


def test_rows_that_are_no_whole_blocks_stay_float16(make_bundle, tmp_path):
    path = save(tmp_path / "model.gguf", make_bundle(ffn_dim=40), quantize="q8_0")
    kinds = {name: one.kind.name for name, one in read_directory(path).tensors.items()}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


@pytest.mark.parametrize(
    ("name", "own"),
    [(name, own) for name in KINDS if name != "F64" for own in (False, True) if not own or name in DECODED],
)
def test_every_kind_of_numbers_is_decoded_as_the_package_does(name, own, tmp_path, monkeypatch):
    kind = KINDS[name]
    if own and kernels() is None:
        pytest.skip("the kernels could not be compiled here")
    monkeypatch.setattr(blocks, "kernels_at_hand", kernels if own else lambda: None)
    width, rows = 512, 3 * PIECE // 512 + 5  # several pieces, the last one short
    raw = np.random.default_rng(0).integers(0, 255, (rows, width // kind.block * kind.size), np.uint8)
    if kind.block == 1:
        raw = np.random.default_rng(0).random((rows, width), np.float32) - 0.5
        raw = gguf.quants.quantize(raw, gguf.GGMLQuantizationType(kind.number)).view(np.uint8)
    path = tmp_path / "numbers"
    path.write_bytes(b"\0" * 64 + raw.tobytes())
    found = torch.empty(rows, width)
    with path.open("rb") as file:
        decode_into(found, file, GGUFTensor("w", kind, (rows, width), 64, raw.nbytes))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.number)).astype(np.float32)
    assert np.array_equal(found.numpy(), expected, equal_nan=True)


def test_decoding_takes_little_memory_beside_the_result(tmp_path):
    kind, rows, width = KINDS["Q4_K"], 8192, 1024
    path = tmp_path / "numbers"
    path.write_bytes(bytes(rows * width // kind.block * kind.size))
    found = torch.empty(rows, width)
    with path.open("rb") as file:
        tracemalloc.start()
        decode_into(found, file, GGUFTensor("w", kind, (rows, width), 0, path.stat().st_size))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 12 * PIECE * 4, "a few pieces, not a few tensors"  # the result itself is 32 pieces


def test_the_stretch_of_llama_3_is_found_again():
    for factor, context, theta, width in ((8.0, 8192, 500_000.0, 128), (32.0, 8192, 500_000.0, 64)):
        before = RopeScaling(kind="llama3", factor=factor, original_context=context)
        assert find_llama3(llama3_factors(before, theta, width), theta, width) == before
    assert find_llama3([1.0, 2.0, 1.5, 9.0], 10_000.0, 8) is None
    assert find_llama3([float("nan")] * 4, 10_000.0, 8) is None


# --- refused before anything is written ---


@pytest.mark.parametrize(
    "choices",
    [
        {"window": (8,)},
        {"ffn": "relu2"},
        {"logit_softcap": 30.0},
        {"attention_scale": 0.5},
        {"rope_fraction": 0.5},
        {"out_bias": True},
        {"position": "alibi"},
        {"shape": "encoder"},
        {"shape": "encoder_decoder"},
    ],
    ids=str,
)
def test_a_model_without_an_equal_there_is_refused(choices, make_bundle, tmp_path):
    with pytest.raises(CheckpointError, match="no architecture with these parts"):
        save(tmp_path / "model.gguf", make_bundle(**choices))
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_an_equal_there_is_refused(make_model, tmp_path):
    tokenizer = Tokenizer.train(["the cat sat"] * 9, kind="char", vocab_size=340)
    with pytest.raises(TokenizerError, match="no rule"):
        save(tmp_path / "model.gguf", Bundle(make_model(), tokenizer))
    assert list(tmp_path.iterdir()) == []


def test_broken_weights_are_refused(make_bundle, tmp_path):
    broken = make_bundle()
    with torch.no_grad():
        broken.model.decoder.norm.weight[3] = float("inf")
    with pytest.raises(CheckpointError, match=r"decoder\.norm\.weight"):
        save(tmp_path / "model.gguf", broken)
    assert list(tmp_path.iterdir()) == []


def test_numbers_beyond_float16_are_refused_where_they_would_be_lost(make_bundle, tmp_path):
    large = make_bundle(ffn_dim=40)
    with torch.no_grad():
        large.model.decoder.layers[0].ffn.down.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="float16 cannot"):  # rows of 40 become float16
        save(tmp_path / "model.gguf", large, quantize="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_told(bundle, tmp_path):
    with pytest.raises(ConfigError, match="'q3_k'"):
        save(tmp_path / "model.gguf", bundle, quantize="q3_k")
    with pytest.raises(ConfigError, match="Only GGUF"):
        save(tmp_path / "model", bundle, quantize="q8_0")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        save(tmp_path / "folder.gguf", bundle)


# --- refused before anything is used ---


def rewrite(file, *, values=None, drop=(), tensors=None):
    """Write a file again with some of its metadata or tensors changed."""
    old, path = read_directory(file), file.with_name("changed.gguf")
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(path, "x")
    writer.kv_data[0].clear()
    changed = {**{name: field for name, field in old.values.items() if name not in drop}, **(values or {})}
    for name, value in changed.items():
        if hasattr(value, "texts"):
            writer.add_array(name, value.texts() if value.kind == 8 else list(value.numbers()))
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            (writer.add_string if isinstance(value, str) else writer.add_float32)(name, value)
    for one in reader.tensors:
        data = (tensors or {}).get(one.name, one.data)
        if data is not None:
            writer.add_tensor(one.name, np.array(data))
    for name, data in (tensors or {}).items():
        if name not in old.tensors:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


CHANGED = {
    "another architecture": ({"values": {"general.architecture": "mamba"}}, "'mamba', which is not read"),
    "no architecture": ({"drop": ["general.architecture"]}, "'None'"),
    "part of a split model": ({"values": {"split.count": 3}}, "one part of a model"),
    "no layers": ({"drop": ["qwen3.block_count"]}, "qwen3.block_count is missing"),
    "layers that are a text": ({"values": {"qwen3.block_count": "two"}}, "block_count is 'two'"),
    "absurd layers": ({"values": {"qwen3.block_count": 2**31 - 1}}, "describes"),
    "absurd width": ({"values": {"qwen3.embedding_length": 2**30}}, "describes|impossible"),
    "absurd heads": ({"values": {"qwen3.attention.head_count": 2**30}}, "describes|impossible|multiple"),
    "odd heads": ({"values": {"qwen3.attention.head_count": 3}}, "impossible"),
    "unequal values": ({"values": {"qwen3.attention.value_length": 4}}, "value_length is '4'"),
    "part of a head turned": ({"values": {"qwen3.rope.dimension_count": 4}}, "dimension_count is '4'"),
    "experts": ({"values": {"qwen3.expert_count": 8}}, "expert_count is '8'"),
    "unknown stretch": ({"values": {"qwen3.rope.scaling.type": "longrope"}}, "'longrope'"),
    "negative theta": ({"values": {"qwen3.rope.freq_base": -1.0}}, "freq_base is '-1.0'"),
    "theta that is none": ({"values": {"qwen3.rope.freq_base": float("nan")}}, "freq_base is 'nan'"),
    "tensor missing": ({"tensors": {"blk.1.ffn_up.weight": None}}, "1 missing .blk.1.ffn_up.weight"),
    "tensor too many": ({"tensors": {"blk.9.x": np.zeros(3, np.float32)}}, "1 not expected .blk.9.x"),
    "embeddings missing": ({"tensors": {"token_embd.weight": None}}, "token_embd.weight is missing"),
    "embeddings that are a list": (
        {"tensors": {"token_embd.weight": np.zeros(9, np.float32)}},
        "no matrix",
    ),
    "another shape": (
        {"tensors": {"output_norm.weight": np.ones(31, np.float32)}},
        "output_norm.weight .31,. instead of .32,.",
    ),
    "not a number": (
        {"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}},
        "NaN or infinity .output_norm.weight",
    ),
    "fewer embeddings than tokens": (
        {"tensors": {"token_embd.weight": np.zeros((300, 32), np.float32)}},
        "the tokenizer has 3.. ids, the model 300",
    ),
    "no tokenizer": ({"drop": ["tokenizer.ggml.model"]}, "tokenizer.ggml.model is None"),
    "table of frequencies": (
        {"tensors": {"rope_freqs.weight": np.array([1, 2, 1, 9], np.float32)}},
        "rope_freqs.weight stretches",
    ),
    "endless table": ({"tensors": {"rope_freqs.weight": np.ones(5000, np.float32)}}, "impossible shape"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_that_contradicts_itself_is_refused(name, file):
    change, says = CHANGED[name]
    path = rewrite(file, **change)
    with pytest.raises(StockpotError, match=says) as caught:
        load(path)
    assert str(path) in caught.value.what
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_broken_weights_are_refused_where_they_are_rounded_on_the_way(kind, file):
    name = "blk.1.ffn_down.weight"
    numbers = np.zeros(read_directory(file).tensors[name].shape, np.float32)
    numbers[3, 4] = np.nan
    path = rewrite(file, tensors={name: numbers})
    with pytest.raises(CheckpointError, match=r"1 tensors hold NaN or infinity .blk.1.ffn_down.weight"):
        load(path, quantize=kind)


def test_a_file_written_again_unchanged_is_the_same(file, bundle):
    after = load(rewrite(file))
    assert after.tokenizer.fingerprint == bundle.tokenizer.fingerprint
    for name, param in params_of(bundle.model).items():
        assert torch.equal(params_of(after.model)[name], param)


def test_a_template_that_reaches_for_python_is_refused_when_used(file):
    found = load(rewrite(file, values={"tokenizer.chat_template": "{{ ''.__class__.__mro__ }}"}))
    with pytest.raises(TokenizerError, match="template"):
        found.encode([Message("user", "hi")])


def hammer(data, path, seed, count):
    """Load damaged copies: each is refused in one line or holds finite weights."""
    dice = random.Random(seed)
    directory = data.index(b"output_norm.weight") + 4000
    refused = 0
    peak = Peak()
    for _ in range(count):
        found = bytearray(data)
        for _ in range(dice.randint(1, 3)):
            at = dice.randrange(min(directory, len(found)))
            how = dice.randrange(4)
            if how == 0:
                found[at] ^= 1 << dice.randrange(8)
            elif how == 1:
                found[at : at + 8] = dice.choice((b"\xff" * 8, bytes(8), b"\0\0\0\x80\0\0\0\0"))
            elif how == 2:
                del found[at : at + dice.randint(1, 64)]
            else:
                found[at:at] = found[at : at + dice.randint(1, 64)]
        path.write_bytes(found)
        try:
            bundle = load(path)
        except StockpotError as error:
            assert "\n" not in str(error), error
            refused += 1
        else:
            assert all(bool(param.isfinite().all()) for param in bundle.model.parameters())
    grown = peak.grown_kib()
    assert grown < 150_000, f"memory grew by {grown} KiB over files of {len(data)} bytes"
    return refused


def test_mutated_files_are_refused_in_one_line(file, tmp_path):
    data = file.read_bytes()
    assert hammer(data, tmp_path / "mutant.gguf", seed=1, count=150) > 75


@pytest.mark.slow
def test_ten_thousand_mutated_files_are_refused_in_one_line(bundle, tmp_path):
    total = 0
    for seed, quantize in enumerate((None, "q8_0", "q4_0")):
        data = save(tmp_path / "model.gguf", bundle, quantize=quantize).read_bytes()
        total += hammer(data, tmp_path / "mutant.gguf", seed=seed, count=3_500)
    assert total > 5_000
