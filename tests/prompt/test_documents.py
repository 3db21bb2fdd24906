"""Documents of every kind become parts that say where they stand; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import zipfile

import pytest

from stockpot.errors import DataError
from stockpot.prompt.chunks import cut
from stockpot.prompt.documents import Part, find_documents, read_document
from stockpot.prompt.papers import PaperError, read_paper


def count(texts):
    return [len(text.split()) for text in texts]


def make_pdf(path, texts, password=None):
    """Write a PDF of one line a page by hand."""
    pypdf = pytest.importorskip("pypdf")
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for text in texts:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        number = len(objects) + 1
        kids.append(f"{number} 0 R")
        font = "<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number + 1} 0 R /Resources {font} >>"
        objects += [page, f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream"]
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    start = len(out)
    rows = "".join(f"{place:010d} 00000 n \n" for place in places)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}"
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    path.write_bytes(out.encode("latin-1"))
    if password:
        writer = pypdf.PdfWriter(clone_from=path)
        writer.encrypt(password, algorithm="RC4-128")
        writer.write(path)
    return path


def test_each_kind_is_read_with_its_place(tmp_path):
    (tmp_path / "a.txt").write_text("Plain words.")
    (tmp_path / "b.md").write_text("Before.\n\n# Soup\n\nSalt.\n\n## Bread\n\nFlour.\n\n# Wine\n\nGrapes.")
    (tmp_path / "c.html").write_text("<h1>Page</h1><script>no()</script><p>Words &amp; more</p>")
    (tmp_path / "d.csv").write_text("name,workers\nBakery,12\nMill,7\n")
    records = [{"pid": "s0", "title": "T", "text": "One."}, {"pid": "s1", "text": "Two."}]
    with gzip.open(tmp_path / "e.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
    assert [path.name for path in find_documents([tmp_path])] == [
        "a.txt",
        "b.md",
        "c.html",
        "d.csv",
        "e.jsonl.gz",
    ]
    parts = {path.name: read_document(path) for path in find_documents([tmp_path])}
    assert parts["a.txt"] == [Part("Plain words.")]
    assert [(one.title, one.text) for one in parts["b.md"]] == [
        ("", "Before."),
        ("Soup", "Salt."),
        ("Soup › Bread", "Flour."),
        ("Wine", "Grapes."),
    ]
    assert parts["c.html"][0].text == "Page\nWords & more"
    assert parts["d.csv"][1] == Part("name: Mill; workers: 7", "Mill", "line 3")
    assert parts["e.jsonl.gz"] == [Part("One.", "T", "s0"), Part("Two.", "", "s1")]


def test_a_pdf_gives_its_pages_and_word_its_headings(tmp_path):
    found = read_document(make_pdf(tmp_path / "a.pdf", ["Nimbus had 2000 employees", "Second page"]))
    assert [(one.place, one.text.strip()) for one in found] == [
        ("page 1", "Nimbus had 2000 employees"),
        ("page 2", "Second page"),
    ]
    docx = pytest.importorskip("docx")
    document = docx.Document()
    document.add_heading("Staff", 1)
    document.add_paragraph("Nimbus had 2000 employees.")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text, table.cell(0, 1).text = "year", "2024"
    document.save(tmp_path / "a.docx")
    assert read_document(tmp_path / "a.docx") == [
        Part("Nimbus had 2000 employees.", "Staff", "Staff"),
        Part("year | 2024", "table 1", "table 1"),
    ]


def test_bad_papers_are_named(tmp_path):
    for name, content, said in (
        ("cut.pdf", b"%PDF-1.4\nnothing", "damaged"),
        ("text.pdf", b"just words", "neither a PDF"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            read_document(tmp_path / name)
    with pytest.raises(DataError, match="encrypted"):
        read_document(make_pdf(tmp_path / "locked.pdf", ["secret"], password="x"))
    with zipfile.ZipFile(tmp_path / "bomb.docx", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("word/document.xml", b"0" * (80 << 20))
    with pytest.raises(DataError, match="unpacks to far more"):
        read_document(tmp_path / "bomb.docx")
    with pytest.raises(PaperError, match="takes more than"):
        read_paper(tmp_path / "bomb.docx", timeout_s=0.001)


def test_an_outside_entity_is_not_read(tmp_path):
    pytest.importorskip("docx")
    secret = tmp_path / "secret.txt"
    secret.write_text("PASSWORD")
    import docx

    document = docx.Document()
    document.add_paragraph("MARK")
    document.save(tmp_path / "plain.docx")
    with zipfile.ZipFile(tmp_path / "plain.docx") as old, zipfile.ZipFile(tmp_path / "xxe.docx", "w") as new:
        for one in old.infolist():
            content = old.read(one)
            if one.filename == "word/document.xml":
                entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{secret}">]>'.encode()
                head, _, body = content.partition(b"?>")
                content = head + b"?>" + entity + body.replace(b"MARK", b"&e;")
            new.writestr(one, content)
    try:
        texts = [part.text for part in read_document(tmp_path / "xxe.docx")]
    except DataError:
        texts = []
    assert "PASSWORD" not in " ".join(texts)


def test_links_out_of_the_folder_and_hidden_files_are_passed_over(tmp_path):
    (tmp_path / "out.txt").write_text("secret")
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "in.txt").write_text("open")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "link.txt").symlink_to(tmp_path / "out.txt")
    (folder / "loop").symlink_to(folder)
    assert [path.name for path in find_documents([folder])] == ["in.txt"]
    for wrong, said in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "no document to read")):
        if wrong.name == "empty":
            wrong.mkdir()
        with pytest.raises(DataError, match=said):
            find_documents([wrong])


def test_passages_hold_so_many_tokens_and_lose_no_word():
    sentences = [f"Sentence number {i} has exactly seven words." for i in range(40)]
    text = "\n\n".join(" ".join(sentences[i : i + 5]) for i in range(0, 40, 5))
    passages = cut([Part(text, "T", "page 1")], count, tokens=30, overlap=7)
    assert all(count([one.text])[0] <= 30 for one in passages)
    assert {one.title for one in passages} == {"T"}
    joined = " ".join(one.text for one in passages)
    assert all(sentence in joined for sentence in sentences)
    assert passages[1].text.startswith(passages[0].text.split(". ")[-1]), "the end is repeated"


def test_what_fits_is_one_passage_and_what_is_endless_is_cut():
    assert [one.text for one in cut([Part("One.\n\nTwo.")], count, tokens=30, overlap=5)] == ["One. Two."]
    assert cut([Part("  ")], count) == []
    letters = cut([Part("x" * 5000)], lambda texts: [len(text) for text in texts], tokens=100, overlap=10)
    assert all(len(one.text) <= 100 for one in letters)
    assert sum(len(one.text) for one in letters) >= 5000
    words = cut([Part("word " * 500)], count, tokens=40, overlap=0)
    assert all(count([one.text])[0] <= 40 for one in words)
    assert sum(count([one.text])[0] for one in words) == 500
    with pytest.raises(ValueError, match="overlap"):
        cut([Part("x")], count, tokens=10, overlap=10)


def test_words_of_very_different_lengths_are_cut_to_size():
    text = " ".join(["a"] * 60 + ["b" * 90] + ["c"] * 60)
    passages = cut([Part(text)], lambda texts: [len(one) for one in texts], tokens=32, overlap=8)
    assert max(len(one.text) for one in passages) <= 32
    assert sum(one.text.count("b") for one in passages) >= 90


def test_comments_in_code_are_no_headings(tmp_path):
    path = tmp_path / "README.MD"
    path.write_text(
        "# Use\n\n```bash\n# install it\npip install it\n```\n\n## Then\n\nRun it.\n~~~~\n# no end\n"
    )
    first, second = read_document(path)
    assert (first.title, second.title) == ("Use", "Use › Then")
    assert "# install it\npip install it" in first.text and "# no end" in second.text


def test_half_a_character_does_not_stop_the_rest(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one \\ud800 two \\ud83d\\ude00"}\n')
    assert [one.text for one in read_document(tmp_path / "a.jsonl")] == ["one � two 😀"]


def test_a_path_of_a_person_who_is_not_there_is_a_missing_one():
    with pytest.raises(DataError, match="~nobody-here/notes: there is no such file or folder"):
        find_documents(["~nobody-here/notes"])


def test_a_folder_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-here").mkdir()
    (tmp_path / "~nobody-here" / "a.txt").write_text("soup", encoding="utf-8")
    assert [path.name for path in find_documents(["~nobody-here"])] == ["a.txt"]
