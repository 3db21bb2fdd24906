"""Adapters of PEFT: what it writes we read, what we write it reads, with equal logits."""

from __future__ import annotations

import warnings

import pytest
import torch

from stockpot.bundle import Bundle
from stockpot.model.adapters import LoRA, attach
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, load_model, save_adapter

transformers = pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("ignore")]

IDS = torch.tensor([[1, 5, 9, 2, 7, 30, 31]])


@pytest.fixture
def base(tmp_path, tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).eval().save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    return tmp_path / "base"


def randomise(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_up" in name:
                parameter.normal_(std=0.2)


@pytest.mark.parametrize(
    "choices",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 7, "target_modules": "all-linear", "use_rslora": True},
        {"r": 2, "target_modules": ["o_proj", "gate_proj"], "rank_pattern": {"o_proj": 5}},
    ],
    ids=["query-value", "all-rslora", "ranks"],
)
def test_we_read_what_peft_wrote(base, tmp_path, choices):
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **choices)).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        wanted = model(IDS).logits
        found = load(tmp_path / "adapter").model(IDS).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "lora", [LoRA(rank=4), LoRA(rank=3, alpha=5, rslora=True, targets=("query", "value", "down"))]
)
def test_peft_reads_what_we_wrote(base, tmp_path, lora):
    model = load_model(base)
    attach(model, lora)
    randomise(model)
    bundle = Bundle(model, Tokenizer.load(base))
    folder = save_adapter(tmp_path / "adapter", bundle, base)
    theirs = peft.PeftModel.from_pretrained(
        transformers.LlamaForCausalLM.from_pretrained(base), folder
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


def test_gradients_equal_pefts(base, tmp_path):
    theirs = transformers.LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    theirs = peft.get_peft_model(theirs, config)
    randomise(theirs)
    ours = load_model(base)
    attach(ours, LoRA(rank=4, alpha=8))
    values = dict(theirs.named_parameters())
    name = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.default.weight"
    with torch.no_grad():
        for number, layer in enumerate(ours.decoder.layers):
            qkv = layer.attention.qkv
            qkv.lora_down.copy_(torch.cat([values[name.format(number, part, "A")] for part in "qkv"]))
            for index, part in enumerate("qkv"):
                qkv.lora_up[index].copy_(values[name.format(number, part, "B")])
            for own, their in (("attention.out", "self_attn.o"), ("ffn.down", "mlp.down")):
                one = layer.get_submodule(own)
                stem = f"base_model.model.model.layers.{number}.{their}_proj.lora_"
                one.lora_down.copy_(values[f"{stem}A.default.weight"])
                one.lora_up[0].copy_(values[f"{stem}B.default.weight"])
            stem = f"base_model.model.model.layers.{number}.mlp."
            gates = [f"{stem}{part}_proj.lora_" for part in ("gate", "up")]
            layer.ffn.up.lora_down.copy_(torch.cat([values[f"{one}A.default.weight"] for one in gates]))
            for index, one in enumerate(gates):
                layer.ffn.up.lora_up[index].copy_(values[f"{one}B.default.weight"])
    theirs(IDS).logits.square().mean().backward()
    ours(IDS).logits.square().mean().backward()
    for number, layer in enumerate(ours.decoder.layers):
        wanted = torch.cat([values[name.format(number, part, "A")].grad for part in "qkv"])
        torch.testing.assert_close(layer.attention.qkv.lora_down.grad, wanted, atol=1e-5, rtol=1e-4)
        for index, part in enumerate("qkv"):
            wanted = values[name.format(number, part, "B")].grad
            torch.testing.assert_close(layer.attention.qkv.lora_up[index].grad, wanted, atol=1e-5, rtol=1e-4)


STORED_OTHERWISE = {  # matrices stored transposed, and rows that stand head by head
    "GPT2": ("LMHeadModel", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "GPTNeoX": (
        "ForCausalLM",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
}


@pytest.mark.parametrize("family", STORED_OTHERWISE)
def test_adapters_of_matrices_that_are_stored_otherwise(family, tmp_path, tokenizer):
    head, choices = STORED_OTHERWISE[family]
    config = getattr(transformers, f"{family}Config")(vocab_size=340, initializer_range=0.2, **choices)
    torch.manual_seed(0)
    base = tmp_path / "base"
    getattr(transformers, family + head)(config).save_pretrained(base)
    theirs = getattr(transformers, family + head).from_pretrained(base)
    tokenizer.save(base)
    names = ["c_attn", "c_proj"] if family == "GPT2" else ["query_key_value", "dense_h_to_4h"]
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=names)
    theirs = peft.get_peft_model(theirs, settings).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        found = load(tmp_path / "adapter").model(IDS).logits
        torch.testing.assert_close(found, theirs(IDS).logits, atol=1e-5, rtol=1e-5)
    ours = load_model(base)
    attach(ours, LoRA(rank=4))
    randomise(ours)
    save_adapter(tmp_path / "ours", Bundle(ours, tokenizer), base)
    plain = getattr(transformers, family + head).from_pretrained(base)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=1e-5)
