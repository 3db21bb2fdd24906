"""An index whose writer is killed at any moment, or that several processes write at once, holds what whole updates left."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import stockpot as sp
from stockpot.durable import LOCK, half_name
from stockpot.prompt import index as room
from stockpot.prompt.index import FILE, Index, IndexConfig, index

pytest.importorskip("lancedb")
CHILD = Path(__file__).with_name("index_child.py")
KILLS, FILES, WRITERS = 8, 40, 4


@pytest.fixture(scope="module")
def encoder(make_bundle, tmp_path_factory):
    return sp.save(tmp_path_factory.mktemp("encoder") / "model", make_bundle("encoder", context=128))


def small(encoder):
    return IndexConfig(encoder=str(encoder), chunk_tokens=40, overlap_tokens=0)


def start(out, encoder, *paths):
    command = [sys.executable, str(CHILD), str(out), str(encoder), *map(str, paths)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return told


def write(folder, number, version):
    folder.mkdir(exist_ok=True)
    lines = "\n\n".join(f"note {number} line {line} of version {version}" for line in range(12))
    (folder / f"{number}.txt").write_text(lines, encoding="utf-8")


def shown(opened):
    """Return all texts that searches can show, by the file they come from."""
    alive = {one["version"]: Path(name).stem for name, one in opened.files.items()}
    rows = opened.store._table.search().limit(10_000).to_list()
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["version"] in alive:
            found.setdefault(alive[row["version"]], []).append(row["text"])
    return found


def whole(opened):
    """Check that each file that counts as indexed has all its passages, of one version, and searches find only those."""
    found = shown(opened)
    for name, one in opened.files.items():
        texts = found.get(Path(name).stem, [])
        assert len(texts) == one["passages"] > 0
        assert len({text.rpartition(" ")[2] for text in texts}) == 1
    for way in ("words", "vectors"):
        hits = opened.search("note line of version", 30, how=way)
        counts = Counter(hit.path for hit in hits)
        assert all(hit.text in found[Path(hit.path).stem] for hit in hits) and counts
    return found


@pytest.mark.slow
def test_killed_writers_leave_what_was_there_before(encoder, tmp_path):
    dice, docs, out = random.Random(0), tmp_path / "docs", tmp_path / "idx"
    for number in range(FILES):
        write(docs, number, 0)
    before, killed = {}, 0
    for turn in range(KILLS):
        process = start(out, encoder, docs)
        assert process.stdout.readline() == "begins\n", process.stderr.read()
        time.sleep(dice.random() * 1.5)
        process.kill()
        killed += process.wait() != 0
        process.communicate()
        if (out / FILE).exists():
            opened = Index.open(out)
            found = whole(opened) if opened.files else {}
            assert found == before or len(found) == FILES, "what was there, or all of the new"
            before = found
        for number in dice.sample(range(FILES), 10):
            write(docs, number, turn + 1)
    assert killed >= KILLS // 2
    finish(start(out, encoder, docs))
    opened = Index.open(out)
    fresh, _ = index(docs, tmp_path / "fresh", small(encoder))
    assert {name: sorted(texts) for name, texts in whole(opened).items()} == {
        name: sorted(texts) for name, texts in shown(fresh).items()
    }
    assert len(opened.store) == opened.passages


@pytest.mark.slow
def test_many_writers_at_once_lose_nothing(encoder, tmp_path):
    parts = [tmp_path / f"part{number}" for number in range(WRITERS)]
    for number in range(FILES):
        write(parts[number % WRITERS], number, 0)
    for round_ in range(2):  # the first makes the index
        writers = [start(tmp_path / "idx", encoder, part) for part in parts]
        for one in writers:
            finish(one)
        opened = Index.open(tmp_path / "idx")
        found = whole(opened)
        assert len(found) == FILES and len(opened.store) == opened.passages
        assert {text.rpartition(" ")[2] for texts in found.values() for text in texts} == {str(round_)}
        for number in range(FILES):
            write(parts[number % WRITERS], number, round_ + 1)


def test_two_that_make_the_same_index_make_one(encoder, tmp_path, monkeypatch):
    for name in ("first", "second"):
        write(tmp_path / name, name, 0)
    real = room._encoder

    def while_another_makes_it(*args):
        monkeypatch.setattr(room, "_encoder", real)
        index(tmp_path / "first", tmp_path / "idx", small(encoder))
        return real(*args)

    monkeypatch.setattr(room, "_encoder", while_another_makes_it)
    opened, _ = index(tmp_path / "second", tmp_path / "idx", small(encoder))
    assert set(whole(opened)) == {"first", "second"}


def test_a_folder_in_which_a_writer_died_before_it_began_is_taken(encoder, tmp_path):
    write(tmp_path / "docs", 1, 0)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / LOCK).touch()
    half_name(tmp_path / "idx" / FILE).write_text('{"form"', encoding="utf-8")
    opened, _ = index(tmp_path / "docs", tmp_path / "idx", small(encoder))
    assert whole(opened)
