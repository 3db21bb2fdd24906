"""A soft prompt is tuned, kept, put on again, and the model under it is proven the same."""

from __future__ import annotations

import json
import shutil
import tomllib

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.errors import CheckpointError, ConfigError
from stockpot.judge.prompts import prompts
from stockpot.model.adapters import LoRA, attach
from stockpot.model.soft import attach_prefix, detach_soft, soft_ids, soft_vectors
from stockpot.prompt.items import Questions
from stockpot.prompt.soft import frozen_hash, nearest_tokens, start_heads, start_vectors
from stockpot.stages.tune_prompt import PromptTuningConfig, tune_prompt
from stockpot.weights.store import save_adapter

ASKED = Questions(task="sentiment", limit=12, wordings=("slashes",))
LOOP = {
    "steps": 40,
    "batch_tokens": 512,
    "lr": 0.3,
    "dtype": "float32",
    "validate_every": 20,
    "checkpoint_every": 20,
}


@pytest.fixture(scope="module")
def tuned(tiny_base, tmp_path_factory):
    config = PromptTuningConfig(
        model=str(tiny_base), questions=ASKED, length=5, most_examples=60, rows=16, loop=LOOP
    )
    return tune_prompt(config, out=tmp_path_factory.mktemp("runs") / "soft")


def test_it_learns_and_the_model_under_it_stays(tuned, tiny_base):
    losses = tuned.series("val/loss")
    assert losses[-1][1] < losses[0][1]
    base, worn = sp.load(tiny_base), sp.load(tiny_base, adapters=[tuned.path])
    assert frozen_hash(base.model) == frozen_hash(worn.model) == tuned.manifest["frozen_sha256"]
    assert tuned.manifest["trained_parameters"] == 5 * 32
    before, after = prompts(base, ASKED).scores[0], prompts(worn, ASKED).scores[0]
    assert after.log_prob.value > before.log_prob.value + 0.3  # a random model of two layers gains 0.7 nats


def test_after_reload_the_logits_are_exactly_the_same(tuned, tiny_base):
    one, two = (sp.load(tiny_base, adapters=[tuned.path]) for _ in range(2))
    by_name = sp.load(tuned.path)
    ids = torch.tensor([one.encode("The soup was good. //")])
    assert ids[0, :5].tolist() == list(one.soft) == list(soft_ids(one.model))
    with torch.inference_mode():
        logits = [bundle.model(ids).logits for bundle in (one, two, by_name)]
        door = sp.load(tiny_base).model(ids[:, 5:], prefix=soft_vectors(one.model)[None]).logits
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert torch.allclose(logits[0][:, 5:], door, atol=1e-5)


def test_the_engine_writes_streams_and_penalises_behind_it(tuned, tiny_base):
    engine = sp.Engine(sp.load(tiny_base, adapters=[tuned.path]))
    sampling = sp.Sampling(max_tokens=4, temperature=0.0, repetition_penalty=1.3)
    (reply,) = engine.generate(["The soup was"], sampling)
    assert "".join(chunk.text for chunk in engine.stream("The soup was", sampling)) == reply.text
    (beam,) = engine.generate(["The soup was"], sp.Sampling(max_tokens=4, beams=2))
    assert beam.ids
    chat = [sp.Message("user", "Hello")]
    assert engine.bundle.encode(chat)[:5] == list(engine.bundle.soft)


def test_it_is_never_put_on_another_model(tuned, tiny_base, tmp_path):
    other = sp.load(tiny_base)
    with torch.no_grad():
        other.model.embed.weight[0, 0] += 1
    moved = sp.save(tmp_path / "other", other)
    with pytest.raises(CheckpointError, match="its weights differ"):
        sp.load(moved, adapters=[tuned.path])
    with pytest.raises(CheckpointError, match="a soft prompt already"):
        sp.load(tiny_base, adapters=[tuned.path, tuned.path])
    with pytest.raises(CheckpointError, match="holds no adapter"):
        sp.load(tiny_base, adapters=[moved])
    with pytest.raises(CheckpointError, match="saved as part of the weights"):
        sp.save(tmp_path / "whole", sp.load(tiny_base, adapters=[tuned.path]))


