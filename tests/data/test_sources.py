from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import socket
import sys
import types
import urllib.request
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockpot.data import hub
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.sources import fingerprint_sources, read_records, read_texts
from stockpot.errors import ConfigError, DataError

TEXTS = ["Leeks first.", "Dann Möhren, 蒜 and 🧅.", "Salt\nlast.\n"]


def texts_of(path, config=None, **kinds):
    return [record.text for record in read_records(path, config, **kinds)]


def lines_of(texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def refusal(path, config=None) -> str:
    with pytest.raises(DataError) as caught:
        list(read_records(path, config))
    assert "\n" not in caught.value.what
    return str(caught.value)


# --- forms ---


def test_every_form_gives_the_same_texts(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    lines = lines_of(TEXTS)
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])
    tabs = io.StringIO()
    csv.writer(tabs, delimiter="\t").writerows([["text"], *([text] for text in TEXTS)])
    columns = io.BytesIO()
    parquet.write_table(arrow.table({"text": TEXTS, "label": [1, 2, 3]}), columns)
    listed = json.dumps([{"text": text} for text in TEXTS], indent=1).encode()
    files = {
        "a.jsonl": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.zst": zstandard.ZstdCompressor().compress(lines),
        "a.ndjson": lines,
        "a.json": listed,
        "lines in a.json": lines,
        "a.csv": table.getvalue().encode(),
        "a.tsv": tabs.getvalue().encode(),
        "a.parquet": columns.getvalue(),
        "bom.jsonl": b"\xef\xbb\xbf" + lines,
        "bom.json": b"\xef\xbb\xbf" + listed,
        "bom.csv": b"\xef\xbb\xbf" + table.getvalue().encode(),
    }
    for name, data in files.items():
        path = tmp_path / (name if " " not in name else "b.json")
        path.write_bytes(data)
        assert texts_of(path) == TEXTS, name
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"folder/{name}", data)
        archive.writestr("folder/readme", "not read")
    report = ReadReport()
    assert sorted(texts_of(tmp_path / "all.zip", report=report)) == sorted(TEXTS * len(files))
    assert report.left_out == [f"{tmp_path}/all.zip!folder/readme"]


def test_text_markdown_and_pages_are_one_document_each(tmp_path):
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("# Soup\n", encoding="utf-8")
    (tmp_path / "c.html").write_text("<p>Salt &amp; <i>pepper</i></p>", encoding="utf-8")
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"Packed."))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.txt").write_text("Deep.", encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("No.", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert texts_of(tmp_path) == ["One.\n\nTwo.\n", "# Soup\n", "Salt & pepper", "Packed.", "Deep."]
    assert texts_of(f"{tmp_path}/**/*.txt") == ["One.\n\nTwo.\n", "Deep."]
    assert texts_of([tmp_path / "b.md", f"{tmp_path}/a.*"]) == ["# Soup\n", "One.\n\nTwo.\n"]


def test_a_separator_cuts_a_text_into_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>\ntwo\nlines<|endoftext|>  <|endoftext|>three", encoding="utf-8")
    found = list(read_records(path, ReadConfig(separator="<|endoftext|>")))
    assert [record.text for record in found] == ["one", "\ntwo\nlines", "three"]
    assert [record.where for record in found] == [f"{path}:1", f"{path}:1", f"{path}:3"]


@pytest.mark.parametrize(
    ("separator", "held", "expected"),
    [
        ("\n\n", b"one\r\nmore\r\n\r\ntwo\r\n\r\nthree", ["one\r\nmore", "two", "three"]),
        ("\n\n", b"one\n\ntwo\r\n\nthree\n\r\nfour\r", ["one", "two", "three", "four\r"]),
        ("\n", b"one\r\ntwo\nthree", ["one", "two", "three"]),
        ("\n--\n", b"one\r\n--\r\ntwo\n--\nthree", ["one", "two", "three"]),
        ("--\n", b"one\r\n--\r\ntwo--\nthree", ["one\r\n", "two", "three"]),
        ("\r\n\r\n", b"one\n\ntwo\r\n\r\nthree", ["one\n\ntwo", "three"]),
        ("a.b", b"one a-b a.btwo\r", ["one a-b ", "two\r"]),
    ],
)
def test_a_line_end_of_a_separator_is_found_in_files_of_either_kind(tmp_path, separator, held, expected):
    path = tmp_path / "a.txt"
    path.write_bytes(held)
    assert texts_of(path, ReadConfig(separator=separator)) == expected


