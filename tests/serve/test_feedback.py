"""The file of votes: whole after any kill, no vote twice, none lost, none left after it was taken back."""

from __future__ import annotations

import json
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockpot.data.records import PreferenceRecord
from stockpot.data.sources import fingerprint_sources, read_records
from stockpot.errors import DataError, ServeError
from stockpot.serve.feedback import DiskFullError, Feedback, Pair, Thumb, Vote, prompt_id

ASKED = [{"role": "user", "content": "Name a river."}]


def pair(id="p", prompt=ASKED, answers=("The Elbe.", "A mountain."), models=("old", "new")):
    return Pair(
        id, prompt_id(prompt), prompt, answers, models, ({"seed": 1}, {"seed": 2, "top_p": 0.9}), "file"
    )


@pytest.fixture
def feedback(tmp_path):
    opened = Feedback(tmp_path / "feedback.db")
    yield opened
    opened.close()


def test_a_vote_is_a_preference_record_that_training_reads_from_the_file_itself(feedback):
    feedback.add_pair(pair())
    assert feedback.add_vote(Vote("v", "p", "b", "Ada", "it is one"))
    (record,) = read_records(
        feedback.path
    )  # while the server has the file open, and the vote is in the log only
    assert isinstance(record, PreferenceRecord)
    assert (record.chosen, record.rejected, record.annotator, record.tie) == (
        "A mountain.",
        "The Elbe.",
        "Ada",
        False,
    )
    assert record.prompt[0].content == "Name a river."
    (exported,) = feedback.records()
    assert exported["chosen_model"] == "new" and exported["rejected_model"] == "old"
    assert exported["chosen_sampling"] == {"seed": 2, "top_p": 0.9} and exported["why"] == "it is one"
    assert exported["chosen_side"] == ("left" if feedback.left_side("p", "Ada") == "b" else "right")
    assert exported["source"] == "file" and exported["created"]


def test_a_runs_manifest_tells_one_set_of_votes_from_another(feedback):
    feedback.add_pair(pair())
    feedback.add_vote(Vote("v", "p", "b", "Ada"))
    (before,) = fingerprint_sources(feedback.path)
    assert before["votes"] == 1 and before["bytes"] > 0
    assert fingerprint_sources(feedback.path) == [before]
    feedback.add_vote(Vote("w", "p", "a", "Grace"))  # in the log beside the file
    assert fingerprint_sources(feedback.path)[0]["sha256"] != before["sha256"]


def test_content_decides_that_a_file_holds_votes(feedback, tmp_path):
    feedback.add_pair(pair())
    feedback.add_vote(Vote("v", "p", "a", "Ada"))
    feedback.close()
    renamed = tmp_path / "votes.txt"
    feedback.path.rename(renamed)
    assert [record.kind for record in read_records(renamed)] == ["preference"]


def test_ties_are_comparisons_and_skips_are_not(feedback):
    for number, choice in enumerate(("tie", "skip")):
        feedback.add_pair(pair(str(number), [{"role": "user", "content": choice}]))
        feedback.add_vote(Vote(f"v{number}", str(number), choice, "Ada"))
    (record,) = read_records(feedback.path)
    assert record.tie and record.prompt[0].content == "tie"
    assert feedback.counts("Ada") == {
        "votes": 1, "ties": 1, "skips": 1, "pairs": 2, "prompts": 0, "thumbs": 0, "mine": 2,
    }  # fmt: skip


def test_a_vote_that_is_sent_twice_is_there_once(feedback):
    feedback.add_pair(pair())
    vote = Vote("v", "p", "a", "Ada")
    assert feedback.add_vote(vote) and not feedback.add_vote(vote)
    assert len(list(feedback.records())) == 1
    with pytest.raises(ServeError, match="another vote"):
        feedback.add_vote(Vote("v", "p", "b", "Ada"))
    with pytest.raises(ServeError, match="has voted"):
        feedback.add_vote(Vote("w", "p", "b", "Ada"))
    with pytest.raises(ServeError, match="never shown"):
        feedback.add_vote(Vote("x", "no such pair", "b", "Ada"))


def test_undo_leaves_nothing_of_the_vote_in_any_file(feedback):
    feedback.add_pair(pair())
    feedback.add_vote(Vote("v", "p", "a", "Ada", "a-reason-to-be-forgotten"))
    assert b"a-reason-to-be-forgotten" in b"".join(
        path.read_bytes() for path in feedback.path.parent.iterdir()
    )
    assert feedback.remove_vote("v")["pair"] == "p" and feedback.remove_vote("v") is None
    feedback.close()
    assert b"a-reason-to-be-forgotten" not in b"".join(
        path.read_bytes() for path in feedback.path.parent.iterdir()
    )
    with pytest.raises(DataError, match="empty"):
        list(read_records(feedback.path))


def test_a_full_disk_acknowledges_nothing_and_loses_nothing(feedback):
    feedback.add_pair(pair())
    feedback.add_vote(Vote("v", "p", "a", "Ada"))
    (pages,) = feedback._one("PRAGMA page_count")
    feedback._one(f"PRAGMA max_page_count = {pages}")  # SQLite answers as it does when the disk is full
    with pytest.raises(DiskFullError, match="nothing was"):
        for number in range(1000):
            feedback.add_pair(pair(f"p{number}", answers=("x" * 4000, "y" * 4000)))
    feedback._one("PRAGMA max_page_count = 100000")
    assert len(list(feedback.records())) == 1
    feedback.add_pair(pair("again"))
    assert feedback.add_vote(Vote("w", "again", "b", "Ada"))


