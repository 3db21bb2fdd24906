"""Makers merge their settings, call their stage, and say how it ended and how to go on.

The stage is a stand-in, put at the place from which the verb imports the real one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from types import ModuleType

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.config import Settings
from stockpot.errors import TrainError
from stockpot.run import Run


class Loop(Settings):
    steps: int = 4
    seed: int = 0


class PretrainConfig(Settings):
    data: tuple[str, ...] = ("village",)
    tokenizer: str | None = None
    start: str | None = None
    loop: Loop = Loop()
    device: str | None = None
    dtype: str | None = None
    size: int | None = None
    minutes: float | None = None


def plan_pretraining(config):
    return config, "4 layers, 1.2 M parameters, about 3.0 min"


class Stage:
    """A stage that trains nothing but leaves a run, as the real ones do."""

    def __init__(self):
        self.calls = []
        self.error = None

    def __call__(self, config, *, out, resume=False, progress=None):
        self.calls.append((config, out, resume))
        may = ("pretrain.loop.steps",)
        with Run.create(
            out,
            stage="pretrain",
            recipe={"pretrain": config},
            parent=config.start,
            resume=resume,
            may_change=may,
        ) as run:
            progress({"kind": "stage", "name": "pretrain"})
            for step in range(1, config.loop.steps + 1):
                progress({"kind": "step", "step": step, "steps": config.loop.steps, "loss": 1 / step})
                run.log(step, **{"train/loss": 1 / step})
            run.set_model(run.checkpoint(config.loop.steps, lambda path: (path / "x").touch(), keep=1))
            if self.error is not None:
                raise self.error
        return run


@pytest.fixture
def stage(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fake = Stage()
    module = ModuleType("stockpot.stages.pretrain")
    module.PretrainConfig, module.pretrain, module.plan_pretraining = PretrainConfig, fake, plan_pretraining
    monkeypatch.setitem(sys.modules, "stockpot.stages.pretrain", module)
    return fake


def ask(*words: str):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


def test_a_maker_calls_its_stage_and_prints_what_came_out(stage):
    found = ask(
        "pretrain", "--data", "a.txt", "--data", "b/*.txt", "--tokenizer", "tok", "--steps", "3", "--out", "r"
    )
    assert found.exit_code == 0, found.stderr
    config, out, resume = stage.calls[0]
    assert (config.data, config.tokenizer, config.loop.steps) == (("a.txt", "b/*.txt"), "tok", 3)
    assert (str(out), resume) == ("r", False)
    assert found.stdout.splitlines()[0].split() == ["run", "r"]
    assert "pretrain: step 3/3  loss 0.333" in found.stderr


def test_json_is_one_document_on_stdout(stage):
    found = ask("pretrain", "--json", "--quiet")
    assert found.stderr == ""
    value = json.loads(found.stdout)
    assert value["run"] == "runs/pretrain"
    assert (value["status"], value["step"], value["model"]) == ("done", 4, "runs/pretrain/model")


def test_settings_come_from_recipe_then_set_then_flags(stage, tmp_path):
    (tmp_path / "my.toml").write_text(
        "[pretrain]\ntokenizer='1'\n[pretrain.loop]\nsteps=1\nseed=1\n[sft]\nx=1\n"
    )
    ask(
        "pretrain",
        "--recipe",
        "my.toml",
        "--set",
        "loop.steps=2",
        "--set",
        "loop.seed=2",
        "--seed",
        "3",
        "--device",
        "cpu",
    )
    config = stage.calls[0][0]
    assert (config.tokenizer, config.loop.steps, config.loop.seed, config.device) == ("1", 2, 3, "cpu")


def test_an_unknown_key_of_a_recipe_is_refused_before_any_work(stage, tmp_path):
    (tmp_path / "my.toml").write_text("[pretrain.loop]\nstpes=1\n")
    found = ask("pretrain", "--recipe", "my.toml")
    assert found.exit_code == 1
    assert found.stderr == (
        "error: my.toml:2: there is no setting 'loop.stpes' (value 1).\n       Did you mean 'loop.steps'?\n"
    )
    assert not stage.calls


def test_the_run_repeats_from_its_own_recipe(stage):
    ask("pretrain", "--steps", "2", "--data", "x.txt", "--out", "one")
    ask("pretrain", "--recipe", "one/recipe.toml", "--out", "two")
    assert stage.calls[0][0] == stage.calls[1][0]


def test_resume_reads_the_runs_own_recipe(stage):
    ask("pretrain", "--data", "x.txt", "--steps", "2", "--out", "one")
    found = ask("pretrain", "--out", "one", "--resume", "--steps", "5")
    assert found.exit_code == 0, found.stderr
    config, _, resume = stage.calls[1]
    assert (config.data, config.loop.steps, resume) == (("x.txt",), 5, True)


def test_an_existing_run_is_not_touched(stage):
    ask("pretrain", "--out", "one")
    found = ask("pretrain", "--out", "one")
    assert found.exit_code == 1
    assert "already holds a pretrain run" in found.stderr
    assert "--resume" in found.stderr


def test_a_failed_stage_is_two_lines_and_the_run_says_failed(stage):
    stage.error = TrainError("the loss is not finite at step 3", "Lower loop.lr.")
    found = ask("pretrain", "--quiet")
    assert found.exit_code == 1
    assert found.stderr == "error: the loss is not finite at step 3\n       Lower loop.lr.\n"
    assert Run.open("runs/pretrain").status == "failed"


def test_an_interrupted_stage_prints_the_command_that_goes_on(stage):
    stage.error = KeyboardInterrupt()
    found = ask("pretrain", "--quiet", "--out", "runs/my run")
    assert found.exit_code == 130
    assert found.stderr == "Interrupted. Continue with:\n  stockpot pretrain --out 'runs/my run' --resume\n"
    assert Run.open("runs/my run").status == "interrupted"
    stage.error = None
    assert ask("pretrain", "--out", "runs/my run", "--resume").exit_code == 0


def test_a_dry_run_prints_settings_that_can_be_run_and_starts_nothing(stage):
    found = ask("pretrain", "--steps", "9", "--dry-run")
    assert found.exit_code == 0, found.stderr
    assert not stage.calls
    assert "# 4 layers, 1.2 M parameters" in found.stdout
    assert PretrainConfig.model_validate(tomllib.loads(found.stdout)["pretrain"]).loop.steps == 9
    value = json.loads(ask("pretrain", "--dry-run", "--json").stdout)
    assert value["settings"]["loop"]["steps"] == 4


CHILD = textwrap.dedent(
    """
    import sys, time
    from types import ModuleType
    from stockpot.config import Settings
    from stockpot.run import Run

    class PretrainConfig(Settings):
        data: tuple[str, ...] = ()

    def pretrain(config, *, out, resume=False, progress=None):
        with Run.create(out, stage="pretrain", recipe={"pretrain": config}, resume=resume):
            print("ready", flush=True)
            time.sleep(30)

    module = ModuleType("stockpot.stages.pretrain")
    module.PretrainConfig, module.pretrain, module.plan_pretraining = PretrainConfig, pretrain, None
    sys.modules["stockpot.stages.pretrain"] = module
    sys.argv = ["stockpot", "pretrain", "--out", "r", "--quiet"]
    from stockpot.cli.main import main
    main()
    """
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_an_interrupted_run_and_the_command_to_resume(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Interrupted. Continue with:\n  stockpot pretrain --out r --resume\n"
    assert Run.open(tmp_path / "r").status == "interrupted"
