"""The door of the village: what it promises to every caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from stockpot.errors import ConfigError
from stockpot.village import KINDS, VILLAGE_VERSION, Village

# Changing any text changes this: then change VILLAGE_VERSION, and take the new value from the failing test.
FINGERPRINTS = {"5": "ef64dfb0f902d9b1"}

DIGEST = """
import hashlib, json
from stockpot.village import Village
village, parts = Village(seed=0), []
for split in ("train", "val"):
    parts += [*village.documents(split, limit=300), *village.chats(split, limit=300), *village.questions(split, limit=150)]
parts += village.news()
print(hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16])
"""


def _digest(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", DIGEST],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_the_bytes_are_those_of_this_version(hash_seed):
    assert _digest(PYTHONHASHSEED=hash_seed) == FINGERPRINTS[VILLAGE_VERSION]


def test_a_village_is_made_at_once():
    started = time.perf_counter()
    Village(seed=5)
    assert time.perf_counter() - started < 1


def test_equal_settings_give_equal_records():
    one, two = Village(seed=9, people=40), Village(seed=9, people=40)
    assert list(one.documents(limit=100)) == list(two.documents(limit=100))
    assert list(one.chats(limit=100)) == list(two.chats(limit=100))
    assert list(one.questions(limit=100)) == list(two.questions(limit=100))


def test_other_seeds_give_other_records():
    assert list(Village(0).documents(limit=20)) != list(Village(1).documents(limit=20))


@pytest.mark.parametrize("people", [20, 60, 400])
def test_small_and_large_villages_work(people):
    village = Village(seed=1, people=people)
    assert len(list(village.documents(limit=800))) == 800
    assert len(list(village.documents("val", limit=100))) == 100
    assert len(list(village.chats(limit=800))) == 800
    for item in village.questions("val", limit=300):
        assert item["choices"].count(item["answer"]) == 1


def test_the_fourth_choice_is_there_in_the_smallest_village():
    for item in Village(seed=2, people=20).questions("val", limit=60, kind="facts"):
        assert len(set(item["choices"])) == 4


def test_records_are_plain_json(village):
    for records in (village.documents(limit=50), village.chats(limit=50), village.questions(limit=50)):
        for record in records:
            assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize("records", ["documents", "chats", "questions"])
def test_an_unknown_split_is_refused(village, records):
    with pytest.raises(ConfigError, match='no split "test"'):
        getattr(village, records)("test")


@pytest.mark.parametrize(
    ("records", "kind", "near"),
    [("documents", "biografy", "biography"), ("chats", "fact", "facts"), ("questions", "sum", "sums")],
)
def test_an_unknown_kind_is_refused_with_the_nearest(village, records, kind, near):
    with pytest.raises(ConfigError, match=f'Did you mean "{near}"'):
        getattr(village, records)(kind=kind)


def test_callers_find_kinds_and_version(village):
    assert village.question_kinds == KINDS
    assert village.version == VILLAGE_VERSION
    assert len(village.people) == 200


def test_limits_are_kept(village):
    assert len(list(village.documents(limit=0))) == 0
    assert len(list(village.chats(limit=7))) == 7
    assert len(list(village.questions(limit=5, kind="who"))) == 5
