"""What the page asks for, over HTTP: looking, comparing, training, documents, reports."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from dataclasses import replace

import pytest
import torch
from hostile import HOSTILE
from pages import page_server

from stockpot.data.records import PreferenceRecord
from stockpot.data.sources import read_records
from stockpot.durable import write_atomically
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.look import read
from stockpot.model.quantized import quantize
from stockpot.run import Run
from stockpot.serve import comparing, documents, training, views
from stockpot.serve.documents import kind_of
from stockpot.serve.feedback import Feedback
from stockpot.serve.protocol import Refusal
from stockpot.serve.reports import plain
from stockpot.serve.service import Service
from stockpot.text.chat import Message
from stockpot.weights.store import save

TEXT = "the cat sat on the mat"
RIVERS = [f"question {number}: what ran far away?" for number in range(30)]


@pytest.fixture(scope="module")
def models(make):
    return {"old": make(seed=1), "new": make(seed=2), "reads": make("encoder")}


@pytest.fixture(scope="module")
def page(models, tmp_path_factory):
    with page_server(models, tmp_path_factory.mktemp("page")) as one:
        yield one


@pytest.fixture
def fresh(models, tmp_path):
    with page_server(models, tmp_path) as one:
        yield one


def test_the_page_in_front_changes_no_error_of_routing(page):
    """Its folder would answer 405 to whatever it is sent, and 404 to a GET of a route that wants a POST."""
    wrong = [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/responses", 404),
        ("GET", "/v1/chat/completions", 405),
    ]
    for method, path, status in wrong:
        found, told = page.send(method, path, {} if method == "POST" else None)
        assert (found, told["error"]["type"]) == (status, "invalid_request_error")
        assert f"{method} {path}" in told["error"]["message"]


# --- looking ---


def test_looking_tells_what_the_model_computes(page, models):
    told = page.post("/v1/look", {"model": "old", "text": TEXT})
    ids = models["old"].encode(TEXT)
    reading = read(models["old"], ids)
    assert [one["id"] for one in told["tokens"]] == ids
    assert [one["probability"] for one in told["tokens"]] == [one.probability for one in reading.tokens]
    place = len(ids) - 1
    found = page.post("/v1/look/token", {"model": "old", "ids": ids, "place": place})
    assert len(found["layers"]) == 3
    assert found["layers"][-1]["probability"] == pytest.approx(reading.tokens[place].probability, abs=1e-5)
    looks = torch.frombuffer(bytearray(base64.b64decode(found["attention"])), dtype=torch.uint8)
    expected = (reading.attention[:, :, place] * 255).round()
    assert (looks.view(2, 4, len(ids)).float() - expected).abs().max() == 0


def test_a_conversation_is_read_as_the_model_read_it(page, models):
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]
    told = page.post("/v1/look", {"model": "old", "messages": messages})
    prompt = models["old"].encode([Message("user", "one")])
    assert told["prompt_tokens"] == len(prompt)
    assert [one["id"] for one in told["tokens"]] == prompt + models["old"].tokenizer.encode("two three")
    assert told["tokens"][0]["is_special"] and not told["tokens"][-1]["is_special"]


def test_a_message_in_parts_is_read_as_in_a_chat(page):
    asked = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    told, plain = (
        page.post("/v1/look", {"model": "old", "messages": [{"role": "developer", "content": content}]})
        for content in (asked, "the cat")
    )
    assert told == plain
    status, _ = page.send(
        "POST", "/v1/look", {"model": "old", "messages": [{"role": "user", "content": [{"type": "audio"}]}]}
    )
    assert status == 400


def test_going_on_from_a_changed_token_is_what_the_engine_writes(page, models):
    ids = models["old"].encode("the dog ran")
    changed = [*ids[:-1], models["old"].encode("sat")[-1]]
    told = page.post("/v1/look/continue", {"model": "old", "ids": changed, "max_tokens": 5})
    (expected,) = Engine(models["old"]).generate([changed], Sampling(max_tokens=5, temperature=0))
    assert told["ids"] == [*changed, *expected.ids]


def test_an_encoder_fills_gaps_and_is_looked_into(page):
    told = page.post("/v1/look/fill", {"model": "reads", "text": "the ___ sat", "top": 3})
    assert len(told["gaps"]) == 1 and len(told["gaps"][0]) == 3
    seen = page.post("/v1/look", {"model": "reads", "text": TEXT})
    assert seen["shape"] == "encoder" and all(one["probability"] is not None for one in seen["tokens"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/look", {"model": "old", "text": ""}),
        ("/v1/look", {"model": "old", "text": "cat " * 400}),
        ("/v1/look", {"model": "old", "ids": [5, 100_000]}),
        ("/v1/look/token", {"model": "old", "ids": [5, 6], "place": 2}),
        ("/v1/look/token", {"model": "old", "ids": [5, 6], "place": -1}),
        ("/v1/look/continue", {"model": "reads", "ids": [5, 6]}),
        ("/v1/look/fill", {"model": "old", "text": "the ___ sat"}),
        ("/v1/look", {"model": "old", "text": TEXT, "surprise": 1}),
    ],
)
def test_what_cannot_be_looked_at_is_refused_in_one_line(page, path, body):
    status, told = page.send("POST", path, body)
    assert status == 400 and told["error"]["message"]


# --- comparing ---


def following(page, rater, models=("old", "new"), taken=(), **sampling):
    asked = {"rater": rater, "models": models, "taken": taken, "sampling": {"max_tokens": 12} | sampling}
    return page.post("/v1/compare/next", asked)["pair"]


def cast(page, pair, rater, choice, **more):
    vote = {"id": uuid.uuid4().hex, "pair": pair["id"], "rater": rater, "choice": choice} | more
    return vote["id"], page.post("/v1/compare/votes", vote)


def test_a_pair_is_blind_and_a_vote_trains_what_was_shown_on_that_side(fresh, tmp_path):
    told = fresh.post("/v1/compare/prompts", {"text": "\n".join(RIVERS)})
    assert (told["found"], told["added"]) == (30, 30)
    seen = set()
    for choice in ("left", "right", "left", "right"):
        pair = following(fresh, "Ada")
        assert set(pair) == {"id", "prompt", "left", "right"}  # nothing says who wrote what
        cast(fresh, pair, "Ada", choice, why="it rhymes")
        *_, record = read_records(tmp_path / "feedback.db")
        assert isinstance(record, PreferenceRecord)
        assert record.chosen == pair[choice] and record.prompt[0].content == pair["prompt"][0]["content"]
        seen.add(record.prompt[0].content)
    assert len(seen) == 4
    status, lines = fresh.send("GET", "/v1/compare/votes.jsonl")
    exported = [json.loads(line) for line in lines.splitlines()]
    assert status == 200 and len(exported) == 4
    assert {exported[0]["chosen_model"], exported[0]["rejected_model"]} == {"old", "new"}
    assert exported[0]["chosen_sampling"]["max_tokens"] == 12 and "seed" in exported[0]["chosen_sampling"]


def test_two_people_see_the_same_pair_and_their_agreement_is_told(fresh):
    fresh.post("/v1/compare/prompts", {"text": RIVERS[0]})
    first = following(fresh, "Ada")
    cast(fresh, first, "Ada", "left")
    second = following(fresh, "Ben")
    assert second["id"] == first["id"] and {second["left"], second["right"]} == {
        first["left"],
        first["right"],
    }
    cast(fresh, second, "Ben", "left" if second["left"] == first["left"] else "right")
    summary = fresh.get("/v1/compare/summary?first=old&second=new")
    assert summary["agreement"] == {"raters": 2, "pairs": 1, "agreement": 1.0, "alpha": 1.0}
    assert summary["wins"]["n"] == 2 and summary["wins"]["value"] in (0.0, 1.0)
    assert following(fresh, "Ada") is None


def test_undo_gives_the_pair_back_and_a_repeated_vote_counts_once(fresh):
    fresh.post("/v1/compare/prompts", {"text": RIVERS[0]})
    pair = following(fresh, "Ada")
    id, told = cast(fresh, pair, "Ada", "tie")
    assert told["is_new"] and told["counts"]["votes"] == 1
    again = {"id": id, "pair": pair["id"], "rater": "Ada", "choice": "tie"}
    assert not fresh.post("/v1/compare/votes", again)["is_new"]
    assert fresh.send("POST", "/v1/compare/votes", again | {"id": "another-vote"})[0] == 409
    status, told = fresh.send("DELETE", f"/v1/compare/votes/{id}")
    assert status == 200 and told["pair"] == pair and told["counts"]["votes"] == 0
    assert fresh.send("DELETE", f"/v1/compare/votes/{id}")[0] == 404
    assert following(fresh, "Ada") == pair


def test_two_samples_of_one_model_differ_and_equal_answers_are_not_shown(fresh):
    fresh.post("/v1/compare/prompts", {"text": "\n".join(RIVERS[:3])})
    assert following(fresh, "Ada", ("old", "old"), temperature=0) is None
    fresh.post("/v1/compare/prompts", {"text": "\n".join(RIVERS[3:6])})
    pair = following(fresh, "Ada", ("old", "old"), temperature=1.5)
    assert pair["left"] != pair["right"]
    other = following(fresh, "Ada", ("old", "old"), taken=(pair["id"],), temperature=1.5)
    assert other["id"] != pair["id"]  # made while the first is read


def test_a_thumb_leads_to_a_comparison_with_the_answer_it_was_on(fresh):
    sent = {
        "id": "thumb-number-one", "messages": [{"role": "user", "content": "hello"}], "answer": "what I was told",
        "model": "old", "sampling": {"seed": 4}, "is_up": False, "rater": "Ada",
    }  # fmt: skip
    assert fresh.post("/v1/compare/thumbs", sent)["counts"]["thumbs"] == 1
    pair = following(fresh, "Ada")
    assert "what I was told" in (pair["left"], pair["right"])
    assert fresh.send("DELETE", "/v1/compare/thumbs/thumb-number-one")[0] == 200


@pytest.mark.parametrize(
    "text", ['{"prompt": 3, "completion": "x"}', '{"image": "a", "text": "b"}', "{not json", ""]
)
def test_prompts_that_are_none_are_refused(fresh, text):
    assert fresh.send("POST", "/v1/compare/prompts", {"text": text})[0] == 400


def test_prompts_come_from_records_of_every_kind_that_asks(fresh):
    lines = [
        {"prompt": "a", "completion": "b"},
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
        {"prompt": [{"role": "user", "content": "e"}], "chosen": "f", "rejected": "g"}, {"prompt": "a", "completion": "other"},
    ]  # fmt: skip
    told = fresh.post("/v1/compare/prompts", {"text": "\n".join(map(json.dumps, lines))})
    assert (told["found"], told["added"]) == (4, 3)


def test_a_prompt_that_a_model_cannot_take_holds_up_no_other(fresh):
    told = fresh.post("/v1/compare/prompts", {"text": "\n".join(["cat " * 500, *RIVERS[:2]])})
    assert told["added"] == 3
    asked = {"rater": "Ada", "models": ("old", "new"), "sampling": {"max_tokens": 12, "temperature": 1.5}}
    first = fresh.post("/v1/compare/next", asked)["pair"]
    assert first["prompt"][-1]["content"] in RIVERS
    while (found := fresh.send("POST", "/v1/compare/next", asked))[0] == 200:
        cast(fresh, found[1]["pair"], "Ada", "left")
    assert "tokens" in found[1]["error"]["message"], "and in the end that one is told"
    assert fresh.send("POST", "/v1/compare/next", asked | {"models": ("old", "reads")})[0] == 400


def test_lines_end_where_json_lines_do(fresh):
    """A separator of lines that Unicode knows may stand inside a text."""
    text = json.dumps({"prompt": "one\u2028two\x85three", "completion": "x"}, ensure_ascii=False)
    told = fresh.post("/v1/compare/prompts", {"text": f"{text}\r\nplain\u2028words\n"})
    assert (told["found"], told["added"]) == (2, 2)


def test_a_full_disk_is_told_as_507_and_nothing_is_acknowledged(models, tmp_path):
    store = Feedback(tmp_path / "feedback.db")
    (pages,) = store._one("PRAGMA page_count")
    store._one(f"PRAGMA max_page_count = {pages}")
    with page_server(
        models, tmp_path, more=[lambda service: comparing.routes(service, lambda: store)]
    ) as server:
        text = "\n".join(f"{'x' * 900} {number}" for number in range(100))
        status, told = server.send("POST", "/v1/compare/prompts", {"text": text})
        assert status == 507 and told["error"]["code"] == "disk_full"
    store.close()


# --- training ---


@pytest.mark.slow
def test_votes_become_a_model_that_is_served_beside_the_old_one(make, tmp_path):
    save(tmp_path / "model", make(seed=1))
    bundle = make(seed=1)
    with page_server({"old": bundle}, tmp_path, refs={"old": str(tmp_path / "model")}) as server:
        status, told = server.send("POST", "/v1/training", {"model": "old"})
        assert status == 400 and told["error"]["code"] == "too_few_votes"
        server.post("/v1/compare/prompts", {"text": "\n".join(RIVERS)})
        for _ in range(12):
            pair = following(server, "Ada", ("old", "old"), temperature=1.5)
            cast(server, pair, "Ada", "left")
        assert server.post("/v1/training", {"model": "old", "passes": 2, "rank": 2})["state"] == "running"
        assert server.send("POST", "/v1/training", {"model": "old"})[0] == 409
        told = server.until(
            lambda: (now := server.get("/v1/training"))["state"] not in ("running", "loading") and now
        )
        assert told["state"] == "done", told["error"]
        assert told["curves"]["train/loss"] and str(tmp_path / "feedback.db") in told["command"]
        names = [one["id"] for one in server.get("/v1/models")["data"]]
        assert names == ["old", "old-votes-1"]
        run = Run.open(tmp_path / "feedback-files" / "trained" / "old-votes-1")
        assert run.manifest["comparisons"]["train"] + run.manifest["comparisons"]["validation"] == 12
        assert not torch.equal(
            server.service.models["old-votes-1"].bundle.model(torch.tensor([[5, 6]])).logits,
            bundle.model(torch.tensor([[5, 6]])).logits,
        )
        reports = server.get("/v1/reports")["models"]
        assert reports[1]["lineage"][0]["stage"] == "dpo" and reports[0]["lineage"] == []
        assert following(server, "Ada", ("old", "old-votes-1"), temperature=1.5) is not None


def test_a_training_whose_model_cannot_be_opened_has_failed(models, tmp_path, monkeypatch):
    """Whatever goes wrong, the next training may begin."""

    class Ended:
        pid = 0

        def wait(self):
            return 0

        def poll(self):
            return 0

    def full(*args, **kwargs):
        raise MemoryError("no room")

    monkeypatch.setattr(training, "load", full)
    made = training.Training(Service(models), lambda: None, {"old": "model"}, tmp_path)
    made.job = training._Job("old", "old-votes-1", tmp_path / "run", [""] * 4, Ended(), 0.0, 12)
    asyncio.run(made._follow(made.job))
    assert (made.job.state, made.job.error) == ("failed", "no room")


def test_only_models_that_were_named_can_be_trained(page):
    assert page.send("POST", "/v1/training", {"model": "old"})[0] == 400
    assert page.send("POST", "/v1/training", {"model": "/etc/passwd"})[0] == 404


# --- documents ---


@pytest.fixture(scope="module")
def papers(make, tmp_path_factory):
    pytest.importorskip("lancedb")
    folder = tmp_path_factory.mktemp("papers")
    save(folder / "encoder", make("encoder"))
    with page_server({"old": make(seed=1)}, folder, encoder=str(folder / "encoder")) as one:
        one.folder = folder
        yield one


def upload(server, content, name):
    from urllib.parse import quote

    return server.send("POST", f"/v1/documents?name={quote(name)}", content, kind="application/octet-stream")


def test_a_document_is_kept_under_a_generated_name_and_answers_name_its_passages(papers):
    status, told = upload(papers, b"The mat was made in Holm. <b>It</b> is red.", "../../<img src=x>.md")
    assert status == 200 and told["name"] == "../../<img src=x>.md" and told["passages"] == 1
    (stored,) = (papers.folder / "feedback-files" / "documents" / "files").glob("*.md")
    assert stored.name == told["id"] and stored.stem.isalnum()
    asked = {
        "model": "old",
        "messages": [{"role": "user", "content": "Where was the mat made?"}],
        "max_tokens": 4,
    }
    answer = papers.post("/v1/chat/completions", asked)
    assert answer["sources"][0]["file"] == told["id"] and "Holm" in answer["sources"][0]["text"]
    assert "sources" not in papers.post("/v1/chat/completions", asked | {"documents": False})
    status, left = papers.send("DELETE", f"/v1/documents/{told['id']}")
    assert status == 200 and left["documents"] == [] and not stored.exists()
    assert "sources" not in papers.post("/v1/chat/completions", asked)
    assert papers.send("DELETE", "/v1/documents/..%2F..%2Ffeedback.db")[0] in (404, 405)


def test_the_last_document_leaves_no_word_behind(papers):
    _, told = upload(papers, b"Nobody shall know that Zebulon paid.", "secret.md")
    folder = papers.folder / "feedback-files" / "documents"
    assert papers.send("DELETE", f"/v1/documents/{told['id']}")[0] == 200
    left = [path for path in folder.rglob("*") if path.is_file() and b"Zebulon" in path.read_bytes()]
    assert not left
    status, again = upload(papers, b"Another one.", "other.md")  # and a new index is begun
    assert status == 200 and again["passages"] == 1
    assert papers.send("DELETE", f"/v1/documents/{again['id']}")[0] == 200


def test_a_document_whose_name_cannot_be_written_is_not_kept(papers, monkeypatch):
    def full(path, content):
        if path.name == documents.NAMES:
            raise OSError(28, "No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr(documents, "write_atomically", full)
    assert upload(papers, b"Words that find no room.", "full.md")[0] == 500
    assert not list((papers.folder / "feedback-files" / "documents" / "files").iterdir())
    assert papers.service.index is None


@pytest.mark.parametrize(
    "content", [b"", b"   \n", b"\x00\x01\x02", b"\xff\xfe\x00", b"PK\x03\x04nonsense", b"%PDF-1.7 broken"]
)
def test_what_is_no_document_is_refused_and_not_kept(papers, content):
    status, told = upload(papers, content, "fine.txt")
    assert status == 400 and told["error"]["message"]
    files = papers.folder / "feedback-files" / "documents" / "files"
    assert not files.exists() or not list(files.iterdir())
    assert papers.service.index is None


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        (b"%PDF-1.4", "a.txt", ".pdf"), (b"# words", "a.md", ".md"), (b"words", "a.exe", ".txt"), (b"a,b\n1,2", "a.csv", ".csv"),
        (b"<!DOCTYPE html><p>x", "a.txt", ".html"), (b"words", "../../a", ".txt"), (b"words", "a.parquet", ".txt"),
    ],
)  # fmt: skip
def test_content_says_what_a_document_is(content, name, kind):
    assert kind_of(content, name) == kind


def test_a_database_is_no_document():
    with pytest.raises(Refusal, match="no kind"):
        kind_of(b"SQLite format 3\0" + bytes(100), "notes.txt")


# --- reports ---


def test_a_model_tells_the_runs_it_comes_from_and_their_report(make, tmp_path):
    for name, parent in (("base", None), ("sft", tmp_path / "job" / "base")):
        with Run.create(
            tmp_path / "job" / name, stage=name, recipe={}, parent=parent, command=f"stockpot {name}"
        ) as run:
            run.set_model(run.checkpoint(1, lambda path: save(path, make(seed=1)), keep=1))
    (tmp_path / "job" / "report.html").write_text("<h1>What each step added</h1>", encoding="utf-8")
    refs = {"mine": str(tmp_path / "job" / "sft"), "other": "smollm2"}
    whole = make(seed=2)
    count = sum(one.numel() for one in whole.model.parameters())
    rounded = replace(whole, model=quantize(whole.model, 8))  # whose matrices are no parameters of torch's
    with page_server({"mine": make(seed=1), "other": rounded}, tmp_path, refs=refs) as server:
        mine, other = server.get("/v1/reports")["models"]
        assert mine["parameters"] == other["parameters"] == count
        assert [one["stage"] for one in mine["lineage"]] == ["sft", "base"]
        assert mine["lineage"][0]["command"] == "stockpot sft" and mine["has_report"]
        assert other["lineage"] == [] and not other["has_report"]
        assert ["h1", "", "What each step added"] in server.get("/v1/reports/mine")["content"]
        assert server.send("GET", "/v1/reports/other")[0] == 404
        assert server.send("GET", "/v1/reports/..%2F..%2Fetc%2Fpasswd")[0] == 404


def test_of_a_report_only_plain_elements_leave():
    page = (
        "<head><title>t</title><style>x</style></head><h1 onclick='alert(1)' class='big'>Head</h1><script>alert(2)</script>"
        "<div class=scroll><table><tr><td class=number>1 &lt; 2<td>b</table></div><a href='javascript:alert(3)'>link</a><br>"
        "<svg aria-label='a curve'><path d='M0'/><text>a &amp; b</text></svg><iframe src=x>gone</iframe><form><p>last"
    )
    assert plain(page) == [
        ["h1", "", "Head"],
        ["div", "scroll", ["table", "", ["tr", "", ["td", "number", "1 < 2", ["td", "", "b"]]]]],
        "link",
        ["br", ""],
        ["svg", "a curve", "<svg aria-label='a curve'><path d='M0'/><text>a &amp; b</text></svg>"],
        ["p", "", "last"],
    ]
    assert str(plain("<div>" * 5000 + HOSTILE)).count("['div'") <= 40
    told = str(plain(HOSTILE))
    assert "alert(1)" not in told and "['script" not in told and "['a'" not in told


STRANGE = [
    None,
    True,
    -1,
    0,
    1e308,
    2**70,
    "",
    "\x00",
    "a" * 5000,
    "\ud800",
    "../../x",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    ["old"],
    [-1, 5],
]
VOTE = {"id": "number-of-a-vote", "pair": "p", "rater": "Ada", "choice": "left", "why": "so"}
BODIES = {
    "/v1/look": {"model": "old", "text": "the cat", "messages": [{"role": "user", "content": "cat"}], "ids": [5, 6]},
    "/v1/look/token": {"model": "old", "ids": [5, 6], "place": 1},
    "/v1/look/continue": {"model": "old", "ids": [5, 6], "max_tokens": 2, "temperature": 0.5, "seed": 3},
    "/v1/look/fill": {"model": "reads", "text": "the ___", "top": 2},
    "/v1/compare/next": {"rater": "Ada", "models": ["old", "new"], "sampling": {"max_tokens": 2}, "taken": ["x"]},
    "/v1/compare/votes": VOTE,
    "/v1/compare/prompts": {"text": "cat", "source": "here"},
    "/v1/compare/thumbs": {
        "id": "number-of-a-thumb", "messages": [{"role": "user", "content": "c"}], "answer": "d", "model": "old", "sampling": {},
        "is_up": True, "rater": "Ada",
    },
    "/v1/training": {"model": "old", "rank": 2, "passes": 1, "beta": 0.1, "lr": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_strange_requests_are_refused_and_break_nothing(page, path):
    for name in BODIES[path]:
        for value in STRANGE:
            status, told = page.send("POST", path, BODIES[path] | {name: value})
            assert status < 500, (name, value, told)
    for body in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 20_000):
        status, told = page.send("POST", path, body)
        assert 400 <= status < 500 and told["error"]["message"], body
    assert page.get("/health")["status"] == "ok"


def test_a_server_that_only_answers_writes_no_file(models, tmp_path):
    with page_server(models, tmp_path) as server:
        server.post("/v1/look", {"model": "old", "text": TEXT})
        server.get("/v1/documents")
        server.get("/v1/training")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_votes_that_cannot_be_made_is_told_of_before_the_first_vote(tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"votes cannot be kept.*--feedback"):
        views._warn_unless_writable(tmp_path / "file" / "votes.db")
    views._warn_unless_writable(tmp_path / "new" / "votes.db")
