"""Every fact that any text tells is compared with the people themselves, by rules of the test's own."""

from __future__ import annotations

import re

import pytest

from stockpot.village.dice import Dice
from stockpot.village.facts import ATTRIBUTES, JOINED, fact_problem, fields_of, value_of
from stockpot.village.lexicon import HOBBIES, MONTHS, STREETS, TOWNS

DATE = re.compile(rf"\b\d+ (?:{'|'.join(MONTHS)}) \d{{4}}\b")
HOME = re.compile(rf"\b\d+ (?:{'|'.join(STREETS)})\b")
ABOUT_ONE = ("biography", "card", "letter")
LINE_BY_LINE = ("directory", "calendar")


def found_facts(text: str, village) -> dict[str, set[str]]:
    return {
        "born": set(DATE.findall(text)),
        "home": set(HOME.findall(text)),
        "town": {town for town in TOWNS if town in text},
        "employer": {e.name for e in village.world.employers if e.name.removeprefix("the ") in text},
        "hobby": {hobby for hobby in HOBBIES if hobby in text},
    }


def people_in(text: str, village) -> list:
    return [person for person in village.people if person.name in text]


@pytest.mark.parametrize("kind", ABOUT_ONE)
def test_documents_about_one_person_tell_the_truth(village, kind):
    told = 0
    for record in village.documents(limit=1500, kind=kind):
        text = record["text"]
        named = people_in(text, village)
        owner = named[0] if len(named) == 1 else max(named, key=lambda p: text.count(p.first))
        for attribute, values in found_facts(text, village).items():
            right = {value_of(village.world, person, attribute) for person in named}
            assert values <= right, (owner.name, attribute, text)
            told += len(values)
    assert told > 3000


@pytest.mark.parametrize("kind", LINE_BY_LINE)
def test_lists_tell_the_truth_line_by_line(village, kind):
    lines = [
        line for record in village.documents(limit=800, kind=kind) for line in record["text"].split("\n")
    ]
    checked = 0
    for line in lines:
        named = people_in(line, village)
        if len(named) != 1:
            continue
        for attribute, values in found_facts(line, village).items():
            assert values <= {value_of(village.world, named[0], attribute)}, line
            checked += len(values)
    assert checked > 1000


def test_comparisons_name_the_elder(village):
    born = {person.name: (person.year, person.month, person.day) for person in village.people}
    pattern = re.compile(r"([A-Z]\w+ [A-Z]\w+) is (older|younger) than ([A-Z]\w+ [A-Z]\w+)")
    checked = 0
    for record in village.documents(limit=300, kind="comparison"):
        for one, relation, other in pattern.findall(record["text"]):
            assert (born[one] < born[other]) == (relation == "older"), record["text"]
            checked += 1
    assert checked > 300


def test_answers_are_the_facts(village):
    for person in village.people[:50]:
        expected = {
            "born": person.born,
            "town": person.town,
            "home": person.home,
            "job": person.job,
            "employer": person.employer.name,
            "hobby": person.hobby,
            "friend": village.people[person.friend].name,
        }
        assert [attribute.name for attribute in ATTRIBUTES] == list(expected)
        for attribute in ATTRIBUTES:
            problem = fact_problem(village.world, Dice(0, "fact").at(person.number), person, attribute)
            assert problem.answer == expected[attribute.name]
            assert problem.answer in problem.sentence
            assert person.name in problem.question
            assert problem.choices.count(problem.answer) == 1
            assert len(set(problem.choices)) == 4


def test_nobody_is_offered_as_their_own_best_friend(village):
    friend = ATTRIBUTES[-1]
    for i in range(2000):
        person = village.people[i % 200]
        assert person.name not in fact_problem(village.world, Dice(0, "own").at(i), person, friend).choices


@pytest.mark.parametrize("manner", ["name", "first", "pronoun"])
def test_every_wording_can_be_said_of_everybody(village, manner):
    dice = Dice(0, "wordings").at(0)
    everything = [way for a in ATTRIBUTES for way in (*a.statements, *a.own, *a.questions, *a.kept_questions)]
    everything += [way for ways in JOINED.values() for way in ways]
    for person in village.people[:20]:
        fields = fields_of(village.world, person, manner)
        for way in everything:
            text = way(dice, fields)
            assert text[-1] in ".?"
            assert not re.search(r"[{}%\[\]|]|  ", text)


def test_kept_wordings_are_none_of_the_trained_ones(village):
    fields = fields_of(village.world, village.people[0])
    dice = Dice(0, "kept").at(0)
    for attribute in ATTRIBUTES:
        trained = {way(dice, fields) for way in attribute.questions}
        kept = {way(dice, fields) for way in attribute.kept_questions}
        assert len(trained) >= 5
        assert len(kept) >= 2
        assert not trained & kept
