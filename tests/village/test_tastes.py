"""The villagers' taste: exact, and what comparisons and prompts are made with."""

from __future__ import annotations

import math
from itertools import islice

import pytest

from stockpot.errors import ConfigError
from stockpot.village import Village
from stockpot.village.problem import Problem
from stockpot.village.tastes import rate

SUM = Problem("sums", "How many?", "9", "Marta found 9 buns.", ("7", "9", "5", "1"))
FRIEND = Problem(
    "facts", "Who?", "Viola Rossi", "Inga's best friend is Viola Rossi.", ("Jan Novak", "Viola Rossi")
)


@pytest.mark.parametrize(
    ("problem", "reply", "rating"),
    [
        (SUM, "Marta found 9 buns.", 3),
        (SUM, "She has 9 buns.", 3),
        (SUM, "9", 2),
        (SUM, " 9 ", 2),
        (SUM, "9 buns", 2),
        (SUM, "I do not know.", 1),
        (SUM, "Marta found 7 buns.", 0),
        (SUM, "Marta found 9 or 7 buns.", 0),
        (SUM, "99", 0),
        (SUM, "", 0),
        (SUM, "Are there 9 buns?", 0),
        (SUM, "9 " + "and so on " * 10, 0),
        (FRIEND, "Viola Rossi is her best friend.", 3),
        (FRIEND, "Viola Rossi", 2),
        (FRIEND, "Jan Novak", 0),
        (FRIEND, "Mara's best friend is Viola Rossi.", 0),
        (FRIEND, "Inga Weber's best friend is Viola Rossi.", 0),
        (FRIEND, "Viola Rossi's best friend is Viola Rossi.", 0),  # what a policy learned to say
        (FRIEND, "Viola Rossi's best friend is Inga.", 3),  # friends come in pairs
        (SUM, "Jakob found 9 buns.", 0),
    ],
)
def test_every_reply_has_its_rating(problem, reply, rating):
    assert rate(problem, reply) == rating


def test_comparisons_follow_the_taste():
    village = Village()
    rater = {p.question: p for p in village._asked("train", 0, 10)}
    assert len(rater) == 10
    records = list(village.preferences("train", 400))
    assert all(record["chosen"] != record["rejected"] or record.get("tie") for record in records)
    margins = [record["margin"] for record in records if "margin" in record]
    assert set(margins) == {1.0, 2.0, 3.0}
    ties = sum(record.get("tie", False) for record in records)
    assert 0.02 < ties / len(records) < 0.25
    assert len({record["prompt"] for record in records}) > 300


def test_comparisons_are_the_same_from_any_index_on():
    village = Village(3)
    whole = list(village.preferences("train", 20))
    assert list(village.preferences("train", 5, start=10)) == whole[10:15]
    assert not {r["prompt"] for r in whole} & {r["prompt"] for r in islice(village.preferences("val"), 20)}
    with pytest.raises(ConfigError, match="no split"):
        village.preferences("test")


def test_the_rater_knows_its_prompts():
    village = Village()
    rater = village.rater("train", 50)
    for record in village.prompts("train", 50):
        assert rater(record["prompt"], record["completion"]) == 3.0
        assert rater(record["prompt"], "I do not know.") == 1.0
    assert math.isnan(rater("Who is that?", "Me."))


def test_nobody_asks_about_people_who_are_held_out():
    village = Village()
    strangers = {person.name for person in village.people if person.is_held_out}
    asked = " ".join(record["prompt"] for record in village.preferences("train", 500))
    assert not [name for name in strangers if name in asked]