def test_a_person_sees_pairs_that_others_rated_first_and_never_one_twice(feedback):
    for id in ("one", "two"):
        feedback.add_pair(pair(id, [{"role": "user", "content": id}]))
    feedback.add_vote(Vote("v", "two", "a", "Ada"))
    assert feedback.next_pair("Ben", ("old", "new"))["id"] == "two"
    assert feedback.next_pair("Ben", ("new", "old"), taken=("two",))["id"] == "one"
    assert feedback.next_pair("Ada", ("old", "new"))["id"] == "one"
    assert feedback.next_pair("Ben", ("old", "other")) is None


def test_sides_are_tossed_fairly_and_stay(feedback):
    sides = [feedback.left_side(str(number), "Ada") for number in range(400)]
    assert 150 < sides.count("a") < 250  # five standard deviations around 200
    assert sides == [feedback.left_side(str(number), "Ada") for number in range(400)]
    assert sides != [feedback.left_side(str(number), "Ben") for number in range(400)]


def test_raters_who_agree_have_alpha_one(feedback):
    for number in range(4):
        feedback.add_pair(pair(str(number)))
        for who in ("Ada", "Ben"):
            feedback.add_vote(Vote(f"{number}{who}", str(number), "ab"[number % 2], who))
    assert feedback.agreement() == {"raters": 2, "pairs": 4, "agreement": 1.0, "alpha": 1.0}


def test_a_thumb_queues_its_prompt_and_goes_without_a_trace(feedback):
    feedback.add_thumb(Thumb("t", ASKED, "The Elbe.", "old", {"seed": 1}, False, "Ada"))
    waiting = feedback.next_prompt(("old", "new"))
    assert (waiting["source"], waiting["answer"], waiting["model"]) == ("thumb", "The Elbe.", "old")
    assert feedback.next_prompt(("old", "new"), taken=(waiting["id"],)) is None
    assert feedback.remove_thumb("t") and not feedback.remove_thumb("t")
    assert feedback.next_prompt(("old", "new")) is None


def test_a_prompt_is_asked_once_for_each_two_models(feedback):
    assert feedback.add_prompt(ASKED, "file") and not feedback.add_prompt(ASKED, "chat")
    feedback.add_pair(pair())
    assert feedback.next_prompt(("new", "old")) is None
    assert feedback.next_prompt(("new", "newer"))["source"] == "file"


@pytest.mark.parametrize("content", [b"{}" * 4000, b"SQLite format 3\0" + bytes(5000)])
def test_what_is_no_file_of_votes_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ServeError, match="cannot hold votes"):
        Feedback(path)
    assert path.read_bytes() == content


def test_other_and_damaged_databases_are_named(tmp_path, feedback):
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE things (name TEXT)")
    database.close()
    with pytest.raises(DataError, match="cannot be read as votes"):
        list(read_records(other))
    content = other.read_bytes()
    with pytest.raises(ServeError, match="holds something else"):
        Feedback(other)
    assert other.read_bytes() == content
    feedback.add_pair(pair())
    feedback.add_vote(Vote("v", "p", "a", "Ada"))
    feedback.close()
    data = bytearray(feedback.path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (tmp_path / "damaged.db").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as votes"):
        list(read_records(tmp_path / "damaged.db"))


def killed_writers(path: Path, rounds: int) -> set[str]:
    """Let four processes vote and kill one every moment; return the ids of the votes they were told are kept."""
    child = [sys.executable, str(Path(__file__).with_name("writer_child.py")), str(path)]
    told: set[str] = set()
    dice = random.Random(0)
    logs = [path.parent / f"log{number}" for number in range(4)]

    def start(number: int) -> subprocess.Popen[bytes]:
        with logs[number].open("ab") as log:
            return subprocess.Popen([*child, f"rater {number}"], stdout=log, stderr=subprocess.PIPE)

    writers = [start(number) for number in range(4)]
    try:
        while not all(log.stat().st_size for log in logs):  # all four are writing
            assert all(one.poll() is None for one in writers), [
                one.stderr.read() for one in writers if one.poll()
            ]
            time.sleep(0.02)
        for _ in range(rounds):
            time.sleep(dice.uniform(0.01, 0.2))
            number = dice.randrange(4)
            assert writers[number].poll() is None, writers[number].stderr.read()
            writers[number].kill()
            writers[number].wait()
            writers[number].stderr.close()
            writers[number] = start(number)
    finally:
        for one in writers:
            one.kill()
            one.wait()
            one.stderr.close()
    for log in logs:
        told |= {line for line in log.read_text().split("\n")[:-1] if len(line) == 32}
    return told


def all_there(path: Path, told: set[str]) -> None:
    feedback = Feedback(path)
    try:
        assert [tuple(row) for row in feedback._all("PRAGMA integrity_check")] == [("ok",)]
        found = list(feedback.records())
    finally:
        feedback.close()
    ids = [record["vote"] for record in found]
    assert len(ids) == len(set(ids)) and told <= set(ids) and len(told) > 10
    for record in found:
        assert record["chosen"] == f"one {record['vote']}" and record["why"] == "because"
        json.dumps(record)
    assert len(list(read_records(path))) == len(found)


def test_kill_9_loses_no_acknowledged_vote(tmp_path):
    path = tmp_path / "feedback.db"
    all_there(path, killed_writers(path, 4))


@pytest.mark.slow
def test_a_hundred_kills_lose_no_acknowledged_vote(tmp_path):
    path = tmp_path / "feedback.db"
    all_there(path, killed_writers(path, 100))
