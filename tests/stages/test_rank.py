"""A model's own answers, ranked: what is written, what is refused, and whole conversations."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.data.sources import read_records
from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.stages.rank import FILE, RankConfig, rank


@pytest.fixture
def judges(tmp_path):
    """Write a file of judges; call it with a name."""
    file = tmp_path / "judges.py"
    file.write_text(
        "def shorter(replies):\n    return [-len(one.text) for one in replies]\n"
        "def same(replies):\n    return [1.0] * len(replies)\n"
        "def none(replies):\n    return [float('nan')] * len(replies)\n",
        encoding="utf-8",
    )
    return lambda name: f"{file}:{name}"


@pytest.fixture
def config(tiny_base, judges):
    data = ("village:prompts:0:12",)
    return RankConfig(model=str(tiny_base), data=data, reward=judges("shorter"), samples=3, max_tokens=6)


def test_the_best_answer_stands_beside_the_worst(config, tmp_path):
    found = rank(config, out=tmp_path / "out")
    records = list(read_records(str(found.path)))
    assert len(records) == found.pairs <= found.prompts == 12
    for record in records:
        assert len(record.chosen) < len(record.rejected)
        assert record.margin == len(record.rejected) - len(record.chosen)
        assert (record.annotator, record.source) == (config.reward, "rank")
    assert found.best.value > found.rating.value
    told = json.loads((tmp_path / "out" / "rank.json").read_text())
    assert told["pairs"] == found.pairs and told["settings"]["samples"] == 3


def test_each_round_of_answers_is_told(config, tmp_path):
    """Hours of writing passed in silence."""
    said = []
    rank(config, out=tmp_path / "out", progress=said.append)
    steps = [(one["step"], one["steps"]) for one in said if one["kind"] == "step"]
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_same_seed_gives_the_same_comparisons(config, tmp_path):
    first, again = (rank(config, out=tmp_path / name).path.read_bytes() for name in ("a", "b"))
    assert first == again
    other = rank(config.model_copy(update={"seed": 1}), out=tmp_path / "c").path.read_bytes()
    assert other != first


def test_prompts_need_no_answers(config, tmp_path, write_lines):
    prompts = write_lines("prompts.jsonl", [{"prompt": "Who lives in the mill?"}, {"prompt": "Who sings?"}])
    found = rank(config.model_copy(update={"data": (prompts,), "samples": 8}), out=tmp_path / "out")
    asked = {json.loads(line)["prompt"] for line in found.path.read_text().splitlines()}
    assert found.prompts == 2 and asked <= {"Who lives in the mill?", "Who sings?"}


def test_a_conversation_is_kept_whole(config, tmp_path, write_lines):
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    prompts = write_lines("prompts.jsonl", [{"messages": said}])
    found = rank(config.model_copy(update={"data": (str(prompts),), "samples": 8}), out=tmp_path / "out")
    assert json.loads(found.path.read_text())["prompt"] == said


def test_what_cannot_be_ranked_is_refused_and_leaves_nothing(config, judges, tmp_path):
    with pytest.raises(ConfigError, match="no model to answer"):
        rank(config.model_copy(update={"model": None}), out=tmp_path / "out")
    with pytest.raises(DataError, match="rated alike") as caught:
        rank(config.model_copy(update={"reward": judges("same")}), out=tmp_path / "out")
    assert "more --minutes" in caught.value.todo
    with pytest.raises(TrainError):
        rank(config.model_copy(update={"reward": judges("none")}), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rank(config, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="holds comparisons already"):
        rank(config, out=tmp_path / "out")


def test_the_command_says_what_it_wrote(config, tiny_base, tmp_path):
    words = [
        "rank",
        str(tiny_base),
        "--data",
        "village:prompts:0:6",
        "--reward",
        config.reward,
        "--samples",
        "2",
    ]
    done = CliRunner().invoke(
        app, [*words, "--set", "max_tokens=6", "--out", str(tmp_path / "out"), "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["data"] == str(tmp_path / "out" / FILE)
    assert told["prompts"] == 6 and told["rating"]["value"] <= told["best"]["value"]
