"""llama.cpp opens what we write and says what we say: ids, logits, greedy tokens, conversations."""

from __future__ import annotations

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from gguf_models import MODELS

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.home import home
from stockpot.model.config import decoder
from stockpot.model.transformer import Transformer
from stockpot.text.chat import ChatTemplate, Message
from stockpot.text.tokenizer import Tokenizer
from stockpot.text.vocabulary import RULES
from stockpot.weights.known import KNOWN
from stockpot.weights.store import convert, load, load_model, save

llama_cpp = pytest.importorskip("llama_cpp", reason="pip install 'stockpot[llamacpp]'")
pytestmark = [pytest.mark.golden, pytest.mark.filterwarnings("default")]

# Keys and values in float32: llama.cpp's default, float16, would hide small mistakes behind rounding.
open_there = partial(
    llama_cpp.Llama,
    n_ctx=256,
    n_threads=2,
    verbose=False,
    type_k=0,
    type_v=0,
    logits_all=True,
    yarn_attn_factor=-1.0,
)
TEXTS = [
    "the cat sat on the mat",
    "  It's 12345 o'clock,\n\n isn't it?\t\tYES'RE  ",
    "Die Bäume grünen — naïve façade; ΑΒΓ жук 你好 世界 ١٢٣",
    "😀👨‍👩‍👧 <|end|> <|user|>",
    "x = [1,2,3]; print(f'{x!r}')\r\n\tif x: pass\r\n",
    "a b c　d  e\u0085f",
    "",
]


def logits_there(path, ids):
    model = open_there(str(path))
    model.eval(ids)
    return torch.from_numpy(np.array(model.scores[: len(ids)]))


def greedy_there(path, ids, count):
    model = open_there(str(path))
    found = []
    for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
        found.append(int(token))
        if len(found) == count:
            return found
    raise AssertionError


def greedy_here(bundle, ids, count):
    sampling = Sampling(temperature=0, max_tokens=count, min_tokens=count)
    return list(Engine(bundle).generate([ids], sampling)[0].ids)


def until_stop(ids, bundle):
    return itertools.takewhile(lambda token: token not in bundle.stop_ids, ids)


