"""A sitting at a GPU loses nothing when it is cut off, and its second call does what the first one left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "gpu"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_rows_that_are_there_are_not_measured_again(tmp_path):
    from kept import Kept

    file = tmp_path / "rows.json"
    first = Kept(file, machine="one")
    assert first.lacks(size="small")
    first.add(ms=1.5)
    assert not first.lacks(size="small")
    assert first.lacks(size="large")  # and then the machine is taken away
    second = Kept(file, machine="one")
    assert not second.lacks(size="small")
    assert second.lacks(size="large")  # once more
    third = Kept(file, machine="one")
    assert not third.lacks(size="large")  # twice is enough
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [(row["size"], row.get("ms"), row.get("error")) for row in rows[:1]] == [("small", 1.5, None)]
    assert rows[1]["error"] == "it did not end, twice"


def test_a_second_call_goes_on_where_the_first_was_stopped(tmp_path):
    from sitting import Part, Sitting

    def command(text, seconds=0.0):
        return [sys.executable, "-c", f"import time; print({text!r}, flush=True); time.sleep({seconds})"]

    def parts(seconds):
        return [
            Part("quick", 60, command("quick")),
            Part("slow", 2 if seconds else 60, command("slow", seconds)),
            Part("last", 60, command("last")),
        ]

    for seconds in (30, 0):
        out = tmp_path / str(seconds)
        out.mkdir()
        for file in tmp_path.glob("store/*"):
            (out / file.name).write_bytes(file.read_bytes())
        sitting = Sitting(out, tmp_path / "store", time.monotonic() + 100, {})
        for part in parts(seconds):
            sitting.take(part)
        sitting.close()
    log = (tmp_path / "0" / "log.txt").read_text(encoding="utf-8").split()
    assert (tmp_path / "0" / "done.txt").read_text(encoding="utf-8").split() == ["quick", "last", "slow"]
    assert log.count("slow") == 4  # two headings, two lines of its own
    assert log.count("quick") == log.count("last") == 2


def test_every_part_names_scripts_and_settings_that_exist(tmp_path):
    listed = subprocess.run(
        [sys.executable, SCRIPTS / "sitting.py", "--list", "--out", tmp_path], capture_output=True, text=True
    )
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert len(lines) == 14
    for line in lines:
        script = next((word for word in line.split() if word.endswith(".py")), None)
        assert script is not None
        assert Path(script).exists()
