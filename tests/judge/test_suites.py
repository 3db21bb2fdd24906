"""lm-evaluation-harness over our engine: the same prompts, choices and figures as our own task files."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from stockpot.errors import ConfigError, DataError, GenerationError
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.harness import evaluate
from stockpot.judge.suites import _Answers, run_suite, table_of
from stockpot.judge.taskfiles import Judging

WORDS = ["yes", "no", "maybe", "blue", "red", "green"]


def records():
    dice = random.Random(0)
    return [
        {
            "question": f"What is {n}, {dice.choice(WORDS)} or {dice.choice(WORDS)}?",
            "choices": {"text": dice.sample(WORDS, 3), "label": ["A", "B", "C"]},
            "answerKey": dice.choice("ABC"),
        }
        for n in range(8)
    ]


def written(folder, name, rows, **changes):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "metadata": {"version": 1.0},
        **changes,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML
    return data


def test_a_suite_that_is_none_is_refused(make_bundle):
    with pytest.raises(ConfigError, match="expected lm-eval:TASK"):
        run_suite(make_bundle(), "other:arc")
    with pytest.raises(GenerationError, match="encoder"):
        run_suite(make_bundle("encoder"), "lm-eval:arc_easy")


def test_room_for_a_long_answer_does_not_push_the_question_out(make_bundle):
    """256 tokens are asked for by default, as many as a small model reads: of the question one had been left."""
    bundle = make_bundle()
    answers = _Answers(bundle, None)
    question = "Question: What is it?\nAnswer:"
    (text,) = answers.generate_until([SimpleNamespace(args=(question, {"until": ["\n\n"]}))])
    (wanted,) = Engine(bundle).generate([question], Sampling(temperature=0.0, max_tokens=256, stop=("\n\n",)))
    assert (text, answers.cut) == (wanted.text, 0)


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.filterwarnings("ignore")
def test_the_harness_and_our_task_file_agree(make_bundle, tmp_path):
    pytest.importorskip("lm_eval")
    metrics = [
        {"metric": one, "aggregation": "mean", "higher_is_better": True} for one in ("acc", "acc_norm")
    ]
    data = written(
        tmp_path,
        "mine",
        records(),
        output_type="multiple_choice",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{choices.label.index(answerKey)}}",
        doc_to_choice="{{choices.text}}",
        metric_list=metrics,
    )
    bundle = make_bundle()
    found = run_suite(bundle, f"lm-eval:{tmp_path / 'mine.yaml'}")
    ours = evaluate(bundle, ["arc_easy"], Judging(data=str(data)))
    assert found["mine"]["n"] == 8
    for name in ("acc", "acc_norm"):
        assert found["mine"][f"{name},none"] == ours.row("arc_easy", name).estimate.value
    rows = table_of({"model": found})
    assert {row[2] for row in rows} == {"acc", "acc_norm"}


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.filterwarnings("ignore")
def test_written_answers_and_whole_texts_are_answered_too(make_bundle, tmp_path):
    pytest.importorskip("lm_eval")
    written(
        tmp_path,
        "write",
        [{"q": "What is it?", "a": "x"}] * 3,
        output_type="generate_until",
        doc_to_text="{{q}}",
        doc_to_target="{{a}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        metric_list=[{"metric": "exact_match"}],
    )
    written(
        tmp_path,
        "text",
        [{"t": "What is it? yes no"}] * 2,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{t}}",
        metric_list=[{"metric": "bits_per_byte"}],
    )
    bundle = make_bundle()
    assert run_suite(bundle, f"lm-eval:{tmp_path / 'write.yaml'}")["write"]["n"] == 3
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "What is it? yes no"}) + "\n", encoding="utf-8")
    ours = (
        evaluate(bundle, ["text"], Judging(data=str(tmp_path / "d.jsonl")))
        .row("text", "bits_per_byte")
        .estimate
    )
    found = run_suite(bundle, f"lm-eval:{tmp_path / 'text.yaml'}")["text"]["bits_per_byte,none"]
    assert found == pytest.approx(ours.value, rel=1e-5)
    with pytest.raises(ConfigError, match="knows no task"):
        run_suite(bundle, "lm-eval:no_such_task_at_all")
    written(
        tmp_path,
        "broken",
        [{"q": "x"}],
        output_type="multiple_choice",
        doc_to_text="{{nothing}}",
        doc_to_target=0,
        doc_to_choice="{{none}}",
    )
    with pytest.raises(DataError, match="could not run broken"):
        run_suite(bundle, f"lm-eval:{tmp_path / 'broken.yaml'}")
