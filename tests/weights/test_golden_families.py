"""Decoders of every family: what transformers writes we read, what we write transformers reads, with equal logits."""

from __future__ import annotations

import json

import pytest
import torch
from golden import NEAR, VOCAB, comes_back, reference, same_greedy_tokens, some_ids
from safetensors.torch import load_file, save_file

from stockpot.errors import CheckpointError
from stockpot.weights.store import load_model, save_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {**SMALL, "head_dim": 8}
OLMO = {name: value for name, value in SMALL.items() if name != "head_dim"}
NEOX = {name: value for name, value in SMALL.items() if name not in ("num_key_value_heads", "pad_token_id")}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
MODELS = {
    "gpt2": ("GPT2", "LMHeadModel", GPT2),
    "gpt2-untied": (
        "GPT2",
        "LMHeadModel",
        {**GPT2, "n_inner": 56, "activation_function": "relu", "tie_word_embeddings": False},
    ),
    "neox": ("GPTNeoX", "ForCausalLM", NEOX),
    "neox-one-after-the-other": (
        "GPTNeoX",
        "ForCausalLM",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True},
    ),
    "olmo2": ("Olmo2", "ForCausalLM", OLMO),
    "olmo2-bias": ("Olmo2", "ForCausalLM", {**OLMO, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma": ("Gemma", "ForCausalLM", GEMMA),
    "gemma2": ("Gemma2", "ForCausalLM", {**GEMMA, "sliding_window": 6, "query_pre_attn_scalar": 12}),
    "gemma2-exact-gelu": (
        "Gemma2",
        "ForCausalLM",
        {**GEMMA, "hidden_activation": "gelu", "sliding_window": 6},
    ),
    "gemma2-uncapped": (
        "Gemma2",
        "ForCausalLM",
        {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": 3.0, "attention_bias": True},
    ),
    "gemma3": ("Gemma3Text", "ForCausalLM", {**GEMMA, "sliding_window": 6, "query_pre_attn_scalar": 8}),
    "gemma3-stretched": (
        "Gemma3Text",
        "ForCausalLM",
        {
            **GEMMA,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": LINEAR,
            "query_pre_attn_scalar": 7,
        },
    ),
}


def build(name):
    family, head, choices = MODELS[name]
    return reference(transformers, family, head, **choices)


@pytest.mark.parametrize("name", MODELS)
def test_their_models_give_equal_logits_and_tokens_here(name, tmp_path, tokenizer):
    theirs = build(name)
    theirs.save_pretrained(tmp_path)
    ids = some_ids()
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(load_model(tmp_path)(ids).logits, expected, **NEAR)
    same_greedy_tokens(theirs, tmp_path, tokenizer)


@pytest.mark.parametrize("name", MODELS)
def test_our_files_give_equal_logits_there(name, tmp_path):
    theirs = build(name)
    again = comes_back(transformers, theirs, tmp_path)
    ids = some_ids()
    with torch.no_grad():
        # not bit for bit: a gain of 1 + w loses the last bit of w
        torch.testing.assert_close(again(ids).logits, theirs(ids).logits, **NEAR)


@pytest.mark.parametrize("name", MODELS)
def test_what_we_wrote_we_read_bit_for_bit(name, tmp_path):
    build(name).save_pretrained(tmp_path / "theirs")
    first = load_model(save_model(tmp_path / "first", load_model(tmp_path / "theirs")))
    second = load_model(save_model(tmp_path / "second", first))
    mine, yours = dict(first.named_parameters()), dict(second.named_parameters())
    assert mine.keys() == yours.keys()
    assert all(torch.equal(mine[name], yours[name]) for name in mine)
    assert first.config == second.config


# --- one model, many spellings ---


def rewrite(folder, change):
    """Change the tensors of a folder by hand."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


def edit(folder, remove=(), **values):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in remove}))


def agrees(theirs, folder):
    ids = some_ids()
    with torch.no_grad():
        torch.testing.assert_close(load_model(folder)(ids).logits, theirs(ids).logits, **NEAR)


@pytest.mark.parametrize("name", ["gpt2", "neox", "olmo2", "gemma2"])
def test_names_without_their_root_are_read(name, tmp_path):
    theirs = build(name)
    theirs.save_pretrained(tmp_path)
    root = f"{theirs.base_model_prefix}."
    before = load_file(tmp_path / "model.safetensors").keys()
    rewrite(tmp_path, lambda weights: {key.removeprefix(root): value for key, value in weights.items()})
    assert load_file(tmp_path / "model.safetensors").keys() != before
    agrees(theirs, tmp_path)


def test_a_name_held_twice_is_refused(tmp_path):
    build("gpt2").save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: {**weights, "wte.weight": weights["transformer.wte.weight"].clone()})
    with pytest.raises(CheckpointError, match=r"'transformer.wte.weight' twice"):
        load_model(tmp_path)


def test_old_buffers_are_passed_over(tmp_path):
    theirs = build("gpt2")
    theirs.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: {**weights, "h.0.attn.bias": torch.ones(1, 1, 64, 64).bool()})
    agrees(theirs, tmp_path)


def test_a_tied_model_may_hold_only_the_output_matrix(tmp_path):
    theirs = build("gpt2")
    theirs.save_pretrained(tmp_path)
    kept = "transformer.wte.weight"
    rewrite(tmp_path, lambda weights: {"lm_head.weight" if n == kept else n: w for n, w in weights.items()})
    agrees(theirs, tmp_path)
    assert load_model(tmp_path).config.tied


def test_an_output_matrix_of_its_own_is_believed_whatever_the_config_says(tmp_path):
    theirs = build("gpt2-untied")
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, tie_word_embeddings=True)
    agrees(theirs, tmp_path)
    assert not load_model(tmp_path).config.tied


@pytest.mark.parametrize("name", ["neox", "olmo2"])
def test_a_network_without_its_output_matrix_gives_hidden_states(name, tmp_path):
    theirs = build(name).base_model
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = some_ids()
    with torch.no_grad():
        found = ours(ids)
        torch.testing.assert_close(found.hidden, theirs(ids).last_hidden_state, **NEAR)
    assert found.logits.shape == (2, 0, VOCAB)
    with pytest.raises(ValueError, match="no logits"):
        ours.logits(found.hidden)
    again = comes_back(transformers, theirs, tmp_path / "again")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).last_hidden_state, found.hidden, **NEAR)


def test_a_missing_output_matrix_is_told(tmp_path):
    build("neox").save_pretrained(tmp_path)
    rewrite(
        tmp_path, lambda weights: {n: w for n, w in weights.items() if "embed_out" not in n and n[:2] != "lm"}
    )
    with pytest.raises(CheckpointError, match=r"1 missing \(embed_out.weight\)"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "gemma3", "neox"])
def test_short_floats_are_read_as_they_are(name, dtype, tmp_path):
    build(name).to(dtype).save_pretrained(tmp_path)
    assert {param.dtype for param in load_model(tmp_path).parameters()} == {dtype}
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = some_ids()
    with torch.no_grad():
        found = load_model(tmp_path, dtype="float32")(ids).logits
        torch.testing.assert_close(found, wide.eval()(ids).logits, **NEAR)


def test_a_file_of_several_types_is_read_in_the_commonest(tmp_path):
    theirs = build("gpt2")
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: {n: w.float() if w.ndim == 1 else w for n, w in weights.items()})
    assert {param.dtype for param in load_model(tmp_path).parameters()} == {torch.bfloat16}


OLDER = {  # name → what released files say instead of the settings transformers writes now
    "neox": (("rope_parameters",), {"rotary_pct": 0.25, "rotary_emb_base": 10_000}),
    "gemma": (("rope_parameters",), {"rope_theta": 10_000.0, "hidden_act": "gelu"}),
    "gemma2": (
        ("rope_parameters", "layer_types"),
        {"rope_theta": 10_000.0, "cache_implementation": "hybrid"},
    ),
    "gemma3": (
        ("rope_parameters", "layer_types"),
        {"rope_theta": 1_000_000, "rope_local_base_freq": 10_000, "sliding_window_pattern": 6},
    ),
    "olmo2": (("rope_parameters",), {"rope_theta": 10_000, "rope_scaling": None}),
    "gpt2": (("dtype", "n_inner", "tie_word_embeddings"), {"n_ctx": 64, "activation_function": "gelu_new"}),
}


@pytest.mark.parametrize("name", OLDER)
def test_configs_as_they_were_released_are_read(name, tmp_path):
    theirs = build(name)
    theirs.save_pretrained(tmp_path)
    remove, values = OLDER[name]
    edit(tmp_path, remove=remove, **values)
    agrees(theirs, tmp_path)


# --- what our Transformer does not have ---

REFUSED = [
    ("gpt2", {"activation_function": "mish"}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"add_cross_attention": True}),
    ("gpt2", {"n_embd": "32"}),
    ("neox", {"hidden_act": "quick_gelu"}),
    ("neox", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ("olmo2", {"hidden_act": "relu"}),
    ("olmo2", {"partial_rotary_factor": 0.5, "rope_parameters": None}),
    ("gemma", {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("gemma", {"use_bidirectional_attention": True}),
    ("gemma2", {"hidden_activation": "silu"}),
    ("gemma2", {"layer_types": ["full_attention"]}),
    ("gemma2", {"layer_types": ["chunked_attention"] * 3}),
    ("gemma3", {"use_bidirectional_attention": True}),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_type": "proportional"}}}),
    ("gemma3", {"attn_logit_softcapping": 50.0}),
    ("gemma3", {"query_pre_attn_scalar": 0}),
]


@pytest.mark.parametrize(("name", "values"), REFUSED)
def test_settings_we_do_not_have_are_refused_in_one_line(name, values, tmp_path):
    build(name).save_pretrained(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        load_model(tmp_path)
    assert next(iter(values)).split("_")[0] in str(caught.value) or "partial_rotary_factor" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
