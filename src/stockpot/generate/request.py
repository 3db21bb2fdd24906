"""What is asked of the engine, and what it answers.

``Sampling`` holds every setting of a request and refuses impossible ones before any work; the other classes
are plain records. Nothing here computes anything with a model. Log-probabilities are natural logarithms,
always those of the model
itself: bias, penalties, temperature and filters change what is drawn, not what is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from stockpot.config import Settings
from stockpot.errors import GenerationError

if TYPE_CHECKING:
    from torch import Tensor

    from stockpot.image import Image
    from stockpot.text.chat import Message

__all__ = [
    "Chunk",
    "Completion",
    "DamagedModelError",
    "Fill",
    "FinishReason",
    "Prompt",
    "Request",
    "Sampling",
    "Score",
    "TokenAlternatives",
    "merged",
]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout", "error"]
Prompt: TypeAlias = "str | Sequence[Message] | Sequence[str | Image] | Sequence[int]"
TokenAlternatives: TypeAlias = tuple[tuple[int, float], ...]

LARGEST_SEED = 2**63 - 1


class DamagedModelError(GenerationError):
    """What a model computes are no numbers, so that nothing can be drawn from it, or compared with it."""

    def __init__(self) -> None:
        super().__init__(
            "What this model computes are no numbers (NaN or infinity).",
            "Its weights are damaged, or too large for their type: load it again, in float32.",
        )


class Sampling(Settings):
    """How a completion is drawn.

    Order of operations on the logits: bias and constraints → penalties (repetition, presence, frequency) →
    temperature → top-k → top-p → min-p → draw.
    """

    max_tokens: int = Field(128, ge=1, description="longest completion, in tokens")
    min_tokens: int = Field(
        0, ge=0, description="ids that end an answer are not drawn before this many tokens"
    )
    temperature: float = Field(1.0, ge=0, description="divides the logits; 0 = always the likeliest token")
    top_k: int | None = Field(None, ge=1, description="draw from the k likeliest tokens only; None = all")
    top_p: float | None = Field(
        None, gt=0, le=1, description="draw from the smallest set holding this probability; None = all"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="least probability, as a share of the likeliest token's; None = 0"
    )
    repetition_penalty: float | None = Field(
        None,
        gt=0,
        description="divides positive and multiplies negative logits of ids seen before, in what it continues; 1 = off",
    )
    presence_penalty: float | None = Field(
        None, description="subtracted from the logits of ids in the completion, once"
    )
    frequency_penalty: float | None = Field(
        None,
        description="subtracted from the logits of ids in the completion, per occurrence",
    )
    logit_bias: dict[int, Annotated[float, Field(allow_inf_nan=True)]] | None = Field(
        None, description="token id → number added to its logit"
    )
    stop: tuple[str, ...] = Field((), description="texts that end the completion; they are not part of it")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="same seed, same text, whatever else is running"
    )
    n: int = Field(1, ge=1, description="completions of each prompt")
    beams: int | None = Field(None, ge=1, description="beam search with this many beams instead of drawing")
    length_penalty: float = Field(
        1.0,
        ge=-10,
        le=10,
        description="beams are ranked by log-probability / length ** this; above 1 favours long answers",
    )
    logprobs: int | None = Field(
        None, ge=0, le=20, description="report log-probabilities, with this many alternatives"
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="the answer is JSON that follows this schema; needs the extra stockpot[constrain]"
    )
    lookup: int | None = Field(
        None,
        ge=1,
        le=64,
        description="guess up to this many tokens a step from earlier text and check them together; same answer",
    )
    timeout_s: float | None = Field(
        None, gt=0, description="seconds from submission after which an answer is cut"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Sampling:
        if "" in self.stop:
            raise ValueError("an empty stop text would end every completion at once")
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is more than max_tokens {self.max_tokens}")
        if any(id < 0 or not bias < math.inf for id, bias in (self.logit_bias or {}).items()):
            raise ValueError(
                "logit_bias needs ids of at least 0 and numbers; -inf forbids an id, inf is none"
            )
        if self.beams is not None:
            drawing = [
                name for name in ("top_k", "top_p", "min_p", "seed") if getattr(self, name) is not None
            ]
            if drawing:
                raise ValueError(f"beam search draws nothing; take out {', '.join(drawing)} or beams")
            if self.logprobs is not None:
                raise ValueError("beam search reports no alternatives; take out logprobs or beams")
            single = [
                name for name in ("json_schema", "lookup", "timeout_s") if getattr(self, name) is not None
            ]
            if single:
                raise ValueError(f"beam search does not know {', '.join(single)}; take it out, or beams")
            if self.n > self.beams:
                raise ValueError(f"{self.beams} beams cannot give n = {self.n} completions")
        return self

    @classmethod
    def suggested(cls, generation: Mapping[str, Any]) -> Sampling:
        """Read the settings a model came with, such as ``generation_config.json`` names them.

        Values that other programs use for "off" are left out, and so is what is not a way of drawing.
        """
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        found = {name: generation[name] for name in names if generation.get(name)}
        if generation.get("do_sample") is False:
            found = {"temperature": 0.0}
        return cls.model_validate(found)

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True)
class Request:
    """One completion to make.

    Attributes:
        prompt: text, messages, or ids that are used as they are.
        sampling: how to draw.
        index: which of the ``n`` completions of a prompt this is; it sets seeds apart.
        allowed: constraint: completion so far → ``(vocab,)`` bool mask of the ids that may follow; None
            allows all.
    """

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    index: int = 0
    allowed: Callable[[Sequence[int]], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a completion, cut where text is whole: never inside a character or a possible stop text.

    Attributes:
        request: the number that ``submit`` returned.
        text: text released by this step; may be empty.
        ids: ids drawn since the last chunk, the id that ended the completion included.
        finish_reason: None while more is to come.
        log_probs: the model's log-probability of each of ``ids``; empty unless asked for.
        alternatives: for each of ``ids`` the likeliest (id, log-probability) pairs; empty unless asked for.
        error: why it cannot go on, with the reason ``"error"``; ``generate`` and ``stream`` raise it.
    """

    request: int
    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    log_probs: tuple[float, ...] = ()
    alternatives: tuple[TokenAlternatives, ...] = ()
    error: GenerationError | None = None


