"""Exports of tools in which people compare answers: Label Studio and Open WebUI.

One entry of such a file may hold several comparisons, or none, so entries are unfolded before each is read as a record. What is
no such export passes through as it is. Nothing here checks texts; `records` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from stockpot.data.formats import Raw
from stockpot.errors import DataError

__all__ = ["unfold"]

_ANSWERS = (("answer1", "answer2"), ("answer_a", "answer_b"), ("response_a", "response_b"), ("left", "right"))
_PROMPTS = ("prompt", "question", "instruction")


def unfold(where: str, value: object) -> Iterator[Raw]:
    """Give the comparisons in an entry of an export; anything else is given back as it is.

    Entries in which nothing was compared (a skipped task, a thumb without a second answer) give nothing.

    Raises:
        DataError: if an entry was recognised and lacks what a comparison needs.
    """
    if isinstance(value, Mapping) and isinstance(value.get("annotations"), list) and "data" in value:
        yield from _label_studio(where, value)
    elif isinstance(value, Mapping) and isinstance(value.get("snapshot"), Mapping) and "data" in value:
        yield from _open_webui(where, value)
    else:
        yield where, value


# --- Label Studio ---


def _label_studio(where: str, task: Mapping[str, Any]) -> Iterator[Raw]:
    """Read a task of the JSON export: two answers in ``data``, and in each annotation which side was selected."""
    data = task["data"]
    if not isinstance(data, Mapping):
        raise DataError(f'{where}: "data" must be an object with the prompt and both answers.')
    sides = next((pair for pair in _ANSWERS if data.keys() >= set(pair)), None)
    asked = next((name for name in _PROMPTS if name in data), None)
    for annotation in task["annotations"]:
        selected = _selected(annotation)
        if selected is None:
            continue
        if sides is None or asked is None:
            names = " or ".join(" and ".join(pair) for pair in _ANSWERS)
            raise DataError(
                f'{where}: "data" of a pairwise task needs a prompt ({", ".join(_PROMPTS)}) and two answers ({names}).',
                "Name the fields of the labelling task so.",
            )
        rater = annotation.get("completed_by")
        rater = rater.get("email", rater.get("id")) if isinstance(rater, Mapping) else rater
        yield (
            where,
            {
                "prompt": data[asked],
                "response_a": data[sides[0]],
                "response_b": data[sides[1]],
                "winner": selected,
                "annotator": None if rater is None else str(rater),
                "created": annotation.get("created_at"),
                "source": "label-studio",
            },
        )


def _selected(annotation: object) -> str | None:
    """Tell which side an annotation selected; None: it was cancelled, or compares nothing."""
    if not isinstance(annotation, Mapping) or annotation.get("was_cancelled"):
        return None
    for result in annotation.get("result") or ():
        if isinstance(result, Mapping) and result.get("type") == "pairwise":
            value = result.get("value")
            return str(value["selected"]) if isinstance(value, Mapping) and value.get("selected") else None
    return None


# --- Open WebUI ---


def _open_webui(where: str, feedback: Mapping[str, Any]) -> Iterator[Raw]:
    """Read a feedback of the export: a thumb on one answer; those beside it in the chat are what it was compared with."""
    data, meta = feedback["data"], feedback.get("meta") or {}
    messages = _history(feedback["snapshot"])
    if not isinstance(data, Mapping) or not isinstance(meta, Mapping) or messages is None:
        raise DataError(f'{where}: a feedback of Open WebUI needs "data", "meta" and the chat in "snapshot".')
    rating = str(data.get("rating"))
    rated = messages.get(str(meta.get("message_id")))
    if rating not in ("1", "-1") or not isinstance(rated, Mapping):
        return
    prompt = list(reversed([*_ancestors(messages, rated)]))
    for key, other in messages.items():
        if key == str(meta.get("message_id")) or not isinstance(other, Mapping):
            continue
        if other.get("parentId") != rated.get("parentId") or other.get("role") != "assistant":
            continue
        better, worse = (rated, other) if rating == "1" else (other, rated)
        yield (
            where,
            {
                "prompt": prompt,
                "chosen": better.get("content"),
                "rejected": worse.get("content"),
                "annotator": None if feedback.get("user_id") is None else str(feedback["user_id"]),
                "created": _time(feedback.get("created_at")),
                "source": "open-webui",
            },
        )


def _history(snapshot: object) -> Mapping[str, Any] | None:
    """Find the messages of a chat by their ids, however deep the export has wrapped it."""
    while isinstance(snapshot, Mapping):
        history = snapshot.get("history")
        if isinstance(history, Mapping) and isinstance(history.get("messages"), Mapping):
            found: Mapping[str, Any] = history["messages"]
            return found
        snapshot = snapshot.get("chat")
    return None


def _ancestors(messages: Mapping[str, Any], message: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give what was said before a message, the latest first; a chain that runs in a circle ends."""
    seen: set[str] = set()
    at = message.get("parentId")
    while isinstance(at, str) and at not in seen and isinstance(messages.get(at), Mapping):
        seen.add(at)
        yield {"role": messages[at].get("role"), "content": messages[at].get("content")}
        at = messages[at].get("parentId")


def _time(seconds: object) -> str | None:
    if isinstance(seconds, int | float) and 0 < seconds < 1e11:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    return None
