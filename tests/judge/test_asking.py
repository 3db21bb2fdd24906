"""How a model is asked: ids as the harness cuts them, answers kept by content, and what does not fit told of."""

from __future__ import annotations

import json

import pytest
import torch

from stockpot.errors import GenerationError
from stockpot.generate.engine import Engine
from stockpot.judge.asking import Cache, Outcome, ask_all, model_fingerprint
from stockpot.judge.harness import evaluate
from stockpot.judge.requests import Asked, ask_item, split_pair, windows
from stockpot.judge.scoring import judge_item, rows_of
from stockpot.judge.taskfiles import Judging
from stockpot.judge.tasks import Extraction, Item, Left, Scorer, Task

CHOICES = Scorer(kind="choices", pmi=True)
ITEMS = tuple(
    Item(f"i{n}", f"What is {n}?", "yes", ("yes", "no", "maybe"), prompt=f"Question: What is {n}?\nAnswer:")
    for n in range(5)
)


@pytest.fixture(scope="module")
def bundle(make_bundle):
    return make_bundle()


def test_log_probabilities_are_the_models_own(bundle):
    asked = [ask_item(bundle, item, CHOICES, "plain") for item in ITEMS]
    outcomes = ask_all(Engine(bundle), asked, CHOICES, Cache(None, ""))
    for one, outcome in zip(asked, outcomes, strict=True):
        for (before, scored), log_prob in zip(one.pairs, outcome.log_probs, strict=True):
            with torch.inference_mode():
                rows = bundle.model(torch.tensor([[*before, *scored]])).logits[0].log_softmax(-1)
            by_hand = sum(float(rows[len(before) - 1 + i, id]) for i, id in enumerate(scored))
            assert log_prob == pytest.approx(by_hand, abs=1e-4)
        assert len(outcome.without) == 3


def test_measures_by_hand():
    item = Item("1", "", "bb", ("bb", "cccc"), right=(1.0, 0.0))
    outcome = Outcome((-4.0, -6.0), (1, 2), (-1.0, -9.0))
    answer = judge_item(item, outcome, CHOICES, (2, 4))
    assert answer.scores["acc"] == 1 and answer.scores["acc_norm"] == 0, "-4/2 < -6/4"
    assert answer.scores["acc_pmi"] == 0, "-4 + 1 < -6 + 9"
    assert answer.scores["margin"] == pytest.approx(-2 + 1.5)
    p = 1 / (1 + 2.718281828**-2)
    assert answer.scores["brier"] == pytest.approx(2 * (1 - p) ** 2, abs=1e-6)
    assert answer.choice == "bb"
    graded = judge_item(
        Item("1", "", "a", ("a", "b"), right=(0.5, 1.0)),
        outcome,
        Scorer(kind="choices", measures=("grade",)),
        (1, 1),
    )
    assert graded.scores["grade"] == 0.5