def test_model_and_prompt_that_moved_together_find_each_other(tuned, tiny_base, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_base, old / "model")
    save_adapter(old / "soft", sp.load(tiny_base, adapters=[tuned.path]), old / "model")
    old.rename(new)
    ids = torch.tensor([sp.load(tuned.path).encode("The soup was good. //")])
    with torch.inference_mode():
        assert torch.equal(sp.load(new / "soft").model(ids).logits, sp.load(tuned.path).model(ids).logits)
    (new / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"base model .* is not here"):
        sp.load(new / "soft")


def test_adapters_beside_it_are_part_of_the_model_it_was_trained_on(tuned, tiny_base, tmp_path):
    leaning = sp.load(tiny_base)
    attach(leaning.model, LoRA(rank=2))
    for one in leaning.model.parameters():
        if one.requires_grad:
            torch.nn.init.normal_(one, std=0.3)
    lora = save_adapter(tmp_path / "lora", leaning, tiny_base)
    with pytest.raises(CheckpointError, match="its weights differ"):
        sp.load(tiny_base, adapters=[lora, tuned.path])
    config = PromptTuningConfig(
        model=str(lora), questions=ASKED, length=2, most_examples=20, loop=LOOP | {"steps": 1}
    )
    over = tune_prompt(config, out=tmp_path / "over")
    ids = torch.tensor([sp.load(over.path).encode("The soup was good. //")])
    with torch.inference_mode():
        both = sp.load(tiny_base, adapters=[over.path, lora]).model(ids).logits
        assert torch.equal(both, sp.load(over.path).model(ids).logits)
    with pytest.raises(CheckpointError, match="its weights differ"):
        sp.load(tiny_base, adapters=[over.path])


@pytest.mark.filterwarnings(
    "ignore:Unexpected keyword arguments .'stockpot'."
)  # PEFT names our checksum and goes on
def test_peft_reads_the_folder(tuned):
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file

    found = peft.PeftConfig.from_pretrained(str(tuned.model_path))
    assert found.peft_type == "PROMPT_TUNING"
    assert found.num_virtual_tokens == 5
    weights = load_file(tuned.model_path / "adapter_model.safetensors")
    assert weights["prompt_embeddings"].shape == (5, 32)


def test_each_vector_is_read_as_its_nearest_tokens(tuned, tiny_base):
    worn = sp.load(tiny_base, adapters=[tuned.path])
    rows = nearest_tokens(worn, 2)
    assert len(rows) == 5
    assert all(-1 <= cosine <= 1 for row in rows for _, cosine in row)
    assert rows[0][0][1] >= rows[0][1][1]


def test_it_starts_from_a_text_the_vocabulary_or_at_random(tiny_base):
    bundle = sp.load(tiny_base)
    ids = bundle.tokenizer.encode("good soup")
    text = start_vectors(bundle, 7, "text", text="good soup")
    assert torch.equal(text[: len(ids)], bundle.model.embed.weight[ids[:7]].detach())
    assert text.shape == (7, 32)
    known = {tuple(row) for row in bundle.model.embed.weight.tolist()}
    assert all(tuple(row) in known for row in start_vectors(bundle, 4, "vocabulary").tolist())
    drawn = start_vectors(bundle, 4, "random", seed=1)
    assert torch.equal(drawn, start_vectors(bundle, 4, "random", seed=1))
    with pytest.raises(ConfigError, match="there is none"):
        start_vectors(bundle, 4, "text", text="")


def test_the_verb_makes_a_run(tiny_base, tmp_path):
    words = [
        "tune-prompt",
        str(tiny_base),
        "--task",
        "sums",
        "--wording",
        "q-a",
        "--length",
        "3",
        "--steps",
        "2",
    ]
    words += ["--set", "most_examples=10", "--out", str(tmp_path / "run"), "--json"]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["status"] == "done"
    words = ["tune-prompt", str(tiny_base), "--examples", "more.jsonl", "--limit", "7", "--chat", "--dry-run"]
    planned = tomllib.loads(CliRunner().invoke(app, words).stdout)["tune-prompt"]["questions"]
    assert (planned["examples"], planned["limit"], planned["chat"]) == ("more.jsonl", 7, True)
    refused = CliRunner().invoke(app, ["tune-prompt", "--out", str(tmp_path / "other")])
    assert refused.exit_code == 1


