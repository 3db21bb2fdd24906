"""The page with every prompt and answer: what was judged stands in it, and nothing in it can run or fetch."""

from __future__ import annotations

import json
import re

import pytest

from stockpot.judge.harness import evaluate
from stockpot.judge.page import page_of, write_page
from stockpot.judge.tasks import Item, Scorer, Task

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def report(make_bundle):
    items = tuple(
        Item(
            f"i{n}", f"What is {n}?", "yes", ("yes", NASTY), prompt=f"{NASTY} {n}\nAnswer:", kind="ab"[n % 2]
        )
        for n in range(4)
    )
    found = evaluate(make_bundle(context=512), [Task(f"some {NASTY}", "1", items, Scorer(kind="choices"))])
    found.model = f"model {NASTY}"
    found.remarks.append(NASTY)
    return found


def test_every_prompt_and_answer_stands_in_the_page(report, tmp_path):
    page = write_page(tmp_path, report).read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    (answers,) = data.values()
    assert [one["id"] for one in answers] == ["i0", "i1", "i2", "i3"]
    assert answers[0]["prompt"] == f"{NASTY} 0\nAnswer:"
    assert {one["is_right"] for one in answers} <= {True, False}
    assert answers[0]["choices"][0]["worth"] == 1
    for row in report.rows:
        assert f"<td class=n>{row.estimate.value:.3f}</td>" in page
    assert "By sort of question" in page


def test_no_text_of_a_model_or_data_set_becomes_markup(report):
    page = page_of(report, report)
    assert page.count("<script") == 2
    assert "<img" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert "innerHTML" not in page
    assert "inside the noise" in page, "a model against itself"
