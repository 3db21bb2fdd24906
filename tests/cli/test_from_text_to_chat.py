"""The verbs together: from a text file to a model that answers."""

from __future__ import annotations

import json
import shlex

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.config import build, read_recipe, shipped_recipes
from stockpot.run import Run
from stockpot.stages.align_image import AlignImageConfig
from stockpot.stages.cluster import PlanConfig, plan
from stockpot.stages.cook import CookConfig
from stockpot.stages.prepare import PrepareConfig
from stockpot.stages.pretrain import PretrainConfig
from stockpot.stages.sft import SFTConfig

ANIMALS = ("cat", "dog", "hen", "goat", "pig", "cow")
QUICK = "--set loop.batch_tokens=256 --set val_tokens=256 --set loop.log_every=1 --steps 3 --quiet"


def do(words: str):
    """Run a verb that must succeed and return its JSON."""
    found = CliRunner().invoke(app, [*shlex.split(words), "--json"])
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """Make a corpus, conversations, a tokenizer, a base model and a tuned one."""
    folder = tmp_path_factory.mktemp("kitchen")
    texts = [
        {"text": f"The {a} lives with the {b}. It is {n}."} for a in ANIMALS for b in ANIMALS for n in (1, 2)
    ]
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"Name a {a}."},
                {"role": "assistant", "content": f"The {a}."},
            ]
        }
        for a in ANIMALS * 4
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    do(f"train-tokenizer --data {folder}/corpus.jsonl --vocab-size 300 --out {folder}/tok")
    source = f"--data {folder}/corpus.jsonl --tokenizer {folder}/tok"
    do(f"pretrain {source} --size 1 --set context=64 --out {folder}/base {QUICK}")
    do(f"sft {folder}/base --data {folder}/chats.jsonl --out {folder}/chat {QUICK}")
    return folder


def test_each_run_says_where_it_comes_from(kitchen):
    base, chat = (json.loads((kitchen / name / "manifest.json").read_text()) for name in ("base", "chat"))
    assert (base["stage"], base["status"], chat["stage"], chat["status"]) == (
        "pretrain",
        "done",
        "sft",
        "done",
    )
    assert chat["parent"]["path"] == str(kitchen / "base")
    assert len(chat["parent"]["fingerprint"]) == 64
    assert [len(one["sha256"]) for one in base["data"]] == [64]


def test_the_models_can_be_used_and_judged(kitchen):
    value = do(f"generate {kitchen}/base 'The cat' --max-tokens 4 --seed 1")
    assert value["completions"][0]["prompt_tokens"] >= 2
    words = ["chat", str(kitchen / "chat"), "--max-tokens", "4", "--json"]
    answer = CliRunner().invoke(app, words, input="Name a cat.\n")
    assert json.loads(answer.stdout)["role"] == "assistant"
    (kitchen / "task.jsonl").write_text(json.dumps({"question": "Name a cat.", "answer": "The cat."}))
    reports = do(f"eval {kitchen}/base {kitchen}/chat --task {kitchen}/task.jsonl")
    assert [report["wording"] for report in reports] == ["plain", "chat"]


def test_inspect_knows_each_thing_that_was_made(kitchen):
    names = ("corpus.jsonl", "tok", "base", "base/model", "chat", "chat/recipe.toml")
    kinds = [do(f"inspect {kitchen}/{name}")["kind"] for name in names]
    assert kinds == ["data", "tokenizer", "run", "model", "run", "recipe"]
    assert do(f"inspect {kitchen}/chats.jsonl --tokenizer {kitchen}/chat")["readings"]
    do(f"inspect {kitchen}/base --text 'The cat lives' --out {kitchen}/look.html")
    assert "<html" in (kitchen / "look.html").read_text(encoding="utf-8")


def test_a_run_repeats_from_its_recipe_to_the_same_loss(kitchen):
    from stockpot.run import Run

    do(f"pretrain --recipe {kitchen}/base/recipe.toml --out {kitchen}/again --quiet")
    first, again = (Run.open(kitchen / name).series("val/loss") for name in ("base", "again"))
    assert first == again
    assert len(first) == 3


def test_a_dry_run_measures_and_leaves_nothing(kitchen):
    source = f"--data {kitchen}/corpus.jsonl --tokenizer {kitchen}/tok --set context=64 --set loop.batch_tokens=256"
    value = do(f"pretrain {source} --size 1 --steps 8 --out {kitchen}/none --dry-run")
    assert (value["plan"]["tokens"], value["settings"]["loop"]["steps"]) == (2048, 8)
    assert value["plan"]["parameters"] > 100_000
    assert not (kitchen / "none").exists()


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_every_shipped_recipe_fits_its_stage(name):
    tables = set(read_recipe(name))
    if "prepare" in tables:  # a recipe of steps, one command each
        prepared = build(PrepareConfig, table="prepare", recipe_files=[name])
        trained = build(PretrainConfig, table="pretrain", recipe_files=[name])
        planned = plan(build(PlanConfig, table="plan", recipe_files=[name]))
        assert prepared.shard_mib > 0
        assert planned.layout is not None
        assert planned.parameters == trained.shape_of_model(32_768).parameters()
        assert planned.tokens == pytest.approx(trained.loop.steps * trained.loop.batch_tokens, rel=0.01)
        return
    if tables == {"pretrain"}:
        assert build(PretrainConfig, table="pretrain", recipe_files=[name]).loop.steps > 0
    elif tables == {"align-image"}:
        assert build(AlignImageConfig, table="align-image", recipe_files=[name]).loop.steps > 0
    elif tables == {"sft"}:
        assert build(SFTConfig, table="sft", recipe_files=[name]).loop.steps > 0
    else:
        assert build(CookConfig, recipe_files=[name]).evaluate.limit > 0


def test_a_cook_ends_with_its_report_and_how_to_chat(monkeypatch, tmp_path):
    from stockpot.stages import cook

    def cooked(config, *, out, **_):
        with Run.create(out / "sft", stage="sft", recipe={"sft": {}}, parent=None) as run:
            run.log(1, **{"train/loss": 1.0})
        return run

    monkeypatch.setattr(cook, "cook", cooked)
    monkeypatch.chdir(tmp_path)
    assert do("cook --out pot --quiet") == {"report": "pot/report.html", "to chat": "stockpot chat pot/sft"}


def test_the_device_of_a_cook_is_that_of_every_stage_that_trains(monkeypatch, tmp_path):
    """It was that of pretraining alone."""
    from stockpot.stages import cook

    def cooked(config, *, out, **_):
        used.update({getattr(config, name).device for name in ("pretrain", "sft", "reward", "dpo", "ppo")})
        with Run.create(tmp_path / "sft", stage="sft", recipe={"sft": {}}, parent=None) as run:
            return run

    used: set[str | None] = set()
    monkeypatch.setattr(cook, "cook", cooked)
    do("cook --quiet --device cpu")
    assert used == {"cpu"}


def test_a_cook_of_any_recipe_goes_where_its_help_says(monkeypatch, tmp_path):
    from stockpot.stages import cook

    def cooked(config, *, out, **_):
        made.append(str(out))
        with Run.create(tmp_path / "sft", stage="sft", recipe={"sft": {}}, parent=None) as run:
            return run

    made: list[str] = []
    monkeypatch.setattr(cook, "cook", cooked)
    do("cook --recipe three-stages --quiet")
    shown = CliRunner().invoke(app, ["cook", "--help"], env={"COLUMNS": "200"}).stdout
    assert f"of cook {made[0]}" in shown
