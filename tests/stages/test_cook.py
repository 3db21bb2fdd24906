"""The main job at its smallest: every stage, what it leaves, and what is done again when something changes."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from stockpot.config import build
from stockpot.errors import CheckpointError, ConfigError
from stockpot.judge.harness import Report
from stockpot.prompt.items import Questions
from stockpot.run import Run
from stockpot.stages.cook import CookConfig, EvaluateConfig, cook
from stockpot.stages.kitchen import Kitchen
from stockpot.stages.ladder import LadderConfig
from stockpot.stages.ledger import LedgerConfig, ledger
from stockpot.stages.pretrain import PretrainConfig
from stockpot.stages.sft import SFTConfig
from stockpot.stages.tokenizer import TokenizerConfig
from stockpot.train.guard import Interrupted
from stockpot.train.loop import LoopConfig
from stockpot.weights.store import load

STAGES = ("tokenizer", "pretrain", "sft", "evaluate")
LOOP = LoopConfig(steps=3, batch_tokens=256, log_every=1, validate_every=3, dtype="float32")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    corpus = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    corpus.write_text(
        "\n\n".join(f"The {a} sat on the {b}." for a in ["cat", "dog", "hen"] for b in "abcdefgh")
    )
    return CookConfig(
        tokenizer=TokenizerConfig(data=(str(corpus), "village:documents:0:60"), vocab_size=320),
        pretrain=PretrainConfig(
            data=("village:documents:0:60",),
            size=1,
            context=128,
            val_tokens=256,
            loop=LOOP.model_copy(update={"keep": 3}),
        ),
        sft=SFTConfig(data=("village:chats:0:60",), val_tokens=256, loop=LOOP),
        evaluate=EvaluateConfig(tasks=("village/facts", "village/rewriting"), limit=3),
        align=False,  # test_align goes on from here
    )


@pytest.fixture(scope="module")
def cooked(config, tmp_path_factory):
    """Cook once; returns the folder and the events. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("cook") / "pot"
    events: list[dict] = []
    run = cook(config, out=folder, progress=events.append)
    assert run.path == folder / "sft"
    return folder, events


@pytest.fixture
def pot(cooked, tmp_path):
    """Lend the finished cook to a test that goes on with it: its folder is as before afterwards."""
    folder, _ = cooked
    shutil.copytree(folder, tmp_path / "kept", symlinks=True)
    yield folder
    shutil.rmtree(folder)
    shutil.move(tmp_path / "kept", folder)


def notes(events):
    return [event["text"] for event in events if event["kind"] == "note"]


def stages(events):
    return [event["name"] for event in events if event["kind"] == "stage"]


def done_stages(folder):
    return {name: (one["key"], one["status"]) for name, one in state(folder).items() if name in STAGES}


def state(folder):
    return json.loads((folder / "cook.json").read_text(encoding="utf-8"))


def cook_again(config, folder):
    """Cook in a folder that holds a cook; return which stages did work."""
    events: list[dict] = []
    cook(config, out=folder, progress=events.append)
    worked, current = [], ""
    for event in events:
        if event["kind"] == "stage":
            current = event["name"]
            worked.append(current)
        elif event.get("text", "").startswith("unchanged"):
            worked.remove(current)
    return [name for name in worked if name in (*STAGES, "ladder", "ledger")]


def test_every_stage_leaves_a_whole_result_that_names_where_it_comes_from(cooked):
    folder, events = cooked
    assert stages(events) == [*STAGES, "report"]
    assert {status for _, status in done_stages(folder).values()} == {"done"}
    base, tuned = Run.open(folder / "pretrain"), Run.open(folder / "sft")
    assert (base.status, tuned.status) == ("done", "done")
    assert tuned.manifest["parent"]["path"] == str(folder / "pretrain")
    for run in (base, tuned):
        assert len(run.series("train/loss")) == 3
        assert run.last("val/loss") > 0
        assert any((run.path / "samples").iterdir())
        assert (run.path / "report.md").is_file()
    assert load(folder / "pretrain").template is None
    assert load(folder / "sft").template is not None, "the tuned model holds conversations"
    assert not [one for one in notes(events) if "to chat" in one], "the verb says it, once"
    assert (folder / "offered").read_text() == "sft\n", "what `make chat` opens"


