"""Put what a GPU machine without a network lacks into one folder: the peers' code, and wheels that are missing there.

    python benchmarks/gpu/pack.py --nanogpt REPOSITORY --nanochat REPOSITORY [--out .gpu]

REPOSITORIES are clones, bare or not. The machine has torch, numpy, tokenizers, safetensors, typer, jaxtyping, pytest and
what they need, for Python 3.12 on x86-64. ``sitting.py`` reads the folder.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

WHEELS = (
    "pydantic", "pydantic-core", "typing-inspection", "annotated-types", "tomli-w", "gguf", "beartype",
    "altair", "vl-convert-python", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py",
)  # fmt: skip
PEERS = {"nanoGPT": ("model.py", "LICENSE"), "nanochat": ("nanochat", "LICENSE")}
TARGET = ("--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--nanochat", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(".gpu"))
    options = parser.parse_args()
    for (name, files), clone in zip(PEERS.items(), (options.nanogpt, options.nanochat), strict=True):
        packed = subprocess.run(
            ["git", "-C", clone, "archive", "HEAD", *files], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(options.out / name, filter="data")
        commit = subprocess.run(
            ["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
        )
        (options.out / name / "COMMIT").write_text(commit.stdout, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "-q"]
    places = [part for platform in PLATFORMS for part in ("--platform", platform)]
    wheels = options.out / "wheels"
    for old in wheels.glob("*.whl"):
        old.unlink()
    exact = _together(pip, places)
    subprocess.run([*pip, "--no-deps", *TARGET, *places, "-d", wheels, *exact], check=True)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB, {len(list(wheels.glob('*.whl')))} wheels")


def _together(pip: list[str], places: list[str]) -> list[str]:
    """Choose versions that go together: pydantic wants one pydantic-core and no other."""
    report = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--report", "-"),
            *TARGET, *places, "--target", "unused", *WHEELS,
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in json.loads(report.stdout)["install"]
    }
    return [f"{name}=={found[name]}" for name in WHEELS]


if __name__ == "__main__":
    main()
