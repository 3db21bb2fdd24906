"""Build the sdist and the wheel, install each away from the source tree, and take a text to a model with it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """Run a program and return what it printed; a failure ends everything."""
    done = subprocess.run([str(one) for one in words], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(str(one) for one in words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def installed(package: Path, into: Path) -> Path:
    """Make an environment that sees this one's dependencies but not its stockpot, and install ``package`` there."""
    run(sys.executable, "-m", "venv", "--without-pip", into)
    python = into / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "--ignore-installed", package)
    return into / "bin"


def try_out(programs: Path, folder: Path) -> None:
    """Do a newcomer's first steps."""
    stockpot = programs / "stockpot"
    folder.mkdir()
    place = run(programs / "python", "-c", "import stockpot; print(stockpot.__file__)", cwd=folder)
    assert str(programs.parent) in place, f"not the installed package: {place}"
    version = run(stockpot, "--version", cwd=folder).strip()
    assert "village" in run(stockpot, "recipes", cwd=folder)
    assert "arc_easy" in run(stockpot, "eval", "--list", cwd=folder)
    train = ("train-tokenizer", "--data", "village", "--vocab-size", "400", "--set", "documents=200")
    run(stockpot, *train, "--out", "tok", cwd=folder)
    run(stockpot, "pretrain", "--data", "village", "--tokenizer", "tok", "--size", "1", "--steps", "3",
        "--set", "val_tokens=2048", "--out", "runs/base", cwd=folder)  # fmt: skip
    text = run(stockpot, "generate", "runs/base", "Once", "--max-tokens", "8", cwd=folder)
    assert text.strip(), "the model wrote nothing"
    print(f"{version}: trained and wrote, from {programs.parent.name}")


def main() -> None:
    """Check both packages; anything amiss ends with a message and exit code 1."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
        [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
        packed = set(zipfile.ZipFile(wheel).namelist())
        tracked = run("git", "ls-files", "src").split()
        missing = [
            one for one in tracked if one.removeprefix("src/") not in packed and not one.endswith(".md")
        ]
        assert not missing, f"not in the wheel: {missing}"
        for package, kind in ((wheel, "wheel"), (sdist, "sdist")):
            try_out(installed(package, folder / kind), folder / f"work-{kind}")


if __name__ == "__main__":
    main()