def test_the_same_questions_are_asked_before_and_after(cooked):
    reports = [Report.load(cooked[0] / "evaluate" / name / "report.json") for name in ("base", "tuned")]
    assert reports[0].fingerprints == reports[1].fingerprints
    assert [report.wording for report in reports] == ["plain", "chat"]
    assert {len(answers) for report in reports for answers in report.answers.values()} == {3}


def test_the_page_shows_the_figures_of_the_stages(cooked):
    folder, _ = cooked
    page = (folder / "report.html").read_text(encoding="utf-8")
    figures = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    bits = Run.open(folder / "pretrain").last("val/bits_per_byte")
    assert f"{bits:.3f} bits per byte on held-out text" in page
    tuned = Report.load(folder / "evaluate" / "tuned" / "report.json").row("village/facts", "choice").estimate
    [row] = [
        one
        for one in figures["scores"]
        if (one["task"], one["metric"], one["model"]) == ("village/facts", "choice", "tuned")
    ]
    assert (row["value"], row["low"], row["high"], row["n"], row["chance"]) == (
        *(tuned.value, tuned.low, tuned.high, 3, 0.25),
    )
    assert f"{row['value']:.3f}</td><td>{row['low']:.3f} to {row['high']:.3f}" in page
    assert len(re.findall("<svg", page)) == 5, "two curves, scores, lineage and attention"
    assert figures["lineage"][1]["parent"] == "pretrain"
    assert figures["lineage"][0]["model"] == figures["lineage"][1]["parent_model"]
    assert figures["ledger"] is None
    assert len(figures["samples"]) == 2
    assert {sample["question"] in page for sample in figures["samples"]} == {True}
    assert [stage["name"] for stage in figures["stages"]] == list(STAGES)


def test_a_second_time_nothing_is_done_again(config, pot):
    before = done_stages(pot)
    metrics = (pot / "pretrain" / "metrics.jsonl").read_bytes()
    assert cook_again(config, pot) == []
    assert done_stages(pot) == before
    assert (pot / "pretrain" / "metrics.jsonl").read_bytes() == metrics
    assert not (pot / "earlier").exists()


def test_a_changed_setting_redoes_its_stage_and_the_later_ones(config, pot):
    loop = LOOP.model_copy(update={"steps": 2})
    changed = config.model_copy(update={"sft": config.sft.model_copy(update={"loop": loop})})
    assert cook_again(changed, pot) == ["sft", "evaluate"]
    assert len(Run.open(pot / "sft").series("train/loss")) == 2
    assert len(Run.open(pot / "earlier" / "sft-1").series("train/loss")) == 3, "the earlier one is kept"
    fewer = changed.model_copy(update={"evaluate": EvaluateConfig(tasks=("village/facts",), limit=2)})
    assert cook_again(fewer, pot) == ["evaluate"]


def test_data_that_changed_under_its_name_redoes_everything(config, pot):
    corpus = Path(config.tokenizer.data[0])
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text + "\n\nThe goat ate the rug.", encoding="utf-8")
    try:
        assert cook_again(config, pot) == list(STAGES)
    finally:
        corpus.write_text(text, encoding="utf-8")


def test_the_ledger_is_kept_where_it_is_asked_for(config, pot):
    asked = LedgerConfig(limit=1, ngram_tokens=2000, chosen_on=4, max_tokens=4, steps_tokens=8)
    assert cook_again(config.model_copy(update={"ledger": asked}), pot) == ["ledger"]
    assert cook_again(config.model_copy(update={"ledger": asked}), pot) == []
    figures = json.loads((pot / "report.json").read_text(encoding="utf-8"))
    lines = {one["name"]: one for one in figures["ledger"]["lines"]}
    assert lines["base"]["cost"]["tokens"] == Run.open(pot / "ledger" / "small").last("tokens")
    assert lines["+ more data"]["over"] == "+ more parameters"
    assert lines["+ DPO"]["skipped"] == "the cook has no stage dpo"
    assert (
        lines["+ instruction tuning"]["cost"]["labels"] == Run.open(pot / "sft").manifest["records"]["train"]
    )
    page = (pot / "report.html").read_text(encoding="utf-8")
    assert lines["+ retrieval"]["sentence"] in page and "What the layers know" in page