# --- keys and values in every layer ---


@pytest.fixture(scope="module")
def prefixed(tiny_base, tmp_path_factory):
    config = PromptTuningConfig(
        model=str(tiny_base), questions=ASKED, kind="prefix", length=5, most_examples=60, rows=16, loop=LOOP
    )
    return tune_prompt(config, out=tmp_path_factory.mktemp("runs") / "prefix")


def test_a_prefix_starts_as_what_the_model_makes_of_a_text(tiny_base):
    bundle = sp.load(tiny_base)
    ids = bundle.tokenizer.encode("good soup, bad soup")[:6]
    heads = start_heads(bundle, 6, "text", text="good soup, bad soup")
    asked = bundle.tokenizer.encode("The soup was")
    with torch.inference_mode():
        plain = bundle.model(torch.tensor([ids + asked])).logits[:, 6:]
        soft = attach_prefix(bundle.model, heads)
        ours = bundle.model(torch.tensor([[*soft, *asked]])).logits[:, 6:]
        detach_soft(bundle.model)
        again = bundle.model(torch.tensor([ids + asked])).logits[:, 6:]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, plain)
    drawn = start_heads(bundle, 4, "random", seed=1)
    assert drawn[0][0].shape == heads[0][0][:4].shape
    assert torch.equal(drawn[1][1], start_heads(bundle, 4, "random", seed=1)[1][1])


def test_a_prefix_learns_and_the_model_under_it_stays(prefixed, tiny_base):
    losses = prefixed.series("val/loss")
    assert losses[-1][1] < losses[0][1]
    base, worn = sp.load(tiny_base), sp.load(tiny_base, adapters=[prefixed.path])
    assert frozen_hash(base.model) == frozen_hash(worn.model) == prefixed.manifest["frozen_sha256"]
    assert prefixed.manifest["trained_parameters"] == 5 * 2 * 2 * 32  # tokens, layers, keys and values, width
    before, after = prompts(base, ASKED).scores[0], prompts(worn, ASKED).scores[0]
    assert after.log_prob.value > before.log_prob.value + 0.3


def test_a_reloaded_prefix_gives_the_same_logits_whole_and_in_steps(prefixed, tiny_base):
    one, two = sp.load(tiny_base, adapters=[prefixed.path]), sp.load(prefixed.path)
    ids = torch.tensor([one.encode("The soup was good. //")])
    with torch.inference_mode():
        logits = one.model(ids).logits
        assert torch.equal(logits, two.model(ids).logits)
        cache = one.model.new_cache(1, 64)
        steps = [one.model(ids[:, at : at + 1], cache=cache).logits for at in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), logits, atol=1e-5, rtol=1e-5)


def test_the_engine_writes_and_scores_behind_a_prefix(prefixed, tiny_base):
    engine = sp.Engine(sp.load(tiny_base, adapters=[prefixed.path]))
    asked = ["The soup was", "It rained for days and the bread was wet, so"]
    alone = [engine.generate([one], sp.Sampling(max_tokens=4, temperature=0.0))[0].ids for one in asked]
    both = engine.generate(asked, sp.Sampling(max_tokens=4, temperature=0.0))
    assert [one.ids for one in both] == alone
    (score,) = engine.score([("The soup was", " good")])
    ids = engine.bundle.encode("The soup was")
    more = engine.bundle.tokenizer.encode(" good")
    with torch.inference_mode():
        logits = engine.bundle.model(torch.tensor([[*ids, *more]])).logits[0].log_softmax(-1)
    right = sum(float(logits[len(ids) - 1 + at, id]) for at, id in enumerate(more))
    assert score.log_prob == pytest.approx(right, abs=1e-4)


@pytest.mark.filterwarnings("ignore")  # PEFT names our checksum and goes on
def test_peft_computes_the_same_behind_our_prefix(prefixed, tiny_base):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, str(prefixed.model_path)).eval()
    ours = sp.load(prefixed.path)
    ids = ours.encode("The soup was good. //")
    with torch.inference_mode():
        wanted = theirs(input_ids=torch.tensor([ids[5:]])).logits
        found = ours.model(torch.tensor([ids])).logits[:, 5:]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
