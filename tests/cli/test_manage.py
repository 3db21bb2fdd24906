"""inspect, runs, recipes and doctor tell what is there, from its contents."""

from __future__ import annotations

import json
import struct
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.run import Run
from stockpot.text import Tokenizer


def ask(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def told(*words: object):
    """Run a verb with --json and return what it says."""
    found = ask(*words, "--json")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def write_safetensors(path, **shapes):
    header, at = {}, 0
    for name, shape in shapes.items():
        length = 4
        for number in shape:
            length *= number
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def base(tmp_path):
    """Make a finished run and one more with another setting."""
    for name, steps in (("base", 4), ("long", 8)):
        recipe = {"pretrain": {"seed": 7, "loop": {"steps": steps, "lr": 0.1}}}
        with Run.create(
            tmp_path / "runs" / name, stage="pretrain", recipe=recipe, command="stockpot pretrain"
        ) as run:
            for step in range(1, steps + 1):
                run.log(step, **{"train/loss": 4 / step})
            run.set_model(run.checkpoint(steps, lambda path: (path / "x").write_text("x") and None, keep=1))
    return tmp_path / "runs" / "base"


# --- runs ---


def test_runs_lists_every_run_under_a_folder(base):
    found = told("runs", base.parent)
    assert [(row["run"], row["status"], row["step"], row["loss"]) for row in found] == [
        (str(base), "done", 4, 1.0),
        (str(base.parent / "long"), "done", 8, 0.5),
    ]
    text = ask("runs", base.parent).stdout
    assert text.splitlines()[0].split() == ["run", "stage", "status", "step", "loss", "started", "minutes"]


def test_two_runs_are_compared_in_what_differs(base):
    first, second = told("runs", base, base.parent / "long")
    assert first["differs"] == {"pretrain.loop.steps": 4}
    assert second["metrics"]["train/loss"] == 0.5
    text = ask("runs", base, base.parent / "long").stdout
    assert "pretrain.loop.steps" in text
    assert "pretrain.loop.lr" not in text


def test_runs_can_be_written_as_tensorboard_events(base, tmp_path):
    pytest.importorskip("tensorboard")
    assert ask("runs", base.parent, "--tensorboard", tmp_path / "tb").exit_code == 0
    for name in ("base", "long"):
        assert list((tmp_path / "tb" / name).glob("events.out.*"))


def test_tensorboard_events_of_one_name_stay_apart_and_nothing_else_is_removed(tmp_path):
    pytest.importorskip("tensorboard")
    cooks = tmp_path / "cooks"
    for cook in "ab":
        with Run.create(cooks / cook / "base", stage="pretrain", recipe={}) as run:
            run.log(1, loss=1.0)
    assert ask("runs", cooks, "--tensorboard", tmp_path / "tb").exit_code == 0
    assert len(list((tmp_path / "tb").glob("*/base/events.out.*"))) == 2
    for _ in range(2):
        assert ask("runs", cooks, "--tensorboard", cooks).exit_code == 0  # beside what the runs hold
    assert len(list(cooks.glob("*/base/events.out.*"))) == 2
    assert [row["loss"] for row in told("runs", cooks)] == [1.0, 1.0]


def test_runs_inside_a_run_are_found_once(tmp_path):
    with Run.create(tmp_path / "cook", stage="cook", recipe={}) as outer:
        Run.create(outer.path / "sft", stage="sft", recipe={}).finish("done")
        inner = Run.create(outer.path / "base", stage="pretrain", recipe={})
        inner.set_model(inner.checkpoint(1, lambda path: (path / "x").touch(), keep=1))
        inner.finish("done")
        assert [row["stage"] for row in told("runs", tmp_path)] == ["cook", "pretrain", "sft"]


def test_a_damaged_run_does_not_hide_the_others(base):
    (base / "manifest.json").write_text("{")
    assert [row["status"] for row in told("runs", base.parent)] == ["damaged", "done"]
    assert ask("runs", base.parent).exit_code == 0
    assert ask("inspect", base).exit_code == 1


def test_no_runs_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "There are no runs" in ask("runs").stdout
    assert told("runs") == []
    assert ask("runs", tmp_path / "nothing").exit_code == 1


# --- inspect ---


def test_inspect_a_run(base):
    found = told("inspect", base)
    assert (found["kind"], found["stage"], found["status"]) == ("run", "pretrain", "done")
    assert (found["newest checkpoint"], found["train/loss"]) == ("step 4", 1.0)


def test_inspect_a_cook_and_a_folder_of_runs(base):
    found = ask("inspect", base.parent)
    assert found.stdout.splitlines()[0].split()[-1] == "runs"
    assert base.name in found.stdout
    (base.parent / "cook.json").write_text(
        json.dumps({"sft": {"status": "done"}, "dpo": {"status": "started"}})
    )
    value = json.loads(ask("inspect", base.parent, "--json").stdout)
    assert (value["kind"], value["stages done"], value["models"]) == ("cook", ["sft"], ["long", "base"])


def test_the_command_that_inspect_names_can_be_typed(base, tmp_path):
    folder = tmp_path / "my runs"
    base.parent.rename(folder)
    assert told("inspect", folder)["more"] == f"stockpot runs '{folder}'"


def test_inspect_a_recipe(base):
    found = told("inspect", base / "recipe.toml")
    assert (found["kind"], found["stages"]) == ("recipe", ["pretrain"])


def test_inspect_a_model_folder_counts_its_parameters_without_loading_it(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 2})
    )
    write_safetensors(tmp_path / "model.safetensors", a=(3, 4), b=(5,))
    found = told("inspect", tmp_path)
    assert (found["kind"], found["family"], found["parameters"], found["dtype"]) == (
        "model",
        "qwen3",
        17,
        "F32",
    )
    assert (found["hidden_size"], found["tokenizer"], found["chat template"]) == (8, "absent", "absent")


