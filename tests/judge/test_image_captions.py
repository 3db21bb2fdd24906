"""BLEU and CIDEr by hand."""

from __future__ import annotations

import math

import pytest

from stockpot.judge.captions import bleu, cider


def test_bleu_of_the_paper_clips_repeated_words():
    """Papineni et al. 2002, example 2: seven times "the" matches twice, so the modified precision is 2/7."""
    written = ["the the the the the the the"]
    known = [["The cat is on the mat.", "There is a cat on the mat."]]
    assert bleu(written, known, n=1) == pytest.approx(2 / 7)


def test_bleu_punishes_short_captions():
    assert bleu(["a red"], [["a red circle here"]], n=1) == pytest.approx(math.exp(1 - 4 / 2))
    assert bleu(["a red circle"], [["a red circle"]]) == pytest.approx(1.0)
    assert bleu(["green"], [["a red circle"]], n=1) == 0.0


def test_bleu_agrees_with_sacrebleu():
    sacrebleu = pytest.importorskip("sacrebleu")
    written = [
        "a red circle left of a blue square",
        "two green crosses in the rain",
        "the cat sat on the mat today",
    ]
    known = [
        "a red circle left of a green square",
        "two green crosses in the sun",
        "the cat sat on the old mat",
    ]
    theirs = sacrebleu.corpus_bleu(written, [known], smooth_method="none", force=True).score
    assert 100 * bleu(written, [[one] for one in known]) == pytest.approx(theirs)


def test_cider_by_hand():
    """Two pictures; "red" and "blue" stand in one each (weight ln 2), "a" in both (weight 0)."""
    scores = cider(["a red", "a red"], [["a red"], ["a blue"]], n=1)
    assert scores == pytest.approx([10.0, 0.0])
    assert cider(["red circle"], [["red square"]], n=1) == [0.0]  # of one picture alone nothing is rare
    mixed = cider(["red circle", "x"], [["red square"], ["y z"]], n=1)
    assert mixed == pytest.approx([5.0, 0.0])  # one of two words, all equally rare: a cosine of a half
