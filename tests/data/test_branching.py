"""A text and several answers to it, in one row."""

from __future__ import annotations

import numpy as np

from stockpot.data.batch import IGNORED
from stockpot.data.branching import branched, tree_of


def ids(*values):
    return np.array(values, np.int32)


def test_an_answer_begins_with_the_last_token_of_its_prompt():
    tree = tree_of(ids(1, 2, 3), [ids(4, 5), ids(6)])
    assert tree.trunk.tolist() == [1, 2]
    assert [answer.ids.tolist() for answer in tree.answers] == [[3, 4, 5], [3, 6]]
    assert [answer.counted.tolist() for answer in tree.answers] == [[False, True, True], [False, True]]
    assert tree.tokens == 7


def test_every_answer_has_its_own_labels_and_number():
    trees = [tree_of(ids(1, 2, 3), [ids(4, 5), ids(6)]), tree_of(ids(7), [ids(8, 9), ids(8)])]
    batch, spans = branched(trees, pad_id=0)
    assert batch.ids.shape == (2, 7)
    first, second = 0, 1
    assert batch.ids[first].tolist() == [1, 2, 3, 4, 5, 3, 6]
    assert batch.labels[first].tolist() == [IGNORED, IGNORED, 4, 5, IGNORED, 6, IGNORED]
    assert batch.branches[first].tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert batch.answers[first].tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert batch.ids[second].tolist() == [7, 8, 9, 7, 8, 0, 0]
    assert batch.attention_mask[second].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert batch.answers[second].tolist() == [2, 2, 2, 3, 3, -1, -1]
    assert spans == [(0, 2, 5), (0, 5, 7), (1, 0, 3), (1, 3, 5)]


def test_short_trees_share_a_row():
    trees = [
        tree_of(ids(1, 2), [ids(3)]),
        tree_of(ids(1, 2, 3), [ids(4), ids(5)]),
        tree_of(ids(4), [ids(5, 6)]),
    ]
    batch, spans = branched(trees)
    assert batch.ids.shape == (2, 6)
    row = spans[0].row
    assert spans[3].row == row != spans[1].row
    assert batch.attention_mask[row].tolist() == [1, 1, 1, 2, 2, 2]
    assert batch.tokens == 12
    alone, spans = branched(trees, alone=True)
    assert [span.row for span in spans] == [0, 1, 1, 2]
    assert alone.ids.shape == (3, 6)


def test_what_does_not_count_has_no_label():
    tree = tree_of(ids(1), [ids(2, 3, 4)], [np.array([True, False, True])])
    batch, _ = branched([tree])
    assert batch.labels[0].tolist() == [2, IGNORED, 4, IGNORED]
