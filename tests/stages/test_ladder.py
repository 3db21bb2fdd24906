"""All kinds of prompting on the same items of one tiny model, with what each costs."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.errors import ConfigError
from stockpot.judge.prompts import prompts
from stockpot.model.adapters import LoRA, frozen_bytes
from stockpot.model.frozen import KINDS
from stockpot.prompt.items import Questions
from stockpot.stages.ladder import LadderConfig, ladder
from stockpot.train.loop import fit
from stockpot.weights.store import load


def test_each_rung_answers_the_same_items_and_tells_its_cost(tiny_base, tmp_path, write_lines):
    labels = ("positive", "negative", "neutral")
    data = write_lines("items.jsonl", [{"text": f"It is {n}.", "label": labels[n % 3]} for n in range(24)])
    asked = Questions(task="sentiment", data=data, limit=4, wordings=("slashes", "stars"))
    kinds = ("wordings", "shots", "retrieval", "soft", "prefix", "lora")
    config = LadderConfig(questions=asked, kinds=kinds, k=1, chosen_on=4, length=3, steps=2)
    found = ladder(tiny_base, config, out=tmp_path / "ladder")
    names = [one.name for one in found.rungs]
    assert names == [
        "median of 2 wordings",
        "chosen wording, plain",
        "chosen wording, calibrated",
        "1 example",
        "1 retrieved example",
        "soft prompt of 3",
        "prefix of 3 in every layer",
        "low-rank adapters, rank 8",
    ]
    assert {one.accuracy.n for one in found.rungs} == {4}
    assert found.rungs[0].gain.value == 0
    trained = {one.name: one.trained for one in found.rungs if one.trained}
    assert trained["soft prompt of 3"] == 3 * 32
    assert trained["prefix of 3 in every layer"] == 2 * 2 * 3 * 32, "keys and values of two layers"
    assert trained["low-rank adapters, rank 8"] > 1000
    worn = load(tiny_base, adapters=[tmp_path / "ladder" / "soft"])
    (score,) = prompts(worn, asked.model_copy(update={"wordings": (found.wording,)})).scores
    soft = next(one for one in found.rungs if one.name == "soft prompt of 3")
    assert soft.accuracy.value == sum(score.right["plain"]) / 4, "what was trained is not rescaled"
    tokens = {one.name: one.tokens for one in found.rungs}
    assert tokens["1 example"] > tokens["chosen wording, plain"]
    saved = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    assert [one["name"] for one in saved["rungs"]] == names
    assert "<svg" in (tmp_path / "ladder" / "ladder.svg").read_text()
    assert "guessing scores 0.33" in str(found)
    with pytest.raises(ConfigError, match="is not empty"):
        ladder(tiny_base, config, out=tmp_path / "ladder")
    with pytest.raises(ConfigError, match="nowhere"):
        ladder(tiny_base, config.model_copy(update={"device": "nowhere"}), out=tmp_path / "elsewhere")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_climb_beside_a_base_of_few_bits(tiny_base, tmp_path, write_lines, monkeypatch, kind):
    seen = []

    def looked(model, *args, **kwargs):
        seen.append(frozen_bytes(model))
        return fit(model, *args, **kwargs)

    monkeypatch.setattr("stockpot.stages.ladder.fit", looked)
    labels = ("positive", "negative", "neutral")
    data = write_lines("items.jsonl", [{"text": f"It is {n}.", "label": labels[n % 3]} for n in range(24)])
    asked = Questions(task="sentiment", data=data, limit=3, wordings=("slashes",))
    how = {"k": 1, "chosen_on": 4, "steps": 2, "lora": LoRA(rank=4, frozen=kind)}
    config = LadderConfig(questions=asked, kinds=("wordings", "lora"), **how)
    found = ladder(tiny_base, config, out=tmp_path / "ladder")
    assert found.rungs[-1].name == "low-rank adapters, rank 4"
    assert found.rungs[-1].accuracy.n == 3
    assert seen[0] > 0


def test_a_ladder_that_breaks_leaves_what_was_climbed(tiny_base, tmp_path, monkeypatch):
    def breaks(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stockpot.stages.ladder.tune_prompt", breaks)
    asked = Questions(task="sentiment", limit=3, wordings=("slashes",))
    config = LadderConfig(questions=asked, kinds=("wordings", "soft"), chosen_on=4)
    with pytest.raises(KeyboardInterrupt):
        ladder(tiny_base, config, out=tmp_path / "ladder")
    saved = json.loads((tmp_path / "ladder" / "ladder.json").read_text())
    assert next(one["name"] for one in saved["rungs"]) == "median of 1 wordings"


def test_free_answers_climb_with_steps(tiny_base, tmp_path, write_lines):
    solved = [{"question": f"{n} + 1?", "answer": f"{n} + 1 = {n + 1}\n#### {n + 1}"} for n in range(40)]
    data = write_lines("sums.jsonl", solved)
    words = [
        "ladder",
        str(tiny_base),
        "--task",
        "sums",
        "--data",
        data,
        "--limit",
        "2",
        "--wording",
        "q-a",
    ]
    words += ["--kinds", "wordings,steps", "-k", "1", "--out", str(tmp_path / "l"), "--json"]
    told = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.stderr
    names = [one["name"] for one in json.loads(told.stdout)["rungs"]]
    assert names == [
        "median of 1 wordings",
        "chosen wording, written",
        "step by step, two stages",
        "step by step, 1 worked examples",
    ]
    few = LadderConfig(questions=Questions(task="lecture"))
    with pytest.raises(ConfigError, match="leaves 0 examples"):
        ladder(tiny_base, few, out=tmp_path / "few")
