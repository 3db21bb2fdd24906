"""Sentences whose grammar is known because they were built from it."""

from __future__ import annotations

from stockpot.judge.probe_data import PIPELINE, read_passages
from stockpot.village import Village


def records(count=200, seed=0):
    return list(Village(seed).parses(limit=count))


def test_trees_have_one_root_and_no_circle():
    for record in records():
        for one in record["sentences"]:
            head = one["head"]
            assert head.count(0) == 1 and one["deprel"][head.index(0)] == "root"
            for start in range(len(head)):
                seen, at = set(), start + 1
                while at:
                    assert at not in seen
                    seen.add(at)
                    at = head[at - 1]


def test_layers_are_as_long_as_the_words_and_phrases_nest():
    for record in records():
        for one in record["sentences"]:
            size = len(one["tokens"])
            assert all(len(one[name]) == size for name in ("upos", "xpos", "head", "deprel"))
            assert one["text"] == " ".join(one["tokens"][:-1]) + "."
            spans = [(a, b) for a, b, _ in one["constituents"]]
            assert (0, size) in spans
            for a, b in spans:
                assert all(d <= a or b <= c or (a <= c and d <= b) or (c <= a and b <= d) for c, d in spans)


def test_whoever_is_meant_has_the_pronouns_gender_and_was_named():
    from stockpot.village.lexicon import WOMEN

    pronouns = {"She": True, "her": True, "He": False, "him": False}
    met = set()
    for record in records():
        words = [word for one in record["sentences"] for word in one["tokens"]]
        for chain in record["coref"]:
            spelled = [words[a:b] for a, b in chain]
            for mention in spelled[1:]:
                if mention[0] in pronouns:
                    assert (spelled[0][0] in WOMEN) == pronouns[mention[0]]
                else:
                    assert mention == ["it"] and spelled[0][0] in ("a", "the")
                met.add(mention[0])
    assert met == {*pronouns, "it"}


def test_predicates_have_their_arguments():
    for record in records(50):
        for one in record["sentences"]:
            (frame,) = one["srl"]
            assert one["upos"][frame["pred"]] == "VERB"
            assert frame["args"][0][2] == "ARG0"


def test_training_and_test_share_no_text():
    train = {one["sentences"][0]["text"] + one["sentences"][1]["text"] for one in records(400)}
    test = {one["sentences"][0]["text"] + one["sentences"][1]["text"] for one in Village().parses("val", 100)}
    assert not train & test


def test_a_probe_finds_all_six_tasks_in_them():
    passages = read_passages(["village:3"], limit=60)
    assert {task for passage in passages for task in passage.targets} == set(PIPELINE)
    assert passages == read_passages(["village:3"], limit=60)
