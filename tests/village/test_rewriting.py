"""Forms of sentences are built again here from a list of verbs written for the test."""

from __future__ import annotations

import re

PAIRS = (
    "walk:walked bake:baked carry:carried paint:painted clean:cleaned open:opened close:closed play:played "
    "help:helped visit:visited wash:washed plant:planted count:counted buy:bought sell:sold write:wrote read:read "
    "find:found bring:brought make:made see:saw eat:ate drink:drank ride:rode sing:sang swim:swam go:went give:gave"
)
VERBS = dict(re.findall(r"(\w+):(\w+)", PAIRS))


def _third_person(verb: str) -> str:
    if verb.endswith(("sh", "ch", "o")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("ry") else verb + "s"


FORMS = {_third_person(verb): (verb, past) for verb, past in VERBS.items()}
FORMS_BY_PAST = {past: verb for verb, past in VERBS.items()}


def rewrite(sentence: str, mode: str) -> str:
    name, *words = sentence.split()
    if words[0] == "will":
        verb, rest = words[1], words[2:]
    elif words[0] in FORMS:
        verb, rest = FORMS[words[0]][0], words[1:]
    else:
        verb, rest = FORMS_BY_PAST[words[0]], words[1:]
    said = {
        "past": VERBS[verb],
        "future": f"will {verb}",
        "present": _third_person(verb),
        "negation": f"does not {verb}",
    }
    return " ".join([name, said[mode], *rest])


def _sentence_of(question: str) -> str:
    """Cut the sentence out: ``TASK: SENTENCE``, ``TASK? SENTENCE`` or ``SENTENCE Say the same …``."""
    return re.split(r"[:?] ", question.split(" Say the same")[0])[-1]


def test_rewritings_are_those_of_an_independent_speaker(village):
    for item in village.questions("val", limit=400, kind="rewriting"):
        question = item["question"]
        mode = next(
            mode
            for mode, cues in {
                "past": ("past", "yesterday"),
                "future": ("future", "tomorrow"),
                "present": ("present", "now?"),
            }.items()
            if any(cue in question for cue in cues)
        )
        assert rewrite(_sentence_of(question), mode) == item["answer"], item


def test_denials_are_those_of_an_independent_speaker(village):
    for item in village.questions("val", limit=300, kind="negation"):
        assert rewrite(item["question"].split(": ")[1], "negation") == item["answer"], item


def test_choices_are_the_four_forms(village):
    for item in village.questions("val", limit=200, kind="rewriting"):
        assert len(set(item["choices"])) == 4
        assert item["answer"] in item["choices"]
