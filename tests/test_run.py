"""A run folder survives whatever happens to the process, the disk or the file."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot import durable
from stockpot.config import Settings
from stockpot.errors import CheckpointError, ConfigError, TrainError
from stockpot.run import Run, fingerprint, is_run, verify, write_atomically

RECIPE = {"pretrain": {"seed": 7, "loop": {"steps": 10}}}


def start(folder: Path, **arguments) -> Run:
    return Run.create(folder, **({"stage": "pretrain", "recipe": RECIPE} | arguments))


def weights(text: str):
    def write(folder: Path) -> None:
        (folder / "state").mkdir()
        (folder / "state" / "optimizer.bin").write_bytes(text.encode() * 50)
        (folder / "model.safetensors").write_bytes(text.encode() * 100)

    return write


@pytest.fixture
def run(tmp_path):
    with start(tmp_path / "run") as made:
        yield made


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith((durable.HALF, durable.OLD))]


# --- the folder ---


def test_a_new_run_says_what_ran_on_what_and_how(run):
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["stage"], manifest["status"], manifest["seed"]) == ("pretrain", "running", 7)
    assert manifest["versions"]["python"].count(".") == 2
    assert "torch" in manifest["versions"]
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["command"]
    assert "[pretrain.loop]" in (run.path / "recipe.toml").read_text()
    assert "started pretrain" in (run.path / "log.txt").read_text()


def test_finishing_writes_the_status_and_frees_the_folder(tmp_path):
    run = start(tmp_path / "a")
    run.note(tokens={"train": 5})
    run.note(tokens={"validation": 2}, data=[{"path": "x"}])
    run.finish("done", best=3)
    again = Run.open(tmp_path / "a")
    assert again.status == "done"
    assert again.manifest["tokens"] == {"train": 5, "validation": 2}
    assert again.manifest["best"] == 3
    assert again.manifest["ended"] >= again.manifest["started"]
    run.finish("failed")
    assert Run.open(tmp_path / "a").status == "done"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "interrupted"), (OSError("no"), "failed")]
)
def test_a_block_that_ends_early_leaves_its_status(tmp_path, error, status):
    with pytest.raises(type(error)), start(tmp_path / "a"):
        raise error
    assert Run.open(tmp_path / "a").status == status
    assert "error" in Run.open(tmp_path / "a").manifest


def test_a_run_open_for_reading_cannot_be_written(run):
    with pytest.raises(ValueError, match="reading only"):
        Run.open(run.path).log(1, loss=1.0)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a run folder"):
        Run.open(tmp_path)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="other files"):
        start(tmp_path)
    with pytest.raises(CheckpointError, match="this is a file"):
        start(tmp_path / "mine.txt")
    assert not is_run(tmp_path)


def test_an_existing_run_is_not_overwritten(tmp_path):
    start(tmp_path / "a").finish("done")
    with pytest.raises(CheckpointError, match="already holds a pretrain run") as caught:
        start(tmp_path / "a")
    assert "--resume" in caught.value.todo


def test_a_damaged_manifest_is_named(tmp_path):
    start(tmp_path / "a").finish("done")
    (tmp_path / "a" / "manifest.json").write_text('{"stage": ')
    with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read"):
        Run.open(tmp_path / "a")


def test_the_parent_is_recorded_with_a_fingerprint_of_its_model(tmp_path):
    with start(tmp_path / "base") as base:
        base.set_model(base.checkpoint(1, weights("x"), keep=1))
    with start(tmp_path / "sft", parent=base) as child:
        parent = child.manifest["parent"]
        assert parent["path"] == str(tmp_path / "base")
        assert parent["fingerprint"] == fingerprint(base.model_path)["sha256"]
    with start(tmp_path / "hub", parent="someone/model") as child:
        assert child.manifest["parent"] == {"path": "someone/model", "fingerprint": None}


# --- resuming ---


def test_a_resumed_run_continues_from_its_newest_checkpoint_with_no_step_twice(tmp_path):
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a") as run:
        for step in range(1, 6):
            run.log(step, loss=1 / step)
            if step % 2 == 0:
                run.checkpoint(step, weights(str(step)), keep=5)
        raise KeyboardInterrupt
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with start(tmp_path / "a", resume=True) as again:
        assert again.latest_checkpoint() == (4, run.path / "checkpoints" / "step-000004")
        assert [step for step, _ in again.series("loss")] == [1, 2, 3, 4]
        assert again.manifest["resumed"][0]["step"] == 4
        assert "error" not in again.manifest
        again.log(5, loss=0.5)
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_the_seconds_of_a_sitting_that_was_killed_are_counted_to_its_newest_checkpoint(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("stockpot.run.time.monotonic", lambda: now)
    killed = start(tmp_path / "run")
    now += 60.0
    killed.checkpoint(1, weights("one"), keep=1)
    now += 30.0  # nobody saw what came of these
    killed._release()  # what the system does when a process dies
    assert Run.open(killed.path).manifest["seconds"] == 60.0
    with start(tmp_path / "run", resume=True) as again:
        now += 5.0
        again.checkpoint(2, weights("two"), keep=1)
        now += 2.0
    assert Run.open(killed.path).manifest["seconds"] == 67.0


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="no run to resume"):
        start(tmp_path / "a", resume=True)
    assert not (tmp_path / "a").exists()


def test_resuming_without_a_checkpoint_starts_again_and_says_so(tmp_path):
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a") as run:
        run.log(1, loss=1.0)
        raise KeyboardInterrupt
    with (
        pytest.warns(RuntimeWarning, match="no whole checkpoint"),
        start(tmp_path / "a", resume=True) as again,
    ):
        assert again.series("loss") == []


def test_a_run_killed_before_its_first_word_starts_afresh(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".lock").touch()
    (tmp_path / "a" / ".half-recipe.toml").touch()
    with pytest.warns(RuntimeWarning, match="nothing to continue"), start(tmp_path / "a", resume=True) as run:
        assert run.status == "running"


def test_resuming_with_other_settings_names_the_key(tmp_path):
    start(tmp_path / "a").finish("interrupted")
    other = {"pretrain": {"seed": 7, "loop": {"steps": 20}}}
    with pytest.raises(ConfigError, match=r"pretrain\.loop\.steps = 20; the run has 10"):
        start(tmp_path / "a", recipe=other, resume=True)
    with pytest.raises(CheckpointError, match="not sft"):
        start(tmp_path / "a", stage="sft", recipe=RECIPE, resume=True)


def test_commands_to_type_hold_for_a_folder_with_a_space(tmp_path):
    folder = tmp_path / "my runs" / "a"
    start(folder).finish("interrupted")
    typed = f"--recipe '{folder / 'recipe.toml'}'"
    assert f"# stockpot pretrain {typed}\n" in (folder / "recipe.toml").read_text(encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        start(folder, recipe={"pretrain": {"seed": 7, "loop": {"steps": 20}}}, resume=True)
    assert caught.value.todo == f"Resume with the run's own settings: {typed}"


def test_settings_that_may_change_may_change(tmp_path):
    with start(tmp_path / "a") as run:
        run.checkpoint(1, weights("x"), keep=1)
    other = {"pretrain": {"seed": 7, "loop": {"steps": 20}}}
    with start(tmp_path / "a", recipe=other, resume=True, may_change=["pretrain.loop.steps"]) as again:
        assert "steps = 20" in (again.path / "recipe.toml").read_text()


def test_a_run_of_before_a_setting_existed_resumes_with_its_default(tmp_path):
    class Old(Settings):
        seed: int = 7

    class New(Old):
        patience: int = 3
        warm: str | None = "yes"

    with start(tmp_path / "a", recipe={"pretrain": Old()}) as run:
        run.checkpoint(1, weights("x"), keep=1)
    with pytest.raises(ConfigError, match=r"pretrain\.patience = 4; the run has 3"):
        start(tmp_path / "a", recipe={"pretrain": New(patience=4)}, resume=True)
    with start(tmp_path / "a", recipe={"pretrain": New()}, resume=True) as again:
        assert "patience = 3" in (again.path / "recipe.toml").read_text()


# --- one writer ---


def test_a_second_run_in_the_same_folder_is_refused(run):
    with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
        start(run.path, resume=True)
    assert Run.open(run.path).status == "running"


CHILD = """
import sys, time
from pathlib import Path
from stockpot.run import Run

