"""A reward model as a stage: it ranks held-out answers, says how sure it may be, and loads like any model."""

from __future__ import annotations

import json
import math

import pytest
import torch

from stockpot.model.adapters import LoRA
from stockpot.stages.assemble import GentleLoop
from stockpot.stages.reward import RewardConfig, judged, reward
from stockpot.weights.store import load

LOOP = GentleLoop(
    steps=10, batch_tokens=256, lr=5e-3, log_every=1, checkpoint_every=5, validate_every=5, dtype="float32"
)


@pytest.fixture
def config(tiny_base, write_lines):
    records = [
        {"prompt": f"Who lives in house {i % 20}?", "chosen": f"Mara {i}.", "rejected": f"I do not know {i}."}
        for i in range(80)
    ]
    return RewardConfig(
        model=str(tiny_base), data=write_lines("pairs.jsonl", records), loop=LOOP, val_share=0.3
    )


def test_it_ranks_held_out_answers_and_stays_centred(config, tmp_path):
    run = reward(config, out=tmp_path / "run")
    assert run.series("train/loss")[0][1] == pytest.approx(0.6931, abs=1e-3)  # all rewards are zero at first
    assert run.last("val/accuracy") > 0.9
    assert abs(run.last("val/reward")) < 0.5 * run.last("val/gap")
    figures = json.loads((run.path / "evals" / "comparisons.json").read_text())
    assert figures["accuracy"]["low"] > 0.5
    assert figures["accuracy"] == run.manifest["accuracy"]
    assert sum(part["n"] for part in figures["parts"]) == figures["accuracy"]["n"]


def test_it_is_a_model_folder_like_any_other(config, tmp_path):
    run = reward(config, out=tmp_path / "run")
    bundle = load(run.path)
    assert bundle.model.config.value_head
    ids = torch.tensor([bundle.encode("Who is it?")])
    with torch.no_grad():
        values = bundle.model.values(bundle.model(ids, last=0).hidden)
    assert values.shape == ids.shape
    assert float(values.abs().max()) > 0


@pytest.mark.parametrize("adapter", [None, LoRA(rank=2)], ids=["full", "adapter"])
def test_a_resumed_run_ends_bit_for_bit_alike(config, tmp_path, interrupted_at, adapter):
    config = config.model_copy(update={"adapter": adapter})
    whole = reward(config, out=tmp_path / "whole")
    interrupted_at(6, lambda press: reward(config, out=tmp_path / "torn", progress=press))
    torn = reward(config, out=tmp_path / "torn", resume=True)
    assert torn.series("train/loss") == whole.series("train/loss")
    one, other = ((run.model_path / "model.safetensors").read_bytes() for run in (torn, whole))
    assert one == other


def test_an_adapted_reward_model_learns_and_is_saved_whole(config, tmp_path):
    loop = LOOP.model_copy(update={"lr": 0.02})
    run = reward(config.model_copy(update={"adapter": LoRA(rank=4), "loop": loop}), out=tmp_path / "run")
    assert run.last("train/loss") < 0.6
    assert (run.model_path / "model.safetensors").is_file()
    assert run.manifest["trained_parameters"] < run.manifest["parameters"]


def test_certainty_is_held_against_what_happened():
    sure = judged([5.0] * 8 + [-5.0] * 2)  # says 0.993, is right in 8 of 10
    assert sure["accuracy"]["value"] == 0.8
    assert sure["calibration_error"] == pytest.approx(0.2, abs=0.02)
    gap = math.log(4)  # says 0.8
    honest = judged(([gap] * 4 + [-gap]) * 5)
    assert honest["calibration_error"] == pytest.approx(0.0, abs=1e-6)
    assert sum(part["n"] for part in honest["parts"]) == 25
    assert judged([])["accuracy"] is None
