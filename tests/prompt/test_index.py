"""An index finds passages by meaning and by words, follows the files, and survives bad files, other encoders and writers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import stockpot as sp
from stockpot.cli.main import app
from stockpot.errors import ConfigError, DataError
from stockpot.prompt.index import FUSION, Index, IndexConfig, index

pytest.importorskip("lancedb")
QUESTION = "How many employees did Nimbus have in 2024?"
SMALL = IndexConfig(encoder="tiny", chunk_tokens=100, overlap_tokens=10)


@pytest.fixture(scope="module")
def encoder(make_bundle, tmp_path_factory):
    return sp.load(sp.save(tmp_path_factory.mktemp("encoder") / "model", make_bundle("encoder", context=128)))


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "nimbus.md").write_text(
        "# Staff\n\nWhen Nimbus went public it had 167 employees. In 2024 it had 2,000 employees.\n\n# Food\n\nSoup."
    )
    (folder / "bakery.txt").write_text("The bakery opens at six. It sells bread.")
    return folder


def test_the_encoder_computes_where_it_is_told(docs, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("stockpot.prompt.index.load", lambda ref, **places: asked.append(places))
    with pytest.raises(AttributeError):  # there is no encoder to go on with
        index(docs, tmp_path / "i", SMALL, device="cpu", dtype="bfloat16")
    assert asked == [{"device": torch.device("cpu"), "dtype": torch.bfloat16}]
    with pytest.raises(ConfigError, match="nowhere"):
        index(docs, tmp_path / "i", SMALL, device="nowhere")


@pytest.fixture
def made(docs, tmp_path, encoder):
    return index(docs, tmp_path / "idx", SMALL, encoder=encoder)


def test_the_lectures_passage_is_found_with_its_place(made):
    opened, report = made
    assert (len(report.added), report.passages, report.skipped) == (2, 3, {})
    hit = opened.search(QUESTION, k=1, how="words")[0]
    assert "2,000 employees" in hit.text
    assert (hit.title, hit.place) == ("Staff", "Staff")
    assert hit.path.endswith("nimbus.md")


def test_hybrid_ranks_are_fused(made):
    opened, _ = made
    hits = opened.search(QUESTION, k=3)
    for hit in hits:
        assert hit.score == pytest.approx(sum(1 / (FUSION + rank) for rank in hit.ranks.values()))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert {way for hit in hits for way in hit.ranks} == {"vectors", "words"}
    assert len(opened.search(QUESTION, k=3, how="vectors")) == 3
    longest = opened.search(QUESTION, k=1, rerank=lambda _, texts: [-len(text) for text in texts])
    assert longest[0].text.endswith("Soup.")


def test_the_vector_of_a_text_is_nearest_to_itself(made, encoder):
    opened, _ = made
    hit = opened.search("The bakery opens at six. It sells bread.", k=1, how="vectors")[0]
    assert hit.path.endswith("bakery.txt")


@pytest.mark.parametrize("words", ['"', "a AND (b", "+x -y *", "employees:2024 ~ ^", "'; DROP TABLE", "  "])
def test_the_syntax_of_the_search_engine_is_plain_text(made, words):
    opened, _ = made
    assert isinstance(opened.search(words or "x", how="words"), list)


def test_only_changes_are_read_again(made, docs, tmp_path, encoder):
    (docs / "bakery.txt").write_text("The bakery closed for good.")
    (docs / "nimbus.md").unlink()
    (docs / "mill.txt").write_text("The mill turns.")
    again, report = index(docs, tmp_path / "idx", encoder=encoder)
    names = [
        [path.rpartition("/")[2] for path in row] for row in (report.added, report.changed, report.removed)
    ]
    assert names == [["mill.txt"], ["bakery.txt"], ["nimbus.md"]]
    found = {hit.text for hit in again.search("bakery mill Nimbus employees", k=9)}
    assert found == {"The bakery closed for good.", "The mill turns."}
    assert len(again.store) == 2, "rows of old versions are gone"
    _, third = index(docs, tmp_path / "idx", encoder=encoder)
    assert third.unchanged == 2
    assert not (third.added or third.changed or third.removed)
    assert "0 added" in str(third)


def test_a_bad_file_is_skipped_with_its_reason_and_the_rest_indexed(docs, tmp_path, encoder):
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (docs / "odd.txt").write_bytes(b"caf\xe9")
    opened, report = index(docs, tmp_path / "idx", SMALL, encoder=encoder)
    assert {path.rpartition("/")[2] for path in report.skipped} == {"broken.pdf", "odd.txt"}
    assert "skipped" in str(report)
    assert opened.passages == 3


def test_files_of_kinds_that_are_not_read_are_counted(docs, tmp_path, encoder):
    """Whoever has slides in a folder should hear that no answer will come from them."""
    for name in ("talk.pptx", "talk 2.PPTX", "sums.xlsx", "Makefile", ".hidden.pptx"):
        (docs / name).write_bytes(b"PK")
    _, report = index(docs, tmp_path / "idx", SMALL, encoder=encoder)
    assert report.other_kinds == {".pptx": 2, ".xlsx": 1, "Makefile": 1}
    assert str(report).endswith("\nof kinds that are not read: 2 .pptx, 1 Makefile, 1 .xlsx")


def test_a_path_of_a_person_who_is_not_there_is_a_missing_one(made):
    with pytest.raises(DataError, match="~nobody-here/notes: there is no such file or folder"):
        made[0].update(["~nobody-here/notes"])


def test_a_name_that_is_not_utf_8_is_skipped(docs, tmp_path, encoder):
    (docs / "caf\udce9.txt").write_text("Coffee.")  # as older archives name it
    opened, report = index(docs, tmp_path / "idx", SMALL, encoder=encoder)
    assert opened.passages == 3
    assert report.skipped == {str(docs.resolve() / "caf�.txt"): "its name is not UTF-8"}


def test_another_encoder_is_refused(made, tmp_path, make_bundle):
    other = make_bundle("encoder", context=128, seed=1)
    moved = sp.load(sp.save(tmp_path / "other", other))
    with pytest.raises(DataError, match="made with the encoder tiny; this is another one"):
        Index.open(tmp_path / "idx", encoder=moved)


def test_other_settings_and_other_folders_are_refused(made, docs, tmp_path, encoder):
    with pytest.raises(ConfigError, match="chunk_tokens = 100"):
        index(docs, tmp_path / "idx", IndexConfig(chunk_tokens=50), encoder=encoder)
    with pytest.raises(DataError, match="holds something that is no index"):
        index(docs, docs, SMALL, encoder=encoder)
    with pytest.raises(DataError, match="is no index"):
        Index.open(docs)
    with pytest.raises(ConfigError, match="reads 128 tokens at most"):
        index(docs, tmp_path / "new", IndexConfig(encoder="tiny"), encoder=encoder)


def test_a_damaged_index_is_named_and_never_wiped(made, tmp_path, encoder):
    path = tmp_path / "idx" / "index.json"
    path.write_text('{"form": 1')
    with pytest.raises(DataError, match=r"index\.json is damaged"):
        Index.open(tmp_path / "idx", encoder=encoder)
    assert path.read_text() == '{"form": 1'


def test_what_an_interrupted_update_left_is_not_shown_and_cleaned_up(made, docs, tmp_path, encoder):
    opened, _ = made
    row = {
        "id": "x-0",
        "version": "f" * 32,
        "path": "x",
        "title": "",
        "place": "",
        "text": "Nimbus ghost employees",
    }
    opened.store.add([row], torch.zeros(1, 32).numpy())
    assert not [hit for hit in opened.search("ghost", k=9) if "ghost" in hit.text]
    again, _ = index(docs, tmp_path / "idx", encoder=encoder)
    assert len(again.store) == again.passages == 3


def test_a_second_writer_waits_and_then_refuses(made, docs, tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("stockpot.prompt.index.WAIT_S", 0.1)
    code = (
        "import sys, time; from pathlib import Path; from stockpot.durable import lock_folder;"
        "lock = lock_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "idx")], stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(DataError, match="another process has been writing"):
                index(docs, tmp_path / "idx", encoder=encoder)
        finally:
            holder.kill()
    _, report = index(docs, tmp_path / "idx", encoder=encoder)
    assert report.unchanged == 2


def test_the_verbs_index_and_ask(docs, tmp_path, encoder, make_bundle):
    def say(*words):
        return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})

    out, model = tmp_path / "idx", sp.save(tmp_path / "model", make_bundle(context=512))
    told = say("index", docs, "--out", out, "--encoder", encoder.source, "--chunk-tokens", 100, "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["passages"] == 3
    told = say("ask", model, QUESTION, "--index", out, "--compare", "-k", 2)
    assert told.exit_code == 0, told.stderr
    assert "closed book:" in told.stdout
    assert "[1] nimbus.md, Staff" in told.stdout
    told = say("ask", model, "2 + 2?", "--steps", "direct", "--json")
    assert json.loads(told.stdout)["question"] == "2 + 2?"
    assert say("ask", model, "x", "--compare").exit_code == 2
    assert say("ask", model, "x", "--index", docs).exit_code == 1
