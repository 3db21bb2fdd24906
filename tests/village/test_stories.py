from __future__ import annotations

import re

from stockpot.village.dice import Dice, side_of
from stockpot.village.lexicon import MEN, WOMEN
from stockpot.village.stories import PLOTS, draw_story

NAMES = set(WOMEN) | set(MEN)


def _stories(count: int = 2000, side: str = "train"):
    return [draw_story(Dice(0, "stories").at(i), side) for i in range(count)]


def test_every_plot_is_told():
    gists = {re.sub(r"\b[A-Z]\w+\b", "X", story.gist) for story in _stories()}
    assert len(gists) > len(PLOTS)


def test_a_story_has_one_or_two_actors_and_its_gist_no_others():
    for story in _stories():
        actors = {word for word in re.findall(r"\w+", story.text) if word in NAMES}
        assert 1 <= len(actors) <= 2, story
        named = {word for word in re.findall(r"\w+", story.gist) if word in NAMES}
        assert named <= actors, story


def test_pronouns_fit_the_actors():
    """In a story of two women nobody is he, and the other way round; the few strangers are left out."""
    strangers = re.compile(r"brother|old woman|mail carrier")
    for story in _stories():
        actors = {word for word in re.findall(r"\w+", story.text) if word in NAMES}
        if strangers.search(story.text):
            continue
        if actors <= set(WOMEN):
            assert not re.search(r"\b([Hh]e|[Hh]is|him)\b", story.text), story
        if actors <= set(MEN):
            assert not re.search(r"\b([Ss]he|[Hh]er)\b", story.text), story


def test_stories_belong_to_their_side():
    assert all(side_of(story.text) == "val" for story in _stories(50, "val"))


def test_quotes_are_closed():
    assert all(story.text.count('"') % 2 == 0 for story in _stories())
