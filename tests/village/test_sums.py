"""Sums are solved again here from their text, by rules that know nothing of how they were made."""

from __future__ import annotations

import re

import pytest

from stockpot.village import Village
from stockpot.village.dice import Dice
from stockpot.village.sums import draw_sum, sum_tale, table


def solve(text: str) -> int:
    """Solve a sum from its words alone."""
    *story, question = re.split(r"(?<=[.?])\s+", text)
    numbers = [[int(n) for n in re.findall(r"\d+", sentence)] for sentence in story]
    flat = [n for some in numbers for n in some]
    told = " ".join(story)
    if "box" in told and "each" in told.lower():
        return flat[0] * flat[1] - sum(flat[2:])
    if "equally" in told or "same number" in told:
        return sum(flat[:-1]) // flat[-1]
    if "costs" in told:
        cost = flat[0] * flat[1]
        return flat[2] - cost if len(flat) == 3 else cost
    if "than" in told:
        other = flat[0] + flat[1] if "more" in told else flat[0] - flat[1]
        return flat[0] + other if "together" in question else other
    if "together" in question:
        return sum(flat)
    total = flat[0]
    for sentence, some in zip(story[1:], numbers[1:], strict=True):
        total += sum(some) if "more" in sentence else -sum(some)
    return total


@pytest.mark.parametrize("kind", ["sums", "steps", "chains"])
def test_gold_answers_are_those_of_an_independent_solver(village, kind):
    for item in village.questions("val", limit=600, kind=kind):
        assert solve(item["question"]) == int(item["answer"]), item


@pytest.mark.parametrize("seed", [1, 2])
def test_training_sums_are_right_too(seed):
    for record in Village(seed).questions("train", limit=600, kind="steps"):
        assert solve(record["question"]) == int(record["answer"]), record


def check_equations(text: str) -> int:
    """Compute every equation in a text again; return how many there were."""
    found = re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", text)
    for a, sign, b, result in found:
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "x": int(a) * int(b), "/": int(a) / int(b)}[sign]
        assert value == int(result), text
    return len(found)


def test_every_equation_anywhere_is_right(train_texts, train_chats):
    assert sum(map(check_equations, train_texts)) > 5000
    assert sum(check_equations(message["content"]) for chat in train_chats for message in chat) > 1000


def test_steps_lead_to_the_answer():
    for i in range(300):
        for steps in (1, 2, 3):
            drawn = draw_sum(Dice(0, "steps").at(i), "train", steps)
            assert len(drawn.steps) == steps
            assert drawn.steps[-1].endswith(f"= {drawn.answer}")
            assert f" {drawn.answer} " in f" {drawn.sentence.rstrip('.')} "


def test_numbers_stay_small():
    for i in range(500):
        dice = Dice(0, "small").at(i)
        drawn = draw_sum(dice, "train", 1 + i % 3)
        assert 1 <= drawn.answer <= 40
        assert all(int(n) <= 50 for n in re.findall(r"\d+", drawn.story))
        assert all(0 < int(n) <= 50 for n in re.findall(r"\d+", " ".join(drawn.steps)))


def test_choices_are_four_numbers_with_the_answer(village):
    for item in village.questions("val", limit=300, kind="steps"):
        assert len(set(item["choices"])) == 4
        assert item["answer"] in item["choices"]


def test_tales_and_tables_hold_their_sums():
    for i in range(200):
        assert "{" not in sum_tale(Dice(0, "tale").at(i), "train")
        assert check_equations(table(Dice(0, "table").at(i))) >= 6


def test_one_thing_is_singular(train_texts):
    assert not any(
        re.search(r"\b1 (?!o'clock)(?:\w+ )?(?:apples|eggs|hens|coins|plums|cats|geese)\b", t)
        for t in train_texts
    )