def merged(chunks: Sequence[Chunk]) -> Chunk:
    """Join the chunks of one request into one."""
    if len(chunks) == 1:
        return chunks[0]
    return Chunk(
        chunks[0].request,
        "".join(chunk.text for chunk in chunks),
        tuple(id for chunk in chunks for id in chunk.ids),
        chunks[-1].finish_reason,
        tuple(value for chunk in chunks for value in chunk.log_probs),
        tuple(pairs for chunk in chunks for pairs in chunk.alternatives),
        chunks[-1].error,
    )


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    Attributes:
        text: what was written, without what ended it.
        ids: every id the model wrote, the one that ended the answer included.
        finish_reason: ``"stop"``: the model, a stop text or the end of the JSON ended it; ``"length"``: max_tokens
            or the context was reached; ``"timeout"``: ``timeout_s`` had passed.
        prompt_tokens: ids of the prompt.
        log_probs: the model's log-probability of each id; empty unless ``logprobs`` was set.
        alternatives: for each id the likeliest (id, log-probability) pairs; empty unless ``logprobs`` was
            set.
        beam_score: log-probability / length ** length_penalty; None unless ``beams`` was set.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    log_probs: tuple[float, ...] = ()
    alternatives: tuple[TokenAlternatives, ...] = ()
    beam_score: float | None = None

    @classmethod
    def of(cls, chunks: Sequence[Chunk], prompt_tokens: int) -> Completion:
        """Make one of all chunks of a finished request.

        Raises:
            GenerationError: that of the request, if it failed.
        """
        whole = merged(chunks)
        if whole.error is not None:
            raise whole.error
        assert whole.finish_reason is not None  # only finished requests are joined
        return cls(
            whole.text, whole.ids, whole.finish_reason, prompt_tokens, whole.log_probs, whole.alternatives
        )

    @property
    def tokens(self) -> int:
        """Number of ids the model wrote."""
        return len(self.ids)


@dataclass(frozen=True)
class Score:
    """How likely a model finds a given completion of a given prompt.

    Attributes:
        log_prob: summed over the completion's tokens, nats.
        tokens: tokens of the completion.
        bytes: UTF-8 bytes of the completion.
        is_greedy: whether the model would write exactly this at temperature 0.
        gap: how far the logit of the completion's least likely token, compared with the best other one, stands above that;
            negative where something else would be written.
    """

    log_prob: float
    tokens: int
    bytes: int
    is_greedy: bool
    gap: float


@dataclass(frozen=True)
class Fill:
    """One way to fill a gap: a token and its id, its probability, and the text with the gap filled."""

    token: str
    id: int
    probability: float
    text: str
