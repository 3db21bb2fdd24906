"""The field names of other projects, turned into ours.

Reads Alpaca and Dolly instructions, ShareGPT turns, questions with answers, transcripts like those of HH-RLHF, rated
answers like those of UltraFeedback, and two answers with a winner. What is not recognised stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stockpot.data import fields as field
from stockpot.errors import DataError
from stockpot.text.chat import Message

__all__ = ["NAMES", "translate"]

NAMES = (
    *("instruction", "input", "context", "output", "response", "system"),
    *("conversations", "conversation", "question", "answer"),
    *("completions", "score_chosen", "score_rejected"),
    *("conversation_a", "conversation_b", "response_a", "response_b", "winner"),
)
"""Every key of other projects that is read here."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_SIDES = {"a": "a", "b": "b", "model_a": "a", "model_b": "b", "left": "a", "right": "b"}
_TIES = ("tie", "tie (bothbad)", "both", "neither")


def translate(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rename other projects' fields to ours.

    Raises:
        DataError: if a field that was recognised holds something else than it should.
    """
    fields = dict(value)
    keys = fields.keys()
    answer = next((name for name in ("output", "response") if name in keys), None)
    if "instruction" in keys and answer:
        return {"messages": _from_instruction(fields, answer, where)}
    if keys >= {"instruction", "completions"}:
        return _from_ratings(fields, where)
    if "winner" in keys and (sides := _two_sides(fields)):
        return _from_winner(fields, sides, where)
    if turns := next((name for name in ("conversations", "conversation") if name in keys), None):
        if "messages" not in keys:
            fields["messages"] = _from_turns(fields.pop(turns), where)
    elif keys >= {"question", "answer"} and not keys & {"text", "messages", "prompt"}:
        fields |= {"prompt": fields.pop("question"), "completion": _one_answer(fields.pop("answer"), where)}
    elif keys >= {"prompt", "response"} and not keys & {"completion", "chosen"}:
        fields["completion"] = fields.pop("response")
    if keys >= {"chosen", "rejected"}:
        fields = _with_prompt(fields, where)
        fields = _with_margin(fields, where)
    return _with_system(fields, where)


def _one_answer(value: object, where: str) -> object:
    """Write a number as a person does, and refuse a list of answers; anything else is left for the check of answers."""
    if isinstance(value, list) and not all(isinstance(one, Mapping) for one in value):
        raise DataError(
            f'{where}: "answer" lists {len(value)} answers; a record has one.', "Keep one of them."
        )
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value)
    return value


def _with_system(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Put what the system says, where that is a field of its own, in front of the messages or the prompt."""
    name = "messages" if "messages" in fields else "prompt"
    system = fields.get("system")
    is_asked = name in fields and (name == "messages" or fields.keys() & {"completion", "chosen"})
    if not is_asked or not isinstance(system, str) or not system.strip():
        return fields
    said = fields[name]
    turns = (Message("user", said),) if isinstance(said, str) else field.messages(said, where, name)
    if turns[0].role == "system":
        return fields
    return fields | {name: (Message("system", field.text(system, where, "system")), *turns)}


def _from_instruction(fields: Mapping[str, Any], answer: str, where: str) -> list[dict[str, str]]:
    given = fields.get("input") if "input" in fields else fields.get("context")
    asked = field.text(fields["instruction"], where, "instruction")
    more = field.text(given, where, "input") if given is not None else ""
    messages = [
        {"role": "user", "content": f"{asked}\n\n{more}" if more.strip() else asked},
        {"role": "assistant", "content": field.text(fields[answer], where, answer)},
    ]
    if system := fields.get("system"):
        return [{"role": "system", "content": field.text(system, where, "system")}, *messages]
    return messages


def _from_turns(turns: object, where: str) -> object:
    """Translate ``{"from", "value"}`` turns; anything else is left for the check of messages."""
    if not isinstance(turns, list):
        raise DataError(f'{where}: "conversations" must be a list of turns, not {field.type_name(turns)}.')
    return [
        {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
        if isinstance(turn, Mapping) and turn.keys() >= {"from", "value"} and isinstance(turn["from"], str)
        else turn
        for turn in turns
    ]


# --- preferences ---


def _with_prompt(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Find the prompt of a preference in ``messages`` or in what its two sides share."""
    if "messages" in fields and "prompt" not in fields:
        fields["prompt"] = fields.pop("messages")
    sides = [
        _transcript(fields[name]) if "prompt" not in fields else fields[name]
        for name in ("chosen", "rejected")
    ]
    if not all(isinstance(side, list) and side for side in sides):
        return fields
    chosen, rejected = (
        field.messages(side, where, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True)
    )
    if chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise DataError(f'{where}: "chosen" and "rejected" must end with a message of the assistant.')
    if chosen[:-1] != rejected[:-1]:
        raise DataError(f'{where}: "chosen" and "rejected" answer different prompts.')
    if chosen[:-1]:
        fields["prompt"] = chosen[:-1]
    return fields | {"chosen": chosen[-1].content, "rejected": rejected[-1].content}


def _transcript(side: object) -> object:
    """Read ``\\n\\nHuman: … \\n\\nAssistant: …`` as messages."""
    if not isinstance(side, str) or not _TURN.match(side):
        return side
    _, *turns = _TURN.split(side)
    roles = ["user" if who == "Human" else "assistant" for who in turns[::2]]
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, turns[1::2], strict=True)]


def _with_margin(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the difference of two scores for the margin, where there is none."""
    if "margin" in fields or not fields.keys() >= {"score_chosen", "score_rejected"}:
        return fields
    scores = [
        field.number(fields[f"score_{side}"], where, f"score_{side}") for side in ("chosen", "rejected")
    ]
    if scores[0] is None or scores[1] is None:
        return fields
    return fields | {"margin": scores[0] - scores[1]}


def _from_ratings(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Compare the best with the worst of several rated answers; equal ratings are a tie."""
    answers = fields["completions"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError(f'{where}: "completions" must list at least two rated answers.')
    rated: list[tuple[float, str]] = []
    for index, one in enumerate(answers):
        name = f"completions[{index}]"
        if not isinstance(one, Mapping) or "response" not in one:
            raise DataError(f'{where}: {name} must have "response" and "overall_score".')
        score = next(
            (one[key] for key in ("overall_score", "score", "fine-grained_score") if key in one), None
        )
        value = field.number(score, where, f"{name}.overall_score")
        if value is None:
            raise DataError(f'{where}: {name} has no "overall_score".')
        rated.append((value, field.text(one["response"], where, f"{name}.response")))
    best, worst = max(rated, key=lambda pair: pair[0]), min(rated, key=lambda pair: pair[0])
    if best[0] == worst[0]:
        best, worst = rated[0], rated[1]
    found = {"prompt": fields["instruction"], "chosen": best[1], "rejected": worst[1]}
    kept = {name: fields[name] for name in ("annotator", "created", "source") if name in fields}
    return found | kept | ({"tie": True} if best[0] == worst[0] else {"margin": best[0] - worst[0]})


def _two_sides(fields: Mapping[str, Any]) -> tuple[Any, Any] | None:
    for stem in ("conversation", "response"):
        if fields.keys() >= {f"{stem}_a", f"{stem}_b"}:
            return fields[f"{stem}_a"], fields[f"{stem}_b"]
    return None


def _from_winner(fields: dict[str, Any], sides: tuple[Any, Any], where: str) -> dict[str, Any]:
    """Read two answers and which of them won."""
    winner = str(fields["winner"]).strip().lower()
    if winner not in _SIDES and winner not in _TIES:
        known = ", ".join([*_SIDES, *_TIES])
        raise DataError(
            f"{where}: the winner is {field.short(fields['winner'])}.", f"Expected one of {known}."
        )
    kept = {
        name: fields[name]
        for name in ("prompt", "margin", "annotator", "created", "source")
        if name in fields
    }
    chosen, rejected = reversed(sides) if _SIDES.get(winner) == "b" else sides
    found = kept | {"chosen": chosen, "rejected": rejected} | ({"tie": True} if winner in _TIES else {})
    return _with_prompt(found, where)
