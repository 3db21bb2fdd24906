"""The same outputs under four metrics, shapes told apart, and results of others read."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.emergence import Study
from stockpot.judge.emergence_answers import Measured, items_of, measure
from stockpot.judge.emergence_fit import compare_shapes, powers, sentence_of
from stockpot.judge.emergence_published import read_published
from stockpot.village import Village

X = [float(x) for x in range(7)]  # log10 of compute
TOKENS = 5


def resampled(curve, noise=0.01, draws=400, seed=0):
    rng = np.random.default_rng(seed)
    return np.concatenate([[curve], np.array(curve) + rng.normal(0, noise, (draws, len(curve)))])


# --- shapes ---


def test_a_step_is_sharp_and_a_slope_is_smooth():
    step = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    slope = [1 / (1 + math.exp(-(x - 3) * 4.4 / 6)) for x in X]
    assert compare_shapes(X, resampled(step)).form == "sharp"
    assert compare_shapes(X, resampled(slope)).form == "smooth"
    assert compare_shapes(X, resampled([1 - y for y in slope])).form == "smooth"  # falling curves too


def test_noise_is_flat_and_what_lies_between_is_undecided():
    assert (
        compare_shapes(X, resampled([0.5, 0.501, 0.499, 0.5, 0.5, 0.501, 0.499], noise=0.05)).form == "flat"
    )
    between = [1 / (1 + math.exp(-(x - 3) * 4.4 / 2.1)) for x in X]
    assert compare_shapes(X, resampled(between, noise=0.2)).form == "undecided"


def test_shapes_need_four_rising_places():
    with pytest.raises(ValueError, match="at least four"):
        compare_shapes([1.0, 2.0, 3.0], np.zeros((1, 3)))
    with pytest.raises(ValueError, match="rising order"):
        compare_shapes([1.0, 2.0, 2.0, 3.0], np.zeros((1, 4)))


def test_p_to_the_n():
    assert powers(np.array([0.9]), np.array([5.0]))[0] == pytest.approx(0.59049)


def study_of(share, items=600, seed=0):
    """Models whose tokens are right independently with these probabilities, as both greedy choice and likelihood."""
    rng = np.random.default_rng(seed)
    models = {}
    for size, p in enumerate(share):
        right = rng.random((items, TOKENS)) < p
        exact = right.all(1).astype(float)
        models[f"m{size}"] = (
            10.0**size,
            [
                Measured(
                    exact,
                    1 - right.mean(1),
                    np.full(items, -math.log(p)) + rng.normal(0, 0.01, items),
                    np.full(items, 2 * (1 - p) ** 2) + rng.normal(0, 0.01, items),
                    right.mean(1),
                    np.full(items, float(TOKENS)),
                )
            ],
        )
    study = Study()
    return study.add("planted", models), study


def test_a_smooth_share_of_tokens_makes_exact_match_jump_and_the_jump_does_not_survive():
    found, _ = study_of([0.2, 0.3, 0.4, 0.5, 0.6, 0.98, 0.99])
    forms = {curve.metric: curve.shapes.form for curve in found.curves}
    assert forms["exact"] == "sharp"
    assert found.off < 0.02 and found.right_off < 0.02  # tokens are independent, so p^n is right
    smooth, _ = study_of([0.3, 0.45, 0.6, 0.72, 0.82, 0.9, 0.95])
    assert {curve.metric: curve.shapes.form for curve in smooth.curves}["edit"] == "smooth"


def test_one_sentence_says_what_became_of_the_jump():
    sharp = compare_shapes(X, resampled([0, 0, 0, 0, 1, 1, 1.0]))
    smooth = compare_shapes(X, resampled([x / 6 for x in X]))
    flat = compare_shapes(X, resampled([0.0] * 7))

    def say(exact, edit, nats, largest=0.9):
        forms = {
            "exact": ("exact match", exact),
            "edit": ("edit distance", edit),
            "nats": ("likelihood", nats),
        }
        return sentence_of("t", forms, off=0.01, largest=largest, unseen=0.003)

    assert "edit distance rise smoothly though" not in say(sharp, smooth, smooth)
    assert "does not survive" in say(sharp, smooth, smooth)
    assert "does not survive" in say(sharp, smooth, sharp) and "likelihood jump too" in say(
        sharp, smooth, sharp
    )
    assert "the jump survives" in say(sharp, sharp, sharp)
    assert "there is no jump" in say(smooth, sharp, sharp)
    assert "does not rise (fewer than 0.003" in say(flat, smooth, smooth, largest=0.002)
    lucky = say(flat, smooth, smooth, largest=0.333)  # one seed of three learned it
    assert "match is 0.333" in lucky and "not decided" in lucky and "does not rise" not in lucky


def test_curves_need_four_models_of_different_compute():
    _, study = study_of([0.2, 0.4, 0.6, 0.8])
    one = Measured(*(np.ones(10) for _ in range(6)))
    with pytest.raises(ConfigError, match="make no curve"):
        study.add("x", {"a": (1.0, [one]), "b": (1.0, [one]), "c": (2.0, [one]), "d": (3.0, [one])})


def test_runs_of_a_model_are_averaged_and_resampled():
    """Half of the runs know everything, half nothing: p of the mean run says nothing about exact match."""

    def run(knows):
        right = np.full(100, float(knows))
        nats = np.full(100, 0.0 if knows else math.log(10))
        return Measured(right, 1 - right, nats, np.full(100, 0.5), right, np.full(100, float(TOKENS)))

    models = {f"m{i}": (10.0**i, [run(True), run(False)]) for i in range(4)}
    found = Study().add("torn", models)
    for point in found.points:
        assert point.scores["exact"].value == 0.5
        assert (
            point.scores["exact"].low == 0 and point.scores["exact"].high == 1
        )  # both runs alike, now and then
        assert point.power.value == pytest.approx(0.5, abs=1e-4)


# --- measuring ---


def test_a_models_answers_are_judged_token_by_token(make_bundle):
    bundle = make_bundle("decoder")
    items = [("1 2", " 3"), ("What", " is it?"), ("red", " blue green")]
    found = measure(bundle, items)
    for number, (prompt, answer) in enumerate(items):
        before, wanted = bundle.encode(prompt), bundle.tokenizer.encode(answer)
        with torch.inference_mode():
            logs = bundle.model(torch.tensor([[*before, *wanted]])).logits[0].log_softmax(-1)
        rows = logs[len(before) - 1 : -1]
        own = rows.gather(1, torch.tensor(wanted)[:, None])[:, 0]
        assert found.nats[number] == pytest.approx(-float(own.mean()), abs=1e-4)
        truth = torch.nn.functional.one_hot(torch.tensor(wanted), rows.shape[1])
        assert found.brier[number] == pytest.approx(
            float((rows.exp() - truth).square().sum(1).mean()), abs=1e-4
        )
        assert found.right[number] == pytest.approx(
            float((rows.argmax(1) == torch.tensor(wanted)).float().mean())
        )
        assert found.tokens[number] == len(wanted)
        assert 0 <= found.edit[number] <= 1 and found.exact[number] == float(found.edit[number] == 0)


def test_a_model_that_knows_the_answer_scores_full(make_bundle):
    bundle = make_bundle("decoder")
    prompts = [f"What is {number}" for number in range(40)]
    written = Engine(bundle).generate(prompts, Sampling(temperature=0.0, max_tokens=2))
    spelled = [bundle.tokenizer.decode(one.ids) for one in written]
    # Not all ids are how their text is encoded.
    fitting = [at for at, one in enumerate(written) if bundle.tokenizer.encode(spelled[at]) == list(one.ids)]
    assert fitting
    found = measure(bundle, [(prompts[fitting[0]], spelled[fitting[0]])])
    assert found.exact[0] == 1 and found.edit[0] == 0 and found.right[0] == 1


def test_what_cannot_be_measured_is_refused(make_bundle):
    with pytest.raises(GenerationError, match="measured on decoders"):
        measure(make_bundle("encoder"), [("a", "b")])
    with pytest.raises(GenerationError, match="longest item has"):
        measure(make_bundle("decoder"), [("yes " * 300, "no")])


# --- tasks ---


def test_the_villages_sums_are_true():
    for one in Village(3).arithmetic("val", 50, kind="sums", digits=3):
        first, second = one["prompt"].removesuffix("=").split("+")
        assert int(one["completion"][::-1]) == int(first) + int(second) and len(one["completion"]) == 4
    for one in Village(3).arithmetic("val", 50, kind="columns", digits=5):
        first, second = one["prompt"].removesuffix("=").split("&")
        assert one["completion"] == "".join(
            str((int(a) + int(b)) % 10) for a, b in zip(first, second, strict=True)
        )
    book: dict[str, str] = {}
    for one in Village(3).arithmetic("train", 2000, kind="codes", digits=6):
        assert len(one["prompt"]) == 7 and len(one["completion"]) == 6
        for at in range(0, 6, 2):
            pair, code = one["prompt"][at : at + 2], one["completion"][at : at + 2]
            assert book.setdefault(pair, code) == code  # a pair always stands for the same
    assert 600 < len(book) <= 26 * 26
    with pytest.raises(ConfigError, match="digits"):
        Village().arithmetic(digits=1)
    train = {one["prompt"] for one in Village().arithmetic("train", 3000, digits=2)}
    assert not train & {one["prompt"] for one in Village().arithmetic("val", 800, digits=2)}


def test_items_come_from_the_village_or_a_file(tmp_path):
    assert len(items_of("sums/3", 20)) == 20 and len(items_of("columns", 5)[0][1]) == 4
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "2+2=", "completion": "4"}\n', encoding="utf-8")
    assert items_of(str(path), 10) == [("2+2=", "4")]
    path.write_text('{"text": "no question"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="a text record"):
        items_of(str(path), 10)
    with pytest.raises(ConfigError, match="no number of digits"):
        items_of("sums/many", 10)


# --- files ---


def test_a_study_is_written_and_read_again(tmp_path):
    found, study = study_of([0.2, 0.4, 0.6, 0.8, 0.9])
    folder = study.save(tmp_path / "out")
    assert (folder / "planted.svg").read_text("utf-8").startswith("<svg")
    again = read_published([folder / "emergence.json"])
    assert [p.scores["exact"].value for p in again.tasks[0].points] == [
        p.scores["exact"].value for p in found.points
    ]
    assert found.sentence in str(study)


def test_tables_and_score_files_of_others_are_read(tmp_path):
    table = tmp_path / "table.json"
    points = [
        {"model": f"m{i}", "flops": 10.0**i, "exact_match": float(i > 3), "nats": 3.0 - i / 3, "rouge": i / 6}
        for i in range(6)
    ]
    table.write_text(json.dumps({"task": "theirs", "points": points}), encoding="utf-8")
    study = read_published([table])
    (task,) = study.tasks
    forms = {curve.metric: curve.shapes.form for curve in task.curves}
    assert forms == {"exact": "sharp", "nats": "smooth", "rouge": "smooth"}
    assert "does not survive" in task.sentence
    drawn = (study.save(tmp_path / "out") / "theirs.svg").read_text(encoding="utf-8")
    assert "rouge" in drawn, "a measure that we do not know is drawn under its own name"
    files = []
    for i in range(4):
        files.append(tmp_path / f"scores{i}.json")
        scores = [{"number_of_shots": 0, "score_dict": {"exact_str_match": i / 4, "bleu": i}}]
        model = {"model_name": f"{i}b", "total_params": 10 ** (i + 6)}
        files[-1].write_text(
            json.dumps({"model": model, "task": {"task_name": "ipa"}, "scores": scores}), encoding="utf-8"
        )
    study = read_published(files)
    assert study.axis == "parameters" and study.tasks[0].task == "ipa, 0 shots"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not a JSON object"),
        ({"a": 1}, "no results of a known form"),
        ({"points": [{"model": "x", "exact": 1}]}, "has no size"),
        ({"points": [{"model": "x", "flops": 1, "exact": 1}]}, "make no curve"),
        ({"points": [{"model": str(i), "flops": i + 1, "nats": 1} for i in range(4)]}, "no exact match"),
        ({"points": [{"flops": i + 1, "exact": 1} for i in range(4)]}, "the model None is there twice"),
        ({"points": [{"model": "x", "flops": math.inf, "exact": 1}]}, "has the size inf"),
        ({"points": [{"model": "x", "flops": 1, "exact": 1, "n": "some"}]}, "do not fit"),
        ({"points": [3]}, "do not fit"),
        ({"tasks": [{"task": "x"}]}, "do not fit"),
        ({"scores": [3]}, "do not fit"),
    ],
)
def test_results_that_say_nothing_are_refused(tmp_path, value, message):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_published([path])
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_published([path])