def test_a_blank_line_far_into_a_document_is_found_where_it_still_fits(tmp_path):
    path = tmp_path / "a.txt"
    for length in range(55, 70):
        path.write_bytes(b"x" * length + b"\r\n\r\nend")
        found = texts_of(path, ReadConfig(separator="\n\n", max_document_bytes=64))
        assert found == (["x" * length, "end"] if length < 64 else ["x" * length + "\r\n", "\r\nend"]), length


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="|\ufeff"), max_size=40), max_size=20)
)
def test_documents_come_back_whole_and_in_order(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes("|".join(documents).encode() + b"|x")
    expected = [text for text in documents if text.strip()] + ["x"]
    assert texts_of(path, ReadConfig(separator="|", max_document_bytes=256)) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=2000), st.integers(64, 400)
)
def test_a_long_text_is_cut_after_lines_and_loses_nothing(tmp_path_factory, text, limit):
    path = tmp_path_factory.mktemp("t") / "a.txt"
    path.write_bytes(b"x" + text.encode())
    config = ReadConfig(max_document_bytes=limit, max_line_bytes=1 << 20)
    pieces = texts_of(path, config)
    if all(piece.strip() for piece in pieces) and ("x" + text).strip():
        joined = "".join(pieces)
        assert joined.split() == ("x" + text).split()
    assert all(len(piece.encode()) <= limit or piece.count("\n") <= 1 for piece in pieces)


def test_a_text_of_many_megabytes_is_cut_between_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a line of a long book\n" * 400_000, encoding="utf-8")
    pieces = texts_of(path, ReadConfig())
    assert len(pieces) > 1 and all(piece.endswith("book\n") for piece in pieces)


def test_a_file_of_one_endless_line_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("hello world " * 100_000, encoding="utf-8")
    assert f"{path}:1: longer than 1 MiB" in refusal(path, ReadConfig(max_line_bytes=1 << 20))


# --- errors ---


@pytest.mark.parametrize("name", ["none.txt", "none/", "*.txt", "none\0.txt"])
def test_a_missing_corpus_is_told(tmp_path, name):
    assert "no such file" in (message := refusal(f"{tmp_path}/{name}")) or "no file matches" in message


