"""The three kinds side by side: equal arithmetic, one table, and every kind able to answer."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch

import stockpot as sp
from stockpot.model import config as shapes
from stockpot.stages.kinds_asked import PairBatches, ask_tuned, fitting, questions_of, read_pairs, spearman
from stockpot.stages.three_kinds import LOSSES, ThreeKindsConfig, three_kinds
from stockpot.text.tokenizer import SPECIAL_TOKENS
from stockpot.train.loop import LoopConfig, fit

KINDS = ("encoder", "decoder", "encoder_decoder")


@pytest.fixture(scope="module")
def tokenizer():
    texts = [one["text"] for one in sp.Village().documents(limit=150)]
    marks = [f"<|extra_{number}|>" for number in range(20)]
    return sp.Tokenizer.train(texts, vocab_size=400, special_tokens=[*SPECIAL_TOKENS, *marks])


@pytest.fixture
def make(tokenizer):
    def bundle(kind, **choices):
        torch.manual_seed(0)
        extra = {"pair_classes": 0, "segment_types": 0} if kind == "encoder" else {}
        sizes = {"layers": 1, "dim": 32, "heads": 2, "context": 64, "vocab_size": tokenizer.vocab_size}
        return sp.Bundle(sp.Transformer(getattr(shapes, kind)(**sizes, **extra, **choices)), tokenizer)

    return bundle


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_a_handful_of_pairs_and_is_judged_on_them(make, kind):
    bundle = make(kind)
    pairs = [
        ("Mara goes home.", "Mara went home."),
        ("Olaf eats soup.", "Olaf ate soup."),
        ("Ida sings.", "Ida sang."),
    ]
    before = ask_tuned(bundle, pairs)
    batches = islice(PairBatches(bundle, pairs, 8, seed=0), 150)
    fit(
        bundle.model,
        batches,
        LOSSES[kind],
        LoopConfig(steps=150, batch_tokens=1, divergence_factor=None, dtype="float32"),
    )
    after = ask_tuned(bundle, pairs)
    assert before["exact"] == 0 and after == {"exact": 1.0, "near": 1.0}


def test_pairs_and_questions_are_apart_from_training(tmp_path):
    told, asked = read_pairs("village", ("prompt", "completion"), 400, 20, 0)
    assert len(told) == 100 and len(asked) == 20 and not set(told) & set(asked)
    path = tmp_path / "de.jsonl"
    path.write_text(
        "".join(f'{{"de": "Haus {i}", "en": "house {i}"}}\n' for i in range(50)), encoding="utf-8"
    )
    told, asked = read_pairs(str(path), ("de", "en"), 400, 20, 0)
    assert len(told) == 30 and len(asked) == 20 and not set(told) & set(asked)
    with pytest.raises(sp.DataError, match="a record needs de and fr"):
        read_pairs(str(path), ("de", "fr"), 400, 20, 0)
    with pytest.raises(sp.DataError, match="too few"):
        read_pairs(str(path), ("de", "en"), 400, 30, 0)
    related = tmp_path / "sick.jsonl"
    related.write_text('{"premise": "a", "hypothesis": "b", "relatedness": 4.5}\n', encoding="utf-8")
    questions = questions_of(str(related), ["text"], 12, 0)
    assert questions.related == (("a", "b", 4.5),) and len(questions.reviews[1]) == 12
    assert all(
        "sentiment" not in text for text, _ in questions.reviews[1]
    )  # the review alone, not the question


def test_ranks_share_their_places():
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([1.0, 1.0, 5.0])) == 1.0
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1.0


def test_one_command_makes_one_table(tmp_path):
    config = sp.ThreeKindsConfig(
        documents=120,
        vocab_size=400,
        layers=1,
        dim=32,
        context=64,
        rows=4,
        seeds=2,
        minutes=0.1,
        most_steps=3,
        items=10,
    )
    found = sp.three_kinds(config, out=tmp_path / "out")
    assert set(found.values) == {"gap", "retrieval", "sentiment", "continuation", "exact", "near"}
    for metric, kinds in found.values.items():
        assert set(kinds) == set(KINDS) and all(len(values) == 2 for values in kinds.values()), metric
    assert all(
        0 <= value <= 1
        for metric in ("gap", "retrieval", "exact")
        for values in found.values[metric].values()
        for value in values
    )
    assert found.table()[0] == ["", "encoder", "decoder", "encoder-decoder"] and "±" in str(found)
    saved = json.loads((tmp_path / "out" / "three-kinds.json").read_text(encoding="utf-8"))
    steps = saved["facts"]["steps"]
    assert max(one for one, _ in steps.values()) <= 3
    assert saved["facts"]["parameters"]["encoder_decoder"] > saved["facts"]["parameters"]["decoder"]


def test_what_cannot_be_asked_is_told_before_training_and_what_does_not_fit_is_left_out(tmp_path, tokenizer):
    (tmp_path / "lines.jsonl").write_text('{"text": "Cat."}\n' * 60)
    with pytest.raises(sp.DataError, match="None of the 20 texts that are held out has 16 tokens"):
        three_kinds(ThreeKindsConfig(data=str(tmp_path / "lines.jsonl"), pairs="village"))
    (tmp_path / "related.jsonl").write_text('{"premise": "a", "hypothesis": "b", "relatedness": "much"}\n')
    with pytest.raises(sp.DataError, match="relatedness is 'much', where a number belongs"):
        questions_of(str(tmp_path / "related.jsonl"), ["a"], 10, 0)
    short, long = ("Mara goes.", "Mara went."), ("Mara goes. " * 20, "Mara went.")
    assert fitting([short, long, ("a", "")], tokenizer, 64) == [short]
    with pytest.raises(sp.DataError, match="No pair fits"):
        fitting([long], tokenizer, 64)
