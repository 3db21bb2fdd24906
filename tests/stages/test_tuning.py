"""Instruction tuning through the front door: loss on answers only, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import stockpot as sp
from stockpot.model.adapters import LoRA
from stockpot.model.config import decoder
from stockpot.stages.assemble import GentleLoop, tokens_at_once


@pytest.fixture(scope="module")
def base(pantry, tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "run"
    loop = sp.LoopConfig(steps=2, batch_tokens=512, dtype="float32")
    config = sp.PretrainConfig(
        data=str(pantry / "corpus.jsonl"),
        tokenizer=str(pantry / "tok"),
        size=1,
        context=128,
        loop=loop,
        val_tokens=256,
    )
    return sp.pretrain(config, out=out).path


def config(base, pantry, **choices):
    loop = {
        "steps": 4,
        "batch_tokens": 512,
        "validate_every": 2,
        "checkpoint_every": 2,
        "log_every": 1,
        "dtype": "float32",
    }
    loop |= choices.pop("loop", {})
    data = str(pantry / "chats.jsonl")
    return sp.SFTConfig(
        **{"model": str(base), "data": data, "loop": sp.LoopConfig(**loop), "val_tokens": 512, **choices}
    )


def test_a_tuned_model_holds_conversations(base, pantry, tmp_path):
    run = sp.sft(config(base, pantry), out=tmp_path / "r")
    bundle = sp.load(run.path)
    assert bundle.template is not None
    (reply,) = sp.Engine(bundle).generate([[sp.Message("user", "Hello?")]], sp.Sampling(max_tokens=3))
    assert reply.tokens <= 3
    assert run.manifest["parent"]["path"] == str(base)
    assert run.last("train/loss") > 0


def test_samples_are_answers_to_held_out_questions(base, pantry, tmp_path):
    run = sp.sft(config(base, pantry), out=tmp_path / "r")
    text = (run.path / "samples" / "step-000004.txt").read_text(encoding="utf-8")
    prompts = [line for line in text.splitlines() if line.startswith("prompt")]
    assert len(prompts) == 3
    assert all(line.rstrip().endswith("<|assistant|>") for line in prompts)
    assert "<|end|>" in text.split("true", 1)[1]


def test_only_the_answers_are_learned(base, pantry, tmp_path):
    """Other questions with the same answers cost other losses, but the counted tokens are the answers'."""
    from stockpot.data.corpus import open_corpus

    bundle = sp.load(base)
    template = sp.ChatTemplate.of(bundle.tokenizer)
    store = open_corpus(pantry / "chats.jsonl", bundle.tokenizer, template)
    record = json.loads((pantry / "chats.jsonl").read_text(encoding="utf-8").splitlines()[0])
    ids, counted = store.read(0), store.counted[0][: store.lengths[0]]
    said = [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    learned = bundle.tokenizer.decode([int(one) for one, counts in zip(ids, counted, strict=True) if counts])
    assert learned == "".join(f"{text}<|end|>" for text in said)


@pytest.mark.parametrize(
    ("choices", "error", "said"),
    [
        ({"model": None}, sp.ConfigError, "no model to tune"),
        ({"template": "not-there.jinja"}, sp.ConfigError, "cannot be read as a chat template"),
        ({"data": "not-there.jsonl"}, sp.DataError, "no such file"),
        ({"model": "not-there"}, sp.CheckpointError, "not-there"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(base, pantry, tmp_path, choices, error, said):
    with pytest.raises(error, match=said):
        sp.sft(config(base, pantry, **choices), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_an_encoder_cannot_be_tuned_to_answer(pantry, tmp_path):
    loop = sp.LoopConfig(steps=1, batch_tokens=512, dtype="float32")
    source = {"data": str(pantry / "corpus.jsonl"), "tokenizer": str(pantry / "tok")}
    reader = sp.pretrain(
        sp.PretrainConfig(**source, objective="masked", size=1, context=64, loop=loop, val_tokens=256),
        out=tmp_path / "encoder",
    )
    with pytest.raises(sp.ConfigError, match="an encoder"):
        sp.sft(config(reader.path, pantry), out=tmp_path / "r")


def test_a_foreign_template_is_used_and_kept(base, pantry, tmp_path):
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (tmp_path / "mine.jinja").write_text(source, encoding="utf-8")
    run = sp.sft(config(base, pantry, template=str(tmp_path / "mine.jinja")), out=tmp_path / "r")
    assert sp.load(run.path).template.source == source
    assert "user: " in (run.path / "samples" / "step-000004.txt").read_text(encoding="utf-8")


def test_a_step_is_computed_at_once_where_its_activations_are_smaller_than_a_second_set_of_gradients():
    model = decoder(
        layers=30, dim=576, heads=9, context=512, vocab_size=49_152
    )  # 34 · 30 · 576 bytes a token
    cpu = torch.device("cpu")

    def at_once(tokens: int, adapter: LoRA | None = None) -> int:
        return tokens_at_once(GentleLoop(batch_tokens=tokens), model, cpu, adapter, weighs=False)

    whole = int(4 / 3 * 4 * model.parameters() / (34 * 30 * 576))
    assert at_once(whole) == whole
    assert at_once(whole + 1) == (1 << 29) // (34 * 30 * 576) < whole
    assert at_once(whole, LoRA(rank=8)) == 256  # gradients of adapters are small
