from __future__ import annotations

import errno
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot import durable
from stockpot.data.corpus import open_corpus
from stockpot.data.encode import encode
from stockpot.data.loader import Loader, LoaderConfig
from stockpot.data.records import TextRecord
from stockpot.data.shards import is_shards, open_shards, write_shards
from stockpot.errors import DataError
from stockpot.text import Tokenizer

TEXTS = [f"{i}: stir the pot and salt the soup. " * (1 + i * 7 % 50) for i in range(3000)]  # about 2.6 MB


def digest(folder: Path) -> dict[str, str]:
    """Fingerprint every file but the lock."""
    files = sorted(path for path in folder.iterdir() if path.name != ".lock")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def shards(tokenizer, tmp_path_factory):
    """Write three shards."""
    return write_shards(TEXTS, tokenizer, tmp_path_factory.mktemp("shards") / "a", shard_mib=1)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.name != ".lock":
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_shards_hold_what_encoding_in_memory_gives(shards, tokenizer):
    store, memory = open_shards(shards, tokenizer), encode(map(TextRecord, TEXTS), tokenizer)
    assert len(store.parts) == 3
    assert store.lengths.tolist() == memory.lengths.tolist()
    assert all((store.read(d) == memory.read(d)).all() for d in range(0, store.documents, 7))
    config = LoaderConfig(context=64, micro_batch=4)
    one, two = Loader(store, config), Loader(memory, config)
    for _ in range(20):
        assert next(one).ids.tolist() == next(two).ids.tolist()


def test_the_index_says_what_there_is(shards, tokenizer):
    index = json.loads((shards / "index.json").read_bytes())
    assert (index["documents"], index["dtype"]) == (3000, "uint16")
    assert index["tokenizer"] == tokenizer.fingerprint
    assert index["tokens"] * 2 == sum(path.stat().st_size for path in shards.glob("*.bin"))
    assert is_shards(shards)
    assert not is_shards(shards.parent)
    assert open_corpus(shards, tokenizer).documents == 3000


def test_many_processes_write_the_same_bytes(shards, tokenizer, tmp_path):
    seen = []
    folder = write_shards(TEXTS, tokenizer, tmp_path / "b", shard_mib=1, workers=2, done=seen.append)
    assert digest(folder) == digest(shards)
    assert sum(seen) == 3000


def test_writing_again_keeps_what_is_whole_and_mends_the_rest(shards, tokenizer, tmp_path):
    folder = copy(shards, tmp_path / "c")
    (folder / "00001.bin").write_bytes(b"damaged")
    (folder / "index.json").unlink()
    (folder / "00007.bin").write_bytes(b"of an earlier, longer corpus")
    (folder / "00007.json").write_bytes(b"{}")
    (folder / ".half-00002.77").write_bytes(b"left by a killed process")
    before = (folder / "00000.bin").stat().st_mtime_ns, (folder / "00001.bin").stat().st_mtime_ns
    write_shards(TEXTS, tokenizer, folder, shard_mib=1)
    assert digest(folder) == digest(shards)
    assert (folder / "00000.bin").stat().st_mtime_ns == before[0]
    assert (folder / "00001.bin").stat().st_mtime_ns != before[1]


def test_other_texts_replace_the_shards(shards, tokenizer, tmp_path):
    folder = copy(shards, tmp_path / "d")
    write_shards(["salt"], tokenizer, folder)
    assert sorted(digest(folder)) == ["00000.bin", "00000.json", "index.json"]
    assert open_shards(folder, tokenizer).documents == 1


