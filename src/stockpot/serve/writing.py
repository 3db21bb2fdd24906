"""From chunks to answers in OpenAI's shape, whole or as server-sent events.

A token's log-probability leaves with the text it belongs to: tokens of which a stop text was made are not reported, so that
the reported tokens together spell the answer.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stockpot.bundle import Bundle
from stockpot.errors import StockpotError
from stockpot.generate.request import Chunk, TokenAlternatives
from stockpot.serve.service import Answer, refusal_of

__all__ = ["Writing", "error_frame", "frames", "whole"]

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # OpenAI's, for what JSON does not know: infinity and what is no number
REASONS = {"stop": "stop", "length": "length", "timeout": "length", "cancelled": "length"}


@dataclass(frozen=True)
class Written:
    """What one chunk adds to a choice: text, why it ended, and the tokens whose text is out."""

    text: str
    reason: str | None
    tokens: list[tuple[int, float, TokenAlternatives]]
    start: int = 0  # characters of the tokens told before


@dataclass
class Choice:
    """One completion on its way out."""

    bundle: Bundle
    released: int = 0
    told: int = 0
    spelled: int = 0
    count: int = 0
    held: list[tuple[int, float, TokenAlternatives]] = field(default_factory=list)

    def push(self, chunk: Chunk) -> Written:
        """Take a chunk.

        Raises:
            GenerationError: if the completion failed.
        """
        if chunk.error is not None:
            raise chunk.error
        self.count += len(chunk.ids)
        self.released += len(chunk.text.encode())
        alternatives = chunk.alternatives or ((),) * len(chunk.log_probs)
        self.held += zip(chunk.ids, chunk.log_probs, alternatives, strict=False)
        reason = None if chunk.finish_reason is None else REASONS[chunk.finish_reason]
        tokens, start = [], self.spelled
        while self.held and not self._ends(self.held[0][0]):
            size = len(_bytes(self.bundle, self.held[0][0]))
            if self.told + size > self.released + 1:  # some decoders drop a text's first blank
                break
            self.told += size
            tokens.append(self.held.pop(0))
            self.spelled += len(_spelled(self.bundle, tokens[-1][0]))
        return Written(chunk.text, reason, tokens, start)

    def _ends(self, id: int) -> bool:
        return id in self.bundle.stop_ids


class Writing:
    """Writes one kind of answer; `Chat` and `Completions` say how a choice looks.

    Args:
        name: of the model.
        is_chat: chat completions, else completions.
        has_logprobs: whether log-probabilities are reported.
    """

    def __init__(self, name: str, *, is_chat: bool, has_logprobs: bool) -> None:
        self.is_chat, self.has_logprobs = is_chat, has_logprobs
        self.head = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": None,
        }

    def frame(self, index: int, written: Written, bundle: Bundle, *, role: bool = False) -> dict[str, Any]:
        """Return a choice as a stream carries it."""
        choice: dict[str, Any] = {"index": index}
        if self.is_chat:
            choice["delta"] = (
                {"role": "assistant", "content": written.text} if role else {"content": written.text}
            )
        else:
            choice["text"] = written.text
        return choice | {
            "logprobs": self.logprobs(written.tokens, bundle, written.start),
            "finish_reason": written.reason,
        }

    def choice(
        self, index: int, parts: Sequence[Written], bundle: Bundle, before: str = ""
    ) -> dict[str, Any]:
        """Return a finished choice."""
        text = before + "".join(part.text for part in parts)
        tokens = [token for part in parts for token in part.tokens]
        said = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.is_chat
            else {"text": text}
        )
        rest = {"logprobs": self.logprobs(tokens, bundle), "finish_reason": parts[-1].reason}
        return {"index": index} | said | rest

    def logprobs(
        self, tokens: Iterable[tuple[int, float, TokenAlternatives]], bundle: Bundle, start: int = 0
    ) -> Any:
        """Return log-probabilities as chats or completions show them; None where they were not asked for.

        ``start``: where the first of the tokens stands in the text.
        """
        if not self.has_logprobs:
            return None
        if self.is_chat:
            return {"content": [_token(bundle, *one) for one in tokens], "refusal": None}
        spelled = [(_spelled(bundle, id), value, others) for id, value, others in tokens]
        return {
            "tokens": [token for token, _, _ in spelled],
            "token_logprobs": [_finite(value) for _, value, _ in spelled],
            "top_logprobs": [_by_spelling(bundle, others) for _, _, others in spelled],
            "text_offset": list(_offsets([token for token, _, _ in spelled], start)),
        }

    def envelope(self, choices: list[dict[str, Any]], *, is_part: bool) -> dict[str, Any]:
        """Put choices into what is sent."""
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self.head | {
            "object": kind + (".chunk" if is_part and self.is_chat else ""),
            "choices": choices,
        }


def _offsets(tokens: Sequence[str], at: int) -> Iterable[int]:
    for token in tokens:
        yield at
        at += len(token)


def _bytes(bundle: Bundle, id: int) -> bytes:
    return bundle.tokenizer.token_bytes(id)


def _spelled(bundle: Bundle, id: int) -> str:
    return _bytes(bundle, id).decode(errors="replace") or bundle.tokenizer.id_to_token(id)


def _by_spelling(bundle: Bundle, others: TokenAlternatives) -> dict[str, float]:
    """Name alternatives by their text; of those spelled alike (parts of a character) the likeliest is told."""
    found: dict[str, float] = {}
    for id, value in others:
        found.setdefault(_spelled(bundle, id), _finite(value))
    return found


def _token(bundle: Bundle, id: int, log_prob: float, others: TokenAlternatives) -> dict[str, Any]:
    def one(id: int, value: float) -> dict[str, Any]:
        return {"token": _spelled(bundle, id), "logprob": _finite(value), "bytes": list(_bytes(bundle, id))}

    return one(id, log_prob) | {"top_logprobs": [one(*pair) for pair in others]}


def _finite(value: float) -> float:
    return value if value > LEAST_LOGPROB else LEAST_LOGPROB


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Count tokens as they are told."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def sources(answer: Answer) -> dict[str, Any]:
    """Tell which passages an answer was shown, by their numbers."""
    found = [
        {
            "number": number,
            "title": hit.title,
            "file": Path(hit.path).name,
            "place": hit.place,
            "text": hit.text,
        }
        for number, hit in enumerate(answer.sources, 1)
    ]
    return {"sources": found} if found else {}


async def whole(writing: Writing, answers: Sequence[Answer], *, echo: Sequence[str] = ()) -> dict[str, Any]:
    """Wait for answers and return them as one object; ``echo``: what is put before those of each."""
    choices: list[dict[str, Any]] = []
    read = wrote = 0
    for place, answer in enumerate(answers):
        bundle = answer.served.bundle
        states = [Choice(bundle) for _ in range(answer.sampling.n)]
        parts: list[list[Written]] = [[] for _ in states]
        async for index, chunk in answer:
            parts[index].append(states[index].push(chunk))
        before = echo[place] if echo else ""
        choices += [writing.choice(len(choices) + i, one, bundle, before) for i, one in enumerate(parts)]
        read += len(answer.prompt)
        wrote += sum(state.count for state in states)
    found = writing.envelope(choices, is_part=False) | {"usage": usage(read, wrote)}
    return found | (sources(answers[0]) if answers else {})


async def frames(
    writing: Writing, answer: Answer, *, has_usage: bool, echo: str = ""
) -> AsyncIterator[bytes]:
    """Yield server-sent events of one prompt's answer; a failure on the way is the last of them."""
    bundle, extra = answer.served.bundle, sources(answer)
    states = [Choice(bundle) for _ in range(answer.sampling.n)]
    blank: dict[str, Any] = {"usage": None} if has_usage else {}
    begun: set[int] = set()
    try:
        async for index, chunk in answer:
            written = states[index].push(chunk)
            is_first = index not in begun
            if is_first and echo:
                written = replace(written, text=echo + written.text)
            if written.text or written.reason or written.tokens or is_first:
                choice = writing.frame(index, written, bundle, role=is_first)
                yield _frame(writing.envelope([choice], is_part=True) | blank | extra)
                begun.add(index)
                extra = {}
    except StockpotError as error:
        if not begun:
            raise
        yield error_frame(error)
    else:
        if has_usage:
            count = usage(len(answer.prompt), sum(state.count for state in states))
            yield _frame(writing.envelope([], is_part=True) | {"usage": count})
    yield DONE


def error_frame(error: StockpotError) -> bytes:
    """Tell an error inside a stream."""
    return _frame(refusal_of(error).body)


def _frame(value: dict[str, Any]) -> bytes:
    return (
        b"data: "
        + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        + b"\n\n"
    )
