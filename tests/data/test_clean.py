"""Cleaning, near-duplicates and files elsewhere."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockpot.data.clean import CleanConfig, clean, fault, language_of, words_of
from stockpot.data.near import Seen, band_keys
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.data.remote import find_remote, is_remote
from stockpot.data.sources import fingerprint_sources, read_records, read_texts
from stockpot.errors import ConfigError, DataError

PROSE = (
    "The cook of the village went to the market with a basket, and it was full of onions when she came home. "
    "She had to stir the soup for an hour, as it was a large pot that had been given to her by the baker."
)


def test_text_gets_one_form():
    raw = "Cafe\u0301 \t with\u00a0 spaces \r\n\r\n\r\n\r\nand\x00 a\u200b zero\ufeff  \n"
    assert clean(raw) == "Café with spaces\n\nand a zero"


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    once = clean(text)
    assert clean(once) == once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("Hello there.", "too short"),
        (PROSE.replace(" ", " # "), "symbols"),
        ("1234 5678 " * 200 + PROSE, "few letters"),
        ("\n".join(f"- {word} belongs here between other pots" for word in PROSE.split()), "a list"),
        ("\n".join(["to the soup with salt and a spoon of it"] * 8), "repeated lines"),
        (
            "\n".join(
                f"{line} and whatever else may come behind this word has been left out here …"
                for line in PROSE.split()[:20]
            ),
            "cut lines",
        ),
        ("pneumonoultramicroscopicsilicovolcanoconiosis " * 30, "odd words"),
    ],
)
def test_each_sign_of_a_machine_has_its_name(text, reason):
    assert fault(text, CleanConfig()) == reason


# The first article of the Universal Declaration of Human Rights.
ARTICLE = {
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Tamil": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "Persian": "تمام افراد بشر آزاد به دنیا می‌آیند و از لحاظ حیثیت و حقوق با هم برابرند.",
}


@pytest.mark.parametrize("language", ARTICLE)
def test_no_language_looks_made_by_machines(language):
    assert fault(clean("\n".join([ARTICLE[language]] * 3)), CleanConfig()) is None


def test_words_keep_their_marks_and_joiners():
    assert words_of("सभी मनुष्यों को") == ["सभी", "मनुष्यों", "को"]
    assert words_of("به دنیا می‌آیند") == ["به", "دنیا", "می‌آیند"]
    assert words_of("don't, l’été 3x x_y re\u0301el") == ["don't", "l’été", "x", "x", "y", "re\u0301el"]
    assert words_of("人の มี Kürbis") == ["人", "の", "มี", "Kürbis"]


def test_joiners_stay_only_where_they_change_what_is_read():
    persian, family = "می\u200cآیند", "👨\u200d👩\u200d👧"
    assert clean(f"{persian} {family}") == f"{persian} {family}"
    assert clean("hid\u200d\u200cden \u200c") == "hidden"
    assert clean("e\u200d\u0301 e\u200b\u0301") == "é é", "what kept letter and mark apart is gone before NFC"


def test_languages_are_told_apart_by_their_common_words():
    german = "Der Koch geht mit dem Korb auf den Markt und kauft eine Zwiebel, die nicht zu groß ist, für das Essen."
    assert language_of(words_of(PROSE)) == "en"
    assert language_of(words_of(german)) == "de"
    assert language_of(words_of("xyzzy plugh " * 20)) is None
    config = CleanConfig(language="en", min_words=5)
    assert fault(german, config) == "another language"
    with pytest.raises(ConfigError, match="'tlh' is unknown"):
        fault(PROSE, CleanConfig(language="tlh", min_words=1))


def test_near_documents_share_a_band_and_others_do_not(tmp_path):
    base = [f"word{i % 97}x{i}" for i in range(400)]
    near = [*base[:200], "changed", *base[201:]]
    other = [f"thing{i}" for i in range(400)]
    keys = [band_keys(words, threshold=0.8) for words in (base, near, other)]
    assert set(keys[0]) & set(keys[1])
    assert not set(keys[0]) & set(keys[2])
    file = tmp_path / "seen"
    with Seen(file) as seen:
        assert [seen.is_new(one) for one in keys] == [True, False, True]
    assert not file.exists()


def test_files_elsewhere_are_read_like_files_here():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for number in (2, 1):
        with files.open(f"/pots/{number}.txt", "wb") as file:
            file.write(f"Soup number {number}.".encode())
    assert is_remote("memory://pots/1.txt")
    assert not is_remote("hf://owner/name")
    assert list(read_texts("memory://pots/*.txt")) == ["Soup number 1.", "Soup number 2."]
    assert list(read_texts("memory://pots")) == ["Soup number 1.", "Soup number 2."]
    assert len(find_remote("memory://pots/1.txt")) == 1
    assert fingerprint_sources("memory://pots/1.txt") == [{"path": "memory://pots/1.txt"}]
    with pytest.raises(DataError, match="no such file"):
        list(read_texts("memory://pots/9.txt"))


def test_what_is_wrong_with_a_file_elsewhere_is_told_by_its_address():
    fsspec = pytest.importorskip("fsspec")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", "Soup.")
        archive.writestr("a.png", "no text")
    held = {
        "a.jsonl": b'{"text": "Soup."}\nno JSON\n',
        "a.jsonl.gz": b"\x1f\x8b\x08 torn",
        "a.zip": packed.getvalue(),
        "b.zip": b"PK\x03\x04 torn",
    }
    for name, data in held.items():
        with fsspec.filesystem("memory").open(f"/bad/{name}", "wb") as file:
            file.write(data)
    (record,) = read_records(
        "memory://bad/a.jsonl", ReadConfig(max_bad_share=1), report=(report := ReadReport())
    )
    assert record.where == "memory:///bad/a.jsonl:1"
    assert report.problems[0].what.startswith("memory:///bad/a.jsonl:2: ")
    (record,) = read_records("memory://bad/a.zip", report=(report := ReadReport()))
    assert (record.where, report.left_out) == ("memory:///bad/a.zip!a.txt:1", ["memory:///bad/a.zip!a.png"])
    for name in ("a.jsonl.gz", "b.zip"):
        with pytest.raises(DataError, match=rf"^memory:///bad/{name}\b"):
            list(read_records(f"memory://bad/{name}"))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_texts("nowhere://x"))


def test_a_full_disk_while_documents_are_remembered_is_a_known_error(tmp_path):
    with Seen(tmp_path / "near") as seen:
        seen._base.execute("PRAGMA max_page_count = 4")
        with pytest.raises(DataError, match=r"near: database or disk is full"):
            for number in range(10_000):
                seen.is_new([number])
