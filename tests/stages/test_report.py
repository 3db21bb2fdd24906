"""The report of a cook: self-contained, and its figures are those of the JSON beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from stockpot.stages.report import curve_chart, score_chart, write_report

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
    svg = curve_chart({"training": [(1, 2.0), (2, 1.0)]}, x="step", y="bits", title='a "curve"')
    scores = score_chart([dict(row, chance=0.5) for row in FIGURES["scores"]], title="scores")
    path = write_report(folder, FIGURES, [("Curve", svg, "lower"), ("Scores", scores, "higher")])
    return path.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_the_page_shows_what_the_json_holds(page):
    text, figures = page
    assert figures == FIGURES
    for shown in ("0.250", "0.100 to 0.400", "+0.100", "inside the noise", "stockpot pretrain"):
        assert shown in text
    assert text.count("<svg") == 2
    assert 'aria-label="a &quot;curve&quot;"' in text


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
