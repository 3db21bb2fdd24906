"""Ladlish and small programs: one right answer each, sides apart, and C that does what the Python does."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from stockpot.data.sources import read_records
from stockpot.village import Village
from stockpot.village.language import LADLISH
from stockpot.village.programs import PROGRAM_KINDS


def test_ladlish_has_a_word_for_each_and_rules_for_the_rest():
    assert len(set(LADLISH.values())) == len(LADLISH)
    pairs = {one["prompt"]: one["completion"] for one in Village().translations(limit=4000)}
    into = {asked: said for asked, said in pairs.items() if asked.startswith("Translate into")}
    plain = next(a for a in into if a.split()[3] == a.split()[6].title() == "The" and len(a.split()) == 8)
    the, who, verb, _, what = plain.split(": ")[1].lower().rstrip(".").split()
    words = (LADLISH[one] for one in (the, who, the, what, verb))
    assert into[plain].lower() == " ".join(words) + "."
    many = next(a for a in into if a.split()[3] in ("Two", "Three"))
    assert "im" in into[many].split()[1]


def test_translation_goes_both_ways_and_no_sentence_is_on_both_sides():
    train, val = (
        {one["prompt"].split(": ")[1] for one in Village().translations(side, 1500)}
        for side in ("train", "val")
    )
    assert not train & val
    prompts = [one["prompt"] for one in Village().translations(limit=400)]
    assert 100 < sum(one.startswith("Translate from") for one in prompts) < 300
    assert list(Village().translations(limit=5, start=3)) == list(Village().translations(limit=8))[3:]


def test_python_returns_what_the_cases_say_and_kept_kinds_are_kept():
    train, val = (list(Village().programs(side, 300)) for side in ("train", "val"))
    for one in (*train, *val):
        scope: dict = {}
        exec(f"{one['completion']}\n{one['tests']}", scope)
        assert [scope[one["entry"]](x) for x, _ in one["cases"]] == [result for _, result in one["cases"]]
    assert {one["kind"] for one in train} | {one["kind"] for one in val} == set(PROGRAM_KINDS)
    kept = {one["kind"] for one in val if one["held_out"] == "task"}
    assert kept == {"add_one", "clamp", "product"} and not kept & {one["kind"] for one in train}
    assert not {one["prompt"] for one in train} & {one["prompt"] for one in val}


def test_c_returns_the_same(tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    chosen = {one["kind"]: one for one in Village().programs("val", 300)}
    assert len(chosen) == len(PROGRAM_KINDS)
    parts, calls = ["#include <stdio.h>"], []
    for number, one in enumerate(chosen.values()):
        name = f"f{number}"
        parts.append(one["prompt"].split("\n", 1)[1].replace(f"int {one['entry']}(", f"int {name}("))
        calls += [f'printf("%d\\n", {name}({x}));' for x, _ in one["cases"]]
    (tmp_path / "all.c").write_text("\n".join([*parts, "int main(void) {", *calls, "return 0; }"]))
    subprocess.run([compiler, "-o", tmp_path / "all", tmp_path / "all.c"], check=True)
    printed = subprocess.run([tmp_path / "all"], capture_output=True, text=True, check=True).stdout.split()
    assert [int(one) for one in printed] == [result for one in chosen.values() for _, result in one["cases"]]


def test_both_are_data_sources():
    for name in ("translations", "programs"):
        records = list(read_records(f"village:{name}/val:0:5"))
        assert len(records) == 5
        assert {type(one).__name__ for one in records} == {"CompletionRecord"}
