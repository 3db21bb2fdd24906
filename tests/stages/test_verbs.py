"""The verbs that learn from people, typed as a user types them."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.errors import ConfigError
from stockpot.stages.align_image import AlignImageConfig
from stockpot.stages.budget import plan
from stockpot.stages.reward import RewardConfig
from stockpot.stages.sft import SFTConfig
from stockpot.stages.tune_prompt import PromptTuningConfig

QUICK = (
    "--set",
    "loop.batch_tokens=256",
    "--set",
    "loop.dtype=float32",
    "--set",
    "loop.log_every=1",
    "--seed",
    "1",
)


def ask(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.mark.parametrize("verb", ["dpo", "reward"])
def test_comparisons_are_learned_from(verb, tiny_base, tmp_path):
    out = tmp_path / "run"
    told = ask(
        verb, tiny_base, "--data", "village:preferences:0:60", "--steps", "3", "--out", out, *QUICK, "--json"
    )
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["status"] == "done"
    assert tomllib.loads((out / "recipe.toml").read_text())[verb]["loop"]["steps"] == 3


@pytest.mark.parametrize("verb", ["dpo", "reward"])
def test_a_dry_run_says_how_long_a_pass_takes(verb, tiny_base, tmp_path):
    told = ask(
        verb, tiny_base, "--data", "village:preferences:0:60", "--out", tmp_path / "run", "--dry-run", *QUICK
    )
    assert told.exit_code == 0, told.stderr
    assert "tokens/s" in told.stdout
    assert "val_share" in told.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("verb", "data"),
    [
        ("sft", "village:chats:0:60"),
        ("dpo", "village:preferences:0:60"),
        ("reward", "village:preferences:0:60"),
    ],
)
def test_a_dry_run_prints_the_steps_that_the_run_will_take(verb, data, tiny_base, tmp_path):
    """It printed the loop's thousand steps, which whoever ran what was printed got."""
    words = (verb, tiny_base, "--data", data, "--out", tmp_path / "run", *QUICK)
    planned = tomllib.loads(ask(*words, "--dry-run").stdout)[verb]["loop"]
    assert ask(*words).exit_code == 0
    taken = tomllib.loads((tmp_path / "run" / "recipe.toml").read_text())[verb]["loop"]
    assert planned["steps"] == taken["steps"] < 100
    assert planned["batch_tokens"] == taken["batch_tokens"]


@pytest.mark.parametrize("verb", ["sft", "dpo", "reward"])
def test_passes_and_steps_together_are_refused(verb, tiny_base, tmp_path):
    """The steps were not looked at, those of a flag either."""
    words = (verb, tiny_base, "--out", tmp_path / "run", "--steps", "3", "--set", "passes=2")
    told = ask(*words)
    assert told.exit_code == 1
    assert "passes = 2 and loop.steps = 3 both say how long to train" in told.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_rewards_are_learned_from(verb, tiny_base, tmp_path):
    out = tmp_path / "run"
    sizes = ("--set", "prompts=4", "--set", "max_tokens=4")
    common = ("--data", "village:prompts:0:20", "--reward", "village:0:20", "--steps", "2", *sizes, *QUICK)
    dry = ask(verb, tiny_base, "--out", out, *common, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "answers of up to 4 tokens" in dry.stdout
    told = ask(verb, tiny_base, "--out", out, *common, "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["status"] == "done"
    refused = ask(verb, tiny_base, "--out", tmp_path / "other", *QUICK)
    assert refused.exit_code == 1
    assert "There is no reward" in refused.stderr


def test_what_does_not_fit_is_two_lines(tiny_base, tmp_path):
    told = ask("dpo", tiny_base, "--data", "village:chats:0:5", "--out", tmp_path / "run", *QUICK)
    assert told.exit_code == 1
    assert told.stderr.startswith("error: village:chats:0:5:1: a messages record; comparisons have")
    assert ask("dpo", "--data", "village:preferences:0:5", "--out", tmp_path / "run").exit_code == 1
    told = ask(
        "dpo", tiny_base, "--set", "objective=ipo", "--set", "label_smoothing=0.2", "--out", tmp_path / "run"
    )
    assert "label_smoothing belongs to dpo and simpo" in told.stderr


def test_models_meet_before_a_judge(tiny_base, tmp_path):
    words = (
        "contest",
        tiny_base,
        "--judge",
        "village:0:20",
        "--data",
        "village:prompts/val:0:6",
        "--max-tokens",
        "4",
    )
    told = ask(*words, "--out", tmp_path / "all.json")
    assert told.exit_code == 0, told.stderr
    assert "wins against the first" in told.stdout and "n" in told.stdout
    assert len(json.loads((tmp_path / "all.json").read_text())["prompts"]) == 6
    (row,) = json.loads(ask(*words, "--json").stdout)
    assert row["wins"]["village:0:20"]["value"] == 0.5
    assert "nowhere" in ask(*words, "--device", "nowhere").stderr


def test_a_model_compares_answers(tiny_base, tmp_path):
    out = tmp_path / "said"
    words = ("ai-feedback", tiny_base, "--data", "village:preferences/val:0:4", "--out", out)
    words += ("--set", "question={prompt} {first} {second}")
    assert "up to 200 pairs" in ask(*words, "--dry-run").stdout
    told = ask(*words)
    assert told.exit_code == 0, told.stderr
    assert "the same answer won in both orders" in told.stderr
    assert re.search(r"first_chosen +\d\.\d+ \[.*\] n=4", told.stdout)
    assert len((out / "comparisons.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("words", [("sft", "--set", "context=64"), ("align-image",)])
def test_a_model_that_takes_more_than_a_step_holds_can_be_planned(words, tiny_base, tmp_path):
    verb, *more = words
    told = ask(
        verb, tiny_base, *more, "--set", "loop.batch_tokens=64", "--out", tmp_path / "run", "--dry-run"
    )
    assert told.exit_code == 0, told.stderr  # the model takes 128
    assert "tokens/s" in told.stdout


@pytest.mark.parametrize(
    ("config", "verb"),
    [
        (SFTConfig(), "sft"),
        (PromptTuningConfig(), "tune-prompt"),
        (AlignImageConfig(), "align-image"),
        (RewardConfig(), "reward"),
    ],
)
def test_a_plan_without_a_model_names_its_own_verb(config, verb):
    with pytest.raises(ConfigError, match=f"stockpot {verb} MODEL"):
        plan(config)