def test_the_small_sibling_is_taken_up_where_it_broke_off_and_made_anew_for_another_base(
    config, pot, tmp_path
):
    asked = LedgerConfig(limit=1, ngram_tokens=2000, chosen_on=4, max_tokens=4, steps_tokens=8)
    ledger(pot, asked, out=tmp_path)
    manifest = Run.open(tmp_path / "small").manifest
    (tmp_path / "small" / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    ledger(pot, asked, out=tmp_path)
    assert len(Run.open(tmp_path / "small").manifest["resumed"]) == 1
    cook_again(config.model_copy(update={"seed": 1}), pot)
    ledger(pot, asked, out=tmp_path)
    assert Run.open(tmp_path / "small").manifest["seed"] == 1


def test_the_ladder_is_climbed_where_it_is_asked_for(config, pot):
    asking = Questions(task="sums", wordings=("question-answer", "therefore"), limit=2)
    asked = LadderConfig(questions=asking, kinds=("wordings", "shots"), k=1, chosen_on=4)
    assert cook_again(config.model_copy(update={"ladder": asked}), pot) == ["ladder"]
    (pot / "ladder" / "left.txt").write_text("by an interrupted climb")
    state = json.loads((pot / "cook.json").read_text(encoding="utf-8"))
    state["ladder"]["status"] = "started"
    (pot / "cook.json").write_text(json.dumps(state))
    assert cook_again(config.model_copy(update={"ladder": asked}), pot) == ["ladder"]
    assert not (pot / "ladder" / "left.txt").exists()
    figures = json.loads((pot / "report.json").read_text(encoding="utf-8"))
    assert [rung["name"] for rung in figures["ladder"]["rungs"]][-1] == "1 example"
    assert "Kinds of prompting" in (pot / "report.html").read_text(encoding="utf-8")


def test_an_interrupted_cook_goes_on_in_the_midst_of_its_stage(config, cooked, tmp_path):
    def press(event):
        if event["kind"] == "step" and event["step"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        cook(config, out=tmp_path / "pot", progress=press)
    assert Run.open(tmp_path / "pot" / "pretrain").status == "interrupted"
    assert cook_again(config, tmp_path / "pot") == ["pretrain", "sft", "evaluate"]
    ends = [Run.open(folder / "sft").series("val/loss") for folder in (cooked[0], tmp_path / "pot")]
    assert ends[0] == ends[1], "as if nothing had happened"


def test_minutes_choose_the_size_and_the_steps_once(config, tmp_path):
    free = config.pretrain.model_copy(update={"size": None})
    asked = config.model_copy(update={"pretrain": free})
    events: list[dict] = []
    cook(asked, out=tmp_path / "pot", minutes=0.002, progress=events.append)
    assert "where 0.002 were given" in notes(events)[-1]
    plan = state(tmp_path / "pot")["pretrain-plan"]["value"]
    run = Run.open(tmp_path / "pot" / "pretrain")
    assert (plan["size"], plan["minutes"]) == (2, None)
    assert run.last("train/loss") > 0
    assert run.series("train/loss")[-1][0] == plan["loop"]["steps"]
    settled = build(CookConfig, recipe_files=[tmp_path / "pot" / "settled.toml"])
    cook(settled, out=tmp_path / "again")
    for name in ("pretrain", "sft"):
        first, second = (Run.open(tmp_path / pot / name) for pot in ("pot", "again"))
        assert first.series("val/loss") == second.series("val/loss"), "the same numbers without minutes"


def test_a_sitting_that_was_killed_counts_with_the_time_it_trained(config, pot):
    """Else the speed of pretraining, by which the steps of tuning are chosen, would be twice what it is."""
    metrics = pot / "pretrain" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row | {"time_s": 900.0}) + "\n" for row in rows))
    cook(config, out=pot)
    assert state(pot)["pretrain"]["seconds"] == 900.0


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_minutes_that_are_no_length_of_time_are_refused(config, tmp_path, minutes):
    with pytest.raises(ConfigError, match="no length of time"):
        cook(config, out=tmp_path / "pot", minutes=minutes)
    assert not (tmp_path / "pot").exists()


