"""Results go to stdout as text or JSON; progress goes to stderr."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stockpot.cli import show
from stockpot.cli.grammar import Common


def test_a_table_is_aligned_and_numbers_stand_at_the_right():
    text = show.table(["name", "loss"], [["a", 1.5], ["longer", None], ["b", 12.25]])
    assert text.splitlines() == [
        "name     loss",
        "------  -----",
        "a         1.5",
        "longer      -",
        "b       12.25",
    ]


def test_facts_leave_out_what_is_unknown():
    assert show.facts({"kind": "run", "error": None, "stages": ["a", "b"]}) == "kind    run\nstages  a, b"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (7, "0:07"), (59.6, "1:00"), (750, "12:30"), (3725, "1:02:05")]
)
def test_durations(seconds, text):
    assert show.duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(312, "312 B"), (1536, "1.5 KiB"), (5 * 2**40, "5120.0 GiB")])
def test_sizes(number, text):
    assert show.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(950, "950"), (12_345, "12.3 k"), (1.5e6, "1.5 M"), (2e12, "2000.0 G")]
)
def test_counts(number, text):
    assert show.count(number) == text


def test_json_is_valid_whatever_is_in_it(capsys):
    show.document({"a": math.nan, "b": Path("x"), "c": {1: (math.inf, 2)}, "d": "Kürbis"})
    line = capsys.readouterr().out
    assert json.loads(line) == {"a": None, "b": "x", "c": {"1": [None, 2]}, "d": "Kürbis"}
    assert "Kürbis" in line


def test_a_reading_marks_what_counts_in_the_loss():
    pieces = [{"text": "Hi ", "tokens": 2, "counts": False}, {"text": "there", "tokens": 1, "counts": True}]
    assert show.reading(pieces) == "Hi «there»\n3 tokens, 1 count"


EVENTS = [
    {"kind": "note", "text": "early"},
    {"kind": "stage", "name": "pretrain [tiny]"},
    {"kind": "step", "step": 1, "steps": 3, "loss": 2.5, "tokens_per_s": 12_345.0, "time_left_s": 65.0},
    {"kind": "step", "step": 2, "steps": 3, "loss": 2.25},
    {"kind": "note", "text": "val loss [3] 2.0"},
    {"kind": "step", "step": 3, "steps": 3, "loss": math.nan, "time_left_s": math.inf},
    {"kind": "stage", "name": "eval"},
    {"kind": "step", "step": 5},
]


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys):
    with show.progress(Common()) as report:
        for event in EVENTS:
            report(event)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "early",
        "pretrain [tiny] …",
        "pretrain [tiny]: step 1/3  loss 2.500  12.3 k tokens/s  1:05 left",
        "pretrain [tiny]: val loss [3] 2.0",
        "pretrain [tiny]: step 3/3  loss nan",
        "eval …",
        "eval: step 5",
    ]


def test_learning_from_rewards_is_told_by_what_it_earns_and_where_it_has_gone(capsys):
    """A line held the loss, which says nothing of either."""
    with show.progress(Common()) as progress:
        progress({"kind": "step", "step": 2, "steps": 2, "loss": -0.01, "reward": 0.5, "kl": 1.25})
    assert capsys.readouterr().err == "step 2/2  loss -0.010  reward 0.5  kl 1.25\n"


def test_quiet_means_nothing_on_stderr(capsys):
    with show.progress(Common(quiet=True)) as report:
        for event in EVENTS:
            report(event)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_bars_on_stderr(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with show.progress(Common()) as report:
        for event in EVENTS:
            report(event)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pretrain [tiny]" in printed.err
    assert "3/3" in printed.err
    assert "val loss [3] 2.0" in printed.err


def test_control_characters_of_a_file_do_nothing_on_a_terminal(monkeypatch):
    pieces = [{"text": "a\x1b[2Jb", "tokens": 1, "counts": counts} for counts in (True, False)]
    assert show.facts({"text": "a\x1b[2Jb"}) == "text  a\x1b[2Jb"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert show.facts({"text": "a\x1b[2Jb", "list": ["\x9b"]}) == "text  a\ufffd[2Jb\nlist  \ufffd"
    assert "a\ufffd[2Jb" in show.reading(pieces)
    assert "\x1b[2J" not in show.reading(pieces) + show.table(["x"], [["\x1b[2J"]])
