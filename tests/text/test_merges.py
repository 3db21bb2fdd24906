"""Merges: by hand on a few letters, and equal to the reference trainer's."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from stockpot.text.merges import learn_merges


def test_the_most_frequent_pair_is_merged_first() -> None:
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    _, merges = learn_merges(words, list("bghnpsu"), tokens=10)
    assert merges == [("u", "g"), ("u", "n"), ("h", "ug")]  # 20 times, 16 times, 15 times


def test_of_equally_frequent_pairs_the_smaller_ids_win() -> None:
    _, merges = learn_merges({"cd": 3, "ab": 3, "ad": 3}, list("abcd"), tokens=7)
    assert merges == [("a", "b"), ("a", "d"), ("c", "d")]


def test_a_run_of_one_letter_is_merged_from_the_left() -> None:
    vocabulary, merges = learn_merges({"aaaaa": 4}, ["a"], tokens=4)
    assert merges == [("a", "a"), ("aa", "a"), ("aa", "aaa")]  # aa aa a: of two equal pairs the smaller ids
    assert vocabulary == ["a", "aa", "aaa", "aaaaa"]


def test_a_word_piece_drops_the_mark_inside_a_token() -> None:
    alphabet = ["##g", "##h", "##u", "g", "h", "m", "u"]
    vocabulary, merges = learn_merges({"hug": 3, "mug": 2}, alphabet, tokens=9, prefix="##")
    assert merges == [("##u", "##g"), ("h", "##ug")]
    assert vocabulary[-1] == "hug"


def test_rare_pairs_are_left_alone() -> None:
    _, merges = learn_merges({"ab": 2, "cd": 1}, list("abcd"), tokens=9, min_count=2)
    assert merges == [("a", "b")]


def test_merging_stops_when_no_pair_is_left() -> None:
    vocabulary, _ = learn_merges({"ab": 1}, ["a", "b"], tokens=100)
    assert vocabulary == ["a", "b", "ab"]


def _reference(words: dict[str, int], tokens: int) -> tuple[list[str], list[tuple[str, str]]]:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=tokens, show_progress=False)
    engine.train_from_iterator([" ".join([word] * count) for word, count in words.items()], trainer)
    model = json.loads(engine.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [tuple(pair) for pair in model["merges"]]


def _random_words(seed: int) -> dict[str, int]:
    choose = random.Random(seed)
    letters = "abcdefgh"[: choose.randrange(2, 9)]
    return {
        "".join(choose.choices(letters, k=choose.randrange(1, 12))): choose.randrange(1, 30)
        for _ in range(60)
    }


@pytest.mark.golden
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("way", ["both", "numpy as long as it goes", "strings alone, in parts"])
def test_merges_equal_the_reference_trainers(seed: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "numpy as long as it goes":
        monkeypatch.setattr("stockpot.text.frequent._MANY", -1)
    elif way == "strings alone, in parts":
        monkeypatch.setattr("stockpot.text.merges._WORDS_AT_ONCE", 7)
    words = _random_words(seed)
    expected_vocabulary, expected = _reference(words, 150)
    alphabet = sorted({letter for word in words for letter in word})
    vocabulary, merges = learn_merges(words, alphabet, tokens=150)
    assert (vocabulary, merges) == (expected_vocabulary, expected)


def _by_recounting(words: dict[str, int], alphabet: list[str], tokens: int) -> list[tuple[str, str]]:
    """Learn word pieces the slow way: count every pair again after every merge."""
    vocabulary = list(alphabet)
    spelled = [([word[0], *("##" + letter for letter in word[1:])], n) for word, n in words.items()]
    merges: list[tuple[str, str]] = []
    while len(vocabulary) < tokens:
        counts: Counter[tuple[int, int]] = Counter()
        for symbols, n in spelled:
            for pair in pairwise(map(vocabulary.index, symbols)):
                counts[pair] += n
        if not counts:
            break
        left, right = (vocabulary[number] for number in min(counts, key=lambda pair: (-counts[pair], pair)))
        merges.append((left, right))
        token = left + right.removeprefix("##")
        if token not in vocabulary:
            vocabulary.append(token)
        for symbols, _ in spelled:
            at = 0
            while at < len(symbols) - 1:
                if symbols[at : at + 2] == [left, right]:
                    symbols[at : at + 2] = [token]
                at += 1
    return merges


def test_a_token_that_two_merges_spell_is_one_token() -> None:
    again = 0
    for seed in range(60):
        choose = random.Random(seed)
        words = {
            "".join(choose.choices("##ab", k=choose.randrange(2, 8))): choose.randrange(1, 9)
            for _ in range(12)
        }
        alphabet = ["#", "a", "b", "###", "##a", "##b"]
        _, merges = learn_merges(words, alphabet, tokens=40, prefix="##")
        assert merges == _by_recounting(words, alphabet, 40)
        made = [left + right.removeprefix("##") for left, right in merges]
        again += len(alphabet + made) - len({*alphabet, *made})
    assert again > 60  # "#" and "###" make "##", which with "##a" makes "##a"


def test_when_the_guess_of_the_last_count_was_too_high_rarer_pairs_follow() -> None:
    words = {letter * 2: 1000 for letter in "abcdefgh"} | {"xyz": 2, "yz": 1}
    _, merges = learn_merges(words, list("abcdefghxyz"), tokens=100)
    assert merges[-2:] == [("y", "z"), ("x", "yz")]


def test_the_order_of_words_does_not_matter() -> None:
    choose = random.Random(1)
    words = {"".join(choose.choices("abcd", k=6)): choose.randrange(1, 9) for _ in range(200)}
    shuffled = dict(choose.sample(list(words.items()), k=len(words)))
    assert learn_merges(words, list("abcd"), tokens=90) == learn_merges(shuffled, list("abcd"), tokens=90)
