from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data.files import Window, find, numbered_lines
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.sources import read_records
from stockpot.errors import DataError


def refusal(path, config=None) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(path, config))
    return str(caught.value)


# --- what is opened ---


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    assert "not a regular file" in refusal(tmp_path / "a.txt")
    assert "not a regular file" in refusal(tmp_path)
    assert "not a regular file" in refusal("/dev/zero")


def test_links_that_lead_round_or_nowhere_are_told(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    assert "the link leads back to itself" in refusal(tmp_path / "a.txt")
    assert "cannot be opened" in refusal(tmp_path)
    (tmp_path / "c.txt").symlink_to(tmp_path / "nothing")
    assert "the link leads nowhere" in refusal(tmp_path / "c.txt")


def test_a_directory_that_holds_itself_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("soup", encoding="utf-8")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert find(tmp_path) == [tmp_path / "a.txt"]
    assert len(list(read_records(f"{tmp_path}/**/*.txt"))) <= 50


def test_a_file_of_brackets_in_its_name_is_a_file(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("soup", encoding="utf-8")
    assert find(path) == [path]


def test_a_name_may_begin_like_a_home_of_nobody(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        find("~nobody-of-that-name/a.txt")
    Path("~nobody-of-that-name").write_text("soup", encoding="utf-8")
    assert find("~nobody-of-that-name") == [Path("~nobody-of-that-name")]


def test_the_order_is_that_of_the_names(tmp_path):
    for name in ("b/z.txt", "a.txt", "b/a.txt", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    names = [path.relative_to(tmp_path).as_posix() for path in find(tmp_path)]
    assert names == ["a.txt", "b/a.txt", "b/z.txt", "c.txt"]


def test_the_container_is_told_by_its_bytes(tmp_path):
    path = tmp_path / "a.jsonl"  # packed, though the name does not say so
    path.write_bytes(gzip.compress(b'{"text": "soup"}\n'))
    assert [record.text for record in read_records(path)] == ["soup"]
    path.write_bytes(b'{"text": "soup"}\n')
    path.rename(tmp_path / "b.jsonl.gz")
    assert [record.text for record in read_records(tmp_path / "b.jsonl.gz")] == ["soup"]
    (tmp_path / "enwik").write_text("no ending: plain text", encoding="utf-8")
    assert len(list(read_records(tmp_path / "enwik"))) == 1


def test_shards_are_not_records(tmp_path):
    (tmp_path / "index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "00000.bin").touch()
    assert "tokenised shards" in refusal(tmp_path)


# --- archives ---


def test_nothing_of_an_archive_is_written(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "evil.zip", "w") as archive:
        archive.writestr("../../escaped.txt", "soup")
        archive.writestr("/absolute.txt", "salt")
        archive.writestr("nested.zip", b"PK\x03\x04")
    before = sorted(tmp_path.rglob("*"))
    (path,) = find(inside)
    report = ReadReport()
    assert [record.text for record in read_records(inside, report=report)] == ["salt"]
    assert report.left_out == [f"{path}!../../escaped.txt", f"{path}!nested.zip"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent / "escaped.txt").exists()


@pytest.mark.parametrize("ending", ["gz", "zst", "zip"])
def test_a_bomb_is_defused(tmp_path, ending):
    path = tmp_path / f"a.jsonl.{ending}"
    line = b'{"text": "' + b"x" * (1 << 20) + b'"}\n'
    if ending == "gz":
        with gzip.open(path, "wb", compresslevel=9) as file:
            for _ in range(100):
                file.write(line)
    elif ending == "zst":
        zstandard = pytest.importorskip("zstandard")
        path.write_bytes(zstandard.ZstdCompressor().compress(line * 100))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(100):
                archive.writestr(f"{i}.jsonl", line)
    assert path.stat().st_size < 1 << 20
    assert "looks like a decompression bomb" in refusal(path)
    assert len(list(read_records(path, ReadConfig(max_unpack_ratio=1_000_000)))) == 100


@pytest.mark.parametrize("ending", ["gz", "zst", "zip", "parquet"])
def test_a_torn_or_garbled_file_is_told(tmp_path, ending):
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(20_000))
    path = tmp_path / f"a.jsonl.{ending}"
    if ending == "gz":
        path.write_bytes(gzip.compress(lines))
    elif ending == "zst":
        path.write_bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(lines))
    elif ending == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.jsonl", lines)
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table({"text": ["soup"] * 1000}), path)
    whole = path.read_bytes()
    half = len(whole) // 2
    garbled = whole[:half] + bytes(64) + whole[half + 64 :]
    has_checksums = ending in ("gz", "zip")
    for damaged in (whole[:half], whole[:-4], garbled)[: 3 if has_checksums else 2]:
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            list(read_records(path))
        assert str(path) in caught.value.what


def test_an_encrypted_member_is_told(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.txt", "soup")
    raw = bytearray(data.getvalue())
    raw[6] |= 1  # the flag that says "encrypted", here and in the directory
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(raw)
    assert "the member cannot be read" in refusal(tmp_path / "a.zip")


# --- bytes ---


def test_lines_are_numbered_and_long_ones_are_passed_over():
    file = io.BytesIO(b"ab\n\n" + b"x" * 100 + b"\nend")
    assert list(numbered_lines(file, 10)) == [(1, 0, b"ab\n"), (2, 3, b"\n"), (3, 4, None), (4, 105, b"end")]


def test_a_window_knows_where_it_stands():
    window = Window(io.BytesIO(b"one\ntwo\nthree"))
    assert window.fill(100)
    assert (window.size, window.last_line(9), window.last_line(2), window.first_line(4)) == (13, 8, 0, 4)
    assert window.take(4) == b"one\n"
    assert (window.line, window.offset) == (2, 4)
    line_end = re.compile(b"\n")
    assert (window.search(line_end, 3), window.search(line_end, 4)) == (None, (3, 4))
    window.skip_line()
    assert (window.line, window.first_line(5), window.first_line(4)) == (3, 5, 0)
    window.skip_line()
    assert not window.fill(1)


MEMORY = """
import resource, sys, torch
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.sources import read_records
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = ReadReport()
for path in sys.argv[1:]:
    print(sum(len(r.text) for r in read_records(path, ReadConfig(max_bad_share=1), report=report)))
print(report.bad)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_record_whatever_the_size_of_the_file(tmp_path):
    text, long = tmp_path / "a.txt", tmp_path / "b.jsonl"
    line = b"A line of an ordinary text, neither long nor short, again and again.\n"
    with text.open("wb") as file:
        for _ in range(400):
            file.write(line * (1 << 20 // len(line)) * 1)
            file.write(line * 15_000)
    with long.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "soup"}\n')
    command = [sys.executable, "-c", MEMORY, str(text), str(long)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    characters, soup, bad, grown = map(int, result.stdout.split())
    assert characters == text.stat().st_size
    assert (soup, bad) == (4, 1)
    assert grown < 400, "MiB; a line may take 64 and is held at most a few times"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# --- mutation ---


def seeds() -> dict[str, bytes]:
    """Give a small sound file of each form and container."""
    turns = [{"role": "user", "content": "Möhre"}, {"role": "assistant", "content": "x"}]
    lines = b"".join(json.dumps({"messages": turns, "id": i}).encode() + b"\n" for i in range(20))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", lines)
        archive.writestr("b.txt.gz", gzip.compress(b"soup"))
    found = {
        "a.jsonl": lines,
        "a.json": b"[" + b",\n".join(lines.splitlines()) + b"]",
        "a.csv": b'prompt,completion\n"a ""b""\nc",d\n' * 9,
        "a.html": b"<p>Hi &amp; <!-- x --><script>y</script>" * 9,
        "a.txt": "one\ntwo\n\nthree ü".encode() * 9,
        "a.gz": gzip.compress(lines),
        "a.zip": packed.getvalue(),
    }
    with contextlib.suppress(ImportError):
        import zstandard

        found["a.zst"] = zstandard.ZstdCompressor().compress(lines)
    with contextlib.suppress(ImportError):
        import pyarrow
        from pyarrow import parquet

        table = io.BytesIO()
        parquet.write_table(pyarrow.table({"text": [f"soup {i}" for i in range(50)]}), table)
        found["a.parquet"] = table.getvalue()
    return found


SEEDS = seeds()
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["flip", "put", "drop", "repeat", "cut"]),
        st.integers(0, 1 << 16),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=8,
)


def mutate(data: bytes, changes) -> bytes:
    raw = bytearray(data)
    for how, place, value in changes:
        if not raw:
            break
        at = place % len(raw)
        if how == "flip":
            raw[at] ^= 1 << value % 8
        elif how == "put":
            raw[at] = value
        elif how == "drop":
            del raw[at : at + value % 40]
        elif how == "repeat":
            raw[at:at] = raw[max(0, at - 20) : at] * (value % 9)
        else:
            del raw[at:]
    return bytes(raw)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(SEEDS)),
    CHANGES,
    st.sampled_from(["strict", "replace", "skip"]),
    st.sampled_from([None, "\n", "two"]),
    st.sampled_from([0.0, 1.0]),
)
def test_a_mutated_file_is_read_or_refused_in_one_line(
    tmp_path_factory, name, changes, errors, separator, share
):
    path = tmp_path_factory.getbasetemp() / f"mutated-{name}"
    path.write_bytes(mutate(SEEDS[name], changes))
    config = ReadConfig(encoding_errors=errors, separator=separator, max_bad_share=share)
    try:
        for record in read_records(path, config):
            assert record.where.startswith(str(path))
    except DataError as error:
        assert len(error.what) < 600
        assert error.what.isprintable()


def test_a_parquet_column_whose_name_is_no_text_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": ["soup"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"text", b"\xf4ext"))
    with pytest.raises(DataError, match="this parquet file is damaged"):
        list(read_records(path))
