"""The five kinds of record, and what makes a line one of them.

Decides the kind of a record from its keys, checks every field, and translates the field names that other
projects use. Each complaint is one ``DataError`` that starts with ``file:line``. It opens no file, encodes
nothing, and never guesses what a broken record may have meant.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stockpot.data.reading import shown
from stockpot.errors import DataError
from stockpot.text.chat import ROLES, Message

__all__ = [
    "FIELD_NAMES",
    "KINDS",
    "ChatRecord",
    "CompletionRecord",
    "ImageRecord",
    "PreferenceRecord",
    "Prompt",
    "Record",
    "TextRecord",
    "as_messages",
    "parse_record",
    "text_of",
]

Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A document: ``{"text"}``."""

    kind: ClassVar[str] = "text"
    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation: ``{"messages": [{"role", "content"}]}``."""

    kind: ClassVar[str] = "messages"
    messages: tuple[Message, ...]
    where: str = ""


@dataclass(frozen=True, slots=True)
class CompletionRecord:
    """What is given and what should follow: ``{"prompt", "completion"}``."""

    kind: ClassVar[str] = "completion"
    prompt: Prompt
    completion: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class PreferenceRecord:
    """Two answers, one better: ``{"prompt", "chosen", "rejected"[, "margin", "annotator", "created"]}``."""

    kind: ClassVar[str] = "preference"
    prompt: Prompt
    chosen: str
    rejected: str
    margin: float | None = None
    annotator: str | None = None
    created: str | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A picture (the path of its file) and its text: ``{"image", "text"}``."""

    kind: ClassVar[str] = "image"
    image: str
    text: str
    where: str = ""


Record = TextRecord | ChatRecord | CompletionRecord | PreferenceRecord | ImageRecord

KINDS: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "image": ("image", "text"),
}
"""Each kind and the keys that tell it."""

_OPTIONAL = ("margin", "annotator", "created")
_IMPORTED = (
    *("instruction", "input", "context", "output", "response", "system"),
    *("conversations", "conversation", "question", "answer"),
)
FIELD_NAMES = frozenset({*(name for names in KINDS.values() for name in names), *_OPTIONAL, *_IMPORTED})
"""Every key that this file reads; columns with other names need not be loaded."""

_HUMAN = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


def parse_record(value: object, where: str) -> Record:
    """Check one parsed line and turn it into its record.

    Keys that belong to no kind (titles, labels, sources) are left out; null means absent.

    Args:
        value: what the line holds, usually a dict.
        where: ``file:line``, for messages.

    Raises:
        DataError: naming ``where``, what was found and what was expected.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{where}: a record is an object with named fields, not {_type(value)}.")
    fields = _translate({key: item for key, item in value.items() if item is not None}, where)
    null = [key for key in value if value[key] is None and key in FIELD_NAMES]
    if null and not any(fields.keys() >= set(names) for names in KINDS.values()):
        raise DataError(f'{where}: "{null[0]}" is null.', _EXPECTED)
    return _MAKERS[_kind(fields, where)](fields, where)


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    """Read a prompt as messages: plain text is what the user says."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def text_of(record: Record) -> str:
    """Give all the text of a record, for training a tokenizer; messages are joined by line ends."""
    match record:
        case TextRecord() | ImageRecord():
            parts = [record.text]
        case ChatRecord():
            parts = [message.content for message in record.messages]
        case CompletionRecord():
            parts = [*_contents(record.prompt), record.completion]
        case PreferenceRecord():
            parts = [*_contents(record.prompt), record.chosen, record.rejected]
    return "\n".join(parts)


def _contents(prompt: Prompt) -> list[str]:
    return [message.content for message in as_messages(prompt)]


# --- which kind ---


