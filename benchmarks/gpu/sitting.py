"""Measure all that a short lease of one GPU allows, in the order of its worth; a second call goes on where the first stopped.

    python3 benchmarks/gpu/sitting.py [--packed .gpu] [--out gpu-results] [--limit 585] [--only PART …] [--list]

Each part has its own time limit and its own file in OUT, which its rows reach as soon as they are there; what is there
already, from an earlier call or laid into PACKED/before, is not measured again. ``--packed`` names what ``pack.py`` made: wheels
are installed beside the machine's packages, for these processes only. ``--rehearse`` runs every part on a CPU with tiny models.
``--list`` prints the parts with their limits; what they take is in README.md.
"""

from __future__ import annotations

import argparse
import json
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
LONG = ("kernels", "losses", "at", "flops", "limit", "plain_error")
WHOLE = ("--rows", "64", "--accumulate", "8")  # half a million tokens a step
THREE = ("stockpot, narrow states", "nanoGPT", "nanochat")


class Part(NamedTuple):
    """A command with its time limit; it may run beside the next ones where nothing is timed."""

    name: str
    limit_s: int
    command: list[str]
    is_timed: bool = True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packed", type=Path, default=ROOT / ".gpu")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--limit", type=float, default=585.0, help="seconds of this call")
    parser.add_argument("--only", nargs="+", help="words of names of parts")
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
            print(f"{part.name:16} {part.limit_s:4} s  {' '.join(part.command)}")
        return 0
    sitting = Sitting(out, store, end, environment(options.packed))
    for part in parts:
        if not options.only or any(word in part.name for word in options.only):
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
    with_workers = ["-n", "12", "-v", "-p", "no:benchmark"] if not rehearses else ["--collect-only", "-q"]
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
    first = [*training, "--first", "2", "--seconds", "4"]
    equal = ("stockpot, as many weights", *THREE)
    layers = [python, str(HERE / "layer_variants.py"), *place, "--out", str(out / "layers.json")]
    kernels = [python, str(HERE / "training_kernels.py"), *place, "--out", str(out / "kernels.json")]
    beside = {"nanoGPT": [middle, large, small], "nanochat": [middle, small]}  # the tests
    return [
        *(
            Part(f"compile {name}", 200, [*warm, "--sizes", *sizes, "--names", name], is_timed=False)
            for name, sizes in beside.items()
        ),
        Part("tests", 270, [python, "-m", "pytest", "-m", "gpu", *with_workers, *tests], is_timed=False),
        Part("kernels", 60, [*kernels, "--size", middle, *([] if rehearses else ["--rows", "64"])]),
        Part("layers", 90, [*layers, "--size", middle, *([] if rehearses else ["--rows", "64"])]),
        Part(
            "training middle",
            170,
            [*first, "--least", "3", "--sizes", middle, *([] if rehearses else WHOLE), "--names", *THREE],
        ),
        Part("training large", 120, [*first, "--least", "3", "--sizes", large, "--names", *THREE[:2]]),
        Part("training small", 170, [*first, "--sizes", small, "--names", *equal]),
        Part("decoding large", 60, [*decoding, "--sizes", large, "--compiled", "1"]),
        Part("decoding small", 40, [*decoding, "--sizes", small, "--compiled", "1"]),
        Part("post", 100, [*post, "random-tiny" if rehearses else "random", "--steps", "6"]),
        Part("variants", 70, [*variants, "--size", large, "--rows", "1", "64", "--search"]),
        Part("decoding rest", 200, decoding if not rehearses else [*decoding, "--sizes", small]),
        Part(
            "training rest",
            300,
            training if not rehearses else [*training, "--sizes", small, "--names", *THREE],
        ),
    ]


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
        done = self.marks.read_text(encoding="utf-8").splitlines() if self.marks.exists() else []
        if part.name in done or left < 15:
            return
        if part.is_timed:  # it wants the machine to itself
            self._wait_for_others()
            left = self.end - time.monotonic() - 5
        began = time.monotonic()
        until = began + min(part.limit_s, left)
        made = self._begin(part)
        if part.name.startswith("compile"):
            self.beside.append((made, until))
            self._mark(part.name)
            return
        code = wait(made, until)
        for _ in range(
            2
        ):  # a card that has failed wants a new process, which goes on behind the row that failed
            if code in (0, None) or not part.is_timed or until - time.monotonic() < 15:
                break
            code = wait(self._begin(part), until)
        if code is not None or not part.is_timed:  # what was stopped goes on in the next call
            self._mark(part.name)
        how = "stopped" if code is None else f"ended with {code}"
        print(f"{part.name}: {how} after {time.monotonic() - began:.0f} s", flush=True)
        self._keep()

    def _begin(self, part: Part) -> subprocess.Popen[bytes]:
        with (self.out / ("tests.txt" if part.name == "tests" else "log.txt")).open("ab") as log:
            log.write(f"\n### {part.name}\n".encode())
            log.flush()
            return subprocess.Popen(
                part.command, stdout=log, stderr=log, env=self.env, cwd=ROOT, start_new_session=True
            )

    def _wait_for_others(self) -> None:
        for other, until in self.beside:
            wait(other, until)
        self.beside = []

    def _mark(self, name: str) -> None:
        with self.marks.open("a", encoding="utf-8") as file:
            file.write(name + "\n")

    def _keep(self) -> None:
        for file in self.out.iterdir():
            if file.is_file():
                shutil.copyfile(file, self.store / file.name)

    def close(self) -> None:
        """Stop what is left, and print what was found in few words."""
        for other, _ in self.beside:
            wait(other, 0)
        self._keep()
        if (tests := self.out / "tests.txt").exists():
            print("\n".join(tests.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]))
        for name in ("kernels", "layers", "variants", "decoding", "post-training", "training"):
            if (file := self.out / f"{name}.json").exists():
                for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
                    print(
                        name, json.dumps({key: short(value) for key, value in row.items() if key not in LONG})
                    )


def short(value: object) -> object:
    """Round what is printed."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


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
            subprocess.run([*pip, "--target", site, *wheels], check=False)  # what lacks a wheel will say so
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
