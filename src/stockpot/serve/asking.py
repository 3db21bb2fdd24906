"""From a request in OpenAI's shape to a prompt and sampling settings. What cannot be done here is refused by name."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from stockpot.generate.request import Prompt, Sampling
from stockpot.image import Image
from stockpot.serve.protocol import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    EmbeddingRequest,
    Refusal,
)
from stockpot.serve.service import Served
from stockpot.serve.settings import ServeConfig
from stockpot.text.chat import Message

__all__ = [
    "chat_sampling",
    "completion_prompts",
    "completion_sampling",
    "message_of",
    "messages_of",
    "texts_of",
    "vector",
]

COMPLETION_TOKENS = 16  # as OpenAI's completions write when none are named
DRAWING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def messages_of(asked: ChatRequest) -> list[Message]:
    """Return a conversation.

    Raises:
        Refusal: for content that is neither text nor a picture in the request itself, and where a tool must be called.
    """
    if asked.tool_choice not in (None, "none", "auto"):
        raise Refusal(
            400,
            "No tool is ever called here; leave tool_choice out.",
            param="tool_choice",
            code="unsupported_parameter",
        )
    return [message_of(one, number) for number, one in enumerate(asked.messages)]


def message_of(given: ChatMessage, number: int) -> Message:
    """Return one turn, the ``number``-th; errors as of `messages_of`."""
    where = f"messages.{number}"
    role = {"developer": "system", "function": "tool"}.get(given.role, given.role)
    if isinstance(given.content, str) or given.content is None:
        return Message(role, given.content or "")
    parts = [_part(part, f"{where}.content") for part in given.content]
    if any(isinstance(part, Image) for part in parts):
        return Message(role, parts)
    return Message(role, "".join(part for part in parts if isinstance(part, str)))


def _part(given: ContentPart, where: str) -> str | Image:
    """Read a part of a message: text, or a picture that is in the request itself."""
    if given.type == "text" and given.text is not None:
        return given.text
    if given.type != "image_url" or given.image_url is None:
        raise Refusal(
            400,
            f"A part of {where} is of the type {given.type[:40]!r}; text and image_url are taken.",
            param=where,
            code="unsupported_content",
        )
    head, comma, data = given.image_url.url.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise Refusal(
            400,
            "A picture comes as a data URL (data:image/png;base64,…). Nothing is fetched.",
            param=where,
            code="unsupported_content",
        )
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        raise Refusal(400, "A picture's data URL is not base64.", param=where) from None
    return Image(content)


def chat_sampling(asked: ChatRequest, served: Served, config: ServeConfig) -> Sampling:
    """Return how a chat's answer is drawn.

    Raises:
        Refusal: for settings that contradict each other.
    """
    if asked.top_logprobs and not asked.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs.", param="top_logprobs")
    most = asked.max_completion_tokens or asked.max_tokens or config.max_tokens
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return _sampling(asked, served, most, logprobs)


def completion_sampling(asked: CompletionRequest, served: Served) -> Sampling:
    """Return how a completion is drawn.

    Raises:
        Refusal: for settings that are not supported or contradict each other.
    """
    if asked.suffix:
        raise Refusal(400, "suffix is not supported.", param="suffix", code="unsupported_parameter")
    if asked.best_of not in (None, asked.n or 1):
        raise Refusal(400, "best_of is not supported.", param="best_of", code="unsupported_parameter")
    if asked.echo and asked.logprobs is not None:
        message = "Log-probabilities of the prompt are not given: take out echo or logprobs."
        raise Refusal(400, message, param="echo", code="unsupported_parameter")
    return _sampling(asked, served, asked.max_tokens or COMPLETION_TOKENS, asked.logprobs)


def _sampling(
    asked: ChatRequest | CompletionRequest,
    served: Served,
    most: int,
    logprobs: int | None,
) -> Sampling:
    values: dict[str, Any] = Sampling.suggested(served.bundle.generation).model_dump(exclude_unset=True)
    given = {name: getattr(asked, name) for name in DRAWING}
    values |= {name: value for name, value in given.items() if value is not None}
    if values.get("top_p") == 0:
        values |= {"top_p": None, "temperature": 0.0}
    if asked.logit_bias:
        values["logit_bias"] = _biases(asked.logit_bias, served.bundle.model.config.vocab_size)
    stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
    seed = None if asked.seed is None else asked.seed % 2**63
    try:
        return Sampling(
            **values
            | {
                "max_tokens": most,
                "n": asked.n or 1,
                "seed": seed,
                "stop": stop,
                "logprobs": logprobs,
                "json_schema": _schema(asked),
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Refusal(400, first["msg"], param=".".join(map(str, first["loc"])) or None) from None


def _biases(given: Mapping[str, float], vocab: int) -> dict[int, float]:
    biases = {
        int(id): value for id, value in given.items() if id.isascii() and id.isdecimal() and len(id) < 10
    }
    if len(biases) < len(given) or any(id >= vocab for id in biases):
        raise Refusal(400, f"logit_bias takes token ids, 0 to {vocab - 1}.", param="logit_bias")
    return biases


def _schema(asked: ChatRequest | CompletionRequest) -> dict[str, Any] | None:
    form = asked.response_format
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return {"type": "object"}
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise Refusal(400, "response_format needs json_schema.schema.", param="response_format")
    return form.json_schema.schema_


def completion_prompts(asked: CompletionRequest) -> list[Prompt]:
    """Return the prompts of a completion.

    Raises:
        Refusal: if there is none.
    """
    prompts = _several(asked.prompt)
    if not prompts or not all(prompts):
        raise Refusal(400, "The prompt is empty.", param="prompt")
    if len(prompts) * (asked.n or 1) > 64:
        raise Refusal(400, "More than 64 completions are asked for at once.", param="n")
    return prompts


def texts_of(asked: EmbeddingRequest) -> list[str]:
    """Return the texts that are to become vectors.

    Raises:
        Refusal: for token ids, which mean something else to each model, and for empty texts.
    """
    texts = _several(asked.input)
    if not all(isinstance(text, str) for text in texts):
        message = "Give texts, not token ids (in LangChain: check_embedding_ctx_length=False)."
        raise Refusal(400, message, param="input", code="unsupported_content")
    if not texts:
        raise Refusal(400, "input is an empty list; give a text or several.", param="input")
    if not all(texts):
        raise Refusal(400, "A text of input is empty.", param="input")
    return [str(text) for text in texts]


def _several(given: str | Sequence[Any]) -> list[Any]:
    if isinstance(given, str):
        return [given]
    return [list(given)] if given and isinstance(given[0], int) else list(given)


def vector(numbers: Sequence[float], form: str) -> list[float] | str:
    """Write a vector as numbers or, as OpenAI's client asks for it, as float32 in base64."""
    if form == "float":
        return list(numbers)
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode("ascii")
