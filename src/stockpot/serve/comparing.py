"""Compare and vote, over HTTP: two answers to a prompt, blind and in random order, and what people say about them.

Pairs are drawn from a queue of prompts (a file, real chats, thumbs) and kept, so that several people compare the same ones.
Which model wrote which answer never leaves the server before the vote. Everything is written by `feedback`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from stockpot.data.records import asked_of, parse_record
from stockpot.errors import DataError, ServeError, StockpotError
from stockpot.generate.request import Sampling
from stockpot.judge.metrics import score_estimate
from stockpot.serve.app import client_of
from stockpot.serve.feedback import DiskFullError, Feedback, Pair, Thumb, Vote
from stockpot.serve.protocol import Refusal
from stockpot.serve.service import Served, Service, refusal_of
from stockpot.text.chat import Message

__all__ = ["Drawing", "routes", "win_rate"]

PATIENCE_S = 20.0  # of drawing pairs whose two answers turn out the same, before the page is told so
MOST_PROMPTS = 5_000
Open = Callable[[], Feedback]
Result = TypeVar("Result")
Id = Field(min_length=8, max_length=64, pattern="^[A-Za-z0-9_-]+$")
Name = Field(min_length=1, max_length=80)


class _Sent(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Drawing(_Sent):
    """How answers are drawn."""

    temperature: float = Field(0.8, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1, le=100_000)
    max_tokens: int = Field(256, ge=1, le=2048)


class _Turn(_Sent):
    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=400_000)


class _Next(_Sent):
    rater: str = Name
    models: tuple[str, str]
    sampling: Drawing = Drawing()
    taken: tuple[str, ...] = Field((), max_length=16, description="pairs that are on the page already")


class _Cast(_Sent):
    id: str = Id
    pair: str = Field(max_length=64)
    rater: str = Name
    choice: Literal["left", "right", "tie", "skip"]
    why: str | None = Field(None, max_length=4_000)


class _Prompts(_Sent):
    text: str = Field(max_length=1_000_000, description="prompts, one a line, or JSON lines of records")
    source: str = Field("file", max_length=200)


class _Thumbed(_Sent):
    id: str = Id
    messages: tuple[_Turn, ...] = Field(min_length=1, max_length=1000)
    answer: str = Field(max_length=400_000)
    model: str = Field(max_length=512)
    sampling: dict[str, Any] = Field(default_factory=dict, max_length=40)
    is_up: bool
    rater: str = Name


class _Lines(StreamingResponse):
    """JSON, one record a line."""

    media_type = "application/x-ndjson"


def routes(service: Service, open_feedback: Open) -> APIRouter:
    """Make the routes of Compare and vote."""
    router = APIRouter(prefix="/v1/compare")
    draws = asyncio.Lock()

    @router.post("/next")
    async def next_pair(asked: _Next, request: Request) -> dict[str, Any]:
        """Give the next pair for a person, blind; it is drawn now if none waits."""
        feedback = open_feedback()
        served = (service.model(asked.models[0]), service.model(asked.models[1]))
        models = (served[0].name, served[1].name)
        row, is_left = feedback.next_pair(asked.rater, models, asked.taken), True
        if row is None:
            async with draws:  # two people who wait get the same pair
                row = feedback.next_pair(asked.rater, models, asked.taken)
                if row is None:
                    is_left = await _draw(service, feedback, served, asked.sampling, client_of(request))
                    row = feedback.next_pair(asked.rater, models, asked.taken)
        pair = row and _blind(feedback, row, asked.rater)
        return {"pair": pair, "is_left": bool(pair) or is_left, "counts": feedback.counts(asked.rater)}

    @router.post("/prompts")
    def add_prompts(sent: _Prompts) -> dict[str, Any]:
        """Queue prompts to be compared."""
        feedback = open_feedback()
        found = list(prompts_in(sent.text))
        added = sum(_kept(partial(feedback.add_prompt, one, sent.source)) for one in found)
        return {"found": len(found), "added": added, "counts": feedback.counts()}

    @router.get("/summary")
    def summary(rater: str = "", first: str = "", second: str = "") -> dict[str, Any]:
        """Count votes, say how far people agree, and how often the second of two models wins."""
        feedback = open_feedback()
        told = {
            "counts": feedback.counts(rater[:80]),
            "agreement": feedback.agreement(),
            "file": str(feedback.path),
        }
        return told | {
            "wins": win_rate(feedback, first, second) if first and second and first != second else None
        }

    @router.get("/votes.jsonl", response_class=_Lines)
    def export() -> StreamingResponse:
        """Give all comparisons as preference records, one a line."""
        lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in open_feedback().records())
        name = 'attachment; filename="votes.jsonl"'
        return _Lines(lines, headers={"content-disposition": name})

    _add_votes(router, open_feedback)
    _add_thumbs(router, open_feedback)
    return router


def _add_votes(router: APIRouter, open_feedback: Open) -> None:
    @router.post("/votes")
    def vote(cast: _Cast) -> dict[str, Any]:
        """Write a vote down; a repeated one changes nothing."""
        feedback = open_feedback()
        left = feedback.left_side(cast.pair, cast.rater)
        sides = {"left": left, "right": "b" if left == "a" else "a"}
        choice = sides.get(cast.choice, cast.choice)
        is_new = _kept(
            lambda: feedback.add_vote(Vote(cast.id, cast.pair, choice, cast.rater, cast.why or None))
        )
        return {"is_new": is_new, "counts": feedback.counts(cast.rater)}

    @router.delete("/votes/{id}")
    def undo(id: str) -> dict[str, Any]:
        """Take a vote back: it is deleted, and its pair can be voted on again."""
        feedback = open_feedback()
        row = _kept(lambda: feedback.remove_vote(id))
        if row is None:
            raise Refusal(404, "There is no such vote.", code="not_found")
        pair = {name: row[name] for name in ("prompt", "answer_a", "answer_b")} | {"id": row["pair"]}
        return {"pair": _blind(feedback, pair, row["annotator"]), "counts": feedback.counts(row["annotator"])}


def _add_thumbs(router: APIRouter, open_feedback: Open) -> None:
    @router.post("/thumbs")
    def thumb(sent: _Thumbed) -> dict[str, Any]:
        """Write a thumb down and queue its prompt."""
        turns = [one.model_dump() for one in sent.messages]
        made = Thumb(sent.id, turns, sent.answer, sent.model, sent.sampling, sent.is_up, sent.rater)
        feedback = open_feedback()
        _kept(lambda: feedback.add_thumb(made))
        return {"counts": feedback.counts(sent.rater)}

    @router.delete("/thumbs/{id}")
    def undo_thumb(id: str) -> dict[str, Any]:
        """Take a thumb back."""
        feedback = open_feedback()
        if not _kept(lambda: feedback.remove_thumb(id)):
            raise Refusal(404, "There is no such thumb.", code="not_found")
        return {"counts": feedback.counts()}


def win_rate(feedback: Feedback, first: str, second: str) -> dict[str, Any] | None:
    """Say how often people preferred the second model, a tie being half; None without a vote."""
    wins = []
    for row in feedback.votes_of((first, second)):
        if row["choice"] != "skip":
            won = row["choice"] if row["choice"] == "tie" else row[f"model_{row['choice']}"]
            wins.append({"tie": 0.5, second: 1.0}.get(won, 0.0))
    if not wins:
        return None
    estimate = score_estimate(wins, chance=0.5)
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def prompts_in(text: str) -> Iterator[list[dict[str, str]]]:
    """Read prompts: JSON lines of any kind of record that asks something, or one prompt a line.

    Raises:
        Refusal: if a line is JSON and no such record, or there are too many.
    """
    lines = [line for line in text.split("\n") if line.strip()]  # other separators may stand inside a text
    if not 1 <= len(lines) <= MOST_PROMPTS:
        raise Refusal(400, f"{len(lines):,} prompts: send 1 to {MOST_PROMPTS:,} at once.", param="text")
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("{"):
            yield [{"role": "user", "content": line.strip()}]
            continue
        try:
            messages, _ = asked_of(parse_record(json.loads(line), f"line {number}"))
        except (DataError, ValueError, RecursionError) as error:
            raise Refusal(400, f"Line {number}: {error}"[:500], param="text") from None
        yield [{"role": one.role, "content": one.content} for one in messages]


async def _draw(
    service: Service, feedback: Feedback, served: tuple[Served, Served], drawing: Drawing, client: str
) -> bool:
    """Draw a pair for the next prompt that both models can answer; pairs of equal answers are kept out of sight.

    False: no prompt is left; True: a pair was drawn, or time is up and prompts are left.

    Raises:
        StockpotError: if a model cannot answer, or cannot answer any of the prompts that are left.
    """
    models = (served[0].name, served[1].name)
    unfit: dict[str, StockpotError] = {}
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        row = await asyncio.to_thread(feedback.next_prompt, models, list(unfit))
        if row is None and unfit:
            raise next(iter(unfit.values()))
        if row is None:
            return False
        prompt = json.loads(row["prompt"])
        given = models.index(row["model"]) if row["model"] in models else None
        settings = [_settings(one, drawing) for one in served]
        try:
            answers = await asyncio.gather(
                *(
                    _given(row)
                    if side == given
                    else _answer(service, served[side], prompt, settings[side], client)
                    for side in (0, 1)
                )
            )
        except StockpotError as error:
            refusal = refusal_of(error)
            if refusal.status != 400 or refusal.code == "model_not_supported":  # it is not the prompt's fault
                raise
            unfit[row["id"]] = error
            continue
        told = [one.model_dump(exclude_unset=True) for one in settings]
        if given is not None:
            told[given] = json.loads(row["sampling"])
        pair = Pair(
            uuid.uuid4().hex,
            row["id"],
            prompt,
            (answers[0], answers[1]),
            models,
            (told[0], told[1]),
            row["source"],
        )
        await asyncio.to_thread(_kept, partial(feedback.add_pair, pair))
        if answers[0].strip() != answers[1].strip():
            return True
    return True


def _settings(served: Served, drawing: Drawing) -> Sampling:
    known = Sampling.suggested(served.bundle.generation).model_dump(exclude_unset=True)
    asked = {key: value for key, value in drawing.model_dump().items() if value is not None}
    return Sampling(**known | asked | {"seed": secrets.randbelow(2**31)})


async def _given(row: sqlite3.Row) -> str:
    return str(row["answer"])


async def _answer(
    service: Service, served: Served, prompt: Sequence[dict[str, str]], sampling: Sampling, client: str
) -> str:
    messages = [Message(one["role"], one["content"]) for one in prompt]
    asked = messages if served.chats else messages[-1].content
    async with service.answer(served.name, asked, sampling, client=client) as answer:
        (written,) = await answer.completions()
    return written.text


def _blind(feedback: Feedback, row: Any, rater: str) -> dict[str, Any]:
    """Show a pair without saying who wrote what."""
    left = feedback.left_side(row["id"], rater)
    right = "b" if left == "a" else "a"
    return {
        "id": row["id"],
        "prompt": json.loads(row["prompt"]),
        "left": row[f"answer_{left}"],
        "right": row[f"answer_{right}"],
    }


def _kept(write: Callable[[], Result]) -> Result:
    """Write, and say as HTTP does what went wrong."""
    try:
        return write()
    except DiskFullError as error:
        raise Refusal(507, str(error), code="disk_full") from None
    except ServeError as error:
        raise Refusal(409, str(error), code="conflict") from None
