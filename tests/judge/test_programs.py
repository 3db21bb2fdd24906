"""pass@k by hand, and programs for the forms of HumanEval, MBPP, and C to Python."""

# ruff: noqa: E501 - each program stands on its line

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confining import confined

from stockpot.errors import ConfigError, DataError
from stockpot.judge.asking import Outcome
from stockpot.judge.harness import evaluate
from stockpot.judge.programs import c_tests, check_running, pass_at_k, program_of, run_programs
from stockpot.judge.readings import READINGS
from stockpot.judge.sandbox import Limits, Verdict, run_tests
from stockpot.judge.tasks import Item, Scorer, Task

ADD_ONE = {  # after the lecture: add one with bit operations only, carry by carry
    "id": "add_one",
    "function": "add_one",
    "code": "int add_one(int x) {\n  int m = 1;\n  while (x & m) {\n    x = x ^ m;\n    m <<= 1;\n  }\n  x = x ^ m;\n  return x;\n}\n",
    "begin": "def add_one(x):",
    "calls": [[0], [1], [7], [41], [255]],
}
RIGHT = "    m = 1\n    while x & m:\n        x ^= m\n        m <<= 1\n    return x ^ m\n"


def item_of(reading, record):
    fields = READINGS[reading](record, "here:1")
    return Item("one", "", fields.answer, facts=fields.facts)


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 2, 1) == 0.5
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)
    assert pass_at_k(3, 0, 3) == 0
    assert pass_at_k(3, 3, 1) == 1
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(3, 1, 4)


def test_nothing_runs_without_leave():
    with pytest.raises(ConfigError, match="--run-code"):
        check_running(False)


def test_a_program_is_what_was_given_and_what_was_written_or_a_fenced_block():
    assert program_of("    return 1", "def f():\n") == "def f():\n    return 1"
    assert program_of("Here:\n```python\ndef f(): return 2\n```\nDone.") == "def f(): return 2\n"


@confined
def test_the_lectures_c_function_is_run_and_its_translation_judged():
    item = item_of("translate", ADD_ONE)
    assert c_tests(item.facts).splitlines()[3] == "assert add_one(41) == 42"
    answers = run_programs(
        [item, item],
        [Outcome(replies=(RIGHT, "    return x\n")), Outcome(replies=("    return x + 2\n", "    x\n"))],
        Scorer(kind="code", samples=2),
    )
    assert [answer.scores["pass@1"] for answer in answers] == [0.5, 0.0]
    assert answers[0].note == "1 of 2 pass"
    assert answers[0].reply == RIGHT
    assert "AssertionError" in answers[1].note


@confined
@pytest.mark.parametrize(
    ("source", "program"),
    [
        ("unsigned long f(int x) { return 0UL - x; }", "def f(x): return 2**64 - x"),
        ("double f(int x) { return (x - 1.0) / (x - 1.0); }", "def f(x): return float('nan')"),
        ("double f(int x) { return x / 0.0; }", "def f(x): return float('inf')"),
    ],
)
def test_results_at_the_edge_of_c_are_compared_as_they_are(source, program):
    tests = c_tests({"c": source, "function": "f", "calls": [[1]]})
    assert run_tests(program, tests, entry=["f"]).passed
    assert not run_tests("def f(x): return 7", tests, entry=["f"]).passed


def test_equal_programs_are_not_drawn_ten_times(make_bundle):
    with pytest.raises(ConfigError, match="temperature 0"):
        evaluate(
            make_bundle(), [Task("t", "1", (item_of("translate", ADD_ONE),), Scorer(kind="code", samples=10))]
        )


@confined
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("int f(int x) { return y; }", "does not compile"),
        ("int g(int x) { return x; }", "no function f"),
        ("char *f(int x) { return 0; }", "gives"),
        ("int f(int *x) { return *x; }", "more than numbers"),
        ('#include <stdio.h>\nint f(int x) { printf("1 "); return x; }', "something of its own"),
        ("int f(int x) { for (;;); }", "C source"),
    ],
)
def test_a_c_source_that_cannot_be_compared_is_told(source, said, monkeypatch):
    import stockpot.judge.programs as programs

    run = programs.run_c
    monkeypatch.setattr(programs, "run_c", lambda text: run(text, Limits(wall_s=3.0)))
    verdict = c_tests({"c": source, "function": "f", "calls": [[1]]})
    assert isinstance(verdict, Verdict)
    assert said in verdict.why


@confined
def test_broken_numbers_are_compared_nearly():
    facts = {"c": "double f(double x) { return x / 3; }", "function": "f", "calls": [[1.0], [2]]}
    tests = c_tests(facts)
    assert "isclose(f(1.0)" in tests


HUMANEVAL = {
    "task_id": "T/0",
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """ Double each.\n    """\n',
    "entry_point": "double",
    "canonical_solution": "    return [2 * x for x in xs]\n",
    "test": "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n    assert candidate([]) == []\n",
}
MBPP = {
    "task_id": 12,
    "text": "Write a function to add two numbers.",
    "code": "def sum(a, b):\n    return a + b",
    "test_setup_code": "",
    "test_list": ["assert sum(1, 2) == 3", "assert sum(0, 0) == 0"],
}
TRANSLATED = {
    "id": 3,
    "cpp": {"declaration": "int twice(int n){\n", "canonical_solution": "    return 2 * n;\n}\n"},
    "python": {
        "declaration": 'def twice(n):\n    "',
        "canonical_solution": "    return 2 * n\n",
        "test": "def check(twice):\n    assert twice(4) == 8\n\ncheck(twice)",
    },
}


@confined
@pytest.mark.parametrize(
    ("reading", "record"), [("humaneval", HUMANEVAL), ("mbpp", MBPP), ("translate", TRANSLATED)]
)
def test_the_known_solution_passes_and_a_wrong_one_does_not(reading, record):
    item = item_of(reading, record)
    wrong = item.answer.replace("2 *", "3 *").replace("a + b", "a - b")
    assert wrong != item.answer
    good, bad = run_programs(
        [item, item], [Outcome(replies=(item.answer,)), Outcome(replies=(wrong,))], Scorer(kind="code")
    )
    assert good.scores["pass@1"] == 1, good.note
    assert bad.scores["pass@1"] == 0
    assert bad.note


@pytest.mark.parametrize(
    ("reading", "record", "said"),
    [
        ("humaneval", {"prompt": "x"}, "'test' is missing"),
        ("mbpp", MBPP | {"test_list": []}, "no tests"),
        ("translate", ADD_ONE | {"calls": []}, "calls"),
        ("translate", ADD_ONE | {"function": None}, "'function' is missing"),
        ("translate", TRANSLATED | {"python": {"declaration": "x"}}, "names no function"),
    ],
)
def test_a_record_without_tests_is_no_item(reading, record, said):
    with pytest.raises(DataError, match=said):
        READINGS[reading](record, "here:1")


@confined
def test_the_pairs_of_the_examples_folder_are_right():
    """C and Python of each pair agree; the first one is the lecture's."""
    lines = (
        (Path(__file__).parents[2] / "examples" / "translate.jsonl").read_text(encoding="utf-8").splitlines()
    )
    items = [item_of("translate", json.loads(line)) for line in lines]
    answers = run_programs(items, [Outcome(replies=(item.answer,)) for item in items], Scorer(kind="code"))
    assert [answer.scores["pass@1"] for answer in answers] == [1.0] * 4, [answer.note for answer in answers]
