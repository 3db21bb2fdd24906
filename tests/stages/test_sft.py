"""Instruction tuning with an adapter: small, exact to resume, and the base stays as it is."""

from __future__ import annotations

import hashlib

import pytest
import torch

from stockpot.config import read_recipe
from stockpot.errors import DataError
from stockpot.model.adapters import LoRA
from stockpot.stages.sft import SFTConfig, read_conversations, sft
from stockpot.train.loop import LoopConfig
from stockpot.weights.adapter import is_adapter
from stockpot.weights.store import load

LOOP = LoopConfig(steps=6, batch_tokens=512, lr=1e-2, log_every=1, checkpoint_every=3, dtype="float32")


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_an_adapter_is_trained_and_the_base_is_not(tiny_base, tmp_path):
    before = digest(tiny_base)
    config = SFTConfig(model=str(tiny_base), data="village:chats:0:60", adapter=LoRA(rank=4), loop=LOOP)
    run = sft(config, out=tmp_path / "run")
    assert is_adapter(run.model_path)
    assert digest(tiny_base) == before
    assert run.last("train/loss") < run.series("train/loss")[0][1]
    assert run.manifest["trained_parameters"] < run.manifest["parameters"] / 2
    state = run.model_path / "state" / "training.pt"
    assert state.stat().st_size < (tiny_base / "model.safetensors").stat().st_size * 1.5
    tuned = load(run.path)
    base = load(tiny_base)
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(tuned.model(ids).logits, base.model(ids).logits, atol=1e-3)


def test_a_resumed_adapter_run_ends_bit_for_bit_alike(tiny_base, tmp_path, interrupted_at):
    config = SFTConfig(model=str(tiny_base), data="village:chats:0:60", adapter=LoRA(rank=2), loop=LOOP)
    whole = sft(config, out=tmp_path / "whole")
    interrupted_at(4, lambda press: sft(config, out=tmp_path / "torn", progress=press))
    torn = sft(config, out=tmp_path / "torn", resume=True)
    assert torn.series("train/loss") == whole.series("train/loss")
    names = ("adapter_model.safetensors",)
    for name in names:
        assert (torn.model_path / name).read_bytes() == (whole.model_path / name).read_bytes()


def test_records_without_an_answer_are_refused_by_name(tiny_base, tmp_path, write_lines):
    data = write_lines("chats.jsonl", [{"messages": [{"role": "user", "content": "Is there anybody?"}]}])
    with pytest.raises(DataError, match=r"chats\.jsonl:1: no token of this record counts"):
        sft(SFTConfig(model=str(tiny_base), data=data, loop=LOOP), out=tmp_path / "run")


@pytest.mark.parametrize(("passes", "times"), [(None, 3), (1.0, 1)])
def test_without_steps_the_records_are_passed_over_a_few_times(passes, times, tiny_base, tmp_path):
    """A thousand steps were taken of however few records."""
    loop = {name: one for name, one in LOOP.model_dump(exclude_unset=True).items() if name != "steps"}
    config = SFTConfig(model=str(tiny_base), data="village:chats:0:60", passes=passes, loop=loop)
    run = sft(config, out=tmp_path / "run")
    steps = round(times * run.manifest["tokens"]["train"] / LOOP.batch_tokens)
    assert read_recipe(run.path / "recipe.toml")["sft"]["loop"]["steps"] == steps
    assert run.series("train/loss")[-1][0] == steps


def test_a_step_holds_a_row_for_each_process_unless_its_tokens_are_given(tiny_base):
    bundle = load(tiny_base)  # a row is 128 tokens
    config = SFTConfig(model=str(tiny_base), data="village:chats:0:60")
    assert read_conversations(config, bundle).config.loop.batch_tokens == 4096
    assert read_conversations(config, bundle, processes=64).config.loop.batch_tokens == 64 * 128
    config = SFTConfig(model=str(tiny_base), data="village:chats:0:60", loop=LOOP)
    assert read_conversations(config, bundle, processes=64).config.loop.batch_tokens == LOOP.batch_tokens


def test_a_run_keeps_how_many_records_were_cut_or_left_out(tiny_base, tmp_path, write_lines, caplog):
    def chat(asked, said):
        return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}

    records = [chat("Who is there?", "Mara.")] * 40 + [
        chat("Tell me!", "Mara. " * 200),
        chat("Mara? " * 200, "Yes."),
    ]
    config = SFTConfig(model=str(tiny_base), data=write_lines("chats.jsonl", records), loop=LOOP)
    run = sft(config, out=tmp_path / "run")
    assert run.manifest["records"] == {"train": 38, "validation": 3, "cut": 1, "left_out": 1}
    assert "1 records were cut at 128 tokens" in caplog.text


@pytest.mark.parametrize(("data", "is_plain"), [("village", True), ("village:chats", False)])
def test_plain_texts_are_told_of_where_conversations_are_expected(data, is_plain, tiny_base, tmp_path):
    said = []
    config = SFTConfig(model=str(tiny_base), data=f"{data}:0:60", loop=LOOP.model_copy(update={"steps": 1}))
    sft(config, out=tmp_path / "run", progress=said.append)
    [note] = [one["text"] for one in said if one["kind"] == "note" and "records" in one["text"]]
    assert ("every token counts" in note) == is_plain


def test_settings_reach_the_adapter_from_the_command_line(tiny_base):
    from stockpot.config import build

    config = build(SFTConfig, table="sft", sets=["adapter.rank=8", "adapter.targets=['query', 'value']"])
    assert config.adapter == LoRA(rank=8, targets=("query", "value"))


def test_a_plain_loop_keeps_what_it_sets_and_takes_the_rest_from_the_stage() -> None:
    loop = SFTConfig(loop=LoopConfig(steps=7)).loop
    assert (loop.steps, loop.lr) == (7, SFTConfig().loop.lr)
    assert loop.lr != LoopConfig().lr
