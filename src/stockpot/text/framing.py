"""The special tokens that stand around a text before a model reads it.

A tokenizer.json may say so in its post-processor: ``[CLS] … [SEP]``, ``<s> …``, ``… </s>``. That is what the
model was trained with, so it counts before anything else. Nothing here encodes a text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Engine

__all__ = ["Frame", "frame_of", "framing_roles", "with_frame"]

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""The ids before and behind a text."""

_PROBES = ("a", "the", "1", ".")  # one of them has a token in any vocabulary


def _steps(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the steps of a parsed tokenizer.json's post-processor."""
    last = spec.get("post_processor") or {}
    return list(last.get("processors", ())) if last.get("type") == "Sequence" else [last]


def frame_of(spec: Mapping[str, Any], engine: Engine) -> Frame | None:
    """Return what a parsed tokenizer.json puts around a text; None if it says nothing."""
    kinds = {step.get("type") for step in _steps(spec)}
    if kinds.isdisjoint({"TemplateProcessing", "BertProcessing", "RobertaProcessing"}):
        return None
    for text in _PROBES:
        found = engine.encode(text, add_special_tokens=True)
        if 0 in found.special_tokens_mask:
            mask, ids = found.special_tokens_mask, found.ids
            end = len(ids) - mask[::-1].index(0)
            return tuple(ids[: mask.index(0)]), tuple(ids[end:])
    return None


def framing_roles(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the roles that a BERT-like post-processor gives to the tokens it puts around a text."""
    for step in _steps(spec):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return {"cls": step["cls"][0], "sep": step["sep"][0]}
    return {}


def with_frame(source: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Return the text of a tokenizer.json that puts these tokens around a text, so that other programs do as we do.

    A second text is followed by ``after`` alone, as in BERT.
    """
    if not (before or after):
        return source
    spec: dict[str, Any] = json.loads(source)
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    known = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (*before, *after)}

    def piece(token: str, number: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": number}}

    def text(name: str, number: int) -> list[dict[str, Any]]:
        return [{"Sequence": {"id": name, "type_id": number}}, *(piece(token, number) for token in after)]

    first = [*(piece(token, 0) for token in before), *text("A", 0)]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *text("B", 1)],
        "special_tokens": known,
    }
    return json.dumps(spec, ensure_ascii=False)
