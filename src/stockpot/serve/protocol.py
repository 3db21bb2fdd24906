"""What travels: requests and answers in the shape of OpenAI's service, and refusals in its shape of errors.

Bounds on lists and numbers are checked here, before any work. Settings of theirs that we do not know are passed over, as
other servers do; those that would change an answer and are not done here are refused. Settings of ours beside theirs: top_k,
min_p, repetition_penalty, documents.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from stockpot.errors import ServeError

__all__ = [
    "UNFORESEEN",
    "ChatMessage",
    "ChatRequest",
    "CompletionRequest",
    "EmbeddingRequest",
    "ErrorBody",
    "Refusal",
    "ResponseFormat",
    "StreamOptions",
]

MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES = 8, 16, 20
UNFORESEEN = "Something unforeseen happened; the server's log says what."
LARGEST = 2**31 - 1  # of counts; more than any context

Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=256)]
Ids: TypeAlias = list[Annotated[int, Field(ge=0, le=LARGEST)]]


class Refusal(ServeError):
    """An answer that is an error: a status and what OpenAI's clients read.

    Args:
        status: of HTTP.
        message: what was found, and what to do.
        code: a word for programs.
        param: the setting it is about.
        retry_after_s: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The error as it is sent."""
        return {"error": {"message": self.what, "type": self._kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """What is said beside it."""
        found = (
            {} if self.retry_after_s is None else {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}
        )
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def _kind(self) -> str:
        if self.status in _KINDS:
            return _KINDS[self.status]
        return "server_error" if self.status >= 500 else "invalid_request_error"


_KINDS = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}


class ErrorFacts(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error."""

    error: ErrorFacts


class _Taken(BaseModel):
    """What a client sends; unknown settings are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class ImageURL(_Taken):
    """Where a picture is: in the request itself, as a data URL; nothing is fetched."""

    url: str


class ContentPart(_Taken):
    """A part of a message: text, or a picture for a model with eyes."""

    type: str
    text: str | None = None
    image_url: ImageURL | None = None


class ChatMessage(_Taken):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class JSONSchemaFormat(_Taken):
    """A schema under a name."""

    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(_Taken):
    """Which form an answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchemaFormat | None = None


class StreamOptions(_Taken):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


class _Drawing(_Taken):
    """Settings that chats and completions share."""

    model: str | None = Field(None, max_length=512, description="which of /v1/models; by default the first")
    max_tokens: int | None = Field(None, ge=1, le=LARGEST)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=1, le=LARGEST)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=512)


class ChatRequest(_Drawing):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, le=LARGEST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    documents: bool | None = Field(
        None, description="answer from the server's documents; by default where it has some"
    )
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = Field(
        None, description="tools may be offered, but none is ever called"
    )


class CompletionRequest(_Drawing):
    """POST /v1/completions."""

    prompt: (
        str | Annotated[list[str], Field(max_length=64)] | Ids | Annotated[list[Ids], Field(max_length=64)]
    )
    logprobs: int | None = Field(None, ge=0, le=MOST_ALTERNATIVES)
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1, le=LARGEST)


class EmbeddingRequest(_Taken):
    """POST /v1/embeddings."""

    model: str | None = Field(None, max_length=512)
    input: (
        str
        | Annotated[list[str], Field(max_length=2048)]
        | Ids
        | Annotated[list[Ids], Field(max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, le=LARGEST)
    user: str | None = Field(None, max_length=512)
