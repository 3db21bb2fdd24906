"""A family grows from one command, goes on after an interruption, and is judged."""

from __future__ import annotations

import json
import logging

import pytest
import torch

import stockpot as sp
from stockpot.stages.emergence import EmergenceConfig, grow_family, training_flops

TINY = EmergenceConfig(
    widths=(8, 16, 24, 32),
    layers=1,
    rows=16,
    records=200,
    minutes=1,
    most_steps=3,
    tasks=("columns/2",),
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "out"
    return folder, sp.emergence(out=folder, config=TINY, items=40)


def test_one_command_grows_and_judges_a_family(family):
    folder, study = family
    (task,) = study.tasks
    assert task.task == "columns/2" and study.axis == "FLOPs"
    compute = [point.compute for point in task.points]
    assert len(compute) == 4 and compute == sorted(compute)
    for point in task.points:
        assert set(point.scores) == {"exact", "edit", "nats", "brier"} and point.scores["exact"].n == 40
        assert 0 < point.power.value < 1
    saved = json.loads((folder / "emergence.json").read_text(encoding="utf-8"))
    assert saved["tasks"][0]["sentence"] == task.sentence
    assert (folder / "columns-2.svg").is_file() and (folder / "width-008-seed-0" / "manifest.json").is_file()


def test_compute_is_that_of_the_tokens_seen(family):
    folder, _ = family
    run = sp.Run.open(folder / "width-016-seed-1")
    shape = sp.load(run.path).model.config
    whole = shape.flops_per_token() * run.last("tokens")  # if every row were as long as the context
    assert 0.5 * whole < run.last("flops") <= whole
    assert training_flops(run.path) == run.last("flops")
    assert training_flops(folder) is None


def test_a_family_that_is_there_is_taken_up_and_not_trained_again(family):
    folder, _ = family
    before = (folder / "width-008-seed-0" / "metrics.jsonl").read_bytes()
    assert len(grow_family(TINY, out=folder, resume=True)) == 4
    assert (folder / "width-008-seed-0" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(sp.ConfigError, match="is not empty"):
        grow_family(TINY, out=folder)
    with pytest.raises(sp.ConfigError, match="planned with other settings"):
        grow_family(TINY.model_copy(update={"rows": 8}), out=folder, resume=True)


def test_models_that_are_there_can_be_asked_anything(family, tmp_path):
    folder, _ = family
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f'{{"prompt": "1{i}+22=", "completion": "3{i}"}}\n' for i in range(10)), "utf-8")
    models = sorted(folder.glob("width-*-seed-1"))
    (task,) = sp.emergence(models, task=str(path), out=tmp_path / "asked").tasks
    assert len(task.points) == 4 and (tmp_path / "asked" / "emergence.json").is_file()


@pytest.mark.parametrize(
    ("task", "items", "said"),
    [
        ("no/such.jsonl", 9, "no/such.jsonl"),
        ("columns/99", 9, "99 digits"),
        ("columns/2", 0, "no question"),
        ("empty.jsonl", 9, "no record"),
    ],
)
def test_what_cannot_be_asked_is_told_before_a_family_grows(tmp_path, monkeypatch, task, items, said):
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((sp.ConfigError, sp.DataError), match=said):
        sp.emergence(task=task, items=items, config=TINY, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_needs_a_folder_and_widths_that_fit(tmp_path):
    with pytest.raises(sp.ConfigError, match="needs a folder"):
        sp.emergence(config=TINY)
    with pytest.raises(sp.ConfigError, match="no multiple of 8"):
        grow_family(TINY.model_copy(update={"widths": (8, 12, 16, 24)}), out=tmp_path / "x")
    with pytest.raises(sp.ConfigError, match="8 is there twice"):
        grow_family(TINY.model_copy(update={"widths": (8, 16, 24, 8)}), out=tmp_path / "x")
    assert not (tmp_path / "x").exists(), "nothing is trained before that is told"
    with pytest.raises(sp.ConfigError, match="minutes"):
        EmergenceConfig(minutes=float("inf"))


@pytest.mark.slow
@pytest.mark.parametrize("where", ["processes", "ray"])
def test_sizes_that_are_trained_at_the_same_time_are_the_same_models(where, family, tmp_path):
    folder, _ = family
    config = TINY.model_copy(update={"workers": 2, "seeds": 1})
    if where == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        config = config.model_copy(update={"workers": 1, "ray": "auto"})
    (tmp_path / "family.json").write_text(
        (folder / "family.json").read_text(encoding="utf-8").replace('"seeds": 3', '"seeds": 1'), "utf-8"
    )
    try:
        grown = grow_family(config, out=tmp_path, resume=True)
    finally:
        if where == "ray":
            ray.shutdown()
    for name, (one,) in grown.items():
        mine, other = (sp.load(path).model.state_dict() for path in (one, folder / f"{name}-seed-0"))
        assert all(torch.allclose(mine[key], other[key], atol=1e-6) for key in mine)


def test_a_cluster_that_is_not_there_is_told(tmp_path):
    with pytest.raises(sp.ConfigError, match="Ray"):
        grow_family(TINY.model_copy(update={"ray": "127.0.0.1:1"}), out=tmp_path / "x")


def test_a_family_learns_only_the_task_that_is_asked(tmp_path):
    config = TINY.model_copy(update={"tasks": ("codes/2", "columns/2"), "seeds": 1, "most_steps": 1})
    (task,) = sp.emergence(task="sums/2", out=tmp_path / "out", config=config, items=10).tasks
    plan = json.loads((tmp_path / "out" / "family.json").read_text(encoding="utf-8"))
    assert task.task == "sums/2" and plan["settings"]["tasks"] == ["sums/2"]


def test_the_minutes_decide_the_steps_up_to_the_most(tmp_path):
    config = TINY.model_copy(update={"seeds": 1, "minutes": 0.001, "most_steps": 100_000})
    family = grow_family(config, out=tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "family.json").read_text(encoding="utf-8"))["steps"]
    run = sp.Run.open(family["width-008"][0])
    assert 1 <= steps < 100_000 and run.last("tokens") > 0
