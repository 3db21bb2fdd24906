"""Tuning beside a base of 8 or 4 bits, through the front doors: it learns, resumes, is loaded as it was trained, is refused."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.errors import CheckpointError, ConfigError
from stockpot.model.adapters import LoRA, attach, frozen_bytes, round_matrices
from stockpot.model.frozen import KINDS
from stockpot.stages import budget
from stockpot.stages.dpo import DPOConfig, dpo
from stockpot.stages.ppo import GRPOConfig, grpo
from stockpot.stages.reward import RewardConfig, reward
from stockpot.stages.sft import SFTConfig, sft
from stockpot.train.loop import LoopConfig
from stockpot.weights.store import convert, load, load_model

LOOP = LoopConfig(
    steps=6, batch_tokens=512, lr=1e-2, log_every=1, checkpoint_every=3, validate_every=3, dtype="float32"
)


def tuned(tiny_base, out, kind, **more):
    config = SFTConfig(
        model=str(tiny_base), data="village:chats:0:60", adapter=LoRA(rank=4, frozen=kind), loop=LOOP
    )
    return sft(config, out=out, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_says_what_it_stood_on(tiny_base, tmp_path, kind):
    run, usual = tuned(tiny_base, tmp_path / "run", kind), tuned(tiny_base, tmp_path / "usual", None)
    # In six steps a model of random numbers learns little; as much as beside floats.
    (_, first), *_, (_, last) = run.series("val/loss")
    assert last < first
    before, after = usual.series("val/loss")[0][1], usual.last("val/loss")
    assert first - last == pytest.approx(before - after, rel=0.5)
    assert last == pytest.approx(after, abs=0.02)
    assert "frozen" not in usual.manifest
    model = load_model(tiny_base)
    attach(model, LoRA(rank=4, frozen=kind))
    assert run.manifest["frozen"] == {"kind": kind, "bytes": frozen_bytes(model)}
    assert json.loads((run.model_path / "adapter_config.json").read_text())["stockpot"]["frozen"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_loaded_is_what_was_validated(tiny_base, tmp_path, kind):
    """The base is rounded alike, so that held-out answers are as probable as the run says; also once it was converted."""
    run = tuned(tiny_base, tmp_path / "run", kind)
    said = run.last("val/loss")
    folder = convert(run.path, tmp_path / "merged")
    again = SFTConfig(
        data="village:chats:0:60", loop=LOOP.model_copy(update={"steps": 1, "lr": 1e-9}), model=""
    )
    for number, path in enumerate((run.path, folder)):
        config = again.model_copy(update={"model": str(path)})
        assert sft(config, out=tmp_path / f"again-{number}").series("val/loss")[0][1] == pytest.approx(
            said, abs=1e-4
        )
    plain = load_model(tiny_base)
    rounded = load_model(tiny_base)
    round_matrices(rounded, kind)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert not torch.allclose(plain(ids).logits, rounded(ids).logits, atol=1e-4)


def test_a_resumed_run_ends_bit_for_bit_alike(tiny_base, tmp_path, interrupted_at):
    whole = tuned(tiny_base, tmp_path / "whole", "nf4")
    interrupted_at(4, lambda press: tuned(tiny_base, tmp_path / "torn", "nf4", progress=press))
    torn = tuned(tiny_base, tmp_path / "torn", "nf4", resume=True)
    assert torn.series("train/loss") == whole.series("train/loss")
    name = "adapter_model.safetensors"
    assert (torn.model_path / name).read_bytes() == (whole.model_path / name).read_bytes()
    state = torch.load(torn.model_path / "state" / "training.pt", weights_only=True)
    assert not any("digits" in name for name in state["model"])


def test_dpo_starts_at_no_margin_and_from_a_tuned_run(tiny_base, tmp_path):
    """Its reference is the rounded base, not the floats it came from; a run beside which it was tuned is read as it was."""
    first = tuned(tiny_base, tmp_path / "sft", "nf4")
    loop = LoopConfig(steps=2, batch_tokens=512, lr=1e-3, log_every=1, dtype="float32")
    config = DPOConfig(
        model=str(first.path), data="village:preferences:0:40", adapter=LoRA(rank=2, frozen="nf4"),
        loop=loop, drift_prompts=2, max_tokens=4,
    )  # fmt: skip
    run = dpo(config, out=tmp_path / "dpo")
    (_, loss), *_ = run.series("train/loss")
    assert loss == pytest.approx(0.693147, abs=1e-5)  # ln 2
    assert load(run.path).model.config.vocab_size == 400


def test_grpo_and_a_reward_model_take_it_too(tiny_base, tmp_path):
    loop = {"steps": 2, "lr": 1e-3, "dtype": "float32"}
    config = GRPOConfig(
        model=str(tiny_base), data="village:prompts", adapter=LoRA(rank=2, frozen="int8"), prompts=2, samples=2,
        max_tokens=4, loop=loop, drift_prompts=0, kl_coef=0.1,
    )  # fmt: skip
    run = grpo(
        config, out=tmp_path / "grpo", reward=lambda replies: [float(len(one.text)) for one in replies]
    )
    (_, kl), *_ = run.series("train/kl")
    assert kl == pytest.approx(0.0, abs=1e-4)  # at the start the policy is the reference
    judge = RewardConfig(
        model=str(tiny_base), data="village:preferences:0:40", adapter=LoRA(rank=2, frozen="nf4"), loop=loop
    )
    run = reward(judge, out=tmp_path / "judge")
    assert run.manifest["frozen"]["kind"] == "nf4"
    assert load_model(run.path).value_head is not None


@pytest.mark.parametrize("kind", ["fsdp", "tensor"])
def test_split_models_refuse_it_before_any_work(tiny_base, tmp_path, kind):
    loop = {"parallel": {"kind": kind}}
    config = SFTConfig(model=str(tiny_base), adapter=LoRA(frozen="nf4"), loop=loop)
    with pytest.raises(ConfigError, match=rf"adapter\.frozen = 'nf4' .* loop\.parallel\.kind = '{kind}'"):
        sft(config, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_kind_is_refused_by_name(tiny_base, tmp_path):
    run = tuned(tiny_base, tmp_path / "run", "nf4")
    file = run.model_path / "adapter_config.json"
    values = json.loads(file.read_text())
    values["stockpot"]["frozen"] = "int3"
    file.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="held as 'int3', which is not known"):
        load_model(run.model_path)


def test_it_is_not_laid_over_a_base_beside_another(tiny_base, tmp_path):
    run = tuned(tiny_base, tmp_path / "run", "nf4")
    alone = load(tiny_base, adapters=[run.model_path])
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(alone.model(ids).logits, load(run.path).model(ids).logits)
    with pytest.raises(CheckpointError, match="was trained beside rounded matrices"):
        load(tiny_base, adapters=[run.model_path, run.model_path])


def test_from_the_command_line(tiny_base, tmp_path):
    out = tmp_path / "run"
    command = ["sft", str(tiny_base), "--data", "village:chats:0:60", "--out", str(out), "--quiet"]
    sets = [
        "adapter.rank=2",
        "adapter.frozen=nf4",
        "loop.steps=2",
        "loop.batch_tokens=512",
        "loop.dtype=float32",
    ]
    done = CliRunner().invoke(app, [*command, *(part for one in sets for part in ("--set", one))])
    assert done.exit_code == 0, done.output
    assert json.loads((out / "manifest.json").read_text())["frozen"]["kind"] == "nf4"
    done = CliRunner().invoke(app, ["convert", str(out), str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*command[:-3], "--out", str(out) + "-2", "--set", "adapter.frozen=int3"])
    assert done.exit_code != 0
    assert "adapter.frozen" in done.output


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_dry_run_tells_the_memory_of_an_adapters_training(tiny_base, monkeypatch, kind):
    """It told that of training all weights, with gradients and moments that nobody keeps."""
    monkeypatch.setattr(budget, "training_speed", lambda *_, **__: 1000.0)
    whole, adapted = (
        budget.plan(SFTConfig(model=str(tiny_base), data="village:chats:0:60", adapter=adapter, loop=LOOP))
        for adapter in (None, LoRA(rank=4, frozen=kind))
    )
    model = load_model(tiny_base)
    trained = attach(model, LoRA(rank=4, frozen=kind))
    frozen = frozen_bytes(model) + sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    spared = 18 * model.config.parameters() - 18 * trained - frozen
    assert (whole.memory_gib - adapted.memory_gib) * 2**30 == pytest.approx(spared)
