"""The report of a cook: self-contained, and its figures are those of the JSON beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from stockpot.judge.harness import Answer, Report
from stockpot.judge.tasks import Item
from stockpot.stages.report import curve_chart, panel_chart, path_chart, score_chart, write_report
from stockpot.stages.summary import _samples

FIGURES = {
    "title": "What came out <of> the pot",
    "summary": "A sentence.",
    "stages": [{"name": "pretrain", "seconds": 12.0, "result": "fine", "command": "stockpot pretrain"}],
    "scores": [
        {
            "task": "village/a",
            "metric": "exact",
            "model": "base",
            "value": 0.25,
            "low": 0.1,
            "high": 0.4,
            "chance": None,
            "n": 50,
        }
    ],
    "gains": [{"task": "village/a", "value": 0.1, "low": -0.1, "high": 0.3, "reading": "inside the noise"}],
    "samples": [{"question": "<script>alert(1)</script>", "base": "x", "tuned": "y", "answer": "z"}],
    "tokenizer": {"sentence": "One question.", "pieces": ["On", "e"]},
    "environment": {"seed": 0},
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    svg = curve_chart({"training": [(1, 2.0), (2, 1.0)]}, x="step", y="bits", title='a "curve" \\1')
    scores = score_chart([dict(row, chance=0.5) for row in FIGURES["scores"]], title="scores")
    path = write_report(folder, FIGURES, [("Curve", svg, "lower"), ("Scores", scores, "higher")])
    return path.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_the_json_holds(page):
    text, figures = page
    assert figures == FIGURES
    for shown in ("0.250", "0.100 to 0.400", "+0.100", "inside the noise", "stockpot pretrain"):
        assert shown in text
    assert text.count("<svg") == 2
    assert 'aria-label="a &quot;curve&quot; \\1"' in text


def test_nothing_runs_and_nothing_is_fetched(page):
    text = page[0]
    assert "<script" not in text
    assert "What came out &lt;of&gt; the pot" in text
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'"
    assert not re.search(r"style=\"", text), "an inline style would be refused by the policy"
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)


def test_a_step_without_a_number_is_left_out_of_the_curve():
    """A run that passes over bad steps logs them as not finite."""
    points = [(1, 2.0), (2, float("nan")), (3, float("inf")), (4, 1.0)]
    whole = [(1, 2.0), (4, 1.0)]
    for draw in (
        lambda some: curve_chart({"a": some}, x="step", y="bits", title="t"),
        lambda some: panel_chart({"a": some}, x="step", title="t"),
        lambda some: path_chart({"a": some}, [], x="step", y="bits", title="t"),
    ):
        assert _paths(draw(points)) == _paths(draw(whole)) != []


def _paths(svg):
    return re.findall(r' d="([^"]+)"', svg)


def test_a_question_that_fits_one_model_only_is_no_sample():
    def report(ids):
        return Report("m", "plain", answers={"t": [Answer(Item(one, one, "a"), one * 2, {}) for one in ids]})

    assert _samples((report("abc"), report("bc")))[0]["question"] == "b"
    assert _samples((report("a"), report("b"))) == []


def test_long_names_that_differ_at_their_end_can_be_told_apart():
    paths = [f"/home/someone/experiments/2026/november/runs/base-of-a-long-name-{i}" for i in range(3)]
    score = {"task": "bigbench:international_phonetic_alphabet_transliterate", "chance": None}
    score |= {"value": 0.5, "low": 0.4, "high": 0.6}
    drawn = [
        score_chart([score | {"model": path} for path in paths], title="t"),
        curve_chart({path: [(1, 2.0), (2, 1.0)] for path in paths}, x="step", y="bits", title="t"),
        path_chart({path: [(1, 2.0), (2, 1.0)] for path in paths}, [], x="nats", y="bits", title="t"),
    ]
    for svg in drawn:
        assert all(f">{path}</text>" in svg for path in paths)
    assert f">{score['task']}</text>" in drawn[0]


def test_a_single_point_is_seen():
    """One logged step: a line from a point to itself has no ink."""
    for svg in (
        curve_chart({"a": [(1, 2.0)], "b": [(1, 2.0), (2, 1.0)]}, x="step", y="bits", title="t"),
        panel_chart({"a": [(1, 2.0)]}, x="step", title="t"),
    ):
        assert "mark-symbol role-mark layer_1_marks" in svg or 'aria-roledescription="point"' in svg
