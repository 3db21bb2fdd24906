from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.village import Village
from stockpot.village.people import CENSUS_YEARS, LAST_YEAR, draw_world


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("number", [20, 200, 400])
def test_people_can_be_told_apart(seed, number):
    people = draw_world(seed, number).people
    assert len(people) == number
    for fact in ("name", "born", "home"):
        assert len({getattr(person, fact) for person in people}) == number


def test_best_friends_are_each_others_and_on_the_same_side(village):
    world = village.world
    for person in world.people:
        friend = world.friend_of(person)
        assert friend is not person
        assert world.friend_of(friend) is person
        assert friend.is_held_out == person.is_held_out


def test_one_person_in_five_is_held_out(village):
    assert len(village.world.held_out) == 40
    assert len(village.world.asked) == 160


def test_jobs_belong_to_the_place_of_work(village):
    assert all(person.job in person.employer.jobs for person in village.people)


def test_everything_happened_before_the_cut_off(village):
    assert all(person.year < LAST_YEAR - 18 for person in village.people)
    assert all(employer.founded <= LAST_YEAR for employer in village.world.employers)
    assert all(tuple(employer.workers) == CENSUS_YEARS for employer in village.world.employers)


def test_seeds_give_different_villages():
    assert {p.name for p in Village(0).people} != {p.name for p in Village(1).people}


@pytest.mark.parametrize("number", [0, 18, 21, 402, -2])
def test_impossible_numbers_of_people_are_refused(number):
    with pytest.raises(ConfigError, match=f"cannot have {number} people") as caught:
        Village(people=number)
    assert "even number from 20 to 400" in caught.value.todo
