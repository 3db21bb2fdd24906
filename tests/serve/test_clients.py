"""A client that others wrote, LangChain, against a running server; the `openai` package and `llm` are in test_app."""

from __future__ import annotations

import pytest

langchain = pytest.importorskip(
    "langchain_openai", reason="LangChain is not installed (pip install langchain-openai)"
)
SCHEMA = {
    "title": "digit",
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def chat(server):
    """Make LangChain's chat model, as its documentation does for servers that speak OpenAI's protocol."""
    settings = {"model": "tiny", "temperature": 0, "max_tokens": 16, "max_retries": 0}
    return langchain.ChatOpenAI(base_url=f"{server.address}/v1", api_key="none", **settings)


def test_langchain_chats(chat, server):
    asked = {"messages": [{"role": "user", "content": "the cat"}], "temperature": 0, "max_tokens": 16}
    right = server.post("/v1/chat/completions", asked)[1]
    found = chat.invoke("the cat")
    assert found.content == right["choices"][0]["message"]["content"]
    assert found.usage_metadata["output_tokens"] == right["usage"]["completion_tokens"]
    assert found.response_metadata["finish_reason"] == right["choices"][0]["finish_reason"]


def test_langchain_streams_and_asks_many_at_once(chat):
    whole = chat.invoke("the cat").content
    pieces = list(chat.stream("the cat"))
    assert "".join(one.content for one in pieces) == whole and len(pieces) > 2
    assert [one.content for one in chat.batch(["the cat", "the cat"])] == [whole, whole]


def test_langchain_reads_conversations_and_log_probabilities(chat):
    found = chat.bind(logprobs=True, top_logprobs=2).invoke([("system", "Be brief."), ("user", "the cat")])
    told = found.response_metadata["logprobs"]["content"]
    assert told and all(len(one["top_logprobs"]) == 2 for one in told)


def test_langchain_takes_answers_of_a_form(chat):
    found = chat.bind(max_tokens=60).with_structured_output(SCHEMA, method="json_schema").invoke("the cat")
    assert 0 <= found["n"] <= 9


def test_langchain_takes_vectors(server):
    settings = {"model": "vectors", "check_embedding_ctx_length": False}
    vectors = langchain.OpenAIEmbeddings(base_url=f"{server.address}/v1", api_key="none", **settings)
    found = vectors.embed_documents(["the cat", "a dog"])
    assert len(found) == 2 and vectors.embed_query("the cat") == pytest.approx(found[0], abs=1e-6)