def test_an_empty_corpus_is_told(tmp_path):
    assert "no file to read in this directory" in refusal(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.jsonl").write_text("\n  \n", encoding="utf-8")
    (tmp_path / "c.csv").touch()
    (tmp_path / "d.html").touch()
    (tmp_path / "e.json").write_text("[]", encoding="utf-8")
    for path in sorted(tmp_path.iterdir()):
        assert "the data is empty" in refusal(path)
    assert "the data is empty" in refusal(tmp_path)
    assert "No data was named" in refusal([])


def test_an_empty_file_among_others_is_reported(tmp_path, caplog):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").write_text("x", encoding="utf-8")
    report = ReadReport()
    with caplog.at_level(logging.WARNING):
        assert texts_of(tmp_path, report=report) == ["x"]
    assert report.empty == [f"{tmp_path}/a.txt"]
    assert report.files == 2
    assert "1 file is empty" in caplog.text


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.html"])
def test_invalid_utf8_stops_with_file_and_byte(tmp_path, name):
    start = {
        "a.txt": b"",
        "a.jsonl": b'{"text": "',
        "a.json": b'[{"text": "',
        "a.csv": b"text\n",
        "a.html": b"",
    }[name]
    end = {"a.jsonl": b'"}', "a.json": b'"}]'}.get(name, b"")
    path = tmp_path / name
    path.write_bytes(start + "Möhre ".encode() + b"\xff leek" + end)
    message = refusal(path)
    assert f"byte {len(start) + 7} (0xff) is not UTF-8" in message
    assert "encoding_errors" in message
    assert str(path) in message


def test_utf16_is_recognised(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("soup".encode("utf-16"))
    assert "looks like UTF-16" in refusal(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_invalid_utf8_is_replaced_or_skipped_on_request(tmp_path, name):
    values = [b"one", b"t\xffwo", b"three"]
    data = {
        "a.jsonl": b"\n".join(b'{"text": "' + value + b'"}' for value in values),
        "a.json": b"[" + b",".join(b'{"text": "' + value + b'"}' for value in values) + b"]",
        "a.csv": b"text\n" + b"\n".join(values),
    }
    path = tmp_path / name
    path.write_bytes(data[name])
    report = ReadReport()
    assert texts_of(path, ReadConfig(encoding_errors="replace"), report=report) == [
        "one",
        "t\ufffdwo",
        "three",
    ]
    assert (report.replaced, report.skipped) == (1, 0)
    report = ReadReport()
    assert texts_of(path, ReadConfig(encoding_errors="skip"), report=report) == ["one", "three"]
    assert (report.replaced, report.skipped) == (0, 1)


def test_half_a_surrogate_pair_is_a_bad_record_or_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n', encoding="utf-8")
    assert f"{path}:1: " in refusal(path)
    assert texts_of(path, ReadConfig(encoding_errors="replace")) == ["a\ufffdb"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "x"', "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"text": ' + "9" * 10_000 + "}", "not JSON"),
        ("NaN", "not a number"),
        ('"text"', "not text"),
        ('{"txt": "x"}', '"txt" may mean "text"'),
    ],
)
def test_a_bad_line_is_told_with_its_number(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n", encoding="utf-8")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert said in message
    assert "1 of 2 records are bad, 50.0%" in message
    assert len(message) < 700


@pytest.mark.parametrize("name", ["a.json", "b.jsonl"])
def test_deep_json_is_refused_in_any_form(tmp_path, name):
    path = tmp_path / name
    path.write_text('[{"text": ' + "[" * 100_000, encoding="utf-8")
    assert "nested too deeply" in refusal(path) or "not JSON" in refusal(path)


def test_several_json_lists_are_all_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b"}]\n[]\n[{"text": "c"}]\n{"text": "d"}', encoding="utf-8")
    assert texts_of(path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("end", ["", ', {"text": nope}]', ","])
def test_a_json_file_that_cannot_be_read_to_its_end_is_refused(tmp_path, end):
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(['{"text": "x"}'] * 200) + end, encoding="utf-8")
    assert refusal(path).startswith(f"{path}:200: ")


def test_few_bad_records_are_left_out_and_reported(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["x"] * 150) + b'{"text": 5}\n' + lines_of(["y"] * 50))
    report = ReadReport()
    with caplog.at_level(logging.WARNING):
        assert len(texts_of(path, report=report)) == 200
    assert (report.records, report.bad) == (200, 1)
    assert str(report.problems[0]) == f'{path}:151: "text" must be text, not a number.'
    assert f"1 of 201 records are bad and left out: {path}:151" in caplog.text
    assert "bad" in refusal(path, ReadConfig(max_bad_share=0.001))


def test_many_bad_records_stop_the_reading_early(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines_of(["x"] * 500) + b"{}\n" * 100_000)
    report = ReadReport()
    with pytest.raises(DataError, match=r"501: the record is empty\..*500 of 1000 records"):
        list(read_records(path, report=report))
    assert len(report.problems) == 20


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json", "a.csv", "a.html"])
def test_a_line_that_is_too_long_is_a_bad_record(tmp_path, name):
    path = tmp_path / name
    long = "x" * 300_000
    path.write_text(
        {
            "a.jsonl": json.dumps({"text": long}),
            "a.json": json.dumps([{"text": long}]),
            "a.csv": f"text\n{long}",
        }.get(name, long),
        encoding="utf-8",
    )
    message = refusal(path, ReadConfig(max_line_bytes=100_000))
    assert "longer than 100000 bytes" in message or "field larger than field limit" in message
    assert len(message) < 400
    assert len(list(read_records(path))) == 1


def test_what_follows_a_line_that_is_too_long_is_read(tmp_path):
    config = ReadConfig(max_line_bytes=2000, max_bad_share=0.5, max_document_bytes=1000)
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(lines_of(["before", "x" * 5_000_000, "after"]))
    assert texts_of(lines, config) == ["before", "after"]
    text = tmp_path / "a.txt"
    text.write_text("before\n" + "y" * 5_000_000 + "\nafter", encoding="utf-8")
    report = ReadReport()
    assert texts_of(text, config, report=report) == ["before\n", "after"]
    assert report.problems[0].what.startswith(f"{text}:2: longer than")


def test_mixed_kinds_are_refused_but_train_tokenizers(tmp_path):
    (tmp_path / "a.txt").write_text("soup", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "completion": "c"}', encoding="utf-8")
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path}/b.jsonl:1: a completion record among text records (the first is")
    assert list(read_texts(tmp_path)) == ["soup", "p\nc"]


# --- tables ---


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("soup,salt\n1,2\n", ":1: the first row must name the columns (found: soup, salt)"),
        ("text,text\n1,2\n", ":1: a column name stands twice"),
        ("text,label\nx\n", ":2: 1 cells under 2 column names"),
        ('text\n"never closed\n', ":2: this row cannot be read"),
    ],
)
def test_a_wrong_table_is_told(tmp_path, table, said):
    path = tmp_path / "a.csv"
    path.write_text(table, encoding="utf-8")
    assert said in refusal(path)


