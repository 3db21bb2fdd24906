"""Models of the Llama type: what transformers writes we read, what we write transformers reads, with equal logits."""

from __future__ import annotations

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.weights.store import load, load_model, save, save_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.golden

SMALL = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
MODELS = {
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-untied-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "qwen3-window": ("Qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN}),
    "llama": ("Llama", {}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {}),
}


def reference(name):
    family, choices = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **choices})
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            if param.ndim == 1:  # gains of one and biases of zero would hide mix-ups
                param.add_(0.1 * torch.randn_like(param))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_their_models_give_equal_logits_here(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids = torch.randint(340, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        # float32, a dozen products of width 32: rounding is near 1e-6 of logits of size 1
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_our_files_give_equal_logits_there(name, tmp_path):
    theirs = reference(name)
    theirs.save_pretrained(tmp_path / "theirs")
    save_model(tmp_path / "ours", load_model(tmp_path / "theirs"))
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert type(again) is type(theirs)
    assert {key: list(value) for key, value in report.items() if value} == {}
    ids = torch.randint(340, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, theirs(ids).logits)


def test_greedy_tokens_are_equal(tmp_path, tokenizer):
    theirs = reference("qwen3")
    theirs.save_pretrained(tmp_path)
    engine = Engine(Bundle(load_model(tmp_path), tokenizer))
    prompts = [[5, 6, 7], [8] * 9, [300]]
    found = engine.generate(prompts, Sampling(temperature=0, max_tokens=30, min_tokens=30))
    for prompt, one in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        expected = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=30,
            max_new_tokens=30,
            pad_token_id=0,
            eos_token_id=sorted(engine.bundle.stop_ids),
        )
        assert one.ids == tuple(expected[0, len(prompt) :].tolist())


def test_the_default_decoder_opens_there_with_its_tokenizer(folder, bundle):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    text = "the cat ran far away 😀"
    assert their_tokenizer(text, add_special_tokens=False)["input_ids"] == bundle.tokenizer.encode(text)
    assert their_tokenizer.eos_token_id == bundle.tokenizer.eos_id
    assert set(theirs.generation_config.eos_token_id) == set(bundle.stop_ids)
    chat = [{"role": "user", "content": "the cat"}]
    shown = their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert their_tokenizer(shown, add_special_tokens=False)["input_ids"] == bundle.encode(
        [__import__("stockpot").Message("user", "the cat")]
    )
    ids = torch.tensor([bundle.encode("the cat")])
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(ids).logits, bundle.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_their_shards_are_read(tmp_path):
    theirs = reference("qwen3")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = load_model(tmp_path)
    ids = torch.arange(20).view(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_folder_survives_going_there_and_back(folder, bundle, tmp_path):
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "back")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "back")
    found = load(tmp_path / "back")
    assert found.tokenizer.encode("the cat 😀") == bundle.tokenizer.encode("the cat 😀")
    assert found.template.source == bundle.template.source
    again = save(tmp_path / "again", found)
    for name, param in load(again).model.named_parameters():
        assert torch.equal(param, dict(bundle.model.named_parameters())[name])
