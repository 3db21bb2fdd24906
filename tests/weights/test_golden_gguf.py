"""transformers opens the GGUF files that we write, and nothing is lost from its models on the way through one."""

from __future__ import annotations

import pytest
import torch
from gguf_models import MODELS

from stockpot.bundle import Bundle
from stockpot.weights.store import convert, load, load_model, save

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("default")]

IDS = torch.arange(20, 60).view(1, 40)
SIZES = {
    "vocab_size": 340,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
GPT2_SIZES = {"vocab_size": 340, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
THEIRS = {
    "Llama": ("LlamaForCausalLM", SIZES),
    "Qwen2": ("Qwen2ForCausalLM", SIZES),
    "Qwen3": ("Qwen3ForCausalLM", {**SIZES, "head_dim": 16}),
    "GPT2": ("GPT2LMHeadModel", GPT2_SIZES),
}


@pytest.mark.parametrize("family", THEIRS)
def test_a_model_of_theirs_is_the_same_after_a_gguf_file(family, tokenizer, tmp_path):
    name, sizes = THEIRS[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**sizes, initializer_range=0.2)
    theirs = getattr(transformers, name)(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    save(tmp_path / "model.gguf", Bundle(load_model(tmp_path / "theirs"), tokenizer))
    convert(tmp_path / "model.gguf", tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, theirs(IDS).logits)


@pytest.mark.parametrize("name", ["default", "default untied", "qwen2", "llama", "llama, one group"])
def test_transformers_reads_our_file(name, make_model, tokenizer, tmp_path):
    width = {"head_dim": 128} if MODELS[name][0] == "qwen3" else {}  # the only one it reads from such a file
    model = make_model(**{"dim": 64, **width, **MODELS[name][1]})
    path = save(tmp_path / "model.gguf", Bundle(model, tokenizer))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    with torch.inference_mode():
        # float32, two layers of width 64: rounding is near 1e-6 of logits of size 1
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quantize", ["q8_0", "q4_0"])
def test_transformers_unpacks_our_weights_to_the_same_numbers(quantize, make_model, tokenizer, tmp_path):
    path = save(
        tmp_path / "model.gguf", Bundle(make_model(dim=64, qk_norm=None), tokenizer), quantize=quantize
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    with torch.inference_mode():
        ours = load(path).model(IDS).logits
        torch.testing.assert_close(theirs(IDS).logits, ours, atol=1e-5, rtol=1e-5)


def test_transformers_reads_our_tokenizer(make_model, tokenizer, tmp_path):
    path = save(tmp_path / "model.gguf", Bundle(make_model(), tokenizer))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    text = "the cat ran far away 😀 one two"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.eos_token_id == tokenizer.eos_id