def test_preferences_stand_in_tables_too(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,chosen,rejected,margin\np,c,r,1.5\np,c,r,\n", encoding="utf-8")
    assert [record.margin for record in read_records(path)] == [1.5, None]


def test_parquet_holds_conversations(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    rows = {"messages": [[{"role": "user", "content": "Hi"}]], "score": [3]}
    parquet.write_table(arrow.table(rows), path)
    (record,) = read_records(path)
    assert (record.messages[0].content, record.where) == ("Hi", f"{path}:1")
    path.write_bytes(path.read_bytes()[:-20])
    assert "parquet file is damaged" in refusal(path)
    parquet.write_table(arrow.table({"score": [3]}), path)
    assert "no column is known (found: score)" in refusal(path)


def test_invalid_text_in_parquet_follows_the_policy(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = arrow.array([b"one", b"t\xffwo", b"three"]).cast(arrow.string(), safe=False)
    parquet.write_table(arrow.table({"text": texts}), path)
    assert f"{path}:2: byte 1 (0xff) is not UTF-8" in refusal(path)
    assert texts_of(path, ReadConfig(encoding_errors="replace")) == ["one", "t\ufffdwo", "three"]
    report = ReadReport()
    assert texts_of(path, ReadConfig(encoding_errors="skip"), report=report) == ["one", "three"]
    assert report.skipped == 1


def test_a_json_list_goes_on_over_block_borders(tmp_path):
    path = tmp_path / "a.json"
    texts = [f"{i} " + "ö" * (i * 997 % 3000) for i in range(1500)]
    path.write_text(
        json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=2), encoding="utf-8"
    )
    found = list(read_records(path))
    assert [record.text for record in found] == texts
    assert found[7].where == f"{path}:{2 + 7 * 3}"


# --- the hub and the village ---


def fake_hub(monkeypatch, rows):
    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(hub, "_unreachable", lambda: None)
    return calls


def test_a_data_set_of_the_hub_is_streamed(monkeypatch):
    calls = fake_hub(
        monkeypatch, [{"text": "x", "id": 1, "image": None}, {"text": "y", "id": 2, "image": None}]
    )
    assert texts_of("hf://owner/name/config@validation") == ["x", "y"]
    assert calls == [(("owner/name", "config"), {"split": "validation", "streaming": True})]
    (record, _) = read_records("hf://owner/name")
    assert record.where == "hf://owner/name:1"
    assert fingerprint_sources("hf://owner/name") == [{"path": "hf://owner/name"}]


def test_a_failing_hub_is_one_line(monkeypatch):
    fake_hub(monkeypatch, ConnectionError("no\nroute"))
    assert "the data set cannot be read (no route)" in refusal("hf://owner/name")
    assert "expected hf://OWNER/NAME" in refusal("hf://name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'stockpot[hub]'" in refusal("hf://owner/name")


def test_without_a_network_the_hub_is_not_even_asked(monkeypatch):
    ask = hub._unreachable

    def nobody(host, port):
        raise socket.gaierror(-2, "Name or service not known")

    calls = fake_hub(monkeypatch, [{"text": "x"}])
    monkeypatch.setattr(hub, "_unreachable", ask)
    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    assert "cannot be reached" in (told := refusal("hf://owner/name"))
    assert "Name or service not known" in told
    assert not calls
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert texts_of("hf://owner/name") == ["x"]


def test_the_village_is_a_source():
    documents = list(read_records("village:3:50"))
    assert len(documents) == 50
    assert {record.kind for record in documents} == {"text"}
    assert [record.text for record in documents] == texts_of("village:documents:3:50")
    chats = list(read_records("village:chats:3:50"))
    assert {record.kind for record in chats} == {"messages"}
    assert (
        "expected village[:documents|chats|preferences|prompts|translations|programs][/val][:SEED[:COUNT]]"
        in refusal("village:soup")
    )
    assert "expected village" in refusal("village:chats/test")
    kept = set(texts_of("village:documents/val:3:50"))
    assert len(kept) > 40 and not kept & set(texts_of("village:documents:3:2000"))
    (facts,) = fingerprint_sources("village")
    assert facts["path"].startswith("village:documents:0:")
    assert facts["version"]


# --- settings ---


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match="encoding_errors"):
        ReadConfig(encoding_errors="ignore")
    with pytest.raises(ConfigError, match="max_bad_share"):
        ReadConfig(max_bad_share=2)


def test_sources_are_fingerprinted_by_content(tmp_path):
    (tmp_path / "a.txt").write_text("soup", encoding="utf-8")
    (tmp_path / "b.txt").write_text("soup", encoding="utf-8")
    one, two = fingerprint_sources(tmp_path)
    assert one["bytes"] == 4
    assert one["sha256"] == two["sha256"]
    assert (one["path"], two["path"]) == (f"{tmp_path}/a.txt", f"{tmp_path}/b.txt")