def test_a_written_answer_is_found_and_compared_as_the_task_says():
    scorer = Scorer(
        kind="write",
        ignore=(",", r"\$"),
        extract={
            "strict": Extraction(kind="regex", pattern=r"#### (-?[\d,]+)"),
            "flexible": Extraction(kind="regex", pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", which=-1),
            "number": Extraction(kind="number"),
        },
    )
    item = Item("1", "", "so\n#### 1,200")
    scorer = scorer.model_copy(update={"ignore": (*scorer.ignore, "(?s).*#### ")})
    scores = judge_item(item, Outcome(replies=("First 7. It is $1,200",)), scorer, ()).scores
    assert scores == {"strict": 0.0, "flexible": 1.0, "number": 1.0}
    assert judge_item(item, Outcome(replies=("#### 1200",)), scorer, ()).scores["strict"] == 1
    assert judge_item(item, Outcome(replies=("none",)), scorer, ()).scores == {
        "strict": 0,
        "flexible": 0,
        "number": 0,
    }
    near = Scorer(kind="write", tolerance=0.1)
    assert judge_item(Item("1", "", "100"), Outcome(replies=("95",)), near, ()).scores["exact"] == 1


def test_spaces_at_the_prompts_end_go_to_the_answer(bundle):
    before, scored = split_pair(bundle, "Answer: ", "yes")
    assert bundle.tokenizer.decode(before, skip_special=True) == "Answer:"
    assert bundle.tokenizer.decode(scored) == " yes"
    empty, _ = split_pair(bundle, "", "yes")
    assert empty == (bundle.tokenizer.bos_id,)


def test_each_token_of_a_text_is_scored_once_behind_as_much_as_fits(bundle):
    text = "yes no maybe " * 60
    ids = bundle.tokenizer.encode(text)
    parts = windows(bundle, text)
    assert len(parts) > 1
    assert [id for part in parts for id in part.scored] == list(ids)
    assert all(len(part.before) + len(part.scored) <= bundle.context for part in parts)
    assert len(parts[-1].before) + len(parts[-1].scored) == bundle.context
    assert windows(bundle, "") == []


def test_bits_per_byte_are_those_of_the_text(bundle):
    item = Item("t", "yes no", "", prompt="yes no maybe")
    report = evaluate(bundle, [Task("text", "1", (item,), Scorer(kind="text"))])
    ids = [bundle.tokenizer.bos_id, *bundle.tokenizer.encode("yes no maybe")]
    with torch.inference_mode():
        rows = bundle.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nats = -sum(float(rows[i, id]) for i, id in enumerate(ids[1:]))
    found = report.row("text", "bits_per_byte").estimate
    assert found.value == pytest.approx(nats / 0.6931471805599453 / len("yes no maybe"), rel=1e-4)
    assert found.n == 1


def test_the_last_word_is_what_greedy_decoding_writes(bundle):
    items = tuple(Item(f"w{i}", "", word, prompt="What is it?") for i, word in enumerate(("yes", "red")))
    report = evaluate(bundle, [Task("words", "1", items, Scorer(kind="word"))])
    assert {row.metric for row in report.rows} == {"acc", "log_prob", "perplexity"}
    assert report.row("words", "acc").estimate.n == 2


def test_what_is_too_long_is_counted_and_never_cut(bundle):
    long = Item("L7", "why " * 200, "yes", ("yes", "no"), prompt="why " * 200)
    report = evaluate(bundle, [Task("some", "1", (*ITEMS, long), CHOICES)])
    assert report.row("some", "acc").estimate.n == 5
    assert [one.where for one in report.left["some"]] == ["L7"]
    assert "L7" in str(report) and "left out" in str(report)
    assert isinstance(ask_item(bundle, long, CHOICES, "plain"), Left)
    with pytest.raises(GenerationError, match="none of its 1 items fits"):
        evaluate(bundle, [Task("long", "1", (long,), CHOICES)])


@pytest.mark.parametrize("kind", ["choices", "both"])
def test_answers_are_found_again_by_their_content(bundle, kind, tmp_path, monkeypatch):
    task = Task("some", "1", ITEMS, Scorer(kind=kind, max_tokens=3))
    first = evaluate(bundle, [task], cache=tmp_path)
    asked = []
    score = Engine.score
    monkeypatch.setattr(Engine, "score", lambda self, pairs: asked.extend(pairs) or score(self, pairs))
    assert evaluate(bundle, [task], cache=tmp_path) == first
    assert not asked, "all was answered before"
    lines = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5
    (tmp_path / "answers.jsonl").write_text(
        "\n".join([*lines[:2], lines[2][:20], "[]"]) + "\n", encoding="utf-8"
    )
    assert evaluate(bundle, [task], cache=tmp_path).rows == first.rows
    assert len(asked) == 3 * 3, "a killed run goes on with what is missing"


def test_another_model_or_prompt_is_another_question(make_bundle, tmp_path):
    bundle = make_bundle(seed=1)
    before = model_fingerprint(bundle)
    assert before == model_fingerprint(make_bundle(seed=1)) != model_fingerprint(make_bundle(seed=2))
    with torch.no_grad():
        next(bundle.model.parameters()).view(-1)[0] += 1
    assert model_fingerprint(bundle) != before
    cache = Cache(None, before)
    one = Asked(ITEMS[0], pairs=(((1,), (2,)),))
    other = Asked(ITEMS[0], pairs=(((1,), (3,)),))
    assert cache.key(one, CHOICES, 0) != cache.key(other, CHOICES, 0)
    writes = Asked(ITEMS[0], prompt=(1, 2))
    keys = {cache.key(writes, Scorer(kind="write", max_tokens=n), 0) for n in (3, 4)}
    assert len(keys) == 2


def test_progress_tells_how_far_and_how_long(bundle):
    heard = []
    evaluate(bundle, [Task("some", "1", ITEMS, Scorer(kind="both", max_tokens=2))], progress=heard.append)
    steps = [event for event in heard if event["kind"] == "step"]
    assert steps[-1]["step"] == steps[-1]["steps"] == 5
    assert steps[-1]["time_left_s"] == 0
    assert all(event["time_left_s"] >= 0 for event in steps)


def test_sorts_of_question_are_scored_apart(bundle):
    items = tuple(
        Item(**{**vars(item), "kind": "even" if n % 2 == 0 else "odd"}) for n, item in enumerate(ITEMS)
    )
    report = evaluate(bundle, [Task("some", "1", items, CHOICES)])
    assert [(row.task, row.estimate.n) for row in report.kinds] == [("some/even", 3), ("some/odd", 2)]
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["resolution"] == pytest.approx(1 / 5)


def test_no_answers_give_no_figures():
    assert rows_of("none", [], CHOICES) == []


def test_a_model_without_the_needed_head_is_refused_at_once(make_bundle):
    with pytest.raises(GenerationError, match="is an encoder"):
        evaluate(make_bundle("encoder"), [Task("some", "1", ITEMS, CHOICES)])


def test_the_prompt_of_a_task_file_is_kept_for_chat_models(make_bundle):
    bundle = make_bundle(chat=True)
    plain = ask_item(bundle, ITEMS[0], CHOICES, "plain")
    assert plain.shown == ITEMS[0].prompt
    chat = ask_item(bundle, ITEMS[0], CHOICES, "chat")
    assert len(chat.pairs[0][0]) > len(plain.pairs[0][0])
    assert bundle.tokenizer.decode(chat.pairs[0][1]) == "yes"
    report = evaluate(bundle, [Task("some", "1", ITEMS, CHOICES)], Judging(wording="chat"))
    assert report.wording == "chat"