KILLS = """
import hashlib, os, signal, sys
from pathlib import Path
from stockpot.data.shards import write_shards
from stockpot.text import Tokenizer
root = Path(sys.argv[1])
tokenizer = Tokenizer.load(root / "tokenizer")
texts = [f"{i}: stir the pot and salt the soup. " * (1 + i * 7 % 50) for i in range(3000)]
tokenizer.encode_batch(texts)  # what this prepares, the forks share
sync, replace = os.fsync, Path.replace

def write(folder, kill_at):
    calls = 0
    def die(real, *arguments):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    os.fsync = lambda handle: die(sync, handle)
    Path.replace = lambda path, to: die(replace, path, to)
    pid = os.fork()
    if not pid:
        write_shards(texts, tokenizer, folder, shard_mib=1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def digest(folder):
    files = sorted(path for path in folder.iterdir() if path.name != ".lock")
    return [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

assert write(root / "whole", 0) == 0
kill_at = 1
while True:
    folder = root / f"killed-{kill_at}"
    killed = write(folder, kill_at)
    if not killed:
        break
    assert killed == signal.SIGKILL, killed
    write(folder, kill_at + 3)  # and once more on the way
    assert write(folder, 0) == 0
    assert digest(folder) == digest(root / "whole"), kill_at
    kill_at += 1
print(kill_at - 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
def test_killed_anywhere_and_run_again_the_bytes_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout) >= 15, "each write to the disk was a place to die"


ORPHANS = """
import os, signal, sys, threading, time
from stockpot.data.shards import write_shards
from stockpot.text import Tokenizer
if __name__ == "__main__":
    texts = (f"{i}: stir the pot and salt the soup. " * 500 for i in range(10**9))
    kill = lambda documents: os.kill(os.getpid(), signal.SIGKILL)
    write_shards(texts, Tokenizer.load(sys.argv[1]), sys.argv[2], shard_mib=1, workers=2, done=kill)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_no_process_goes_on_writing_when_its_parent_is_killed(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    script = tmp_path / "write.py"
    script.write_text(ORPHANS, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / "tokenizer"), str(tmp_path / "out")]
    with subprocess.Popen(command, start_new_session=True) as process:
        assert process.wait(timeout=120) == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while (left := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def of_session(session: int) -> list[str]:
    """List the processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


# --- damage and refusals ---


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("00001.bin", lambda data: data[:-2], "it has"),
        ("00001.bin", lambda data: data[:99] + b"?" + data[100:], "has changed since it was written"),
        ("00001.bin", None, "is missing"),
        ("00002.json", lambda data: data.replace(b"[", b"[1,"), "has changed since it was written"),
        ("00002.json", None, "is missing"),
        ("index.json", lambda data: data[:50], "cannot be read"),
        (
            "index.json",
            lambda data: data.replace(b"shards-1", b"shards-9"),
            "its format is stockpot-shards-9",
        ),
        ("index.json", lambda data: data.replace(b'"tokens":', b'"tokns":'), "lacks or garbles a field"),
        ("index.json", lambda data: data.replace(b'"uint16"', b'"object"'), "damaged"),
        ("index.json", lambda data: b"[" * 100_000, "cannot be read"),
        ("index.json", lambda data: b"[]", "cannot be read"),
        ("index.json", None, "They were not finished"),
    ],
)
def test_damage_is_noticed_and_named(shards, tokenizer, tmp_path, name, harm, said):
    folder = copy(shards, tmp_path / "e")
    path = folder / name
    if harm is None:
        path.unlink()
    else:
        path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        open_shards(folder, tokenizer)
    assert said in caught.value.what
    assert "rite" in caught.value.todo


def test_another_tokenizer_is_refused(shards):
    other = Tokenizer.train(["soup"] * 9, vocab_size=300)
    with pytest.raises(DataError, match="written with another tokenizer"):
        open_shards(shards, other)
    assert open_shards(shards).documents == 3000


def test_a_folder_of_other_things_is_not_written_to(tokenizer, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match=r"holds other files \(thesis.txt\)"):
        write_shards(TEXTS, tokenizer, tmp_path)
    with pytest.raises(DataError, match="cannot be made"):
        write_shards(TEXTS, tokenizer, tmp_path / "thesis.txt" / "shards")


def test_two_writers_do_not_meet(tokenizer, tmp_path):
    lock = durable.lock_folder(tmp_path)
    try:
        with pytest.raises(DataError, match="another process is writing"):
            write_shards(TEXTS, tokenizer, tmp_path)
    finally:
        lock.release()


def test_nothing_to_write_is_told(tokenizer, tmp_path):
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="no text to write"):
            write_shards(texts, tokenizer, tmp_path / "f")
        assert not is_shards(tmp_path / "f")


def test_a_full_disk_is_told_and_finished_shards_are_kept(shards, tokenizer, tmp_path, monkeypatch):
    calls = 0

    def full(handle):
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"the disk is full.*finished shards are kept"):
        write_shards(TEXTS, tokenizer, tmp_path / "g", shard_mib=1)
    monkeypatch.undo()
    assert not list((tmp_path / "g").glob(".half*"))
    assert (tmp_path / "g" / "00000.json").exists()
    write_shards(TEXTS, tokenizer, tmp_path / "g", shard_mib=1)
    assert digest(tmp_path / "g") == digest(shards)
