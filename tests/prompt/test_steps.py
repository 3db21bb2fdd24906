"""Thinking first: which prompts are asked, and what is found in replies that are given."""

from __future__ import annotations

import pytest

from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Completion, Sampling
from stockpot.prompt.steps import answer_log_probs, least_to_most, self_consistency, think
from stockpot.text.chat import Message

APPLES = "The cafeteria had 23 apples. They used 20 and bought 6 more. How many do they have?"
STEPS = "23 - 20 = 3. 3 + 6 = 9."


class Scripted:
    """An engine that answers with given texts, one a prompt, and remembers what it was asked."""

    def __init__(self, bundle, replies):
        self.bundle, self.replies, self.asked, self.samplings = bundle, list(replies), [], []

    def generate(self, prompts, sampling):
        self.asked += prompts
        self.samplings += [sampling] * len(prompts)
        return [Completion(self.replies.pop(0), (1, 2), "stop", 10) for _ in prompts]


@pytest.fixture
def plain(make_bundle):
    return lambda *replies: Scripted(make_bundle(), replies)


def test_two_stages_write_steps_and_then_ask_for_the_answer(plain):
    engine = plain(STEPS, " 9.")
    (thought,) = think(engine, [APPLES])
    assert thought.answer == "9"
    assert thought.steps == STEPS
    first, second = engine.asked
    assert first == f"Q: {APPLES}\nA: Let's think step by step."
    assert second == f"{first} {STEPS}\nTherefore, the answer (arabic numerals) is"
    assert thought.tokens == 24


def test_a_chat_model_is_asked_in_messages(make_bundle):
    engine = Scripted(make_bundle(chat=True), [STEPS, "9"])
    assert think(engine, [APPLES])[0].answer == "9"
    first, second = engine.asked
    assert first == [Message("user", f"{APPLES}\nLet's think step by step.")]
    assert second[:2] == [*first, Message("assistant", STEPS)]


def test_of_steps_that_do_not_fit_the_end_is_kept(make_bundle):
    """They had used up the context, and all questions were lost with the one that thought so long."""
    engine = Scripted(make_bundle(context=256), ["So it goes. " * 20 + STEPS, "9."])
    (thought,) = think(engine, [APPLES])
    assert thought.answer == "9" and thought.steps.startswith("So it goes.")
    second = engine.asked[1]
    assert second.startswith(f"Q: {APPLES}\n") and f"{STEPS}\nTherefore" in second
    assert len(engine.bundle.encode(second)) + 16 <= 256


def test_at_once_means_without_steps(plain):
    engine = plain(" 27. Then he")
    (thought,) = think(engine, [APPLES], way="direct")
    assert (thought.answer, thought.steps) == ("27", "")
    assert engine.asked == [f"Q: {APPLES}\nA: Therefore, the answer (arabic numerals) is"]


def test_worked_examples_are_followed(plain, make_bundle):
    engine = Scripted(make_bundle(context=512), [f" {STEPS} The answer is 9."])
    (thought,) = think(engine, [APPLES], way="few-shot", examples=[("Two and two?", "2 + 2 = 4.", "4")])
    assert thought.answer == "9"
    assert engine.asked == [f"Q: Two and two?\nA: 2 + 2 = 4. The answer is 4.\n\nQ: {APPLES}\nA:"]
    with pytest.raises(ConfigError, match="worked examples"):
        think(plain(), [APPLES], way="few-shot")


def test_examples_that_do_not_fit_are_left_out_and_the_question_stays(make_bundle):
    engine = Scripted(make_bundle(context=160), [" 9"])
    many = [(f"Question {i}?", "One and one is two.", "2") for i in range(20)]
    think(engine, [APPLES], way="few-shot", examples=many, sampling=Sampling(max_tokens=8))
    (asked,) = engine.asked
    assert asked.endswith(f"Q: {APPLES}\nA:")
    assert "Question 0?" not in asked


def test_the_majority_decides(plain):
    engine = plain("a", " 9", "b", " 9", "c", " 8", "d", " none")
    votes = self_consistency(engine, APPLES, 4)
    assert votes.answer == "9"
    assert votes.counts == {"9": 2, "8": 1}
    assert votes.agreement == 0.5
    seeds = [one.seed for one in engine.samplings[::2]]
    assert len(set(seeds)) == 4, "every vote has its own seed"
    assert self_consistency(plain("a", "no"), APPLES, 1).answer is None


def test_answers_without_steps_are_drawn_too(plain):
    """Written greedily, all votes were one."""
    engine = plain("9", "9", "8")
    votes = self_consistency(engine, APPLES, 3, way="direct")
    assert votes.counts == {"9": 2, "8": 1}
    assert [(one.temperature, one.seed, one.max_tokens) for one in engine.samplings] == [
        (0.7, seed, 16) for seed in range(3)
    ]


def test_small_questions_come_before_the_large_one(plain):
    engine = plain("How many were left?\n2. How many then?\nfine", " 3", " 9", " 9.")
    thought = least_to_most(engine, APPLES)
    assert thought.answer == "9"
    assert thought.steps == "Q: How many were left?\nA: 3\nQ: How many then?\nA: 9"
    assert engine.asked[2].endswith("Q: How many were left?\nA: 3\nQ: How many then?\nA:")


def test_the_right_answer_is_weighed_with_and_without_steps(make_bundle):
    ((without, given),) = answer_log_probs(Engine(make_bundle()), [APPLES], [STEPS], ["9"])
    assert without != given
    ((again, same),) = answer_log_probs(Engine(make_bundle()), [APPLES], [""], ["9"])
    assert again == same == pytest.approx(without, abs=1e-5)


def test_a_real_engine_answers_in_every_way(make_bundle):
    engine = Engine(make_bundle())
    quick = Sampling(max_tokens=4, temperature=0.0)
    for way in ("direct", "zero-shot", "least-to-most"):
        assert len(think(engine, ["1 2 3?"], way=way, sampling=quick)) == 1