def test_inspect_prints_the_beginning_of_a_long_text(tmp_path):
    (tmp_path / "book.txt").write_text("a line of a book\n" * 10_000, encoding="utf-8")
    shown = ask("inspect", tmp_path / "book.txt").stdout
    assert len(shown) < 2_500 and "168,000 characters more" in shown
    assert len(told("inspect", tmp_path / "book.txt")["records"][0]["text"]) == 170_000


def test_inspect_tells_weights_by_their_bytes_and_not_by_their_name(tmp_path):
    write_safetensors(tmp_path / "weights.txt", a=(2, 2))
    assert told("inspect", tmp_path / "weights.txt")["format"] == "safetensors"
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    found = told("inspect", tmp_path / "model.safetensors")
    assert (found["kind"], found["format"]) == ("weights", "pickle")


def test_a_damaged_model_is_a_known_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 99) + b"{}")
    found = ask("inspect", tmp_path)
    assert found.exit_code == 1
    assert found.stderr.startswith("error: ")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from stockpot.text.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("tok")
    made = Tokenizer.train(["the cat sat on the mat"] * 3, kind="byte-bpe", vocab_size=300)
    made.save(folder)
    return folder


def test_inspect_a_tokenizer(tokenizer):
    found = told("inspect", tokenizer)
    assert (found["kind"], found["kind of tokenizer"]) == ("tokenizer", "byte-bpe")
    assert "<|bos|>" in found["special tokens"]
    assert told("inspect", tokenizer / "tokenizer.json")["vocabulary"] == found["vocabulary"]


def test_inspect_shows_the_longest_token_as_text_and_both_ends_of_many_special_ones(tmp_path):
    marks = [f"<|extra_{number}|>" for number in range(50)]
    made = Tokenizer.train(
        ["Zwiebelsuppe für alle. Mehr Zwiebelsuppe!"] * 9, vocab_size=360, special_tokens=marks
    )
    made.save(tmp_path)
    found = told("inspect", tmp_path)
    assert found["longest token"] == "' Zwiebelsuppe'"
    assert len(found["special tokens"]) == 50, "a program is told all"
    assert "<|extra_17|>, …, <|extra_49|>\n" in ask("inspect", tmp_path).stdout


def test_inspect_results(tmp_path):
    """They were taken for data: unknown key, "prompts" may mean "prompt"."""
    (tmp_path / "contest.json").write_text('{"prompts": [], "entries": []}', encoding="utf-8")
    assert told("inspect", tmp_path)["made by"] == "stockpot contest"
    scores = tmp_path / "scores" / "base"
    scores.mkdir(parents=True)
    (scores / "report.json").write_text('{"model": "base", "rows": [], "fingerprints": {}}', encoding="utf-8")
    (scores / "report.html").write_text("<p>", encoding="utf-8")
    for folder, name in ((scores, "report.html"), (scores.parent, "base/report.html")):
        found = told("inspect", folder)
        assert (found["kind"], found["made by"], found["to read"]) == ("results", "stockpot eval", name)