folder, resume, pause = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3])

def write(path):
    for name in range(8):
        (path / f"part-{name}.bin").write_bytes(str(step).encode() * 4096)
        time.sleep(pause)

with Run.create(folder, stage="pretrain", recipe={"pretrain": {"seed": 1}}, resume=resume) as run:
    newest = run.latest_checkpoint()
    if newest:
        assert (newest[1] / "part-7.bin").read_bytes() == str(newest[0]).encode() * 4096
    print("ready", flush=True)
    for step in range(newest[0] + 1 if newest else 1, 10_000):
        run.log(step, loss=1 / step)
        run.checkpoint(step, write, keep=2)
        if newest is None or step > newest[0] + 2:
            print(step, flush=True)
"""


def child(folder: Path, how: str = "new", pause: float = 0.002) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), how, str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_lock_of_another_process_holds_and_ends_with_it(tmp_path):
    other = child(tmp_path / "a")
    assert other.stdout.readline() == "ready\n"
    other.stdout.readline()
    with pytest.raises(CheckpointError, match=f"in use by process {other.pid} on "):
        Run.create(tmp_path / "a", stage="pretrain", recipe={"pretrain": {"seed": 1}}, resume=True)
    assert Run.open(tmp_path / "a").status == "running"
    other.kill()
    other.communicate()
    assert Run.open(tmp_path / "a").status == "interrupted"
    with Run.create(tmp_path / "a", stage="pretrain", recipe={"pretrain": {"seed": 1}}, resume=True) as run:
        assert run.status == "running"


def kill_repeatedly(folder: Path, times: int) -> None:
    """Kill -9 a run that does nothing but write checkpoints, and check what is left each time."""
    rng, last = random.Random(0), 0
    for attempt in range(times):
        process = child(folder, "resume" if attempt else "new")
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.06))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        step, path = Run.open(folder).latest_checkpoint()
        assert verify(path) is None
        assert step > last
        last = step
    with Run.create(folder, stage="pretrain", recipe={"pretrain": {"seed": 1}}, resume=True) as run:
        assert leftovers(run.path) == []
        assert [at for at, _ in run.series("loss")] == list(range(1, last + 1))
        assert len(list((run.path / "checkpoints").iterdir())) <= 3


def test_kill_9_inside_the_checkpoint_write_never_loses_the_last_good_one(tmp_path):
    kill_repeatedly(tmp_path / "a", 5)


@pytest.mark.slow
def test_kill_9_fifty_times_inside_the_checkpoint_write(tmp_path):
    kill_repeatedly(tmp_path / "a", 50)


# --- checkpoints ---


def test_old_checkpoints_go_but_never_the_newest_nor_the_one_pointed_to(run):
    first = run.checkpoint(1, weights("a"), keep=2)
    run.set_model(first)
    for step in range(2, 6):
        run.checkpoint(step, weights(str(step)), keep=2)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["step-000001", "step-000004", "step-000005"]
    run.set_model(run.path / "checkpoints" / "step-000005")
    run.checkpoint(6, weights("f"), keep=0)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "step-000005",
        "step-000006",
    ]


def test_a_checkpoint_can_be_written_again(run):
    run.checkpoint(1, weights("old"), keep=1)
    path = run.checkpoint(1, weights("new"), keep=1)
    assert (path / "model.safetensors").read_bytes() == b"new" * 100
    assert verify(path) is None
    assert leftovers(run.path) == []


def test_a_write_that_fails_leaves_nothing_and_hurts_nothing(run):
    run.checkpoint(1, weights("a"), keep=1)

    def broken(folder: Path) -> None:
        weights("b")(folder)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        run.checkpoint(2, broken, keep=1)
    assert run.latest_checkpoint() == (1, run.path / "checkpoints" / "step-000001")
    assert leftovers(run.path) == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("damage", [cut, flip, zero, Path.unlink], ids=["cut", "flip", "zero", "remove"])
@pytest.mark.parametrize("name", ["model.safetensors", "state/optimizer.bin", "checksums.json"])
def test_a_damaged_newest_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, damage, name):
    with start(tmp_path / "a") as run:
        run.checkpoint(1, weights("a"), keep=2)
        run.log(1, loss=1.0)
        newest = run.checkpoint(2, weights("b"), keep=2)
        run.log(2, loss=0.5)
    damage(newest / name)
    with pytest.warns(RuntimeWarning, match="step-000002 is damaged"):
        assert Run.open(run.path).latest_checkpoint()[0] == 1
    with pytest.warns(RuntimeWarning, match="step-000002 is damaged"):
        again = start(run.path, resume=True)
    with again:
        assert again.latest_checkpoint()[0] == 1
        assert again.series("loss") == [(1, 1.0)]
        again.checkpoint(2, weights("b"), keep=1)
        assert again.latest_checkpoint()[0] == 2


def test_a_damaged_checkpoint_does_not_outlive_a_good_one(tmp_path):
    with start(tmp_path / "a") as run:
        for step in (1, 9):
            damaged = run.checkpoint(step, weights("a"), keep=2)
    flip(damaged / "model.safetensors")
    with pytest.warns(RuntimeWarning, match="damaged"):
        again = start(run.path, resume=True)
    with again:
        again.checkpoint(5, weights("b"), keep=1)
        assert again.latest_checkpoint()[0] == 5


def test_a_replacement_that_was_never_finished_is_undone(tmp_path):
    with start(tmp_path / "a") as run:
        path = run.checkpoint(1, weights("a"), keep=1)
    path.rename(path.with_name(".old-step-000001"))
    (path.parent / ".half-step-000001").mkdir()
    with start(run.path, resume=True) as again:
        assert again.latest_checkpoint() == (1, path)
        assert leftovers(run.path) == []


# --- a full disk ---


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def wrapped_no_space(*_: object) -> None:
    raise RuntimeError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [no_space, wrapped_no_space])
def test_a_full_disk_is_one_error_that_names_the_disk_and_the_previous_checkpoint_stays(run, fail):
    run.checkpoint(1, weights("a"), keep=1)
    with pytest.raises(TrainError, match=r"^The disk at .* is full .*step-000001 is intact\.") as caught:
        run.checkpoint(2, fail, keep=1)
    assert "--resume" in caught.value.todo
    assert "\n" not in str(caught.value)
    assert run.latest_checkpoint()[0] == 1
    assert leftovers(run.path) == []


def test_a_metric_that_does_not_fit_on_the_disk_leaves_no_half_line(run, monkeypatch):
    run.log(1, loss=1.0)
    metrics = run.path / "metrics.jsonl"
    before = metrics.read_text()
    real_open = Path.open

    class Full:
        """A file that takes half of what it is given, until next to nothing fits."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def tell(self):
            return self.file.tell()

        def write(self, data):
            if len(data) < 5:
                no_space()
            return self.file.write(data[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full(real_open(self, *a, **k)))
    with pytest.raises(TrainError, match="full"):
        run.log(2, loss=0.5)
    monkeypatch.undo()
    assert metrics.read_text() == before


def test_other_disk_errors_keep_their_own_words(run):
    def denied(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        run.checkpoint(1, denied, keep=1)


# --- metrics, model, files ---


def test_metrics_are_one_valid_json_object_a_line_even_when_not_finite(run):
    run.log(1, **{"train/loss": 2.5, "tokens": 3, "time_s": 0.1})
    run.log(2, **{"train/loss": float("nan")})
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "train/loss": 2.5, "tokens": 3, "time_s": 0.1},
        {"step": 2, "train/loss": None},
    ]
    assert run.series("tokens") == [(1, 3)]
    assert run.last("train/loss") != run.last("train/loss")
    with pytest.raises(KeyError, match="never logged"):
        run.last("val/loss")


