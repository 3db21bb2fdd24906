"""A real training in a real process: signals, a full disk, two at once. Nothing is lost, and the end is the same."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot.run import Run


def command(pantry: Path, out: Path, *, steps: int = 60) -> list[str]:
    sets = {
        "context": 32,
        "val_tokens": 64,
        "loop.batch_tokens": 128,
        "loop.log_every": 1,
        "loop.checkpoint_every": 20,
        "loop.dtype": "float32",
    }
    return [
        *(sys.executable, "-m", "stockpot", "pretrain", "--quiet", "--size", "1", "--steps", str(steps)),
        *("--data", str(pantry / "corpus.jsonl"), "--tokenizer", str(pantry / "tok"), "--out", str(out)),
        *(word for key, value in sets.items() for word in ("--set", f"{key}={value}")),
    ]


def losses(out: Path) -> dict[int, float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def wait_for(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = out / "metrics.jsonl"
    while process.poll() is None and (
        not metrics.exists() or metrics.read_bytes().count(b"train/loss") < step
    ):
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(pantry, tmp_path_factory):
    """Train without a disturbance."""
    out = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(pantry, out), check=True, stdout=subprocess.DEVNULL)
    return out


@pytest.mark.slow  # several starts of a real process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_last_step_and_prints_how_to_go_on(number, pantry, whole, tmp_path):
    out = tmp_path / "my run"
    process = subprocess.Popen(
        command(pantry, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(out, 27, process)
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began <= 10, "the release bar"
    assert process.returncode == 130
    assert errors.splitlines() == [
        "Interrupted. Continue with:",
        f"  stockpot pretrain --out '{out}' --resume",
    ]
    run = Run.open(out)
    assert run.status == "interrupted"
    saved = run.latest_checkpoint()[0]
    assert saved == max(losses(out)) >= 27, "no step is lost"
    again = [sys.executable, "-m", *errors.splitlines()[1].split(" --out ")[0].split(), "--out", str(out)]
    subprocess.run([*again, "--resume", "--quiet"], check=True, stdout=subprocess.DEVNULL)
    assert losses(out) == losses(whole)
    weights = [(one / "model").resolve() / "model.safetensors" for one in (out, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_a_second_process_in_the_same_folder_is_refused_and_the_first_goes_on(pantry, tmp_path):
    out = tmp_path / "run"
    first = subprocess.Popen(command(pantry, out, steps=2000), stdout=subprocess.DEVNULL)
    wait_for(out, 1, first)
    second = subprocess.run(
        [*command(pantry, out, steps=2000), "--resume"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert second.stderr.splitlines()[0].startswith(f"error: {out}: in use by process {first.pid} on ")
    assert first.wait(timeout=300) == 0
    assert Run.open(out).status == "done"


FULL_DISK = """
set -e
mount -t tmpfs -o size={small} tmpfs {disk}
set +e
{train} 2> {disk_errors}; echo $? > {disk_code}
ls -A {out}/checkpoints > {listing}
set -e
mount -o remount,size=200m {disk}
{train} --resume 2>> {disk_errors}
cp {out}/metrics.jsonl {found}
cp {out}/model/model.safetensors {model}
"""


def may_mount() -> bool:
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    return (
        shutil.which("unshare") is not None
        and subprocess.run(probe, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or not may_mount(), reason="needs a file system of its own (unshare)"
)
@pytest.mark.parametrize(
    "small", ["1200k", "5m", "9m"]
)  # full at the first write, at the first and a later checkpoint
def test_a_full_disk_is_one_line_and_the_resumed_run_is_the_same(small, pantry, whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    out = disk / "run"
    names = {name: tmp_path / name for name in ("disk_errors", "disk_code", "listing", "found", "model")}
    train = " ".join(f"'{word}'" for word in command(pantry, out))
    script = FULL_DISK.format(small=small, disk=disk, out=out, train=train, **names)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    errors = names["disk_errors"].read_text(encoding="utf-8")
    assert done.returncode == 0, done.stderr + errors
    assert int(names["disk_code"].read_text()) == 1
    first, second, *rest = errors.splitlines()
    assert first.startswith(f"error: The disk at {disk} is full (")
    assert second.strip() == "Free some space, then continue with --resume."
    assert all(line.startswith("warning: ") for line in rest)
    assert ".half" not in names["listing"].read_text(encoding="utf-8"), "no temporary file stays"
    found = [json.loads(line) for line in names["found"].read_text(encoding="utf-8").splitlines()]
    assert {row["step"]: row["train/loss"] for row in found if "train/loss" in row} == losses(whole)
    weights = (whole / "model").resolve() / "model.safetensors"
    assert names["model"].read_bytes() == weights.read_bytes()
