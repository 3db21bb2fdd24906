"""`make bench` names every benchmark, how it is run and which peers are there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_every_benchmark_is_named_with_its_command_and_its_peers() -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "peers.py"], capture_output=True, text=True, check=True, timeout=60
    )
    for file in BENCHMARKS.glob("*.py"):
        if file.name != "peers.py":
            part = done.stdout.partition(f"{file.name}\n")[2].partition("\n\n")[0]
            assert f".venv/bin/python benchmarks/{file.name}" in part, file.name
            assert "peer  " in part, file.name
    assert f"peer  tokenizers  {version('tokenizers')}" in done.stdout
