"""Annotated text of every form becomes passages of words with labelled spans."""

from __future__ import annotations

import json

import pytest

from stockpot.errors import DataError
from stockpot.judge.probe_data import read_passages, split_passages

SENTENCE = {
    "id": "doc1-0001",
    "text": "Mara didn't sleep.",
    "tokens": ["Mara", "did", "n't", "sleep", "."],
    "upos": ["PROPN", "AUX", "PART", "VERB", "PUNCT"],
    "xpos": ["NNP", "VBD", "RB", "VB", "."],
    "head": [4, 4, 4, 0, 4],
    "deprel": ["nsubj", "aux", "advmod", "root", "punct"],
    "constituents": [[0, 5, "S"], [0, 1, "NP-SBJ"], [1, 4, "VP"], [1, 4, "X"]],
    "srl": [{"pred": 3, "roleset": "sleep.01", "args": [[0, 1, "ARG0"], [2, 3, "R-ARG1"]]}],
}
CONLLU = """# newdoc id = n-1
# sent_id = n-1
# text = They didn't.
1\tThey\tthey\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2-3\tdidn't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdid\tdo\tAUX\tVBD\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\t_\t_\t2\tadvmod\t_\t_
3.1\tgo\tgo\tVERB\t_\t_\t_\t_\t_\t_
4\t.\t.\tPUNCT\t.\t_\t2\tpunct\t_\t_

"""


@pytest.fixture
def passages_of(tmp_path):
    def read(records, name="a.jsonl", **options):
        path = tmp_path / name
        text = records if isinstance(records, str) else "".join(json.dumps(one) + "\n" for one in records)
        path.write_text(text, encoding="utf-8")
        return read_passages([path], limit=100, **options)

    return read


def test_a_sentence_with_layers(passages_of):
    (passage,) = passages_of([SENTENCE])
    assert [passage.text[a:b] for a, b in passage.words] == SENTENCE["tokens"]
    assert passage.group == "doc1"
    found = passage.targets
    assert found["pos"][0] == ((0, 1), None, "NNP")
    assert [(t.first, t.second, t.label) for t in found["dependencies"]][:2] == [
        ((0, 1), (3, 4), "nsubj"),
        ((1, 2), (3, 4), "aux"),
    ]
    assert [(t.first, t.label) for t in found["constituents"]] == [
        ((0, 5), "S"),
        ((0, 1), "NP"),
        ((1, 4), "VP"),
    ]
    assert found["roles"] == (((3, 4), (0, 1), "ARG0"),)  # references are left out


def test_conllu_skips_ranges_and_empty_nodes(passages_of):
    (passage,) = passages_of(CONLLU, "a.conllu")
    assert passage.text == "They didn't." and len(passage.words) == 4
    assert [t.label for t in passage.targets["pos"]] == ["PRP", "VBD", "PART", "."]
    assert [t.second for t in passage.targets["dependencies"]] == [(1, 2), (1, 2), (1, 2)]


def test_a_row_of_conllu_with_too_few_columns_is_named(passages_of):
    with pytest.raises(DataError, match=r"a\.conllu:1: a row of CoNLL-U has 10 columns"):
        passages_of("1\tThey\tthey\n\n", "a.conllu")


def document(sentences=3):
    one = {
        "text": "Mara met Theo.",
        "tokens": ["Mara", "met", "Theo", "."],
        "xpos": ["NNP", "VBD", "NNP", "."],
        "ptb": "(ROOT (S (NP-SBJ (NNP Mara)) (VP (VBD met) (NP (NNP Theo))) (. .)))",
    }
    spans = [[4 * i, 4 * i + 1] for i in range(sentences)], [[4 * i + 2, 4 * i + 3] for i in range(sentences)]
    people = [[*span, "person", True, ""] for spans_of in spans for span in spans_of]
    return {"doc": "d", "sentences": [one] * sentences, "entities": people, "coref": list(spans)}


def test_a_documents_sentences_are_read_together(passages_of):
    (passage,) = passages_of([document()])
    assert len(passage.words) == 12 and passage.text.count("Mara") == 3
    assert [(t.first, t.label) for t in passage.targets["constituents"]][:4] == [
        ((0, 4), "S"),
        ((0, 1), "NP"),
        ((1, 3), "VP"),
        ((2, 3), "NP"),
    ]
    assert len(passage.targets["entities"]) == 6
    pairs = passage.targets["coreference"]
    assert {t.label for t in pairs} == {"same", "other"}
    assert sum(t.label == "same" for t in pairs) == sum(t.label == "other" for t in pairs)
    words = [passage.text[a:b] for a, b in passage.words]
    for target in pairs:
        assert (words[target.first[0]] == words[target.second[0]]) == (target.label == "same")
        assert target.first[1] <= target.second[0]  # the earlier mention stands first


def test_a_long_document_becomes_several_passages(passages_of):
    passages = passages_of([document(40)])
    assert [len(one.words) for one in passages] == [60, 60, 40]
    assert all(t.first[1] <= len(one.words) for one in passages for t in one.targets["entities"])


def test_tags_of_entities_join_into_spans(passages_of):
    record = {"tokens": ["New", "York", "is", "big"], "ner": ["B-place", "I-place", "O", "O"]}
    (passage,) = passages_of([record])
    assert passage.targets["entities"] == (((0, 2), None, "place"),) and passage.text == "New York is big"


def test_a_pronoun_with_two_names(passages_of):
    text = "Ann saw Bea. She waved."
    record = {"Text": text, "Pronoun": "She", "Pronoun-offset": "13", "URL": "u"}
    record |= {"A": "Ann", "A-offset": 0, "A-coref": "TRUE", "B": "Bea", "B-offset": 8, "B-coref": "FALSE"}
    (passage,) = passages_of([record])
    assert passage.targets["coreference"] == (((0, 1), (4, 5), "same"), ((2, 3), (4, 5), "other"))


def test_spans_with_labels(passages_of):
    record = {"text": "a b c", "targets": [{"span1": [0, 1], "span2": [1, 3], "label": "x"}], "task": "mine"}
    (passage,) = passages_of([record])
    assert passage.targets == {"mine": (((0, 1), (1, 3), "x"),)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"constituents": [[0, 9, "S"]]}, r"constituents: the span \[0, 9\] is outside the 5 tokens"),
        ({"head": [4]}, "the annotation does not fit"),
        ({"srl": [{"pred": "x", "args": [[0, 1, "A"]]}]}, "the annotation does not fit"),
    ],
)
def test_annotation_that_does_not_fit_is_named(passages_of, change, message):
    with pytest.raises(DataError, match=f"a.jsonl:1: {message}"):
        passages_of([SENTENCE | change])


def test_a_record_without_annotation_is_refused(passages_of):
    with pytest.raises(DataError, match="no annotation"):
        passages_of([{"text": "only text"}])


def test_the_limit_is_shared_by_the_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        lines = [json.dumps(SENTENCE | {"id": f"{name}{i}-1"}) + "\n" for i in range(30)]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    found = read_passages([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], limit=20)
    assert sorted(one.group[0] for one in found) == ["a"] * 10 + ["b"] * 10
    assert found == read_passages([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], limit=20)


def test_training_and_test_share_no_document(passages_of):
    records = [SENTENCE | {"id": f"d{i // 4}-{i}"} for i in range(40)]
    passages = passages_of(records)
    train, test = split_passages(passages)
    assert sorted(train + test) == list(range(40)) and 8 <= len(test) <= 16
    assert not {passages[i].group for i in train} & {passages[i].group for i in test}
    with pytest.raises(DataError, match="come from one document"):
        split_passages(passages[:1])
