"""DPO as a stage: it prefers what was preferred, says what happened to both answers, and resumes exactly."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stockpot.errors import ConfigError, DataError
from stockpot.model.adapters import LoRA
from stockpot.stages.assemble import GentleLoop
from stockpot.stages.dpo import DPOConfig, dpo
from stockpot.weights.adapter import is_adapter
from stockpot.weights.store import load

LOOP = GentleLoop(
    steps=8, batch_tokens=256, lr=3e-3, log_every=1, checkpoint_every=4, validate_every=4, dtype="float32"
)


def comparisons(count=60):
    """Prefer short answers to long ones."""
    return [
        {
            "prompt": f"Who lives in house {i % 20}?",
            "chosen": f"Mara {i}.",
            "rejected": f"I do not know who that is {i}.",
        }
        for i in range(count)
    ]


@pytest.fixture
def config(tiny_base, write_lines):
    data = write_lines("pairs.jsonl", comparisons())
    return DPOConfig(model=str(tiny_base), data=data, loop=LOOP, drift_prompts=3, max_tokens=8, val_share=0.2)


def test_the_margin_rises_and_the_run_tells_all_of_it(config, tmp_path):
    notes = []
    run = dpo(config, out=tmp_path / "run", progress=lambda event: notes.append(event.get("text", "")))
    margins = run.series("train/margin")
    assert margins[0][1] == pytest.approx(0.0, abs=1e-4)  # at first the policy is the reference
    assert margins[-1][1] > margins[0][1] + 0.1
    assert run.last("val/accuracy") > 0.9
    for name in ("chosen_log_prob", "rejected_log_prob", "chosen_shift", "rejected_shift", "kl", "length"):
        assert run.series(f"val/{name}"), name
    assert run.manifest["accuracy"]["n"] == run.manifest["comparisons"]["validation"]
    assert run.manifest["accuracy"]["low"] <= run.last("val/accuracy") <= run.manifest["accuracy"]["high"]
    samples = sorted((run.path / "samples").iterdir())
    assert [one.name for one in samples] == ["0000.jsonl", "0001.jsonl"]
    assert set(json.loads(samples[0].read_text().splitlines()[0])) == {"prompt", "reply", "tokens"}
    assert any("comparisons of 20 prompts" in note for note in notes)
    assert load(run.path).template is not None


def test_one_pass_is_the_default_and_is_written_down(config, tmp_path):
    plain = config.model_copy(
        update={"loop": GentleLoop(batch_tokens=256, dtype="float32"), "drift_prompts": 0}
    )
    run = dpo(plain, out=tmp_path / "run")
    steps = run.last("tokens") / 256
    assert run.last("tokens") == pytest.approx(run.manifest["tokens"]["train"], rel=0.25)
    assert f"steps = {round(run.manifest['tokens']['train'] / 256)}" in (run.path / "recipe.toml").read_text()
    assert steps > 3


def test_it_is_said_once_when_both_answers_fall():
    from stockpot.stages.dpo import _validation
    from stockpot.stages.drift import Drift

    found = iter([(0.5, -1.0), (-2.0, -7.0), (-3.0, -9.0)])
    notes = []

    def metrics(model):
        chosen, rejected = next(found)
        return {"chosen_shift": chosen, "rejected_shift": rejected}

    validate = _validation(metrics, Drift(None, [], None), notes.append)
    for _ in range(3):
        validate(None)
    assert len(notes) == 1
    assert "both answers have become less probable" in notes[0]["text"]
    assert "chosen -2.0, rejected -7.0 nats" in notes[0]["text"]


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "adapter"])
def test_a_resumed_run_ends_bit_for_bit_alike(config, tmp_path, interrupted_at, adapter):
    config = config.model_copy(update={"adapter": adapter})
    whole = dpo(config, out=tmp_path / "whole")
    interrupted_at(5, lambda press: dpo(config, out=tmp_path / "torn", progress=press))
    torn = dpo(config, out=tmp_path / "torn", resume=True)
    for name in ("train/loss", "train/margin", "val/kl", "val/loss"):
        assert torn.series(name) == whole.series(name), name
    weights = "model.safetensors" if adapter is None else "adapter_model.safetensors"
    assert (torn.model_path / weights).read_bytes() == (whole.model_path / weights).read_bytes()
    assert is_adapter(torn.model_path) == (adapter is not None)


def test_the_reference_is_computed_once(config, tmp_path, monkeypatch):
    from stockpot.stages import comparisons

    calls = []
    compute = comparisons._log_probs
    monkeypatch.setattr(
        comparisons, "_log_probs", lambda *args, **how: calls.append(1) or compute(*args, **how)
    )
    dpo(config, out=tmp_path / "run")
    assert len(calls) == 2  # training and validation
    kept = json.loads((tmp_path / "run" / "reference.json").read_text())
    assert len(kept["log_probs"]) == 2


def test_without_a_reference_nothing_is_computed_for_it(config, tmp_path):
    simple = config.model_copy(update={"objective": "simpo", "beta": 2.0})
    run = dpo(simple, out=tmp_path / "run")
    assert not (run.path / "reference.json").exists()
    assert run.last("val/accuracy") > 0.9


def test_another_reference_may_be_named(config, tmp_path, tiny_base):
    named = config.model_copy(update={"reference": str(tiny_base)})
    one, other = dpo(config, out=tmp_path / "own"), dpo(named, out=tmp_path / "named")
    assert one.series("train/loss") == other.series("train/loss")


def test_a_reference_with_other_ids_is_refused(config, tmp_path):
    from stockpot.bundle import Bundle
    from stockpot.model.config import decoder
    from stockpot.model.transformer import Transformer
    from stockpot.text.tokenizer import Tokenizer
    from stockpot.weights.store import save

    tokenizer = Tokenizer.train(["some other words entirely"] * 9, vocab_size=300)
    model = Transformer(decoder(layers=1, dim=16, heads=1, context=32, vocab_size=300))
    save(tmp_path / "other", Bundle(model, tokenizer))
    with pytest.raises(ConfigError, match="another tokenizer"):
        dpo(config.model_copy(update={"reference": str(tmp_path / "other")}), out=tmp_path / "run")


def test_a_prompt_on_both_sides_is_left_out_of_training(config, tmp_path, write_lines):
    config = config.model_copy(
        update={"val_data": (write_lines("val.jsonl", comparisons(5)),), "drift_prompts": 0}
    )
    notes = []
    run = dpo(config, out=tmp_path / "run", progress=lambda event: notes.append(event.get("text", "")))
    assert run.manifest["comparisons"]["train"] == 45
    assert any("15 comparisons ask what the validation data asks" in note for note in notes)
    same = config.model_copy(update={"val_data": config.data})
    with pytest.raises(DataError, match="Every prompt is in the validation data"):
        dpo(same, out=tmp_path / "again")


def test_chats_are_no_comparisons(config, tmp_path):
    with pytest.raises(DataError, match="a messages record; comparisons have"):
        dpo(config.model_copy(update={"data": ("village:chats:0:5",)}), out=tmp_path / "run")


def test_the_policy_moves_away_from_the_reference(config, tmp_path):
    # from a few answers the estimate can be negative
    asked = {"drift_data": ("village:prompts/val:0:200",), "drift_prompts": 200}
    many = config.model_copy(update=asked)
    run = dpo(many, out=tmp_path / "run")
    assert run.last("val/kl") > 0
    assert torch.isfinite(torch.tensor(run.last("val/kl")))


def test_drawn_answers_are_rated_by_a_judge_that_teaches_nothing(config, tmp_path):
    watched = {"gold": "village:0:40", "drift_data": ("village:prompts/val:0:40",), "drift_prompts": 4}
    run = dpo(config.model_copy(update=watched), out=tmp_path / "run")
    assert all(0 <= value <= 3 for _, value in run.series("val/gold")) and run.series("val/gold")
    plain = dpo(config, out=tmp_path / "plain")
    assert plain.series("train/loss") == run.series("train/loss")
    with pytest.raises(ConfigError, match="Name them with drift_data"):
        dpo(config.model_copy(update={"gold": "village", "drift_prompts": 4}), out=tmp_path / "none")
    unwatched = config.model_copy(update=watched | {"drift_prompts": 0})
    assert not dpo(unwatched, out=tmp_path / "unwatched").series("val/kl")


def test_the_accuracy_is_that_of_the_model_that_is_kept(config, tmp_path):
    steps = {"steps": 6, "validate_every": 1, "checkpoint_every": 1, "keep": 9, "lr": 0.05}
    loop = config.loop.model_copy(update=steps)
    run = dpo(config.model_copy(update={"loop": loop, "drift_prompts": 0}), out=tmp_path / "run")
    losses = dict(run.series("val/loss"))
    assert run.model_step == min(losses, key=losses.get)
    kept = dict(run.series("val/accuracy"))[run.model_step]
    assert run.manifest["accuracy"]["value"] == pytest.approx(kept, abs=1e-6)


def test_only_so_many_comparisons_are_read(config, tmp_path):
    run = dpo(config.model_copy(update={"max_pairs": 30, "drift_prompts": 0}), out=tmp_path / "run")
    assert sum(run.manifest["comparisons"][side] for side in ("train", "validation")) == 30


def test_a_policy_that_has_not_moved_is_as_far_as_its_reference_in_few_bits_too(tiny_base, tmp_path):
    """The reference was read by other kernels than the policy: in bfloat16 a first step began with a margin."""
    loop = GentleLoop(steps=1, batch_tokens=1024, dtype="bfloat16")
    config = DPOConfig(model=str(tiny_base), data="village:preferences:0:60", drift_prompts=0, loop=loop)
    run = dpo(config, out=tmp_path / "run")
    assert run.last("train/chosen_shift") == pytest.approx(0.0, abs=1e-3)
    assert run.last("train/loss") == pytest.approx(math.log(2), abs=1e-4)