def test_inspect_a_tokenizer_with_ids_that_have_no_token(tokenizer, tmp_path):
    spec = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    for token in spec["added_tokens"]:
        token["id"] += 7
    vocabulary = spec["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] += 7
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    assert told("inspect", tmp_path)["kind"] == "tokenizer"


def test_inspect_shows_how_a_tokenizer_builds_a_word_merge_by_merge(tokenizer):
    value = told("inspect", tokenizer, "--text", "the cat")
    assert "".join(value["tokens"]).replace("Ġ", " ") == "the cat"
    assert [merge["tokens"] for merge in value["merges"][0]["merges"]][-1] == ["the"]
    assert "t + h" in ask("inspect", tokenizer, "--text", "the cat").stdout


CHAT = {"messages": [{"role": "user", "content": "Name a pet."}, {"role": "assistant", "content": "A cat."}]}


def test_inspect_data_shows_its_first_records(tmp_path):
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(CHAT) for _ in range(5)))
    found = told("inspect", tmp_path / "chats.jsonl", "--records", "2")
    assert (found["kind"], found["kind of records"]) == ("data", "messages")
    assert len(found["records"]) == 2
    (tmp_path / "story.txt").write_text("Once upon a time.\n")
    found = told("inspect", tmp_path / "story.txt")
    assert found["records"] == [{"text": "Once upon a time.\n"}] or found["records"] == [
        {"text": "Once upon a time."}
    ]


def test_inspect_shows_a_conversation_turn_by_turn_and_the_village_without_a_file():
    lines = ask("inspect", "village:chats", "--records", 1).stdout.splitlines()
    assert any(line.startswith("user 1") for line in lines)
    assert any(line.startswith("assistant 2") for line in lines)


def test_inspect_data_with_a_tokenizer_marks_what_counts(tmp_path, tokenizer):
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT))
    pieces = told("inspect", tmp_path / "chats.jsonl", "--tokenizer", tokenizer)["readings"][0]
    counted = "".join(piece["text"] for piece in pieces if piece["counts"])
    assert "A cat." in counted
    assert "Name a pet." not in counted
    text = ask("inspect", tmp_path / "chats.jsonl", "--tokenizer", tokenizer).stdout
    assert "«A cat." in text


def test_inspect_says_when_it_does_not_know(tmp_path):
    (tmp_path / "noise.bin").write_bytes(bytes(range(256)) * 4)
    found = told("inspect", tmp_path / "noise.bin")
    assert found["kind"] in ("unknown", "data")
    (tmp_path / "empty").mkdir()
    assert told("inspect", tmp_path / "empty")["kind"] == "unknown"


# --- recipes, doctor ---


def test_recipes_are_listed_and_printed():
    from stockpot.config import shipped_recipes

    assert [row["name"] for row in told("recipes")] == list(shipped_recipes())
    for name, path in shipped_recipes().items():
        assert ask("recipes", name).stdout == path.read_text(encoding="utf-8").rstrip("\n") + "\n"


def test_an_unknown_recipe_is_a_known_error():
    found = ask("recipes", "no-such-thing")
    assert found.exit_code == 1
    assert "no such recipe" in found.stderr


def test_doctor_says_what_is_here():
    found = told("doctor")
    assert found["versions"]["python"].startswith("3.")
    assert found["hardware"]["cores"] >= 1
    assert isinstance(found["hardware"]["fast_bf16"], bool)
    assert set(found["compiled kernels"]) == {"inference", "reading", "training"}
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    ours = {"test", "dev", "docs", "bench", "llamacpp"}  # what only those who work on stockpot need
    assert set(found["optional parts"]) == set(project["project"]["optional-dependencies"]) - ours
    assert "optional parts" in ask("doctor").stdout


def test_inspect_an_adapter_names_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "base_model_name_or_path": "runs/base"}'
    )
    found = told("inspect", tmp_path)
    assert found["base"] == "runs/base"
    assert found["rank"] == 8
