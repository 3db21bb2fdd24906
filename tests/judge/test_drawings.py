"""The classifier that judges drawings: right on what is painted, and its labels do not depend on who is named first."""

from __future__ import annotations

import numpy as np
import pytest

from stockpot.judge.drawings import ATTRIBUTES, SceneReader, judge_drawings, labels_of, train_scene_reader
from stockpot.village import Village
from stockpot.village.scenes import Facts, paint


@pytest.fixture(scope="module")
def scenes():
    return list(Village().scenes("val", 60))


class Oracle(SceneReader):
    """Reads what it is told, instead of looking."""

    def __init__(self, labels):
        super().__init__()
        self.labels = np.array(labels)

    def read(self, pixels):
        return self.labels


def test_the_same_scene_has_the_same_labels_whoever_is_named_first():
    left = Facts((("red", "circle"), ("blue", "cross")), 1, "left of")
    right = Facts((("blue", "cross"), ("red", "circle")), 1, "right of")
    assert labels_of(left) == labels_of(right) == [4, 0, 0, 1, 3]
    below = Facts((("red", "circle"), ("blue", "cross")), 1, "below")
    assert labels_of(below) == [5, 1, 3, 0, 0]
    assert labels_of(Facts((("black", "square"),), 3)) == [2, 5, 1, 5, 1]


def test_scores_count_what_is_there(scenes):
    pixels = np.stack([paint(scene) for scene in scenes])
    labels = [labels_of(scene.facts) for scene in scenes]
    right = judge_drawings(Oracle(labels), pixels, scenes)
    assert right.all_right.value == 1.0
    pairs = sum(scene.facts.relation is not None for scene in scenes)
    assert right.attributes["second colour"].n == pairs < right.attributes["colour"].n == len(scenes)
    spoiled = [[*label[:3], 5 - label[3], label[4]] for label in labels]  # another second colour
    wrong = judge_drawings(Oracle(spoiled), pixels, scenes)
    assert wrong.attributes["second colour"].value == 0.0
    assert wrong.all_right.value == pytest.approx(1 - pairs / len(scenes))
    assert wrong.attributes["shape"].value == 1.0
    assert set(ATTRIBUTES) == set(wrong.attributes)


@pytest.mark.slow
def test_the_trained_classifier_is_nearly_always_right():
    reader = train_scene_reader(steps=300, scenes=4000)
    scenes = list(Village().scenes("val", 300))
    found = judge_drawings(reader, np.stack([paint(scene) for scene in scenes]), scenes)
    assert found.all_right.low > 0.85
