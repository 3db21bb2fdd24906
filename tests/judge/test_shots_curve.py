"""In-context learning by number of examples, with wrong labels, and as gradient steps on a copy."""

from __future__ import annotations

import json

import pytest
import torch

from stockpot.errors import ConfigError
from stockpot.generate.engine import Engine
from stockpot.judge.shots import gradient_steps, shots_curve
from stockpot.prompt.items import Questions
from stockpot.prompt.shots import Paper, Shots, choose

ASKED = Questions(task="sentiment", limit=4, wordings=("slashes",))


def test_the_curve_has_a_point_for_each_way_and_number(make_bundle, tmp_path):
    curve = shots_curve(
        make_bundle(context=256), ASKED, ks=(0, 2), kinds=("gold", "flipped"), draws=2, lr=1e-3
    )
    assert [(one.kind, one.k) for one in curve.points] == [
        (kind, k) for kind in ("gold", "flipped", "gradient steps") for k in (0, 2)
    ]
    nothing = {one.log_prob.value for one in curve.points if one.k == 0}
    assert len(nothing) == 1, "without examples there is only one way"
    some = {one.kind: one.log_prob.value for one in curve.points if one.k == 2}
    assert len(set(some.values())) == 3
    assert "guessing 0.33" in str(curve)
    assert set(curve.series()) == {"gold", "flipped", "gradient steps"}
    curve.save(tmp_path / "curve.json")
    assert len(json.loads((tmp_path / "curve.json").read_text())["points"]) == 6


def test_gradient_steps_learn_the_examples_and_leave_the_model_alone(make_bundle):
    bundle = make_bundle(context=256)
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    asking, pool = ASKED.open()
    (shown, *_) = choose(pool, Shots(k=4), pool.questions[:1])
    tuned = gradient_steps(bundle, asking, "slashes", shown, lr=3e-3)
    assert all(torch.equal(before[name], value) for name, value in bundle.model.state_dict().items())
    paper = Paper(asking, "slashes", bundle)
    prompts = paper.prompts([one.item for one in shown], [[]] * 4)
    pairs = [(prompt, paper.answer(one.answer)) for prompt, one in zip(prompts, shown, strict=True)]
    was, now = (sum(s.log_prob for s in Engine(one).score(pairs)) for one in (bundle, tuned))
    assert now > was + 1


def test_gradient_steps_need_answers(make_bundle):
    asking, pool = ASKED.open()
    shown = choose(pool, Shots(k=2, labels="none"), pool.questions[:1])[0]
    with pytest.raises(ConfigError, match="need answers"):
        gradient_steps(make_bundle(), asking, "slashes", shown, lr=1e-3)
