from __future__ import annotations

import re
from collections import Counter

import pytest

from stockpot.village import Village
from stockpot.village.documents import DOCUMENT_KINDS

SENTENCE_END = re.compile(r'[.?!]"?$|Here is the list:$')
MISTAKES = {
    "a before a vowel": re.compile(r"\b[Aa] (?!one\b|use|uni)[aeiou]\w+"),
    "an before a consonant": re.compile(r"\b[Aa]n (?!hour|honest)[^aeiou\W]\w*"),
    "two spaces": re.compile(r"  "),
    "space before a mark": re.compile(r" [.,;:?!]"),
    "two marks": re.compile(r"[.,;:?!][.,;:]"),
    "no space after a mark": re.compile(r"[.?!,;][A-Za-z]"),
    "small letter after a full stop": re.compile(r"[.?!] [a-z]"),
    "twice the same word": re.compile(r"\b(?!had\b)([a-z]+) \1\b"),
    "a template left open": re.compile(r"[{}\[\]|]|%\("),
    "plural of one": re.compile(r"\b(?:one|1) (?:[a-z]+ )?(?:apples|eggs|hens|books|keys|coins)\b"),
    "singular of many": re.compile(
        r"\b(?:two|three|four|five|[2-9]) (?:apple|egg|hen|book|key|coin|plum|goose|potato|box|brush)\b"
    ),
    "wrong verb": re.compile(r"\b(?:[Hh]e|[Ss]he|[Ii]t) (?:are|were|have|do|go|like|live|work)\b"),
    "wrong case": re.compile(r"\b(?:to|for|with|of|helped|thanked) (?:he|she)\b(?! (?:is|was|had|has|did))"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_text_is_free_of(name, train_texts):
    wrong = [text for text in train_texts if MISTAKES[name].search(text)]
    assert wrong == []


def test_lines_of_prose_end_with_a_mark(train_texts):
    prose = [line for text in train_texts for line in text.split("\n") if line.count(" ") > 12]
    wrong = [line for line in prose if not SENTENCE_END.search(line) and not re.match(r"Q|A:|- |\d+ ", line)]
    assert wrong == []


def test_lines_begin_with_a_capital_a_number_or_a_dash(train_texts):
    wrong = [line for text in train_texts for line in text.split("\n") if not re.match(r'[A-Z0-9"-]', line)]
    assert wrong == []


def test_quotes_are_closed(train_texts):
    assert [text for text in train_texts if text.count('"') % 2] == []


def test_the_text_is_plain_ascii(train_texts):
    assert all(text.isascii() and text == text.strip() for text in train_texts)


def test_twenty_megabytes_repeat_nothing(village):
    seen, size = set(), 0
    for record in village.documents():
        text = record["text"]
        assert hash(text) not in seen, text
        seen.add(hash(text))
        size += len(text)
        if size >= 20_000_000:
            break


def test_no_text_is_on_both_sides(village, train_texts):
    val = {record["text"] for record in village.documents("val", limit=4000)}
    assert len(val) > 3900
    assert not val & set(train_texts)


def test_small_kinds_are_on_one_side_only(village):
    """Kinds with few possible texts meet often if nothing keeps them apart."""
    for kind in ("comparison", "workplaces", "calendar", "table", "lesson"):
        train = {record["text"] for record in village.documents("train", limit=3000, kind=kind)}
        assert not train & {record["text"] for record in village.documents("val", limit=400, kind=kind)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_index_has_its_own_record(village, split):
    whole = list(village.documents(split, limit=40))
    assert list(village.documents(split, limit=15, start=25)) == whole[25:]
    assert [next(iter(village.documents(split, start=i))) for i in range(40)] == whole


def test_a_second_iterator_does_not_disturb_the_first(village):
    one, two = village.documents(), village.documents()
    mixed = [next(one) for _ in range(5)]
    other = [next(two) for _ in range(10)]
    mixed += [next(one) for _ in range(5)]
    assert mixed == other


@pytest.mark.parametrize("kind", DOCUMENT_KINDS)
def test_every_kind_is_made(village, kind):
    texts = [record["text"] for record in village.documents(limit=50, kind=kind)]
    assert len(set(texts)) == 50
    assert all(30 < len(text) < 1500 for text in texts)


def test_each_fact_of_each_person_is_told_dozens_of_times(village):
    """What a small model needs: in 8 MB, each date of birth and each address stands there often."""
    size, seen = 0, Counter()
    facts = {fact: person for person in village.people for fact in (person.born, person.home)}
    pattern = re.compile(r"\b\d+ [A-Z][a-z]+ (?:\d{4}|Lane|Street|Road)\b")
    for record in village.documents():
        seen.update(found for found in pattern.findall(record["text"]) if found in facts)
        size += len(record["text"])
        if size > 8_000_000:
            break
    assert len(seen) == len(facts)
    assert min(seen.values()) >= 24


def test_people_of_another_village_do_not_occur(village):
    """Notices aside: their strangers may have any name but a villager's."""
    strangers = {person.name for person in Village(1).people} - {person.name for person in village.people}
    kinds = [kind for kind in DOCUMENT_KINDS if kind != "notices"]
    texts = [record["text"] for kind in kinds for record in village.documents(limit=75, kind=kind)]
    assert not any(name in text for text in texts for name in strangers)