def test_metrics_can_be_tensorboard_events_as_well_and_no_step_is_in_them_twice(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a", tensorboard=True) as run:
        run.log(1, **{"train/loss": 2.0})
        run.checkpoint(1, weights("x"), keep=1)
        run.log(2, **{"train/loss": 9.0})
        raise KeyboardInterrupt
    with start(tmp_path / "a", tensorboard=True, resume=True) as run:
        run.log(2, **{"train/loss": float("nan")})
        run.log(3, **{"train/loss": 1.0})
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    events.Reload()
    seen = [(one.step, one.tensor_proto.float_val[0]) for one in events.Tensors("train/loss")]
    assert seen == [(1, 2.0), (3, 1.0)]


def test_the_model_is_what_the_run_points_to_else_its_newest_checkpoint(run):
    with pytest.raises(CheckpointError, match="no model yet"):
        _ = run.model_path
    first = run.checkpoint(1, weights("a"), keep=5)
    second = run.checkpoint(2, weights("b"), keep=5)
    assert run.model_path.samefile(second)
    run.set_model(first)
    assert run.model_path.samefile(first)
    assert (run.path / "model").readlink() == Path("checkpoints/step-000001")
    run.set_model(second)
    assert Run.open(run.path).model_path.samefile(second)


def test_where_links_are_unavailable_a_file_points_to_the_model(run, monkeypatch):
    def refuse(*_, **__):
        raise OSError("links are unavailable")

    first = run.checkpoint(1, weights("a"), keep=5)
    run.checkpoint(2, weights("b"), keep=1)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    run.set_model(run.path / "checkpoints" / "step-000002")
    assert (run.path / "model.txt").read_text() == "checkpoints/step-000002\n"
    assert run.model_path.name == "step-000002"
    run.checkpoint(3, weights("c"), keep=1)
    assert run.model_path.name == "step-000002", "what model.txt points to stays, too"
    assert not first.exists()


def test_an_atomic_write_replaces_or_keeps_but_never_mixes(tmp_path):
    path = tmp_path / "x.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]


def test_a_fingerprint_depends_on_content_and_not_on_where_or_state(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        weights("same")(tmp_path / name)
    (tmp_path / "b" / "state" / "optimizer.bin").write_text("other")
    assert fingerprint(tmp_path / "a")["sha256"] == fingerprint(tmp_path / "b")["sha256"]
    (tmp_path / "b" / "model.safetensors").write_text("other")
    assert fingerprint(tmp_path / "a")["sha256"] != fingerprint(tmp_path / "b")["sha256"]
    assert fingerprint(tmp_path / "a" / "model.safetensors")["bytes"] == 400


def test_this_file_of_the_ground_floor_does_not_import_torch():
    code = "import sys, stockpot.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("broken", ["append", "write_atomically"])
def test_a_run_that_ends_on_a_full_disk_gives_its_folder_free(run, monkeypatch, broken):
    monkeypatch.setattr("stockpot.durable.append", no_space if broken == "append" else durable.append)
    monkeypatch.setattr(
        "stockpot.run.write_atomically", no_space if broken != "append" else durable.write_atomically
    )
    with pytest.raises(TrainError, match="full"):
        run.finish("done")
    assert not durable.is_locked(run.path)
    monkeypatch.undo()
    assert Run.open(run.path).status == "interrupted"
