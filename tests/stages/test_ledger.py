"""The ledger: what each line is asked, how gains are paired, and what is skipped with which reason."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from stockpot.cli.main import app
from stockpot.judge.tasks import Item
from stockpot.stages.ledger import Ledger, LedgerConfig, ledger
from stockpot.stages.ledger_asking import Asked, Said, asked_of, worth
from stockpot.stages.ledger_book import Book
from stockpot.stages.ledger_lines import WORDINGS, _Lines
from stockpot.stages.ledger_parts import Parts

NAMES = [
    "random model",
    "n-gram",
    "+ more parameters",
    "+ more data",
    "base",
    "+ better wording",
    "+ few-shot",
    "+ chain of thought",
    "+ retrieval",
    "+ instruction tuning",
    "+ DPO",
    "+ RLHF",
]


def said(worth: float, choice: float | None = None) -> Said:
    return Said("", choice, worth, 10)


def test_gains_are_paired_and_an_ingredient_changes_only_what_it_is_for():
    items = tuple(Item(f"q{n}", f"{n}?", str(n), kind="ab"[n % 2]) for n in range(40))
    book = Book(Ledger("m", "s", None), Asked(items), lambda event: None)
    book.add("first", {one.id: said(0.0) for one in items})
    book.add("second", {one.id: said(2.0) for one in items[:20]})
    book.add("third", {one.id: said(3.0) for one in items[1::2]})
    book.add("beside", {one.id: said(0.0) for one in items}, over="second")
    first, second, third, beside = book.ledger.lines
    assert (first.gain, first.over) == (None, None)
    assert (second.score.value, second.gain.value) == (0.5, 0.5)
    assert (third.score.value, third.gain.value, third.over) == (0.75, 0.25, "second")
    assert third.kinds == {"a": 0.5, "b": 1.0}
    assert third.gain.low > 0.1
    assert "most moved b 50% → 100%" in third.sentence
    assert third.liked.value == pytest.approx((20 * 3 + 10 * 2) / 40)
    assert (beside.over, beside.gain.value, beside.liked_gain.value) == ("second", -0.5, -1.0)
    assert book.ledger.questions[1]["replies"] == dict.fromkeys(("first", "second", "third", "beside"), "")


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Blue", 2),
        ("The answer is blue.", 3),
        ("blue or red", 0),
        ("I do not know.", 1),
        ("", 0),
        ("Is it blue?", 0),
    ],
)
def test_a_reply_is_right_in_a_word_or_in_a_sentence(reply, rating):
    assert worth(Item("q", "Which?", "blue", ("red", "blue")), reply) == rating


def test_a_person_whom_the_question_does_not_name_can_be_the_answer():
    assert worth(Item("q", "Who is Inga's best friend?", "Viola Rossi"), "Viola Rossi") == 2


def test_the_village_brings_news_examples_and_passages():
    asked = asked_of(["village"], limit=3, examples=None, documents=())
    kinds = {item.kind for item in asked.items}
    assert len(kinds) == 15 and "news" in kinds
    assert asked.counted >= {"sums", "steps", "chains"}
    assert len({item.id for item in asked.items}) == len(asked.items)
    assert not {item.question for item in asked.items} & {item.question for item in asked.examples}
    assert 0.2 < asked.chance < 0.35
    assert all(steps and answer.isdigit() for _, steps, answer in asked.worked)


def test_what_does_not_apply_is_skipped_with_its_reason(tiny_base, tmp_path, write_lines):
    data = write_lines("q.jsonl", [{"question": f"Who is {n}?", "answer": "Max"} for n in range(5)])
    found = ledger(tiny_base, LedgerConfig(questions=(data,), limit=4), out=tmp_path / "ledger")
    assert [one.name for one in found.lines] == NAMES
    skipped = {one.name: one.skipped for one in found.lines if one.skipped}
    assert set(skipped) == set(NAMES) - {"random model", "base"}
    assert "trained on" in skipped["n-gram"]
    assert "no kind of question has numbers" in skipped["+ chain of thought"]
    assert skipped["+ DPO"] == "no such model was named"
    assert found.line("base").score.n == 4
    assert found.line("base").choice is None, "there are no choices, and none is made up"
    assert "skipped: there are no documents" in str(found)


def test_a_user_s_own_models_questions_and_documents(tiny_base, tmp_path, write_lines):
    asked = [{"question": f"How many goats has Max{n}?", "answer": f"{n + 2}"} for n in range(6)]
    data = write_lines("q.jsonl", asked)
    examples = write_lines(
        "e.jsonl", [{"question": f"How many cows has Ida{n}?", "answer": "3"} for n in range(5)]
    )
    passages = tmp_path / "farm.txt"
    passages.write_text("\n\n".join(f"Max{n} has {n + 2} goats." for n in range(6)), encoding="utf-8")
    words = [
        "ledger",
        str(tiny_base),
        "--questions",
        data,
        "--examples",
        examples,
        "--documents",
        str(passages),
    ]
    words += ["--text", str(passages), "--tuned", str(tiny_base), "--out", str(tmp_path / "out"), "--json"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.stderr
    value = json.loads(told.stdout)
    done = [one["name"] for one in value["lines"] if not one["skipped"]]
    assert done == [
        name for name in NAMES if name not in ("+ more parameters", "+ more data", "+ DPO", "+ RLHF")
    ]
    lines = {one["name"]: one for one in value["lines"]}
    assert lines["+ retrieval"]["over"] == "+ chain of thought"
    assert lines["+ better wording"]["cost"]["labels"] == 5
    assert lines["n-gram"]["cost"]["tokens"] > 20
    again = Ledger.load(tmp_path / "out" / "ledger.json")
    assert again.to_dict() == value
    svg = (tmp_path / "out" / "ledger.svg").read_text(encoding="utf-8")
    assert "aria-label" in svg and "+ retrieval" in svg


def test_a_kind_of_question_and_what_stands_behind_a_passage_have_their_own_wordings(tiny_base, monkeypatch):
    """One wording for all had answered "who" rightly and lost all reading, so that passages added nothing."""
    form = {
        "who": "Q: ",
        "colour": "Question: ",
        "notices": "Soup",
    }  # how a question must begin to be answered

    def answer(bundle, items, prompts, **how):
        return {one.id: said(2.0 * prompts[one.id].startswith(form[one.kind])) for one in items}

    def of(kind: str, count: int, text: str = "Which one") -> tuple[Item, ...]:
        return tuple(Item(f"{kind}{n}", f"{text} {n}?", f"answer {n}", kind=kind) for n in range(count))

    monkeypatch.setattr("stockpot.stages.ledger_lines.answer", answer)
    notices = of("notices", 6, "Soup is hot. What is hot")
    asked = Asked(
        (*of("who", 3), Item("new", "Who sells soup?", "Ida", kind="notices")),
        (*of("who", 8), *of("colour", 6), *notices),
        passages=("Soup is what Ida sells.",),
        read=("notices",),
    )
    book = Book(Ledger("m", "s", None), asked, lambda event: None)
    lines = _Lines(book, Parts(str(tiny_base)), LedgerConfig())
    lines.wording()
    assert lines.words == WORDINGS["Q and A"]
    assert lines.words_of == {"colour": WORDINGS["question and answer"], "notices": WORDINGS["bare"]}
    lines.retrieval()
    assert lines.words_read == WORDINGS["bare"]
    wording, retrieval = book.ledger.lines
    assert (wording.score.value, retrieval.score.value) == (0.75, 1.0)
    assert (wording.cost.labels, retrieval.cost.labels) == (20, 6)
    assert "another for colour, notices" in wording.sentence and "behind a passage" in retrieval.sentence
