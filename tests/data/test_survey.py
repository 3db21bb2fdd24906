"""What comparisons are worth is told before anything is trained on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockpot.data.records import PreferenceRecord, TextRecord
from stockpot.data.sources import read_records
from stockpot.data.survey import agreement_of, survey
from stockpot.errors import DataError


def pair(chosen, rejected, prompt="P", **choices):
    return PreferenceRecord(prompt, chosen, rejected, **choices)


def test_what_says_nothing_is_left_out():
    kept, found = survey([pair("a", "b"), pair("a", "a "), pair("a", "b"), pair("c", "d", prompt="Q")])
    assert kept == [pair("a", "b"), pair("c", "d", prompt="Q")]
    assert (found.pairs, found.prompts, found.identical, found.repeated) == (2, 2, 1, 1)


def test_contradictions_are_counted():
    _, found = survey([pair("a", "b"), pair("b", "a"), pair("c", "d")])
    assert found.contradicted == 1
    assert "preferred one way and the other" in str(found)


def test_a_preference_for_length_is_told():
    records = [pair("long answer", "no", prompt=str(i)) for i in range(8)]
    _, found = survey([*records, pair("no", "long answer", prompt="x"), pair("ab", "ba", prompt="y")])
    assert (found.longer_chosen, found.of_different_length) == (8, 9)
    assert "a model may learn length instead" in str(found)


def test_raters_are_compared_on_what_both_rated():
    records = [
        pair("a", "b", annotator="ann"),
        pair("a", "b", annotator="ben"),
        pair("c", "d", annotator="ann"),
        pair("d", "c", annotator="ben"),
        pair("e", "f", annotator="ann"),
    ]
    _, found = survey(records)
    assert (found.raters, found.rated_twice, found.agreement) == (2, 2, 0.5)
    assert found.repeated == 0


def test_alpha_by_hand():
    # Two units agree on 1, one has 0 and 1: observed disagreement 2, expected 2 · 5 · 1 / 5 = 2.
    assert agreement_of([[1, 1], [1, 1], [0, 1]]) == (pytest.approx(2 / 3), 0.0)
    assert agreement_of([[1, 1], [0, 0]]) == (1.0, 1.0)
    assert agreement_of([[1], [0]]) == (None, None)
    # Krippendorff 2011, section C: four raters, 12 units, nominal alpha 0.743
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[row[i] for row in table if row[i] is not None] for i in range(12)]
    assert agreement_of(units)[1] == pytest.approx(0.743, abs=5e-4)


def test_only_comparisons_are_compared():
    with pytest.raises(DataError, match="f:1: a text record"):
        survey([TextRecord("x", "f:1")])
    with pytest.raises(DataError, match="no comparison to learn from"):
        survey([pair("a", "a")])


@pytest.mark.parametrize("name", ["hh_harmless", "alpaca_eval_gpt4_pairs", "dpo_demo_300", "politeness_1100"])
def test_real_comparisons_are_read_and_surveyed(name):
    file = Path(__file__).parents[3] / "shared" / "data" / "preference" / f"{name}.jsonl.gz"
    if not file.is_file():
        pytest.skip("the real comparisons are not here")
    kept, found = survey(read_records(file))
    assert found.pairs == len(kept) > 200
    assert found.prompts > 100
    assert all(record.prompt for record in kept)
