"""Scenes: the same everywhere, true to their captions, and apart where they are held out."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.village import Village
from stockpot.village.scenes import COLOURS, HELD_OUT_PAIRS, SHAPES, paint, read_caption, scene_questions


@pytest.fixture(scope="module")
def scenes():
    return {side: list(Village().scenes(side, 600)) for side in ("train", "val")}


def test_equal_seeds_give_equal_scenes(scenes):
    assert list(Village().scenes("train", 5, start=7)) == scenes["train"][7:12]
    assert next(Village(1).scenes()) != scenes["train"][0]


def test_training_never_shows_a_held_out_pair(scenes):
    assert not any(scene.is_held_out for scene in scenes["train"])
    share = np.mean([scene.is_held_out for scene in scenes["val"]])
    assert 0.4 < share < 0.6
    shown = {thing for scene in scenes["train"] for thing in scene.facts.things}
    assert len(shown) == len(COLOURS) * len(SHAPES) - len(HELD_OUT_PAIRS)
    assert {colour for colour, _ in HELD_OUT_PAIRS} <= {colour for colour, _ in shown}


def test_no_scene_is_on_both_sides(scenes):
    assert not {repr(s.places) for s in scenes["train"]} & {repr(s.places) for s in scenes["val"]}


def test_captions_say_all_there_is(scenes):
    assert all(read_caption(scene.facts.caption) == scene.facts for scene in scenes["val"])
    kinds = {(len(s.facts.things), s.facts.count > 1) for s in scenes["val"]}
    assert kinds == {(1, False), (1, True), (2, False)}


@pytest.mark.parametrize("text", ["", "a circle", "a pink circle", "five red circles", "two red circle"])
def test_other_texts_are_no_captions(text):
    assert read_caption(text) is None


def test_relations_are_true_in_the_picture(scenes):
    for scene in scenes["val"]:
        if scene.facts.relation is None:
            continue
        (x, y, _), (other_x, other_y, _) = scene.places
        apart = {
            "left of": other_x - x, "right of": x - other_x, "above": other_y - y, "below": y - other_y,
        }  # fmt: skip
        assert max(apart, key=apart.get) == scene.facts.relation


def test_the_pixels_show_the_colours_where_the_places_say(scenes):
    for scene in scenes["val"][:60]:
        pixels = paint(scene)
        assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
        assert len(scene.places) == (scene.facts.count if scene.facts.relation is None else 2)
        for number, (x, y, _) in enumerate(scene.places):
            colour = scene.facts.things[min(number, len(scene.facts.things) - 1)][0]
            found = pixels[int(y * 32), int(x * 32)].astype(int)
            assert abs(found - COLOURS[colour]).max() < 12, scene
        assert (paint(scene, 64)[0, 0] == scene.ground).all()


def test_what_is_seen_does_not_depend_on_which_thing_is_named_first():
    one = read_caption("a red circle right of a blue cross")
    other = read_caption("a blue cross left of a red circle")
    assert one != other and one.seen == other.seen == other
    assert read_caption("a red circle below a blue cross").seen.caption == "a blue cross above a red circle"
    assert read_caption("two red circles").seen == read_caption("two red circles")


def test_every_answer_is_among_the_choices_and_follows(scenes):
    for scene in scenes["val"]:
        for question, answer, choices in scene_questions(scene):
            assert answer in choices and len(set(choices)) == len(choices) > 1
            assert question.endswith("?")
