"""Measure all that a short lease of one GPU allows, in the order of its worth; a second call goes on where the first stopped.

    python3 benchmarks/gpu/sitting.py [--packed .gpu] [--out gpu-results] [--limit 585] [--only PART …] [--list]

Each part has its own time limit and its own file in OUT, which its rows reach as soon as they are there; what is there already, from
an earlier call or laid into PACKED/before, is not measured again. ``--packed`` names what ``pack.py`` made: wheels are installed
beside the machine's packages, for these processes only. ``--rehearse`` runs every part on a CPU with tiny models.

Parts, with their seconds (estimates from the raw figures of the first two sittings):
    compile   0  the peers compile 1.5B and 350M, which takes minutes, while the tests run: neither is timed
    tests   200  every GPU test, four at a time, and waiting for the peers
    variants 110 ways of running the layers of one token (decode_variants.py)
    decoding 110 tokens a second through the engine
    post    120  SFT, DPO, PPO, GRPO and frozen bases
    training 300 1.5B, 350M and 124M beside nanoGPT and nanochat
    more    ...  what time is left for: the remaining rows of decoding and training
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NARROW = ("stockpot, narrow states", "nanoGPT", "nanochat")


class Part(NamedTuple):
    """A command with its time limit; ``done``: a file of that name says so."""

    name: str
    limit_s: int
    command: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--limit", type=float, default=585.0, help="seconds of this call")
    parser.add_argument("--only", nargs="+", help="names of parts")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, tiny")
    parser.add_argument("--list", action="store_true", help="print the parts and stop")
    options = parser.parse_args()
    end = time.monotonic() + options.limit
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    # What a machine measured a minute ago is still there if OUT was emptied in between.
    store = Path(tempfile.gettempdir()) / ("stockpot-rehearsal" if options.rehearse else "stockpot-sitting")
    for before in (options.packed / "before", store):
        if before.is_dir():
            for file in before.iterdir():
                shutil.copyfile(file, out / file.name)
    parts = make_parts(options.packed.absolute(), out, rehearses=options.rehearse)
    if options.list:
        for part in parts:
            print(f"{part.name:10} {part.limit_s:4} s  {' '.join(part.command)}")
        return 0
    sitting = Sitting(out, store, end, environment(options.packed))
    for part in parts:
        if not options.only or part.name in options.only:
            sitting.take(part)
    sitting.close()
    return 0


def make_parts(packed: Path, out: Path, *, rehearses: bool) -> list[Part]:
    """List the parts in their order."""
    python = sys.executable
    peers = ["--nanogpt", str(packed / "nanoGPT"), "--nanochat", str(packed / "nanochat")]
    place = ["--device", "cpu"] if rehearses else []
    training = [python, str(HERE / "training.py"), *peers, *place, "--out", str(out / "training.json")]
    if rehearses:
        training += ["--accumulate", "1", "--seconds", "0"]
    large, middle, small = (["tiny"] * 3) if rehearses else ("1.5b", "350m", "124m")
    tests = sorted(
        str(file)
        for file in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in file.read_text(encoding="utf-8")
    )
    with_workers = ["-n", "4", "--dist", "worksteal"] if not rehearses else ["--collect-only", "-q"]
    decoding = [
        python,
        str(HERE / "decoding.py"),
        *place,
        "--rounds",
        "2",
        "--out",
        str(out / "decoding.json"),
    ]
    variants = [python, str(HERE / "decode_variants.py"), *place, "--out", str(out / "variants.json")]
    post = [python, str(HERE / "post_training.py"), *place, "--out", str(out / "post-training.json")]
    warm = [*training, "--warm", "--memory-share", "0.45"]
    return [
        Part("compile", 200, [*warm, "--sizes", large, middle, "--only", "nanoGPT"]),
        Part("compile", 200, [*warm, "--sizes", large, middle, "--only", "nanochat"]),
        Part("tests", 200, [python, "-m", "pytest", "-m", "gpu", *with_workers, *tests]),
        Part("variants", 120, [*variants, "--size", large, "--rows", "1"]),
        Part("decoding", 60, [*decoding, "--sizes", large, "--compiled", "1"]),
        Part("post", 130, [*post, "random-tiny" if rehearses else "random", "--steps", "8"]),
        Part("training", 150, [*training, "--sizes", large, "--only", *NARROW]),
        Part("training", 120, [*training, "--sizes", middle, "--only", *NARROW]),
        Part("training", 150, [*training, "--sizes", small, "--only", *NARROW]),
        Part("decoding", 60, [*decoding, "--sizes", small, "--compiled", "1"]),
        Part("variants", 60, [*variants, "--size", large, "--rows", "64"]),
        Part("decoding", 200, decoding if not rehearses else [*decoding, "--sizes", small]),
        Part("training", 300, training if not rehearses else [*training, "--sizes", small]),
    ]  # fmt: skip


class Sitting:
    """Takes parts one by one, or beside each other where nothing is timed, until the time is up."""

    def __init__(self, out: Path, store: Path, end: float, env: dict[str, str]) -> None:
        self.out, self.store, self.end, self.env = out, store, end, env
        self.marks = out / "done.txt"
        self.beside: list[tuple[subprocess.Popen[bytes], float]] = []
        store.mkdir(exist_ok=True)

    def take(self, part: Part) -> None:
        """Run a part, or begin it where it may run beside the next one."""
        left = self.end - time.monotonic() - 5
        mark = f"{part.name}: {' '.join(part.command[1:])}"
        done = self.marks.read_text(encoding="utf-8").splitlines() if self.marks.exists() else []
        if mark in done or left < 15:
            return
        limit = min(part.limit_s, left)
        began = time.monotonic()
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"\n### {mark}\n".encode())
            log.flush()
            made = subprocess.Popen(
                part.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.env,
                cwd=ROOT,
                start_new_session=True,
            )
        if part.name == "compile":
            self.beside.append((made, began + limit))
            self._mark(mark)
            return
        code = wait(made, began + limit)
        for other, until in self.beside:  # what follows is timed and wants the machine to itself
            wait(other, until)
        self.beside = []
        if code is not None:  # a part that was stopped goes on in the next call
            self._mark(mark)
        print(
            f"{part.name}: {'stopped' if code is None else code} after {time.monotonic() - began:.0f} s",
            flush=True,
        )
        self._keep()

    def _mark(self, mark: str) -> None:
        with self.marks.open("a", encoding="utf-8") as file:
            file.write(mark + "\n")

    def _keep(self) -> None:
        for file in self.out.iterdir():
            if file.is_file():
                shutil.copyfile(file, self.store / file.name)

    def close(self) -> None:
        """Stop what is left, and print the end of the tests and what was found."""
        for other, _ in self.beside:
            wait(other, 0)
        self._keep()
        for name in ("variants", "decoding", "post-training", "training"):
            file = self.out / f"{name}.json"
            if file.exists():
                print(f"{name}: {file.read_text(encoding='utf-8').count('"at"')} rows")


def wait(process: subprocess.Popen[bytes], until: float) -> int | None:
    """Wait for a process and what it started; stop them when the time is up, and return None then."""
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return None


def environment(packed: Path) -> dict[str, str]:
    """Return what the parts run with: this source tree, the wheels, and one place for what torch compiles."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    wheels = sorted(packed.glob("wheels/*.whl"))
    if wheels:
        site = Path(tempfile.gettempdir()) / "stockpot-site"
        if not site.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
            subprocess.run([*pip, "--target", site, *wheels], check=True)
        paths.insert(1, str(site))
    cache = Path(tempfile.gettempdir()) / "stockpot-compiled"
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "STOCKPOT_HOME": str(cache / "home"),
    }


if __name__ == "__main__":
    sys.exit(main())
