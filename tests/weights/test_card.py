"""The model card: what it says is what the run says, and nothing it says was made up."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from pydantic import Field

from stockpot.config import Settings
from stockpot.run import Run
from stockpot.weights.store import convert, load, save


class Recipe(Settings):
    data: str = Field("/home/somebody/secret/place/chats.jsonl")
    seed: int = 3


def make_run(folder, bundle, *, stage="sft", parent=None):
    with Run.create(folder, stage=stage, recipe={stage: Recipe()}, parent=parent) as run:
        data = {"path": "/home/somebody/secret/place/chats.jsonl", "bytes": 34919, "sha256": "2733" * 16}
        run.note(data=[data], seed=3, tokens={"train": 19236, "validation": 523})
        run.log(400, **{"val/loss": 2.0})
        run.log(500, **{"train/loss": 1.0, "val/loss": 1.5, "val/bits_per_byte": 0.7512})
        run.set_model(run.checkpoint(500, lambda path: save(path, bundle), keep=1))
    return folder


@pytest.fixture
def card(bundle, tmp_path):
    """Export a model from a run whose base is a run as well, and return its card."""
    base = make_run(tmp_path / "base", bundle, stage="pretrain")
    run = make_run(tmp_path / "tuned", bundle, parent=base)
    accuracy = {"value": 0.75, "low": 0.61, "high": 0.85, "n": 48, "chance": 0.5}
    rows = [{"task": "village|sums", "metric": "exact", "value": 0.5, "low": 0.4, "high": 0.6, "n": 100}]
    (run / "evals").mkdir()
    (run / "evals" / "comparisons.json").write_text(json.dumps({"accuracy": accuracy, "text": "…"}))
    (run / "evals" / "report.json").write_text(json.dumps({"model": "x", "rows": rows}))
    return (convert(run, tmp_path / "out") / "README.md").read_text()


def test_it_names_the_runs_back_to_the_first(card):
    assert "1. Made by the run `tuned` (`sft`, " in card
    assert "2. which started from the run `base` (`pretrain`, " in card
    assert "status done; seed 3; 19,236 tokens to learn from" in card
    assert "`chats.jsonl` (34,919 bytes, sha256 273327332733…)" in card


def test_it_holds_the_settings_without_paths_of_this_machine(card):
    assert 'data = "chats.jsonl"' in card
    assert "secret" not in card


def test_it_holds_the_figures_of_its_own_step_with_n_and_interval(card):
    assert "| val/bits_per_byte, step 000500 | 0.7512 | – | 523 tokens |" in card
    assert "| comparisons, accuracy | 0.750 | 0.610 – 0.850 | 48 |" in card
    assert "| village/sums, exact | 0.500 | 0.400 – 0.600 | 100 |" in card
    assert "| val/loss, step 000500 | 1.5 |" in card


def test_it_says_how_to_open_it_and_what_it_is(card, bundle):
    assert f"{bundle.model.config.parameters():,} parameters: 2 layers, width 32, context 64" in card
    assert "written as `qwen3`, which transformers opens" in card
    assert 'sp.load("PATH")' in card
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")


def test_without_a_licence_it_says_so(card):
    assert "None is stated." in card
    assert "license:" not in card


def test_scores_that_a_cook_keeps_beside_the_run_are_found_by_their_model(bundle, tmp_path):
    run = make_run(tmp_path / "sft", bundle)
    row = {"task": "all", "metric": "exact", "low": 0.1, "high": 0.9, "n": 5}
    for name, model, value in (("tuned", run / "model", 0.5), ("base", tmp_path / "pretrain", 0.25)):
        (tmp_path / "evaluate" / name).mkdir(parents=True)
        report = {"model": str(model), "rows": [{**row, "value": value}]}
        (tmp_path / "evaluate" / name / "report.json").write_text(json.dumps(report))
    card = (convert(run, tmp_path / "out") / "README.md").read_text()
    assert "| all, exact | 0.500 |" in card
    assert "0.250" not in card


def test_a_foreign_models_licence_and_card_go_with_it(folder, tmp_path, bundle):
    text = "---\nlanguage: en\nlicense: apache-2.0\n---\n# Theirs\n\nTrained on rivers.\n"
    (folder / "README.md").write_text(text)
    card = (convert(folder, tmp_path / "out") / "README.md").read_text()
    assert "\nlicense: apache-2.0\n---" in card
    assert "apache-2.0 (`model`)" in card
    assert "> Trained on rivers." in card
    assert "language: en" not in card
    run = make_run(tmp_path / "tuned", bundle, parent=folder)
    card = (convert(run, tmp_path / "more") / "README.md").read_text()
    assert "2. which started from `model`, a model from elsewhere (apache-2.0)" in card
    assert "> Trained on rivers." in card


def test_a_card_that_leads_elsewhere_is_not_quoted(folder, tmp_path):
    (tmp_path / "secret").write_text("---\nlicense: mit\n---\nsecret words")
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(tmp_path / "secret")
    card = (convert(folder, tmp_path / "out") / "README.md").read_text()
    assert "secret words" not in card
    assert "None is stated." in card


def test_a_model_from_nowhere_says_so(bundle, tmp_path):
    card = (save(tmp_path / "mine", replace(bundle, template=None)) / "README.md").read_text()
    assert "# mine" in card
    assert "Not recorded" in card
    assert "It continues or fills in text." in card


def test_a_checkpoints_card_is_short_and_names_its_run(bundle, tmp_path):
    run = make_run(tmp_path / "base", bundle)
    card = (run / "model" / "README.md").read_text()
    assert card.startswith("# step-") or "\n# step-" in card  # not the name it had while it was written
    assert "A checkpoint of the run `base`" in card
    assert "## Figures" not in card


def test_the_card_of_a_converted_model_names_what_it_was(bundle, tmp_path):
    first = save(tmp_path / "one", bundle)
    again = convert(first, tmp_path / "two")
    assert "1. Made by `one`, a model from elsewhere" in (again / "README.md").read_text()


def test_a_card_that_is_there_stays(bundle, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").write_text("my own words")
    save(tmp_path / "m", bundle)
    assert (tmp_path / "m" / "README.md").read_text() == "my own words"


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b'{"rows": 3}', b'{"rows": [{"value": "x"}]}'])
def test_damaged_evaluations_are_passed_over(content, bundle, tmp_path):
    run = make_run(tmp_path / "base", bundle)
    (run / "evals").mkdir()
    (run / "evals" / "report.json").write_bytes(content)
    assert "val/loss" in (convert(run, tmp_path / "out") / "README.md").read_text()


def test_what_is_written_with_a_card_still_opens(bundle, tmp_path):
    run = make_run(tmp_path / "base", bundle)
    assert load(convert(run, tmp_path / "out")).template is not None


def test_a_reward_models_card_says_that_it_rates(make_model, bundle, tmp_path):
    card = (
        save(tmp_path / "reward", replace(bundle, model=make_model(value_head=True))) / "README.md"
    ).read_text()
    assert "pipeline_tag: text-classification" in card
    assert "--reward PATH" in card and "engine" not in card
