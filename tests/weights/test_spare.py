"""Tokenizers with ids that their model lacks, as Gemma 3 1B is published."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from stockpot.errors import CheckpointError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.text.chat import Message
from stockpot.text.tokenizer import Tokenizer
from stockpot.weights.store import load, save

WARNED = r"1 special token\(s\) that the model lacks \(<image>\); no text becomes one"


def add_token(folder, *, special=True):
    """Add a token behind the last id of a folder's tokenizer."""
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    number = Tokenizer.load(folder).vocab_size
    spec["added_tokens"].append({"id": number, "content": "<image>", **flags, "special": special})
    path.write_text(json.dumps(spec))
    return number


@pytest.fixture
def gemma(bundle, make_model, tokenizer, tmp_path):
    full = make_model(vocab_size=tokenizer.vocab_size)
    folder = save(tmp_path / "gemma", replace(bundle, model=full))
    assert add_token(folder) == full.config.vocab_size
    return folder


def test_a_special_token_too_many_is_told_and_harmless(gemma):
    with pytest.warns(RuntimeWarning, match=WARNED):
        bundle = load(gemma)
    assert bundle.tokenizer.vocab_size == bundle.model.config.vocab_size + 1
    prompt = bundle.encode("the cat <image> sat")
    assert max(prompt) < bundle.model.config.vocab_size
    (reply,) = Engine(bundle).generate(["the <image>"], Sampling(max_tokens=4, temperature=0))
    assert len(reply.ids) == 4


@pytest.mark.golden
def test_transformers_opens_such_a_folder_too(gemma):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gemma)
    text = transformers.AutoTokenizer.from_pretrained(gemma)
    with pytest.warns(RuntimeWarning, match=WARNED):
        bundle = load(gemma)
    assert len(text) == bundle.tokenizer.vocab_size
    ids = torch.tensor([bundle.encode("the cat sat")])
    with torch.no_grad():
        torch.testing.assert_close(bundle.model(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_it_is_written_and_read_again(gemma, tmp_path):
    with pytest.warns(RuntimeWarning, match=WARNED):
        bundle = load(gemma)
    with pytest.warns(RuntimeWarning, match=WARNED):
        again = load(save(tmp_path / "again", bundle))
    assert again.tokenizer.fingerprint == bundle.tokenizer.fingerprint
    assert load(save(tmp_path / "m.gguf", bundle)).tokenizer.vocab_size == bundle.model.config.vocab_size


def test_a_template_that_writes_the_token_is_told(gemma):
    with pytest.warns(RuntimeWarning, match=WARNED):
        bundle = load(gemma)
    template = replace(bundle.template, source="<image>{{ messages[0].content }}")
    with pytest.raises(GenerationError, match="'<image>', which the model has no id for"):
        replace(bundle, template=template).encode([Message("user", "hi")])


@pytest.mark.parametrize(
    "values", [{"eos_token": "<image>"}, {"chat_template": "<image>{{ messages[0].content }}"}]
)
def test_a_token_that_is_needed_is_refused(values, gemma):
    path = gemma / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError, match="the tokenizer has"):
        load(gemma)


def test_a_token_that_text_can_become_is_refused(gemma):
    path = gemma / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["added_tokens"][-1]["special"] = False
    path.write_text(json.dumps(spec))
    with pytest.raises(CheckpointError, match="the tokenizer has"):
        load(gemma)