def _kind(fields: Mapping[str, Any], where: str) -> str:
    keys = fields.keys()
    found = [kind for kind, names in KINDS.items() if keys >= set(names)]
    if found == ["text", "image"]:  # an image record is the more exact reading
        return "image"
    if len(found) == 1:
        return found[0]
    if found:
        kinds = " and ".join(_spell(kind) for kind in found)
        raise DataError(
            f"{where}: the keys ({_listed(keys)}) fit more than one kind: {kinds}.", "Keep one of them."
        )
    raise _no_kind(fields, where)


def _no_kind(fields: Mapping[str, Any], where: str) -> DataError:
    """Name what is missing from the nearest kind, or the key that looks misspelled."""
    keys = set(fields)
    if not keys:
        return DataError(f"{where}: the record is empty.", _EXPECTED)
    known = sorted({name for names in KINDS.values() for name in names})
    near = {key: difflib.get_close_matches(key, known, n=1, cutoff=0.75) for key in sorted(keys - set(known))}
    hints = [f'"{shown(str(key), 40)}" may mean "{match[0]}".' for key, match in near.items() if match]
    if hints:
        return DataError(f"{where}: unknown key. {hints[0]} Found: {_listed(keys)}.", _EXPECTED)
    hits = {kind: len(keys & set(names)) for kind, names in KINDS.items()}
    kind = max(hits, key=lambda name: hits[name])
    if not hits[kind]:
        return DataError(f"{where}: unknown keys: {_listed(keys)}.", _EXPECTED)
    missing = " and ".join(f'"{name}"' for name in KINDS[kind] if name not in keys)
    be = "is" if missing.count('"') == 2 else "are"
    return DataError(
        f"{where}: {missing} {be} missing (found: {_listed(keys)}).", f"Expected: {_spell(kind)}."
    )


def _spell(kind: str) -> str:
    return "{" + ", ".join(f'"{name}"' for name in KINDS[kind]) + "}"


_EXPECTED = "A record is one of " + " · ".join(_spell(kind) for kind in KINDS) + "."


def _listed(keys: Any) -> str:
    names = sorted(str(key) for key in keys)
    first = ", ".join(shown(name, 40) for name in names[:8])
    return first + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# --- other projects' names ---