@pytest.fixture(scope="session")
def taught():
    """Teach a tiny default decoder a few sentences, so that its likeliest token is far ahead of the next."""
    texts = [
        f"{who} {does} the {what}."
        for who in ("Anna", "Ben")
        for does in ("sees", "likes")
        for what in ("cat", "sea")
    ]
    tokenizer = Tokenizer.train(texts * 5, vocab_size=300)
    config = decoder(layers=2, dim=64, heads=4, kv_heads=2, context=64, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    model = Transformer(config)
    text = " ".join(texts)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)][:64]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    return Bundle(model.eval(), tokenizer, ChatTemplate.of(tokenizer))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_equal(name, make_model, tokenizer, tmp_path):
    model = make_model(**{"dim": 64, **MODELS[name][1]})
    path = save(tmp_path / "model.gguf", Bundle(model, tokenizer))
    ids = torch.randint(300, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.inference_mode():
        ours = model(torch.tensor([ids])).logits[0]
    # llama.cpp looks GPT-2's GELU up in a table of float16; all else is float32.
    close = 2e-2 if MODELS[name][0] == "gpt2" else 1e-4
    torch.testing.assert_close(logits_there(path, ids), ours, atol=close, rtol=close)


@pytest.mark.parametrize(
    ("dtype", "quantize"), [("float32", None), ("float16", None), (None, "q8_0"), (None, "q4_0")]
)
def test_greedy_tokens_of_a_trained_model_are_equal(dtype, quantize, taught, tmp_path):
    save(tmp_path / "model", taught)
    path = convert(tmp_path / "model", tmp_path / "model.gguf", dtype=dtype, quantize=quantize)
    ids = taught.encode("Anna")
    assert greedy_here(load(path, dtype="float32"), ids, 40) == greedy_there(path, ids, 40)


def test_text_is_cut_alike(taught, tmp_path):
    path = save(tmp_path / "model.gguf", taught)
    there = open_there(str(path), vocab_only=True)
    for text in TEXTS:
        assert there.tokenize(text.encode(), add_bos=False) == taught.tokenizer.encode(text), text
        assert there.tokenize(text.encode()) == taught.encode(text), text


@pytest.mark.parametrize("rule", RULES)
def test_text_is_cut_alike_by_every_rule(rule, make_model, tmp_path):
    plain = Tokenizer.train([*TEXTS * 3, "the then there 12 123 1234"], vocab_size=420)
    spec = json.loads(plain.to_json())
    spec["pre_tokenizer"] = RULES[rule]
    spec["model"]["ignore_merges"] = rule == "llama-bpe"
    tokenizer = Tokenizer(json.dumps(spec))
    path = save(tmp_path / "model.gguf", Bundle(make_model(vocab_size=440), tokenizer))
    there = open_there(str(path), vocab_only=True)
    for text in TEXTS:
        assert there.tokenize(text.encode(), add_bos=False) == tokenizer.encode(text), text


def test_conversations_are_encoded_alike(taught, tmp_path):
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    there = open_there(str(save(tmp_path / "model.gguf", taught)), vocab_only=True)
    shown = Jinja2ChatFormatter(
        there.metadata["tokenizer.chat_template"], eos_token="<|eos|>", bos_token="<|bos|>"
    )
    chat = [
        Message("system", "Be kind."),
        Message("user", "Anna?"),
        Message("assistant", "sees"),
        Message("user", "?"),
    ]
    prompt = shown(messages=[{"role": one.role, "content": one.content} for one in chat]).prompt
    ids = there.tokenize(prompt.encode(), add_bos=False, special=True)
    assert ids == taught.encode(chat)
    assert there.token_eos() == taught.tokenizer.eos_id
    assert there.token_bos() == taught.tokenizer.bos_id


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "GPT2"])
def test_from_transformers_through_us_to_there_and_back(family, tokenizer, tmp_path):
    """HF → ours → GGUF → llama.cpp, and GGUF → ours → HF."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 340, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 96, "num_key_value_heads": 2, "max_position_embeddings": 64}
    if family == "GPT2":
        sizes = {"vocab_size": 340, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    if family == "Qwen3":
        sizes["head_dim"] = 16
    config = getattr(transformers, f"{family}Config")(**sizes, initializer_range=0.2)
    theirs = getattr(
        transformers,
        f"{family}{'LMHead' if family == 'GPT2' else 'ForCausalLM'}{'Model' * (family == 'GPT2')}",
    )(config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    path = save(tmp_path / "model.gguf", Bundle(load_model(tmp_path / "theirs"), tokenizer))
    ids = list(range(20, 60))
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    close = 2e-2 if family == "GPT2" else 1e-4
    torch.testing.assert_close(logits_there(path, ids), expected, atol=close, rtol=close)
    convert(path, tmp_path / "back")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    with torch.inference_mode():
        torch.testing.assert_close(again(torch.tensor([ids])).logits[0], expected, atol=1e-5, rtol=1e-5)


# --- a real model ---


@pytest.fixture(scope="module")
def smollm2():
    path = home() / "models" / "smollm2" / next(iter(KNOWN["smollm2"].files))
    if not path.exists():
        pytest.skip("stockpot pull smollm2")
    return path


@pytest.mark.slow
def test_smollm2_is_cut_alike(smollm2):
    there, here = open_there(str(smollm2), vocab_only=True), Tokenizer.load(smollm2)
    for text in TEXTS:
        assert there.tokenize(text.encode(), add_bos=False) == here.encode(text), text


@pytest.mark.slow
def test_smollm2_in_float16_answers_alike(smollm2, tmp_path):
    path = convert(smollm2, tmp_path / "m.gguf", dtype="float16")
    bundle = load(path, dtype="float32")
    for question in ("Name three rivers of Europe.", "What is the capital of France?", "What is 2+2?"):
        ids = bundle.encode([Message("user", question)])
        theirs = greedy_there(path, ids, 32)
        ours = Engine(bundle).generate([ids], Sampling(temperature=0, max_tokens=32))[0]
        assert list(until_stop(ours.ids, bundle)) == list(until_stop(theirs, bundle)), question


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "q8_0", "q4_0"])
def test_packed_smollm2_differs_by_no_more_than_llama_cpps_rounding(quantize, smollm2, tmp_path):
    """llama.cpp multiplies packed weights with activations rounded to 8 bits; ours stay float32.

    In float16, where nothing is rounded to 8 bits, the mean divergence of the two is 1e-6 nats; packed it was measured
    at 0.0035 on 429 tokens, and the likeliest token differed only where our first two were within 0.27.
    """
    path = smollm2 if quantize is None else convert(smollm2, tmp_path / "m.gguf", quantize=quantize)
    bundle = load(path, dtype="float32")
    ids = bundle.tokenizer.encode(
        "The river rises in the Alps and flows north through four countries to the sea. " * 6
    )
    with torch.inference_mode():
        ours = bundle.model(torch.tensor([ids])).logits[0]
    theirs = logits_there(path, ids)
    mine = ours.log_softmax(-1)
    assert float((mine.exp() * (mine - theirs.log_softmax(-1))).sum(-1).mean()) < 0.01
    best = ours.topk(2).values
    apart = ours.argmax(-1) != theirs.argmax(-1)
    assert not (apart & (best[:, 0] - best[:, 1] > 0.5)).any()