def test_a_folder_that_is_no_cook_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something that is not a cook"):
        cook(config, out=tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cook.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cook\.json is damaged"):
        cook(config, out=tmp_path / "other")
    (tmp_path / "other" / "cook.json").write_text('{"tokenizer": 3}')
    with pytest.raises(CheckpointError, match=r"cook\.json is damaged"):
        cook(config, out=tmp_path / "other")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_without_alignment_the_other_stages_get_its_minutes():
    from stockpot.stages.align import ALIGN_SHARE
    from stockpot.stages.cook import PRETRAIN_SHARE, SFT_SHARE, CookConfig

    whole, part = PRETRAIN_SHARE + SFT_SHARE + ALIGN_SHARE, PRETRAIN_SHARE + SFT_SHARE
    plain = CookConfig(align=False)
    assert 0.7 < whole < 0.9  # the rest is for the tokenizer, ranking, judging, the ledger and the report
    assert plain.share(part) + (1 - whole) / (1 - ALIGN_SHARE) == pytest.approx(1)
    assert CookConfig().share(part) == part


def test_what_a_setting_names_counts_with_what_is_in_it(config, pot, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text(load(pot / "sft").template.source)
    named = config.model_copy(update={"sft": config.sft.model_copy(update={"template": str(template)})})
    assert cook_again(named, pot) == ["sft", "evaluate"]
    assert cook_again(named, pot) == []
    template.write_text(template.read_text() + "{# another #}")
    assert cook_again(named, pot) == ["sft", "evaluate"]
    start = tmp_path / "start"
    shutil.copytree((pot / "pretrain" / "model").resolve(), start)
    kitchen, done = Kitchen.open(pot, lambda _: None), []
    kitchen.stage("mine", {"start": str(start)}, Path.mkdir)
    (start / "checksums.json").unlink()
    (start / "notes.txt").write_text("other weights")
    kitchen.stage("mine", {"start": str(start)}, done.append)
    assert done, "a model at the same place that is another one"


def test_a_stage_whose_folder_is_gone_is_done_again(config, pot):
    shutil.rmtree(pot / "sft")
    assert cook_again(config, pot) == ["sft"]
    assert Run.open(pot / "sft").status == "done"


def test_what_the_settings_leave_out_is_no_part_of_the_report(config, pot):
    asking = Questions(task="sums", wordings=("question-answer",), limit=2)
    climbing = LadderConfig(questions=asking, kinds=("wordings",), k=1, chosen_on=4)
    with_ladder = config.model_copy(update={"ladder": climbing})
    cook_again(with_ladder, pot)
    assert cook_again(config, pot) == []
    assert json.loads((pot / "report.json").read_text(encoding="utf-8"))["ladder"] is None
    assert cook_again(with_ladder, pot) == [], "it is kept for when it is wanted again"
    assert json.loads((pot / "report.json").read_text(encoding="utf-8"))["ladder"] is not None


def test_what_a_killed_stage_has_left_does_not_stand_in_its_way(config, pot):
    """The tokenizer's half file, comparisons that were written but not noted: the stage is done again."""
    found = state(pot)
    found["tokenizer"]["status"] = "started"
    (pot / "cook.json").write_text(json.dumps(found))
    (pot / "tokenizer" / "tokenizer.json").rename(pot / "tokenizer" / ".tokenizer.json.x1")
    assert cook_again(config, pot) == ["tokenizer"]
    assert [one.name for one in (pot / "tokenizer").glob(".*")] == []
