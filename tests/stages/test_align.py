"""The aligning part of a cook at its smallest: both roads from one model, one judge, and nothing done twice."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from types import SimpleNamespace

import pytest

from stockpot.config import build
from stockpot.errors import DataError
from stockpot.run import Run
from stockpot.stages.align import ContestConfig, _lasting, _sized, align
from stockpot.stages.assemble import GentleLoop, silent
from stockpot.stages.contest import Contest, Entry
from stockpot.stages.cook import CookConfig, EvaluateConfig, _liked_best, _write_settled, cook
from stockpot.stages.dpo import DPOConfig
from stockpot.stages.kitchen import Kitchen
from stockpot.stages.ppo import PPOConfig, RewardLoop
from stockpot.stages.pretrain import PretrainConfig
from stockpot.stages.rank import RankConfig
from stockpot.stages.reward import RewardConfig
from stockpot.stages.sft import SFTConfig
from stockpot.stages.tokenizer import TokenizerConfig
from stockpot.train.loop import LoopConfig

LOOP = LoopConfig(steps=3, batch_tokens=256, log_every=1, validate_every=3, dtype="float32")
COMPARING = GentleLoop(batch_tokens=512, log_every=1, lr=1e-3, dtype="float32")
PAIRS, PROMPTS = ("village:preferences:0:60",), ("village:prompts/val:0:12",)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    judge = tmp_path_factory.mktemp("judge") / "judge.py"
    judge.write_text(
        "def shorter(replies):\n    return [-len(one.text) for one in replies]\n", encoding="utf-8"
    )
    watched = {"gold": "village:0:40", "drift_data": PROMPTS, "drift_prompts": 4, "max_tokens": 6}
    return CookConfig(
        tokenizer=TokenizerConfig(data=("village:documents:0:60",), vocab_size=400),
        pretrain=PretrainConfig(
            data=("village:documents:0:60",), size=1, context=128, val_tokens=256, loop=LOOP
        ),
        sft=SFTConfig(data=("village:chats:0:60",), val_tokens=256, loop=LOOP),
        evaluate=EvaluateConfig(tasks=("village/facts",), limit=3),
        rank=RankConfig(
            data=("village:prompts:0:60",), reward=f"{judge}:shorter", samples=2, limit=60, max_tokens=6
        ),
        reward=RewardConfig(data=PAIRS, loop=COMPARING),
        dpo=DPOConfig(data=PAIRS, loop=COMPARING, **watched),
        ppo=PPOConfig(
            data=("village:prompts:0:40",),
            prompts=4,
            loop=RewardLoop(steps=8, dtype="float32", validate_every=4),
            **watched,
        ),
        contest=ContestConfig(data=PROMPTS, gold="village:0:40", limit=8, max_tokens=6),
    )


@pytest.fixture(scope="module")
def pot(config, tmp_path_factory):
    """Cook once; returns the folder and the stages in their order."""
    folder = tmp_path_factory.mktemp("align") / "pot"
    events = []
    run = cook(config, out=folder, progress=events.append)
    assert (folder / "offered").read_text() == f"{run.path.name}\n"  # the model it offers, aligned or not
    return folder, [event["name"] for event in events if event["kind"] == "stage"]


def test_both_roads_start_from_the_same_model_and_comparisons(pot):
    folder, stages = pot
    assert stages[2:] == ["sft", "rank", "reward", "dpo", "ppo", "contest", "evaluate", "report"]
    runs = [Run.open(folder / name) for name in ("reward", "dpo", "ppo")]
    assert {run.manifest["parent"]["path"] for run in runs} == {str(folder / "sft")}
    assert runs[0].manifest["data"] == runs[1].manifest["data"]
    assert runs[0].manifest["data"][0]["path"] == str(folder / "rank" / "comparisons.jsonl")
    recipe = tomllib.loads((folder / "ppo" / "recipe.toml").read_text())
    assert recipe["ppo"]["reward"] == [str(folder / "reward")]


def test_the_same_judges_rate_the_same_prompts(pot):
    judged = Contest.from_json((pot[0] / "contest" / "contest.json").read_text())
    assert [one.model for one in judged.entries] == ["sft", "dpo", "ppo"]
    assert {tuple(one.ratings) for one in judged.entries} == {("gold", "reward model")}
    assert len(judged.prompts) == 8


def test_the_report_shows_every_step_with_its_interval(pot):
    folder, _ = pot
    page = (folder / "report.html").read_text()
    figures = json.loads((folder / "report.json").read_text())
    judged = Contest.from_json((folder / "contest" / "contest.json").read_text())
    for row in figures["alignment"]["rows"]:
        assert f"{row['rating']['low']:.2f} to {row['rating']['high']:.2f}" in page
    wins = judged.win_rate(judged.entries[2], "gold")
    assert f"PPO wins {wins.value:.0%} [{wins.low:.0%}, {wins.high:.0%}]" in page
    assert len(re.findall("<svg", page)) == 7
    assert {row["model"] for row in figures["alignment"]["tax"]} == {"after DPO", "after PPO"}
    assert [one["name"] for one in figures["stages"]][3:8] == ["rank", "reward", "dpo", "ppo", "contest"]


def test_the_settled_settings_name_no_folder_of_this_cook(config, pot):
    settled = build(CookConfig, recipe_files=[pot[0] / "settled.toml"])
    assert (settled.dpo.data, settled.ppo.reward, settled.sft.model) == (
        config.dpo.data,
        config.ppo.reward,
        None,
    )
    assert settled.ppo.loop.steps == config.ppo.loop.steps
    text = (pot[0] / "settled.toml").read_text(encoding="utf-8")
    assert str(pot[0]) not in text.replace(f"--recipe {pot[0]}", "")


def test_a_second_time_only_what_changed_is_done(config, pot):
    skipped, current = [], ""

    def listen(event):
        nonlocal current
        current = event["name"] if event["kind"] == "stage" else current
        if event.get("text", "").startswith("unchanged"):
            skipped.append(current)

    fewer = config.model_copy(update={"contest": config.contest.model_copy(update={"limit": 6})})
    cook(fewer, out=pot[0], progress=listen)
    assert skipped == ["tokenizer", "pretrain", "sft", "rank", "reward", "dpo", "ppo", "evaluate"]
    assert len(Contest.from_json((pot[0] / "contest" / "contest.json").read_text()).prompts) == 6


def test_minutes_choose_how_much_is_learned(config, pot):
    folder, _ = pot
    kitchen = Kitchen.open(folder, silent)
    tuned = {"model": str(folder / "sft")}
    direct = config.dpo.model_copy(update=tuned | {"data": (str(folder / "rank" / "comparisons.jsonl"),)})
    little, much = (_sized(kitchen, "dpo", direct, seconds, []) for seconds in (1e-6, 1e6))
    pairs = json.loads((folder / "rank" / "rank.json").read_text())["pairs"]
    tokens = Run.open(folder / "dpo").manifest["tokens"]["train"]
    assert little.max_pairs == round(32 / 0.9)
    assert little.loop.steps == pytest.approx(tokens * 32 / (0.9 * pairs) / 512, abs=1)  # one pass
    assert much.max_pairs == pytest.approx(pairs, abs=2)
    assert much.loop.steps == pytest.approx(2 * tokens / 512, abs=1)
    learning = config.ppo.model_copy(update=tuned | {"reward": (str(folder / "reward"),)})
    short = _lasting(kitchen, learning, 1e-6, [])
    assert short.loop.steps == 4  # one phase
    long = _lasting(kitchen, learning, 1e3, [])
    assert long.loop.steps > 40 and long.loop.steps % 4 == 0


def test_the_model_to_talk_to_is_an_aligned_one_that_clearly_wins_and_answers_no_less():
    def entry(name, rating):
        return Entry(
            name, ("a",) * 30, (1,) * 30, {"gold": (rating,) * 30, "reward model": (5.0,) * 30}, None
        )

    def report(right):
        answers = [SimpleNamespace(scores={"choice": float(n < right)}) for n in range(40)]
        return SimpleNamespace(answers={"village/facts": answers})

    def chosen(dpo, ppo, able=30):
        found = Contest(("p",) * 30, (entry("sft", 1.0), entry("dpo", dpo), entry("ppo", ppo)))
        return _liked_best(found, {"tuned": report(30), "dpo": report(able), "ppo": report(29)})

    assert _liked_best(None, {}) == "tuned"
    assert chosen(1.0, 1.0) == "tuned"
    assert chosen(2.0, 1.0) == "dpo"
    assert chosen(2.0, 1.0, able=10) == "tuned"
    assert chosen(3.0, 2.0, able=10) == "ppo"


def test_a_cook_may_end_with_instruction_tuning(config, tmp_path):
    folder = tmp_path / "pot"
    run = cook(config.model_copy(update={"align": False}), out=folder)
    assert run.path == folder / "sft"
    assert not (folder / "reward").exists()
    page = (folder / "report.html").read_text()
    assert "What learning from comparisons added" not in page and len(re.findall("<svg", page)) == 5


def test_a_model_whose_answers_are_all_alike_learns_from_the_comparisons_that_are_named(
    config, pot, tmp_path
):
    folder = tmp_path / "pot"
    shutil.copytree(pot[0], folder, symlinks=True)
    (tmp_path / "judge.py").write_text("def same(replies):\n    return [0.0 for _ in replies]\n")
    ranking = config.rank.model_copy(update={"reward": f"{tmp_path / 'judge.py'}:same", "limit": 8})
    notes = []
    kitchen = Kitchen.open(folder, notes.append)
    settings = config.reward, config.dpo, config.ppo, config.contest
    with pytest.raises(DataError, match="rated alike"):  # the steps are the user's own choice
        align(kitchen, folder / "sft", settings, ranking=ranking, minutes=None, seed=0)
    align(kitchen, folder / "sft", settings, ranking=ranking, minutes=0.001, seed=0)
    assert any("only 0 of the model's own answers" in one.get("text", "") for one in notes)
    assert Run.open(folder / "dpo").manifest["data"][0]["path"] == "village:preferences:0:60"
    _write_settled(folder, config)
    assert build(CookConfig, recipe_files=[folder / "settled.toml"]).rank is None
