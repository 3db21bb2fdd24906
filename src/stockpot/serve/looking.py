"""Look inside, over HTTP: what a model expected at each token, what each layer would have said, where each head looks.

A text is its ids here, so that one token can be changed and the rest gone on from there exactly. Forward passes run in the
engine's thread between two steps, and the last few readings are kept there, since the page asks about one token after another.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from typing import Any

import torch
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from stockpot.bundle import Bundle
from stockpot.generate.engine import Engine
from stockpot.generate.request import Sampling
from stockpot.judge.look import Reading, lens, read
from stockpot.serve.app import client_of
from stockpot.serve.asking import message_of
from stockpot.serve.protocol import ChatMessage, Refusal
from stockpot.serve.service import Service

__all__ = ["MOST_TOKENS", "routes"]

MOST_TOKENS = 512  # 30 layers of 9 heads at this length take 280 MB while they are computed
KEPT = 3
Ids = list[int]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    model: str | None = Field(None, max_length=512)


class _Text(_Asked):
    """A text, or a conversation whose last message is the assistant's, or ids."""

    text: str | None = Field(None, max_length=100_000)
    messages: list[ChatMessage] | None = Field(None, max_length=1000)
    ids: Ids | None = Field(None, max_length=MOST_TOKENS)


class _Place(_Asked):
    ids: Ids = Field(min_length=1, max_length=MOST_TOKENS)
    place: int = Field(ge=0)


class _Further(_Asked):
    ids: Ids = Field(min_length=1, max_length=MOST_TOKENS)
    max_tokens: int = Field(16, ge=1, le=128)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = Field(None, ge=0, lt=2**63)


class _Gaps(_Asked):
    text: str = Field(min_length=1, max_length=20_000)
    top: int = Field(8, ge=1, le=50)


class _Readings:
    """The last readings of all models; touched by the engine's thread alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, tuple[int, ...]], tuple[Bundle, Reading]] = OrderedDict()

    def of(self, engine: Engine, ids: Ids) -> Reading:
        """Read ids, or remember that they were read."""
        key = (id(engine.bundle), tuple(ids))
        if key not in self._kept:
            _check(engine.bundle, ids)
            reading = read(engine.bundle, ids, most=MOST_TOKENS)
            self._kept[key] = (engine.bundle, reading)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key][1]


def routes(service: Service) -> APIRouter:
    """Make the routes of Look inside."""
    router = APIRouter(prefix="/v1/look")
    readings = _Readings()

    @router.post("")
    async def look(asked: _Text) -> dict[str, Any]:
        """Read a text: every token with its probability and what else could stand there."""

        def work(engine: Engine) -> dict[str, Any]:
            ids, prompt = _ids(engine.bundle, asked)
            return _told(engine.bundle, readings.of(engine, ids), prompt)

        return await service.run(work, asked.model)

    @router.post("/token")
    async def token(asked: _Place) -> dict[str, Any]:
        """Say what each layer would have said at a place, and where each head looks from there."""

        def work(engine: Engine) -> dict[str, Any]:
            reading = readings.of(engine, asked.ids)
            if asked.place >= len(asked.ids):
                raise Refusal(400, f"There is no token {asked.place}.", param="place")
            layers = lens(engine.bundle, reading, asked.place)
            looks = (reading.attention[:, :, asked.place] * 255).round().to(torch.uint8).contiguous()
            told = [
                {"probability": one.probability, "alternatives": one.alternatives} for one in layers or ()
            ]
            return {"layers": told, "attention": base64.b64encode(looks.numpy().tobytes()).decode()}

        return await service.run(work, asked.model)

    @router.post("/continue")
    async def go_on(asked: _Further, request: Request) -> dict[str, Any]:
        """Go on from ids, as the engine writes: with a temperature and a seed."""
        served = service.model(asked.model)
        _check(served.bundle, asked.ids)
        sampling = Sampling(max_tokens=asked.max_tokens, temperature=asked.temperature, seed=asked.seed)
        async with service.answer(served.name, asked.ids, sampling, client=client_of(request)) as answer:
            (written,) = await answer.completions()
        return {"ids": [*asked.ids, *written.ids], "finish_reason": written.finish_reason}

    @router.post("/fill")
    async def fill(asked: _Gaps) -> dict[str, Any]:
        """Fill each gap of a text, written ___."""

        def work(engine: Engine) -> dict[str, Any]:
            tokenizer = engine.bundle.tokenizer
            mask = tokenizer.mask_id
            spelled = asked.text if mask is None else asked.text.replace("___", tokenizer.id_to_token(mask))
            gaps = engine.fill(spelled, top=asked.top)
            return {
                "gaps": [
                    [{"token": one.token, "probability": one.probability} for one in gap] for gap in gaps
                ]
            }

        return await service.run(work, asked.model)

    return router


def _check(bundle: Bundle, ids: Ids) -> None:
    most = min(MOST_TOKENS, bundle.context)
    if not 1 <= len(ids) <= most:
        raise Refusal(
            400,
            f"The text has {len(ids):,} tokens; looking inside takes 1 to {most}. Shorten it.",
            param="ids",
        )
    if min(ids) < 0 or max(ids) >= bundle.model.config.vocab_size:
        raise Refusal(400, f"Token ids lie between 0 and {bundle.model.config.vocab_size - 1}.", param="ids")


def _ids(bundle: Bundle, asked: _Text) -> tuple[Ids, int]:
    """Turn what is asked about into ids, and say how many of them were given to the model."""
    if asked.ids is not None:
        return list(asked.ids), 0
    if asked.messages:
        turns = [message_of(one, number) for number, one in enumerate(asked.messages)]
        answer = turns.pop().content if turns[-1].role == "assistant" else ""
        if bundle.template is None or not turns:
            text = "\n".join([*(one.content for one in turns), answer])
            return bundle.encode(text), 0
        prompt = bundle.encode(turns)
        return [*prompt, *bundle.tokenizer.encode(answer)], len(prompt)
    if not (asked.text or "").strip():
        raise Refusal(400, "There is no text to look at.", param="text")
    return bundle.encode(asked.text or ""), 0


def _told(bundle: Bundle, reading: Reading, prompt: int) -> dict[str, Any]:
    layers, heads = reading.attention.shape[:2]
    return {
        "shape": reading.shape,
        "layers": layers,
        "heads": heads,
        "prompt_tokens": prompt,
        "tokens": [
            {
                "id": one.id,
                "text": one.text,
                "probability": one.probability,
                "is_special": one.id in bundle.tokenizer.special_ids.values(),
                "alternatives": [
                    [text, probability, id]
                    for (text, probability), id in zip(one.alternatives, one.alternative_ids, strict=True)
                ],
            }
            for one in reading.tokens
        ],
    }
