"""A contest: the same prompts, the same judges, and figures that can be worked out by hand."""

from __future__ import annotations

import math
import shutil

import pytest

from stockpot.errors import ConfigError, DataError, TrainError
from stockpot.run import Run
from stockpot.stages.contest import Contest, Entry, contest
from stockpot.stages.rewards import reward_from

PROMPTS = ("village:prompts/val:0:12",)


def entry(name, ratings, log_ratios=(0.0, 0.0, 0.0, 0.0)):
    return Entry(name, ("a", "b", "c", "d"), (1, 2, 3, 4), {"gold": ratings}, log_ratios)


def test_wins_ties_and_what_cannot_be_rated_by_hand():
    before = entry("sft", (1.0, 1.0, 1.0, math.nan))
    after = entry("ppo", (2.0, 1.0, 0.0, 3.0), (1.0, 2.0, 3.0, 6.0))
    judged = Contest(("p", "q", "r", "s"), (before, after))
    wins = judged.win_rate(after, "gold")  # won, tied, lost; the fourth has no rating on one side
    assert (wins.value, wins.n, wins.chance) == (0.5, 3, 0.5)
    assert judged.gain(after, "gold").value == 0.0
    assert after.rating("gold").value == 1.5 and after.kl.value == 3.0 and after.length.value == 2.5
    assert before.rating("gold").n == 3


def test_it_survives_being_written_down():
    judged = Contest(
        ("p", "q", "r", "s"), (entry("sft", (1.0, 2.0, 3.0, 0.0)), entry("dpo", (1.0,) * 4, None))
    )
    assert Contest.from_json(judged.to_json()) == judged
    assert judged.entries[1].kl is None
    unrated = Contest(("p", "q", "r", "s"), (entry("sft", (1.0, math.nan, 3.0, 0.0)),))
    assert "NaN" not in unrated.to_json(), "JSON knows no such number"
    for text in (unrated.to_json(), unrated.to_json().replace("null", "NaN")):  # as it was written before
        (found,) = Contest.from_json(text).entries
        assert math.isnan(found.ratings["gold"][1]) and found.ratings["gold"][2] == 3.0
    with pytest.raises(DataError, match="no contest"):
        Contest.from_json('{"prompts": []}')


def test_a_model_against_itself_is_a_draw_without_distance(tiny_base):
    judges = {"gold": reward_from("village:0:40", device="cpu")}
    found = contest({"a": tiny_base, "b": str(tiny_base)}, judges, PROMPTS, max_tokens=6, limit=8)
    a, b = found.entries
    assert len(found.prompts) == 8 and a.replies == b.replies
    assert b.kl.value == pytest.approx(0.0, abs=1e-6)
    wins = found.win_rate(b, "gold")
    assert (wins.value, wins.low, wins.high) == (0.5, 0.5, 0.5)
    assert {row["model"] for row in found.rows()} == {"a", "b"}


def test_the_village_rates_prompts_that_were_kept_from_training(tiny_base):
    rate = reward_from("village:0:40", device="cpu")
    notes = []
    contest({"a": tiny_base}, {"gold": rate}, PROMPTS, max_tokens=4, progress=notes.append)
    assert "n=12" in notes[0]["text"]


def test_prompts_need_no_answers(tiny_base, write_lines):
    prompts = write_lines("prompts.jsonl", [{"prompt": "Who lives in the mill?"}, {"prompt": "Who sings?"}])
    judge = {"short": lambda replies: [-float(len(one.text)) for one in replies]}
    found = contest({"a": tiny_base}, judge, (prompts,), max_tokens=4)
    assert found.prompts == ("Who lives in the mill?", "Who sings?")


def test_a_run_that_broke_off_is_told(tiny_base, tmp_path):
    with pytest.raises(TrainError), Run.create(tmp_path / "run", stage="grpo", recipe={}) as run:
        run.checkpoint(3, lambda folder: shutil.copytree(tiny_base, folder, dirs_exist_ok=True), keep=1)
        raise TrainError("The policy has collapsed.")
    notes = []
    contest(
        {"a": tiny_base, "b": tmp_path / "run"},
        {"n": lambda replies: [0.0] * len(replies)},
        PROMPTS,
        max_tokens=4,
        limit=2,
        progress=notes.append,
    )
    told = [one["text"] for one in notes if "status" in one["text"]]
    assert told == ["b: its run did not end well (status: failed); its checkpoint of step 3 answers"]


def test_what_does_not_fit_is_refused(tiny_base):
    with pytest.raises(ConfigError, match="needs models and a judge"):
        contest({"a": tiny_base}, {}, PROMPTS)
    with pytest.raises(DataError, match="No prompt leaves room"):
        contest({"a": tiny_base}, {"gold": len}, PROMPTS, max_tokens=127)


def test_a_model_without_a_template_is_asked_on_a_page_and_ends_with_the_line(tiny_base, monkeypatch):
    from dataclasses import replace

    from stockpot.stages.drift import Drift
    from stockpot.weights.store import load

    seen = {}
    answers = Drift.answers

    def watch(self, bundle):
        seen[bundle.template is None] = (bundle.tokenizer.decode(list(self.prompts[0].ids)), self.stop)
        return answers(self, bundle)

    monkeypatch.setattr(Drift, "answers", watch)
    chat = load(tiny_base)
    judges = {"length": lambda replies: [len(one.text) for one in replies]}
    models = {"chat": chat, "base": replace(chat, template=None)}
    found = contest(models, judges, PROMPTS, max_tokens=4, limit=2)
    assert "Question: " in seen[True][0] and seen[True][0].endswith("\nAnswer:")
    assert (seen[True][1], seen[False][1]) == (("\n",), ())
    assert found.entries[1].kl is None and found.entries[0].kl is not None


def _raises(replies):
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (_raises, "judge gold: .*raised KeyError"),
        (lambda replies: [math.nan] * len(replies), "rated none of the 3 answers of a"),
        (lambda replies: [math.inf] * len(replies), "judge gold: .*gave inf"),
        (lambda replies: [1.0], "gave 1 rewards for 3 replies"),
        (lambda replies: ["good"] * len(replies), "judge gold: .*ValueError"),
    ],
)
def test_a_judge_that_gives_no_ratings_is_told_in_one_line(tiny_base, judge, said):
    with pytest.raises(DataError, match=said):
        contest({"a": tiny_base, "b": tiny_base}, {"gold": judge}, PROMPTS, limit=3, max_tokens=3)


def test_a_judge_that_never_rates_both_is_told(tiny_base):
    turn = iter(([1.0, math.nan], [math.nan, 1.0]))
    with pytest.raises(DataError, match="rated no prompt for both a and b"):
        contest(
            {"a": tiny_base, "b": tiny_base}, {"gold": lambda _: next(turn)}, PROMPTS, limit=2, max_tokens=3
        )
