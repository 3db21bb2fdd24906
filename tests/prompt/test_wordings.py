"""Task files are checked, rendered in the sandbox, and what stands in a field never becomes a template."""

from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.prompt.wordings import find_asking, shipped_askings

MINE = """
name = "colours"
[fields]
text = []
[labels]
warm = ["red"]
cold = []
[wordings.plain]
text = "{{ text }} is"
[wordings.shout]
text = "{{ text | upper }} IS"
words = { warm = "WARM", cold = "COLD" }
"""


@pytest.fixture
def mine(tmp_path):
    def write(text=MINE):
        path = tmp_path / "colours.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("name", shipped_askings())
def test_every_shipped_task_has_twenty_wordings_that_render(name):
    asking = find_asking(name)
    assert len(asking.wordings) >= 20
    texts = {
        asking.render(wording, [dict.fromkeys(asking.fields, "zebra")])[0] for wording in asking.wordings
    }
    assert len(texts) == len(asking.wordings)
    assert all("zebra" in text and "{{" not in text for text in texts)


def test_the_lecture_asks_about_supper_and_dinner_in_its_three_wordings():
    asking = find_asking("lecture")
    (item,) = asking.items
    bare, question, yes_or_no = (
        asking.render(name, [item])[0] for name in ("bare", "question", "question-yes-or-no")
    )
    assert bare == "John ate pasta for supper. John ate pasta for dinner."
    assert question.startswith("John ate pasta for supper. Can we infer")
    assert yes_or_no == f"{question} Yes or no?"
    assert asking.words_of("bare")["entailment"] == "entailment"
    assert asking.words_of("question-yes-or-no")["entailment"] == "Yes"


def test_a_file_of_ones_own_is_read(mine):
    asking = find_asking(mine())
    assert asking.render("shout", [{"text": "ash"}]) == ["ASH IS"]
    assert asking.words_of("plain") == {"warm": "warm", "cold": "cold"}
    assert asking.label_of("red") == "warm"
    assert asking.label_of("green") is None
    assert list(asking.select(["shout"]).wordings) == ["shout"]


def test_a_field_is_a_value_and_never_a_template(mine):
    hostile = "{{ 7 * 7 }}{% for x in range(9) %}!{% endfor %}"
    assert find_asking(mine()).render("plain", [{"text": hostile}]) == [f"{hostile} is"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"{{ text }} is"', '"{{ text.__class__ }}"', "__class__"),
        ('"{{ text }} is"', '"{{ text"', "wording plain of colours"),
        ("cold = []", "cold = []\nnone_such = []", "no word for none_such"),
        ("text = []", "text = []\n[wrodings]", "wordings"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(mine, before, after, said):
    with pytest.raises(ConfigError, match=said):
        find_asking(mine(MINE.replace(before, after, 1))).render("plain", [{"text": "ash"}])


def test_an_unknown_task_or_wording_names_those_there_are():
    with pytest.raises(ConfigError, match="sentiment"):
        find_asking("sentimnet")
    with pytest.raises(ConfigError, match="question-yes-or-no"):
        find_asking("nli").select(["yes-or-no"])