def _translate(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rename other projects' fields to ours; what is not recognised stays as it is."""
    fields = dict(value)
    keys = fields.keys()
    answer = next((name for name in ("output", "response") if name in keys), None)
    if "instruction" in keys and answer:
        return {"messages": _from_instruction(fields, answer, where)}
    if turns := next((name for name in ("conversations", "conversation") if name in keys), None):
        if "messages" not in keys:
            fields["messages"] = _from_turns(fields.pop(turns), where)
    elif keys >= {"question", "answer"} and not keys & {"text", "messages", "prompt"}:
        fields |= {"prompt": fields.pop("question"), "completion": fields.pop("answer")}
    elif keys >= {"prompt", "response"} and not keys & {"completion", "chosen"}:
        fields["completion"] = fields.pop("response")
    if keys >= {"chosen", "rejected"}:
        fields = _with_prompt(fields, where)
    return fields


def _from_instruction(fields: Mapping[str, Any], answer: str, where: str) -> list[dict[str, str]]:
    given = fields.get("input") if "input" in fields else fields.get("context")
    asked = _text(fields["instruction"], where, "instruction")
    more = _text(given, where, "input") if given is not None else ""
    messages = [
        {"role": "user", "content": f"{asked}\n\n{more}" if more.strip() else asked},
        {"role": "assistant", "content": _text(fields[answer], where, answer)},
    ]
    system = fields.get("system")
    return [{"role": "system", "content": _text(system, where, "system")}, *messages] if system else messages


def _from_turns(turns: object, where: str) -> object:
    """Translate ``{"from", "value"}`` turns; anything else is left for the check of messages."""
    if not isinstance(turns, list):
        raise DataError(f'{where}: "conversations" must be a list of turns, not {_type(turns)}.')
    return [
        {"role": _HUMAN.get(turn["from"], turn["from"]), "content": turn["value"]}
        if isinstance(turn, Mapping) and turn.keys() >= {"from", "value"} and isinstance(turn["from"], str)
        else turn
        for turn in turns
    ]


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
        _messages(side, where, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True)
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


# --- fields ---


def _text(value: object, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise DataError(f'{where}: "{name}" must be text, not {_type(value)}.')
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f'{where}: "{name}" has half a surrogate pair at character {error.start}: no valid text.'
        ) from None
    return value


def _messages(value: object, where: str, name: str) -> tuple[Message, ...]:
    if isinstance(value, tuple) and all(isinstance(item, Message) for item in value):
        return value
    if not isinstance(value, list):
        raise DataError(f'{where}: "{name}" must be a list of messages, not {_type(value)}.')
    if not value:
        raise DataError(f'{where}: "{name}" is empty.')
    return tuple(_message(item, where, f"{name}[{index}]") for index, item in enumerate(value))


def _message(item: object, where: str, name: str) -> Message:
    if not isinstance(item, Mapping) or not item.keys() >= {"role", "content"}:
        found = f"found: {_listed(item)}" if isinstance(item, Mapping) else _type(item)
        raise DataError(f'{where}: {name} must have "role" and "content" ({found}).')
    role = item["role"]
    if role not in ROLES:
        raise DataError(f"{where}: {name} has the role {_short(role)}.", f"Roles are {', '.join(ROLES)}.")
    return Message(str(role), _text(item["content"], where, f"{name}.content"))


def _prompt(value: object, where: str) -> Prompt:
    return (
        _messages(value, where, "prompt")
        if isinstance(value, list | tuple)
        else _text(value, where, "prompt")
    )


def _answer(value: object, where: str, name: str) -> str:
    """Read an answer: text, or a list with the one message of the assistant."""
    if not isinstance(value, list):
        return _text(value, where, name)
    messages = _messages(value, where, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise DataError(f'{where}: "{name}" must be text or one message of the assistant.')
    return messages[0].content


def _optional_text(fields: Mapping[str, Any], name: str, where: str) -> str | None:
    value = fields.get(name)
    return None if value is None else _text(value, where, name)


def _margin(value: object, where: str) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):  # a CSV cell
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f'{where}: "margin" must be a finite number, not {_short(value)}.')
    return float(value)


def _preference(fields: Mapping[str, Any], where: str) -> PreferenceRecord:
    for key in fields.keys() - FIELD_NAMES:
        if near := difflib.get_close_matches(str(key), _OPTIONAL, n=1, cutoff=0.8):
            raise DataError(f'{where}: unknown key "{shown(str(key), 40)}". It may mean "{near[0]}".')
    return PreferenceRecord(
        prompt=_prompt(fields["prompt"], where),
        chosen=_answer(fields["chosen"], where, "chosen"),
        rejected=_answer(fields["rejected"], where, "rejected"),
        margin=_margin(fields.get("margin"), where),
        annotator=_optional_text(fields, "annotator", where),
        created=_optional_text(fields, "created", where),
        where=where,
    )


def _completion(fields: Mapping[str, Any], where: str) -> CompletionRecord:
    prompt, completion = _prompt(fields["prompt"], where), _answer(fields["completion"], where, "completion")
    return CompletionRecord(prompt, completion, where)


_MAKERS: dict[str, Callable[[Mapping[str, Any], str], Record]] = {
    "text": lambda fields, where: TextRecord(_text(fields["text"], where, "text"), where),
    "messages": lambda fields, where: ChatRecord(_messages(fields["messages"], where, "messages"), where),
    "completion": _completion,
    "preference": _preference,
    "image": lambda fields, where: ImageRecord(
        _text(fields["image"], where, "image"), _text(fields["text"], where, "text"), where
    ),
}

_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}


def _type(value: object) -> str:
    return _NAMES.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _short(value: object) -> str:
    return shown(repr(value), 40) if isinstance(value, str | int | float) else _type(value)
